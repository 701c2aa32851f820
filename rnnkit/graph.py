"""What torch.compile and torch.export see of a stack, in place of a loop that they would unroll step by step.

    compile   one operator, `rnnkit::stack`: opaque, so one small graph serves every length and batch
    export    torch's `scan` over the same equation: plain ATen, so the artefact runs where there is no rnnkit

Neither graph grows with the length.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, recurrence
from .equations import EQUATIONS, Equation, State
from .recurrence import Weights

scan: Any
try:
    from torch._higher_order_ops import scan
except ImportError:  # a prototype of torch's: without it, export takes the loop, and the artefact is for one length
    scan = None


def stack(
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Tensor | None,
    dropout: float,
    bidirectional: bool,
) -> tuple[Tensor, list[State]]:
    """`recurrence.stack` for a graph, but that batch_sizes is a tensor: what it holds, the graph can't know.

    Inside a transform of torch.func it is that loop itself, unrolled: the operator has a backward and no other rule.
    Raises NotImplementedError for an export of a packed input.
    """
    if torch.compiler.is_exporting():
        if batch_sizes is not None:
            raise NotImplementedError("can't export a packed input, whose batch sizes are data: pad it instead")
        unroll = recurrence.unroll if scan is None else scan_unroll
        return recurrence.stack(equation, input, states, weights, None, dropout, bidirectional, unroll)

    if getattr(torch._C, "_are_functorch_transforms_active", bool)():
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        return recurrence.stack(equation, input, states, weights, sizes, dropout, bidirectional)

    device = input.device.type
    autocast = torch.get_autocast_dtype(device) if checks.autocasting(input) else None
    mode = next(mode for mode, known in EQUATIONS.items() if known is equation)
    D = 2 if bidirectional else 1
    span = D if dropout else len(weights)  # dropout is drawn by the graph, between operators of one layer each
    output, finals = input, []
    for k in range(0, len(weights), span):
        if k:
            output = F.dropout(output, dropout)
        flat_states = [s for state in states[k : k + span] for s in state]
        flat_weights = [w for weight in weights[k : k + span] for w in weight if w is not None]
        output, *flat_finals = _stack(mode, output, flat_states, flat_weights, batch_sizes, bidirectional, autocast)
        finals += _grouped(flat_finals, len(equation.state))
    return output, finals


def scan_unroll(
    equation: Equation,
    input: Tensor,
    state: State,
    weights: Weights,
    batch_sizes: Sequence[int] | None,
    reverse: bool,
) -> tuple[Tensor, State]:
    """`recurrence.unroll` of a padded input, with its loop inside the graph and cut off from autograd.

    Raises RuntimeError where L is 0.
    """
    # Autograd of scan is not to be had: it fails where a step keeps a size for its backward, as GRU's does.
    weights = Weights._make(weight if weight is None else weight.detach() for weight in weights)
    state = tuple(s.detach().clone() for s in state)  # nor does it take a view of a view
    igates = F.linear(input.detach(), weights.w_ih, weights.b_ih)
    state, output = scan(partial(_scanned, equation, weights), state, igates, reverse=reverse)
    return output, state


def _scanned(equation: Equation, weights: Weights, state: State, igates: Tensor) -> tuple[State, Tensor]:
    state = recurrence.step(equation, igates, state, weights)
    return state, state[0].clone()  # scan wants no two results to be one tensor


@torch.library.custom_op("rnnkit::stack", mutates_args=())
def _stack(
    mode: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    autocast: torch.dtype | None,
) -> list[Tensor]:
    """Layers with no dropout between them. states, weights and what is returned, output and states, lie flat."""
    if batch_sizes is not None:
        checks.check_packed(input, batch_sizes)
    output, *finals = _run(mode, input, states, weights, batch_sizes, bidirectional, autocast)
    return [output.contiguous(), *(s.clone() for s in finals)]  # an operator returns nothing that it was given


@_stack.register_fake
def _(
    mode: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    autocast: torch.dtype | None,
) -> list[Tensor]:
    shapes = [(*input.shape[:-1], states[0].size(-1) * (2 if bidirectional else 1)), *(s.shape for s in states)]
    results = [input, *states]
    if autocast is not None:  # what becomes of the dtypes, one step of one row tells
        row = input.new_empty(1, 1, input.size(-1))
        results = _run(mode, row, [s[:1] for s in states], weights, None, bidirectional, autocast)
    return [input.new_empty(shape, dtype=y.dtype) for shape, y in zip(shapes, results, strict=True)]


@torch.library.custom_op("rnnkit::stack_backward", mutates_args=())
def _stack_backward(
    mode: str,
    grads: Sequence[Tensor],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    autocast: torch.dtype | None,
    needed: Sequence[bool],
) -> list[Tensor]:
    """The gradients of those of (input, *states, *weights) that are needed."""
    tensors = [input, *states, *weights]

    def forward(*variables: Tensor) -> tuple[Tensor, ...]:
        given = iter(variables)
        input, *rest = [next(given) if need else tensor for need, tensor in zip(needed, tensors, strict=True)]
        states_, weights_ = rest[: len(states)], rest[len(states) :]
        return tuple(_run(mode, input, states_, weights_, batch_sizes, bidirectional, autocast))

    # autograd proper is switched off inside an operator; that of torch.func is not
    variables = [tensor for need, tensor in zip(needed, tensors, strict=True) if need]
    vjp = torch.func.vjp(forward, *variables)[1]
    return [grad.clone(memory_format=torch.contiguous_format) for grad in vjp(tuple(grads))]


@_stack_backward.register_fake
def _(
    mode: str,
    grads: Sequence[Tensor],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    autocast: torch.dtype | None,
    needed: Sequence[bool],
) -> list[Tensor]:
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for need, tensor in zip(needed, [input, *states, *weights], strict=True)
        if need
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.mode, input, states, weights, batch_sizes, *ctx.options = inputs
    ctx.sizes = len(states), len(weights)
    ctx.save_for_backward(input, *states, *weights, batch_sizes)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    *tensors, batch_sizes = ctx.saved_tensors
    _, input_needed, states_needed, weights_needed, *_ = ctx.needs_input_grad
    needed = [input_needed, *states_needed, *weights_needed]
    input, states, weights = tensors[0], tensors[1 : 1 + ctx.sizes[0]], tensors[1 + ctx.sizes[0] :]
    found = iter(_stack_backward(ctx.mode, grads, input, states, weights, batch_sizes, *ctx.options, needed))
    grad_input, *rest = [next(found) if need else None for need in needed]
    return None, grad_input, rest[: ctx.sizes[0]], rest[ctx.sizes[0] :], None, None, None


_stack.register_autograd(_backward, setup_context=_save)


def _run(
    mode: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    autocast: torch.dtype | None,
) -> list[Tensor]:
    equation = EQUATIONS[mode]
    grouped = _grouped(states, len(equation.state))
    listed = [_weights(group) for group in _grouped(weights, len(weights) // len(grouped))]
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    # The graph is run outside of the autocast region that it was traced in.
    with nullcontext() if autocast is None else torch.autocast(input.device.type, autocast, cache_enabled=False):
        output, finals = recurrence.stack(equation, input, grouped, listed, sizes, 0.0, bidirectional)
    return [output, *(s for final in finals for s in final)]


def _grouped(tensors: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return [tuple(tensors[k : k + size]) for k in range(0, len(tensors), size)]


def _weights(tensors: Sequence[Tensor]) -> Weights:
    """Weights again of those that were not None: two without biases, four with, and one more with a projection."""
    b_ih, b_hh = tensors[2:4] if len(tensors) >= 4 else (None, None)
    return Weights(tensors[0], tensors[1], b_ih, b_hh, tensors[-1] if len(tensors) % 2 else None)
