"""A step in two kernels on a GPU: its product, and all the rest of it compiled into one.

The equation itself is compiled, and its derivative, which torch forms of it: this path serves every equation. Called
from Python a compiled step costs more than its few operations do; what it saves are launches, where a CUDA graph
replays them. So a module takes this path only if its attribute `path` says so, for what is to be captured.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from ..equations import State, Step, name_of
from ..recurrence import Carry
from ..stack import Direction
from ..untraced import untraced
from . import cublas, ends
from .autograd import aliased, go_back, keep
from .kernels import KERNELS
from .loop import Grads

StepBack: TypeAlias = Callable[..., tuple[Tensor, Tensor, State]]


@lru_cache(maxsize=64)
def compiled(step: Step, gates: tuple[str, ...]) -> tuple[Callable[..., State], StepBack]:
    """Return an equation's step and its derivative, each compiled.

    gates  the letters of the gates if each is as wide as the state's last tensor, else none
    returns
    (igates, hgates, state) -> the state after the step
    (igates, hgates, state, dstate, dy) -> the gradients of igates, hgates and state, by those of the state after the
    step and of the output there, which is that state's h
    """

    def forward(igates: Tensor, hgates: Tensor, state: State) -> State:
        if gates:  # said for the compiler, to which sizes are unknown: then it needs one kernel, not two
            torch._check(igates.size(1) == len(gates) * state[-1].size(1))  # type: ignore[no-untyped-call]
        return step(igates, hgates, state)[0]

    def backward(igates: Tensor, hgates: Tensor, state: State, dstate: State, dy: Tensor) -> Any:
        derivative: Callable[[State], Any]
        _, derivative = torch.func.vjp(forward, igates, hgates, state)  # type: ignore[misc]
        dh, *others = dstate
        digates, dhgates, (direct, *rest) = derivative((dh + dy, *others))
        return digates, dhgates, (direct.clone(), *rest)  # which is added to in place, so it may be no other's memory

    def own(function: Any) -> Any:
        """Compile a function under code of its own: by that the compiler counts how often it had to compile anew."""
        code = function.__code__.replace(co_name=f"{name_of(step)}_{function.__name__}")
        return torch.compile(FunctionType(code, globals(), closure=function.__closure__), dynamic=True)

    return own(forward), own(backward)


def compiled_for(direction: Direction) -> tuple[Callable[..., State], StepBack]:
    """Return what is `compiled` of a direction's equation."""
    step, gates = direction.equation.step, direction.equation.gates
    as_wide = len(gates) * direction.state[-1].size(1) == direction.weights.w_hh.size(0)
    return compiled(step, gates if as_wide else ())


class FusedThroughTime(Function):
    """A direction, with its tensors for autograd to see. Each step keeps its hgates, the state before it and m."""

    @staticmethod
    def forward(ctx: Any, direction: Direction, *tensors: Tensor | None) -> Any:
        step, _ = compiled_for(direction)
        weights, order = direction.weights, in_order(direction)
        carry = Carry(tuple(s.clone() for s in direction.state))  # h and c apart: the compiler tells one from two
        igates = F.linear(direction.input, weights.w_ih, weights.b_ih)
        if direction.lengths is not None:
            KERNELS[direction.equation.step].shut(igates.flatten(0, 1), ends.through(direction))
        w_hh = cublas.repeated(len(order), direction.state[0].size(0), weights.w_hh.t()).w
        xs, outputs, kept = direction.split(igates), [igates] * len(order), list[Tensor]()
        for t in order:
            state = carry.resize(xs[t].size(0))
            hgates = torch.mm(state[0], w_hh) if weights.b_hh is None else torch.addmm(weights.b_hh, state[0], w_hh)
            m, *others = step(xs[t], hgates, state)
            outputs[t] = m if weights.w_hr is None else F.linear(m, weights.w_hr)
            carry.state = outputs[t], *others
            kept += hgates, m, *state  # `by_hand` takes them apart again; m is h before its projection
        keep(ctx, direction, tensors, igates, *kept)
        # Results are no view of what is kept, nor of what was given.
        return direction.join(outputs), *(s.clone() for s in carry.whole())

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, *go_back(ctx, by_hand, grads, ctx.needs_input_grad[1:])


def by_hand(
    direction: Direction, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> Grads:
    """Return the gradients of `direction.tensors`, those that are needed, by those of the results."""
    igates, *kept = kept
    _, step_back = compiled_for(direction)
    (w_ih, w_hh, _, _, w_hr), order = direction.weights, in_order(direction)
    each = 2 + len(direction.state)
    by_step = dict(zip(order, (kept[k : k + each] for k in range(0, len(kept), each)), strict=True))  # hgates, m, state
    carry = Carry(
        tuple(torch.zeros_like(s) if d is None else d for s, d in zip(direction.state, grads[1:], strict=True))
    )
    xs, no_dy = direction.split(igates), torch.zeros_like(direction.state[0])
    dys = [no_dy[: x.size(0)] for x in xs] if grads[0] is None else direction.split(grads[0].contiguous())
    no_dm = None if w_hr is None else no_dy.new_zeros(no_dy.size(0), w_hr.size(1))
    found: dict[int, tuple[Tensor, ...]] = {}
    for t in reversed(order):
        hgates, _, *state = by_step[t]
        n, dy = xs[t].size(0), dys[t]
        dh, *rest = carry.resize(n)
        dm = dh
        if w_hr is not None and no_dm is not None:
            dh, dy = dh + dy, no_dm[:n]  # added ahead of W_hr, so the compiled step gets zeros
            dm = torch.mm(dh, w_hr)
        digates, dhgates, (direct, *others) = step_back(xs[t], hgates, tuple(state), (dm, *rest), dy)
        carry.state = direct.addmm_(dhgates, w_hh), *others
        found[t] = digates, dhgates, dh

    steps = range(len(order))
    digates, dhgates, dh = (torch.cat([found[t][k] for t in steps]) for k in range(3))
    m, h = (torch.cat([by_step[t][k] for t in steps]) for k in (1, 2))
    x = direction.input.reshape(-1, direction.input.size(-1))
    formed: list[Callable[[], Tensor]] = [
        lambda: torch.mm(digates, w_ih).view_as(direction.input),
        lambda: torch.mm(digates.t(), x),
        lambda: torch.mm(dhgates.t(), h),
        lambda: digates.sum(0),
        lambda: dhgates.sum(0),
        lambda: torch.mm(dh.t(), m),
        *(lambda s=s: s.clone() for s in carry.whole()),
    ]
    return [form() if need else None for form, need in zip(formed, needed, strict=True)]


def in_order(direction: Direction) -> list[int]:
    """Return the steps in the order in which the direction takes them."""
    steps = range(direction.length)
    return [*reversed(steps)] if direction.reverse else [*steps]


@ends.by_ends
def unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction over all of its steps, as `recurrence.unroll` does, two launches a step and way."""
    direction = aliased(direction)
    output, *state = FusedThroughTime.apply(direction, *direction.tensors)  # type: ignore[no-untyped-call]
    return output, tuple(state)
