"""The equations of torch.nn once more, for speed: in place, each with its derivative below it.

`Kernel` lists what a kernel does, in the order in which it is called. Forward, a span's igates are prepared and its
steps taken. Back, the local derivatives of all of its steps are formed at once, for gradients yet to come; then, from
the last step to the first, they are scaled by the gradients that arrive at a step.

In the loops a step is one product and few small operations, each a call from Python: the views are cut so that a call
takes several gates at once. Letters are those of `equations`: i, f, g, o, c, h; r, z, n, h. a is the pre-activations,
m is h before its projection, tc is tanh(c'). A name that begins with d is the loss's derivative by what follows; in
`derivatives` it is that of a step alone, which `backward` scales by what arrives there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..equations import EQUATIONS, State, Step
from .products import Product

Derivatives: TypeAlias = tuple[Tensor, Sequence[Tensor]]  # da, and views for each step
Steps: TypeAlias = Iterable[tuple[Any, ...]]  # for each step its part of several tensors' rows


def _direct(operator: Any) -> Callable[..., Tensor]:
    """Return an operator without the Python around it, which takes a third of a call, as far as torch has it so."""
    return getattr(operator, "_op", operator)  # type: ignore[no-any-return]


_aten = torch.ops.aten
_sigmoid_backward = _direct(_aten.sigmoid_backward.grad_input)  # (grad, y, grad_input=): grad * y * (1 - y)
_tanh_backward = _direct(_aten.tanh_backward.grad_input)  # (grad, y, grad_input=): grad * (1 - y*y)
_threshold_backward = _direct(_aten.threshold_backward.grad_input)  # (grad, y, 0, grad_input=): grad where y > 0


class Arithmetic(NamedTuple):
    """The operations on which speed and bit-identity part."""

    whole: bool  # whether one call of sigmoid takes all gates, g's place with them
    add_product: Callable[..., Tensor]  # (a, b, c, out=): a + b*c


# ATen's operations in ATen's order:
EXACT = Arithmetic(whole=False, add_product=lambda a, b, c, out: torch.add(a, b * c, out=out))
FEW = Arithmetic(whole=True, add_product=torch.addcmul)  # as few calls as possible


class Kernel(ABC):
    """An equation in place. Rows (rows, F) are those of a span, of a step, or of all steps: x and a (rows, G*H), others
    (rows, H). What is written here holds where gates see igates and hgates as a sum only: a = igates + hgates."""

    #: Steps, without a graph and with one, by measurement; fewer take less time by the readable path.
    pays_from: dict[torch.dtype, tuple[float, float]]
    derived: int  # the width of the derivatives, in H
    projects = False  # whether h may be projected
    tapeless = False  # whether the output is all that the derivatives need, so that igates may stand in its place

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        """Return what of both biases is added to the igates; `begin` sees to the rest."""
        return b_ih + b_hh

    @abstractmethod
    def tape(self, a: Tensor, rows: int) -> Sequence[Tensor]:
        """Return a, for pre-activations, with what else the steps write on.

        a has the rows of all steps, or those of one, which all steps then share. `rows` are those of the igates.
        """

    @abstractmethod
    def shut(self, x: Tensor, through: Tensor) -> None:
        """Write to x, igates, what keeps h finite and c as it is in the rows that are `through` (rows, 1)."""

    @abstractmethod
    def prepare(self, x: Tensor, tape: Sequence[Tensor], b_hh: Tensor | None, by: Arithmetic) -> Sequence[Tensor]:
        """Prepare x, the igates of a span, and its tape. Return what `forward` takes of each step: views of them.

        b_hh is None where hgates have it already.
        """

    @abstractmethod
    def forward(self, state: State, steps: Steps, to_hgates: Product, project: Product | None, by: Arithmetic) -> State:
        """Take the steps (y, m, *prepared) and return the state after the last one.

        Writes h before projection to m, and to y its projection; without one, m is y.
        """

    def after(self, output: Tensor, tape: Sequence[Tensor]) -> State:
        """Return the state after every step, by the output and a tape of all steps."""
        return (output,)

    @abstractmethod
    def derivatives(self, tape: Sequence[Tensor], m: Tensor, before: State, space: Tensor) -> Derivatives:
        """Write the local derivatives to `space` (rows, derived*H); `before` is the state before every step.

        returns da, which is to become the gradients of the pre-activations, and what `backward` takes of each step
        """

    @abstractmethod
    def backward(self, dstate: State, steps: Steps, to_dh: Product, unproject: Product | None) -> State:
        """Take the steps (dy, *views) back and return the gradient of the state before the first one.

        dstate is the gradient of the state after the last step, with what arrives by that step's output; it is written
        to, as is dy, what arrives by the output of the step that is taken next. With a projection dy receives the sum.
        """

    def dhgates(self, da: Tensor) -> Tensor:
        """Return the gradient of hgates (..., G*H) by what `backward` made of da, or by its sum over rows."""
        return da

    def digates(self, da: Tensor) -> Tensor:
        """Return the gradient of igates (..., G*H), which may take the place of that of hgates."""
        return da


class RNN(Kernel):
    """h' = tanh(a) or relu(a)."""

    pays_from = {torch.float32: (16, 10), torch.float64: (math.inf, 12)}
    derived = 1
    tapeless = True

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def tape(self, a: Tensor, rows: int) -> Sequence[Tensor]:
        return ()

    def shut(self, x: Tensor, through: Tensor) -> None:
        if self.relu:  # tanh has a bound
            x.masked_fill_(through, -math.inf)  # h' = 0

    def prepare(self, x: Tensor, tape: Sequence[Tensor], b_hh: Tensor | None, by: Arithmetic) -> Sequence[Tensor]:
        return (x,)

    def forward(self, state: State, steps: Steps, to_hgates: Product, project: Product | None, by: Arithmetic) -> State:
        (w, addmm, _), relu, tanh, clamp_min = to_hgates, self.relu, torch.tanh, torch.clamp_min
        (h,) = state
        for y, _, a in steps:
            addmm(a, h, w, out=a)
            if relu:
                clamp_min(a, 0, out=y)
            else:
                tanh(a, out=y)
            h = y
        return (h,)

    def derivatives(self, tape: Sequence[Tensor], m: Tensor, before: State, space: Tensor) -> Derivatives:
        return space, (space, m)  # nothing yet: `backward` has one operation that forms the derivative and scales it

    def backward(self, dstate: State, steps: Steps, to_dh: Product, unproject: Product | None) -> State:
        (w, addmm, _), relu = to_dh, self.relu
        (d,) = dstate
        for dy, da, h in steps:
            if relu:
                _threshold_backward(d, h, 0, grad_input=da)  # da = dh' where h' > 0
            else:
                _tanh_backward(d, h, grad_input=da)  # da = dh' * (1 - h'²)
            addmm(dy, da, w, out=dy)  # dh = dy + da W_hh
            d = dy
        return (d,)


class LSTM(Kernel):
    """c' = f*c + i*g, h' = o*tanh(c').

    On the tape (a, g, c') the gates take the place of their pre-activations, but that tanh(c') takes g's.
    """

    pays_from = {torch.float32: (7, 5), torch.float64: (14, 5)}
    derived = 5
    projects = True

    def tape(self, a: Tensor, rows: int) -> Sequence[Tensor]:
        shape = a.size(0), a.size(1) // 4
        return a, a.new_empty(shape), a.new_empty(shape)

    def shut(self, x: Tensor, through: Tensor) -> None:
        i, f, _, o = x.chunk(4, 1)
        i.masked_fill_(through, -math.inf)  # c' = 1*c + 0*g
        f.masked_fill_(through, math.inf)
        o.masked_fill_(through, -math.inf)  # h' = 0

    def prepare(self, x: Tensor, tape: Sequence[Tensor], b_hh: Tensor | None, by: Arithmetic) -> Sequence[Tensor]:
        a, g, c = tape
        i, f, tc, o = a.chunk(4, 1)
        return x, a, i, f, tc, o, g, c, *((a,) if by.whole else (i, f, o))

    def forward(self, state: State, steps: Steps, to_hgates: Product, project: Product | None, by: Arithmetic) -> State:
        (w, addmm, _), add_product, tanh, mul = to_hgates, by.add_product, torch.tanh, torch.mul
        h, c = state
        for y, m, x, a, i, f, tc, o, g, c_next, *sigmoids in steps:
            addmm(x, h, w, out=a)
            tanh(tc, out=g)  # g's pre-activation stands where tanh(c') will
            for gate in sigmoids:
                gate.sigmoid_()
            mul(f, c, out=c_next)
            add_product(c_next, i, g, out=c_next)
            tanh(c_next, out=tc)
            mul(o, tc, out=m)
            if project:
                project.mm(m, project.w, out=y)
            h, c = y, c_next
        return h, c

    def after(self, output: Tensor, tape: Sequence[Tensor]) -> State:
        return output, tape[2]

    def derivatives(self, tape: Sequence[Tensor], m: Tensor, before: State, space: Tensor) -> Derivatives:
        (a, g, _), (_, c) = tape, before
        i, f, tc, o = a.chunk(4, 1)
        di, df, dg, do, dm_dc = space.chunk(5, 1)
        _sigmoid_backward(g, i, grad_input=di)  # di = g * i * (1 - i), times dc'
        _sigmoid_backward(c, f, grad_input=df)  # df = c * f * (1 - f), times dc'
        _tanh_backward(i, g, grad_input=dg)  # dg = i * (1 - g²), times dc'
        _sigmoid_backward(tc, o, grad_input=do)  # do = tanh(c') * o * (1 - o), times dm
        _tanh_backward(o, tc, grad_input=dm_dc)  # dm/dc' = o * (1 - tanh²(c'))
        da = space.narrow(1, 0, a.size(1))
        gates = da.view(da.size(0), 4, -1)
        return da, (da, gates.narrow(1, 0, 3), do, dm_dc, f)

    def backward(self, dstate: State, steps: Steps, to_dh: Product, unproject: Product | None) -> State:
        w, addmm, _ = to_dh
        d, dc = dstate
        dc_of_gates = dc.unsqueeze(1)  # (n, 1, H), the same memory
        for dy, da, d_ifg, do, dm_dc, f in steps:
            dm = unproject.mm(d, unproject.w) if unproject else d  # dm = dh' W_hr
            dc.addcmul_(dm, dm_dc)  # dc' += dm * o * (1 - tanh²(c'))
            d_ifg.mul_(dc_of_gates)  # di, df, dg *= dc'
            do.mul_(dm)  # do *= dm
            dc.mul_(f)  # dc = dc' * f
            d = addmm(dy, da, w, out=dy)  # dh = dy + da W_hh
        return d, dc


class GRU(Kernel):
    """n = tanh(n_i + r*n_h), h' = (h - n)*z + n.

    On the tape (a, n) r and z take the place of their pre-activations, and n_h that of n_i, which becomes n elsewhere.
    The derivatives stand side by side as those of r, z, n_h, n_i: the first three are dhgates.
    """

    pays_from = {torch.float32: (5, 4), torch.float64: (8, 4)}
    derived = 4

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        bias, rz = b_ih.clone(), b_ih.size(0) // 3 * 2
        bias.narrow(0, 0, rz).add_(b_hh.narrow(0, 0, rz))
        return bias

    def tape(self, a: Tensor, rows: int) -> Sequence[Tensor]:
        return a, a.new_empty(rows, a.size(1) // 3)

    def shut(self, x: Tensor, through: Tensor) -> None:
        r, z, n_i = x.chunk(3, 1)
        r.masked_fill_(through, -math.inf)
        z.masked_fill_(through, -math.inf)
        n_i.masked_fill_(through, 0)  # h' = (h - 0)*0 + 0

    def prepare(self, x: Tensor, tape: Sequence[Tensor], b_hh: Tensor | None, by: Arithmetic) -> Sequence[Tensor]:
        (a, n), H = tape, x.size(1) // 3
        n_i = x.narrow(1, 2 * H, H)
        n.copy_(n_i)
        n_i.copy_(b_hh.narrow(0, 2 * H, H)) if b_hh is not None else n_i.zero_()
        r, z, n_h = a.chunk(3, 1)
        return x, a, r, z, n_h, n, *((a.narrow(1, 0, 2 * H),) if by.whole else (r, z))

    def forward(self, state: State, steps: Steps, to_hgates: Product, project: Product | None, by: Arithmetic) -> State:
        (w, addmm, _), add_product, tanh, sub = to_hgates, by.add_product, torch.tanh, torch.sub
        (h,) = state
        for y, _, x, a, r, z, n_h, n, *sigmoids in steps:
            addmm(x, h, w, out=a)
            for gate in sigmoids:
                gate.sigmoid_()
            add_product(n, r, n_h, out=n)
            tanh(n, out=n)
            h = add_product(n, sub(h, n, out=y), z, out=y)  # (h - n)*z + n
        return (h,)

    def derivatives(self, tape: Sequence[Tensor], m: Tensor, before: State, space: Tensor) -> Derivatives:
        (a, n), (h,) = tape, before
        r, z, n_h = a.chunk(3, 1)
        dr, dz, dn_h, dn_i = space.chunk(4, 1)  # all times dh'
        _tanh_backward(torch.sub(n.new_ones(()), z, out=dn_i), n, grad_input=dn_i)  # dn_i = (1 - z) * (1 - n²)
        torch.mul(dn_i, r, out=dn_h)  # dn_h = dn_i * r
        _sigmoid_backward(torch.mul(dn_i, n_h, out=dr), r, grad_input=dr)  # dr = dn_i * n_h * r * (1 - r)
        _sigmoid_backward(torch.sub(h, n, out=dz), z, grad_input=dz)  # dz = (h - n) * z * (1 - z)
        return space, (self.dhgates(space), space.view(space.size(0), 4, -1), z)

    def backward(self, dstate: State, steps: Steps, to_dh: Product, unproject: Product | None) -> State:
        (w, addmm, _), addcmul = to_dh, torch.addcmul
        (d,) = dstate
        d_of_gates = d.unsqueeze(1)  # (n, 1, H), the same memory
        for dy, dhgates, da, z in steps:
            da.mul_(d_of_gates)  # dr, dz, dn_h, dn_i *= dh'
            addcmul(dy, d, z, out=d)  # dh = dy + dh' * z
            addmm(d, dhgates, w, out=d)  # dh += dhgates W_hh
        return (d,)

    def dhgates(self, da: Tensor) -> Tensor:
        return da.narrow(-1, 0, da.size(-1) // 4 * 3)

    def digates(self, da: Tensor) -> Tensor:
        _, _, dn_h, dn_i = da.chunk(4, -1)
        dn_h.copy_(dn_i)
        return self.dhgates(da)


#: The kernels of torch.nn's equations. An equation that is not here takes the readable path.
KERNELS: dict[Step, Kernel] = {
    EQUATIONS["RNN_TANH"].step: RNN(relu=False),
    EQUATIONS["RNN_RELU"].step: RNN(relu=True),
    EQUATIONS["LSTM"].step: LSTM(),
    EQUATIONS["GRU"].step: GRU(),
}
