"""`python -m parity`: compare a subject's recurrent modules with torch.nn's."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

from . import report
from .compare import Verdict
from .engine import results
from .grid import grid, quick, select
from .run import load


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: no difference. 1: a difference, or a planted fault not found. 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m parity", description="Is the subject torch.nn?")
    parser.add_argument("-k", metavar="EXPRESSION", help="only cases whose name matches, e.g. 'LSTM and not float16'")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a covering subset, in seconds")
    parser.add_argument("--subject", metavar="MODULE", default="rnnkit", help="default: rnnkit")
    parser.add_argument("--seed", type=int, default=0, help="draws other numbers and other sizes")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, default: 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict to FILE")
    options = parser.parse_args(argv)

    cases = grid()
    if options.k is not None:
        try:
            cases = select(cases, options.k)
        except ValueError as error:
            parser.error(str(error))
        if not cases:
            parser.error(f"no case matches {options.k!r}; --list shows their names")
    if options.quick:
        cases = quick(cases)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    try:
        load(options.subject)
    except ImportError as error:
        parser.error(f"cannot import the subject: {error}")

    print(f"{options.subject} against torch.nn {torch.__version__}: {len(cases):,} cases, seed {options.seed}\n")
    start = time.monotonic()
    found = list(report.progress(results(cases, options.subject, options.seed, options.jobs), len(cases)))
    seconds = time.monotonic() - start
    if len(found) == 1:
        print(report.detail(found[0]), end="\n\n")
    rerun = "python -m parity" + (f" --subject {options.subject}" if options.subject != "rnnkit" else "")
    rerun += (f" --seed {options.seed}" if options.seed else "") + " -k"
    print(report.text(found, seconds, rerun))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(found, options.subject, options.seed, seconds), indent=1))
    return int(any(result.verdict is Verdict.DIFFERENT for result in found))


if __name__ == "__main__":
    sys.exit(main())
