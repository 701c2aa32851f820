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

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional as F

from . import checks, joined, matmul, recurrence
from .equations import Equation, State, Step
from .kernels import EXACT, KERNELS, Kernel, Rows, arithmetic
from .matmul import Affine, Gradient, Product, Room
from .recurrence import Weights

FEWEST = 3  # steps; of fewer, nothing is faster than the readable path
LARGE_STEP = 2**24  # multiplications in a step's product
#: How large a span's gates are, by measurement. Its products are to run at nearly full rate, with what each of them
#: costs for its weight alone, and what a step leaves is to be in cache for as long as the span lasts.
ELEMENTS = 2**19  # at least
WEIGHTS = 2  # and so many times the larger weight


class Span(NamedTuple):
    """Consecutive steps, in the order of time, and where their rows are."""

    sizes: Sequence[int]
    start: int
    rows: int

    def of(self, tensor: Tensor, away: int = 0) -> Tensor:
        """Its rows of a tensor that has those of all spans, or as many some rows away."""
        return tensor if self.rows == tensor.size(0) else tensor.narrow(0, self.start + away, self.rows)


def spans(sizes: Sequence[int], steps: int) -> list[Span]:
    """All steps, so many at a time."""
    result, start = [], 0
    for t in range(0, len(sizes), steps):
        part = sizes[t : t + steps]
        result.append(Span(part, start, sum(part)))
        start += result[-1].rows
    return result


class Carry:
    """The state from step to step. Rows without a step now wait: their sequence is over, or is yet to begin."""

    def __init__(self, state: State, waiting: State) -> None:
        self.state, self.waiting = state, waiting

    def resize(self, rows: int) -> State:
        """The state with so many rows."""
        now = self.state[0].size(0)
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
        if not self.waiting:
            return tuple(s.clone() for s in self.state)
        return tuple(torch.cat(pair) for pair in zip(self.state, self.waiting, strict=True))


Kept: TypeAlias = list[Any]  # tensors, and None for an m that isn't there


class Plan(NamedTuple):
    """What is known of one direction of a layer by its sizes alone."""

    kernel: Kernel
    sizes: Sequence[int]  # rows of each step
    N: int  # rows of the state
    cells: int  # H_cell
    reverse: bool
    padded: bool  # all steps have all rows
    rewrites: bool  # what a tape held is computed once more on the way back
    spans: Sequence[Span]  # in this direction's order
    most: int  # rows in a span, at most

    def ordered(self, steps: Sequence[Any], back: bool = False) -> Sequence[Any]:
        """What is in the order of time, in that of this direction, or back; and the other way round."""
        return steps[::-1] if self.reverse != back else steps


@lru_cache(maxsize=256)
def plans(
    step: Step,
    sizes: tuple[int, ...],
    N: int,
    cells: int,
    w_ih: tuple[int, ...],
    w_hh: tuple[int, ...],
    directions: int,
    both: bool,
    checkpoint_every: int | None,
) -> tuple[Plan, ...]:
    """Of the directions of a layer with weights of these shapes, or the one of both at once. Programs make calls of the
    same sizes again and again: of a small one's time, this would be a good part."""
    kernel = KERNELS[step]
    elements = max(ELEMENTS, WEIGHTS * math.prod(w_ih), WEIGHTS * math.prod(w_hh))
    steps = elements * len(sizes) // (sum(sizes) * (directions if both else 1) * w_ih[0]) or 1
    if both:
        sizes, N, directions = (directions,) * len(sizes), directions, 1
    rewrites = checkpoint_every is not None and not kernel.tapeless
    in_time = spans(sizes, checkpoint_every if checkpoint_every and rewrites else steps)
    most = in_time[0].rows  # no span has more, as sizes only fall
    padded = sizes[0] == sizes[-1] == N
    return tuple(
        Plan(kernel, sizes, N, cells, reverse, padded, rewrites, in_time[::-1] if reverse else in_time, most)
        for reverse in (False, True)[:directions]
    )


class Direction:
    """One direction of one layer over rows (S, H_in), with outputs (S, H_out)."""

    def __init__(self, plan: Plan, input: Tensor, state: State, weights: Weights, bias_after: bool) -> None:
        self.plan, self.kernel, self.input, self.state, self.weights = plan, plan.kernel, input, state, weights
        self.bias_after = bias_after

    def carry(self, state: State) -> Carry:
        """From this state of the rows of some step on. Of rows that come later, the first state waits."""
        rows = state[0].size(0)
        return Carry(state, () if self.plan.padded else tuple(s[rows:] for s in self.state))

    def start(self, state: State, rows: int) -> Carry:
        """From a state of all rows on, of which the step to come has so many; the others wait."""
        if self.plan.padded:
            return Carry(state, ())
        now, waiting = zip(*(s.tensor_split((rows,)) for s in state), strict=True)
        return Carry(now, waiting)

    def forward(self, output: Tensor, keep: bool) -> tuple[State, Kept]:
        """Write the output. Return the state after the last step and what is to be kept: of each span the state before
        it, its output before projection, if it was projected, and its tape."""
        kept: Kept = []
        carry = self.start(self.state, self.plan.ordered(self.plan.sizes)[0])
        # Nothing here concerns autograd, and calls are cheaper without; but what is kept has to be of its world.
        with nullcontext() if keep else torch.inference_mode():
            self.prepare(keep)
            for span in self.plan.spans:
                state = carry.resize(self.plan.ordered(span.sizes)[0]) if keep else ()
                if span is not self.plan.spans[0]:
                    state = tuple(s.clone() for s in state)  # its memory is the output's, or written again
                m, tape = self.run(span, carry, span.of(output), keep)
                if keep:
                    kept += (*state, None) if self.plan.rewrites else (*state, m, *tape)
        return carry.whole(), kept

    def prepare(self, keep: bool) -> None:
        """What all spans share on their way forward."""
        w_ih, w_hh, b_ih, b_hh, w_hr = self.weights
        self.arithmetic = arithmetic(w_hh.dtype, self.plan.N, self.plan.cells)
        self.whole: Tensor | None = None
        self.room: Room = lambda _: None
        self.affine: Affine
        if self.arithmetic is EXACT:
            self.hgates = matmul.exact(w_hh, b_hh)
            self.project = None if w_hr is None else matmul.exact(w_hr)
            self.b_n = None
            self.affine = lambda x, _: F.linear(x, w_ih, b_ih)
            # The last bits of a product may depend on how many rows it has: the igates of all spans are one.
            if not self.plan.rewrites:
                at_once, after = (None, b_ih) if self.bias_after else (b_ih, None)
                self.whole = F.linear(self.input, w_ih, at_once)
                if after is not None:
                    self.whole += after
        else:
            self.hgates = self.repeated(w_hh.mT)
            self.project = None if w_hr is None else self.repeated(w_hr.mT)
            self.bias, self.b_n = b_ih, b_hh
            if b_ih is not None and b_hh is not None:
                self.bias = self.kernel.bias(b_ih, b_hh)
            self.prepare_igates(keep)

    def prepare_igates(self, keep: bool) -> None:
        w_ih, w_hh = self.weights[:2]
        self.affine = matmul.affine(self.input.size(0), self.plan.most, w_ih, self.bias)
        large = w_hh.numel() > matmul.LARGE  # then hgates are added to rows that are spread, or it takes longer
        new = matmul.spread if large else Tensor.new_empty

        def room(rows: int) -> Tensor:
            return new(self.input, rows, w_ih.size(0))

        if not keep and len(self.plan.spans) > 1:  # those of all spans go to the same memory
            once = cache(room)
            self.room = lambda rows: once(self.plan.most)[:rows]
        elif large:
            self.room = room

    def igates(self, span: Span, out: Tensor | None) -> Tensor:
        """Of the span's rows, in `out` if that is given and saves time."""
        if self.whole is not None:
            return span.of(self.whole)
        return self.affine(span.of(self.input), self.room if out is None else lambda _: out)

    def run(self, span: Span, carry: Carry, output: Tensor, keep: bool) -> tuple[Tensor | None, Rows]:
        """Take the steps of a span and carry the state along. Write the output; return what it was before projection,
        if it was projected, and the tape."""
        rows = output.size(0) if keep else self.plan.N  # where nothing is kept, all steps share what they write on
        m = output.new_empty(rows, *output.shape[1:-1], self.plan.cells) if self.project else output
        x = self.igates(span, output if self.kernel.tapeless and not self.project else None)
        spare = None if keep or self.arithmetic is EXACT else m
        tape = self.kernel.tape(x, self.bias_of_n(span), rows, spare)
        with torch.inference_mode():
            parts = self.parts(span, (output, m, *self.kernel.views(x, tape, spare, self.arithmetic)))
            for n, stretch in self.stretches(span, parts):
                steps = zip(*stretch, strict=True)
                carry.state = self.kernel.forward(carry.resize(n), steps, self.hgates, self.project, self.arithmetic)
        return m if self.project else None, tape

    def parts(self, span: Span, tensors: Rows, back: bool = False) -> list[Sequence[Tensor]]:
        """Of each tensor the parts of all steps, in this direction's order or back. Those of one tensor are the same
        objects wherever it occurs: by that torch knows to work in place."""
        found: dict[int, Sequence[Tensor]] = {}
        for rows in tensors:
            if id(rows) not in found:
                found[id(rows)] = self.plan.ordered(self.in_time(span, rows), back)
        return [found[id(rows)] for rows in tensors]

    def in_time(self, span: Span, rows: Tensor) -> Sequence[Tensor]:
        """For each step its part of the rows; of fewer than the span has, the same each time."""
        if rows.size(0) == span.rows:
            return rows.unsafe_split_with_sizes(span.sizes)
        if self.plan.padded:
            return [rows] * len(span.sizes)
        part = {n: rows[:n] for n in set(span.sizes)}
        return [part[n] for n in span.sizes]

    def stretches(
        self, span: Span, parts: list[Sequence[Tensor]], back: bool = False
    ) -> list[tuple[int, list[Sequence[Tensor]]]]:
        """Numbers of rows, and the parts of the steps on end that have them."""
        if self.plan.padded:
            return [(self.plan.N, parts)]
        result, start = [], 0
        for n, steps in groupby(self.plan.ordered(span.sizes, back)):
            end = start + len(list(steps))
            result.append((n, [part[start:end] for part in parts]))
            start = end
        return result

    def before(self, span: Span, state: State, after: State, output: Tensor) -> State:
        """The states before the steps of a span, in rows like those after them, from the one before them all."""
        n, reverse = span.sizes[0], self.plan.reverse
        if n == span.sizes[-1]:

            def shifted(s: Tensor, rows: Tensor) -> Tensor:
                return torch.cat((rows[n:], s) if reverse else (s, rows[:-n]))

            if self.plan.padded and span is not self.plan.spans[0]:  # h stands in the output, a step away
                return span.of(output, n if reverse else -n), *map(shifted, state[1:], after[1:])
            return tuple(map(shifted, state, after))
        carry, states = self.carry(state), []
        for now in zip(*self.parts(span, after), strict=True):
            states.append(carry.resize(now[0].size(0)))
            carry.state = now
        return tuple(torch.cat(rows) for rows in zip(*self.plan.ordered(states), strict=True))

    def backward(
        self,
        output: Tensor,
        kept: Kept,
        grad_output: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_input: Tensor | None,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """Write grad_input, or add to it if reverse. Return the gradients of the weights, where needed, and of the
        first state. What was kept is let go as it is used."""
        plan, kernel, S = self.plan, self.kernel, len(self.state)
        if plan.rewrites:
            self.prepare(keep=True)
        w_ih, w_hh, _, _, w_hr = self.weights
        self.dh = self.repeated(w_hh)
        self.unproject = None if w_hr is None else self.repeated(w_hr)
        space = matmul.spread(w_hh, plan.most, *self.input.shape[1:-1], kernel.derived * plan.cells)
        totals: list[Tensor | None] = [None] * len(Weights._fields)
        sum_of_da: Tensor | None = None
        pairs = zip(self.state, grad_finals, strict=True)
        grads = tuple([torch.zeros_like(s) if g is None else g.clone() for s, g in pairs])
        carry = self.start(grads, plan.ordered(plan.sizes)[-1])
        w_x = kernel.in_order(w_ih).mT if grad_input is not None else None
        each = len(kept) // len(plan.spans)
        for span in reversed(plan.spans):
            of_span = kept[-each:]
            del kept[-each:]
            state, m, tape = tuple(of_span[:S]), of_span[S], tuple(of_span[S + 1 :])
            h = span.of(output)
            if plan.rewrites:
                m, tape = self.run(span, self.carry(state), torch.empty_like(h), keep=True)
            with torch.inference_mode():  # as in `run`
                before = self.before(span, state, (h, *tape[-1:])[:S], output)
                derivatives = kernel.derivatives(tape, h if m is None else m, before, space[: span.rows])
                dh = span.of(grad_output) if grad_output is not None else None
                if m is not None:
                    dh = torch.zeros_like(h) if dh is None else dh.clone()
                self.run_back(span, carry, dh, derivatives)

            da = derivatives[0]
            digates, dhgates = kernel.gradients(da)
            if grad_input is not None and w_x is not None:
                dx, there = self.product(digates, w_x), span.of(grad_input)
                there.add_(dx) if plan.reverse else there.copy_(dx)
            of_igates = self.gradient(digates)
            of_hgates = of_igates if dhgates is digates else self.gradient(dhgates)
            of_h = None if dh is None or m is None else self.gradient(dh)
            for k, gradient, x in ((0, of_igates, span.of(self.input)), (1, of_hgates, before[0]), (4, of_h, m)):
                if gradient is not None and x is not None and needed[k]:
                    totals[k] = gradient(x, totals[k])
            if needed[2] or needed[3]:
                sum_of_da = self.sum(da) if sum_of_da is None else sum_of_da.add_(self.sum(da))
        if totals[0] is not None:
            totals[0] = kernel.in_torch_order(totals[0], -2)
        if sum_of_da is not None:
            of_b_ih, of_b_hh = kernel.gradients(sum_of_da)
            totals[2:4] = kernel.in_torch_order(of_b_ih, -1), of_b_hh.clone()  # each in memory of its own
        return [*totals, *(carry.whole() if any(needed[5:]) else [None] * S)]

    def run_back(self, span: Span, carry: Carry, dh: Tensor | None, derivatives: Rows) -> None:
        """Take the steps of a span back: carry the gradient of the state along, turn the derivatives into gradients.
        dh is that of the output; if the output was projected, what arrives by the state is added to it."""
        arriving = torch.zeros_like(self.state[0]) if dh is None else dh
        parts = self.parts(span, (arriving, *self.kernel.back_views(derivatives)), back=True)
        for n, (arrives, *rest) in self.stretches(span, parts, back=True):
            d, *others = carry.resize(n)
            d = arrives[0].add_(d) if self.unproject else d.add_(arrives[0])
            # With a step goes what arrives at the one taken after it; at the last of a stretch that comes later.
            steps = zip((*arrives[1:], torch.zeros_like(d)), *rest, strict=True)
            carry.state = self.kernel.backward((d, *others), steps, self.dh, self.unproject)

    def bias_of_n(self, span: Span) -> Tensor | None:
        """b_hh for the rows of a span, unless the product adds it."""
        return self.b_n

    def product(self, rows: Tensor, w: Tensor) -> Tensor:
        """rows @ w.T."""
        return matmul.linear(rows, w)

    def repeated(self, w_t: Tensor) -> Product:
        """For products with w_t, of the rows of a step."""
        return matmul.repeated(len(self.plan.sizes), self.plan.N, w_t)

    def gradient(self, dy: Tensor) -> Gradient:
        return matmul.gradient(dy)

    def sum(self, dy: Tensor) -> Tensor:
        """Over all rows."""
        return dy.sum(0)


class Both(Direction):
    """Both directions of one layer at once, over a padded batch: half the calls, for sizes where those are what counts.

    A row is now a direction's N vectors of a step, (N, F), and a step has two rows: the forward direction's, and the
    one that the reverse direction takes at the same time. Weights are stacked, and products are batched over the two.
    """

    def __init__(self, plan: Plan, input: Tensor, states: Sequence[State], weights: Sequence[Weights]) -> None:
        self.shape = len(plan.sizes), states[0][0].size(0)
        rows, state = self.as_rows(torch.cat((input, input), 1)), tuple(map(torch.stack, zip(*states, strict=True)))
        pairs: Any = zip(*weights, strict=True)
        stacked = Weights(*[None if pair[0] is None else torch.stack(pair) for pair in pairs])  # type: ignore[arg-type]
        super().__init__(plan, rows, state, stacked, bias_after=False)

    @staticmethod
    def pays(sizes: Sequence[int], states: Sequence[State], weights: Sequence[Weights]) -> bool:
        w_hh, N = weights[0].w_hh, states[0][0].size(0)
        few = N * w_hh.numel() <= 2**17  # multiplications; of more, products one by one are faster than batched ones
        return sizes[0] == sizes[-1] == N and w_hh.dtype == torch.float32 and few

    def as_rows(self, columns: Tensor) -> Tensor:
        """(L*N, 2*F), the directions side by side, as rows (L*2, N, F)."""
        forward, reverse = columns.reshape(*self.shape, -1).chunk(2, -1)
        return torch.stack((forward, reverse.flip(0)), 1).flatten(0, 1)

    def as_columns(self, rows: Tensor) -> Tensor:
        """The other way round."""
        forward, reverse = rows.view(-1, 2, *rows.shape[1:]).unbind(1)
        return torch.cat((forward, reverse.flip(0)), -1).flatten(0, 1)

    def halves(self, rows: Tensor) -> Tensor:
        """(k*2, N, F) as (2, k*N, F)."""
        return rows.view(-1, 2, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)

    def bias_of_n(self, span: Span) -> Tensor | None:
        return None if self.b_n is None else self.b_n.unsqueeze(1).repeat(len(span.sizes), 1, 1)

    def prepare_igates(self, keep: bool) -> None:
        pass

    def igates(self, span: Span, out: Tensor | None) -> Tensor:
        return self.product(span.of(self.input), self.weights.w_ih, self.bias)

    def product(self, rows: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        halves = self.halves(rows)
        y = torch.bmm(halves, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), halves, w.mT)
        return y.view(2, -1, self.shape[1], y.size(-1)).transpose(0, 1).flatten(0, 1)

    def repeated(self, w_t: Tensor) -> Product:
        return Product(w_t.contiguous(), torch.baddbmm, torch.bmm)

    def gradient(self, dy: Tensor) -> Gradient:
        halves = self.halves(dy)

        def gradient(x: Tensor, total: Tensor | None) -> Tensor:
            grad = halves.mT @ self.halves(x)
            return grad if total is None else total.add_(grad)

        return gradient

    def sum(self, dy: Tensor) -> Tensor:
        return self.halves(dy).sum(1)

    def forward(self, output: Tensor, keep: bool) -> tuple[State, Kept]:
        rows = output.new_empty(2 * self.shape[0], self.shape[1], output.size(1) // 2)
        state, kept = super().forward(rows, keep)
        output.copy_(self.as_columns(rows))
        halves = zip(*(s.unbind(0) for s in state), strict=True)
        return tuple(s.clone() for half in halves for s in half), kept

    def backward(
        self,
        output: Tensor,
        kept: Kept,
        grad_output: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_input: Tensor | None,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        S, width = len(self.state), len(needed) // 2
        given = zip(grad_finals, 2 * self.state, strict=True)
        finals = [torch.zeros_like(s[0]) if g is None else g for g, s in given]
        rows = torch.empty_like(self.input) if grad_input is not None else None
        stacked = super().backward(
            self.as_rows(output),
            kept,
            None if grad_output is None else self.as_rows(grad_output),
            [torch.stack(pair) for pair in zip(finals[:S], finals[S:], strict=True)],
            rows,
            [forward or reverse for forward, reverse in zip(needed[:width], needed[width:], strict=True)],
        )
        if grad_input is not None and rows is not None:
            torch.add(*self.as_columns(rows).chunk(2, 1), out=grad_input)
        pairs = ((None, None) if g is None else g.unbind(0) for g in stacked)
        grads = (g for half in zip(*pairs, strict=True) for g in half)
        return [g.clone() if g is not None and need else None for g, need in zip(grads, needed, strict=True)]


class Options(NamedTuple):
    """Of a layer, beside its tensors."""

    equation: Equation
    sizes: tuple[int, ...]
    plans: tuple[Plan, ...]  # of each direction, or one of both at once
    bias_after: bool  # b_ih is added after the product, as ATen does for an input that is not contiguous


Group: TypeAlias = tuple[Sequence[State], Sequence[Weights]]  # of the directions of a layer


class Layer(Function):
    """All directions of one layer: `group` is their states and weights, and `tensors` are the same for autograd to see,
    for each direction its Weights and then its state."""

    @staticmethod
    def grouped(equation: Equation, tensors: Sequence[Any]) -> tuple[list[State], list[Weights]]:
        fields = len(Weights._fields)
        width = fields + len(equation.state)
        groups = [tensors[k : k + width] for k in range(0, len(tensors), width)]
        return [tuple(group[fields:]) for group in groups], [Weights(*group[:fields]) for group in groups]

    @staticmethod
    def directions(
        options: Options, input: Tensor, states: Sequence[State], weights: Sequence[Weights]
    ) -> list[Direction]:
        _, _, plans, bias_after = options
        if len(plans) < len(states):
            return [Both(plans[0], input, states, weights)]
        return [Direction(plans[d], input, states[d], weights[d], bias_after) for d in range(len(plans))]

    @staticmethod
    def run(
        options: Options, input: Tensor, states: Sequence[State], weights: Sequence[Weights], keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept]:
        """The output (S, D*H_out), the states after the last step, and what the way back needs, each of the directions
        one after the other."""
        directions = Layer.directions(options, input, states, weights)
        output = input.new_empty(input.size(0), len(states) * states[0][0].size(1))
        finals: list[Tensor] = []
        kept: Kept = []
        for direction, columns in zip(directions, Layer.columns(output, len(directions)), strict=True):
            final, of_direction = direction.forward(columns, keep)
            finals += final
            kept += of_direction
        return output, finals, kept

    @staticmethod
    def columns(rows: Tensor, D: int) -> Sequence[Tensor]:
        """The part of each direction."""
        return rows.chunk(D, 1) if D > 1 else (rows,)

    @staticmethod
    def forward(ctx: Any, options: Options, group: Group, input: Tensor, *tensors: Any) -> Any:
        output, finals, kept = Layer.run(options, input, *group, keep=True)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.count = options, len(tensors)
        ctx.save_for_backward(input, output, *tensors, *kept)
        return output, *finals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return Layer.backward(ctx, *grads)
        input, output, *kept = ctx.saved_tensors
        ctx.maybe_clear_saved_tensors()  # unless the graph is retained: a tape can go as soon as it has been used
        tensors, needed = kept[: ctx.count], ctx.needs_input_grad[2:]
        del kept[: ctx.count]
        # Gradients are enabled in here only if these ones are to be differentiated, too.
        if torch.is_grad_enabled() or not checks.plain([g for g in grads if g is not None], input.dtype):
            return None, None, *differentiate(ctx.options, grads, needed, (input, *tensors))
        grad_output, *grad_finals = grads
        grad_input = input.new_empty(input.shape) if needed[0] else None
        directions = Layer.directions(ctx.options, input, *Layer.grouped(ctx.options.equation, tensors))
        D = len(directions)
        outputs = Layer.columns(output, D)
        grad_outputs = [None] * D if grad_output is None else Layer.columns(grad_output, D)
        each, width, finals = len(kept) // D, len(tensors) // D, len(grad_finals) // D
        result: list[Tensor | None] = []
        for d, direction in enumerate(directions):
            of_direction = kept[:each]
            del kept[:each]
            result += direction.backward(
                outputs[d],
                of_direction,
                grad_outputs[d],
                grad_finals[d * finals : (d + 1) * finals],
                grad_input,
                needed[1 + d * width : 1 + (d + 1) * width],
            )
        return None, None, grad_input, *result


def differentiate(
    options: Options, grads: Sequence[Tensor | None], needed: Sequence[bool], tensors: Sequence[Any]
) -> list[Tensor | None]:
    """What Layer.backward returns for `tensors`, by the readable path, so that it can be differentiated again."""
    equation, sizes, _, _ = options
    with torch.enable_grad():
        # Each an alias of its own, so that a tensor given twice has two gradients.
        aliases: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
        states, weights = Layer.grouped(equation, aliases[1:])
        output, finals = recurrence.layer(equation, aliases[0], states, weights, sizes)
        results = (output, *(s for state in finals for s in state))
    given = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None and y.requires_grad]
    wanted = [k for k, need in enumerate(needed) if need]
    ys, gs = zip(*given, strict=True)
    found = torch.autograd.grad(ys, [aliases[k] for k in wanted], gs, create_graph=True, allow_unused=True)
    by_place = dict(zip(wanted, found, strict=True))
    return [by_place.get(k) for k in range(len(tensors))]


def layer(options: Options, group: Group, input: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output and the states of a layer; its graph, if it is to be differentiated by any of these."""
    graded = torch.is_grad_enabled()
    tensors = [t for state, weight in zip(*group, strict=True) for t in (*weight, *state)] if graded else []
    if graded and any(t is not None and t.requires_grad for t in (input, *tensors)):
        output, *flat = Layer.apply(options, group, input, *tensors)  # type: ignore[no-untyped-call]
    else:
        output, flat, _ = Layer.run(options, input, *group, keep=False)
    return output, flat


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
    """recurrence.stack by this path. Arguments and results are as there; `serves` says which arguments it is for.

    checkpoint_every  None keeps for the way back what the derivatives need, for an LSTM six numbers a step and unit.
                      A number k keeps a state every k steps instead, and takes all steps once more on the way back.
                      Raises ValueError for a number below 1.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be None or a positive number of steps, got {checkpoint_every}")
    L = input.size(0)
    sizes = tuple(batch_sizes) if batch_sizes is not None else (input.size(1),) * L
    output = input if batch_sizes is not None else input.flatten(0, 1)
    D, S = 2 if bidirectional else 1, len(equation.state)
    finals: list[State] = []
    for k in range(0, len(weights), D):
        if k and dropout:
            output = F.dropout(output, dropout)
        group = states[k : k + D], weights[k : k + D]
        both, bias_after = bidirectional and Both.pays(sizes, *group), k == 0 and not input.is_contiguous()
        N, cells = states[k][0].size(0), states[k][-1].size(1)  # the last state has H_cell columns
        w_ih, w_hh = weights[k].w_ih.shape, weights[k].w_hh.shape
        planned = plans(equation.step, sizes, N, cells, w_ih, w_hh, D, both, checkpoint_every)
        options = Options(equation, sizes, planned, bias_after)
        run = recurrence.named(equation, k // D, layer)
        output, flat = run(options, group, output)
        finals += [tuple(flat[i : i + S]) for i in range(0, len(flat), S)]
    return output if batch_sizes is not None else output.view(L, -1, output.size(1)), finals


#: What tells of tracers and transforms is torch's own. Should it go, so does this path, and nothing else.
TELLING = all(
    hasattr(owner, name)
    for owner, names in {
        torch._C: ("_is_tracing", "_len_torch_dispatch_stack"),
        torch._C._functorch: ("peek_interpreter_stack",),
        forward_ad: ("_current_level",),
    }.items()
    for name in names
)


def serves(input: Tensor) -> bool:
    """Whether `stack` may run for this input and plain states and weights, here and now: in float32 and float64.

    Whatever looks into the operations or computes with something else than numbers takes the readable path: tracers,
    functorch's transforms, forward-mode differentiation, dispatch modes, autocast. The compiler doesn't come here.
    """
    return (
        TELLING
        and input.dtype in (torch.float32, torch.float64)
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and input.numel() > 0
        and input.dim() > 1  # packed data of one dimension are left to be refused there in torch.nn's words
    )


def pays(kernel: Kernel, steps: int, states: Sequence[State], weights: Sequence[Weights]) -> bool:
    """Whether so many steps, or so large ones, take less time by `stack` than otherwise."""
    w_hh, graph = weights[0].w_hh, torch.is_grad_enabled()
    if steps >= kernel.pays_from[w_hh.dtype][graph]:
        return True
    return graph and steps >= FEWEST and states[0][0].size(0) * w_hh.numel() >= LARGE_STEP


def stack_by(
    path: str,
    plain: bool,
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None,
    dropout: float,
    bidirectional: bool,
    checkpoint_every: int | None,
) -> tuple[Tensor, list[State]]:
    """`stack` where path is "fast" and it serves and pays, or "always fast" and it serves, else recurrence.stack; where
    only paying is wanting, by `joined`, if the equation has its gates see a sum. plain: what checks.plain says of all
    tensors."""
    given = equation, input, states, weights, batch_sizes, dropout, bidirectional
    kernel = KERNELS.get(equation.step)
    if path == "readable" or not plain or kernel is None or not serves(input):
        return recurrence.stack(*given)
    steps = input.size(0) if batch_sizes is None else len(batch_sizes)
    if path == "always fast" or pays(kernel, steps, states, weights):
        return stack(*given, checkpoint_every)
    # In float64, values are to be the same bits.
    joins = kernel.summed and steps >= FEWEST and input.dtype == torch.float32
    return recurrence.stack(*given, joined.unroll if joins else recurrence.unroll)
