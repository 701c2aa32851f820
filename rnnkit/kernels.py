"""The equations of torch.nn once more, for speed: in place, each with its derivative below it.

A kernel works on the rows of several consecutive steps at once, where it can, and step by step where it must.

    tape         what the steps write on: a, the pre-activations, becomes what the derivative needs
    forward      the steps: accumulate hgates on a, write the output, return the state after the last one
    derivatives  all local derivatives of all steps, for gradients yet to come
    backward     the steps from the last to the first: scale the derivatives by the gradients arriving at a step, where
                 they stand; they are then the gradients of a. Return the gradients of the state before the first step
    gradients    of igates and of hgates

In the loops a step is one product and few small operations, each a call from Python: the shapes of `views` and
`back_views` are there so that a call can take several gates at once.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from . import matmul
from .equations import EQUATIONS, Equation, State

Rows: TypeAlias = tuple[Tensor, ...]  # tensors with the same rows
Steps: TypeAlias = Iterable[tuple[Any, ...]]  # for each step, its part of several tensors' rows
Product: TypeAlias = Callable[[Tensor], Tensor]
Accumulate: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Arrive: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (grad, y, grad_input=): grad * y * (1 - y)
_tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (grad, y, grad_input=): grad * (1 - y*y)


class Arithmetic(NamedTuple):
    """The operations on which speed and bit-identity part."""

    tanh: Callable[..., Tensor]  # tanh(a, out=)
    sigmoid_: Callable[..., object]  # sigmoid_(whole, *parts): of these parts of it at least
    addcmul_: Callable[..., Tensor]  # addcmul_(a, b, c): a += b*c
    lerp: Callable[..., Tensor]  # lerp(a, b, w, out=): (b - a)*w + a


def _sigmoid_parts_(_: Tensor, *parts: Tensor) -> None:
    for part in parts:
        part.sigmoid_()


def _lerp(a: Tensor, b: Tensor, w: Tensor, out: Tensor) -> Tensor:
    return torch.sub(b, a, out=out).mul_(w).add_(a)


_TWO = torch.tensor(
    2.0, dtype=torch.float32, device="cpu"
)  # a number would be converted at every call, in half its time


def tanh_by_expm1(a: Tensor, out: Tensor) -> Tensor:
    """tanh(a) = e / (e + 2) where e = expm1(2a): within 3 units in the last place for every float32, near 0 too."""
    e = torch.add(a, a, out=out).clamp_max_(80).expm1_()  # larger ones would overflow; their tanh is 1 anyway
    return e.div_(e + _TWO)


#: ATen's operations in ATen's order.
EXACT = Arithmetic(torch.tanh, _sigmoid_parts_, lambda a, b, c: a.add_(b * c), _lerp)
#: As few calls as possible.
FEW = Arithmetic(torch.tanh, lambda whole, *_: whole.sigmoid_(), Tensor.addcmul_, torch.lerp)
#: As little time an element as possible.
FAST = FEW._replace(tanh=tanh_by_expm1)


@cache
def _expm1_pays() -> bool:
    """Whether tanh by expm1 beats torch.tanh on many elements: it does where MKL, which torch calls, has a slow one."""
    with torch.no_grad():
        a = torch.linspace(-2, 2, 2**14, dtype=torch.float32, device="cpu")
        out = torch.empty_like(a)
        return matmul.seconds(lambda: tanh_by_expm1(a, out)) < matmul.seconds(lambda: torch.tanh(a, out=out))


def arithmetic(dtype: torch.dtype, elements: int) -> Arithmetic:
    """What to compute with where a gate has so many elements in a step."""
    if dtype != torch.float32:
        return EXACT
    return FAST if elements >= 2**12 and _expm1_pays() else FEW


class Kernel(Protocol):
    tapeless: bool  # the derivatives need the output, but no tape
    pays_from: int  # small steps, by measurement; fewer are faster on the readable path

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        """What to add to igates, where hgates are accumulated on them without b_hh and `tape` sees to the rest."""
        ...

    def tape(self, igates: Tensor, b_hh: Tensor | None, rows: int) -> Rows:
        """a, made of the igates (S, G*H), and more; c' last, if there is one. What one step writes for itself alone
        has so many rows: all S where the derivatives are to see it."""
        ...

    def views(self, tape: Rows) -> Rows:
        """What `forward` wants to see of the tape at each step."""
        ...

    def forward(
        self,
        state: State,
        steps: Steps,
        hgates: Product,
        accumulate: Accumulate | None,
        project: Product | None,
        by: Arithmetic,
    ) -> State:
        """Take the steps (y, m, *views). Write the output to m, and to y its projection; without, they are the same.

        accumulate(a, h) adds hgates to a as they are formed; without it, they are formed by hgates(h) and then added.
        """
        ...

    def derivatives(self, tape: Rows, m: Tensor, before: State) -> Rows: ...

    def back_views(self, derivatives: Rows) -> Rows:
        """What `backward` wants to see of the derivatives at each step."""
        ...

    def backward(self, dstate: State, steps: Steps, arrive: Arrive, product: Product) -> State:
        """Take the steps (dy, *views) back. arrive(dh, dy) is the gradient of m; product(dhgates) is dhgates @ w_hh."""
        ...

    def gradients(self, derivatives: Rows) -> tuple[Tensor, Tensor]:
        """digates and dhgates (rows, G*H), after `backward`; one tensor where they are equal."""
        ...


class Summed:
    """What kernels share whose gates see igates and hgates as a sum only."""

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return b_ih + b_hh

    def gradients(self, derivatives: Rows) -> tuple[Tensor, Tensor]:
        return derivatives[0], derivatives[0]


class RNN(Summed):
    """h' = tanh(a) or relu(a)."""

    tapeless = True
    pays_from = 10

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def tape(self, igates: Tensor, b_hh: Tensor | None, rows: int) -> Rows:
        return (igates,)

    def views(self, tape: Rows) -> Rows:
        return tape

    def forward(
        self,
        state: State,
        steps: Steps,
        hgates: Product,
        accumulate: Accumulate | None,
        project: Product | None,
        by: Arithmetic,
    ) -> State:
        relu, tanh = self.relu, by.tanh
        (h,) = state
        for y, m, a in steps:
            if accumulate:
                accumulate(a, h)
            else:
                a.add_(hgates(h))
            if relu:
                torch.clamp_min(a, 0, out=m)
            else:
                tanh(a, out=m)
            if project:
                y.copy_(project(m))
            h = y
        return (h,)

    def derivatives(self, tape: Rows, m: Tensor, before: State) -> Rows:
        return ((m > 0).to(m.dtype) if self.relu else 1 - m * m,)  # da / dh

    def back_views(self, derivatives: Rows) -> Rows:
        return derivatives

    def backward(self, dstate: State, steps: Steps, arrive: Arrive, product: Product) -> State:
        (dh,) = dstate
        for dy, da in steps:
            da.mul_(arrive(dh, dy))
            dh = product(da)
        return (dh,)


class LSTM(Summed):
    """c' = f*c + i*g, h' = o*tanh(c'). On the tape tanh(c') takes the place of g's pre-activation."""

    tapeless = False
    pays_from = 5

    def tape(self, igates: Tensor, b_hh: Tensor | None, rows: int) -> Rows:
        g, c_next = igates.new_empty(2, rows, *igates.shape[1:-1], igates.size(-1) // 4)
        return igates, g, c_next

    def views(self, tape: Rows) -> Rows:
        a, g, c_next = tape
        return a, *a.chunk(4, -1), g, c_next

    def forward(
        self,
        state: State,
        steps: Steps,
        hgates: Product,
        accumulate: Accumulate | None,
        project: Product | None,
        by: Arithmetic,
    ) -> State:
        tanh, sigmoid_, addcmul_, _ = by
        mul = torch.mul
        h, c = state
        for y, m, a, i, f, tc, o, g, c_next in steps:
            if accumulate:
                accumulate(a, h)
            else:
                a.add_(hgates(h))
            tanh(tc, out=g)
            sigmoid_(a, i, f, o)
            mul(f, c, out=c_next)
            addcmul_(c_next, i, g)
            tanh(c_next, out=tc)
            mul(o, tc, out=m)
            if project:
                y.copy_(project(m))
            h, c = y, c_next
        return h, c

    def derivatives(self, tape: Rows, m: Tensor, before: State) -> Rows:
        a, g, _ = tape
        i, f, tc, o = a.chunk(4, -1)
        da, dc_dh = torch.empty_like(a), torch.empty_like(g)
        di, df, dg, do = da.chunk(4, -1)
        _sigmoid_backward(g, i, grad_input=di)  # di, df, dg / dc'
        _sigmoid_backward(before[1], f, grad_input=df)
        _tanh_backward(i, g, grad_input=dg)
        _sigmoid_backward(tc, o, grad_input=do)  # do / dh'
        _tanh_backward(o, tc, grad_input=dc_dh)  # dc' / dh', f is dc / dc'
        return da, dc_dh, f

    def back_views(self, derivatives: Rows) -> Rows:
        da, dc_dh, f = derivatives
        gates = da.view(*da.shape[:-1], 4, -1)
        return da, gates[..., :3, :], gates[..., 3, :], dc_dh, f

    def backward(self, dstate: State, steps: Steps, arrive: Arrive, product: Product) -> State:
        dh, dc = dstate
        dc_of_gates = dc.unsqueeze(-2)  # (n, 1, H), the same memory
        for dy, da, difg, do, dc_dh, f in steps:
            dm = arrive(dh, dy)
            dc.addcmul_(dm, dc_dh)
            difg.mul_(dc_of_gates)
            do.mul_(dm)
            dc.mul_(f)
            dh = product(da)
        return dh, dc


class GRU:
    """n = tanh(n_i + r*n_h), h' = (h - n)*z + n. On the tape n_i moves out, to become n, and n_h takes its place."""

    tapeless = False
    pays_from = 5

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        rz = b_ih.size(-1) // 3 * 2
        return torch.cat((b_ih[..., :rz] + b_hh[..., :rz], b_ih[..., rz:]), -1)

    def tape(self, igates: Tensor, b_hh: Tensor | None, rows: int) -> Rows:
        n_i = igates.chunk(3, -1)[2]
        n, n_h = n_i.clone(), n_i
        n_h.copy_(b_hh.chunk(3, -1)[2]) if b_hh is not None else n_h.zero_()
        return igates, n

    def views(self, tape: Rows) -> Rows:
        a, n = tape
        return a, a[..., : -n.size(-1)], *a.chunk(3, -1), n

    def forward(
        self,
        state: State,
        steps: Steps,
        hgates: Product,
        accumulate: Accumulate | None,
        project: Product | None,
        by: Arithmetic,
    ) -> State:
        tanh, sigmoid_, addcmul_, lerp = by
        (h,) = state
        sections = 2 * h.size(-1), h.size(-1)
        for y, m, a, rz, r, z, n_h, n in steps:
            if accumulate:
                accumulate(a, h)
            else:
                of_rz, of_n = hgates(h).split_with_sizes(sections, -1)
                rz.add_(of_rz)
                n_h.copy_(of_n)
            sigmoid_(rz, r, z)
            addcmul_(n, r, n_h)
            tanh(n, out=n)
            lerp(n, h, z, out=m)
            if project:
                y.copy_(project(m))
            h = y
        return (h,)

    def derivatives(self, tape: Rows, m: Tensor, before: State) -> Rows:
        a, n = tape
        r, z, n_h = a.chunk(3, -1)
        da = a.new_empty(*n.shape[:-1], 4 * n.size(-1))
        dr, dz, dn_h, dn_i = da.chunk(4, -1)  # all / dh'
        _tanh_backward(1 - z, n, grad_input=dn_i)
        torch.mul(dn_i, r, out=dn_h)
        _sigmoid_backward(dn_i * n_h, r, grad_input=dr)
        _sigmoid_backward(before[0] - n, z, grad_input=dz)
        return da, z  # z is dh / dh'

    def back_views(self, derivatives: Rows) -> Rows:
        da, z = derivatives
        return da[..., : -z.size(-1)], da.view(*da.shape[:-1], 4, -1), z

    def backward(self, dstate: State, steps: Steps, arrive: Arrive, product: Product) -> State:
        (dh,) = dstate
        for dy, dhgates, da, z in steps:
            dm = arrive(dh, dy)
            da.mul_(dm.unsqueeze(-2))
            dh = product(dhgates).addcmul_(dm, z)
        return (dh,)

    def gradients(self, derivatives: Rows) -> tuple[Tensor, Tensor]:
        dr, dz, _, dn_i = derivatives[0].chunk(4, -1)
        return torch.cat((dr, dz, dn_i), -1), derivatives[0][..., : -dn_i.size(-1)]


#: The kernels of torch.nn's equations. An equation that is not here takes the readable path.
KERNELS: dict[Equation, Kernel] = {
    EQUATIONS["RNN_TANH"]: RNN(relu=False),
    EQUATIONS["RNN_RELU"]: RNN(relu=True),
    EQUATIONS["LSTM"]: LSTM(),
    EQUATIONS["GRU"]: GRU(),
}
