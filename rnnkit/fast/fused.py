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

from ..equations import Equation, State, name_of
from ..recurrence import Carry
from ..stack import Direction
from ..untraced import untraced
from . import cublas, ends
from .autograd import aliased, go_back, keep, recorded
from .kernels import KERNELS
from .loop import Grads

StepBack: TypeAlias = Callable[..., tuple[Tensor, Tensor, State]]


@lru_cache(maxsize=256)
def compiled(
    equation: Equation, as_wide: bool, direct_too: bool, *use: object
) -> tuple[Callable[..., State], StepBack]:
    """Return an equation's step and its derivative, each compiled.

    as_wide     whether each gate is as wide as the state's last tensor
    direct_too  whether the step reads h itself: else its gradient is None, for hgates alone say what h does
    use         what else tells calls apart for which a compiler makes kernels of their own, as dtypes
    returns
    (igates, hgates, state) -> the state after the step
    (igates, hgates, state, dstate, dy) -> the gradients of igates, hgates and state, by those of the state after the
    step and of the output there, which is that state's h
    """
    step, gates = equation.step, equation.gates  # their number, were it kept, would be unknown to the compiler, too

    def forward(igates: Tensor, hgates: Tensor, state: State) -> State:
        if as_wide:  # said for the compiler, to which sizes are unknown: then it needs one kernel, not two
            torch._check(igates.size(1) == len(gates) * state[-1].size(1))  # type: ignore[no-untyped-call]
        return step(igates, hgates, state)[0]

    def backward(igates: Tensor, hgates: Tensor, state: State, dstate: State, dy: Tensor) -> Any:
        derivative: Callable[[State], Any]
        _, derivative = torch.func.vjp(forward, igates, hgates, state)  # type: ignore[misc]
        dh, *others = dstate
        digates, dhgates, (direct, *rest) = derivative((dh + dy, *others))
        # What is returned is added to in place, so it may be no other's memory.
        return digates, dhgates, (direct.clone() if direct_too else None, *rest)

    def own(function: Any) -> Any:
        """Compile a function under code of its own: after some compilations of one code the compiler gives up."""
        code = function.__code__.replace(co_name=f"{name_of(step)}_{function.__name__}")
        return torch.compile(FunctionType(code, globals(), closure=function.__closure__), dynamic=True)

    return own(forward), own(backward)


@lru_cache(maxsize=256)
def reads_h(equation: Equation, width: int, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether a step reads h itself, as a GRU's does, besides the product that hgates are, by a row of zeros."""
    with torch.inference_mode(False), torch.enable_grad():
        gates, h, *others = (torch.zeros(1, size, dtype=dtype, device=device) for size in (width, *sizes))
        after, _ = equation.step(gates, gates, (h.requires_grad_(), *others))
        return any(s.requires_grad for s in after)


def compiled_for(direction: Direction) -> tuple[Callable[..., State], StepBack]:
    """Return what is `compiled` of a direction's equation."""
    weights, equation, use = direction.weights, direction.equation, (direction.input.dtype, direction.input.device)
    width, sizes = weights.w_hh.size(0), tuple(s.size(1) for s in direction.state)
    as_wide, direct_too = width == len(equation.gates) * sizes[-1], reads_h(equation, width, sizes, *use)
    packed, projected = direction.batch_sizes is not None, weights.w_hr is not None
    return compiled(equation, as_wide, direct_too, *use, cublas.by_tf32(), packed, projected)


class FusedThroughTime(Function):
    """A direction, with its tensors for autograd to see."""

    @staticmethod
    def forward(ctx: Any, direction: Direction, *tensors: Tensor | None) -> Any:
        kept: list[Tensor] = []
        output, state = run(direction, kept)
        keep(ctx, direction, tensors, *kept)
        return output, *state

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, *go_back(ctx, by_hand, grads, ctx.needs_input_grad[1:])


def run(direction: Direction, kept: list[Tensor] | None) -> tuple[Tensor, State]:
    """Return the output and the state after the last step. For the way back, all igates, and of each step hgates, m and
    the state before it are added to `kept`, if that is given; m is h before its projection."""
    step, _ = compiled_for(direction)
    weights, order = direction.weights, in_order(direction)
    carry = Carry(tuple(s.clone() for s in direction.state))  # h and c apart: the compiler tells one from two
    igates = F.linear(direction.input, weights.w_ih, weights.b_ih)
    if direction.lengths is not None:
        KERNELS[direction.equation.step].shut(igates.flatten(0, 1), ends.through(direction))
    w_hh = cublas.repeated(len(order), direction.state[0].size(0), weights.w_hh.t()).w
    xs, outputs = direction.split(igates), [igates] * len(order)
    if kept is not None:
        kept.append(igates)
    for t in order:
        state = carry.resize(xs[t].size(0))
        hgates = torch.mm(state[0], w_hh) if weights.b_hh is None else torch.addmm(weights.b_hh, state[0], w_hh)
        m, *others = step(xs[t], hgates, state)
        outputs[t] = m if weights.w_hr is None else F.linear(m, weights.w_hr)
        carry.state = outputs[t], *others
        if kept is not None:
            kept += hgates, m, *state  # `by_hand` takes them apart again
    # Results are no view of what is kept, nor of what was given.
    return direction.join(outputs), tuple(s.clone() for s in carry.whole())


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
        carry.state = torch.mm(dhgates, w_hh) if direct is None else direct.addmm_(dhgates, w_hh), *others
        found[t] = digates, dhgates, dh

    def rows(k: int, of: dict[int, Any]) -> Tensor:
        """Return the k-th of all steps, one after another."""
        return torch.cat([of[t][k] for t in range(len(order))])

    digates = rows(0, found)
    dhgates = digates if found[0][0] is found[0][1] else rows(1, found)
    x = direction.input.reshape(-1, direction.input.size(-1))
    formed: list[Callable[[], Tensor]] = [
        lambda: torch.mm(digates, w_ih).view_as(direction.input),
        lambda: torch.mm(digates.t(), x),
        lambda: torch.mm(dhgates.t(), rows(2, by_step)),  # by h before each step
        lambda: digates.sum(0),
        lambda: dhgates.sum(0),
        lambda: torch.mm(rows(2, found).t(), rows(1, by_step)),  # dh by m
        *(lambda s=s: s.clone() for s in carry.whole()),
    ]
    return [form() if need else None for form, need in zip(formed, needed, strict=True)]


def in_order(direction: Direction) -> list[int]:
    """Return the steps in the order in which the direction takes them."""
    steps = range(direction.length)
    return [*reversed(steps)] if direction.reverse else [*steps]


@ends.by_ends
def unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction over all of its steps, as `recurrence.unroll` does.

    Forward a step is two kernels, its product and the rest; back it is a product and one kernel (RNN) or two.
    """
    if not recorded(direction):
        with torch.no_grad():
            return run(direction, None)
    direction = aliased(direction)
    output, *state = FusedThroughTime.apply(direction, *direction.tensors)  # type: ignore[no-untyped-call]
    return output, tuple(state)
