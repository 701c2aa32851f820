"""Variants: an order of the gates and any number of deviations, which diagnosis compares with a module.

A deviation is a mutant that has a fix. Those of a variant don't change the same field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from .catalogue import CATALOGUE
from .definition import Definition, Example
from .mutant import Mutant, defined, reordered
from .orders import SYSTEMS, Order, orders


@dataclass(frozen=True)
class Variant:
    """An order of the gates and deviations; () and torch.nn's order is torch.nn."""

    order: Order
    deviations: tuple[Mutant, ...] = ()

    @property
    def parts(self) -> tuple[Mutant, ...]:
        """Return what deviates, another order of the gates first."""
        return self.deviations if self.order.plain else (reordered(self.order), *self.deviations)

    @property
    def name(self) -> str:
        return " and ".join(part.name for part in self.parts) or "torch.nn's definition"

    @property
    def system(self) -> str:
        """Return the systems that do exactly this."""
        names = {deviation.name for deviation in self.deviations}
        return "; ".join(name for name, order, also in SYSTEMS if order == self.order and set(also) == names)

    def run(self, example: Example) -> dict[str, Tensor]:
        return define(self.deviations).run(example, self.order.permutation(example.hidden_size))


def plain(kind: str) -> Variant:
    return Variant(orders(kind)[0])


@cache
def define(deviations: tuple[Mutant, ...]) -> Definition:
    """Return torch.nn's definition with these deviations."""
    return defined({key: value for deviation in deviations for key, value in deviation.knobs.items()})


def compatible(deviations: Iterable[Mutant]) -> bool:
    """Say whether no two of them change the same thing."""
    keys = [key for deviation in deviations for key in deviation.knobs]
    return len(keys) == len(set(keys))


def catalogue(kind: str, levels: Iterable[str]) -> list[Mutant]:
    """Return the deviations of these levels that a layer or a cell of this kind may have, but for orders."""
    named = (one for one in CATALOGUE if one.fix and one.order is None)
    return [one for one in named if one.level in levels and kind[0].lower() in one.initials.lower()]
