"""Parity: is a recurrent module torch.nn's? `python -m parity --help`.

    grid      which cases there are, their names, how to choose
    run       case -> numbers -> module -> observations (reference and subject alike)
    compare   observations -> differences, with a verdict each
    contract  everything that is not a number: signatures, keys, messages
    faults    planted mistakes, which the above must find
    selftest  that each is found, and that no part of the harness can be missing
    engine    many cases on several processes
    report    text and JSON

And `python -m parity check`: is one class, function or file of numbers torch.nn's, and if not, why?

    subjects  anybody's implementation as what the harness takes
    variants  the catalogue: torch.nn's definition, and what people write instead
    diagnose  which variant computes what the subject computes
    locate    where a difference begins, how it grows
    shrink    the smallest case that still differs, as a script
    checkup   all of that, and the command line
    pages     text, JSON, JUnit, Markdown, HTML
    changes   between two reports
    testing   a base class for tests of one's own

The subject is a module name; nothing here imports the package under test.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`parity.check` and `parity.check_arrays`, imported when they are asked for."""
    if name in ("check", "check_arrays"):
        from .checkup import checkup

        return getattr(checkup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
