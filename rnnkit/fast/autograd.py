"""A layer by the fast path, and what autograd sees of it.

    forward   the output, the states after it, and the tape that backward reads
    backward  the gradients of a layer's tensors
    Layer     both of them for autograd
    layer     a layer with the graph that it needs, if any
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from .. import recurrence
from ..equations import State
from ..stack import Results, Stack
from ..untraced import untraced
from . import paired
from .backprop import Checkpointed, Direction, Grads, gradients, new_states
from .kernels import KERNELS
from .maps import Maps
from .timeline import Timeline


#: What tells of functorch's tensors is torch's own. Should it go, no tensor is taken to be plain, and nothing else.
TELLING = all(
    hasattr(torch._C._functorch, f"is_{name}") for name in ("functorch_wrapped_tensor", "legacy_batchedtensor")
)


def plain(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> bool:
    """Say whether these, where they are not None, are strided tensors of that dtype on a CPU and nothing else."""
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in (Tensor, Parameter)
            and tensor.dtype == dtype
            and tensor.is_cpu
            and tensor.layout == torch.strided
            and TELLING
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            and not torch._C._functorch.is_legacy_batchedtensor(tensor)
        ):
            return False
    return True


def parts(layer: Stack, steps: int) -> Iterator[tuple[Maps, Tensor, State]]:
    """Yield for each direction of `layer` its maps, its input as rows (S, H_in), and its state."""
    kernel, padded = KERNELS[layer.equation.step], layer.batch_sizes is None
    rows = layer.input.flatten(0, 1) if padded else layer.input
    for weights, state in zip(layer.weights, layer.states, strict=True):
        yield Maps(kernel, weights, steps, state[0].size(0)), rows, state


def directions(layer: Stack, pairs: bool) -> list[Direction]:
    """Return the directions of `layer`, or one in which both go as a pair, where that pays and may be."""
    kernel, every, sizes = KERNELS[layer.equation.step], layer.checkpoint_every, layer.step_sizes
    if pairs and paired.pays(layer):
        found = [paired.direction(layer, kernel)]
    else:
        steps = layer.input if layer.batch_sizes is None else None
        found = [
            Direction(maps, Timeline(sizes, state[0].size(0), reverse=d == 1), rows, state, steps)
            for d, (maps, rows, state) in enumerate(parts(layer, len(sizes)))
        ]
    return found if every is None or kernel.tapeless else [Checkpointed(direction, every) for direction in found]


def new_tape(layer: Stack) -> list[Tensor]:
    """Allocate the tape of `layer`, where its directions don't go as a pair. No shape is looked at, but handed on."""
    kernel, every = KERNELS[layer.equation.step], layer.checkpoint_every
    if every is None or kernel.tapeless:
        return [t for maps, rows, _ in parts(layer, 0) for t in maps.tape(rows, rows.size(0))]
    return [t for state in layer.states for t in new_states(state, layer.length, every)]


def forward(layer: Stack, keep: bool, pairs: bool = True) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the output of `layer`, the states after its last step, direction by direction, and the tape if to be kept."""
    found, H_out = directions(layer, pairs), layer.states[0][0].size(-1)
    finals: list[Tensor] = []
    tape: list[Tensor] = []
    if len(found) < layer.directions:
        (pair,) = found
        rows, tape = pair.rows.new_empty(*pair.rows.shape[:-1], H_out), pair.new_tape() if keep else []
        finals = paired.apart(pair.forward(rows, tape if keep else None))
        return torch.cat(paired.as_steps(rows), -1), finals, tape
    output = layer.input.new_empty(*layer.input.shape[:-1], layer.directions * H_out)
    for direction, columns in zip(found, columns_of(output, len(found)), strict=True):
        of_direction = direction.new_tape() if keep else None
        finals += direction.forward(columns, of_direction)
        tape += of_direction or []
    return output, finals, tape


def columns_of(output: Tensor, D: int) -> Sequence[Tensor]:
    """Return the columns (S, H_out) of each of D directions in an output (..., D*H_out)."""
    rows = output.flatten(0, -2)
    return rows.chunk(D, 1) if D > 1 else (rows,)


def backward(
    layer: Stack,
    output: Tensor,
    tape: list[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
    pairs: bool = True,
) -> Grads:
    """Return the gradients of `layer.tensors`, as far as they are needed.

    output, tape  as `forward` returned them
    grads         of the output and of the final states; None stands for zeros
    """
    found, (dy, *dfinals) = directions(layer, pairs), grads
    if len(found) < layer.directions:
        return _backward_paired(found[0], output, tape, dy, dfinals, needed)
    dx = layer.input.new_empty(layer.input.shape) if needed[0] else None
    result: Grads = [dx]
    D, total = len(found), found[0].time.total
    rows, drows, dcolumns = output.view(total, -1), None if dx is None else dx.view(total, -1), [None] * D
    if dy is not None:
        dcolumns = dy.reshape(total, -1).chunk(D, 1)
    for d, (direction, columns) in enumerate(zip(found, rows.chunk(D, 1), strict=True)):
        of_tape, of_finals, of_needed = (share(listed, d, D) for listed in (tape, dfinals, needed[1:]))
        result += gradients(direction, columns, of_tape, dcolumns[d], of_finals, drows, of_needed)
    return result


def share(listed: Sequence[Any], d: int, D: int) -> list[Any]:
    """Return what belongs to direction d of D, of what is listed direction by direction."""
    each = len(listed) // D
    return [*listed[d * each : (d + 1) * each]]


def _backward_paired(
    pair: Direction,
    output: Tensor,
    tape: list[Tensor],
    dy: Tensor | None,
    dfinals: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> Grads:
    halves = zip(share(dfinals, 0, 2), share(dfinals, 1, 2), pair.state, strict=True)
    dstates = [
        torch.stack([torch.zeros_like(s[0]) if d is None else d for d in (forward, reverse)])
        for forward, reverse, s in halves
    ]
    dx = torch.empty_like(pair.rows) if needed[0] else None
    either = [forward or reverse for forward, reverse in zip(share(needed[1:], 0, 2), share(needed[1:], 1, 2), strict=True)]
    rows, drows = (None if t is None else paired.as_rows(*t.chunk(2, -1)) for t in (output, dy))
    assert rows is not None
    found = paired.apart(gradients(pair, rows, tape, drows, dstates, dx, either))
    found = [grad if need else None for grad, need in zip(found, needed[1:], strict=True)]
    return [None if dx is None else torch.add(*paired.as_steps(dx)), *found]


class Layer(Function):
    """A layer, with `layer.tensors` for autograd to see."""

    @staticmethod
    def forward(ctx: Any, layer: Stack, *tensors: Tensor | None) -> Any:
        output, finals, tape = forward(layer, keep=True)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.count = layer.given(()), len(tensors)
        ctx.save_for_backward(*tensors, output, *tape)
        return output, *finals

    @staticmethod
    @untraced  # a compiled step may hold the backward of a layer that was run before
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return Layer.backward(ctx, *grads)
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        layer, (output, *tape) = ctx.layer.given(saved[: ctx.count]), saved[ctx.count :]
        # Gradients are enabled in here only if these ones are to be differentiated, too.
        if torch.is_grad_enabled() or not plain(grads, output.dtype):
            return None, *differentiate(layer, grads, needed, again=torch.is_grad_enabled())
        return None, *backward(layer, output, tape, grads, needed)


def differentiate(layer: Stack, grads: Sequence[Tensor | None], needed: Sequence[bool], again: bool) -> Grads:
    """Return what `backward` returns, by the readable path: so that it can be batched, or differentiated `again`."""
    with torch.enable_grad():
        # Each an alias of its own, so that a tensor given twice has two gradients.
        aliases = [None if t is None else t.view_as(t) for t in layer.tensors]
        output, finals = recurrence.layer(layer.given(aliases))
        results = (output, *(s for state in finals for s in state))
        given = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None and y.requires_grad]
        wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
        ys, gs = zip(*given, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needed]


def layer(layer: Stack) -> Results:
    """Run a layer, with its graph if any of its tensors is to have a gradient."""
    tensors = layer.tensors if torch.is_grad_enabled() else []
    if any(t is not None and t.requires_grad for t in tensors):
        output, *flat = Layer.apply(layer, *tensors)  # type: ignore[no-untyped-call]
    else:
        output, flat, _ = forward(layer, keep=False)
    return output, [tuple(share(flat, d, layer.directions)) for d in range(layer.directions)]
