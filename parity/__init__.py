"""Parity: is a recurrent module torch.nn's? `python -m parity --help`.

    grid      which cases there are, how one is run, what is compared, with a verdict each
    contract  everything that is not a number: signatures, keys, messages; its questions are a text file
    mutants   one catalogue of mistakes: planted, they prove that the harness finds them; searched, they name what a
              module does otherwise
    checkup   anybody's class, function or numbers: read, diagnosed, located, shrunk to the smallest case
    bench     what PyTorch can do with a subject (matrix), and how fast it is (speed)
    report    what was found, for a terminal, a program, a pull request, a browser; what changed between two runs
    checking  the command lines `check` and `replay`; `comparing` that of everything
    testing   a base class for tests of one's own

Each of these folders imports only from those above it. The subject is a module name; nothing here imports the package
under test.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `parity.check` and `parity.check_arrays` when they are asked for."""
    if name == "check":
        from .checkup.examine import check

        return check
    if name == "check_arrays":
        from .checkup.arrays import check_arrays

        return check_arrays
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
