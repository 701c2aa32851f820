"""Search the catalogue for the variant that computes what was seen."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..mutants.catalogue import CATALOGUE, FAMILIES
from ..mutants.definition import Example
from ..mutants.mutant import Mutant
from ..mutants.orders import SYSTEMS, Order, orders
from ..mutants.variants import Variant, catalogue, compatible, define

MARGIN = 100.0


@dataclass(frozen=True)
class Finding:
    """One mistake, by name."""

    what: str
    where: str  # the systems of which it is the convention
    fix: str
    evidence: str = ""
    interface: bool = False  # the numbers are right, their place or shape is not torch.nn's

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  the convention of: {self.where}"] if self.where else []
        lines += [f"  to do: {self.fix}"] + ([f"  ({self.evidence})"] if self.evidence else [])
        return "\n".join(lines)


@dataclass(frozen=True)
class Search:
    """What came out of comparing one observation with the catalogue."""

    error: float  # from torch.nn's definition (and what was found before)
    best: Variant | None  # accepted
    nearest: Variant | None
    distance: float
    runner_up: float  # the distance of the next variant that means something else
    also: tuple[Variant, ...] = ()  # that fit as well, because here they mean the same
    rivals: tuple[Variant, ...] = ()  # that fit as well, although they mean something else

    @property
    def near(self) -> str:
        """Name the nearest variant, if it explains most of the difference."""
        return self.nearest.name if self.nearest is not None and self.distance < 0.1 * self.error else ""

    def findings(self, base: Variant, place: str = "", also: str = "") -> list[Finding]:
        """List what the accepted variant has and `base` has not; a whole system's habits with that system's name."""
        assert self.best is not None
        other = f"the next best explanation is off by {self.runner_up:.1e}"
        other = "nothing else explains it" if self.runner_up == math.inf else other
        told = f"torch.nn's equations with this changed give the same numbers{also}, to {self.distance:.0e}"
        return findings(self.best, base, f"{place}{told}; {other}")


def findings(variant: Variant, base: Variant, evidence: str) -> list[Finding]:
    """Name the parts that `variant` has and `base` has not, each with the systems of which it is the convention."""
    names = [part.name for part in base.parts]
    parts = [part for part in variant.parts if part.name not in names]
    system = variant.system if len(parts) == len(variant.parts) else ""
    return [
        Finding(part.name, system or part.where, part.fix, evidence, interface="batch_first" in part.knobs)
        for part in parts
    ]


def tolerance(example: Example, eps: float = torch.finfo(torch.float64).eps) -> float:
    """Estimate what rounding may do: a random walk of the roundings, with room for the ill-conditioned."""
    steps = 1 if example.is_cell else max(example.rows.shape[:-1])
    return 1024 * eps * math.sqrt(steps * len(example.slots))


def distance(expected: dict[str, Tensor], seen: dict[str, Tensor], orders: int = 0) -> Tensor:
    """Return the largest error relative to the largest number of each tensor; with `orders`, one for each of them."""
    total = torch.zeros(orders or 1, dtype=torch.float64)
    for name, tensor in seen.items():
        other = expected.get(name)
        if other is None or other.shape[other.dim() - tensor.dim() :] != tensor.shape or other.dim() < tensor.dim():
            return total + math.inf
        error = (other - tensor).abs().double()
        error = (
            error.flatten(1).amax(1) if other.dim() > tensor.dim() else error.max() if error.numel() else error.sum()
        )
        scale = tensor.abs().max().double() if tensor.numel() else 1.0
        error = error / scale if scale else torch.where(error > 0, math.inf, 0.0)
        total = torch.maximum(total, torch.nan_to_num(error, nan=math.inf))
    return total


def search(
    example: Example,
    seen: dict[str, Tensor],
    levels: Sequence[str],
    base: Variant,
    again: Iterable[tuple[Example, dict[str, Tensor]]] = (),
    eps: float = torch.finfo(torch.float64).eps,
    most: int = 2,
    seconds: float = 6.0,
) -> Search:
    """Search for the variant that shows `seen` on `example`, beginning from `base`, with `most` deviations added.

    Pairs are tried for so many seconds of the processor's, those of known systems first.
    """
    start = time.process_time()
    allowed = tolerance(example, eps)
    error = error_of(base, example, seen)
    if error <= allowed:
        return Search(error, base, base, error, math.inf)
    reordering = "cell" in levels and base.order.plain
    tried = orders(example.kind) if reordering else (base.order,)
    known = [deviation for deviation in catalogue(example.kind, levels) if deviation not in base.deviations]
    found: list[tuple[float, Variant]] = []
    for size in range(most + 1):
        for extra in sorted(itertools.combinations(known, size), key=lambda some: not _of_a_system(some)):
            deviations = base.deviations + extra
            if not compatible(deviations):
                continue
            if size > 1 and ("read" in extra[0].knobs or time.process_time() - start > seconds):
                continue
            distances = errors_of_orders(deviations, tried, example, seen)
            near = distances.argsort()[:3] if len(tried) > 1 else [0]
            found += [(distances[index].item(), Variant(tried[index], deviations)) for index in near]
        found = sorted(found, key=lambda pair: pair[0])[:50]
        if found[0][0] <= allowed:
            break
    nearest_distance, nearest = found[0]
    fits = sorted((v for d, v in found if d <= allowed), key=lambda v: (len(v.parts), _position(v)))
    if not fits:
        return Search(error, None, nearest, nearest_distance, nearest_distance)
    best = fits[0]
    different = [(d, v) for d, v in found if v is not best and (d > allowed or not equivalent(best, v, example))]
    runner_up = min((d for d, _ in different), default=math.inf)
    rivals = tuple(v for d, v in different if d <= allowed)
    accepted = runner_up > MARGIN * allowed and all(
        error_of(best, other, shown) <= tolerance(other, eps) for other, shown in again
    )
    return Search(error, best if accepted else None, best, found[0][0], runner_up, tuple(fits[1:]), rivals)


def fit(
    examples: Sequence[Example],
    seen: Sequence[dict[str, Tensor]],
    base: Variant,
    step: tuple[Example, dict[str, Tensor]],
) -> Variant | None:
    """Find the variant with a constant of its own, which is read off one step and must explain all that is seen."""
    one, shown = step
    expected = base.run(one)
    for family in FAMILIES:
        if one.kind[0].lower() not in family.initials.lower():
            continue
        try:
            guess = family.guess(shown, expected, one).double().flatten()
        except (RuntimeError, KeyError, ValueError, IndexError):
            continue
        constant = float(f"{guess[guess.isfinite()].median():.6g}") if guess.isfinite().any() else 0.0
        member = family.member(constant)
        if not constant or not compatible((*base.deviations, member)):
            continue
        variant = Variant(base.order, (*base.deviations, member))
        if all(error_of(variant, e, s) <= tolerance(e) for e, s in zip(examples, seen, strict=True)):
            return variant
    return None


def _of_a_system(deviations: tuple[Mutant, ...]) -> bool:
    """Say whether some system does all of this."""
    names = {deviation.name for deviation in deviations}
    return any(names <= set(also) for _, _, also in SYSTEMS)


def _position(variant: Variant) -> tuple[int, ...]:
    """Order equally simple names by the catalogue."""
    return tuple(CATALOGUE.index(one) if one in CATALOGUE else -1 for one in variant.deviations)


def error_of(variant: Variant, example: Example, seen: dict[str, Tensor]) -> float:
    """Return the distance of a variant from what was seen."""
    return errors_of_orders(variant.deviations, (variant.order,), example, seen)[0].item()


def errors_of_orders(
    deviations: tuple[Mutant, ...], tried: Sequence[Order], example: Example, seen: dict[str, Tensor]
) -> Tensor:
    """Return the distance from what was seen, for each order of the gates."""
    H = example.hidden_size
    rows = torch.stack([order.rows(H) for order in tried]) if len(tried) > 1 else tried[0].permutation(H)
    try:
        expected = define(deviations).run(example, rows)
    except (RuntimeError, IndexError):  # a deviation that has no meaning for these shapes
        return torch.full((len(tried),), math.inf)
    return distance(expected, seen, len(tried) if len(tried) > 1 else 0)


def equivalent(first: Variant, second: Variant, example: Example) -> bool:
    """Say whether two variants are the same function: they agree on other, generic numbers in the form of `example`."""
    generator = torch.Generator().manual_seed(20)

    def anew(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    other = replace(
        example.with_leaves({name: anew(tensor) for name, tensor in example.leaves.items()}),
        cotangents={name: anew(cotangent) for name, cotangent in example.cotangents.items()},
    )
    shown = first.run(other)
    return error_of(second, other, shown) <= tolerance(other)
