"""Numbers that an implementation in any language has computed: are they torch.nn's, and if not, why?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from ..mutants.definition import Example, Input
from ..mutants.variants import plain
from .diagnose import Diagnosis, Unexplained
from .record import Checkup
from .search import Search, distance, search
from .subjects import Subject


def check_arrays(
    arrays: Mapping[str, Any],
    kind: str = "LSTM",
    *,
    batch_first: bool = False,
    nonlinearity: str = "tanh",
    raises: bool = True,
) -> Checkup:
    """Check numbers that an implementation in any language has computed.

    arrays  weights by torch.nn's names (`weight_ih_l0`, ...), `input`, the initial states `h_0` and `c_0` if there were
            any, and what came out: any of `output`, `h_n`, `c_n` (a cell: weights without `_l0`, and `h_1`, `c_1`).
            `lengths` if the batch was ragged and padded; `output` then padded too.
    kind    LSTM, GRU, RNN, or a cell's name

    The precision is that of the arrays.
    """
    start = time.monotonic()
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    eps = max(torch.finfo(t.dtype).eps for t in tensors.values() if t.is_floating_point())
    example, seen = _problem(tensors, kind, batch_first, nonlinearity)
    checkup = Checkup("the arrays", kind, Diagnosis(Subject("the arrays", kind, torch.nn.Identity)))
    _explain(checkup.diagnosis, _search(example, seen, eps))
    worst = distance(plain(example.kind).run(example), seen).item()
    checkup.notes.append(f"largest difference from torch.nn: {worst:.2e}, eps {eps:.1e}")
    checkup.seconds = time.monotonic() - start
    if raises and not checkup.same:
        raise AssertionError(f"\n{checkup}")
    return checkup


def _problem(
    tensors: dict[str, Tensor], kind: str, batch_first: bool, nonlinearity: str
) -> tuple[Example, dict[str, Tensor]]:
    """Pose the problem of the arrays, beside what came out, as the definitions of the catalogue take and show them."""
    lengths = tensors.pop("lengths", None)
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(("weight", "bias"))}
    hx = tuple(tensors[name] for name in ("h_0", "c_0") if name in tensors)
    seen = {name: tensor for name, tensor in tensors.items() if name in ("output", "h_n", "c_n", "h_1", "c_1")}
    if not seen or not weights or "input" not in tensors:
        raise ValueError("arrays need weights, input, and at least one of output, h_n, c_n (h_1, c_1)")
    input: Input = tensors["input"]
    if lengths is not None:
        input = pack_padded_sequence(tensors["input"], lengths, batch_first, enforce_sorted=False)
        if "output" in seen:
            seen["output"] = pack_padded_sequence(seen["output"], lengths, batch_first, enforce_sorted=False).data
    name, is_cell = kind.removesuffix("Cell"), kind.endswith("Cell")
    return Example(name, weights, input, hx, batch_first, nonlinearity, training=False, is_cell=is_cell), seen


def _search(example: Example, seen: dict[str, Tensor], eps: float) -> Search:
    """Search among the equations; if none fits, also among what stands around them."""
    usual = plain(example.kind)
    found = search(example, seen, ("cell",), usual, (), eps)
    if found.best is None:
        wider = search(example, seen, ("cell", "stack", "batch"), usual, (), eps, most=1)
        found = wider if wider.best is not None or wider.distance < found.distance else found
    return found


def _explain(diagnosis: Diagnosis, found: Search) -> None:
    """Write down what was found."""
    if found.best is None:
        also = tuple(variant.name for variant in found.rivals)
        diagnosis.unexplained.append(Unexplained("the arrays", found.error, found.near, found.distance, also))
        return
    diagnosis.variant = found.best
    diagnosis.findings += found.findings(plain(diagnosis.subject.kind))
