"""The equations of torch.nn once more, for speed: in place, each with its derivative below it.

A kernel works on a *tape*: the rows of several consecutive steps, whose views the loops in bptt hand out step by step.
Forward, it turns the pre-activations on the tape into what its derivative needs. Backward, `derivatives` forms all
local derivatives of these steps at once, and `back` only has to scale them by the gradients arriving at a step: they
become the gradients of the pre-activations where they stand.

    a       (rows, G*H)  the pre-activations: igates, on which each step accumulates its hgates
    h_prev  (rows, H_out), c_prev (rows, H): the state before each step
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from . import matmul
from .equations import EQUATIONS, Equation, State

Tape: TypeAlias = tuple[Tensor, ...]
Views: TypeAlias = Iterable[tuple[Any, ...]]
Step: TypeAlias = Callable[..., State]

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (grad, y, grad_input=): grad * y * (1 - y)
_tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (grad, y, grad_input=): grad * (1 - y*y)


class Arithmetic(NamedTuple):
    """The operations on which speed and bit-identity part."""

    tanh: Callable[..., Tensor]  # tanh(a, out=)
    sigmoid_: Callable[..., object]  # sigmoid_(whole, *parts): of a tensor, or at least of these parts of it
    addcmul_: Callable[..., Tensor]  # addcmul_(a, b, c): a += b*c
    lerp: Callable[..., Tensor]  # lerp(a, b, w, out=): (b - a)*w + a


def _sigmoid_parts_(_: Tensor, *parts: Tensor) -> None:
    for part in parts:
        part.sigmoid_()


def _lerp_exact(a: Tensor, b: Tensor, w: Tensor, out: Tensor) -> Tensor:
    return torch.sub(b, a, out=out).mul_(w).add_(a)


def tanh_by_expm1(a: Tensor, out: Tensor) -> Tensor:
    """tanh(a) = e / (e + 2) with e = expm1(2a), within 2 units in the last place, and below 0 as good as above."""
    e = torch.mul(a, 2, out=out).clamp_(max=80).expm1_()  # beyond, float32 overflows where tanh has long been 1
    return e.div_(e + 2)


#: ATen's operations in ATen's order.
EXACT = Arithmetic(torch.tanh, _sigmoid_parts_, lambda a, b, c: a.add_(b * c), _lerp_exact)
#: As few calls as possible.
FEW = Arithmetic(torch.tanh, lambda whole, *_: whole.sigmoid_(), Tensor.addcmul_, torch.lerp)
#: As little time an element as possible: MKL's tanh, which torch calls, is the slowest of all its functions on AMD.
FAST = FEW._replace(tanh=tanh_by_expm1)


@cache
def _expm1_pays() -> bool:
    """Whether tanh by expm1 beats torch.tanh for many elements, on this processor."""
    with torch.no_grad():
        a, out = torch.linspace(-2, 2, 2**14), torch.empty(2**14)
        return matmul.seconds(lambda: tanh_by_expm1(a, out)) < matmul.seconds(lambda: torch.tanh(a, out=out))


def arithmetic(dtype: torch.dtype, elements: int) -> Arithmetic:
    """What to compute with, where a gate has so many elements in a step."""
    if dtype != torch.float32:
        return EXACT
    return FAST if elements >= 2**12 and _expm1_pays() else FEW


def split(sizes: Sequence[int], *tensors: Tensor) -> Views:
    """The views that each step has of these rows."""
    return zip(*(tensor.split_with_sizes(sizes) for tensor in tensors), strict=True)


class Kernel(Protocol):
    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        """What `a` starts from where hgates are accumulated on it: all biases but those `tape` writes."""
        ...

    tapeless: bool  # derivatives need no tape: h says all

    def tape(self, a: Tensor, b_hh: Tensor | None) -> Tape:
        """What the steps write on: first a, which holds the igates; last c', if there is one."""
        ...

    def views(self, tape: Tape, sizes: Sequence[int]) -> Views:
        """The views of each step, of which the first is of a."""
        ...

    def add(self, hgates: Tensor, *views: Tensor) -> None:
        """Add hgates to the step's a."""
        ...

    def step(self, arithmetic: Arithmetic) -> Step:
        """The function (state, h', *views): writes h' and returns what else the next state has."""
        ...

    def derivatives(self, tape: Tape, h: Tensor, before: State) -> Tape:
        """All local derivatives, from the tape, h' and the states before each step; the gradients' place first."""
        ...

    def back_views(self, derivatives: Tape, sizes: Sequence[int]) -> Views:
        """For each step (dhgates, z, views): dh before the step is dhgates @ w_hh, plus z*dh unless z is None."""
        ...

    def back(self, dstate: State, *views: Tensor) -> None:
        """Scale a step's derivatives by the gradients of the state after it; turn dc into that before it."""
        ...

    def gradients(self, derivatives: Tape) -> tuple[Tensor, Tensor]:
        """digates and dhgates, (rows, G*H) each; one tensor where they are the same."""
        ...


class Summed:
    """What kernels share whose gates use igates and hgates as a sum only."""

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return b_ih + b_hh

    def add(self, hgates: Tensor, a: Tensor, *_: Tensor) -> None:
        a.add_(hgates)

    def gradients(self, derivatives: Tape) -> tuple[Tensor, Tensor]:
        return derivatives[0], derivatives[0]


class RNN(Summed):
    """h' = tanh(a) or relu(a)."""

    tapeless = True

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def tape(self, a: Tensor, b_hh: Tensor | None) -> Tape:
        return (a,)

    def views(self, tape: Tape, sizes: Sequence[int]) -> Views:
        return split(sizes, *tape)

    def step(self, arithmetic: Arithmetic) -> Step:
        tanh, relu = arithmetic.tanh, self.relu

        def step(state: State, y: Tensor, a: Tensor) -> State:
            if relu:
                torch.clamp_min(a, 0, out=y)
            else:
                tanh(a, out=y)
            return ()

        return step

    def derivatives(self, tape: Tape, h: Tensor, before: State) -> Tape:
        return ((h > 0).to(h.dtype) if self.relu else 1 - h * h,)

    def back_views(self, derivatives: Tape, sizes: Sequence[int]) -> Views:
        return ((da, None, (da,)) for (da,) in split(sizes, *derivatives))

    def back(self, dstate: State, da: Tensor) -> None:
        da.mul_(dstate[0])


class LSTM(Summed):
    """c' = f*c + i*g, h' = o*tanh(c'). On the tape tanh(c') takes the place of g's pre-activation."""

    tapeless = False

    def tape(self, a: Tensor, b_hh: Tensor | None) -> Tape:
        g, c_next = a.new_empty(2, len(a), a.size(1) // 4)
        return a, g, c_next

    def views(self, tape: Tape, sizes: Sequence[int]) -> Views:
        a, g, c_next = tape
        return split(sizes, a, *a.chunk(4, 1), g, c_next)

    def step(self, arithmetic: Arithmetic) -> Step:
        tanh, sigmoid_, addcmul_, _ = arithmetic
        mul = torch.mul

        def step(state: State, y: Tensor, a: Tensor, *views: Tensor) -> State:
            i, f, tc, o, g, c_next = views
            tanh(tc, out=g)
            sigmoid_(a, i, f, o)
            mul(f, state[1], out=c_next)
            addcmul_(c_next, i, g)
            tanh(c_next, out=tc)
            mul(o, tc, out=y)
            return (c_next,)

        return step

    def derivatives(self, tape: Tape, h: Tensor, before: State) -> Tape:
        a, g, _ = tape
        i, f, tc, o = a.chunk(4, 1)
        da, dc_dh = torch.empty_like(a), torch.empty_like(g)
        di, df, dg, do = da.chunk(4, 1)
        _sigmoid_backward(g, i, grad_input=di)  # times dc
        _sigmoid_backward(before[1], f, grad_input=df)  # times dc
        _tanh_backward(i, g, grad_input=dg)  # times dc
        _sigmoid_backward(tc, o, grad_input=do)  # times dh
        _tanh_backward(o, tc, grad_input=dc_dh)
        return da, dc_dh, f

    def back_views(self, derivatives: Tape, sizes: Sequence[int]) -> Views:
        da, dc_dh, f = derivatives
        gates = da.unflatten(1, (4, -1))
        return ((da, None, views) for da, *views in split(sizes, da, gates[:, :3], gates[:, 3], dc_dh, f))

    def back(self, dstate: State, difg: Tensor, do: Tensor, dc_dh: Tensor, f: Tensor) -> None:
        dh, dc = dstate
        dc.addcmul_(dh, dc_dh)
        difg.mul_(dc.unsqueeze(1))
        do.mul_(dh)
        dc.mul_(f)


class GRU:
    """n = tanh(n_i + r*n_h), h' = (h - n)*z + n. On the tape n_h takes the place of n_i, which moves out."""

    tapeless = False

    def bias(self, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        rz = len(b_ih) // 3 * 2
        return torch.cat((b_ih[:rz] + b_hh[:rz], b_ih[rz:]))

    def tape(self, a: Tensor, b_hh: Tensor | None) -> Tape:
        n_h = a.chunk(3, 1)[2]
        n_i = n_h.clone()  # becomes n
        n_h.copy_(b_hh[-n_h.size(1) :]) if b_hh is not None else n_h.zero_()
        return a, n_i

    def views(self, tape: Tape, sizes: Sequence[int]) -> Views:
        a, n = tape
        return split(sizes, a, a[:, : -n.size(1)], *a.chunk(3, 1), n)

    def add(self, hgates: Tensor, a: Tensor, rz: Tensor, r: Tensor, z: Tensor, n_h: Tensor, n: Tensor) -> None:
        rz.add_(hgates[:, : rz.size(1)])
        n_h.copy_(hgates[:, rz.size(1) :])

    def step(self, arithmetic: Arithmetic) -> Step:
        tanh, sigmoid_, addcmul_, lerp = arithmetic

        def step(state: State, y: Tensor, a: Tensor, *views: Tensor) -> State:
            rz, r, z, n_h, n = views
            sigmoid_(rz, r, z)
            addcmul_(n, r, n_h)
            tanh(n, out=n)
            lerp(n, state[0], z, out=y)
            return ()

        return step

    def derivatives(self, tape: Tape, h: Tensor, before: State) -> Tape:
        a, n = tape
        r, z, n_h = a.chunk(3, 1)
        da = a.new_empty(len(a), 4 * n.size(1))
        dr, dz, dn_h, dn_i = da.chunk(4, 1)  # all times dh
        _tanh_backward(1 - z, n, grad_input=dn_i)
        torch.mul(dn_i, r, out=dn_h)
        _sigmoid_backward(dn_i * n_h, r, grad_input=dr)
        _sigmoid_backward(before[0] - n, z, grad_input=dz)
        return da, z

    def back_views(self, derivatives: Tape, sizes: Sequence[int]) -> Views:
        da, z = derivatives
        views = split(sizes, da[:, : -z.size(1)], z, da.unflatten(1, (4, -1)))
        return ((dhgates, z, (da,)) for dhgates, z, da in views)

    def back(self, dstate: State, da: Tensor) -> None:
        da.mul_(dstate[0].unsqueeze(1))

    def gradients(self, derivatives: Tape) -> tuple[Tensor, Tensor]:
        dr, dz, dn_h, dn_i = derivatives[0].chunk(4, 1)
        return torch.cat((dr, dz, dn_i), 1), derivatives[0][:, : -dn_i.size(1)]


#: The kernels of torch.nn's equations. An equation that is not here takes the readable path.
KERNELS: dict[Equation, Kernel] = {
    EQUATIONS["RNN_TANH"]: RNN(relu=False),
    EQUATIONS["RNN_RELU"]: RNN(relu=True),
    EQUATIONS["LSTM"]: LSTM(),
    EQUATIONS["GRU"]: GRU(),
}
