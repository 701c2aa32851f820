"""Where does a difference begin, how does it grow, how many units in the last place is it?"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..grid.cases import Case
from ..grid.run import Observations, Precision, draw, observe
from ..mutants.definition import GATES, Example
from ..mutants.variants import Variant, define, plain

#: Upper ends of the bins of the histogram, in units in the last place; the last bin is open.
ULP_BINS = (0, 1, 2, 4, 16, 256, 65536)


@dataclass(frozen=True)
class Location:
    """The first number that differs, in the order in which numbers are computed."""

    case: str
    tensor: str
    layer: int
    direction: str
    step: int | None  # None where the tensor is a final state
    row: int
    unit: int
    subject: float
    torch: float
    gate: str = ""  # the first gate that differs there, where the variant is known

    def __str__(self) -> str:
        step = "the final state" if self.step is None else f"step {self.step}"
        where = f"layer {self.layer}, {self.direction}, {step}, batch row {self.row}, unit {self.unit}"
        gate = f", gate {self.gate}" * bool(self.gate)
        return f"{where}{gate}: {self.subject:.6g} where torch.nn has {self.torch:.6g} ({self.tensor}, {self.case})"


@dataclass(frozen=True)
class Growth:
    """The error of `output` as a function of the step, over a long sequence in float32."""

    errors: tuple[float, ...]  # relative to the largest output
    eps: float

    @property
    def slope(self) -> float:
        """Fit decades a step: the least-squares slope of log10(error)."""
        points = [(step, math.log10(error)) for step, error in enumerate(self.errors) if 0 < error < math.inf]
        if len(points) < 2:
            return 0.0
        slope: float = statistics.linear_regression(*zip(*points, strict=True)).slope
        return slope

    @property
    def kind(self) -> str:
        """Say none, rounding (drift from the last digit), or bug (wrong from some step on)."""
        largest = max(self.errors, default=0.0)
        if largest == 0:
            return "none"
        return "rounding" if largest < 1000 * self.eps else "bug"

    def __str__(self) -> str:
        if self.kind == "none":
            return "no error at any step"
        worst, first = max(self.errors), next((k for k, e in enumerate(self.errors) if e > 1000 * self.eps), None)
        if first is None:
            return f"rounding alone: a relative error of at most {worst:.1e}"
        return f"a mistake, not rounding: wrong from step {first} on, by at most {worst:.1e} of the largest output"


def ulps(subject: Tensor, reference: Tensor) -> Counter[int]:
    """Count the numbers that are so many units in the last place apart: by the upper end of each bin, -1 open."""
    apart = (_ordinal(subject) - _ordinal(reference)).abs()
    counts: Counter[int] = Counter()
    below = torch.zeros_like(apart, dtype=torch.bool)
    for end in ULP_BINS:
        inside = apart <= end
        counts[end] = int((inside & ~below).sum())
        below = inside
    counts[-1] = int((~below).sum())
    return counts


def _ordinal(tensor: Tensor) -> Tensor:
    """Number floats in their order: neighbours differ by one, and -0.0 is 0.0."""
    bits = tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int64).to(torch.int64)
    least = -(2 ** (31 if tensor.dtype == torch.float32 else 63))
    return torch.where(bits < 0, least - bits, bits)


def growth(subject: Any, case: Case, seed: int = 0, reference: Any = torch.nn) -> tuple[Growth, Counter[int]] | None:
    """Measure error by step and ULPs of `output` on forty steps of float32; None if the subject doesn't run there."""
    long = replace(case, dtype="float32", special="long", onednn=False)
    drawn, precision = draw(long, seed), Precision(torch.float32, torch.float32)
    ours, theirs = (
        observe(namespace, long, drawn, precision).tensors.get("output") for namespace in (subject, reference)
    )
    if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return None
    errors = (ours - theirs).abs().double().flatten(1).amax(1) / theirs.abs().max().double()
    followed = Growth(tuple(torch.nan_to_num(errors, nan=math.inf).tolist()), torch.finfo(torch.float32).eps)
    return followed, ulps(ours, theirs)


def first_difference(
    case: Case, example: Example, ours: Observations, variant: Variant | None, allowed: float
) -> Location | None:
    """Return the first number of the outputs that differs from torch.nn's, in the order of computation.

    Layers below the last show themselves only in their final states; so a layer whose final state differs comes first,
    unless it is the last, which `output` shows step by step.
    """
    theirs = plain(example.kind).run(example)
    D, last = example.directions, len(example.slots) - example.directions
    pairs = {
        name: (_batched(case, name, seen), _batched(case, name, theirs[name]))
        for name, seen in ours.tensors.items()
        if seen is not None and name in theirs and seen.shape == theirs[name].shape
    }
    wrong = {name: (a - b).abs() > allowed * b.abs().max() for name, (a, b) in pairs.items()}

    def place(name: str, at: tuple[int, ...], slot: int, step: int | None, row: int, unit: int) -> Location:
        a, b = pairs[name]
        gate = _gate(example, variant, slot, step or 0, row, unit)
        direction = "reverse" if slot % D else "forward"
        return Location(case.name, name, slot // D, direction, step, row, unit, a[at].item(), b[at].item(), gate)

    states = [(*mask.nonzero()[0].tolist(), name) for name, mask in wrong.items() if name != "output" and mask.any()]
    slot, row, unit, name = min(states, default=(last, 0, 0, ""))
    if "output" in wrong and not case.is_packed and slot >= last:
        for d, half in enumerate(wrong["output"].chunk(D, -1)):
            steps = half.flatten(1).any(1).nonzero().flatten().tolist()
            if steps:
                step = steps[-1] if d else steps[0]  # in the order in which the direction runs
                row, unit = half[step].nonzero()[0].tolist()
                return place("output", (step, row, d * half.size(-1) + unit), last + d, step, row, unit)
    return place(name, (slot, row, unit), slot, None, row, unit) if name else None


def _batched(case: Case, name: str, tensor: Tensor) -> Tensor:
    """Return states as (slots, N, H), padded output as (L, N, D*H)."""
    if case.is_cell:
        tensor = tensor.unsqueeze(0)
    if case.form == "unbatched":
        tensor = tensor.unsqueeze(1)
    elif name == "output" and case.batch_first and not case.is_packed:
        tensor = tensor.transpose(0, 1)
    return tensor


def _gate(example: Example, variant: Variant | None, slot: int, step: int, row: int, unit: int) -> str:
    """Name the first gate that the variant computes otherwise; "" where no variant is known or no gate differs."""
    if variant is None or example.kind == "RNN" or slot or step:
        return ""
    ours, theirs = (_gates(example, one) for one in (variant, plain(example.kind)))
    for gate in GATES[example.kind]:
        if (
            gate in ours
            and gate in theirs
            and not torch.allclose(ours[gate][row], theirs[gate][row], rtol=0, atol=1e-9)
        ):
            return gate
    return ""


def _gates(example: Example, variant: Variant) -> dict[str, Tensor]:
    """Run a variant, and keep the gates of its first step by name; none where it has no meaning for these shapes."""
    seen: dict[str, Tensor] = {}

    def kept(gate: str) -> Callable[[Tensor], Tensor]:
        return lambda tensor: (seen.setdefault(gate, tensor), tensor)[1]

    definition = define(variant.deviations)
    definition = replace(definition, at={**{gate: kept(gate) for gate in variant.order.gates}, **definition.at})
    with contextlib.suppress(RuntimeError, IndexError):
        definition.run(replace(example, cotangents={}), variant.order.permutation(example.hidden_size))
        return seen
    return {}
