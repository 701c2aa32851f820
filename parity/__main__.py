"""`python -m parity`: compare a subject's recurrent modules with torch.nn's."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from .contract.answers import CLASSES, Answer, ask, contract, questions, shown
from .grid.cases import Case, grid, quick, select
from .grid.compare import Result
from .grid.engine import results
from .grid.run import load
from .mutants.selftest import selftest
from .report import terminal as report

EPILOG = """\
examples:
  python -m parity                                   everything, a minute or two
  python -m parity --quick                           a covering subset, seconds
  python -m parity -k "LSTM and packed and not hx"   some cases; a full name selects one and shows its tensors
  python -m parity -k contract                       signatures, keys, messages only
  python -m parity --ask "LSTM(3, 4) | x(5, 2, 7)"   one question, both answers
  python -m parity --subject mypackage.rnn           any module that offers the six classes
  python -m parity check mypackage.rnn:MyLSTM        is one class, function or .npz file torch.nn's, and if not, why?
more, each with a --help of its own: check, replay, compare, matrix, speed
"""

#: The first word of a command line -> where its `main` is.
COMMANDS = {
    "check": ("checkup.checkup", "main"),
    "replay": ("checkup.checkup", "replay"),
    "compare": ("report.changes", "main"),
    "matrix": ("bench.matrix", "main"),
    "speed": ("bench.speed", "main"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: no difference. 1: a difference, or a planted fault that was not found. 2: wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        module, function = COMMANDS[argv[0]]
        return int(getattr(importlib.import_module(f".{module}", __package__), function)(argv[1:]))
    parser = argparse.ArgumentParser(
        prog="python -m parity",
        description="Is the subject torch.nn? Six classes, case by case: values, gradients, contract.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="only cases whose name matches: words, and, or, not, ()")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a covering subset of the cases, and the contract")
    parser.add_argument("--subject", metavar="MODULE", default="rnnkit", help="default: rnnkit")
    parser.add_argument("--seed", type=int, default=0, help="draws other numbers and other sizes")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes; default: 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict to FILE")
    parser.add_argument("--ask", metavar="QUESTION", help="ask torch.nn and the subject one question of the contract")
    parser.add_argument("--selftest", action="store_true", help="plant mistakes and see that each is found")
    parser.add_argument("--verbose", action="store_true", help="with --selftest: a line for each mistake")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if options.selftest:
        return selftest(options.jobs, options.verbose)

    with_contract = options.k in (None, "contract")
    cases = _cases(parser, options)
    if options.list:
        asked = [shown(name, question) for name, question in questions()] if options.k == "contract" else []
        print("\n".join(asked or [case.name for case in cases]))
        return 0
    try:
        subject = load(options.subject)
        for name in CLASSES:
            getattr(subject, name)
    except (ImportError, AttributeError) as error:
        parser.error(f"the subject {options.subject}: {error}")
    if options.ask:
        return _ask(parser, subject, options.ask)

    start = time.monotonic()
    print(f"{options.subject} against torch.nn {torch.__version__}, seed {options.seed}\n")
    answers: list[Answer] = list(contract(subject)) if with_contract else []
    found = _run(cases, options)
    seconds = time.monotonic() - start
    again = "python -m parity" + (f" --subject {options.subject}" if options.subject != "rnnkit" else "")
    print(report.text(found, answers, seconds, again, options.seed))
    if options.json:
        data = report.as_json(found, answers, options.subject, options.seed, seconds)
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return report.exit_code(found, answers)


def _cases(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Case]:
    cases = grid()
    if options.k == "contract":
        return []
    if options.k is not None:
        try:
            cases = select(cases, options.k)
        except ValueError as error:
            parser.error(str(error))
        if not cases:
            parser.error(f"no case matches {options.k!r}; --list shows their names")
    return quick(cases) if options.quick else cases


def _run(cases: list[Case], options: argparse.Namespace) -> list[Result]:
    running = results(cases, options.subject, options.seed, options.jobs)
    order = {case: position for position, case in enumerate(cases)}
    return sorted(report.progress(running, len(cases)), key=lambda result: order[result.case])


def _ask(parser: argparse.ArgumentParser, subject: object, question: str) -> int:
    name = question.partition("(")[0].strip()
    if name not in CLASSES:
        parser.error(f"a question begins with one of {', '.join(CLASSES)} and a parenthesis, not with {name!r}")
    answer = ask(subject, torch.nn, name, "C" + question.strip()[len(name) :])
    print(report.answer_text(answer))
    return report.exit_code([], [answer])


if __name__ == "__main__":
    sys.exit(main())
