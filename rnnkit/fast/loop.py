"""The loop over the steps of one direction, in place, and back through time by hand.

Time is cut into spans of steps. Forward, a span forms its igates in one product and then takes its steps. Back, all
local derivatives of a span are formed at once; the loop over its steps is then one product and a few operations in
place, and each weight's gradient is one product over all of the span's rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ..equations import State
from ..recurrence import Carry
from ..stack import Direction, Weights
from . import cublas, ends, products
from .kernels import EXACT, FEW, KERNELS, Kernel
from .products import Affine, Product
from .timeline import Span, Timeline

#: How large a span's gates are, by measurement. Its products are to run at nearly full rate, with what each of them
#: costs for its weight alone, and what a step leaves is to be in cache for as long as the span lasts.
ELEMENTS = 2**19  # at least
ELEMENTS_ON_GPU = 2**26  # where a product gains by every row that it has, and memory is the limit
WEIGHTS = 2  # and so many times the larger weight

Grads: TypeAlias = list[Tensor | None]


def new_tape(direction: Direction) -> list[Tensor]:
    """Allocate what `Loop.forward` writes and `Loop.backward` reads. No size is looked at: it may be a symbol."""
    input, packed = direction.input, direction.batch_sizes is not None
    rows = input.size(0) if packed else input.size(0) * input.size(1)
    return [] if KERNELS[direction.equation.step].tapeless else _tape(direction, _igates_memory(direction, rows), rows)


def _tape(direction: Direction, a: Tensor, rows: int) -> list[Tensor]:
    """Return a and what else the steps write on; with a projection, the last of it is m, which is projected."""
    tape = [*KERNELS[direction.equation.step].tape(a, rows)]
    return tape if direction.weights.w_hr is None else [*tape, torch.empty_like(tape[-1])]


def _igates_memory(direction: Direction, rows: int) -> Tensor:
    """Allocate the igates of `rows` rows; where hgates by a large weight are added, as rows of the library."""
    input, shape = direction.input, (rows, direction.weights.w_ih.size(0))
    large = direction.weights.w_hh.numel() > products.LARGE
    memory: Tensor = library(input).new_rows(input, *shape) if large else input.new_empty(shape)
    return memory


def library(tensor: Tensor) -> Any:
    """Return the module that forms products where `tensor` lives: what differs between devices is there."""
    return products if tensor.is_cpu else cublas


class Loop:
    """One direction, ready to run. Rows are (S, F) here, in the order of time; of a padded batch, S is L*N."""

    def __init__(self, direction: Direction) -> None:
        self.direction, self.weights, self.state = direction, direction.weights, direction.state
        self.kernel = KERNELS[direction.equation.step]
        self.time = Timeline(direction.step_sizes, self.state[0].size(0), direction.reverse)
        self.rows = self._as_rows(direction.input)
        self.library = library(direction.input)
        #: On a CPU, in float64, values are torch.nn's to the bit, by ATen's operations in ATen's order.
        self.exact = direction.input.is_cpu and direction.input.dtype == torch.float64
        self.arithmetic = EXACT if self.exact else FEW
        self.projected = self.weights.w_hr is not None

    def _as_rows(self, steps: Tensor) -> Tensor:
        return steps.flatten(0, 1) if self.direction.batch_sizes is None else steps

    def _as_steps(self, rows: Tensor) -> Tensor:
        return rows.view(*self.direction.input.shape[:-1], rows.size(1))

    def _spans(self) -> Sequence[Span]:
        """Return the spans of time, in this direction's order."""
        w_ih, w_hh = self.weights.w_ih, self.weights.w_hh
        least = ELEMENTS if self.rows.is_cpu else ELEMENTS_ON_GPU
        elements = max(least, WEIGHTS * w_ih.numel(), WEIGHTS * w_hh.numel())
        return self.time.spans(elements * len(self.time.sizes) // (self.time.total * w_ih.size(0)) or 1)

    def _of(self, span: Span, *tensors: Tensor) -> list[Tensor]:
        """Return the rows of `span`: of a tensor that occurs twice, one and the same view."""
        views = {id(tensor): span.of(tensor, self.time.total) for tensor in tensors}
        return [views[id(tensor)] for tensor in tensors]

    # Forward --------------------------------------------------------------------------------------------------------

    def forward(self, tape: list[Tensor] | None) -> tuple[Tensor, State]:
        """Return the output (L, N, H_out) or (S, H_out) and the state after the last step. Write the tape, if given."""
        time, kernel, spans = self.time, self.kernel, self._spans()
        most = max(span.rows for span in spans)
        results = self.rows.new_empty(*self.direction.input.shape[:-1], self.state[0].size(1))  # no view is returned
        output = self._as_rows(results)
        carry = Carry(self.state)
        with torch.inference_mode():  # nothing here concerns autograd, and calls are cheaper without
            x = output if kernel.tapeless else tape[0] if tape else _igates_memory(self.direction, most)
            again = tape is None
            if tape is None:  # what is written on is written on again: in a padded batch by the next step, else span
                tape = _tape(self.direction, x.new_empty(time.N if time.padded else most, x.size(1)), most)
            _, w_hh, _, b_hh, w_hr = self.weights
            igates, to_hgates = self._igates(most), self._product(w_hh, b_hh)
            through = None if self.direction.lengths is None else ends.through(self.direction)
            project = None if w_hr is None else self._product(w_hr)
            for span in spans:
                of_x, of_output, *of_tape = self._of(span, x, output, *tape)
                *of_tape, m = of_tape if self.projected else (*of_tape, of_output)
                of_x = igates(span, of_x)
                if through is not None:
                    kernel.shut(of_x, span.of(through, time.total))
                if again and of_tape and self.library.IN_PLACE:
                    of_tape[0] = of_x
                prepared = kernel.prepare(of_x, of_tape, None if self.exact else b_hh, self.arithmetic)
                for n, steps in time.stretches(span, [of_output, m, *prepared]):
                    state = carry.resize(n)
                    carry.state = kernel.forward(state, zip(*steps, strict=True), to_hgates, project, self.arithmetic)
                if again and not time.padded:
                    carry.state, carry.waiting = (
                        tuple(s.clone() for s in part) for part in (carry.state, carry.waiting)
                    )
        return results, tuple(s.clone() for s in carry.whole())

    def _igates(self, most: int) -> Callable[[Span, Tensor], Tensor]:
        """Return the function (span, out) -> igates of the span, in `out` or in memory of their own."""
        (w_ih, _, b_ih, b_hh, _), rows, total = self.weights, self.rows, self.time.total
        if self.exact:  # the last bits of a product may depend on how many rows it has: one for all spans
            whole = F.linear(self.direction.input, w_ih, b_ih).flatten(0, -2)
            return lambda span, out: span.of(whole, total)
        bias = b_ih if b_ih is None or b_hh is None else self.kernel.bias(b_ih, b_hh)
        affine: Affine = self.library.affine(total, most, w_ih, bias)
        return lambda span, out: affine(span.of(rows, total), out)

    def _product(self, w: Tensor, b: Tensor | None = None) -> Product:
        """Make the product of a step's rows with w.T ready; if exact, with b added."""
        return products.exact(w, b) if self.exact else self._repeated(w.t())

    def _repeated(self, w_t: Tensor) -> Product:
        """Make the product of a step's rows with w_t ready."""
        product: Product = self.library.repeated(len(self.time.sizes), self.time.N, w_t)
        return product

    # Back through time ----------------------------------------------------------------------------------------------

    def backward(
        self, output: Tensor, tape: list[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> Grads:
        """Return the gradients of `direction.tensors`, those that are needed at least.

        output, tape  as `forward` returned and wrote them
        grads         of the output and of the state after the last step; None stands for zeros
        """
        kernel, time, output, spans = self.kernel, self.time, self._as_rows(output), self._spans()
        dy = None if grads[0] is None else self._as_rows(grads[0])
        dx = torch.empty_like(self.rows) if needed[0] else None
        after = kernel.after(output, tape)
        totals = Totals(kernel, self.library, needed)
        pairs = zip(self.state, grads[1:], strict=True)
        carry = Carry(tuple([torch.zeros_like(s) if d is None else d.clone() for s, d in pairs]))
        to_dh = self._repeated(self.weights.w_hh)
        unproject = None if self.weights.w_hr is None else self._repeated(self.weights.w_hr)
        most = max(span.rows for span in spans)
        w_x = self.library.affine(time.total, most, self.weights.w_ih.t(), None) if needed[0] else None
        space = self.library.new_rows(output, most, kernel.derived * self.state[-1].size(1))
        for span in reversed(spans):
            of_rows, of_output, *of_tape = self._of(span, self.rows, output, *tape)
            *of_tape, m = of_tape if self.projected else (*of_tape, of_output)
            # Its rows are written on, and the gradients of the output are the caller's.
            rows = None if dy is None else span.of(dy, time.total)
            dh = torch.zeros_like(of_output) if rows is None else rows.clone(memory_format=torch.contiguous_format)
            with torch.inference_mode():
                before = tuple(time.before(span, *states) for states in zip(self.state, after, strict=True))
                da, views = kernel.derivatives(of_tape, m, before, space[: span.rows])
                self._steps_back(span, carry, [dh, *views], to_dh, unproject)
            digates = totals.add(da, of_rows, before[0], dh, m)
            if dx is not None and w_x is not None:
                of_dx = span.of(dx, time.total)
                of_dx.copy_(w_x(digates, of_dx))  # which costs nothing where it stands there already
        return [None if dx is None else self._as_steps(dx), *totals.whole(), *(s.clone() for s in carry.whole())]

    def _steps_back(
        self, span: Span, carry: Carry, views: Sequence[Tensor], to_dh: Product, unproject: Product | None
    ) -> None:
        """Take the steps of `span` back: carry the gradient of the state along, turn the derivatives into gradients.

        views  the gradient of the output, to which is added what arrives by the state, and the kernel's views of the
               derivatives
        """
        for n, steps in self.time.stretches(span, views, back=True):
            (arriving, *rest), (d, *others) = steps, carry.resize(n)
            d = arriving[0].add_(d)
            # A step back ends by forming dh of the step before: what arrives there by the output, dy, goes with it. The
            # last step of these gets zeros: what arrives before it is added above, with the next ones.
            dy_before = *arriving[1:], torch.zeros_like(d)
            carry.state = self.kernel.backward((d, *others), zip(dy_before, *rest, strict=True), to_dh, unproject)


class Totals:
    """The gradients of a direction's weights, those that are needed, summed over spans."""

    def __init__(self, kernel: Kernel, library: Any, needed: Sequence[bool]) -> None:
        self.kernel, self.library = kernel, library
        self.needed = Weights(*needed[1 : 1 + len(Weights._fields)])  # type: ignore[arg-type]
        self.w_ih: Tensor | None = None
        self.w_hh: Tensor | None = None
        self.w_hr: Tensor | None = None
        self.da: Tensor | None = None  # summed over rows

    def add(self, da: Tensor, x: Tensor, h: Tensor, dh: Tensor, m: Tensor) -> Tensor:
        """Add a span's: da by its input x and by h, the state before each step; dh by m, what was projected.

        returns digates, in the place of da
        """
        if self.needed.b_ih or self.needed.b_hh:
            self.da = da.sum(0) if self.da is None else self.da.add_(da.sum(0))
        dhgates = self.kernel.dhgates(da)
        gradient = self.library.gradient(dhgates)
        if self.needed.w_hh:
            self.w_hh = gradient(h, self.w_hh)
        digates = self.kernel.digates(da)
        if self.needed.w_ih:
            self.w_ih = (gradient if digates is dhgates else self.library.gradient(digates))(x, self.w_ih)
        if self.needed.w_hr:
            self.w_hr = self.library.gradient(dh)(m, self.w_hr)
        return digates

    def whole(self) -> Grads:
        """Return the gradients in the order of Weights, each in memory of its own."""
        b_hh = None if self.da is None else self.kernel.dhgates(self.da).clone()
        b_ih = None if self.da is None else self.kernel.digates(self.da)
        return [self.w_ih, self.w_hh, b_ih, b_hh, self.w_hr]
