"""The fast path: layers over time by the kernels, in place, and differentiated by hand.

    Direction   one direction of one layer: its steps forward, and back through time
    stack       as recurrence.stack, to within rounding; in float64 to the bit
    serves      whether a call may go this way

Time is cut into spans of steps. Forward, a span forms its igates in one product and then takes its steps on one tape.
Backward, all local derivatives of a span are formed at once; the loop over its steps is then one product and a few
operations in place, and each weight's gradient is one product over all of the span's rows.

A tape is kept until its derivatives are taken or, with `checkpoint_every`, written again from the state before its
span: then what is kept is a state every so many steps, and one tape at a time.

Packed rows are the general case: of S rows step t has sizes[t], and in a padded batch all sizes are N.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

from . import matmul, recurrence
from .equations import Equation, State
from .kernels import EXACT, KERNELS, Rows, arithmetic
from .recurrence import Weights

ROWS = 256  # of a span: its products run at nearly full rate, its sums stay short and its tape in the cache


class Span(NamedTuple):
    """Consecutive steps, in the order of time, and where their rows are."""

    sizes: list[int]
    rows: slice


def spans(sizes: list[int], steps: int | None) -> list[Span]:
    """All steps, so many at a time; unless said otherwise as many as have about ROWS rows."""
    steps = steps or max(1, ROWS * len(sizes) // sum(sizes))
    result, stop = [], 0
    for t in range(0, len(sizes), steps):
        part = sizes[t : t + steps]
        start, stop = stop, stop + sum(part)
        result.append(Span(part, slice(start, stop)))
    return result


class Carry:
    """The state from step to step. Rows without a step now wait: their sequence is over, or is yet to begin."""

    def __init__(self, state: State, waiting: State) -> None:
        self.state, self.waiting = state, waiting

    def resize(self, rows: int) -> State:
        """The state with so many rows."""
        now = len(self.state[0])
        if rows < now:
            self.waiting = tuple(torch.cat((s[rows:], w)) for s, w in zip(self.state, self.waiting, strict=True))
            self.state = tuple(s[:rows] for s in self.state)
        elif rows > now:
            more = rows - now
            self.state = tuple(torch.cat((s, w[:more])) for s, w in zip(self.state, self.waiting, strict=True))
            self.waiting = tuple(w[more:] for w in self.waiting)
        return self.state

    def whole(self) -> State:
        """All rows, in memory of their own."""
        return tuple(torch.cat(pair) for pair in zip(self.state, self.waiting, strict=True))


class Kept(NamedTuple):
    """What a span keeps for its way back."""

    state: State  # before it
    m: Tensor | None  # its output before projection, if it was projected
    tape: Rows


class Direction:
    """One direction of one layer over rows (S, H_in), with outputs (S, H_out)."""

    def __init__(
        self,
        equation: Equation,
        input: Tensor,
        sizes: list[int],
        state: State,
        weights: Weights,
        reverse: bool,
        checkpoint_every: int | None,
    ) -> None:
        self.kernel = KERNELS[equation]
        self.input, self.sizes, self.state, self.weights, self.reverse = input, sizes, state, weights, reverse
        self.rewrites = checkpoint_every is not None and not self.kernel.tapeless
        self.spans = self.ordered(spans(sizes, checkpoint_every if self.rewrites else None))
        self.N, self.cells = len(state[0]), weights.w_ih.size(0) // len(equation.gates)  # H_cell

    def ordered(self, steps: Sequence[Any]) -> Sequence[Any]:
        """What is in the order of time, in that of this direction; and the other way round."""
        return steps[::-1] if self.reverse else steps

    def carry(self, state: State) -> Carry:
        """From this state of the rows of some step on. Of rows that come later, the first state waits."""
        return Carry(state, tuple(s[len(state[0]) :] for s in self.state))

    def forward(self, output: Tensor, keep: bool) -> tuple[State, list[Kept]]:
        """Write the output. Return the state after the last step and what each span is to keep."""
        self.prepare()
        kept: list[Kept] = []
        first = self.ordered(self.sizes)[0]
        carry = self.carry(tuple(s[:first] for s in self.state))
        for span in self.spans:
            state = tuple(s.clone() for s in carry.resize(self.ordered(span.sizes)[0])) if keep else ()
            m, tape = self.run(span, carry, output[span.rows])
            if keep:
                kept.append(Kept(state, *((None, ()) if self.rewrites else (m, () if self.kernel.tapeless else tape))))
        return carry.whole(), kept

    def prepare(self) -> None:
        """What all spans share on their way forward."""
        _, w_hh, b_ih, b_hh, w_hr = self.weights
        # hgates can be accumulated on the igates as they are formed, but not in ATen's order, and not by oneDNN.
        accumulate = self.input.dtype == torch.float32 and not matmul.by_onednn(self.N, *w_hh.shape, w_hh.dtype)
        self.w_t = w_hh.t() if accumulate else None
        self.bias = self.kernel.bias(b_ih, b_hh) if accumulate and b_ih is not None and b_hh is not None else b_ih
        self.hgates = matmul.repeated(self.N, w_hh, b_hh)
        self.project = matmul.repeated(self.N, w_hr) if w_hr is not None else None
        self.arithmetic = arithmetic(self.input.dtype, self.N * self.cells)
        # The bits of a product may depend on how many rows it has, so to be exact it has all of them, as ATen's.
        exact = self.arithmetic is EXACT and not self.rewrites
        self.igates = matmul.linear(self.input, self.weights.w_ih, self.bias) if exact else None

    def run(self, span: Span, carry: Carry, output: Tensor) -> tuple[Tensor | None, Rows]:
        """Take the steps of a span and carry the state along. Write the output; return what it was before projection,
        if it was projected, and the tape."""
        w_ih, _, _, b_hh, _ = self.weights
        whole, rows = self.igates, span.rows
        igates = whole[rows] if whole is not None else matmul.linear(self.input[rows], w_ih, self.bias)
        tape = self.kernel.tape(igates, b_hh)
        m = output.new_empty(len(output), self.cells) if self.project else None
        steps = iter(self.steps(span, output, output if m is None else m, *self.kernel.views(tape)))
        with torch.inference_mode():  # nothing of it is new to autograd, and calls are cheaper
            for n, stretch in self.stretches(span):
                carry.state = self.kernel.forward(
                    carry.resize(n), islice(steps, stretch), self.hgates, self.w_t, self.project, self.arithmetic
                )
        return m, tape

    def steps(self, span: Span, *rows: Tensor) -> Sequence[tuple[Tensor, ...]]:
        """For each step, in this direction's order, its part of these rows."""
        return self.ordered(tuple(zip(*(r.split_with_sizes(span.sizes) for r in rows), strict=True)))

    def stretches(self, span: Span) -> list[tuple[int, int]]:
        """Numbers of rows, and how many steps on end have them, in this direction's order."""
        return [(n, len(list(steps))) for n, steps in groupby(self.ordered(span.sizes))]

    def before(self, span: Span, state: State, after: State) -> State:
        """The states before the steps of a span, in rows like those after them, from the one before them all."""
        carry, states = self.carry(state), []
        for n, s in zip(self.ordered(span.sizes), self.steps(span, *after), strict=True):
            states.append(carry.resize(n))
            carry.state = s
        return tuple(torch.cat(rows) for rows in zip(*self.ordered(states), strict=True))

    def backward(
        self,
        output: Tensor,
        kept: list[Kept],
        grad_output: Tensor | None,
        grad_state: State,
        grad_input: Tensor | None,
        needed: Sequence[bool],
    ) -> tuple[list[Tensor | None], State]:
        """Write grad_input, or add to it if reverse. Return the gradients of the weights, where needed, and of the
        first state."""
        kernel, weights = self.kernel, self.weights
        if self.rewrites:
            self.prepare()
        product = matmul.repeated(self.N, weights.w_hh.t())
        arrive: Callable[[Tensor, Any], Tensor]
        if weights.w_hr is not None:
            unproject = matmul.repeated(self.N, weights.w_hr.t())
            arrive = lambda dh, dy: unproject(dy.add_(dh))  # noqa: E731
        else:
            arrive = lambda dh, dy: dh if dy is None else dh.add_(dy)  # noqa: E731

        totals: list[Tensor | None] = [None] * len(weights)
        last = self.ordered(self.sizes)[-1]
        carry = Carry(tuple(s[:last].clone() for s in grad_state), tuple(s[last:] for s in grad_state))
        for span, (state, m, tape) in zip(reversed(self.spans), reversed(kept), strict=True):
            h, input = output[span.rows], self.input[span.rows]
            if self.rewrites:
                m, tape = self.run(span, self.carry(state), torch.empty_like(h))
            before = self.before(span, state, (h, *tape[-1:])[: len(state)])
            derivatives = kernel.derivatives(tape, h if m is None else m, before)
            dh = grad_output[span.rows] if grad_output is not None else None
            if m is not None:
                dh = torch.zeros_like(h) if dh is None else dh.clone()
            views = self.steps(span, *(() if dh is None else (dh,)), *kernel.back_views(derivatives))
            steps = iter(views[::-1] if dh is not None else [(None, *v) for v in views[::-1]])
            for n, stretch in reversed(self.stretches(span)):
                carry.state = kernel.backward(carry.resize(n), islice(steps, stretch), arrive, product)

            digates, dhgates = kernel.gradients(derivatives)
            if grad_input is not None:
                rows = grad_input[span.rows]
                (rows.add_ if self.reverse else rows.copy_)(matmul.linear(digates, weights.w_ih.t()))
            of_ih = of_hh = matmul.outer(digates)
            if dhgates is not digates:
                of_hh = matmul.outer(dhgates)
            gradients = (
                lambda: of_ih(input),
                lambda: of_hh(before[0]),
                lambda: digates.sum(0),
                lambda: dhgates.sum(0),
                lambda: matmul.outer(dh)(m),
            )
            for k, gradient in enumerate(gradients):
                if needed[k]:
                    total = totals[k]
                    totals[k] = gradient() if total is None else total.add_(gradient())
        return totals, carry.whole()


class Layer(Function):
    """All directions of one layer. `tensors` are, for each direction, its Weights and then its state."""

    @staticmethod
    def directions(equation: Equation, sizes: list[int], every: int | None, input: Tensor, tensors: Any) -> list[Direction]:
        width = len(Weights._fields) + len(equation.state)
        parts = [tensors[k : k + width] for k in range(0, len(tensors), width)]
        return [
            Direction(equation, input, sizes, tuple(part[5:]), Weights(*part[:5]), reverse, every)
            for part, reverse in zip(parts, (False, True))
        ]

    @staticmethod
    def run(directions: Sequence[Direction], keep: bool) -> tuple[Tensor, list[Tensor], list[list[Kept]]]:
        """The output (S, D*H_out), the states after the last step, and what the way back needs of each direction."""
        input, H_out = directions[0].input, directions[0].state[0].size(1)
        output = input.new_empty(len(input), len(directions) * H_out)
        finals, kept = zip(*(d.forward(y, keep) for d, y in zip(directions, output.split(H_out, 1), strict=True)))
        return output, [s for state in finals for s in state], list(kept)

    @staticmethod
    def forward(ctx: Any, equation: Equation, sizes: list[int], every: int | None, input: Tensor, *tensors: Any) -> Any:
        output, finals, kept = Layer.run(Layer.directions(equation, sizes, every, input, tensors), keep=True)
        ctx.set_materialize_grads(False)
        ctx.options = equation, sizes, every
        ctx.form = [[(len(k.state), len(k.tape)) for k in spans] for spans in kept]
        flat = [t for spans in kept for state, m, tape in spans for t in (*state, m, *tape)]
        ctx.save_for_backward(input, output, *tensors, *flat)
        ctx.count, ctx.H_out = len(tensors), output.size(1) // len(kept)
        return output, *finals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        equation, sizes, every = ctx.options
        input, output, *saved = ctx.saved_tensors
        tensors, flat = saved[: ctx.count], iter(saved[ctx.count :])
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # which it is in here only if these gradients are to be differentiated, too
            return None, None, None, *differentiate(equation, sizes, grads, needed, (input, *tensors))
        grad_input = torch.empty_like(input) if needed[0] else None
        result: list[Tensor | None] = []
        grad_output, *grad_finals = grads
        needs, finals = iter(needed[1:]), iter(grad_finals)
        directions = Layer.directions(equation, sizes, every, input, tensors)
        for d, (direction, form) in enumerate(zip(directions, ctx.form, strict=True)):
            half = slice(d * ctx.H_out, (d + 1) * ctx.H_out)
            kept = [Kept(tuple(islice(flat, s)), next(flat), tuple(islice(flat, t))) for s, t in form]
            given = [torch.zeros_like(s) if g is None else g for s, g in zip(direction.state, finals)]
            grad_weights, grad_state = direction.backward(
                output[:, half],
                kept,
                None if grad_output is None else grad_output[:, half],
                tuple(given),
                grad_input,
                list(islice(needs, len(direction.weights))),
            )
            needs = islice(needs, len(given), None)
            result += [*grad_weights, *grad_state]
        return None, None, None, grad_input, *result


def differentiate(
    equation: Equation, sizes: list[int], grads: Sequence[Tensor | None], needed: Sequence[bool], tensors: Sequence[Any]
) -> list[Tensor | None]:
    """What Layer.backward returns for `tensors`, by the readable path, so that it can be differentiated again."""
    with torch.enable_grad():
        # Each an alias of its own, so that a tensor given twice has two gradients.
        input, *parts = aliases = [None if t is None else t.view_as(t) for t in tensors]
        directions = Layer.directions(equation, sizes, None, input, parts)
        weights, states = [d.weights for d in directions], [d.state for d in directions]
        output, finals = recurrence.layer(equation, input, states, weights, sizes)
        results = (output, *(s for state in finals for s in state))
    given = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None and y.requires_grad]
    wanted = [k for k, need in enumerate(needed) if need]
    ys, gs = zip(*given, strict=True)
    found = torch.autograd.grad(ys, [aliases[k] for k in wanted], gs, create_graph=True, allow_unused=True)
    by_place = dict(zip(wanted, found, strict=True))
    return [by_place.get(k) for k in range(len(tensors))]


def stack(
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None,
    dropout: float,
    bidirectional: bool,
    checkpoint_every: int | None = None,
) -> tuple[Tensor, list[State]]:
    """recurrence.stack by this path; arguments as there, and only those that `serves` accepts.

    checkpoint_every  the number of steps between the states that are kept for the way back; None keeps all that it
                      needs. The gradients are the same, the memory is less by a factor of ..., the time more by a third
    """
    L = len(input)
    sizes = list(batch_sizes) if batch_sizes is not None else [input.size(1)] * L
    output = input if batch_sizes is not None else input.flatten(0, 1)
    D, S = 2 if bidirectional else 1, len(equation.state)
    finals: list[State] = []
    for k in range(0, len(weights), D):
        if k and dropout:
            output = F.dropout(output, dropout)
        pairs = zip(weights[k : k + D], states[k : k + D], strict=True)
        tensors = [t for weight, state in pairs for t in (*weight, *state)]
        arguments = (equation, sizes, checkpoint_every, output)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (output, *tensors)):
            output, *flat = Layer.apply(*arguments, *tensors)
        else:
            with torch.no_grad():
                output, flat, _ = Layer.run(Layer.directions(*arguments, tensors), keep=False)
        finals += [tuple(flat[i : i + S]) for i in range(0, len(flat), S)]
    return output if batch_sizes is not None else output.unflatten(0, (L, -1)), finals


_TYPES = (Tensor, Parameter)
_DTYPES = (torch.float32, torch.float64)


def serves(
    equation: Equation, input: Tensor, states: Sequence[State], weights: Sequence[Weights]
) -> bool:
    """Whether `stack` may run for these arguments, here and now.

    It is for equations that have a kernel, in float32 and float64 on a CPU, on plain tensors. Whatever looks into the
    operations or computes with something else than numbers takes the readable path: the compiler and its tracers,
    functorch's transforms, forward-mode differentiation, dispatch modes, subclasses of Tensor, autocast.
    """
    return (
        equation in KERNELS
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and input.dtype in _DTYPES
        and input.numel() > 0
        and all(
            type(t) in _TYPES and t.dtype == input.dtype and t.is_cpu and t.layout == torch.strided
            for group in ((input,), *states, *weights)
            for t in group
            if t is not None
        )
    )
