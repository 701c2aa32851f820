"""The command lines `python -m parity check` and `python -m parity replay`."""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

import torch

from .checkup import shrink, subjects
from .checkup.arrays import check_arrays
from .checkup.diagnose import EXACT, Doctor
from .checkup.examine import check
from .grid import run
from .grid.subject import add_device, usable
from .report import pages

EPILOG = """\
examples:
  python -m parity check mypackage.rnn:MyLSTM
  python -m parity check model.py:Decoder --as GRUCell --html report.html
  python -m parity check numbers.npz --as LSTM      weights, input, output, h_n, c_n under torch.nn's names
  python -m parity replay smallest.json
"""


def main(argv: list[str]) -> int:
    """Run `python -m parity check`. Exit code 0: torch.nn's. 1: not. 2: wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m parity check", description="Is this module torch.nn's, and if not, why?", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("target", metavar="PKG.MOD:NAME", help="a class or function (FILE.py:NAME too), or a .npz file")
    parser.add_argument("--as", dest="as_", metavar="CLASS", help="torch.nn's name for it: LSTM, GRUCell, ...")
    parser.add_argument("--map", metavar="PKG.MOD:NAME", help="a weight map: torch.nn's weights -> the subject's")
    parser.add_argument("--grid", choices=("quick", "full"), default="quick", help="full: every case that it offers")
    parser.add_argument("--seed", type=int, default=0, help="draws other numbers")
    add_device(parser)
    parser.add_argument("--batch-first", action="store_true", help="the arrays of a .npz file are batch first")
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
        if options.target.endswith(".npz"):
            import numpy

            with numpy.load(options.target) as arrays:
                checkup = check_arrays(
                    dict(arrays), options.as_ or "LSTM", batch_first=options.batch_first, raises=False
                )
        else:
            weight_map = subjects.load(options.map) if options.map else None
            target = subjects.load(options.target)
            device = usable(parser, options.device)
            checkup = check(
                target, options.as_, weight_map=weight_map, grid=options.grid, seed=options.seed, raises=False,
                device=device,
            )  # fmt: skip
    except (ImportError, AttributeError, ValueError, OSError) as error:
        parser.error("".join(traceback.format_exception_only(error)).strip())
    print(checkup)

    for name, render in pages.RENDERERS.items():
        if file := getattr(options, name):
            file.write_text(render(checkup))
    if options.replay and checkup.smallest:
        shrink.save(checkup.smallest, options.target, checkup.class_name, options.replay)
    return checkup.exit_code


def replay(argv: list[str]) -> int:
    """Run a saved case again: `python -m parity replay`. Exit code 0 if it no longer differs."""
    parser = argparse.ArgumentParser(prog="python -m parity replay", description="Run a failing case again.")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(argv)
    data, case, drawn = shrink.restore(options.file)
    subject = subjects.adapt(data["target"], data["as"])
    doctor = Doctor(subject)
    doctor.settle()
    ours, theirs = (run.observe(n, case, drawn, EXACT) for n in (doctor.subject.namespace, torch.nn))
    name = shrink.differing(ours, theirs)
    if not name:
        print(f"{data['target']}: no difference any more in {case.name}")
        return 0
    print(f"{data['target']} differs in {name}, {case.name}\n  torch.nn: {theirs.tensors[name]}")
    print(f"  subject:  {ours.tensors.get(name, ours.error)}")
    return 1
