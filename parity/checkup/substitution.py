"""Calling a module with other weights than its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

#: Sizes of which no two parts are alike, so that shapes say what is what.
CLEAR = {"input_size": 5, "hidden_size": 7}
Call: TypeAlias = Callable[[nn.Module, dict[str, Tensor], tuple[Any, ...]], Any]


def by_name(module: nn.Module, weights: dict[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """Put weights in the place of its parameters for the time of the call."""
    return torch.func.functional_call(module, weights, arguments)


def by_value(module: nn.Module, weights: dict[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """Set its parameters to the weights, and carry the gradients that these get over to those.

    It serves modules that reach their parameters by no name, or after the call: they hold them in a list of their own,
    slice a ParameterList, which makes other parameters, or compute anew in backward.
    """
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return module(*arguments)
    leaves, structure = tree_flatten(arguments)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    result: list[Any] = []  # leaves and structure of what the module returns

    def run(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(places, tensors, strict=True))
        result.extend(
            tree_flatten(module(*tree_unflatten([given.get(k, leaf) for k, leaf in enumerate(leaves)], structure)))
        )
        return [leaf for leaf in result[0] if isinstance(leaf, Tensor)]

    inputs = [leaves[k] for k in places]
    shown = iter(Carried.apply(run, inputs, [own[name] for name in weights], *inputs, *weights.values()))  # type: ignore[no-untyped-call]
    return tree_unflatten([next(shown) if isinstance(leaf, Tensor) else leaf for leaf in result[0]], result[1])


class Carried(torch.autograd.Function):
    """What a module computes of inputs and of its own parameters; their gradients are those of inputs and weights."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., list[Tensor]], inputs: list[Tensor], own: list[Tensor], *_: Tensor) -> Any:
        copies = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
        with torch.enable_grad():
            ctx.results, ctx.variables = run(*copies), [*copies, *own]
        shown = [y.detach() for y in ctx.results]
        pairs = zip(shown, ctx.results, strict=True)
        ctx.mark_non_differentiable(*(y for y, result in pairs if not result.requires_grad))
        ctx.set_materialize_grads(False)
        return tuple(shown)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        reached = [k for k, y in enumerate(ctx.results) if y.requires_grad and grads[k] is not None]
        wanted = [v for v in ctx.variables if v.requires_grad]
        found: Any = [None] * len(wanted)
        if reached and wanted:
            ys, dys = [ctx.results[k] for k in reached], [grads[k] for k in reached]
            found = torch.autograd.grad(ys, wanted, dys, allow_unused=True, retain_graph=True)
        each = iter(found)
        return None, None, None, *(next(each) if v.requires_grad else None for v in ctx.variables)


def reaching(make: Callable[[], nn.Module], cell: bool) -> Call:
    """Return the way to call what `make` makes, of CLEAR sizes: by name, unless that misses something.

    What it misses is a number, or a gradient, that the module has when its own parameters are set.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    features, units = CLEAR.values()
    x = numbers(3, features) if cell else numbers(4, 3, features)
    h, c = (numbers(3, units) if cell else numbers(1, 3, units) for _ in "hc")
    values = {name: 0.5 * numbers(*p.shape) for name, p in make().named_parameters()}
    for arguments in (x,), (x, h), (x, (h, c)), (x, h, c):
        named, valued = (attempt(call, make(), values, arguments) for call in (by_name, by_value))
        if valued is not None:
            return by_name if named is not None and same(named, valued) else by_value
    return by_name


def attempt(
    call: Call, module: nn.Module, values: dict[str, Tensor], arguments: tuple[Any, ...]
) -> list[Tensor] | None:
    """Return the numbers of a call and the gradients of its weights; None if it raises."""
    weights = {name: value.clone().requires_grad_() for name, value in values.items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            results = [y for y in tree_leaves(call(module, weights, arguments)) if isinstance(y, Tensor)]
            differentiable = [y for y in results if y.requires_grad]
            if differentiable:
                torch.autograd.backward(differentiable, [y.detach() for y in differentiable])
    except Exception:  # whatever a person's module raises
        return None
    return [y.detach() for y in results] + [torch.zeros_like(w) if w.grad is None else w.grad for w in weights.values()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    pairs = itertools.zip_longest(some, others, fillvalue=torch.empty(0))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-9, equal_nan=True) for a, b in pairs)
