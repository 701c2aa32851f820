"""The house: who may import whom, what is never called, what lies where, and that everything public says what it is."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, FORMS, KINDS, arguments, as_list, build, pack
from torch import nn

import rnnkit

ROOT = Path(__file__).resolve().parents[2]


def module_name(path):
    """`rnnkit.fast.loop` of rnnkit/fast/loop.py, `rnnkit.fast` of rnnkit/fast/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted((ROOT / "rnnkit").rglob("*.py"))}
SOURCES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
MODULES = [importlib.import_module(name) for name in SOURCES if name != "rnnkit"]

#: Who imports whom in rnnkit, each file below all that it imports: dependencies point one way, up this page.
PICTURE = """
equations
checks         <- equations
sequence
untraced
stack          <- equations
recurrence     <- equations stack
fast.products
fast.kernels   <- equations fast.products
fast.timeline  <-
fast.cublas    <- fast.products
fast.ends      <- equations stack
fast.loop      <- equations stack recurrence fast.products fast.kernels fast.timeline fast.cublas fast.ends
fast.pair      <- equations stack recurrence
fast.autograd  <- equations checks stack recurrence untraced fast.ends fast.kernels fast.loop fast.pair
fast.fused     <- equations stack recurrence untraced fast.cublas fast.ends fast.kernels fast.autograd fast.loop
fast           <- equations stack fast.kernels fast.loop fast.autograd fast.fused fast.pair
ragged         <- equations stack
compiler       <- equations checks stack recurrence fast ragged
paths          <- checks stack recurrence fast ragged compiler
cells          <- equations checks stack
layers         <- equations checks sequence untraced stack compiler paths
graphs         <- equations checks untraced stack fast paths layers
explain        <- paths cells layers
convert        <- cells layers
tracing        <- equations stack recurrence cells layers convert
dialects       <- equations layers
"""
IMPORTS = {line.split()[0]: line.split()[2:] for line in PICTURE.strip().splitlines()}


def imports(tree, package=""):
    """Dotted names of the modules that a file of `package` imports, relative ones resolved."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*home, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            files = names & set(SOURCES)  # `from . import checks`, against `from .checks import check_rank`
            found |= files | ({module} if names - files else set())
    return found


def imports_of(name):
    """The same of a file of rnnkit, by its name."""
    return imports(SOURCES[name], name if FILES[name].stem == "__init__" else name.rpartition(".")[0])


@pytest.mark.parametrize("name", SOURCES)
def test_rnnkit_needs_torch_and_the_standard_library_alone(name):
    assert {module.split(".")[0] for module in imports_of(name)} <= {"rnnkit", "torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "rnnkit"])
def test_the_picture_shows_what_each_file_imports(name):
    own = {module.removeprefix("rnnkit.") for module in imports_of(name) if module.split(".")[0] == "rnnkit"}
    assert own == set(IMPORTS[name.removeprefix("rnnkit.")])


def test_dependencies_point_one_way():
    for k, name in enumerate(IMPORTS):
        assert set(IMPORTS[name]) <= set(list(IMPORTS)[:k]), f"{name} stands above what it imports"


@pytest.mark.parametrize("name", ["rnnkit.stack", "rnnkit.recurrence"])
def test_the_readable_path_knows_no_equation_by_name(name):
    nodes = [node for node in ast.walk(SOURCES[name]) if isinstance(node, ast.ImportFrom)]
    assert {alias.name for node in nodes if node.module == "equations" for alias in node.names} <= {"Equation", "State"}


@pytest.mark.parametrize("path", sorted((ROOT / "parity").rglob("*.py")), ids=lambda path: path.stem)
def test_parity_knows_its_subject_by_name_only(path):
    assert not {name for name in imports(ast.parse(path.read_text())) if name.split(".")[0] == "rnnkit"}


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
    by = {"readable": "readable", "always fast": "fast"}
    with torch.backends.mkldnn.flags(enabled=onednn):
        for kind, form, cell in layers + [(kind, form, True) for kind in CELLS for form in FORMS[:2]]:
            ran = operators(build(nn, kind, cell=cell, dtype=dtype), form)
            assert ran & FORBIDDEN, "torch.nn's own operator should have been seen"
            for path in ("readable", "always fast"):
                monkeypatch.setattr(rnnkit.RNNBase, "path", path)
                module = build(rnnkit, kind, cell=cell, dtype=dtype)
                given = arguments(module, form)
                assert cell or rnnkit.explain(module, pack(module, given[0], form), given[1]).path == by[path]
                ran = operators(module, form)
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
    assert {"convert", "to_native", "explain", "Equation", "EQUATIONS"} <= public


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
    namespace = vars(module) | {"torch": torch, "rnnkit": rnnkit}
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs=namespace):
        if test.examples:
            assert doctest.DocTestRunner(verbose=False).run(test).failed == 0, test.name


def test_what_is_installed_is_every_package_folder():
    listed = (ROOT / "pyproject.toml").read_text().partition("packages = [")[2].partition("]")[0]
    names = {name.strip().strip('"') for name in listed.replace("\n", "").split(",") if name.strip()}
    folders = {init.parent for part in ("rnnkit", "parity") for init in (ROOT / part).rglob("__init__.py")}
    assert names == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
