"""The command lines `python -m parity check` and `python -m parity replay`."""

from __future__ import annotations

import argparse
import ast
import traceback
from pathlib import Path
from typing import Any

import torch

from .checkup import shrink, subjects
from .checkup.apart import Line, Progress, apart
from .checkup.arrays import check_arrays
from .checkup.diagnose import EXACT, Doctor
from .checkup.examine import check, incomparable
from .checkup.record import Checkup
from .grid import run
from .grid.subject import add_device
from .report import pages

EPILOG = """\
examples:
  python -m parity check mypackage.rnn:MyLSTM
  python -m parity check model.py:Decoder --as GRUCell --html report.html
  python -m parity check model.py:Encoder --as LSTM --init "vocab_size=100, pad=0"
  python -m parity check model.py:MyLSTM --map maps.py:weights
  python -m parity check numbers.npz --as LSTM      weights, input, output, h_n, c_n under torch.nn's names
  python -m parity replay smallest.json
exit code 0: it is torch.nn's, in what it offers. 1: it is not, and why. 2: it could not be compared, and what to do
"""


def main(argv: list[str]) -> int:
    """Run `python -m parity check`. Exit code 0: torch.nn's. 1: not. 2: could not be compared, or wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m parity check", description="Is this module torch.nn's, and if not, why?", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("target", metavar="PKG.MOD:NAME", help="a class or function (FILE.py:NAME too), or a .npz file")
    parser.add_argument("--as", dest="as_", metavar="CLASS", help="torch.nn's name for it: LSTM, GRUCell, ...")
    parser.add_argument("--init", metavar="ARGUMENTS", help='more arguments of its constructor: "vocab_size=100"')
    parser.add_argument(
        "--map", metavar="FILE.py:NAME", help="a function from torch.nn's weights by name to the module's, where the "
        "report says that its parameters could not be read",
    )  # fmt: skip
    parser.add_argument("--grid", choices=("quick", "full"), default="quick", help="full: every case that it offers")
    parser.add_argument("--seed", type=int, default=0, help="draws other numbers")
    add_device(parser)
    parser.add_argument("--batch-first", action="store_true", help="the arrays of a .npz file are batch first")
    parser.add_argument("--time-limit", type=float, default=45, metavar="SECONDS", help="for one step; default: 45")
    for name, what in (
        ("json", "data"),
        ("junit", "XML"),
        ("markdown", "a pull request's comment"),
        ("html", "a page"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the report as {what}")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="write the smallest failing case to FILE")
    options = parser.parse_args(argv)
    try:
        options.as_ = subjects.known_name(options.as_) if options.as_ else None
        options.init = _arguments(options.init or "")
        for name in (*pages.RENDERERS, "replay"):
            file = getattr(options, name)
            if file and not file.absolute().parent.is_dir():
                raise ValueError(f"--{name} {file}: there is no folder {file.parent}")
    except ValueError as error:
        return _refuse(parser, str(error))
    line = Line(options.target)
    line("starting")
    result = apart(lambda progress: _checked(options, parser, progress), options.time_limit, line)
    if "ended" in result:
        checkup = incomparable(options.target, options.as_, result["ended"])
        result = _rendered(checkup, options)
    line.end()
    if "usage" in result:
        return _refuse(parser, result["usage"])
    print(result["text"])
    return int(result["exit"])


def _refuse(parser: argparse.ArgumentParser, text: str) -> int:
    parser.exit(2, f"{parser.prog}: {' '.join(text.split())}\n")


def _arguments(text: str) -> dict[str, Any]:
    """Read `vocab_size=100, name='x'`. ValueError where it can't be read."""
    try:
        (call,) = (node for node in ast.walk(ast.parse(f"f({text})", mode="eval")) if isinstance(node, ast.Call))
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"--init {text!r}: expected NAME=VALUE, NAME=VALUE, with numbers, texts, lists") from None


def _checked(options: argparse.Namespace, parser: argparse.ArgumentParser, progress: Progress) -> dict[str, Any]:
    """Check what the command line names; return the report and the exit code."""
    try:
        if options.target.endswith(".npz"):
            import numpy

            with numpy.load(options.target) as arrays:
                checkup = check_arrays(
                    dict(arrays),
                    options.as_ or "LSTM",
                    batch_first=options.batch_first,
                    raises=False,
                    progress=progress,
                )
        else:
            weight_map = subjects.load(options.map) if options.map else None
            target = subjects.load(options.target)
            torch.zeros(1, device=options.device)
            checkup = check(
                target, options.as_, weight_map=weight_map, grid=options.grid, seed=options.seed, raises=False,
                device=options.device, init=options.init, progress=progress,
            )  # fmt: skip
    except (ImportError, AttributeError, ValueError, OSError, RuntimeError, AssertionError, SystemExit) as error:
        known = isinstance(error, (ValueError, OSError))
        return {"usage": str(error) if known else "".join(traceback.format_exception_only(error)).strip()}
    return _rendered(checkup, options)


def _rendered(checkup: Checkup, options: argparse.Namespace) -> dict[str, Any]:
    """Write the files that are asked for; return the text and the exit code."""
    for name, render in pages.RENDERERS.items():
        if file := getattr(options, name):
            file.write_text(render(checkup))
    if options.replay and checkup.smallest:
        shrink.save(checkup.smallest, subjects.anywhere(options.target), checkup.class_name, options.replay)
    return {"text": str(checkup), "exit": checkup.exit_code}


def replay(argv: list[str]) -> int:
    """Run a saved case again: `python -m parity replay`. Exit code 0 if it no longer differs."""
    parser = argparse.ArgumentParser(prog="python -m parity replay", description="Run a failing case again.")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(argv)
    data, case, drawn = shrink.restore(options.file)
    subject = subjects.adapt(data["target"], data["as"])
    doctor = Doctor(subject)
    doctor.diagnose_readings(case)
    ours, theirs = (run.observe(n, case, drawn, EXACT) for n in (doctor.subject.namespace, torch.nn))
    name = shrink.differing(ours, theirs)
    if not name:
        print(f"{data['target']}: no difference any more in {case.name}")
        return 0
    print(f"{data['target']} differs in {name}, {case.name}\n  torch.nn: {theirs.tensors[name]}")
    print(f"  subject:  {ours.tensors.get(name, ours.error)}")
    return 1
