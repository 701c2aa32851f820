"""The compiled path: what torch.compile and torch.export see in place of a loop, which they would unroll.

    compile   one operator a direction, `rnnkit::unroll`: opaque, so one small graph serves every length and batch
    export    torch's `scan` over the same equation: plain ATen, so the artefact runs where there is no rnnkit

Neither graph grows with the length.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, fast, ragged, recurrence, stack
from .equations import KNOWN, State
from .stack import Direction, Results

scan: Any
try:
    from torch._higher_order_ops import scan
except ImportError:  # a prototype of torch's: without it, export takes the loop, and the artefact is for one length
    scan = None
#: Whether a transform of torch.func is at work. Where torch doesn't tell, one is taken to be.
transforming: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def exporting() -> bool:
    """Say whether torch.export traces. Up to torch 2.11 its own answer is True of whatever is traced; the flag by which
    later ones answer is there, too."""
    return torch.compiler.is_exporting() and getattr(torch.compiler, "_is_exporting_flag", True)


def layer(directions: Sequence[Direction]) -> Results:
    """Run a layer in a graph, which can't know what batch sizes hold.

    Inside a transform of torch.func it is the readable loop, unrolled: the operator has a backward and no other rule.
    So is that of an equation which draws random numbers, for the operator's backward would draw others.
    Raises NotImplementedError for an export of a packed input.
    """
    if exporting():
        if directions[0].batch_sizes is not None:
            raise NotImplementedError("can't export a packed input, whose batch sizes are data: pad it instead")
        return stack.layer(recurrence.unroll if scan is None else scan_unroll)(directions)
    unrolled = transforming() or directions[0].equation.random
    return stack.layer(recurrence.unroll if unrolled else unroll)(directions)


# Export -------------------------------------------------------------------------------------------------------------


def scan_unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction of a padded batch over all steps, as `recurrence.unroll` does, by a loop inside the graph.

    The loop is cut off from autograd. Raises RuntimeError where L is 0.
    """
    # Autograd of scan is not to be had: it fails where a step keeps a size for its backward, as GRU's does.
    direction = direction.given([t if t is None else t.detach() for t in direction.tensors])
    weights = direction.weights
    state = tuple(s.clone() for s in direction.state)  # nor does it take a view of a view
    nothing: Any = None  # what a step reads may have no size that is free
    step = direction._replace(input=nothing, state=(), lengths=None, resets=None)
    if direction.ragged:
        step = step._replace(reset_to=tuple(s.clone() for s in direction.reset_to))
        masks = recurrence.masks(direction)
        igates = recurrence.masked_igates(direction, masks.there)
        state, output = scan(partial(_masked, step), state, (igates, *masks), reverse=direction.reverse)
        return output, state
    igates = F.linear(direction.input, weights.w_ih, weights.b_ih)
    state, output = scan(partial(_scanned, step), state, igates, reverse=direction.reverse)
    return output, state


def _scanned(direction: Direction, state: State, igates: Tensor) -> tuple[State, Tensor]:
    state = recurrence.stepper(direction)(igates, state)
    return state, state[0].clone()  # scan wants no two results to be one tensor


def _masked(direction: Direction, state: State, step: tuple[Tensor, Tensor, Tensor]) -> tuple[State, Tensor]:
    igates, there, anew = step
    return recurrence.masked_step(direction, state, igates, recurrence.Masks(there, anew))


# Compile ------------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """The arguments of the operator `rnnkit::unroll`: a direction, in what an operator can take."""

    tensors: Sequence[Tensor]  # those of `Direction.tensors` that are not None
    needed: Sequence[bool]  # which of these want a gradient
    there: Sequence[bool]  # which of all are not None
    batch_sizes: Tensor | None
    equation: str  # its key
    reverse: bool
    path: str  # readable where the fast one doesn't serve
    checkpoint_every: int | None
    autocast: torch.dtype | None
    lengths: Tensor | None
    resets: Tensor | None

    @property
    def direction(self) -> Direction:
        """The direction again."""
        nothing: Any = None
        settings = self.batch_sizes, self.reverse, self.path, self.checkpoint_every, self.lengths, self.resets
        return Direction(KNOWN[self.equation], nothing, (), nothing, *settings).given(
            self.among_all(self.tensors, None)
        )

    def among_all(self, values: Sequence[Any], other: Any) -> list[Any]:
        """Return for each of all tensors its value, of `values` for those that are there, or `other`."""
        of_these = iter(values)
        return [next(of_these) if there else other for there in self.there]

    @property
    def taped(self) -> bool:
        """Whether forward hands a tape to backward; else that takes all steps once more. A ragged one's has a size
        that no graph knows."""
        ragged = self.lengths is not None or self.resets is not None
        return self.path != "readable" and any(self.needed) and self.checkpoint_every is None and not ragged

    @property
    def packs(self) -> bool:
        """Whether rows are packed by lengths and resets. Autocast's dtypes would depend on what these are."""
        known = all(t is None or t.device.type == "cpu" for t in (self.lengths, self.resets))
        return self.direction.ragged and known and self.autocast is None

    def run(self) -> list[Tensor]:
        """Return the output and the state after the last step, with a graph where gradients are enabled."""
        direction = self.direction
        region: AbstractContextManager[Any] = nullcontext()
        if self.autocast is not None:  # the graph is run outside of the autocast region that it was traced in
            region = torch.autocast(self.tensors[0].device.type, self.autocast, cache_enabled=False)
        with region:
            output, state = ragged.unroll(direction, self.unroll) if self.packs else self.unroll(direction)
        return [output, *state]

    def unroll(self, direction: Direction) -> tuple[Tensor, State]:
        """Take the direction over all steps, packed if rows are: then there may be none."""
        by_hand = self.path != "readable" and not direction.ragged and direction.input.numel() > 0
        by_hand = by_hand and (any(self.needed) or fast.pays(direction))
        return fast.unroll(direction) if by_hand else recurrence.unroll(direction)


def unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction over all steps by the operator."""
    tensors = [t for t in direction.tensors if t is not None]
    needed = [torch.is_grad_enabled() and t.requires_grad for t in tensors]
    if any(needed):  # what is kept for backward of steps that don't lie on end is a copy, as in `fast.unroll`
        tensors[0] = tensors[0].contiguous()
    output, *rest = torch.ops.rnnkit.unroll(
        tensors,
        needed,
        [t is not None for t in direction.tensors],
        direction.batch_sizes,
        direction.equation.key,
        direction.reverse,
        direction.path if by_hand(direction) else "readable",
        direction.checkpoint_every,
        torch.get_autocast_dtype(direction.input.device.type) if checks.autocasting(direction.input) else None,
        direction.lengths,
        direction.resets,
    )
    return output, tuple(rest[: len(direction.state)])


def by_hand(direction: Direction) -> bool:
    """Say whether the fast path can serve, by what a graph knows: it is asked for plain tensors alone."""
    input, tensors = direction.input, [t for t in direction.tensors if t is not None]
    return (
        direction.path != "readable"
        and direction.equation.step in fast.KERNELS
        and fast.serves(input)
        and fast.fits(direction.equation, input.size(-1), direction.weights, direction.state)
        and all(t.dtype == input.dtype and t.device == input.device for t in tensors)
        and (direction.weights.w_hr is None or fast.KERNELS[direction.equation.step].projects)
        and input.numel() > 0
        and not checks.autocasting(input)
    )


SCHEMA = (
    "Tensor[] tensors, bool[] needed, bool[] there, Tensor? batch_sizes, str equation, bool reverse, str path,"
    " int? checkpoint_every, ScalarType? autocast, Tensor? lengths, Tensor? resets) -> Tensor[]"
)


@torch.library.custom_op("rnnkit::unroll", mutates_args=(), schema=f"({SCHEMA}")
def _unroll(*args: Any) -> list[Tensor]:
    """Return the output, the state after the last step and, if there is a tape, a copy of the output and the tape.

    The caller may write on the output: backward reads the copy. One made around the operator a compiler leaves out.
    """
    call = Call(*args)
    if call.batch_sizes is not None:
        checks.check_packed(call.tensors[0], call.batch_sizes)
    if call.lengths is not None and call.lengths.device.type == "cpu":
        checks.check_length_values(call.lengths, call.direction.length)
    if call.taped:
        tape = fast.new_tape(call.direction)
        output, state = fast.Loop(call.direction).forward(tape)
        return [output, *state, output.clone(), *tape]
    output, *rest = call.run()
    return [output.contiguous(), *(s.clone() for s in rest)]  # an operator returns nothing that it was given


@_unroll.register_fake
def _(*args: Any) -> list[Tensor]:
    call = Call(*args)
    input, *_ = call.tensors
    state = call.direction.state
    results = [input.new_empty(*input.shape[:-1], state[0].size(-1)), *(s.new_empty(s.shape) for s in state)]
    if call.taped:
        return [*results, torch.empty_like(results[0]), *fast.new_tape(call.direction)]
    if call.autocast is not None:  # what becomes of the dtypes, one step of one row tells
        states = len(state) + len(call.direction.reset_to)
        row = [
            input.new_empty(1, 1, input.size(-1)),
            *call.tensors[1:-states],
            *(s[:1] for s in call.tensors[-states:]),
        ]
        lengths = None if call.lengths is None else call.lengths[:1]
        resets = None if call.resets is None else call.resets[:1, :1]
        step = call._replace(tensors=row, batch_sizes=None, lengths=lengths, resets=resets)
        dtypes = [y.dtype for y in step.run()]
        results = [result.to(dtype) for result, dtype in zip(results, dtypes, strict=True)]
    return results


@torch.library.custom_op(
    "rnnkit::unroll_backward", mutates_args=(), schema=f"(Tensor[] grads, Tensor[] results, {SCHEMA}"
)
def _unroll_backward(grads: list[Tensor], results: list[Tensor], *args: Any) -> list[Tensor]:
    """Return the gradients of those tensors of the call that are needed, in memory of their own."""
    call = Call(*args)
    if call.taped:
        output, *tape = results
        needed = call.among_all(call.needed, False)
        by_place = fast.Loop(call.direction).backward(output, tape, grads, needed)
        return [d.contiguous() for d, need in zip(by_place, needed, strict=True) if need and d is not None]
    # What forward computed is computed once more, with a graph: operators hand on tensors, and no graph.
    with torch.inference_mode(False), torch.enable_grad():
        variables = [t.detach().requires_grad_(need) for t, need in zip(call.tensors, call.needed, strict=True)]
        pairs = zip(call._replace(tensors=variables).run(), grads, strict=True)
        ys, dys = zip(*((y, dy) for y, dy in pairs if y.requires_grad), strict=True)
        found = torch.autograd.grad(ys, [v for v in variables if v.requires_grad], dys, materialize_grads=True)
    return [d.clone(memory_format=torch.contiguous_format) for d in found]


@_unroll_backward.register_fake
def _(grads: list[Tensor], results: list[Tensor], *args: Any) -> list[Tensor]:
    call = Call(*args)
    return [t.new_empty(t.shape) for t, need in zip(call.tensors, call.needed, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    call = Call(*inputs)
    ctx.states = len(call.direction.state)
    ctx.call = call._replace(tensors=(), batch_sizes=None, lengths=None, resets=None)
    ctx.save_for_backward(*call.tensors, call.batch_sizes, call.lengths, call.resets, *output[1 + ctx.states :])


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    saved, n = ctx.saved_tensors, len(ctx.call.needed)
    data = dict(zip(("batch_sizes", "lengths", "resets"), saved[n : n + 3], strict=True))
    call = ctx.call._replace(tensors=saved[:n], **data)
    found = iter(torch.ops.rnnkit.unroll_backward(grads[: 1 + ctx.states], saved[n + 3 :], *call))
    return [next(found) if need else None for need in call.needed], *[None] * (len(call) - 1)


_unroll.register_autograd(_backward, setup_context=_save)
