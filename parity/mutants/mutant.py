"""A mutant: one mistake, written once. Diagnosis looks for it, the selftest plants it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .definition import Definition
from .module import Planted
from .orders import SYSTEMS, Order

INITIALS = {"R": "RNN", "L": "LSTM", "G": "GRU", "r": "RNNCell", "l": "LSTMCell", "g": "GRUCell"}
EVERYWHERE = "".join(INITIALS)
LAYERS = "RLG"


@dataclass(frozen=True, eq=False)
class Mutant:
    """What is done otherwise: in the numbers (`knobs`, `order`) or in a module's conduct (`mixin`)."""

    name: str
    level: str  # cell, stack, batch, dropout, gradient, dtype, memory, contract, needle
    initials: str  # of the classes that make the mistake; a cell's is a small letter
    knobs: dict[str, Any] = field(default_factory=dict)  # fields of Definition; `at NAME` is an entry of `at`
    fix: str = ""  # what diagnosis tells to do; what has no fix is not looked for there, only planted
    where: str = ""  # the systems of which it is the convention
    look: str = ""  # where the selftest looks first: an expression as for -k, or "contract"
    mixin: type | None = None
    order: Order | None = None
    planted: bool = True  # whether it is a mistake by itself, and not only beside another

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(INITIALS[initial] for initial in self.initials)

    def plant(self) -> type:
        """Make what the six classes are made of, to make this mistake."""
        if self.mixin is not None:
            return self.mixin
        return type("", (Planted,), {"definition": defined(self.knobs), "order": self.order})


def defined(knobs: dict[str, Any]) -> Definition:
    """Return torch.nn's definition with some of its fields exchanged."""
    at = {key.removeprefix("at "): change for key, change in knobs.items() if key.startswith("at ")}
    return Definition(**{key: value for key, value in knobs.items() if not key.startswith("at ")}, at=at)


@cache
def reordered(order: Order) -> Mutant:
    """Return the mistake of keeping the gates in another order. Diagnosis tries all orders, be they planted or not."""
    where = "; ".join(dict.fromkeys(name for name, other, _ in SYSTEMS if other == order))
    return Mutant(str(order), "cell", "Ll" if len(order.gates) == 4 else "Gg", {}, order.fix, where, order=order)


BIASES = "add each bias once: gates = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh"
#: What torch.nn does in a field of `Definition`: what there is to do where a row says nothing else.
USUAL = {
    "b_ih": BIASES,
    "b_hh": BIASES,
    "sigmoid": "torch.sigmoid on every gate but the candidate",
    "candidate": "tanh on the candidate",
    "emit": "h = o * tanh(c)",
    "cell": "c = f * c + i * g",
    "reset": "r * (h @ w_hn.T + b_hn)",
    "blend": "h = (1 - z) * n + z * h",
    "activation": "the nonlinearity that the constructor was given",
    "joined": "torch.cat([forward, reverse], -1)",
    "dropped": "F.dropout(output, p, self.training) on the output of every layer but the last",
    "result": "return (h_n, c_n)",
}


def known(level: str, initials: str, *rows: tuple[Any, ...]) -> Iterator[Mutant]:
    """List mistakes that diagnosis names: (name, knobs), what to do, the systems of which it is the convention."""
    for name, knobs, fix, *where in ((*row, "")[: max(3, len(row))] for row in rows):
        yield Mutant(name, level, initials, knobs, fix or USUAL[next(iter(knobs))], *where)


def planted(level: str, initials: str, *rows: tuple[Any, ...]) -> Iterator[Mutant]:
    """List mistakes that are only planted: (name, knobs), and where the selftest looks first."""
    for name, knobs, *look in rows:
        yield Mutant(name, level, initials, knobs, look="".join(look))
