"""One direction of one layer over time by its equation's kernel, in place, and back through time by hand.

    Direction     the steps forward, and back
    Checkpointed  the same with less memory: a state every so many steps is kept, and the steps are taken once more
    Totals        the gradients of its weights

Time is cut into spans of steps. Forward, a span forms its igates in one product and then takes its steps. Back, all
local derivatives of a span are formed at once; the loop over its steps is then one product and a few operations in
place, and each weight's gradient is one product over all of the span's rows.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..equations import State
from ..stack import Weights
from .maps import Maps
from .products import in_odd_lines
from .timeline import Carry, Span, Timeline

#: How large a span's gates are, by measurement. Its products are to run at nearly full rate, with what each of them
#: costs for its weight alone, and what a step leaves is to be in cache for as long as the span lasts.
ELEMENTS = 2**19  # at least
WEIGHTS = 2  # and so many times the larger weight

Grads: TypeAlias = list[Tensor | None]


def unseen(by_autograd: bool = True) -> AbstractContextManager[Any]:
    """Return the context of calls that don't concern autograd, in which they are cheaper.

    What is made there can't be saved for backward.
    """
    return torch.inference_mode() if by_autograd else nullcontext()


class Direction:
    """One direction of one layer over the steps of `time`.

    rows   the input (S, H_in)
    state  before the step taken first, each (N, F)
    steps  the input as it came (L, N, H_in), where rows are a copy of it: igates that are to be torch.nn's to the bit
           are formed from that
    """

    def __init__(self, maps: Maps, time: Timeline, rows: Tensor, state: State, steps: Tensor | None = None) -> None:
        self.maps, self.kernel, self.time, self.rows, self.state = maps, maps.kernel, time, rows, state
        self.steps = rows if steps is None else steps
        self.projected = maps.weights.w_hr is not None

    def spans(self) -> Sequence[Span]:
        """Return the spans of time, in this direction's order."""
        weights, time = self.maps.weights, self.time
        elements = max(ELEMENTS, WEIGHTS * weights.w_ih.numel(), WEIGHTS * weights.w_hh.numel())
        gates = time.total * math.prod(self.rows.shape[1:-1]) * weights.w_ih.size(-2)
        return time.spans(elements * len(time.sizes) // gates or 1)

    def of(self, span: Span, *tensors: Tensor) -> list[Tensor]:
        """Return the rows of `span`: of a tensor that occurs twice, one and the same view."""
        views = {id(tensor): span.of(tensor, self.time.total) for tensor in tensors}
        return [views[id(tensor)] for tensor in tensors]

    def new_tape(self) -> list[Tensor]:
        """Allocate what forward writes and backward reads, for all steps."""
        return self.maps.tape(self.rows, self.time.total)

    def forward(self, output: Tensor, tape: list[Tensor] | None) -> State:
        """Write the output (S, H_out), and the tape if it is wanted. Return the state after the last step."""
        maps, time, spans = self.maps, self.time, self.spans()
        most = max(span.rows for span in spans)
        carry = Carry(self.state, time.first_size)
        with unseen():
            if tape is None:
                tape = maps.tape(self.rows, most, shared=time.N)
                x = output if self.kernel.tapeless else maps.memory(self.rows, most)
            else:
                x = output if self.kernel.tapeless else tape[0]
            if maps.exact:  # the last bits of a product may depend on how many rows it has: one for all spans
                x = maps.exact_igates(self.steps).view(time.total, -1)
            else:
                igates = maps.igates(time.total, most)
            for span in spans:
                of_rows, of_x, of_output, *of_tape = self.of(span, self.rows, x, output, *tape)
                if not maps.exact:
                    of_x = igates(of_rows, of_x)
                self.run(span, carry, of_x, of_output, of_tape)
        return carry.whole()

    def run(self, span: Span, carry: Carry, x: Tensor, output: Tensor, tape: list[Tensor]) -> None:
        """Take the steps of `span`, whose igates are x, and carry the state along."""
        maps, kernel = self.maps, self.kernel
        *tape, m = tape if self.projected else (*tape, output)
        kernel.begin(x, tape, maps.b_hh(len(span.sizes)))
        for n, steps in self.time.stretches(span, [output, m, *kernel.views(x, tape, maps.arithmetic)]):
            of_steps, state = zip(*steps, strict=True), carry.resize(n)
            carry.state = kernel.forward(state, of_steps, maps.hgates, maps.project, maps.arithmetic)

    def backward(
        self, output: Tensor, tape: list[Tensor], dy: Tensor | None, dstate: State, dx: Tensor | None, totals: "Totals"
    ) -> State:
        """Go back through time. Return the gradient of the state before the step taken first.

        dy      gradient of the output (S, H_out); None stands for zeros
        dstate  gradient of the state after the last step, which is written to
        dx      receives the gradient of the input (S, H_in), if there; in the reverse direction it is added
        totals  receive the gradients of the weights
        """
        maps, kernel, time, spans = self.maps, self.kernel, self.time, self.spans()
        most = max(span.rows for span in spans)
        space = in_odd_lines(output, most, *output.shape[1:-1], kernel.derived * self.state[-1].size(-1))
        after = kernel.after(output, tape[:-1] if self.projected else tape)
        carry = Carry(dstate, time.last_size)
        for span in reversed(spans):
            of_rows, of_output, *of_tape = self.of(span, self.rows, output, *tape)
            *of_tape, m = of_tape if self.projected else (*of_tape, of_output)
            dh = None if dy is None else span.of(dy, time.total)
            if self.projected:  # then what arrives by the state is added to it
                dh = torch.zeros_like(of_output) if dh is None else dh.clone()
            with unseen():
                before = tuple(time.before(span, *states) for states in zip(self.state, after, strict=True))
                derivatives = kernel.derivatives(of_tape, m, before, space[: span.rows])
                self.run_back(span, carry, dh, derivatives)
            da = derivatives[0]
            if dx is not None:
                of_span = maps.dx(kernel.gradients(da)[0])
                span.of(dx, time.total).add_(of_span) if time.reverse else span.of(dx, time.total).copy_(of_span)
            totals.add(da, of_rows, before[0], dh, m)
        return carry.whole()

    def run_back(self, span: Span, carry: Carry, dh: Tensor | None, derivatives: Sequence[Tensor]) -> None:
        """Take the steps of `span` back: carry the gradient of the state along, turn the derivatives into gradients.

        dh is the gradient of the output; if that was projected, what arrives by the state is added to it.
        """
        maps = self.maps
        dy = torch.zeros_like(self.state[0]) if dh is None else dh
        for n, steps in self.time.stretches(span, [dy, *self.kernel.back_views(derivatives)], back=True):
            (arriving, *views), (d, *others) = steps, carry.resize(n)
            d = arriving[0].add_(d) if self.projected else d.add_(arriving[0])
            # With a step goes what arrives at the one that is taken next; for the last of these, that comes later.
            later = *arriving[1:], torch.zeros_like(d)
            carry.state = self.kernel.backward((d, *others), zip(later, *views, strict=True), maps.dh, maps.unproject)


class Checkpointed(Direction):
    """A direction that keeps the state before every `every` steps in place of a tape."""

    def __init__(self, whole: Direction, every: int) -> None:
        super().__init__(whole.maps, whole.time, whole.rows, whole.state)
        self.every, self.segments = every, whole.time.spans(every)

    def part(self, span: Span, state: State) -> Direction:
        """Return the direction over one segment's steps, from its first state on."""
        return Direction(self.maps, Timeline(span.sizes, self.time.N, self.time.reverse), *self.of(span, self.rows), state)

    def new_tape(self) -> list[Tensor]:
        return new_states(self.state, len(self.time.sizes), self.every)

    def forward(self, output: Tensor, tape: list[Tensor] | None) -> State:
        state = self.state
        for k, span in enumerate(self.segments):
            state = self.part(span, state).forward(*self.of(span, output), None)
            if tape is not None and k < len(self.segments) - 1:
                for states, s in zip(tape, state, strict=True):
                    states[k] = s
        return state

    def backward(
        self, output: Tensor, tape: list[Tensor], dy: Tensor | None, dstate: State, dx: Tensor | None, totals: "Totals"
    ) -> State:
        states = [self.state, *zip(*(starts.unbind(0) for starts in tape), strict=True)]
        for span, state in zip(reversed(self.segments), reversed(states), strict=True):
            part, (of_output,) = self.part(span, state), self.of(span, output)
            of_tape = part.new_tape()
            part.forward(torch.empty_like(of_output), of_tape)
            of_dy, of_dx = (None if t is None else span.of(t, self.time.total) for t in (dy, dx))
            dstate = part.backward(of_output, of_tape, of_dy, dstate, of_dx, totals)
        return dstate


def new_states(state: State, L: int, every: int) -> list[Tensor]:
    """Allocate the states before every `every` steps of L, but the first, which is an argument."""
    return [s.new_empty(-(-L // every) - 1, *s.shape) for s in state]


class Totals:
    """The gradients of the weights of one direction: of those that are needed, summed over all spans.

    needed  for each field of Weights, whether its gradient is wanted
    """

    def __init__(self, maps: Maps, needed: Sequence[bool]) -> None:
        self.maps, self.needed = maps, Weights(*needed[: len(Weights._fields)])  # type: ignore[arg-type]
        self.w_ih: Tensor | None = None
        self.w_hh: Tensor | None = None
        self.w_hr: Tensor | None = None
        self.da: Tensor | None = None  # summed over rows

    def add(self, da: Tensor, x: Tensor, h: Tensor, dh: Tensor | None, m: Tensor) -> None:
        """Add those of a span: da by its input x, the states h before its steps; dh by m, what was projected."""
        maps, needed = self.maps, self.needed
        digates, dhgates = maps.kernel.gradients(da)
        of_igates = maps.gradient(digates)
        of_hgates = of_igates if dhgates is digates else maps.gradient(dhgates)
        if needed.w_ih:
            self.w_ih = of_igates(x, self.w_ih)
        if needed.w_hh:
            self.w_hh = of_hgates(h, self.w_hh)
        if needed.w_hr and dh is not None:
            self.w_hr = maps.gradient(dh)(m, self.w_hr)
        if needed.b_ih or needed.b_hh:
            self.da = maps.sum(da) if self.da is None else self.da.add_(maps.sum(da))

    def whole(self) -> Grads:
        """Return the gradients in the order of Weights, each in memory of its own."""
        kernel, b_ih, b_hh = self.maps.kernel, None, None
        if self.da is not None:
            b_ih, b_hh = kernel.gradients(self.da)
            b_ih, b_hh = kernel.in_torch_order(b_ih, -1), b_hh.clone()
        w_ih = None if self.w_ih is None else kernel.in_torch_order(self.w_ih, -2)
        return [w_ih, self.w_hh, b_ih, b_hh, self.w_hr]


def gradients(
    direction: Direction,
    output: Tensor,
    tape: list[Tensor],
    dy: Tensor | None,
    dfinals: Sequence[Tensor | None],
    dx: Tensor | None,
    needed: Sequence[bool],
) -> Grads:
    """Return the gradients of a direction's weights and first state, in that order, as far as they are needed.

    dfinals  gradient of the state after the last step; None stands for zeros
    needed   for each field of Weights and then for each part of the state
    The other arguments are those of `Direction.backward`.
    """
    pairs = zip(direction.state, dfinals, strict=True)
    dstate = tuple([torch.zeros_like(s) if d is None else d.clone() for s, d in pairs])
    totals = Totals(direction.maps, needed)
    dstate = direction.backward(output, tape, dy, dstate, dx, totals)
    wanted = any(needed[len(Weights._fields) :])
    return [*totals.whole(), *(dstate if wanted else [None] * len(dstate))]
