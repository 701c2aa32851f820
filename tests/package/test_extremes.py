"""Huge, infinite and undefined numbers: what torch.nn makes of them, NaN for NaN, in outputs and gradients."""

import math
from typing import Any

import pytest
import torch
from helpers import CELLS, KINDS, L, arguments, as_list, assert_equal_tensors, pack, pair, randn, tensors
from torch import Tensor

import rnnkit

#: The huge ones saturate every gate, and their products with a gradient are numbers still.
VALUES = {
    torch.float32: [1e30, -1e30, math.inf, -math.inf, math.nan],
    torch.float64: [1e300, -1e300, math.inf, -math.inf, math.nan],
}
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-11}
dtypes = pytest.mark.parametrize("dtype", VALUES, ids=str)


def places(tensor: Tensor) -> dict[str, Tensor]:
    """Where a value is put, by name. What is one element of an input is of one step, neither the first nor the last."""
    step = 1 if tensor.dim() == 3 and tensor.size(0) == L else 0
    return {"one element": tensor[(step, 1, 0)[-tensor.dim() :]], "everywhere": tensor}


def call(module: Any, form: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """Arguments, and their leaves by name."""
    x, hx = arguments(module, form)
    return x, hx, {"input": x} | {f"hx[{k}]": state for k, state in enumerate(as_list(hx))}


def seen(module: Any, form: str, where: str, place: str, value: float) -> dict[str, Tensor]:
    """Outputs, states and gradients of a call with `value` in its input or in a state."""
    x, hx, leaves = call(module, form)
    with torch.no_grad():
        places(leaves[where])[place].fill_(value)
    outputs = tensors(module(pack(module, x, form), hx))
    floats = [y for y in outputs.values() if y.is_floating_point()]
    loss = sum((y * randn(*y.shape, seed=9 + k, dtype=y.dtype)).sum() for k, y in enumerate(floats))
    leaves |= dict(module.named_parameters())
    grads = torch.autograd.grad(loss, [*leaves.values()])
    return outputs | {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_extremes_are_torchs(
    native: Any, kit: Any, form: str, dtype: torch.dtype, paths: list[str], case: str
) -> None:
    """Of every value in every place, by every path; among them are numbers that are none, or nothing was tried."""
    for where, leaf in call(native, form)[2].items():
        for place in places(leaf):
            for value in VALUES[dtype]:
                expected = seen(native, form, where, place, value)
                assert math.isfinite(value) or not all(y.isfinite().all() for y in expected.values()), case
                for path in paths:
                    kit.path = path
                    what = f"{case}, {value} in {where}, {place}, path {path!r}"
                    assert_near(seen(kit, form, where, place, value), expected, TOLERANCES[dtype], what)


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, case: str) -> None:
    """Each number near its own; gradients are sums, near what is lost by the largest of their tensor."""
    assert list(found) == list(expected), case
    for name, value in expected.items():
        largest = value.nan_to_num(0, 0, 0).abs().max().item() if name.startswith("grad") else 0.0
        allowed = tolerance * max(1.0, largest)
        assert_equal_tensors({name: found[name]}, {name: value}, allowed, case, relative=tolerance)


@dtypes
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both"])
@pytest.mark.parametrize("layers", [2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_makes_of_extremes_what_torch_nn_makes(
    kind, layers, bidirectional, form, dtype, native_loops, monkeypatch
):
    """Of both directions one by one; at once: see below."""
    monkeypatch.setattr(rnnkit.fast.pair, "FEW", -1)
    native, kit = pair(kind, num_layers=layers, bidirectional=bidirectional, dtype=dtype)
    case = f"{kind}, {layers} layers, bidirectional={bidirectional}, {form}, {dtype}"
    assert_extremes_are_torchs(native, kit, form, dtype, ["readable", "always fast"], case)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_at_once_make_of_extremes_what_torch_nn_makes(kind, layers, native_loops):
    """As they are run in float32, padded, where they are small: an infinity of one is no NaN of the other."""
    native, kit = pair(kind, num_layers=layers, bidirectional=True, dtype=torch.float32)
    case = f"{kind}, {layers} layers, both directions at once"
    assert_extremes_are_torchs(native, kit, "padded", torch.float32, ["always fast"], case)


@dtypes
@pytest.mark.parametrize("form", ["unbatched", "padded"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_makes_of_extremes_what_torch_nn_makes(kind, form, dtype):
    native, kit = pair(kind, cell=True, dtype=dtype)
    assert_extremes_are_torchs(native, kit, form, dtype, ["readable"], f"{kind} cell, {form}, {dtype}")
