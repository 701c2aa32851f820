"""What autograd sees of the fast path: one function, whose backward goes back through time by hand."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from .. import checks, recurrence
from ..equations import State
from ..stack import Direction
from ..untraced import untraced
from . import pair
from .ends import by_ends
from .kernels import KERNELS
from .loop import Grads, Loop, new_tape

ByHand: TypeAlias = Callable[[Direction, Sequence[Tensor], Sequence[Tensor | None], Sequence[bool]], Grads]
_functorch = torch._C._functorch
#: What tells of functorch's tensors is torch's own. Should it go, no tensor is taken to be plain, and nothing else.
TELLING = all(hasattr(_functorch, f"is_{name}") for name in ("functorch_wrapped_tensor", "legacy_batchedtensor"))


def plain(tensors: Sequence[Tensor | None], like: Tensor) -> bool:
    """Say whether these, where they are not None, are strided tensors of like's dtype and device and nothing else."""
    dtype, device, strided = like.dtype, like.device, torch.strided
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in (Tensor, Parameter)
            and tensor.dtype is dtype
            and tensor.device == device
            and tensor.layout is strided
            and TELLING
            and not _functorch.is_functorch_wrapped_tensor(tensor)
            and not _functorch.is_legacy_batchedtensor(tensor)
        ):
            return False
    return True


def recording() -> bool:
    """Say whether autograd records: not in inference mode, whatever is enabled within."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def recorded(direction: Direction) -> bool:
    """Say whether autograd records what is made of a direction."""
    return recording() and any(t is not None and t.requires_grad for t in direction.tensors)


class ThroughTime(Function):
    """A direction, with its tensors for autograd to see. The tape is kept, or if `again` made again."""

    @staticmethod
    def forward(ctx: Any, direction: Direction, again: bool, *tensors: Tensor | None) -> Any:
        loop = Loop(direction)
        tape = None if again else new_tape(direction)
        output, state = loop.forward(tape)
        keep(ctx, direction, tensors, *([output, *tape] if tape is not None else []))
        return output, *state

    @staticmethod
    @untraced  # a compiled step may hold the backward of a layer that was run before
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, None, *go_back(ctx, ThroughTime.by_hand, grads, ctx.needs_input_grad[2:])

    @staticmethod
    def by_hand(
        direction: Direction, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> Grads:
        """Go back by the loop, whose output and tape were kept, or are made again."""
        loop = Loop(direction)
        if kept:
            output, *tape = kept
        else:
            tape = new_tape(direction)
            output, _ = loop.forward(tape)
        return loop.backward(output, tape, grads, needed)


def aliased(direction: Direction) -> Direction:
    """Return the direction with an alias of each of its tensors, which autograd keeps in their place.

    An alias stays what forward saw when the caller exchanges a tensor's data, freezes it or thaws it before backward.
    """
    return direction.given([alias(t) for t in direction.tensors])


def alias(tensor: Tensor | None) -> Tensor | None:
    """Return an alias; of an inference tensor itself, which as an alias would no longer ask for its gradient."""
    return tensor if tensor is None or tensor.is_inference() else tensor.view_as(tensor)


def keep(ctx: Any, direction: Direction, tensors: Sequence[Tensor | None], *others: Tensor) -> None:
    """Have autograd keep for `go_back` a direction, by its tensors, and others that its way back reads.

    Of a pair it keeps the joined tensors, too: that who writes on one before backward is refused, as by torch.nn.
    """
    ctx.set_materialize_grads(False)
    empty = {"input": None, "weights": None, "own": (), "state": (), "reset_to": (), "joined": ()}
    ctx.direction = direction._replace(**empty)  # type: ignore[arg-type]
    ctx.ends = len(tensors), len(tensors) + len(others)
    ctx.save_for_backward(*tensors, *others, *direction.joined)


def go_back(ctx: Any, by_hand: ByHand, grads: Sequence[Tensor | None], needed: Sequence[bool]) -> Grads:
    """Return the gradients of `direction.tensors`: by hand, or by the readable path where that can't be seen through.

    by_hand  (direction, others, grads, needed) -> what is returned here, with the direction and others that were kept
    """
    saved = ctx.saved_tensors
    if all(grad is None for grad in grads):  # nothing arrives, as behind a function that stops gradients
        return [None] * len(needed)
    if checks.autocasting(saved[0]):
        with torch.autocast(saved[0].device.type, enabled=False):
            return go_back(ctx, by_hand, grads, needed)
    of_direction, of_others = ctx.ends
    direction, others = ctx.direction.given(saved[:of_direction]), saved[of_direction:of_others]
    # Gradients are enabled in here only if these ones are to be differentiated, too.
    if torch.is_grad_enabled() or not plain(grads, direction.input):
        return differentiate(direction, grads, needed, torch.is_grad_enabled())
    found = by_hand(direction, others, grads, needed)
    if direction.pair and not pair.finite(found):
        # An infinity of one, times the zeros between the two, is a NaN in the other.
        return differentiate(direction, grads, needed, again=False)
    return found


def differentiate(direction: Direction, grads: Sequence[Tensor | None], needed: Sequence[bool], again: bool) -> Grads:
    """Return what `Loop.backward` returns, by the readable path: so that it can be batched, or differentiated again."""
    with torch.enable_grad():
        direction = aliased(direction)  # so that a tensor given twice has two gradients
        unroll = pair.unroll_apart if direction.pair else recurrence.unroll
        output, state = unroll(direction)
        given = [(y, g) for y, g in zip((output, *state), grads, strict=True) if g is not None and y.requires_grad]
        wanted = [t for t, need in zip(direction.tensors, needed, strict=True) if need and t is not None]
        ys, gs = zip(*given, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needed]


@by_ends
def unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction over all of its steps, as `recurrence.unroll` does, with a graph if any tensor wants one."""
    if not recorded(direction):
        return Loop(direction).forward(None)
    again = direction.checkpoint_every is not None and not KERNELS[direction.equation.step].tapeless
    outputs, direction = [], aliased(direction)
    state = direction.state
    for segment in segments(direction) if again else [direction]:
        segment = segment._replace(state=state)
        # Where steps don't lie on end, as with batch_first, what is kept is a copy, as torch.nn's is, so that a caller
        # may write on his batch. What is computed with lies as it did, for the last bits in float64.
        input, *others = segment.tensors
        output, *state = ThroughTime.apply(segment, again, input.contiguous(), *others)  # type: ignore
        outputs.append(output)
    if direction.reverse:
        outputs.reverse()
    return torch.cat(outputs) if again else outputs[0], tuple(state)


def segments(direction: Direction) -> list[Direction]:
    """Cut a direction at its checkpoints, in the order in which it takes the steps. Their state is yet to come."""
    every = direction.checkpoint_every or direction.length
    if direction.batch_sizes is None:
        cut = [direction._replace(input=input) for input in torch.split(direction.input, every)]
    else:
        sizes = torch.split(direction.batch_sizes, every)
        inputs = direction.input.split_with_sizes([int(part.sum()) for part in sizes])
        cut = [direction._replace(input=input, batch_sizes=part) for input, part in zip(inputs, sizes, strict=True)]
    return cut[::-1] if direction.reverse else cut
