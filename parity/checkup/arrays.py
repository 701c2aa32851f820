"""Numbers that an implementation in any language has computed: are they torch.nn's, and if not, why?"""

from __future__ import annotations

import difflib
import re
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from ..mutants.definition import GATES, Example, Input
from ..mutants.variants import plain
from .diagnosis import Diagnosis, Unexplained
from .record import Checkup
from .search import Search, distance, search, tolerance
from .subjects import Subject, known_name


def check_arrays(
    arrays: Mapping[str, Any],
    kind: str = "LSTM",
    *,
    batch_first: bool = False,
    nonlinearity: str = "tanh",
    raises: bool = True,
    progress: Callable[[str], None] = lambda what: None,
) -> Checkup:
    """Check numbers that an implementation in any language has computed.

    arrays  weights by torch.nn's names (`weight_ih_l0`, ...), `input`, the initial states `h_0` and `c_0` if there were
            any, and what came out: any of `output`, `h_n`, `c_n` (a cell: weights without `_l0`, and `h_1`, `c_1`).
            `lengths` if the batch was ragged and padded; `output` then padded too.
    kind    LSTM, GRU, RNN, or a cell's name

    The precision is that of the arrays.
    """
    start = time.monotonic()
    kind = known_name(kind)
    tensors = {name: _tensor(name, array) for name, array in arrays.items()}
    _validate(tensors, kind, batch_first)
    eps = max(torch.finfo(t.dtype).eps for t in tensors.values() if t.is_floating_point())
    example, seen = _problem(tensors, kind, batch_first, nonlinearity)
    checkup = Checkup(
        "the arrays' module", kind, Diagnosis(Subject("the arrays", kind, torch.nn.Identity)), of_arrays=True
    )
    _explain(checkup.diagnosis, _search(example, seen, eps, progress))
    expected = plain(example.kind).run(example)
    worst = distance(expected, seen).item()
    checkup.notes.append(f"largest difference from torch.nn: {worst:.2e}, eps {eps:.1e}")
    if not checkup.same:
        checkup.notes += _first_difference(expected, seen, example, tolerance(example, eps))
    checkup.seconds = time.monotonic() - start
    if raises and not checkup.same:
        raise AssertionError(f"\n{checkup}")
    return checkup


def load_arrays(file: str) -> dict[str, Any]:
    """Read what numpy.savez has written. ValueError, in a sentence, where it is something else."""
    import numpy

    try:
        with numpy.load(file) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file") from None
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile):
        raise ValueError(f"{file} is no file of numbers as numpy.savez writes it, by name") from None


def _tensor(name: str, array: Any) -> Tensor:
    tensor = torch.as_tensor(array)
    if name != "lengths" and not tensor.is_floating_point():
        raise ValueError(f"{name} has numbers of {str(tensor.dtype).removeprefix('torch.')}: give floating-point ones")
    if name != "lengths" and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} has a NaN or an infinity in it: nothing can be compared with that")
    return tensor


def _validate(tensors: dict[str, Tensor], kind: str, batch_first: bool) -> None:
    """Say in a sentence what is missing, has another name or another shape. ValueError."""
    is_cell, gates = kind.endswith("Cell"), len(GATES[kind.removesuffix("Cell")])
    lstm, first = kind.startswith("LSTM"), "" if is_cell else "_l0"
    shown = [name for name in (["h_1", "c_1"] if is_cell else ["output", "h_n", "c_n"]) if lstm or name[0] != "c"]
    states = ("h_0", "c_0") if lstm else ("h_0",)
    weight = re.compile(r"(weight|bias)_(ih|hh|hr)" + ("" if is_cell else r"_l\d+(_reverse)?"))
    known = ["input", "lengths", *states, *shown]
    unknown = [name for name in tensors if name not in known and not weight.fullmatch(name)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*known, f"weight_ih{first}", f"bias_hh{first}"], 1)
        hint = f"; is it {near[0]}?" if near else ""
        raise ValueError(f"{', '.join(unknown)}: torch.nn.{kind} has no such array{hint}")
    missing = [name for name in ("input", f"weight_ih{first}", f"weight_hh{first}") if name not in tensors]
    if missing or not any(name in tensors for name in shown):
        lacking = ", ".join(missing) or f"one of {', '.join(shown)}"
        raise ValueError(f"arrays need weights, input, and at least one of {', '.join(shown)}: {lacking} is missing")
    if lstm and ("h_0" in tensors) != ("c_0" in tensors):
        raise ValueError("h_0 and c_0 go together: give both, or none, which means zeros")
    rows, out = tensors[f"weight_hh{first}"].shape
    D = 1 + any(name.endswith("_reverse") for name in tensors)
    slots = sum(name.startswith("weight_ih") for name in tensors)
    x, H = tensors["input"], rows // gates
    N = x.size(0) if is_cell or batch_first else x.size(1)
    lead = (x.size(0), x.size(1))
    expected: dict[str, tuple[int, ...]] = {
        f"weight_ih{first}": (gates * H, x.size(-1)),
        f"weight_hh{first}": (gates * H, out),
    }
    for name in tensors:
        if name.startswith("bias"):
            expected[name] = (gates * H,)
        elif name[:2] in ("h_", "c_"):
            expected[name] = (*(() if is_cell else (slots,)), N, out if name[0] == "h" else H)
    if x.dim() == (2 if is_cell else 3):
        expected |= {"output": (*lead, D * out)} if "lengths" not in tensors else {}
        for name, shape in expected.items():
            if name in tensors and tuple(tensors[name].shape) != shape:
                found = list(tensors[name].shape)
                raise ValueError(f"{name} has shape {found}: with the other arrays it should be {list(shape)}")


def _first_difference(
    expected: dict[str, Tensor], seen: dict[str, Tensor], example: Example, allowed: float
) -> list[str]:
    """Say where each array differs first, and which don't."""
    lines = []
    for name, tensor in seen.items():
        other = expected[name]
        if other.shape != tensor.shape:
            lines.append(f"{name} has shape {list(tensor.shape)}, torch.nn's has {list(other.shape)}")
            continue
        bad = (tensor - other).abs() > allowed * tensor.abs().max()
        in_time = name == "output" and example.batch_first and bad.dim() == 3
        places = (bad.transpose(0, 1) if in_time else bad).nonzero()
        if not len(places):
            lines.append(f"{name} is torch.nn's")
            continue
        at = places[0].tolist()
        own = [at[1], at[0], at[2]] if in_time else at
        first = "step" if name == "output" else "slot"
        axes = ((first, "unit") if example.is_unbatched else (first, "row", "unit"))[-len(at) :]
        place = ", ".join(f"{axis} {index}" for axis, index in zip(axes, at, strict=True))
        numbers = f"{tensor[tuple(own)]:.6g} where torch.nn has {other[tuple(own)]:.6g}"
        lines.append(f"{name} differs first at {place}: {numbers}")
    return lines


def _problem(
    tensors: dict[str, Tensor], kind: str, batch_first: bool, nonlinearity: str
) -> tuple[Example, dict[str, Tensor]]:
    """Pose the problem of the arrays, beside what came out, as the definitions of the catalogue take and show them."""
    lengths = tensors.pop("lengths", None)
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(("weight", "bias"))}
    hx = tuple(tensors[name] for name in ("h_0", "c_0") if name in tensors)
    seen = {name: tensor for name, tensor in tensors.items() if name in ("output", "h_n", "c_n", "h_1", "c_1")}
    input: Input = tensors["input"]
    if lengths is not None:
        input = pack_padded_sequence(tensors["input"], lengths, batch_first, enforce_sorted=False)
        if "output" in seen:
            seen["output"] = pack_padded_sequence(seen["output"], lengths, batch_first, enforce_sorted=False).data
    name, is_cell = kind.removesuffix("Cell"), kind.endswith("Cell")
    return Example(name, weights, input, hx, batch_first, nonlinearity, training=False, is_cell=is_cell), seen


def _search(example: Example, seen: dict[str, Tensor], eps: float, progress: Callable[[str], None]) -> Search:
    """Search among the equations; if none fits, also among what stands around them."""
    usual = plain(example.kind)
    small, shown = _cropped(example, seen)
    again = [(example, seen)]
    progress("is it a known variant?")
    found = search(small, shown, ("cell",), usual, again, eps, seconds=3.0)
    if found.best is None:
        progress("does something differ around the equations?")
        wider = search(small, shown, ("cell", "stack", "batch"), usual, again, eps, most=1)
        found = wider if wider.best is not None or wider.distance < found.distance else found
    error = distance(usual.run(example), seen).item()
    return found if found.best is not None else replace(found, error=max(found.error, error))


def _cropped(example: Example, seen: dict[str, Tensor]) -> tuple[Example, dict[str, Tensor]]:
    """Take a few rows, and where the output is known and runs forward, a few steps: enough to tell, and fast."""
    x = example.input
    if not isinstance(x, Tensor) or x.dim() != (2 if example.is_cell else 3):
        return example, seen
    rows, time_axis = (0, 0) if example.is_cell else (0, 1) if example.batch_first else (1, 0)
    hx = tuple(h[..., :3, :] for h in example.hx)
    shown = {
        name: t.narrow(rows, 0, min(3, t.size(rows))) if name == "output" else t[..., :3, :] for name, t in seen.items()
    }
    x = x.narrow(rows, 0, min(3, x.size(rows)))
    if "output" in seen and example.directions == 1 and len(example.slots) == 1 and x.size(time_axis) > 6:
        x = x.narrow(time_axis, 0, 6)
        shown = {"output": shown["output"].narrow(time_axis, 0, 6)}
    return replace(example, input=x, hx=hx), shown


def _explain(diagnosis: Diagnosis, found: Search) -> None:
    """Write down what was found."""
    if found.best is None:
        also = tuple(variant.name for variant in found.rivals)
        diagnosis.unexplained.append(Unexplained("the arrays", found.error, found.near, found.distance, also))
        return
    diagnosis.variant = found.best
    diagnosis.findings += found.findings(plain(diagnosis.subject.kind))
