"""Parity's house: who may import whom, and that nothing in it knows the package that it judges."""

import ast
import sys
from pathlib import Path

import pytest

import parity

ROOT = Path(parity.__file__).parent

#: Dependencies point one way: the folders from the ground up, and what each may import besides itself.
PICTURE = {
    "grid": set(),
    "contract": {"grid"},
    "mutants": {"grid", "contract"},
    "checkup": {"grid", "mutants"},
    "bench": {"grid", "mutants"},
    "report": {"grid", "contract", "checkup"},
    "checking": {"grid", "checkup", "report"},
    "testing": {"checkup"},
    "comparing": {"grid", "contract", "mutants", "report"},
    "__main__": set(),
    "__init__": {"checkup"},
}

FILES = sorted(ROOT.rglob("*.py"))


def part(file):
    """The folder that a file lies in, or its own name."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(file):
    """Each import of a file: (how many levels up, module, names)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)


def parts_used(file):
    """The parts of parity that a file imports from."""
    depth = len(file.relative_to(ROOT).parts)
    for level, module, names in imported(file):
        if level == depth:  # from parity itself
            yield from ([module.split(".")[0]] if module else names)
        elif level == 0 and module.split(".")[0] == "parity":
            yield from module.split(".")[1:2]


def files_used(file, known):
    """The files beside this one that it imports from."""
    for level, module, names in imported(file):
        if level == 1 and file.parent != ROOT:
            yield from {module.split(".")[0]} & known if module else set(names) & known


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_dependencies_point_one_way(file):
    assert set(parts_used(file)) <= PICTURE[part(file)] | {part(file)}


def test_the_picture_has_no_circle():
    for name, uses in PICTURE.items():
        below = list(PICTURE)[: list(PICTURE).index(name)]
        assert uses <= set(below), name


@pytest.mark.parametrize("folder", [name for name in PICTURE if (ROOT / name).is_dir()])
def test_no_two_files_of_a_folder_import_each_other(folder):
    known = {file.stem for file in (ROOT / folder).glob("*.py")}
    left = {file.stem: set(files_used(file, known)) for file in (ROOT / folder).glob("*.py")}
    while ground := [name for name, uses in left.items() if not uses]:
        left = {name: uses - set(ground) for name, uses in left.items() if name not in ground}
    assert left == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_parity_imports_torch_and_the_standard_library_alone(file):
    outside = {module.split(".")[0] for level, module, _ in imported(file) if not level}
    assert outside <= {"torch", "numpy", "onnxruntime", *sys.stdlib_module_names}  # numpy for .npz files alone
