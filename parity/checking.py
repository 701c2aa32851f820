"""The command lines `python -m parity check` and `python -m parity replay`."""

from __future__ import annotations

import argparse
import ast
import os
import traceback
from pathlib import Path
from typing import Any

import torch

from .checkup import shrink, subjects
from .checkup.apart import Line, Progress, apart
from .checkup.arrays import check_arrays, load_arrays
from .checkup.diagnose import Doctor
from .checkup.examine import check, incomparable
from .checkup.probes import EXACT
from .checkup.record import Checkup
from .grid import run
from .grid.cases import Case
from .grid.run import Draw
from .grid.subject import add_device
from .report import pages

EPILOG = """\
examples:
  python -m parity check mypackage.rnn:MyLSTM
  python -m parity check model.py:Decoder --as GRUCell --html report.html
  python -m parity check model.py:Encoder --as LSTM --init "vocab_size=100, pad=0"
  python -m parity check model.py:MyLSTM --write-map maps.py    then fill it in, and
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
    parser.add_argument(
        "--write-map", type=Path, metavar="FILE.py", help="write such a function, to be filled in, and stop"
    )
    parser.add_argument("--grid", choices=("quick", "full"), default="quick", help="full: every case that it offers")
    parser.add_argument("--seed", type=int, default=0, help="draws other numbers")
    add_device(parser)
    parser.add_argument("--batch-first", action="store_true", help="the arrays of a .npz file are batch first")
    _add_time_limit(parser)
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
        if options.write_map and options.write_map.exists():
            raise ValueError(f"--write-map {options.write_map}: it is there already")
        for name in (*pages.RENDERERS, "replay", "write_map"):
            file = getattr(options, name)
            if file and not file.absolute().parent.is_dir():
                raise ValueError(f"--{name.replace('_', '-')} {file}: there is no folder {file.parent}")
    except ValueError as error:
        return _refuse(parser, str(error))
    line = Line(options.target)
    line("starting")
    work = _map_written if options.write_map else _checked
    result = apart(lambda progress: work(options, progress), options.time_limit, line)
    if "ended" in result:
        checkup = incomparable(options.target, options.as_, result["ended"])
        result = _rendered(checkup, options)
    line.end()
    if "usage" in result:
        return _refuse(parser, result["usage"])
    print(result["text"])
    return int(result["exit"])


def _add_time_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--time-limit", type=float, default=45, metavar="SECONDS", help="for one step; default: 45")


def _refuse(parser: argparse.ArgumentParser, text: str) -> int:
    parser.exit(2, f"{parser.prog}: {' '.join(text.split())}\n")


def _arguments(text: str) -> dict[str, Any]:
    """Read `vocab_size=100, name='x'`. ValueError where it can't be read."""
    try:
        (call,) = (node for node in ast.walk(ast.parse(f"f({text})", mode="eval")) if isinstance(node, ast.Call))
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"--init {text!r}: expected NAME=VALUE, NAME=VALUE, with numbers, texts, lists") from None


def _map_written(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Write a weight map for this module to a file, to be filled in."""
    progress("asking for its parameters")
    try:
        reader = subjects.adapt(subjects.load(options.target), options.as_, init=options.init).reader
        if reader is None:
            return {"usage": f"{options.target}: a function of input, state and weights needs no weight map"}
        options.write_map.write_text(reader.template())
    except (*REFUSALS, subjects.IncomparableError) as error:
        return {"usage": _said(error)}
    again = f"python -m parity check {options.target} --map {options.write_map}:weights"
    return {"text": f"{options.write_map}: fill in what each ... is made of. Then: {again}", "exit": 0}


#: What a wrong command line and a file that can't be imported raise.
REFUSALS = (ImportError, AttributeError, ValueError, OSError, RuntimeError, AssertionError, SystemExit)


def _said(error: BaseException) -> str:
    """Say it without the name of the exception where it was raised for people to read."""
    told = isinstance(error, (ValueError, OSError, subjects.IncomparableError))
    return str(error) if told else "".join(traceback.format_exception_only(error)).strip()


def _checked(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Check what the command line names; return the report and the exit code."""
    try:
        if options.target.endswith(".npz"):
            arrays, kind = load_arrays(options.target), options.as_ or "LSTM"
            checkup = check_arrays(arrays, kind, batch_first=options.batch_first, raises=False, progress=progress)
        else:
            weight_map = subjects.load(options.map) if options.map else None
            target = subjects.load(options.target)
            torch.zeros(1, device=options.device)
            checkup = check(
                target, options.as_, weight_map=weight_map, grid=options.grid, seed=options.seed, raises=False,
                device=options.device, init=options.init, progress=progress,
            )  # fmt: skip
    except REFUSALS as error:
        return {"usage": _said(error)}
    return _rendered(checkup, options)


def _rendered(checkup: Checkup, options: argparse.Namespace) -> dict[str, Any]:
    """Write the files that are asked for; return the text and the exit code."""
    for name, render in pages.RENDERERS.items():
        if file := getattr(options, name):
            file.write_text(render(checkup))
    if options.replay and checkup.smallest:
        made = {"target": options.target, "as": checkup.class_name, "init": options.init, "map": options.map}
        shrink.save(checkup.smallest, {**made, "folder": str(Path.cwd())}, options.replay)
    return {"text": str(checkup), "exit": checkup.exit_code}


def replay(argv: list[str]) -> int:
    """Run `python -m parity replay`. Exit code 0: it no longer differs. 1: it does. 2: it could not be run."""
    parser = argparse.ArgumentParser(prog="python -m parity replay", description="Run a failing case again.")
    parser.add_argument("file", type=Path, help="what check --replay FILE has written")
    _add_time_limit(parser)
    options = parser.parse_args(argv)
    try:
        data, case, drawn = shrink.restore(options.file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return _refuse(parser, f"{options.file} is no case that check --replay has written: {error}")
    line = Line(data["target"])
    line("starting")
    result = apart(lambda progress: _replayed(data, case, drawn), options.time_limit, line)
    line.end()
    print(result.get("text") or f"{data['target']} could not be run: {result.get('ended') or result['usage']}")
    return int(result.get("exit", 2))


def _replayed(data: dict[str, Any], case: Case, drawn: Draw) -> dict[str, Any]:
    """Run the saved case on both sides, in the folder where it was saved; return what is said and the exit code."""
    if os.path.isdir(data.get("folder", "")):
        os.chdir(data["folder"])
    try:
        weight_map = subjects.load(data["map"]) if data.get("map") else None
        doctor = Doctor(subjects.adapt(data["target"], data["as"], weight_map, data.get("init")))
        doctor.diagnose_readings(case)
    except (*REFUSALS, subjects.IncomparableError) as error:
        return {"usage": _said(error)}
    ours, theirs = (run.observe(n, case, drawn, EXACT) for n in (doctor.subject.namespace, torch.nn))
    name = shrink.differing(ours, theirs)
    if name:
        text = f"{data['target']} differs in {name}, {case.name}\n  torch.nn: {theirs.tensors[name]}"
        return {"text": f"{text}\n  subject:  {ours.tensors.get(name, ours.error)}", "exit": 1}
    if not ours.tensors:
        return {"usage": f"it raises {ours.error}"}
    return {"text": f"{data['target']}: no difference any more in {case.name}", "exit": 0}
