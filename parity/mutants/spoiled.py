"""Spoiled harnesses: one line of the harness exchanged, and the mutant that it then overlooks.

A spoiled harness must be told from the true one: it overlooks a mutant that the true one finds, or it accuses a correct
implementation. So every line that is spoiled here is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..contract import answers
from ..grid import cases, compare, engine, run, verdict
from .definition import linear
from .module import Planted
from .mutant import defined


class Reordered(Planted):
    """Correct too, but every product is summed from its other end."""

    definition = defined({"linear": lambda x, w, b=None: linear(x.flip(-1), w.flip(-1), b)})


CONTROLS: dict[str, type] = {"a plain loop": Planted, "sums in another order": Reordered}


@dataclass(frozen=True)
class Spoiled:
    """A line of the harness, what stands in its place, and the fault then overlooked (or the control accused)."""

    name: str
    where: str  # folder.file.function
    old: str
    new: str
    witness: str


def _in(where: str, *rows: tuple[str, ...]) -> Iterator[Spoiled]:
    yield from (Spoiled(name, where, *rest) for name, *rest in rows)


def _without(*rows: tuple[str, ...]) -> Iterator[Spoiled]:
    """List grids of only those cases that satisfy a condition."""
    old = '[*_layers(), *_cells(), *_specials(), *(_layers(("",), RAGGED) if ragged else ())]'
    for name, condition, *rest in rows:
        yield Spoiled(f"a grid {name}", "grid.cases.grid", old, f"[case for case in {old} if {condition}]", *rest)


def _blind(*rows: tuple[str, ...]) -> Iterator[Spoiled]:
    """List facts that aren't looked at."""
    for name, fact, *rest in rows:
        old = "_FACTS.get(name, _equal)(expected, seen)"
        yield Spoiled(f"does not ask {name}", "grid.compare.compare_facts", old, f"(name == {fact!r} or {old})", *rest)


PLAIN, OTHER_ORDER = CONTROLS
#: Before torch 2.15 dropout of complex numbers is an error, and so is a complex case that is always in training.
TRAINED = "dropout in eval mode" if [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 15] else PLAIN
W_HH = "gradient of W_hh 0.1 % off"
DRAWN = "return Draw(arguments, weights, input, hx, lengths, cotangents,"
OUTPUTS = 'for name, tensor in outputs.items()}\n    seen.facts["requires_grad"]'
LEAVES = "leaf.grad for name, leaf in leaves.items()}\n        if case.is_ragged"
ALLOWED = "return min((2 if exact else 3) * own + 2 * eps * math.sqrt(depth), math.pow(eps, 0.25))"
FOUND = "for found in findings"
LENGTHS = 'if case.form == "unbatched":'

SPOILED = (
    *_in(
        "grid.compare.judge",
        ("compares torch.nn with torch.nn", "observe(subject,", "observe(reference,", W_HH),
        ("compares the subject with itself", "observe(reference,", "observe(subject,", W_HH),
        ("draws other numbers for each of the two", "observe(subject, case, drawn,",
         "observe(subject, case, draw(case, seed + 1),", PLAIN),
        ("looks at no facts", "compare_facts(theirs, ours)", "[]", "no autocast"),
        ("dtypes may differ", "a.dtype != b.dtype or", "", "h_n of 16 bits comes as float32"),
        ("a gradient may be missing", "if a is not b:", "if False:", "bias_hh is detached"),
        ("looks at one tensor of each case", "in theirs.tensors.keys() | ours.tensors.keys()",
         "in sorted(theirs.tensors)[-1:]", W_HH),
    ),
    *_in(
        "grid.compare.compare_facts",
        ("an exception is no difference", '[Difference("error", Verdict.ERROR, note=note)]', "[]", "no autocast"),
    ),
    *_blind(
        ("what shares memory", "aliases", "h_n a view of output"),
        ("what was written to", "written to", "the backward overwrites the input"),
        ("how much was drawn from the generator", "generator", "one extra draw from the generator"),
        ("what is contiguous", "contiguous", "h_n not contiguous"),
        ("for warnings", "warnings", "a warning where gradients are off"),
    ),
    *_in(
        "grid.compare.allowance",
        ("a tolerance of 0.1", ALLOWED, "return 0.1", W_HH),
        ("a tolerance of 1e-5", ALLOWED, ALLOWED.replace("min", "1e-5 + min"), "a float32 buffer in a float64 run"),
        ("no tolerance", ALLOWED, "return 0.0", OTHER_ORDER),
        ("a tolerance that doesn't know the case", "(2 if exact else 3) * own +", "", OTHER_ORDER),
        ("a tolerance of twice torch.nn's error alone", "+ 2 * eps * math.sqrt(depth)", "", OTHER_ORDER),
    ),
    *_in(
        "grid.compare.relative_error",
        ("compares without signs", "tensor - true", "tensor.abs() - true.abs()", "gradient of W_ih of the wrong sign"),
        ("NaN is as good as a number", 'return float("inf")', "return 0.0", "NaN for the gradient of a state of zeros"),
    ),
    *_in(
        "grid.run.same_bits",
        ("bits are equal if torch.allclose says so", "torch.equal(_bits(a), _bits(b))",
         "torch.allclose(a.detach(), b.detach())", "a float32 buffer in a float64 run"),
    ),
    *_in(
        "grid.run._observe",
        ("never runs the backward", "if any(tensor.requires_grad for", "if False and any(tensor.requires_grad for",
         W_HH),
        ("never reads gradients of weights", "module.named_parameters()}\n    seen", "()}\n    seen", W_HH),
        ("reads gradients from state_dict(), where none are",
         "parameter in module.named_parameters()}\n    seen", "parameter in module.state_dict().items()}\n    seen",
         W_HH),
        ("never reads gradients of input and hx", LEAVES, LEAVES.replace("leaves.items()", "()"), "hx is detached"),
        ("ignores output", OUTPUTS, OUTPUTS.replace("}", " if name != 'output'}", 1), "output a ten-thousandth off"),
        ("ignores h_n", OUTPUTS, OUTPUTS.replace("}", " if name[0] != 'h'}", 1), "h_n a ten-thousandth off"),
        ("ignores c_n", OUTPUTS, OUTPUTS.replace("}", " if name[0] != 'c'}", 1), "c_n a ten-thousandth off"),
        ("does not seed the generator", "manual_seed(drawn.seed)", "initial_seed()", PLAIN),
    ),
    *_in(
        "grid.run.build",
        ("each keeps its own initial weights",
         "parameter.copy_(precision.cast(drawn.weights[name]), non_blocking=True)", "pass", PLAIN),
        ("never in training", 'module.train(case.dropout != "dropout_eval")', "module.eval()",
         "no gradient through dropout's mask"),
        ("always in training", 'module.train(case.dropout != "dropout_eval")', "module.train()", TRAINED),
    ),
    *_in(
        "grid.run.draw",
        ("weights constant across gates", "return drawn\n", "return torch.full_like(drawn, 0.1)\n",
         "a ten-thousandth of the next row in each row of W_hh"),
        ("the same seed for both biases", 'weights["bias_hh" + suffix] = parameter(gates * hidden_size)',
         'weights["bias_hh" + suffix] = weights["bias_ih" + suffix].clone()', "a ten-thousandth of b_hh in b_ih"),
        ("the same seed for both directions", 'suffix = "" if case.is_cell',
         'generator.manual_seed(layer)\n            suffix = "" if case.is_cell',
         "a ten-thousandth of the forward weights in the reverse"),
        ("states of zeros", "states[name] * 0.7", "states[name] * 0", "h0 a ten-thousandth off"),
        ("a loss of output alone", DRAWN, DRAWN.replace("cotangents", "{n: c * (n == 'output') for n, c in "
         "cotangents.items()}"), "gradient through h_n lost"),
        ("a loss that is a sum", DRAWN, DRAWN.replace("cotangents", "{n: c * 0 + 1 for n, c in cotangents.items()}"),
         "a backward for losses that are a sum"),
    ),
    *_in(
        "grid.run._sizes",
        ("sequences of one step", LENGTHS, f"lengths = (1,) * len(lengths)\n    {LENGTHS}",
         "backpropagation through the last 3 steps only"),
        ("sequences of equal length", LENGTHS, f"lengths = (max(lengths),) * len(lengths)\n    {LENGTHS}",
         "finished sequences detached"),
        ("a batch of one sequence", LENGTHS, f"batch, lengths = min(batch, 1), lengths[:1]\n    {LENGTHS}",
         "hx sorted by unsorted_indices"),
    ),
    *_without(
        ("of one kind", "case.kind != 'RNNCell-relu'", "leaky relu in place of relu"),
        ("of one dtype", "case.dtype == 'float64'", "h_n of 16 bits comes as float32"),
        ("without onednn", "not case.onednn", "no c of the lower precision under autocast"),
        ("of one layer", "case.layers == 1", "the weights of the second layer in the third"),
        ("without bias=False", "case.bias", "a bias of 0.1 where there is none"),
        ("without batch_first", "not case.batch_first", "h_0 is transposed for batch_first"),
        ("of one direction", "not case.bidirectional", "the reverse direction uses the forward weights"),
        ("without dropout", "not case.dropout", "no gradient through dropout's mask"),
        ("of one form, padded", "case.form == 'padded'", "finished sequences detached"),
        ("without hx", "not case.hx", "hx is detached"),
        ("with hx always", "case.hx", "NaN for the gradient of a state of zeros"),
        ("without special circumstances", "not case.special", "weights remembered from the first call"),
        ("without a second call", "case.special != 'second_call'", "states kept from one call to the next"),
        ("without autocast", "case.special != 'autocast'", "no autocast"),
        ("without long sequences", "case.special != 'long'", "the first 32 steps only"),
        ("without sequences of one step", "case.special != 'one_step' and not case.is_ragged",
         "a shortcut for one step that takes no hx"),
        ("without wide layers", "case.special != 'wide'", "a kernel for no more than 32 units"),
        ("without strided views", "case.special not in ('noncontiguous', 'expanded') and not case.is_ragged",
         "memory of the input read as if contiguous"),
        ("without frozen weights", "case.special != 'frozen_weights'",
         "no gradient of the input unless the weights want one"),
        ("without a frozen input", "case.special != 'frozen_input'",
         "no gradient of the weights unless the input wants one"),
        ("without no_grad and inference", "case.special not in ('no_grad', 'inference')",
         "output rounded to 16 bits under no_grad"),
        ("without losses of one output", "not case.special.startswith('loss')",
         "a backward that needs a gradient of h_n and of c_n"),
    ),
    *_in(
        "contract.answers.contract",
        ("never asks the contract's questions", "in questions():", "in ():", "another message"),
    ),
    *_in(
        "contract.answers.ask",
        ("asks torch.nn twice", "reply(subject,", "reply(reference,", "another message"),
        ("does not compare what is said", "theirs.text == ours.text and ", "", "another message"),
        ("does not compare initial weights", ' and _close(theirs.tensors, ours.tensors, exactly="|" not in question)',
         "", "other initial weights under one seed"),
    ),
    *_in(
        "contract.answers._call",
        ("does not see what a refusal leaves behind", "if not all(old", "if False and not all(old",
         "the caller's hx changed before it is refused"),
        ("does not see what a call leaves on the module", "if after != attributes:", "if False:",
         "a call leaves its mark on the module"),
    ),
    *_in("contract.answers.reply", ("constructs without a seed", "torch.manual_seed(3)", "pass", PLAIN)),
    *_in(
        "grid.engine.results",
        ("runs the first chunk of the cases", "range(0, len(cases), CHUNK)", "range(0, 1, CHUNK)",
         "the first 32 steps only"),
    ),
    *_in(
        "grid.engine._run",
        ("loads torch.nn in any case", "load(subject, settings)", "load('torch.nn')", W_HH),
    ),
    *_in(
        "grid.verdict.exit_code",
        ("exit code always 0", "return int(", "return 0 * int(", W_HH),
        ("exit code without the contract", FOUND, f"{FOUND} if hasattr(found, 'case')", "another repr"),
        ("exit code without the grid", FOUND, f"{FOUND} if hasattr(found, 'question')", W_HH),
    ),
)  # fmt: skip


@contextlib.contextmanager
def spoilt(spoiled: Spoiled) -> Iterator[None]:
    """Exchange one piece of the source of the harness."""
    folder, file, name = spoiled.where.split(".")
    owner = importlib.import_module(f"parity.{folder}.{file}")
    true = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(true))
    if source.count(spoiled.old) != 1:
        raise ValueError(f"{spoiled.name}: {spoiled.old!r} stands {source.count(spoiled.old)} times in {spoiled.where}")
    space: dict[str, Any] = {}
    exec(source.replace(spoiled.old, spoiled.new), vars(owner), space)
    owners = [owner, *(m for m in (answers, cases, compare, engine, run, verdict) if vars(m).get(name) is true)]
    for each in owners:
        setattr(each, name, space[name])
    try:
        yield
    finally:
        for each in owners:
            setattr(each, name, true)
