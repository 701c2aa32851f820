"""Compare what the subject shows with what torch.nn shows.

*bitwise*           same dtype, same shape, same bits.
*within rounding*   the numbers differ, by no more than rounding explains (see `allowance`).
*different*         a larger error, another shape or dtype, a missing gradient, another fact.
*error*             one of the two, or both, raised an exception: nothing else is known.
*torch.nn refuses*  torch.nn raised an exception on a GPU, for a case that it runs on the CPU. The subject may refuse as
                    well; if it runs, its numbers must be those of the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .cases import AUTOCAST_FLOAT16, Case
from .run import Draw, Observations, Precision, draw, observe, same_bits
from .verdict import Verdict


@dataclass(frozen=True)
class Difference:
    """How one observed thing compares. Errors are relative to the largest element of the true tensor."""

    name: str
    verdict: Verdict
    error: float = 0.0  # the subject's, against the true tensor
    own: float = 0.0  # torch.nn's own; with TF32 at the border no less than what rounding to it does to the case
    allowed: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A case and its differences (tensors with equal bits are counted, not listed)."""

    case: Case
    bitwise: int
    differences: tuple[Difference, ...]

    @property
    def verdict(self) -> Verdict:
        return max((difference.verdict for difference in self.differences), default=Verdict.BITWISE)

    @property
    def values_verdict(self) -> Verdict:
        """Return the verdict on everything but the gradients."""
        values = (difference for difference in self.differences if not difference.name.startswith("grad of"))
        return max((difference.verdict for difference in values), default=Verdict.BITWISE)

    @property
    def worst(self) -> Difference | None:
        """Return the difference that most exceeds what is allowed, or comes closest to it."""
        return max(self.differences, key=severity, default=None)


def severity(difference: Difference | None) -> tuple[int, float]:
    """Order differences: by verdict, then by how far they are beyond what is allowed; a fact is beyond all numbers."""
    if difference is None:
        return -1, 0.0
    return difference.verdict, difference.error / difference.allowed if difference.allowed else float("inf")


WIDER = {
    "float32": torch.float64,
    "bfloat16": torch.float64,
    "float16": torch.float64,
    "complex64": torch.complex128,
}
#: The dtype in which most of a case is computed, where it isn't the case's own.
LOWER = {"autocast": torch.bfloat16, AUTOCAST_FLOAT16: torch.float16}
TF32_EPS = 2.0**-10
RUNS, REFUSES_TOO = "the subject runs", "the subject refuses too"
NARROWER = {"float64": torch.float32, "complex128": torch.complex64}


def judge(case: Case, subject: Any, reference: Any = torch.nn, seed: int = 0) -> Result:
    """Run `case` on both and compare. The true values are computed only if some bits differ."""
    drawn = draw(case, seed)
    dtype = getattr(torch, case.dtype)
    exact = Precision(dtype, dtype)
    theirs = observe(reference, case, drawn, exact)
    ours = observe(subject, case, drawn, exact)
    home, refusal = case, theirs.error if case.on_gpu else ""
    if refusal:
        home, theirs = _on_cpu(reference, case, drawn, exact)
    refused = refusal and not theirs.error
    differences = [_refused(refusal, ours)] if refused else compare_facts(theirs, ours)
    unequal: dict[str, Tensor] = {}
    for name in theirs.tensors.keys() | ours.tensors.keys() if not (theirs.error or ours.error) else ():
        a, b = theirs.tensors.get(name), ours.tensors.get(name)
        if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
            if a is not b:
                note = f"torch.nn has {_describe(a)}, the subject has {_describe(b)}"
                differences.append(Difference(name, Verdict.DIFFERENT, note=note))
        elif not same_bits(a, b):
            unequal[name] = b
    if unequal:
        yardstick = Yardstick(home, drawn, reference, theirs)
        differences += [yardstick.compare(name, b) for name, b in sorted(unequal.items())]
    bitwise = len(theirs.tensors) - sum(difference.name in theirs.tensors for difference in differences)
    return Result(case, bitwise, tuple(differences))


def _on_cpu(reference: Any, case: Case, drawn: Draw, precision: Precision) -> tuple[Case, Observations]:
    case = replace(case, device="cpu")
    return case, observe(reference, case, drawn, precision)


def _refused(refusal: str, ours: Observations) -> Difference:
    answer = REFUSES_TOO if ours.error else RUNS
    return Difference(f"torch.nn refuses, {answer}", Verdict.REFUSED, note=refusal)


def _describe(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


class Yardstick:
    """What rounding may do to the tensors of one case, measured on torch.nn."""

    def __init__(self, case: Case, drawn: Draw, reference: Any, theirs: Observations) -> None:
        self.case, self.drawn, self.reference, self.theirs = case, drawn, reference, theirs.tensors
        self.dtype = dtype = getattr(torch, case.dtype)
        self.depth = case.layers * drawn.rows
        self.eps = TF32_EPS if case.tf32 else torch.finfo(LOWER.get(case.special, dtype)).eps
        self.repeated = self._observe(drawn, Precision(dtype, dtype)) if case.on_gpu else {}
        if case.dtype in WIDER:
            self.exact = True
            self.rough, self.wide = Precision(dtype, dtype), Precision(WIDER[case.dtype], rounded_to=dtype)
            self.shrink = 1.0
            self.pairs = [(self._observe(drawn, self.wide), theirs.tensors)]
        else:
            self.exact = False
            self.rough, self.wide = Precision(NARROWER[case.dtype], NARROWER[case.dtype]), Precision(dtype, dtype)
            self.shrink = self.eps / torch.finfo(self.rough.dtype).eps
            self.pairs = [(theirs.tensors, self._observe(drawn, self.rough))]

    def _observe(self, drawn: Draw, precision: Precision) -> dict[str, Tensor | None]:
        """Run torch.nn: on the case's device in the case's dtype, on the CPU in another.

        A GPU has nothing to say on the other dtypes: the problem is the same, and the CPU refuses nothing, has no TF32
        and needs no launches.
        """
        case = self.case if precision.dtype == self.dtype else replace(self.case, device="cpu")
        return observe(self.reference, case, drawn, precision).tensors

    def compare(self, name: str, ours: Tensor) -> Difference:
        """Compare a tensor. Where it is at the border, torch.nn's own error is measured on neighbours too."""
        true = self.pairs[0][0][name]
        assert true is not None
        error = relative_error(ours, true)
        own, allowed = self._own(name)
        if allowed < error < 16 * allowed:
            self._ask_neighbours()
            own, allowed = self._own(name)
        return Difference(name, Verdict.ROUNDING if error <= allowed else Verdict.DIFFERENT, error, own, allowed)

    def _own(self, name: str) -> tuple[float, float]:
        errors = [relative_error(rough[name], true[name]) for true, rough in self.pairs]  # type: ignore[arg-type]
        own = max(errors) * self.shrink
        if (again := self.repeated.get(name)) is not None:  # a GPU need not compute the same twice
            own = max(own, relative_error(again, self.theirs[name]))  # type: ignore[arg-type]
        return own, allowance(own, self.eps, self.depth, self.exact)

    def _ask_neighbours(self) -> None:
        """Draw torch.nn's error four times more, on numbers that differ in the last digit: one run is one draw.

        They run with oneDNN off. Its LSTM is one kernel that keeps what lies between two steps in float32; torch.nn
        without it rounds every operation, and no more can be asked of the subject.

        With TF32 the true tensors are measured, too: how far they move when weights, inputs and states move by a
        quarter of its eps. So much does the case feel that its numbers are rounded before they are multiplied, and
        torch.nn's own error doesn't show it where cuDNN doesn't use TF32, as it may not for odd sizes.
        """
        eps = torch.finfo(self.rough.dtype).eps
        self.case = replace(self.case, onednn=False)
        for shift in range(len(self.pairs), 5):
            drawn = self.drawn.shifted(eps, shift)
            self.pairs.append((self._observe(drawn, self.wide), self._observe(drawn, self.rough)))
            if self.case.tf32:  # rounding to the nearest errs by eps / 2 at most, and by about eps / 4 as a rule
                moved = self.drawn.shifted(self.eps / 4, shift)
                self.pairs.append((self.pairs[0][0], self._observe(moved, self.wide)))


def allowance(own: float, eps: float, depth: int, exact: bool = True) -> float:
    """Compute the largest relative error that rounding explains: ``2 * own + 2 * eps * sqrt(depth)``.

    `own` is torch.nn's own error on the same tensor of the same case, `eps` the spacing of the dtype at 1, `depth` the
    number of layers times the number of vectors in the input (steps, summed over the batch). Errors are relative to
    the largest element of the tensor, because what is small by cancellation carries the rounding of what cancelled.

    - *Twice own*: both implementations do the same arithmetic up to its order, so their errors are two draws from
      one distribution. The measured one carries the condition of the case (saturated gates forgive, long memories
      don't), which no formula in eps knows. At the border it is the largest of five draws (`Yardstick`).
    - *The term in eps* is there because `own` can be small by luck, zero even, above all in a tensor of few elements.
      A state is rounded at each step and layer, its gradient again on the way back, and a weight's gradient is a sum
      over all vectors: about `depth` roundings of at most eps / 2 of the scale each. Independent roundings add up
      like a random walk, and 4 * (eps / 2) * sqrt(depth) is four times its root mean square.
    - *float64 and complex128* have no wider dtype in torch. The true tensor is then torch.nn's, and `own` its error
      one precision lower, times the ratio of the two eps: rounding errors are proportional to eps to first order.
      The reference now errs too (`exact` is false), so three times own are allowed rather than two.
    - *On a GPU* torch.nn runs twice, and `own` is no less than the difference between the two runs. With TF32, eps is
      that of TF32: a product may or may not use it, as its shape has it. At the border `own` is no less than what
      rounding the case's numbers to TF32 does to the true tensor: torch.nn's products may be those that don't use it.
    - No more than the fourth root of eps is ever allowed (0.3 in bfloat16, 0.0001 in float64): where torch.nn itself
      loses three quarters of its digits, the case can't tell right from wrong and must not pass for that reason.

    In float64 about 1e-14 is allowed and in float32 5e-6, so a gradient that is 0.1 % off is found in both.
    """
    return min((2 if exact else 3) * own + 2 * eps * math.sqrt(depth), math.pow(eps, 0.25))


def relative_error(tensor: Tensor, true: Tensor) -> float:
    """Return the largest error, relative to the largest true element; infinite where only one of them is finite."""
    if not tensor.numel():
        return 0.0
    tensor = tensor.to(true.dtype)
    finite = torch.isfinite(true)
    if not torch.equal(finite, torch.isfinite(tensor)):
        return float("inf")
    error = float(torch.where(finite, tensor - true, 0).abs().max())
    scale = float(torch.where(finite, true, 0).abs().max())
    return error / scale if scale else float("inf") if error else 0.0


def compare_facts(theirs: Observations, ours: Observations) -> list[Difference]:
    """Compare everything that is not a tensor's value.

    An exception ends the comparison, because nothing else is known then: every case of the grid is one that torch.nn
    runs, so that two equal exceptions are no agreement but a case that was not judged.
    """
    if theirs.error or ours.error:
        note = f"torch.nn: {theirs.error or 'no error'}; the subject: {ours.error or 'no error'}"
        return [Difference("error", Verdict.ERROR, note=note)]
    differences = []
    for name, expected in theirs.facts.items():
        seen = ours.facts.get(name)
        if not _FACTS.get(name, _equal)(expected, seen):
            note = f"torch.nn: {expected}; the subject: {seen}"
            differences.append(Difference(name, Verdict.DIFFERENT, note=note))
    return differences


def _equal(expected: Any, seen: Any) -> bool:
    return bool(expected == seen)


def _no_more(expected: Any, seen: Any) -> bool:
    """Allow to share less memory than torch.nn does: that is no fault."""
    return seen is not None and seen <= expected


def _no_less(expected: Any, seen: Any) -> bool:
    """Compare no strides, but what is contiguous in torch.nn must be so here: `.view` relies on it."""
    return seen is not None and all(seen.get(name) for name, contiguous in expected.items() if contiguous)


_FACTS = {"aliases": _no_more, "contiguous": _no_less}
