"""The proof that the harness sees: `python -m parity --selftest`.

Each fault of `faults` must be found in each class that makes it, and no control may be accused.

Then the harness itself is spoiled, one line of its source at a time. A spoiled harness must be told from the true one:
it overlooks a fault that the true one finds, or it accuses a control. So every line that is spoiled here is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import multiprocessing
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..contract import answers as contract
from ..grid import cases as grid
from ..grid import compare, engine, run, verdict
from ..grid.cases import CLASSES, Case
from ..grid.subject import load
from . import faults
from .faults import FAULTS, Fault, implementation

CONTROLS = {"a plain loop": faults.Plain, "sums in another order": faults.Reordered}
PARTS = 5  # pieces of a control's cases, so that no process waits long for another


@dataclass(frozen=True)
class Trial:
    """What the harness said of one subject."""

    name: str
    group: str
    class_name: str
    good: bool  # a fault found, a control left in peace, a spoiled harness told from the true one
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
    for answer in contract.contract(load("planted"), classes=classes):
        tried += 1
        if verdict.exit_code([answer]):
            return tried, answer.question
    return tried, ""


def try_fault(fault: Fault, class_name: str) -> Trial:
    """The quick grid, from where the fault is likeliest to be seen; then the contract."""
    cases = [case for case in quick_cases() if case.class_name == class_name]
    if fault.where == "contract":
        cases = []
    elif fault.where:
        likely = grid.select(cases, fault.where)
        cases = likely + [case for case in cases if case not in likely]
    tried, sign = examine(fault.mixin, cases, (class_name,))
    return Trial(fault.name, fault.level, class_name, bool(sign), tried, sign)


def try_control(name: str, part: int) -> Trial:
    """A part of the quick grid, or the contract (the last part)."""
    cases = quick_cases()[part::PARTS] if part < PARTS else []
    tried, sign = examine(CONTROLS[name], cases, () if part < PARTS else CLASSES)
    return Trial(name, "control", "", not sign, tried, sign)


# The spoiled harness --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoiled:
    """A line of the harness, what stands in its place, and the fault then overlooked (or the control accused)."""

    name: str
    where: str  # folder.file.function
    old: str
    new: str
    witness: str
    class_name: str = "GRU"


def _in(where: str, *rows: tuple[str, ...]) -> Iterator[Spoiled]:
    yield from (Spoiled(name, where, *rest) for name, *rest in rows)


def _without(*rows: tuple[str, ...]) -> Iterator[Spoiled]:
    """Grids of only those cases that satisfy a condition."""
    old = "[*_layers(), *_cells(), *_specials()]"
    for name, condition, *rest in rows:
        yield Spoiled(f"a grid {name}", "grid.cases.grid", old, f"[case for case in {old} if {condition}]", *rest)


def _blind(*rows: tuple[str, ...]) -> Iterator[Spoiled]:
    """Facts that aren't looked at."""
    for name, fact, *rest in rows:
        old = "_FACTS.get(name, _equal)(expected, seen)"
        yield Spoiled(f"does not ask {name}", "grid.compare.compare_facts", old, f"(name == {fact!r} or {old})", *rest)


PLAIN, OTHER_ORDER = CONTROLS
W_HH = "gradient of W_hh 0.1 % off"
DRAWN = "return Draw(arguments, weights, input, hx, lengths, cotangents,"
OUTPUTS = 'for name, tensor in outputs.items()}\n    seen.facts["requires_grad"]'
ALLOWED = "return min((2 if exact else 3) * own + 2 * eps * depth**0.5, eps**0.25)"
FOUND = "for found in findings"
LENGTHS = 'if case.form == "unbatched":'

SPOILED = (
    *_in(
        "grid.compare.judge",
        ("compares torch.nn with torch.nn", "observe(subject,", "observe(reference,", W_HH, "GRUCell"),
        ("compares the subject with itself", "observe(reference,", "observe(subject,", W_HH, "GRUCell"),
        ("draws other numbers for each of the two", "observe(subject, case, drawn,",
         "observe(subject, case, draw(case, seed + 1),", PLAIN),
        ("looks at no facts", "compare_facts(theirs, ours)", "[]", "no autocast", "GRUCell"),
        ("dtypes may differ", "a.dtype != b.dtype or", "", "h_n of 16 bits comes as float32", "GRUCell"),
        ("a gradient may be missing", "if a is not b:", "if False:", "gradient of b_hh missing", "GRUCell"),
        ("looks at one tensor of each case", "in theirs.tensors.keys() | ours.tensors.keys()",
         "in sorted(theirs.tensors)[-1:]", W_HH, "GRUCell"),
    ),
    *_in(
        "grid.compare.compare_facts",
        ("an exception is no difference", '[Difference("error", Verdict.ERROR, note=note)]', "[]", "no autocast",
         "GRUCell"),
    ),
    *_blind(
        ("what shares memory", "aliases", "h_n a view of output"),
        ("what was written to", "written to", "the backward overwrites the input", "GRUCell"),
        ("how much was drawn from the generator", "generator", "one extra draw from the generator"),
        ("what is contiguous", "contiguous", "h_n not contiguous", "GRUCell"),
        ("for warnings", "warnings", "a warning where gradients are off", "GRUCell"),
    ),
    *_in(
        "grid.compare.allowance",
        ("a tolerance of 0.1", ALLOWED, "return 0.1", W_HH, "GRUCell"),
        ("a tolerance of 1e-5", ALLOWED, ALLOWED.replace("min", "1e-5 + min"), "a float32 buffer in a float64 run",
         "GRUCell"),
        ("no tolerance", ALLOWED, "return 0.0", OTHER_ORDER),
        ("a tolerance that doesn't know the case", "(2 if exact else 3) * own +", "", OTHER_ORDER),
        ("a tolerance of twice torch.nn's error alone", "+ 2 * eps * depth**0.5", "", OTHER_ORDER),
    ),
    *_in(
        "grid.compare.relative_error",
        ("compares without signs", "tensor - true", "tensor.abs() - true.abs()",
         "gradient of W_ih of the wrong sign", "GRUCell"),
        ("NaN is as good as a number", 'return float("inf")', "return 0.0",
         "NaN for the gradient of a state of zeros", "GRUCell"),
    ),
    *_in(
        "grid.run.same_bits",
        ("bits are equal if torch.allclose says so", "torch.equal(_bits(a), _bits(b))",
         "torch.allclose(a.detach(), b.detach())", "a float32 buffer in a float64 run", "GRUCell"),
    ),
    *_in(
        "grid.run._observe",
        ("never runs the backward", "if any(tensor.requires_grad for", "if False and any(tensor.requires_grad for",
         W_HH, "GRUCell"),
        ("never reads gradients of weights", "module.named_parameters()}\n    seen", "()}\n    seen", W_HH, "GRUCell"),
        ("reads gradients from state_dict(), where none are",
         "parameter in module.named_parameters()}\n    seen", "parameter in module.state_dict().items()}\n    seen",
         W_HH, "GRUCell"),
        ("never reads gradients of input and hx", "leaf in leaves.items()", "leaf in ()",
         "no gradient for hx", "GRUCell"),
        ("ignores output", OUTPUTS, OUTPUTS.replace("}", " if name != 'output'}", 1), "output a ten-thousandth off"),
        ("ignores h_n", OUTPUTS, OUTPUTS.replace("}", " if name[0] != 'h'}", 1), "h_n a ten-thousandth off", "GRUCell"),
        ("ignores c_n", OUTPUTS, OUTPUTS.replace("}", " if name[0] != 'c'}", 1), "c_n a ten-thousandth off",
         "LSTMCell"),
        ("does not seed the generator", "torch.manual_seed(drawn.seed)", "pass", PLAIN),
    ),
    *_in(
        "grid.run.build",
        ("each keeps its own initial weights", "parameter.copy_(precision.cast(drawn.weights[name]))", "pass", PLAIN),
        ("never in training", 'module.train(case.dropout != "dropout_eval")', "module.eval()", "dropout twice"),
        ("always in training", 'module.train(case.dropout != "dropout_eval")', "module.train()", "dropout in eval"),
    ),
    *_in(
        "grid.run.draw",
        ("weights constant across gates", "return drawn\n", "return torch.full_like(drawn, 0.1)\n",
         "a ten-thousandth of the next row in each row of W_hh", "GRUCell"),
        ("the same seed for both biases", 'weights["bias_hh" + suffix] = parameter(gates * hidden_size)',
         'weights["bias_hh" + suffix] = weights["bias_ih" + suffix].clone()', "a ten-thousandth of b_hh in b_ih",
         "GRUCell"),
        ("the same seed for both directions", 'suffix = "" if case.is_cell',
         'generator.manual_seed(layer)\n            suffix = "" if case.is_cell',
         "a ten-thousandth of the forward weights in the reverse"),
        ("states of zeros", "states[name] * 0.7", "states[name] * 0", "h0 a ten-thousandth off", "GRUCell"),
        ("a loss of output alone", DRAWN, DRAWN.replace("cotangents", "{n: c * (n == 'output') for n, c in "
         "cotangents.items()}"), "gradient through h_n lost"),
        ("a loss that is a sum", DRAWN, DRAWN.replace("cotangents", "{n: c * 0 + 1 for n, c in cotangents.items()}"),
         "a backward for losses that are a sum", "GRUCell"),
        ("sequences of one step", LENGTHS, f"lengths = (1,) * len(lengths)\n    {LENGTHS}",
         "backpropagation through the last 3 steps only"),
        ("sequences of equal length", LENGTHS, f"lengths = (max(lengths),) * len(lengths)\n    {LENGTHS}",
         "finished sequences detached"),
        ("a batch of one sequence", LENGTHS, f"batch, lengths = min(batch, 1), lengths[:1]\n    {LENGTHS}",
         "hx sorted by unsorted_indices"),
    ),
    *_without(
        ("of one kind", "case.kind != 'RNNCell-relu'", "leaky relu in place of relu", "RNNCell"),
        ("of one dtype", "case.dtype == 'float64'", "h_n of 16 bits comes as float32", "GRUCell"),
        ("without onednn", "not case.onednn", "no c of the lower precision under autocast", "LSTM"),
        ("of one layer", "case.layers == 1", "the weights of the second layer in the third"),
        ("without bias=False", "case.bias", "a bias of 0.1 where there is none", "GRUCell"),
        ("without batch_first", "not case.batch_first", "h0 taken as (batch, layers, H) under batch_first"),
        ("of one direction", "not case.bidirectional", "both directions with the forward weights"),
        ("without dropout", "not case.dropout", "dropout twice"),
        ("of one form, padded", "case.form == 'padded'", "finished sequences detached"),
        ("without hx", "not case.hx", "no gradient for hx", "GRUCell"),
        ("with hx always", "case.hx", "NaN for the gradient of a state of zeros", "GRUCell"),
        ("without special circumstances", "not case.special", "weights remembered from the first call", "GRUCell"),
        ("without a second call", "case.special != 'second_call'", "states kept from one call to the next", "GRUCell"),
        ("without autocast", "case.special != 'autocast'", "no autocast", "GRUCell"),
        ("without long sequences", "case.special != 'long'", "the first 32 steps only"),
        ("without sequences of one step", "case.special != 'one_step'", "a shortcut for one step that takes no hx"),
        ("without wide layers", "case.special != 'wide'", "a kernel for no more than 32 units", "GRUCell"),
        ("without strided views", "case.special not in ('noncontiguous', 'expanded')",
         "memory of the input read as if contiguous"),
        ("without frozen weights", "case.special != 'frozen_weights'",
         "no gradient of the input unless the weights want one", "GRUCell"),
        ("without a frozen input", "case.special != 'frozen_input'",
         "no gradient of the weights unless the input wants one"),
        ("without no_grad and inference", "case.special not in ('no_grad', 'inference')",
         "output rounded to 16 bits under no_grad"),
        ("without losses of one output", "not case.special.startswith('loss')",
         "a backward that needs a gradient of h_n and of c_n", "LSTMCell"),
    ),
    *_in(
        "contract.answers.contract",
        ("never asks the contract's questions", "in questions():", "in ():", "another message", "GRUCell"),
    ),
    *_in(
        "contract.answers.ask",
        ("asks torch.nn twice", "reply(subject,", "reply(reference,", "another message", "GRUCell"),
        ("does not compare what is said", "theirs.text == ours.text and ", "", "another message", "GRUCell"),
        ("does not compare initial weights", ' and _close(theirs.tensors, ours.tensors, exactly="|" not in question)',
         "", "other initial weights under one seed", "GRUCell"),
    ),
    *_in(
        "contract.answers._call",
        ("does not see what a refusal leaves behind", "if not all(old", "if False and not all(old",
         "the caller's hx changed before it is refused", "GRUCell"),
        ("does not see what a call leaves on the module", "if after != attributes:", "if False:",
         "a call leaves its mark on the module", "GRUCell"),
    ),
    *_in("contract.answers.reply", ("constructs without a seed", "torch.manual_seed(3)", "pass", PLAIN)),
    *_in(
        "grid.engine.results",
        ("runs the first chunk of the cases", "range(0, len(cases), CHUNK)", "range(0, 1, CHUNK)",
         "the first 32 steps only"),
    ),
    *_in(
        "grid.engine._run",
        ("loads torch.nn in any case", "load(subject, settings)", "load('torch.nn')", W_HH, "GRUCell"),
    ),
    *_in(
        "grid.verdict.exit_code",
        ("exit code always 0", "return int(", "return 0 * int(", W_HH, "GRUCell"),
        ("exit code without the contract", FOUND, f"{FOUND} if hasattr(found, 'case')", "another repr", "GRUCell"),
        ("exit code without the grid", FOUND, f"{FOUND} if hasattr(found, 'question')", W_HH, "GRUCell"),
    ),
)  # fmt: skip


@contextlib.contextmanager
def spoilt(spoiled: Spoiled) -> Iterator[None]:
    """The harness with one piece of its source exchanged."""
    folder, file, name = spoiled.where.split(".")
    owner = importlib.import_module(f"parity.{folder}.{file}")
    true = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(true))
    if source.count(spoiled.old) != 1:
        raise ValueError(f"{spoiled.name}: {spoiled.old!r} stands {source.count(spoiled.old)} times in {spoiled.where}")
    space: dict[str, Any] = {}
    exec(source.replace(spoiled.old, spoiled.new), vars(owner), space)
    owners = [owner, *(m for m in (compare, contract, engine, grid, run, verdict) if vars(m).get(name) is true)]
    for each in owners:
        setattr(each, name, space[name])
    try:
        yield
    finally:
        for each in owners:
            setattr(each, name, true)


def try_spoiled(spoiled: Spoiled) -> Trial:
    """All cases and questions that a spoiled harness has for the class of its witness."""
    cases = [case for case in quick_cases() if case.class_name == spoiled.class_name]
    mixins = CONTROLS | {fault.name: fault.mixin for fault in FAULTS}
    with spoilt(spoiled):
        if spoiled.where == "grid.cases.grid":
            left = set(grid.grid())
            cases = [case for case in cases if case in left]
        tried, sign = examine(mixins[spoiled.witness], cases, (spoiled.class_name,), max(1, len(cases)))
    accuses = spoiled.witness in CONTROLS
    said = f"accuses {spoiled.witness}" if accuses else spoiled.witness
    return Trial(spoiled.name, "spoiled", spoiled.class_name, bool(sign) == accuses, tried, said)


# All of it ------------------------------------------------------------------------------------------------------------

Task = tuple[str, Any, Any]


def tasks() -> list[Task]:
    """Whatever is worth a process's while, in the order of the table."""
    planted = [("fault", index, name) for index, fault in enumerate(FAULTS) for name in fault.classes]
    controls = [("control", name, part) for name in CONTROLS for part in range(PARTS)]
    controls.append(("control", next(iter(CONTROLS)), PARTS))  # the order of sums is no affair of the contract
    return [*planted, *controls, *(("spoiled", index, None) for index in range(len(SPOILED)))]


def attempt(task: Task) -> Trial:
    what, which, how = task
    if what == "fault":
        return try_fault(FAULTS[which], how)
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
