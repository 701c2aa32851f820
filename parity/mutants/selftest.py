"""The proof that the harness sees: `python -m parity --selftest`.

Each mutant of the catalogue is planted, and must be found in each class that makes the mistake. No control, which is
correct, may be accused. Then the harness itself is spoiled, one line of its source at a time (see `spoiled`).
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..contract import answers
from ..grid import cases as grid
from ..grid import engine, verdict
from ..grid.cases import CLASSES, Case
from ..grid.subject import load
from .catalogue import CATALOGUE
from .module import implementation
from .mutant import Mutant
from .spoiled import CONTROLS, SPOILED, Spoiled, spoilt

PLANTED = [mutant for mutant in CATALOGUE if mutant.planted]
#: The class that witnesses for a spoiled harness is the first of these that makes the mistake.
QUICKEST = ("GRUCell", "LSTMCell", "RNNCell", "GRU", "LSTM", "RNN")
PARTS = 5  # pieces of a control's cases, so that no process waits long for another


@dataclass(frozen=True)
class Trial:
    """What the harness said of one subject."""

    name: str
    group: str
    class_name: str
    good: bool  # a mutant found, a control left in peace, a spoiled harness told from the true one
    tried: int = 0  # cases and questions
    sign: str = ""  # what gave it away


# The true harness -----------------------------------------------------------------------------------------------------


@cache
def quick_cases() -> list[Case]:
    return grid.quick(grid.grid())


def examine(mixin: type, cases: list[Case], classes: tuple[str, ...], chunk: int = 1) -> tuple[int, str]:
    """Put cases of the grid, then the contract of `classes`, to a subject, until it is accused.

    Returns how many were put, and what told.
    """
    sys.modules["planted"] = implementation(mixin)  # type: ignore[assignment]
    tried = 0
    for start in range(0, len(cases), chunk):
        for result in engine.results(cases[start : start + chunk], "planted", 0, 1):
            tried += 1
            if verdict.exit_code([result]):
                return tried, f"{result.worst.name if result.worst else ''} in {result.case.name}"
    for answer in answers.contract(load("planted"), classes=classes):
        tried += 1
        if verdict.exit_code([answer]):
            return tried, answer.question
    return tried, ""


def try_mutant(mutant: Mutant, class_name: str) -> Trial:
    """Put the quick grid, from where the mutant is likeliest to be seen, and then the contract."""
    cases = [case for case in quick_cases() if case.class_name == class_name]
    if mutant.look == "contract":
        cases = []
    elif mutant.look:
        likely = grid.select(cases, mutant.look)
        cases = likely + [case for case in cases if case not in likely]
    tried, sign = examine(mutant.plant(), cases, (class_name,))
    return Trial(mutant.name, mutant.level, class_name, bool(sign), tried, sign)


def try_control(name: str, part: int) -> Trial:
    """Put a part of the quick grid, or the contract (the last part)."""
    cases = quick_cases()[part::PARTS] if part < PARTS else []
    tried, sign = examine(CONTROLS[name], cases, () if part < PARTS else CLASSES)
    return Trial(name, "control", "", not sign, tried, sign)


def try_spoiled(spoiled: Spoiled) -> Trial:
    """Put all cases and questions that a spoiled harness has to its witness, to a cell where that makes the mistake."""
    mutant = next((mutant for mutant in PLANTED if mutant.name == spoiled.witness), None)
    accuses = mutant is None
    class_name = "GRU" if mutant is None else min(mutant.classes, key=QUICKEST.index)
    cases = [case for case in quick_cases() if case.class_name == class_name]
    with spoilt(spoiled):
        if spoiled.where == "grid.cases.grid":
            left = set(grid.grid())
            cases = [case for case in cases if case in left]
        subject = CONTROLS[spoiled.witness] if mutant is None else mutant.plant()
        tried, sign = examine(subject, cases, (class_name,), max(1, len(cases)))
    said = f"accuses {spoiled.witness}" if accuses else spoiled.witness
    return Trial(spoiled.name, "spoiled", class_name, bool(sign) == accuses, tried, said)


# All of it ------------------------------------------------------------------------------------------------------------

Task = tuple[str, Any, Any]


def tasks() -> list[Task]:
    """Return whatever is worth a process's while, in the order of the table."""
    planted = [("mutant", index, name) for index, mutant in enumerate(PLANTED) for name in mutant.classes]
    controls = [("control", name, part) for name in CONTROLS for part in range(PARTS)]
    controls.append(("control", next(iter(CONTROLS)), PARTS))  # the order of sums is no affair of the contract
    return [*planted, *controls, *(("spoiled", index, None) for index in range(len(SPOILED)))]


def attempt(task: Task) -> Trial:
    what, which, how = task
    if what == "mutant":
        return try_mutant(PLANTED[which], how)
    return try_control(which, how) if what == "control" else try_spoiled(SPOILED[which])


def selftest(jobs: int = 2, verbose: bool = False) -> int:
    """Run everything, print the tables. Returns 1 if a trial went wrong."""
    if jobs == 1:
        return show(map(attempt, tasks()), verbose)
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        return show(pool.imap(attempt, tasks(), chunksize=4), verbose)


COLUMNS = ("RNN", "LSTM", "GRU", "cells")


def show(trials: Iterable[Trial], verbose: bool = False) -> int:
    """Print each line of the tables as soon as it is known. Returns 1 if a trial went wrong."""
    every: list[Trial] = []
    print(f"{'mistakes found':22}" + "".join(f"{name:>12}" for name in COLUMNS) + "\n")
    for group, members in itertools.groupby(trials, key=lambda trial: trial.group):
        if group == "spoiled":
            print(f"\n{'the harness itself, spoiled':52}overlooks (or accuses)\n")
        row: dict[str, list[bool]] = {name: [] for name in COLUMNS}
        for trial in members:
            every.append(trial)
            if group == "spoiled" or verbose:
                name = trial.name if group == "spoiled" else f"{trial.name} {trial.class_name}"
                print(f"{name[:51]:52}{(trial.sign if trial.good else 'NOTHING')[:48]}", flush=True)
            if trial.class_name:
                row["cells" if trial.class_name.endswith("Cell") else trial.class_name].append(trial.good)
        if group not in ("control", "spoiled"):
            cells = (f"{sum(good)} of {len(good)}" if good else "-" for good in row.values())
            print(f"{group:22}" + "".join(f"{cell:>12}" for cell in cells), flush=True)
    planted, controls, spoiled = (
        [trial for trial in every if wanted(trial.group)]
        for wanted in (lambda g: g not in ("control", "spoiled"), lambda g: g == "control", lambda g: g == "spoiled")
    )
    print(f"\n{_good(planted)} mistakes found ({len({trial.name for trial in planted})} kinds).")
    print(f"{_good(spoiled)} spoiled harnesses told from the true one.")
    accused = sum(not trial.good for trial in controls)
    print(f"Correct implementations: {accused} accusations in {sum(t.tried for t in controls):,} cases and questions.")
    for trial in every:
        if not trial.good:
            print(f"WRONG  {trial.group}: {trial.name} {trial.class_name} {trial.sign if trial in controls else ''}")
    return int(not every or not all(trial.good for trial in every))


def _good(trials: list[Trial]) -> str:
    return f"{sum(trial.good for trial in trials)} of {len(trials)}"
