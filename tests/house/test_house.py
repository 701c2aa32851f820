"""The house: who may import whom, what is never called, what lies where, and that everything public says what it is."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, FORMS, KINDS, arguments, as_list, build, pack
from torch import nn

import rnnkit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "rnnkit").glob("*.py"))}
MODULES = [importlib.import_module(f"rnnkit.{info.name}") for info in pkgutil.iter_modules(rnnkit.__path__)]

#: Dependencies point one way: what each file may import of rnnkit. A file that isn't here, none of these may import.
PICTURE = {
    "equations": set(),
    "checks": set(),
    "matmul": set(),
    "recurrence": {"equations"},
    "kernels": {"equations", "matmul"},
    "joined": {"recurrence"},
    "bptt": {"equations", "checks", "matmul", "kernels", "recurrence", "joined"},
    "graph": {"equations", "checks", "recurrence", "bptt"},
    "cells": {"equations", "checks"},
    "layers": {"equations", "checks", "recurrence", "bptt", "graph"},
    "readable": {"cells", "layers"},
    "fast": {"cells", "layers"},
    "convert": {"cells", "layers"},
}


def imports(tree):
    """Names of imported modules: `.x` for rnnkit's own, by either spelling."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level and node.module is None:
            found |= {f".{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_rnnkit_needs_torch_and_the_standard_library_alone(name):
    outside = {module.split(".")[0] for module in imports(SOURCES[name]) if not module.startswith(".")}
    assert outside <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", PICTURE)
def test_dependencies_point_one_way(name):
    own = {module.lstrip(".").split(".")[0] for module in imports(SOURCES[name]) if module.startswith(".")}
    assert own <= PICTURE[name]


def test_the_readable_path_knows_no_equation_by_name():
    imported = [node for node in ast.walk(SOURCES["recurrence"]) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imported if node.module == "equations" for alias in node.names}
    assert names <= {"Equation", "State"}


@pytest.mark.parametrize("path", sorted((ROOT / "parity").rglob("*.py")), ids=lambda path: path.stem)
def test_parity_knows_its_subject_by_name_only(path):
    assert not {name for name in imports(ast.parse(path.read_text())) if name.split(".")[0] == "rnnkit"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_use_the_public_face_only(path):
    assert not {name for name in imports(ast.parse(path.read_text())) if name.startswith(("rnnkit.", "parity"))}


def test_the_witness_shares_nothing_with_what_it_judges():
    assert imports(ast.parse((ROOT / "tests" / "witness.py").read_text())) <= {"numpy", "types"}


# What is never called -----------------------------------------------------------------------------------------------

FORBIDDEN = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
FORBIDDEN |= {"_VF", "_VariableFunctions", "mkldnn_rnn_layer", "_cudnn_rnn", "quantized_lstm", "quantized_gru"}


def root(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("name", SOURCES)
def test_no_recurrent_operator_of_torchs_is_named(name):
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Attribute) and root(node) in ("torch", "nn", "F"):
            assert node.attr not in FORBIDDEN
            assert not node.attr.startswith("_thnn")
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert not {alias.name for alias in node.names} & FORBIDDEN


def operators(module, form):
    """Names of the operators that a forward and a backward run, whatever called them."""
    input, hx = arguments(module, form)
    with torch.autograd.profiler.profile() as profile:
        result = as_list(module(pack(module, input, form), hx))[-1]
        as_list(result)[0].sum().backward()
    return {event.name.removeprefix("aten::") for event in profile.function_events}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_recurrent_operator_of_torchs_runs(dtype, onednn, monkeypatch):
    layers = [(kind, form, False) for kind in KINDS for form in FORMS]
    with torch.backends.mkldnn.flags(enabled=onednn):
        for kind, form, cell in layers + [(kind, form, True) for kind in CELLS for form in FORMS[:2]]:
            ran = operators(build(nn, kind, cell=cell, dtype=dtype), form)
            assert ran & FORBIDDEN, "torch.nn's own operator should have been seen"
            for path in ("readable", "always fast"):
                monkeypatch.setattr(rnnkit.RNNBase, "path", path)
                ran = operators(build(rnnkit, kind, cell=cell, dtype=dtype), form)
                assert not ran & FORBIDDEN
                assert not {name for name in ran if "_thnn" in name or "rnn_layer" in name}


def test_no_class_derives_from_torchs():
    for module in MODULES:
        for _, value in inspect.getmembers(module, inspect.isclass):
            if value.__module__.startswith("rnnkit"):
                assert not issubclass(value, (nn.RNNBase, nn.RNNCellBase))


# What lies where, and what it says ----------------------------------------------------------------------------------


def test_the_top_level_holds_the_agreed_names():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git work tree")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert top <= {"pyproject.toml", "README.md", "rnnkit", "tests", "parity", "examples", ".ci", ".gitignore"}


def test_the_public_face_is_what_all_says():
    public = {name for name, value in vars(rnnkit).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(rnnkit.__all__)
    assert {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell", "RNNBase", "RNNCellBase"} <= public
    assert {"convert", "to_native", "Equation", "EQUATIONS"} <= public


@pytest.mark.parametrize("module", [rnnkit, *MODULES], ids=lambda module: module.__name__)
def test_every_public_thing_has_a_docstring(module):
    """Modules, classes, functions; of the public classes also the methods that torch.nn's of that name has not."""
    assert module.__doc__
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__ or name.startswith("_"):
            continue
        if getattr(value, "_is_protocol", False):
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name
        if value is getattr(rnnkit, name, None) and inspect.isclass(value):
            known = set(dir(getattr(nn, name, nn.Module)))
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_") and method not in known:
                    assert inspect.getdoc(getattr(value, method)), f"{name}.{method}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_docstrings_examples_run(module):
    namespace = vars(module) | {"torch": torch}
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs=namespace):
        if test.examples:
            assert doctest.DocTestRunner(verbose=False).run(test).failed == 0, test.name
