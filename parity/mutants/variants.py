"""Variants: an order of the gates and any number of deviations, which diagnosis compares with a module.

A deviation is a mutant that has a fix. Those of a variant don't change the same field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from .catalogue import CATALOGUE
from .definition import GATES, Definition, Example
from .mutant import Mutant, defined
from .orders import SYSTEMS, Order, orders


@dataclass(frozen=True)
class Variant:
    """An order of the gates and deviations; () and torch.nn's order is torch.nn."""

    order: Order
    deviations: tuple[Mutant, ...] = ()

    @property
    def size(self) -> int:
        return len(self.deviations) + (not self.order.plain)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what deviates."""
        return (str(self.order),) * (not self.order.plain) + tuple(deviation.name for deviation in self.deviations)

    @property
    def name(self) -> str:
        return " and ".join(self.parts) or "torch.nn's definition"

    @property
    def system(self) -> str:
        """The systems that do exactly this."""
        names = {deviation.name for deviation in self.deviations}
        return "; ".join(name for name, order, also in SYSTEMS if order == self.order and set(also) == names)

    @property
    def wheres(self) -> tuple[str, ...]:
        """For each part, the systems of which it is the convention, whatever else they do."""
        alike = "; ".join(dict.fromkeys(name for name, order, _ in SYSTEMS if order == self.order))
        return (alike,) * (not self.order.plain) + tuple(deviation.where for deviation in self.deviations)

    @property
    def fixes(self) -> tuple[str, ...]:
        return (self.order.fix,) * (not self.order.plain) + tuple(deviation.fix for deviation in self.deviations)

    def run(self, example: Example) -> dict[str, Tensor]:
        H = example.weights["weight_hh" + example.slots[0]].size(0) // len(GATES[example.kind])
        return define(self.deviations).run(example, None if self.order.plain else self.order.rows(H))


def plain(kind: str) -> Variant:
    return Variant(orders(kind)[0])


@cache
def define(deviations: tuple[Mutant, ...]) -> Definition:
    """torch.nn's definition with these deviations."""
    return defined({key: value for deviation in deviations for key, value in deviation.knobs.items()})


def compatible(deviations: Iterable[Mutant]) -> bool:
    """Whether no two of them change the same thing."""
    keys = [key for deviation in deviations for key in deviation.knobs]
    return len(keys) == len(set(keys))


def catalogue(kind: str, levels: Iterable[str]) -> list[Mutant]:
    """The deviations of these levels that a layer or a cell of this kind may have."""
    letter = kind[0].lower()
    return [one for one in CATALOGUE if one.fix and one.level in levels and letter in one.initials.lower()]
