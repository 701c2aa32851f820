"""The compiled path: what torch.compile and torch.export see, in place of a loop that they would unroll step by step.

    compile   one operator a layer, `rnnkit::layer`: opaque, so one small graph serves every length and batch
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

from . import checks, fast, recurrence
from .equations import EQUATIONS, Equation, State
from .stack import Results, Stack, Weights, run

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


def stack(stack: Stack) -> Results:
    """Run a stack in a graph, which can't know what its batch sizes hold.

    Inside a transform of torch.func it is the readable loop, unrolled: the operator has a backward and no other rule.
    Raises NotImplementedError for an export of a packed input.
    """
    if exporting():
        if stack.batch_sizes is not None:
            raise NotImplementedError("can't export a packed input, whose batch sizes are data: pad it instead")
        return recurrence.stack(stack) if scan is None else run(stack, partial(recurrence.layer, unroll=scan_unroll))
    return recurrence.stack(stack) if transforming() else run(stack, layer)


# Export -------------------------------------------------------------------------------------------------------------


def scan_unroll(layer: Stack, direction: int) -> tuple[Tensor, State]:
    """Take one direction of a padded layer over all steps, as `recurrence.unroll` does, by a loop inside the graph.

    The loop is cut off from autograd. Raises RuntimeError where L is 0.
    """
    # Autograd of scan is not to be had: it fails where a step keeps a size for its backward, as GRU's does.
    weights = Weights._make(weight if weight is None else weight.detach() for weight in layer.weights[direction])
    state = tuple(s.detach().clone() for s in layer.states[direction])  # nor does it take a view of a view
    igates = F.linear(layer.input.detach(), weights.w_ih, weights.b_ih)
    state, output = scan(partial(_scanned, layer.equation, weights), state, igates, reverse=direction == 1)
    return output, state


def _scanned(equation: Equation, weights: Weights, state: State, igates: Tensor) -> tuple[State, Tensor]:
    state = recurrence.step(equation, igates, state, weights)
    return state, state[0].clone()  # scan wants no two results to be one tensor


# Compile ------------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """The arguments of the operator `rnnkit::layer`: a layer's record, in what an operator can take."""

    tensors: Sequence[Tensor]  # those of `Stack.tensors` that are not None
    needed: Sequence[bool]  # which of these want a gradient
    there: Sequence[bool]  # which of all are not None
    batch_sizes: Tensor | None
    mode: str
    bidirectional: bool
    path: str
    checkpoint_every: int | None
    autocast: torch.dtype | None

    @property
    def layer(self) -> Stack:
        """The layer's record again."""
        nothing: Any = None
        settings = self.batch_sizes, self.bidirectional, 0.0, self.path, self.checkpoint_every
        return Stack(EQUATIONS[self.mode], nothing, [], [], *settings).given(self.among_all(self.tensors, None))

    def among_all(self, values: Sequence[Any], other: Any) -> list[Any]:
        """Return for each of all tensors its value, of `values` for those that are there, or `other`."""
        of_these = iter(values)
        return [next(of_these) if there else other for there in self.there]

    @property
    def taped(self) -> bool:
        """Whether the layer is run by the fast path and its tape is handed to backward."""
        return self.path != "readable" and any(self.needed)

    def region(self) -> AbstractContextManager[Any]:
        """Return the autocast region that the graph was traced in: it is run outside of it."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.tensors[0].device.type, self.autocast, cache_enabled=False)


def layer(layer: Stack) -> Results:
    """Run a layer by the operator."""
    graded, tensors = torch.is_grad_enabled(), [t for t in layer.tensors if t is not None]
    call = Call(
        tensors,
        [graded and t.requires_grad for t in tensors],
        [t is not None for t in layer.tensors],
        layer.batch_sizes,
        next(mode for mode, known in EQUATIONS.items() if known is layer.equation),
        layer.bidirectional,
        layer.path if by_hand(layer) else "readable",
        layer.checkpoint_every,
        torch.get_autocast_dtype(layer.input.device.type) if checks.autocasting(layer.input) else None,
    )
    output, *rest = torch.ops.rnnkit.layer(*call)
    S = len(layer.equation.state)
    return output, [tuple(rest[k * S : (k + 1) * S]) for k in range(layer.directions)]


def by_hand(layer: Stack) -> bool:
    """Say whether the fast path can serve, by what a graph knows: it is asked only for plain tensors."""
    return (
        layer.path != "readable"
        and layer.equation.step in fast.KERNELS
        and layer.input.dtype in fast.DTYPES
        and all(t is None or (t.dtype == layer.input.dtype and t.device.type == "cpu") for t in layer.tensors)
        and layer.input.numel() > 0
        and not checks.autocasting(layer.input)
    )


@torch.library.custom_op(
    "rnnkit::layer",
    mutates_args=(),
    schema="(Tensor[] tensors, bool[] needed, bool[] there, Tensor? batch_sizes, str mode, bool bidirectional, str path,"
    " int? checkpoint_every, ScalarType? autocast) -> Tensor[]",
)
def _layer(*args: Any) -> list[Tensor]:
    """Return the output, the states and, if one is kept, the tape."""
    call = Call(*args)
    layer = call.layer
    if call.batch_sizes is not None:
        checks.check_packed(layer.input, call.batch_sizes)
    if call.taped:
        output, finals, tape = fast.forward(layer, keep=True, pairs=False)
        return [output, *finals, *tape]
    with call.region():
        by_hand = call.path != "readable" and fast.pays(layer)
        output, states = fast.layer(layer) if by_hand else recurrence.layer(layer)
    return [output.contiguous(), *(s.clone() for state in states for s in state)]  # nothing that it was given


@_layer.register_fake
def _(*args: Any) -> list[Tensor]:
    call = Call(*args)
    layer, states = call.layer, [s for state in call.layer.states for s in state]
    output = layer.input.new_empty(*layer.input.shape[:-1], layer.directions * states[0].size(-1))
    results = [output, *(torch.empty_like(s, memory_format=torch.contiguous_format) for s in states)]
    if call.taped:
        return results + fast.new_tape(layer)
    if call.autocast is not None:  # what becomes of the dtypes, one step of one row tells
        row = layer._replace(input=output.new_empty(1, 1, layer.input.size(-1)), batch_sizes=None)
        with call.region():
            y, finals = recurrence.layer(row._replace(states=[tuple(s[:1] for s in state) for state in layer.states]))
        dtypes = [y.dtype, *(s.dtype for state in finals for s in state)]
        results = [result.to(dtype) for result, dtype in zip(results, dtypes, strict=True)]
    return results


@torch.library.custom_op(
    "rnnkit::layer_backward",
    mutates_args=(),
    schema="(Tensor[] grads, Tensor[] results, Tensor[] tensors, bool[] needed, bool[] there, Tensor? batch_sizes, str mode,"
    " bool bidirectional, str path, int? checkpoint_every, ScalarType? autocast) -> Tensor[]",
)
def _layer_backward(grads: list[Tensor], results: list[Tensor], *args: Any) -> list[Tensor]:
    """Return the gradients of those tensors of the call that are needed, in memory of their own."""
    call = Call(*args)
    needed = call.among_all(call.needed, False)
    if call.taped:
        output, *tape = results[0], *results[len(grads) :]
        found = fast.backward(call.layer, output, tape, grads, needed, pairs=False)
    else:  # what forward computed is computed once more: the readable path has its graph, and a graph can't be kept
        with torch.inference_mode(False), torch.enable_grad(), call.region():
            found = fast.differentiate(call.layer, grads, needed, again=False)
    return [
        torch.zeros_like(t) if grad is None else grad.clone(memory_format=torch.contiguous_format)
        for t, grad, need in zip(call.layer.tensors, found, needed, strict=True)
        if need and t is not None
    ]


@_layer_backward.register_fake
def _(grads: list[Tensor], results: list[Tensor], *args: Any) -> list[Tensor]:
    call = Call(*args)
    pairs = zip(call.tensors, call.needed, strict=True)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t, need in pairs if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    call = Call(*inputs)
    ctx.call = call._replace(tensors=(), batch_sizes=None)
    ctx.save_for_backward(*call.tensors, call.batch_sizes, *output)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    saved, n = ctx.saved_tensors, len(ctx.call.needed)
    call = ctx.call._replace(tensors=saved[:n], batch_sizes=saved[n])
    results = saved[n + 1 :]
    counted = 1 + sum(len(state) for state in call.layer.states)
    found = iter(torch.ops.rnnkit.layer_backward(grads[:counted], results, *call))
    return [next(found) if need else None for need in call.needed], *[None] * (len(call) - 1)


_layer.register_autograd(_backward, setup_context=_save)
