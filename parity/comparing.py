"""The command line `python -m parity` without a command: all of a subject's classes against torch.nn's."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from pathlib import Path

import torch

from .contract.answers import Answer, ask, contract, questions, shown
from .grid import subject
from .grid.cases import CLASSES, Case, grid, quick, select
from .grid.compare import Result
from .grid.engine import device_name, results
from .grid.verdict import exit_code
from .mutants.selftest import selftest
from .report import terminal

EPILOG = """\
examples:
  python -m parity                                   everything, some minutes
  python -m parity --quick                           a covering subset, seconds
  python -m parity -k "LSTM and packed and not hx"   some cases; a full name selects one and shows its tensors
  python -m parity -k contract                       signatures, keys, messages only
  python -m parity --ask "LSTM(3, 4) | x(5, 2, 7)"   one question, both answers
  python -m parity --subject mypackage.rnn           any module that offers the six classes
  python -m parity --set path=readable               the subject's classes with a class attribute set
  python -m parity --device cuda --jobs 8            both on a GPU
  python -m parity check mypackage.rnn:MyLSTM        is one class, function or .npz file torch.nn's, and if not, why?
more, each with a --help of its own: check, replay, compare, matrix, speed
"""


def main(argv: list[str]) -> int:
    """Return exit code 0: no difference. 1: a difference, or a planted fault that was not found. 2: wrong usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if options.device != "cpu" and (options.selftest or options.ask or options.k == "contract"):
        parser.error("the contract and the selftest are of the CPU")
    if options.selftest:
        return selftest(options.jobs, options.verbose)

    with_contract = options.device == "cpu" and options.k in (None, "contract")
    cases = _cases(parser, options)
    if options.list:
        asked = [shown(name, question) for name, question in questions()] if options.k == "contract" else []
        print("\n".join(asked or [case.name for case in cases]))
        return 0
    namespace = subject.chosen(parser, options)
    place = "" if options.device == "cpu" else f" on {device_name(subject.usable(parser, options.device))}"
    if options.ask:
        return _ask(parser, namespace, options.ask)

    start = time.monotonic()
    print(f"{subject.title(options)} against torch.nn {torch.__version__}{place}, seed {options.seed}\n")
    answers: list[Answer] = list(contract(namespace)) if with_contract else []
    found = _run(cases, options)
    seconds = time.monotonic() - start
    print(terminal.text(found, answers, seconds, _again(options), options.seed))
    if options.json:
        data = terminal.as_json(found, answers, subject.title(options), options.seed, seconds, options.device)
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return exit_code([*found, *answers])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m parity",
        description="Is the subject torch.nn? Six classes, case by case: values, gradients, contract.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="only cases whose name matches: words, and, or, not, ()")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a covering subset of the cases, and the contract")
    subject.add_arguments(parser)
    subject.add_device(parser)
    parser.add_argument("--seed", type=int, default=0, help="draws other numbers and other sizes")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes; default: 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict to FILE")
    parser.add_argument("--ask", metavar="QUESTION", help="ask torch.nn and the subject one question of the contract")
    parser.add_argument("--selftest", action="store_true", help="plant mistakes and see that each is found")
    parser.add_argument("--verbose", action="store_true", help="with --selftest: a line for each mistake")
    return parser


def _again(options: argparse.Namespace) -> str:
    """Return the command line that runs this subject with these settings."""
    given = [f" --subject {options.subject}"] * (options.subject != "rnnkit")
    given += [" --set " + shlex.quote(f"{name}={value}") for name, value in options.settings.items()]
    given += [f" --device {options.device}"] * (options.device != "cpu")
    return "python -m parity" + "".join(given)


def _cases(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Case]:
    cases = grid(options.device)
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
    running = results(cases, options.subject, options.seed, options.jobs, options.settings)
    order = {case: position for position, case in enumerate(cases)}
    return sorted(terminal.progress(running, len(cases)), key=lambda result: order[result.case])


def _ask(parser: argparse.ArgumentParser, namespace: object, question: str) -> int:
    name = question.partition("(")[0].strip()
    if name not in CLASSES:
        parser.error(f"a question begins with one of {', '.join(CLASSES)} and a parenthesis, not with {name!r}")
    answer = ask(namespace, torch.nn, name, "C" + question.strip()[len(name) :])
    print(terminal.answer_text(answer))
    return exit_code([answer])
