"""Probes: configurations with numbers drawn for them, each of which can tell some of the catalogue's levels apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from ..grid.cases import Case
from ..grid.run import Draw, Observations, Precision
from ..mutants.definition import Example, Input

ALL = 0.999999999  # a dropout that leaves nothing to chance, nor divides by zero
EXACT = Precision(torch.float64, torch.float64)


@dataclass(frozen=True)
class Probe:
    """A configuration, and the levels of the catalogue that it can tell apart."""

    name: str
    levels: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    scale: tuple[float, float] = (1.0, 1.0)  # of the input, and of the initial state
    batches: tuple[int, ...] = ()  # of which sizes a batch has to be to tell; of any where none is given

    def case(self, kind: str) -> Case:
        plain_case: dict[str, Any] = {
            "kind": kind, "dtype": "float64", "onednn": False, "layers": 1, "bias": True, "batch_first": False,
            "bidirectional": False, "dropout": "", "form": "batched" if "Cell" in kind else "padded", "hx": True,
        }  # fmt: skip
        return Case(**{**plain_case, **self.options})


UNSORTABLE = (3, 4)  # sorting two rows twice undoes it
TWO_BY_TWO = {"layers": 2, "bidirectional": True}
BASE = Probe("one layer", ("cell",))
PROBES = (
    Probe("large states", (), scale=(1.0, 10.0)),
    Probe("large inputs", (), scale=(30.0, 1.0)),
    Probe("no bias", ("cell",), {"bias": False}),
    Probe("no hx", ("stack",), {"hx": False}),
    Probe("two layers", ("stack",), {"layers": 2}),
    Probe("three layers", ("stack",), {"layers": 3}),
    Probe("two directions", ("stack",), {"bidirectional": True}),
    Probe("two layers, two directions", ("stack",), TWO_BY_TWO),
    Probe("two layers, two directions, no hx", ("stack",), {**TWO_BY_TWO, "hx": False}),
    Probe("unbatched", ("batch",), {"form": "unbatched"}),
    Probe("batch_first, as many rows as states", ("batch",), {"batch_first": True, **TWO_BY_TWO}, batches=(4,)),
    Probe("batch_first, no hx", ("batch",), {"batch_first": True, "hx": False}),
    Probe("batch_first", ("batch",), {"batch_first": True}),
    Probe("packed", ("batch",), {"form": "packed"}),
    Probe("packed, two directions", ("batch", "stack"), {"form": "packed", "bidirectional": True}),
    Probe("packed, two layers, two directions", ("batch", "stack"), {"form": "packed", **TWO_BY_TWO}),
    Probe("packed, unsorted", ("batch",), {"form": "packed_unsorted"}, batches=UNSORTABLE),
    Probe("packed, unsorted, no hx", ("batch",), {"form": "packed_unsorted", "hx": False}, batches=UNSORTABLE),
    Probe("projection", ("cell",), {"kind": "LSTM-proj"}),
    Probe("dropout, two layers", ("dropout",), {"dropout": "dropout_train", "layers": 2}),
    Probe("dropout, one layer", ("dropout",), {"dropout": "dropout_train"}),
    Probe("dropout in eval mode", ("dropout",), {"dropout": "dropout_eval", "layers": 2}),
)
CELL_PROBES = tuple(p for p in PROBES if p.name in ("large states", "large inputs", "no bias", "no hx", "unbatched"))


def example_of(case: Case, drawn: Draw, gradients: bool = False) -> Example:
    """Pose the same problem for the catalogue."""
    input: Input = drawn.input
    if case.is_packed:
        lengths = torch.tensor(drawn.lengths)
        input = pack_padded_sequence(drawn.input, lengths, case.batch_first, enforce_sorted=case.form == "packed")
    return Example(
        kind=case.class_name.removesuffix("Cell"),
        weights=drawn.weights,
        input=input,
        hx=drawn.hx,
        batch_first=case.batch_first,
        nonlinearity=drawn.arguments.get("nonlinearity", "tanh"),
        dropout=drawn.arguments.get("dropout", 0.0),
        training=case.dropout != "dropout_eval",
        is_cell=case.is_cell,
        cotangents=drawn.cotangents if gradients else {},
    )


def one_step(drawn: Draw) -> Draw:
    """Return the first step of a padded problem."""
    cotangents = {name: c[:1] if name == "output" else c for name, c in drawn.cotangents.items()}
    return replace(drawn, input=drawn.input[:1], lengths=(1,) * len(drawn.lengths), cotangents=cotangents)


def values(observations: Observations) -> dict[str, Tensor]:
    return {name: t for name, t in observations.tensors.items() if t is not None and not name.startswith("grad of")}


def gradients_of(observations: Observations, example: Example) -> dict[str, Tensor]:
    """Return gradients by name; one that is missing counts as zero, which it is."""
    named = {name: observations.tensors.get(f"grad of {name}") for name in example.leaves}
    zeros = {name: torch.zeros_like(leaf) for name, leaf in example.leaves.items()}
    return {f"grad of {name}": zeros[name] if grad is None else grad for name, grad in named.items()}


def after_input(states: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return states as what a call takes after the input: nothing, h, or the pair (h, c)."""
    return (tuple(states),) if len(states) > 1 else tuple(states)
