"""Cases of what all paths take: a Stack of random tensors, a name for each of them, and what a layer makes of it."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from helpers import KINDS, MODES, assert_equal_tensors, product
from torch import Tensor

from rnnkit import EQUATIONS, compiler, fast, paths, recurrence
from rnnkit.fast import loop, pair, products
from rnnkit.stack import Direction, Layer, Stack, Weights, run

BATCH_SIZES = [4, 4, 3, 1, 1]
#: How far float64's outputs may lie from the readable path's, and its gradients: relative to a tensor's largest number.
TOLERANCES = {torch.float64: (0.0, 1e-13), torch.float32: (2e-6, 5e-6)}
GRID = product(kind=KINDS, layers=[1, 2], D=[1, 2], bias=[True, False], packed=[False, True])
LAYER = [options for options in GRID if options["layers"] == 1]

UNROLLS = {"readable": recurrence.unroll, "fast": fast.unroll, "compiled": compiler.unroll}
READABLE, FAST = paths.LAYERS["readable"], paths.LAYERS["fast"]


def make_stack(
    kind: str = "LSTM",
    layers: int = 1,
    D: int = 1,
    bias: bool = True,
    packed: bool | list[int] = False,
    dtype: torch.dtype = torch.float64,
    L: int = 5,
    N: int = 4,
    H_in: int = 3,
    H: int = 6,
    seed: int = 1,
    **settings: Any,
) -> Stack:
    """A stack, all of whose tensors want a gradient. A projection is to H // 3; `packed` may be the batch sizes."""
    draws = torch.Generator().manual_seed(seed)
    equation = EQUATIONS[MODES[kind]]
    G, H_out = len(equation.gates), max(1, H // 3) if kind.endswith("proj") else H
    sizes = (packed if isinstance(packed, list) else BATCH_SIZES) if packed else None

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=draws, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    input, states, weights = leaf(*((L, N) if sizes is None else (sum(sizes),)), H_in), [], []
    for k in range(layers * D):
        states.append(tuple(leaf(N, width) for width in (H_out, H)[: len(equation.state)]))
        shapes = [(G * H, H_in if k < D else D * H_out), (G * H, H_out), (G * H,), (G * H,), (H_out, H)]
        there = [True, True, bias, bias, kind.endswith("proj")]
        own = [leaf(*shape, scale=H**-0.5) if yes else None for shape, yes in zip(shapes, there, strict=True)]
        weights.append(Weights(*own))
    return Stack(equation, input, states, weights, None if sizes is None else torch.tensor(sizes), D == 2, **settings)


def leaves(stack: Stack) -> dict[str, Tensor]:
    """The tensors of a stack by name: input, w_ih_l0, w_ih_l0_reverse, h_l0 and the like."""
    D = 2 if stack.bidirectional else 1
    found = {"input": stack.input}
    for k, (weights, state) in enumerate(zip(stack.weights, stack.states, strict=True)):
        suffix = f"_l{k // D}" + "_reverse" * (k % D)
        named = weights._asdict() | dict(zip(stack.equation.state, state, strict=False))
        found |= {name + suffix: tensor for name, tensor in named.items() if tensor is not None}
    return found


def with_leaves(stack: Stack, tensors: Mapping[str, Tensor]) -> Stack:
    """The stack with other tensors, by the names of `leaves`."""
    found = iter(tensors.values())
    input = next(found)
    weights, states = [], []
    for own, state in zip(stack.weights, stack.states, strict=True):
        weights.append(Weights(*(None if w is None else next(found) for w in own)))
        states.append(tuple(next(found) for _ in state))
    assert next(found, None) is None
    return stack._replace(input=input, states=states, weights=weights)


def changed(stack: Stack, function: Callable[[Tensor], Tensor]) -> Stack:
    """The stack with `function` of each tensor, which are leaves again."""
    with torch.no_grad():
        new = {name: function(tensor) for name, tensor in leaves(stack).items()}
    return with_leaves(stack, {name: tensor.detach().requires_grad_() for name, tensor in new.items()})


def results(stack: Stack, layer: Layer) -> dict[str, Tensor]:
    """Output, and h_n (and c_n) of each layer and direction."""
    output, finals = run(stack, layer)
    named = {
        f"{letter}_n[{k}]": s
        for k, state in enumerate(finals)
        for letter, s in zip(stack.equation.state, state, strict=True)
    }
    return {"output": output, **named}


def direction_results(direction: Direction, unroll: Any) -> dict[str, Tensor]:
    """The same of one direction."""
    output, state = unroll(direction)
    return {"output": output, **dict(zip(("h_n", "c_n"), state, strict=False))}


def gradients(outputs: Mapping[str, Tensor], of: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Of a sum in which every element of every output has a weight of its own."""
    draws = torch.Generator().manual_seed(2)
    pairs = [(y, torch.randn(y.shape, generator=draws, dtype=torch.float64).to(y.dtype)) for y in outputs.values()]
    ys, gs = zip(*((y, g) for y, g in pairs if y.requires_grad), strict=True)
    found = torch.autograd.grad(ys, [*of.values()], gs, allow_unused=True, materialize_grads=True, **options)
    return {f"grad of {name}": grad for name, grad in zip(of, found, strict=True)}


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float, case: Any = "") -> None:
    """Tensors are equal but for so much of the largest number of each; 0 asks for the same bits."""
    assert list(found) == list(expected), f"{case}: the tensors are {list(found)}, expected {list(expected)}"
    for name, value in expected.items():
        largest = value.detach().abs().max().item() if value.numel() else 0.0
        allowed = tolerance and max(tolerance * largest, torch.finfo(value.dtype).tiny)
        assert_equal_tensors({name: found[name]}, {name: value}, allowed, str(case))


def assert_alive(tensors: Mapping[str, Tensor], case: Any = "") -> None:
    """No tensor is all zeros: what is compared says something."""
    dead = [name for name, tensor in tensors.items() if tensor.numel() and not tensor.any()]
    assert not dead, f"{case}: all zeros: {dead}"


def assert_same_function(
    stack: Stack, found: Layer, expected: Layer = READABLE, tolerances: Any = None, case: Any = ""
) -> None:
    """Two layers make the same of a stack: outputs, gradients of all its tensors, and outputs without a graph."""
    of_outputs, of_gradients = tolerances or TOLERANCES[stack.input.dtype]
    ours, theirs, tensors = results(stack, found), results(stack, expected), leaves(stack)
    assert_near(ours, theirs, of_outputs, case)
    wanted = gradients(theirs, tensors)
    assert_alive(wanted, case)
    assert_near(gradients(ours, tensors), wanted, of_gradients, case)
    with torch.no_grad():
        assert_near(results(stack, found), theirs, of_outputs, f"{case}, without a graph")


def wanting(stack: Stack, names: Iterable[str]) -> dict[str, Tensor]:
    """Let these tensors alone want a gradient, and return them."""
    chosen, all_of_them = set(names), leaves(stack)
    for name, tensor in all_of_them.items():
        tensor.requires_grad_(name in chosen)
    return {name: tensor for name, tensor in all_of_them.items() if name in chosen}


def subsets(names: Iterable[str]) -> Iterable[tuple[str, ...]]:
    """All but the empty one."""
    names = [*names]
    return itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names) + 1))


# Ways through the fast path -----------------------------------------------------------------------------------------

#: Small as the tests are, by these ways go large sizes: who forms the products, and whether time is cut.
PRODUCTS = ["small", "large", "oneDNN"]
WAYS = product(products=PRODUCTS, spans=["one", "many"])
#: Those of float64, whose products are all MKL's.
WAYS64 = [way for way in WAYS if way["products"] != "oneDNN"]


def onednn_is_faster(answer: bool, monkeypatch: Any) -> None:
    """Say that oneDNN is faster for every size, or for none."""
    for name in ("WORTH_MEASURING", "WORTH_PACKING"):
        monkeypatch.setattr(products, name, -1)
    monkeypatch.setattr(products, "_onednn_is_faster", lambda *_: answer)


def go(monkeypatch: Any, products: str = "small", spans: str = "one", paired: bool = True) -> None:
    """Take what follows through a way, and both directions of a layer at once or one by one."""
    if products == "oneDNN":
        onednn_is_faster(True, monkeypatch)
    if products == "large":
        for name in ("WORTH_A_COPY", "MANY_ROWS", "LARGE"):
            monkeypatch.setattr(loop.products, name, 0)
        monkeypatch.setattr(loop.products, "BLOCK", 5)
    if spans == "many":
        monkeypatch.setattr(loop, "ELEMENTS", 5 * 4 * 6)
        monkeypatch.setattr(loop, "WEIGHTS", 0)
    if not paired:
        monkeypatch.setattr(pair, "FEW", -1)


@contextmanager
def threads(count: int) -> Any:
    """Let torch use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
