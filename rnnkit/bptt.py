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

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

from . import matmul, recurrence
from .equations import Equation, State
from .kernels import EXACT, KERNELS, Accumulate, Arrive, Product, Rows, arithmetic
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
        pairs = zip(self.state, self.waiting, strict=True)
        return tuple(torch.cat((s, w)) if w.size(0) else s.clone() for s, w in pairs)


def of_clone(product: Product) -> Product:
    """`product` of a copy, which begins where new tensors do: MKL's last bits depend on where a factor begins."""
    return lambda x: product(x.clone())


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
        bias_after: bool = False,
    ) -> None:
        self.kernel = KERNELS[equation]
        self.input, self.sizes, self.state, self.weights, self.reverse = input, sizes, state, weights, reverse
        self.bias_after = bias_after
        self.rewrites = checkpoint_every is not None and not self.kernel.tapeless
        self.spans = self.ordered(spans(sizes, checkpoint_every if self.rewrites else None))
        self.N, self.cells = state[0].size(0), weights.w_ih.size(-2) // len(equation.gates)  # H_cell

        # hgates can be accumulated on the igates as they are formed, but not in ATen's order, and not by oneDNN.
        w_hh = weights.w_hh
        self.accumulates = w_hh.dtype == torch.float32 and not matmul.by_onednn(self.N, w_hh.shape, w_hh.dtype)

    def ordered(self, steps: Sequence[Any]) -> Sequence[Any]:
        """What is in the order of time, in that of this direction; and the other way round."""
        return steps[::-1] if self.reverse else steps

    def carry(self, state: State) -> Carry:
        """From this state of the rows of some step on. Of rows that come later, the first state waits."""
        rows = state[0].size(0)
        return Carry(state, tuple(s[rows:] for s in self.state))

    def forward(self, output: Tensor, keep: bool) -> tuple[State, list[Kept]]:
        """Write the output. Return the state after the last step and what each span is to keep."""
        self.prepare()
        kept: list[Kept] = []
        first = self.ordered(self.sizes)[0]
        carry = self.carry(tuple(s[:first] for s in self.state))
        for span in self.spans:
            state = tuple(s.clone() for s in carry.resize(self.ordered(span.sizes)[0])) if keep else ()
            m, tape = self.run(span, carry, output[span.rows], keep)
            if keep:
                kept.append(Kept(state, *((None, ()) if self.rewrites else (m, () if self.kernel.tapeless else tape))))
        return carry.whole(), kept

    def prepare(self) -> None:
        """What all spans share on their way forward."""
        w_ih, w_hh, b_ih, b_hh, w_hr = self.weights
        self.adds = self.accumulate(w_hh) if self.accumulates else None
        self.bias = self.kernel.bias(b_ih, b_hh) if self.accumulates and b_ih is not None and b_hh is not None else b_ih
        self.arithmetic = arithmetic(w_hh.dtype, self.N * self.cells)
        # The bits of a product may depend on where in memory its factors begin and on how many rows they have. To be
        # exact, they begin like tensors of their own, and the igates of all spans are one product.
        exact = self.arithmetic is EXACT
        self.hgates = of_clone(self.repeated(w_hh, b_hh)) if exact else self.repeated(w_hh, b_hh)
        self.project = self.repeated(w_hr) if w_hr is not None else None
        if exact and self.project:
            self.project = of_clone(self.project)
        self.all_igates = None
        if exact and not self.rewrites:
            at_once, after = (None, self.bias) if self.bias_after else (self.bias, None)
            self.all_igates = self.product(self.input, w_ih, at_once)
            if after is not None:
                self.all_igates += after

    def igates(self, span: Span) -> Tensor:
        if self.all_igates is not None:
            return self.all_igates[span.rows]
        return self.product(self.input[span.rows], self.weights.w_ih, self.bias)

    def run(self, span: Span, carry: Carry, output: Tensor, keep: bool) -> tuple[Tensor | None, Rows]:
        """Take the steps of a span and carry the state along. Write the output; return what it was before projection,
        if it was projected, and the tape."""
        tape = self.kernel.tape(self.igates(span), self.biases(span), output.size(0) if keep else self.N)
        m = output.new_empty(*output.shape[:-1], self.cells) if self.project else output
        y = self.parts(span, output)
        views = [self.parts(span, rows) for rows in self.kernel.views(tape)]
        steps = iter(self.steps(y, self.parts(span, m) if self.project else y, *views))
        with torch.inference_mode():  # nothing in the loop concerns autograd, and calls are cheaper without
            for n, stretch in self.stretches(span):
                carry.state = self.kernel.forward(
                    carry.resize(n), islice(steps, stretch), self.hgates, self.adds, self.project, self.arithmetic
                )
        return m if self.project else None, tape

    def parts(self, span: Span, rows: Tensor) -> Sequence[Tensor]:
        """For each step, in the order of time, its part of the rows; of fewer than the span has, the same each time."""
        if rows.size(0) == span.rows.stop - span.rows.start:
            return rows.unsafe_split_with_sizes(span.sizes)
        part = {n: rows[:n] for n in set(span.sizes)}
        return [part[n] for n in span.sizes]

    def steps(self, *parts: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
        """What belongs to each step, in this direction's order."""
        return self.ordered(tuple(zip(*parts, strict=True)))

    def stretches(self, span: Span) -> list[tuple[int, int]]:
        """Numbers of rows, and how many steps on end have them, in this direction's order."""
        return [(n, len(list(steps))) for n, steps in groupby(self.ordered(span.sizes))]

    def before(self, span: Span, state: State, after: State) -> State:
        """The states before the steps of a span, in rows like those after them, from the one before them all."""
        n = span.sizes[0]
        if n == span.sizes[-1]:
            pairs = zip(state, after, strict=True)
            return tuple(torch.cat((rows[n:], s) if self.reverse else (s, rows[:-n])) for s, rows in pairs)
        carry, states = self.carry(state), []
        for n, s in zip(self.ordered(span.sizes), self.steps(*(self.parts(span, rows) for rows in after)), strict=True):
            states.append(carry.resize(n))
            carry.state = s
        return tuple(torch.cat(rows) for rows in zip(*self.ordered(states), strict=True))

    def backward(
        self,
        output: Tensor,
        kept: list[Kept],
        grad_output: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_input: Tensor | None,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """Write grad_input, or add to it if reverse. Return the gradients of the weights, where needed, and of the
        first state. What was kept is let go as it is used."""
        if self.rewrites:
            self.prepare()
        self.prepare_back()
        totals: list[Tensor | None] = [None] * len(Weights._fields)
        grads = [torch.zeros_like(s) if g is None else g for s, g in zip(self.state, grad_finals, strict=True)]
        last = self.ordered(self.sizes)[-1]
        carry = Carry(tuple(g[:last].clone() for g in grads), tuple(g[last:] for g in grads))
        for span in reversed(self.spans):
            state, m, tape = kept.pop()
            h = output[span.rows]
            if self.rewrites:
                m, tape = self.run(span, self.carry(state), torch.empty_like(h), keep=True)
            before = self.before(span, state, (h, *tape[-1:])[: len(state)])
            derivatives = self.kernel.derivatives(tape, h if m is None else m, before)
            dh = grad_output[span.rows] if grad_output is not None else None
            if m is not None:
                dh = torch.zeros_like(h) if dh is None else dh.clone()
            self.run_back(span, carry, dh, derivatives)

            digates, dhgates = self.kernel.gradients(derivatives)
            if grad_input is not None:
                dx = self.product(digates, self.weights.w_ih.mT)
                (grad_input[span.rows].add_ if self.reverse else grad_input[span.rows].copy_)(dx)
            factors = (
                (digates, self.input[span.rows]),
                (dhgates, before[0]),
                (digates, None),
                (dhgates, None),
                (dh, m),
            )
            for k, grad in self.weight_gradients(factors, needed):
                total = totals[k]
                totals[k] = grad if total is None else total.add_(grad)
        return [*totals, *carry.whole()]

    def prepare_back(self) -> None:
        """What all spans share on their way back."""
        _, w_hh, _, _, w_hr = self.weights
        self.dhgates_to_dh = self.repeated(w_hh.mT)
        if w_hr is None:
            self.arrive: Arrive = lambda dh, dy: dh if dy is None else dh.add_(dy)
        else:
            unproject = self.repeated(w_hr.mT)
            self.arrive = lambda dh, dy: unproject(dh if dy is None else dy.add_(dh))

    def run_back(self, span: Span, carry: Carry, dh: Tensor | None, derivatives: Rows) -> None:
        """Take the steps of a span back: carry the gradient of the state along, turn the derivatives into gradients.
        dh is that of the output; if the output was projected, what arrives by the state is added to it."""
        arriving = [None] * len(span.sizes) if dh is None else self.parts(span, dh)
        views = [self.parts(span, rows) for rows in self.kernel.back_views(derivatives)]
        back = iter(self.steps(arriving, *views)[::-1])
        with torch.inference_mode():
            for n, stretch in reversed(self.stretches(span)):
                carry.state = self.kernel.backward(
                    carry.resize(n), islice(back, stretch), self.arrive, self.dhgates_to_dh
                )

    def biases(self, span: Span) -> Tensor | None:
        """b_hh, for the rows of a span."""
        return self.weights.b_hh

    def accumulate(self, w: Tensor) -> Accumulate:
        """a += h @ w.T, for the rows of a step."""
        w_t = w.t()
        return lambda a, h: a.addmm_(h, w_t)

    def product(self, rows: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """rows @ w.T + b."""
        return matmul.linear(rows, w, b)

    def repeated(self, w: Tensor, b: Tensor | None = None) -> Product:
        """The same, for the rows of a step."""
        return matmul.repeated(self.N, w, b)

    def weight_gradients(self, factors: Any, needed: Sequence[bool]) -> Iterator[tuple[int, Tensor]]:
        """dy.T @ x, or without x the sum of dy, for those factors (dy, x) that are needed, with their places."""
        outer = {id(dy): matmul.outer(dy) for dy, x in factors if x is not None}  # one for both if dy is the same
        for k, (dy, x) in enumerate(factors):
            if needed[k]:
                yield k, dy.sum(0) if x is None else outer[id(dy)](x)


class Both(Direction):
    """Both directions of one layer at once, over a padded batch: half the calls, for sizes where those are what counts.

    A row is now a direction's N vectors of a step, (N, F), and a step has two rows: the forward direction's, and the
    one that the reverse direction takes at the same time. Weights are stacked, and products are batched over the two.
    """

    def __init__(
        self,
        equation: Equation,
        input: Tensor,
        sizes: list[int],
        states: Sequence[State],
        weights: Sequence[Weights],
        checkpoint_every: int | None,
    ) -> None:
        self.shape = len(sizes), sizes[0]
        rows, state = self.as_rows(torch.cat((input, input), 1)), tuple(map(torch.stack, zip(*states, strict=True)))
        pairs: Any = zip(*weights, strict=True)
        stacked = Weights(*[None if pair[0] is None else torch.stack(pair) for pair in pairs])  # type: ignore[arg-type]
        super().__init__(equation, rows, [2] * len(sizes), state, stacked, False, checkpoint_every)

    @staticmethod
    def pays(sizes: list[int], weights: Sequence[Weights]) -> bool:
        w_hh, N = weights[0].w_hh, sizes[0]
        return (
            len(weights) == 2
            and sizes[-1] == N
            and w_hh.dtype == torch.float32
            and N * w_hh.size(0) < 2**13
            and not matmul.by_onednn(N, w_hh.shape, w_hh.dtype)
        )

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

    def biases(self, span: Span) -> Tensor | None:
        b_hh = self.weights.b_hh
        return None if b_hh is None else b_hh.unsqueeze(1).repeat(len(span.sizes), 1, 1)

    def accumulate(self, w: Tensor) -> Accumulate:
        w_t = w.mT.contiguous()
        return lambda a, h: a.baddbmm_(h, w_t)

    def product(self, rows: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        halves = self.halves(rows)
        y = torch.bmm(halves, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), halves, w.mT)
        return y.view(2, -1, self.shape[1], y.size(-1)).transpose(0, 1).flatten(0, 1)

    def repeated(self, w: Tensor, b: Tensor | None = None) -> Product:
        w_t = w.mT
        return lambda x: torch.bmm(x, w_t)

    def weight_gradients(self, factors: Any, needed: Sequence[bool]) -> Iterator[tuple[int, Tensor]]:
        for k, (dy, x) in enumerate(factors):
            if needed[k]:
                yield k, self.halves(dy).sum(1) if x is None else self.halves(dy).mT @ self.halves(x)

    def forward(self, output: Tensor, keep: bool) -> tuple[State, list[Kept]]:
        rows = output.new_empty(2 * self.shape[0], self.shape[1], output.size(1) // 2)
        state, kept = super().forward(rows, keep)
        output.copy_(self.as_columns(rows))
        halves = zip(*(s.unbind(0) for s in state), strict=True)
        return tuple(s.clone() for half in halves for s in half), kept

    def backward(
        self,
        output: Tensor,
        kept: list[Kept],
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
    sizes: list[int]
    checkpoint_every: int | None
    both: bool
    bias_after: bool  # b_ih is added after the product, as ATen does for an input that is not contiguous


class Layer(Function):
    """All directions of one layer. `tensors` are, for each direction, its Weights and then its state."""

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
        equation, sizes, every, both, bias_after = options
        if both:
            return [Both(equation, input, sizes, states, weights, every)]
        each = zip(states, weights, (False, True), strict=False)
        return [Direction(equation, input, sizes, *arguments, every, bias_after) for arguments in each]

    @staticmethod
    def run(
        options: Options, input: Tensor, states: Sequence[State], weights: Sequence[Weights], keep: bool
    ) -> tuple[Tensor, list[Tensor], list[list[Kept]]]:
        """The output (S, D*H_out), the states after the last step, and of each direction what its way back needs."""
        directions = Layer.directions(options, input, states, weights)
        output = input.new_empty(input.size(0), sum(state[0].size(1) for state in states))
        columns = output.chunk(len(directions), 1) if len(directions) > 1 else (output,)
        finals, kept = zip(*(d.forward(y, keep) for d, y in zip(directions, columns, strict=True)), strict=True)
        return output, [s for state in finals for s in state], list(kept)

    @staticmethod
    def forward(ctx: Any, options: Options, input: Tensor, *tensors: Any) -> Any:
        output, finals, kept = Layer.run(options, input, *Layer.grouped(options.equation, tensors), keep=True)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.count = options, len(tensors)
        ctx.form = [[(len(k.state), len(k.tape)) for k in spans] for spans in kept]
        flat = [t for spans in kept for state, m, tape in spans for t in (*state, m, *tape)]
        ctx.save_for_backward(input, output, *tensors, *flat)
        return output, *finals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return Layer.backward(ctx, *grads)
        input, output, *saved = ctx.saved_tensors
        tensors, flat = saved[: ctx.count], iter(saved[ctx.count :])
        kept = [
            [Kept(tuple(islice(flat, s)), next(flat), tuple(islice(flat, t))) for s, t in form] for form in ctx.form
        ]
        del saved, flat
        ctx.maybe_clear_saved_tensors()  # unless the graph is retained: a tape can go as soon as it has been used
        needed = ctx.needs_input_grad[1:]
        # Gradients are enabled in here only if these ones are to be differentiated, too.
        if torch.is_grad_enabled() or any(g is not None and not plain(g) for g in grads):
            return None, *differentiate(ctx.options, grads, needed, (input, *tensors))
        grad_output, *grad_finals = grads
        grad_input = input.new_empty(input.shape) if needed[0] else None
        directions = Layer.directions(ctx.options, input, *Layer.grouped(ctx.options.equation, tensors))
        D = len(directions)
        columns = [None] * D if grad_output is None else grad_output.chunk(D, 1)
        width, finals = len(tensors) // D, len(grad_finals) // D
        result: list[Tensor | None] = []
        for d, direction in enumerate(directions):
            result += direction.backward(
                output.chunk(D, 1)[d],
                kept[d],
                columns[d],
                grad_finals[d * finals : (d + 1) * finals],
                grad_input,
                needed[1 + d * width : 1 + (d + 1) * width],
            )
        return None, grad_input, *result


def differentiate(
    options: Options, grads: Sequence[Tensor | None], needed: Sequence[bool], tensors: Sequence[Any]
) -> list[Tensor | None]:
    """What Layer.backward returns for `tensors`, by the readable path, so that it can be differentiated again."""
    equation, sizes, *_ = options
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
    sizes = list(batch_sizes) if batch_sizes is not None else [input.size(1)] * L
    output = input if batch_sizes is not None else input.flatten(0, 1)
    D, S = 2 if bidirectional else 1, len(equation.state)
    finals: list[State] = []
    for k in range(0, len(weights), D):
        if k and dropout:
            output = F.dropout(output, dropout)
        group = states[k : k + D], weights[k : k + D]
        tensors = [t for state, weight in zip(*group, strict=True) for t in (*weight, *state)]
        options = Options(
            equation, sizes, checkpoint_every, Both.pays(sizes, group[1]), k == 0 and not input.is_contiguous()
        )
        with recurrence.named(f"{equation.step.__name__}_l{k // D}"):
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (output, *tensors)):
                output, *flat = Layer.apply(options, output, *tensors)  # type: ignore[no-untyped-call]
            else:
                with torch.no_grad():
                    output, flat, _ = Layer.run(options, output, *group, keep=False)
        finals += [tuple(flat[i : i + S]) for i in range(0, len(flat), S)]
    return output if batch_sizes is not None else output.view(L, -1, output.size(1)), finals


#: What tells of tracers and transforms is torch's own. Should it go, so does this path, and nothing else.
TELLING = all(
    hasattr(owner, name)
    for owner, names in {
        torch._C: ("_is_tracing", "_len_torch_dispatch_stack"),
        torch._C._functorch: ("peek_interpreter_stack", "is_functorch_wrapped_tensor", "is_legacy_batchedtensor"),
        forward_ad: ("_current_level",),
    }.items()
    for name in names
)


def plain(tensor: Tensor) -> bool:
    """Whether it is a strided tensor on a CPU and nothing else."""
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def _large(w_hh: Tensor, h: Tensor) -> bool:
    return matmul.by_onednn(h.size(0), w_hh.shape, w_hh.dtype)


def serves(equation: Equation, input: Tensor, states: Sequence[State], weights: Sequence[Weights]) -> bool:
    """Whether `stack` may run for these arguments, here and now, and pays.

    It is for equations that have a kernel, in float32 and float64 on a CPU, on plain tensors. Whatever looks into the
    operations or computes with something else than numbers takes the readable path: the compiler and its tracers,
    functorch's transforms, forward-mode differentiation, dispatch modes, subclasses of Tensor, autocast. So do a few
    small steps, which are over before this path has begun.
    """
    return (
        TELLING
        and equation in KERNELS
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and input.dtype in (torch.float32, torch.float64)
        and input.numel() > 0
        and (input.size(0) >= KERNELS[equation].pays_from or _large(weights[0].w_hh, states[0][0]))
        and all(
            plain(t) and t.dtype == input.dtype
            for group in ((input,), *states, *weights)
            for t in group
            if t is not None
        )
    )


def stack_by(
    path: str,
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None,
    dropout: float,
    bidirectional: bool,
    checkpoint_every: int | None,
) -> tuple[Tensor, list[State]]:
    """`stack` where path is "fast" and it serves, else recurrence.stack."""
    arguments = (equation, input, states, weights, batch_sizes, dropout, bidirectional)
    if path == "fast" and serves(equation, input, states, weights):
        return stack(*arguments, checkpoint_every)
    return recurrence.stack(*arguments)
