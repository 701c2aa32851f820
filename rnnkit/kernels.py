"""The equations of torch.nn once more, for speed: in place, each with its derivative below it.

A kernel works on the rows of several consecutive steps at once, where it can, and step by step where it must.

    tape         what the steps write on: a, the pre-activations, becomes what the derivative needs
    forward      the steps: add hgates to the igates, write the output, return the state after the last one
    derivatives  all local derivatives of all steps, for gradients yet to come
    backward     the steps from the last to the first: scale the derivatives by the gradients arriving at a step, where
                 they stand; they are then the gradients of a. Return the gradients of the state before the first step
    gradients    of igates and of hgates

In the loops a step is one product and few small operations, each a call from Python: the shapes of `views` and
`back_views` are there so that a call can take several gates at once.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from . import matmul
from .equations import EQUATIONS, State, Step
from .matmul import Product

Rows: TypeAlias = tuple[Tensor, ...]  # tensors with the same rows
PaysFrom: TypeAlias = dict[torch.dtype, tuple[float, float]]
Steps: TypeAlias = Iterable[tuple[Any, ...]]  # for each step, its part of several tensors' rows

COPIED = 2**13  # pre-activations in a step, up to which copying them costs less than looking at them where they are


def _direct(operator: Any) -> Callable[..., Tensor]:
    """An operator that torch doesn't offer by a function, without the Python around it, which takes a third of a call.
    Should torch hide it otherwise, the operator itself does."""
    return getattr(operator, "_op", operator)  # type: ignore[no-any-return]


_aten = torch.ops.aten
_sigmoid_backward = _direct(_aten.sigmoid_backward.grad_input)  # (grad, y, grad_input=): grad * y * (1 - y)
_tanh_backward = _direct(_aten.tanh_backward.grad_input)  # (grad, y, grad_input=): grad * (1 - y*y)
_threshold_backward = _direct(_aten.threshold_backward.grad_input)  # (grad, y, 0, grad_input=): grad where y > 0


class Arithmetic(NamedTuple):
    """The operations on which speed and bit-identity part."""

    tanh: Callable[..., Tensor]  # tanh(a, out=)
    sigmoid: Literal["whole", "few", "each"]  # of all gates at once, in few calls of those alone that want it, of each
    addcmul_: Callable[..., Tensor]  # addcmul_(a, b, c): a += b*c
    lerp: Callable[..., Tensor]  # lerp(a, b, w, out=): (b - a)*w + a


def _lerp(a: Tensor, b: Tensor, w: Tensor, out: Tensor) -> Tensor:
    return torch.sub(b, a, out=out).mul_(w).add_(a)


_TWO = torch.tensor(
    2.0, dtype=torch.float32, device="cpu"
)  # a number would be converted at every call, in half its time


def tanh_by_expm1(a: Tensor, out: Tensor) -> Tensor:
    """tanh(a) = e / (e + 2) where e = expm1(2a): within 3 units in the last place for every float32, near 0 too."""
    e = torch.add(a, a, out=out).clamp_max_(80).expm1_()  # larger ones would overflow; their tanh is 1 anyway
    return e.div_(e + _TWO)


def in_one_piece(tanh: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """tanh on contiguous memory only: a part of wider rows takes several threads up to four times as long."""

    def whole(a: Tensor, out: Tensor) -> Tensor:
        if out.is_contiguous():
            return tanh(a if a.is_contiguous() else out.copy_(a), out=out)
        return out.copy_(tanh(a.contiguous(), out=a.new_empty(a.shape)))

    return whole


#: ATen's operations in ATen's order.
EXACT = Arithmetic(torch.tanh, "each", lambda a, b, c: a.add_(b * c), _lerp)
#: As few calls as possible.
FEW = Arithmetic(torch.tanh, "whole", Tensor.addcmul_, torch.lerp)
#: As few elements as possible.
SPARING = FEW._replace(sigmoid="few")
#: And as little time an element as possible.
FAST = SPARING._replace(tanh=tanh_by_expm1)


@cache
def _expm1_pays() -> bool:
    """Whether tanh by expm1 beats torch.tanh on many elements: it does where MKL, which torch calls, has a slow one."""
    with torch.no_grad():
        a = torch.linspace(-2, 2, 2**14, dtype=torch.float32, device="cpu")
        out = torch.empty_like(a)
        ours, torch_s = matmul.seconds(lambda: tanh_by_expm1(a, out), lambda: torch.tanh(a, out=out))
        return ours < torch_s


def arithmetic(dtype: torch.dtype, rows: int, cells: int) -> Arithmetic:
    """What to compute with where a gate has so many rows of so many elements in a step."""
    if dtype != torch.float32:
        return EXACT
    by = FEW
    if rows * cells >= 2**13:
        by = FAST if matmul.may_measure() and _expm1_pays() else SPARING
    # Of up to 2048 elements one thread sees to the tanh, and few long rows are done before they are copied.
    divided = rows * cells > 2**11 and cells < 512 and torch.get_num_threads() > 1
    return by._replace(tanh=in_one_piece(by.tanh)) if divided else by


class Kernel(Protocol):
    summed: bool  # gates see igates and hgates as a sum only
    tapeless: bool  # the derivatives need the output, but no tape: igates may stand where the output goes
    derived: int  # the space that derivatives take, in H
    #: Small steps, without a graph and with one, by measurement; fewer take longer this way.
    pays_from: PaysFrom

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        """What to add to igates, where hgates come without b_hh and `tape` sees to the rest of it."""
        ...

    def tape(self, x: Tensor, b_hh: Tensor | None, rows: int, spare: Tensor | None) -> Rows:
        """a, which takes the pre-activations, and more; c' last, if there is one. It has so many rows: all of x where
        the derivatives are to see it, or those of one step, which all steps then share. x, the igates (S, G*H), may
        become part of it; and so may what is spare, if anything is: m, for as long as a step has not written it."""
        ...

    def views(self, x: Tensor, tape: Rows, spare: Tensor | None, by: Arithmetic) -> Rows:
        """What `forward` wants to see of x and of the tape at each step."""
        ...

    def forward(self, state: State, steps: Steps, hgates: Product, project: Product | None, by: Arithmetic) -> State:
        """Take the steps (y, m, *views). Write the output to m, and to y its projection; without, they are the same."""
        ...

    def derivatives(self, tape: Rows, m: Tensor, before: State, space: Tensor) -> Rows:
        """Write them to the space (rows, derived*H)."""
        ...

    def back_views(self, derivatives: Rows) -> Rows:
        """What `backward` wants to see of the derivatives at each step."""
        ...

    def backward(self, dstate: State, steps: Steps, dh: Product, unproject: Product | None) -> State:
        """Take the steps (dy, *views) back. dstate, which is overwritten, is the gradient of the state after the first
        of them, with all that arrives by its output; dy is what arrives by the output of the step taken next. With a
        projection the sum is written to dy."""
        ...

    def gradients(self, da: Tensor) -> tuple[Tensor, Tensor]:
        """digates and dhgates (..., G*H) of what `backward` made of the first of its derivatives, or of a sum over it;
        one tensor where they are equal. digates are in the kernel's order."""
        ...

    def in_order(self, w_ih: Tensor) -> Tensor:
        """w_ih (..., G*H, H_in), its gates in the kernel's order."""
        ...

    def in_torch_order(self, grad: Tensor, dim: int) -> Tensor:
        """The other way round, for gradients of w_ih and b_ih, whose gates are in this dimension."""
        ...


def shared(x: Tensor, rows: int) -> Tensor:
    """Where the pre-activations of a step go: x itself, or so many rows that all steps share: then all steps take the
    same views of them, which saves making more."""
    large = rows * x.numel() > COPIED * x.size(0)
    return x if large or rows == x.size(0) else x.new_empty(rows, *x.shape[1:])


class Summed:
    """What kernels share whose gates see igates and hgates as a sum only."""

    summed = True

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return b_ih + b_hh

    def gradients(self, da: Tensor) -> tuple[Tensor, Tensor]:
        return da, da

    def in_order(self, w_ih: Tensor) -> Tensor:
        return w_ih

    def in_torch_order(self, grad: Tensor, dim: int) -> Tensor:
        return grad


class RNN(Summed):
    """h' = tanh(a) or relu(a), all three in one place."""

    tapeless = True
    derived = 1
    pays_from: PaysFrom = {torch.float32: (18, 14), torch.float64: (math.inf, 10)}

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def tape(self, x: Tensor, b_hh: Tensor | None, rows: int, spare: Tensor | None) -> Rows:
        return ()

    def views(self, x: Tensor, tape: Rows, spare: Tensor | None, by: Arithmetic) -> Rows:
        return (x,)

    def forward(self, state: State, steps: Steps, hgates: Product, project: Product | None, by: Arithmetic) -> State:
        (w, addmm, _), relu, tanh = hgates, self.relu, by.tanh
        (h,) = state
        for y, m, a in steps:
            addmm(a, h, w, out=a)
            if relu:
                torch.clamp_min(a, 0, out=m)
            else:
                tanh(a, out=m)
            if project:
                project.mm(m, project.w, out=y)
            h = y
        return (h,)

    def derivatives(self, tape: Rows, m: Tensor, before: State, space: Tensor) -> Rows:
        return space, m  # nothing yet: `backward` has one operation that forms the derivative and scales it

    def back_views(self, derivatives: Rows) -> Rows:
        return derivatives

    def backward(self, dstate: State, steps: Steps, dh: Product, unproject: Product | None) -> State:
        (w, addmm, _), relu = dh, self.relu
        (d,) = dstate
        for dy, da, m in steps:
            dm = unproject.mm(d, unproject.w) if unproject else d
            if relu:
                _threshold_backward(dm, m, 0, grad_input=da)
            else:
                _tanh_backward(dm, m, grad_input=da)
            d = addmm(dy, da, w, out=dy if unproject else d)
        return (d,)


class LSTM(Summed):
    """c' = f*c + i*g, h' = o*tanh(c'). On the tape tanh(c') takes the place of g's pre-activation, else that of h'."""

    tapeless = False
    derived = 5
    pays_from: PaysFrom = {torch.float32: (6, 4), torch.float64: (12, 5)}

    def tape(self, x: Tensor, b_hh: Tensor | None, rows: int, spare: Tensor | None) -> Rows:
        shape = rows, *x.shape[1:-1], x.size(-1) // 4
        return shared(x, rows), x.new_empty(shape), x.new_empty(shape)

    def views(self, x: Tensor, tape: Rows, spare: Tensor | None, by: Arithmetic) -> Rows:
        a, g, c_next = tape
        i, f, a_g, o = a.chunk(4, -1)
        sigmoids = {"whole": (a,), "few": (a[..., : 2 * g.size(-1)], o), "each": (i, f, o)}[by.sigmoid]
        return x, a, i, f, a_g, o, g, c_next, a_g if spare is None else spare, *sigmoids

    def forward(self, state: State, steps: Steps, hgates: Product, project: Product | None, by: Arithmetic) -> State:
        (w, addmm, _), (tanh, _, addcmul_, _), mul = hgates, by, torch.mul
        h, c = state
        for y, m, x, a, i, f, a_g, o, g, c_next, tc, *sigmoids in steps:
            addmm(x, h, w, out=a)
            tanh(a_g, out=g)
            for part in sigmoids:
                part.sigmoid_()
            mul(f, c, out=c_next)
            addcmul_(c_next, i, g)
            tanh(c_next, out=tc)
            mul(o, tc, out=m)
            if project:
                project.mm(m, project.w, out=y)
            h, c = y, c_next
        return h, c

    def derivatives(self, tape: Rows, m: Tensor, before: State, space: Tensor) -> Rows:
        a, g, _ = tape
        i, f, tc, o = a.chunk(4, -1)
        di, df, dg, do, dc_dh = space.chunk(5, -1)
        _sigmoid_backward(g, i, grad_input=di)  # di, df, dg / dc'
        _sigmoid_backward(before[1], f, grad_input=df)
        _tanh_backward(i, g, grad_input=dg)
        _sigmoid_backward(tc, o, grad_input=do)  # do / dh'
        _tanh_backward(o, tc, grad_input=dc_dh)  # dc' / dh', f is dc / dc'
        return space[..., : a.size(-1)], dc_dh, f

    def back_views(self, derivatives: Rows) -> Rows:
        da, dc_dh, f = derivatives
        gates = da.view(*da.shape[:-1], 4, -1)
        return da, gates[..., :3, :], gates[..., 3, :], dc_dh, f

    def backward(self, dstate: State, steps: Steps, dh: Product, unproject: Product | None) -> State:
        w, addmm, _ = dh
        d, dc = dstate
        dc_of_gates = dc.unsqueeze(-2)  # (n, 1, H), the same memory
        for dy, da, difg, do, dc_dh, f in steps:
            dm = unproject.mm(d, unproject.w) if unproject else d
            dc.addcmul_(dm, dc_dh)
            difg.mul_(dc_of_gates)
            do.mul_(dm)
            dc.mul_(f)
            d = addmm(dy, da, w, out=dy if unproject else d)
        return d, dc


class GRU:
    """n = tanh(n_i + r*n_h), h' = (h - n)*z + n.

    n_i leaves its place in x to n_h, and becomes n in memory of its own. The derivatives stand side by side as those of
    n_i, r, z, n_h: the first three are of igates, the last three of hgates.
    """

    summed = False
    tapeless = False
    derived = 4
    pays_from: PaysFrom = {torch.float32: (4, 4), torch.float64: (6, 4)}

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        bias, rz = b_ih.clone(), b_ih.size(-1) // 3 * 2
        bias[..., :rz].add_(b_hh[..., :rz])
        return bias

    def tape(self, x: Tensor, b_hh: Tensor | None, rows: int, spare: Tensor | None) -> Rows:
        rz = x.size(-1) // 3 * 2
        n_h = x[..., rz:]
        n = n_h.clone(memory_format=torch.contiguous_format) if spare is None else spare.copy_(n_h)
        n_h.copy_(b_hh[..., rz:]) if b_hh is not None else n_h.zero_()
        return shared(x, rows), n

    def views(self, x: Tensor, tape: Rows, spare: Tensor | None, by: Arithmetic) -> Rows:
        a, n = tape
        r, z, n_h = a.chunk(3, -1)
        return x, a, r, z, n_h, n, *((r, z) if by.sigmoid == "each" else (a[..., : 2 * n.size(-1)],))

    def forward(self, state: State, steps: Steps, hgates: Product, project: Product | None, by: Arithmetic) -> State:
        (w, addmm, _), (tanh, _, addcmul_, lerp) = hgates, by
        (h,) = state
        for y, _, x, a, r, z, n_h, n, *sigmoids in steps:
            addmm(x, h, w, out=a)
            for part in sigmoids:
                part.sigmoid_()
            addcmul_(n, r, n_h)
            tanh(n, out=n)
            h = lerp(n, h, z, out=y)
        return (h,)

    def derivatives(self, tape: Rows, m: Tensor, before: State, space: Tensor) -> Rows:
        a, n = tape
        r, z, n_h = a.chunk(3, -1)
        dn_i, dr, dz, dn_h = space.chunk(4, -1)  # all / dh'
        _tanh_backward(torch.sub(n.new_ones(()), z, out=dn_i), n, grad_input=dn_i)
        torch.mul(dn_i, r, out=dn_h)
        _sigmoid_backward(torch.mul(dn_i, n_h, out=dr), r, grad_input=dr)
        _sigmoid_backward(torch.sub(before[0], n, out=dz), z, grad_input=dz)
        return space, z  # z is dh / dh'

    def back_views(self, derivatives: Rows) -> Rows:
        da, z = derivatives
        return da[..., z.size(-1) :], da.view(*da.shape[:-1], 4, -1), z

    def backward(self, dstate: State, steps: Steps, dh: Product, unproject: Product | None) -> State:
        (w, addmm, _), addcmul = dh, torch.addcmul
        (d,) = dstate
        d_of_gates = d.unsqueeze(-2)  # (n, 1, H), the same memory
        for dy, dhgates, da, z in steps:
            da.mul_(d_of_gates)
            addcmul(dy, d, z, out=d)
            addmm(d, dhgates, w, out=d)
        return (d,)

    def gradients(self, da: Tensor) -> tuple[Tensor, Tensor]:
        H = da.size(-1) // 4
        return da[..., : 3 * H], da[..., H:]

    def in_order(self, w_ih: Tensor) -> Tensor:
        return w_ih.roll(w_ih.size(-2) // 3, -2)

    def in_torch_order(self, grad: Tensor, dim: int) -> Tensor:
        return grad.roll(-(grad.size(dim) // 3), dim)


#: The kernels of torch.nn's equations. An equation that is not here takes the readable path.
KERNELS: dict[Step, Kernel] = {
    EQUATIONS["RNN_TANH"].step: RNN(relu=False),
    EQUATIONS["RNN_RELU"].step: RNN(relu=True),
    EQUATIONS["LSTM"].step: LSTM(),
    EQUATIONS["GRU"].step: GRU(),
}
