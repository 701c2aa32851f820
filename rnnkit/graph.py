"""What torch.compile and torch.export see of a stack, in place of a loop that they would unroll step by step.

    compile   one operator, `rnnkit::stack`: opaque, so one small graph serves every length and batch
    export    torch's `scan` over the same equation: plain ATen, so the artefact runs where there is no rnnkit

Neither graph grows with the length.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from . import bptt, checks, recurrence
from .equations import EQUATIONS, Equation, State
from .recurrence import Weights

scan: Any
try:
    from torch._higher_order_ops import scan
except ImportError:  # a prototype of torch's: without it, export takes the loop, and the artefact is for one length
    scan = None
#: Whether a transform of torch.func is at work. Where torch doesn't tell, one is taken to be.
transforming: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def stack(
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Tensor | None,
    dropout: float,
    bidirectional: bool,
    path: str = "readable",
    checkpoint_every: int | None = None,
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

    if transforming():
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        return recurrence.stack(equation, input, states, weights, sizes, dropout, bidirectional)

    mode = next(mode for mode, known in EQUATIONS.items() if known is equation)
    autocast = torch.get_autocast_dtype(input.device.type) if checks.autocasting(input) else None
    D = 2 if bidirectional else 1
    span = D if dropout else len(weights)  # dropout is drawn by the graph, between operators of one layer each
    output, finals = input, []
    for k in range(0, len(weights), span):
        if k:
            output = F.dropout(output, dropout)
        flat_states = [s for state in states[k : k + span] for s in state]
        flat_weights = [w for weight in weights[k : k + span] for w in weight if w is not None]
        tensors = [output, *flat_states, *flat_weights]
        needed = [torch.is_grad_enabled() and t.requires_grad for t in tensors]
        _, output, *flat_finals = torch.ops.rnnkit.stack(
            output,
            flat_states,
            flat_weights,
            batch_sizes,
            needed,
            mode,
            bidirectional,
            path,
            checkpoint_every,
            autocast,
        )
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
    state = recurrence.step(equation, igates, recurrence.hgates(weights), state, weights.w_hr)
    return state, state[0].clone()  # scan wants no two results to be one tensor


#: Results, and the tensors that they may be differentiated by.
Record: TypeAlias = tuple[list[Tensor], list[Tensor]]


class Call(NamedTuple):
    """The arguments of the operator `rnnkit::stack`, which runs layers with no dropout between them."""

    input: Tensor
    states: Sequence[Tensor]  # flat
    weights: Sequence[Tensor]  # flat, without those that are None
    batch_sizes: Tensor | None
    needed: Sequence[bool]  # which of (input, *states, *weights) want a gradient
    mode: str
    bidirectional: bool
    path: str
    checkpoint_every: int | None
    autocast: torch.dtype | None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.input, *self.states, *self.weights]

    def given(self, tensors: Sequence[Tensor]) -> "Call":
        """The same call of other tensors."""
        split = 1 + len(self.states)
        return self._replace(input=tensors[0], states=tensors[1:split], weights=tensors[split:])

    def run(self) -> list[Tensor]:
        """Output and states."""
        equation = EQUATIONS[self.mode]
        states = _grouped(self.states, len(equation.state))
        weights = [_weights(group) for group in _grouped(self.weights, len(self.weights) // len(states))]
        sizes = None if self.batch_sizes is None else self.batch_sizes.tolist()
        arguments = (equation, self.input, states, weights, sizes, 0.0, self.bidirectional, self.checkpoint_every)
        # The graph is run outside of the autocast region that it was traced in.
        device = self.input.device.type
        autocast = (
            nullcontext() if self.autocast is None else torch.autocast(device, self.autocast, cache_enabled=False)
        )
        with autocast:
            output, finals = bptt.stack_by(self.path, checks.plain(self.tensors, self.input.dtype), *arguments)
        return [output, *(s for final in finals for s in final)]

    def record(self) -> Record:
        # Autograd is switched off inside an operator; what is not in inference mode has it again.
        with torch.inference_mode(False), torch.enable_grad():
            pairs = zip(self.tensors, self.needed, strict=True)
            variables = [tensor.detach().requires_grad_(need) for tensor, need in pairs]
            return self.given(variables).run(), [v for v in variables if v.requires_grad]


#: What forward calls recorded for their backward, by ticket, as long as that lives. A graph holds tensors and nothing
#: else, so it is handed a tensor to show again; should it show another, the forward is computed once more.
RECORDS: dict[int, Record] = {}
_tickets = itertools.count()


@torch.library.custom_op(
    "rnnkit::stack",
    mutates_args=(),
    schema="(Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, bool[] needed, str mode,"
    " bool bidirectional, str path, int? checkpoint_every, ScalarType? autocast) -> Tensor[]",
)
def _stack(*args: Any) -> list[Tensor]:
    """Returns a ticket, output, and states."""
    call = Call(*args)
    if call.batch_sizes is not None:
        checks.check_packed(call.input, call.batch_sizes)
    number = next(_tickets)
    ticket = torch.tensor(number)
    if any(call.needed):
        RECORDS[number] = call.record()
        weakref.finalize(ticket, RECORDS.pop, number, None)
        results = RECORDS[number][0]
    else:
        results = call.run()
    output, *finals = (y.detach() for y in results)
    return [ticket, output.contiguous(), *(s.clone() for s in finals)]  # an operator returns nothing it was given


@_stack.register_fake
def _(*args: Any) -> list[Tensor]:
    call = Call(*args)
    input, states = call.input, call.states
    shapes = [(*input.shape[:-1], states[0].size(-1) * (2 if call.bidirectional else 1)), *(s.shape for s in states)]
    results = [input, *states]
    if call.autocast is not None:  # what becomes of the dtypes, one step of one row tells
        row = input.new_empty(1, 1, input.size(-1))
        results = call._replace(input=row, states=[s[:1] for s in states], batch_sizes=None).run()
    ticket = torch.empty((), dtype=torch.int64)
    return [ticket, *(input.new_empty(shape, dtype=y.dtype) for shape, y in zip(shapes, results, strict=True))]


@torch.library.custom_op(
    "rnnkit::stack_backward",
    mutates_args=(),
    schema="(Tensor ticket, Tensor[] grads, Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes,"
    " bool[] needed, str mode, bool bidirectional, str path, int? checkpoint_every, ScalarType? autocast) -> Tensor[]",
)
def _stack_backward(ticket: Tensor, grads: Sequence[Tensor], *args: Any) -> list[Tensor]:
    """The gradients of those tensors of the call that are needed."""
    results, variables = RECORDS.get(int(ticket)) or Call(*args).record()
    pairs = [(y, grad) for y, grad in zip(results, grads, strict=True) if y.requires_grad]
    ys, gs = zip(*pairs, strict=True)
    found = torch.autograd.grad(ys, variables, gs, retain_graph=True, materialize_grads=True)
    return [grad.clone(memory_format=torch.contiguous_format) for grad in found]


@_stack_backward.register_fake
def _(ticket: Tensor, grads: Sequence[Tensor], *args: Any) -> list[Tensor]:
    call = Call(*args)
    pairs = zip(call.tensors, call.needed, strict=True)
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor, need in pairs if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    call = Call(*inputs)
    nothing: Any = None
    ctx.call = call._replace(batch_sizes=nothing).given([nothing] * len(call.tensors))
    ctx.save_for_backward(output[0], call.batch_sizes, *call.tensors)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    ticket, batch_sizes, *tensors = ctx.saved_tensors
    call = ctx.call.given(tensors)._replace(batch_sizes=batch_sizes)
    found = iter(torch.ops.rnnkit.stack_backward(ticket, grads[1:], *call))
    by_place = [next(found) if need else None for need in call.needed]
    grad_call = call._replace(batch_sizes=None).given(by_place)
    return (grad_call.input, grad_call.states, grad_call.weights, *[None] * (len(call) - 3))


_stack.register_autograd(_backward, setup_context=_save)


def _grouped(tensors: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return [tuple(tensors[k : k + size]) for k in range(0, len(tensors), size)]


def _weights(tensors: Sequence[Tensor]) -> Weights:
    """Weights again of those that were not None: two without biases, four with, and one more with a projection."""
    b_ih, b_hh = tensors[2:4] if len(tensors) >= 4 else (None, None)
    return Weights(tensors[0], tensors[1], b_ih, b_hh, tensors[-1] if len(tensors) % 2 else None)
