"""Pairs of modules with equal weights, inputs for them, and what a run of them shows.

A *kind* is a class and what distinguishes it: tanh, relu, LSTM, LSTM-proj, GRU. A *form* is how the batch comes:
unbatched, padded, packed (longest first), unsorted (packed in another order).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import rnnkit

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("RNN", {"nonlinearity": "tanh"}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "LSTM": ("LSTM", {}),
    "LSTM-proj": ("LSTM", {"proj_size": 2}),
    "GRU": ("GRU", {}),
}
MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU", "LSTM": "LSTM", "LSTM-proj": "LSTM", "GRU": "GRU"}
CELLS = [kind for kind in KINDS if kind != "LSTM-proj"]
FORMS = ["unbatched", "padded", "packed", "unsorted"]
H_IN, H, L, LENGTHS = 3, 4, 5, [3, 5, 1]
N = len(LENGTHS)


def product(**axes: Any) -> list[dict[str, Any]]:
    """Every combination, as keyword arguments."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def slow(values: Iterable[Any]) -> list[Any]:
    """Mark these values of a test's parameter, or tuples of several, as slow."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


def thinned(k: int, values: Sequence[Any]) -> list[Any]:
    """Mark all but `values[::k]` as slow."""
    marked = slow(values)
    return [marked[place] if place % k else value for place, value in enumerate(values)]


def named(options: dict[str, Any]) -> str:
    """A test's id: `layers=2-bias=True`."""
    return "-".join(f"{key}={value}" for key, value in options.items())


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(library: Any, kind: str, cell: bool = False, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    name, own = KINDS[kind]
    sizes = {"input_size": H_IN, "hidden_size": H}
    return getattr(library, name + "Cell" * cell)(**(sizes | own | options), dtype=dtype)


def pair(kind: str, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and rnnkit's with the same weights, each number of which occurs once."""
    native, kit = build(nn, kind, **options), build(rnnkit, kind, **options)
    with torch.no_grad():
        for k, weight in enumerate(native.parameters()):
            scale = 0.2 if weight.is_complex() else 0.6  # tanh has poles on the imaginary axis
            weight.copy_(scale * randn(*weight.shape, seed=1000 * seed + k, dtype=weight.dtype))
    kit.load_state_dict(native.state_dict())
    return native, kit


def arguments(module: Any, form: str = "padded", hx: bool = True, seed: int = 0, steps: int = L) -> tuple[Any, Any]:
    """A new input for `module` in that form, and a non-zero state or None; both of them leaves that want gradients."""
    cell = isinstance(module, (nn.RNNCellBase, rnnkit.RNNCellBase))
    weight = module.weight_ih if cell else module.all_weights[0][0]
    if cell:
        shape, rows = (() if form == "unbatched" else (N,)), ()
        sizes = [(module.hidden_size,)] * (1 + ("LSTM" in type(module).__name__))
    else:
        shape = (steps,) if form == "unbatched" else (N, steps) if module.batch_first else (steps, N)
        rows = (module.num_layers * (1 + module.bidirectional),)
        sizes = [(module.proj_size or module.hidden_size,), (module.hidden_size,)][: 1 + ("LSTM" in module.mode)]
    batch = () if form == "unbatched" else (N,)
    input = randn(*shape, module.input_size, seed=seed + 1, dtype=weight.dtype).requires_grad_()
    states = tuple(
        randn(*rows, *batch, *size, seed=seed + 2 + k, dtype=weight.dtype).requires_grad_()
        for k, size in enumerate(sizes)
    )
    return input, (states if len(states) > 1 else states[0]) if hx else None


def pack(module: Any, input: Tensor, form: str) -> Tensor | PackedSequence:
    """`input`, or its rows of LENGTHS packed: gathered by index, for torch packs no complex ones with gradients."""
    if form not in ("packed", "unsorted"):
        return input
    lengths = sorted(LENGTHS, reverse=True) if form == "packed" else LENGTHS
    steps = input.transpose(0, 1) if module.batch_first else input
    places = torch.arange(steps[..., 0].numel()).reshape(steps.shape[:2])
    rows, *rest = pack_padded_sequence(places, lengths, enforce_sorted=form == "packed")
    return PackedSequence(steps.flatten(0, 1)[rows], *rest)


def as_list(state: Any) -> list[Tensor]:
    """h, or (h, c), as a list."""
    return list(state) if isinstance(state, (tuple, list)) else [state]


def arrays(module: Any) -> dict[str, Any]:
    """The parameters in NumPy."""
    return {name: weight.detach().numpy().copy() for name, weight in module.named_parameters()}


def tensors(result: Any) -> dict[str, Tensor]:
    """What a module returns, by name: output, h_n and c_n of a layer; h and c of a cell."""
    if isinstance(result, Tensor):
        return {"h": result}
    first, second = result
    if isinstance(first, PackedSequence):
        packed = {name: value for name, value in first._asdict().items() if value is not None}
        return packed | tensors((first.data, second))
    if isinstance(second, tuple):
        return {"output": first, "h_n": second[0], "c_n": second[1]}
    return {"output": first, "h_n": second}


def weighed(results: Any, leaves: list[Tensor]) -> dict[str, Tensor]:
    """All tensors of a result, and the gradients of a random weighting of them."""
    results = tree_leaves(results)
    loss = sum((y * randn(*y.shape, seed=k, dtype=y.dtype)).sum() for k, y in enumerate(results))
    grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return numbered("result", [y.detach() for y in results]) | numbered("grad", grads)


def numbered(name: str, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Tensors by a name and their number, for an assertion."""
    return {f"{name} {k}": tensor for k, tensor in enumerate(tensors)}


def observe(
    module: Any,
    form: str = "padded",
    hx: bool = True,
    seed: int = 0,
    wanted: tuple[str, ...] = ("output", "h_n", "c_n"),
) -> dict[str, Tensor]:
    """Outputs, and the gradients of a random weighting of those `wanted`, of one run on `arguments`."""
    input, state = arguments(module, form, hx, seed)
    torch.manual_seed(seed)  # for dropout
    outputs = tensors(module(pack(module, input, form), state))
    loss = sum(
        (outputs[name] * randn(*outputs[name].shape, seed=seed + 9, dtype=outputs[name].dtype)).sum().real
        for name in (*wanted, "h")
        if name in outputs
    )
    leaves = {"input": input}
    leaves |= {f"hx[{k}]": s for k, s in enumerate(as_list(state)) if s is not None}
    leaves |= dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    return {name: value.detach() for name, value in (outputs | found).items()}


def assert_equal_tensors(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    tolerance: float = 0.0,
    case: str = "",
    relative: float = 0.0,
) -> None:
    """The same names in the same order, under each the same device, dtype and shape, and the same numbers.

    A tolerance of 0 asks for the same bits; another is how far two numbers may lie apart, and `relative` how much
    farther for each unit of the expected one. NaN is near NaN alone, and an infinity near itself. What fails says the
    case, the tensor, the place in it and both numbers.
    """
    where = f"{case}: " if case else ""
    assert list(found) == list(expected), f"{where}the tensors are {list(found)}, expected {list(expected)}"
    for name, value in expected.items():
        for what in ("device", "dtype", "shape"):
            has, wants = getattr(found[name], what), getattr(value, what)
            assert has == wants, f"{where}{name} has the {what} {has}, expected {wants}"
        difference = _first_difference(found[name].detach(), value.detach(), tolerance, relative)
        assert not difference, f"{where}{name}{difference}"


def _first_difference(found: Tensor, expected: Tensor, tolerance: float, relative: float) -> str:
    """Where the two differ most, and by how much; "" if nowhere by more than `tolerance`."""
    if found.numel() == 0:
        return ""
    if tolerance == 0:
        raw = [t.contiguous().view(-1).view(torch.uint8).view(t.numel(), -1) for t in (found, expected)]
        differs = (raw[0] != raw[1]).any(1).view(found.shape)
    else:
        differs = ~torch.isclose(found, expected, rtol=relative, atol=tolerance, equal_nan=True)
    if not differs.any():
        return ""
    wide = torch.complex128 if found.is_complex() else torch.float64
    gap = (found.to(wide) - expected.to(wide)).abs().nan_to_num(torch.inf, torch.inf)
    k = int(torch.where(differs, gap, -1.0).argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(k), found.shape)]
    got, wanted, off = (t.flatten()[k].item() for t in (found, expected, gap))
    allowed = (
        f" of which {tolerance + relative * abs(wanted):.1e} is allowed" if tolerance and isfinite(abs(wanted)) else ""
    )
    return (
        f"{place} is {got!r}, expected {wanted!r}, off by {off:.2e}{allowed}; "
        f"{int(differs.sum())} of {found.numel()} numbers differ"
    )


def assert_same(expected: dict[str, Tensor], seen: dict[str, Tensor], path: str = "readable", case: str = "") -> None:
    """What torch.nn's module shows, and rnnkit's: equal tensors, of equal strides but for gradients.

    Of the fast path: numbers that differ by rounding alone.
    """
    assert list(seen) == list(expected), f"{case}: the tensors are {list(seen)}, expected {list(expected)}"
    for name, value in expected.items():
        tolerance = 0.0
        if path != "readable" and value.is_floating_point() and value.numel():
            tolerance = 500 * torch.finfo(value.dtype).eps * max(1.0, value.abs().max().item())
        assert_equal_tensors({name: seen[name]}, {name: value}, tolerance, case)
        if path == "readable" and not name.startswith("grad"):
            strides = seen[name].stride(), value.stride()
            assert strides[0] == strides[1], f"{case}: {name} has the strides {strides[0]}, expected {strides[1]}"


def assert_close(expected: dict[str, Tensor], seen: dict[str, Tensor], atol: float) -> None:
    assert_equal_tensors(seen, expected, atol)


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[str, str]:
    """How a call ends: the type of the exception and its text, or ("", "") when there is none."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""
