"""The readable path: an equation, taken over time.

Plain torch operations and nothing written in place: this is the definition, and every transform of torch goes through.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .equations import State
from .stack import Direction


def stepper(direction: Direction) -> Callable[[Tensor, State], State]:
    """Return the function (igates, state) -> the state after one step of `direction`.

    igates  (n, G*H_cell), what the step's input says
    """
    _, w_hh, _, b_hh, w_hr = direction.weights
    equation = direction.equation.bound(direction.own, direction.training)

    def step(igates: Tensor, state: State) -> State:
        hgates = F.linear(state[0], w_hh, b_hh)  # (n, G*H_cell)
        state, _ = equation(igates, hgates, state)
        return state if w_hr is None else (F.linear(state[0], w_hr), *state[1:])  # h (n, H_out)

    return step


class Carry:
    """The state on its way from step to step. Rows without a step now wait: they are through, or yet to begin."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.waiting: State = ()

    def resize(self, rows: int) -> State:
        """Return the state of the first `rows` rows, which have a step now; the others wait."""
        now = self.state[0].size(0)
        if rows < now:
            self.waiting = _joined(tuple(s[rows:] for s in self.state), self.waiting)
            self.state = tuple(s[:rows] for s in self.state)
        elif rows > now:
            self.state = _joined(self.state, tuple(w[: rows - now] for w in self.waiting))
            rest = tuple(w[rows - now :] for w in self.waiting)
            self.waiting = rest if rest[0].size(0) else ()  # nothing to join, whose dtype might be another
        return self.state

    def whole(self) -> State:
        """Return the state of all rows."""
        return _joined(self.state, self.waiting)


def _joined(state: State, waiting: State) -> State:
    return tuple(torch.cat(pair) for pair in zip(state, waiting, strict=True)) if waiting else state


def unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction over all of its steps.

    returns output (L, N, H_out) or (S, H_out), and the state after the step taken last
    """
    if direction.ragged:
        return masked_unroll(direction)
    weights, carry, packed = direction.weights, Carry(direction.state), direction.batch_sizes is not None
    igates = F.linear(direction.input, weights.w_ih, weights.b_ih)  # of all steps at once
    step, steps = stepper(direction), direction.split(igates)
    outputs: list[Tensor] = []
    for x in reversed(steps) if direction.reverse else steps:
        state = carry.resize(x.size(0)) if packed else carry.state
        carry.state = step(x, state)
        outputs.append(carry.state[0])
    if direction.reverse:
        outputs.reverse()
    return (direction.join(outputs) if outputs else no_steps(direction, igates)), carry.whole()


def no_steps(direction: Direction, igates: Tensor) -> Tensor:
    """Return the output of no steps: as one step of no rows has it, so that every weight has a gradient, of zeros."""
    output, *_ = stepper(direction)(igates.flatten(0, -2), tuple(s[:0] for s in direction.state))
    return output.view(*igates.shape[:-1], output.size(-1))


# By masks -----------------------------------------------------------------------------------------------------------


class Masks(NamedTuple):
    """Of each step and row, as lengths and resets say it: they are computed with, and never looked at."""

    there: Tensor  # (L, N, 1): whether the row has the step; N may be 1, for all rows
    anew: Tensor  # (L, N, 1): whether its state is reset before


def masks(direction: Direction) -> Masks:
    """Return the masks of a ragged direction. A reverse one begins anew where, in time, the next step would."""
    input, lengths, resets = direction.input, direction.lengths, direction.resets
    L, device = input.size(0), input.device
    step = torch.arange(L, device=device)
    end = L if lengths is None else lengths.to(device)
    there = step[:, None] < end  # (L, N), or (L, 1) without lengths
    if resets is None:
        anew = torch.zeros_like(there)
    elif direction.reverse:
        after = step + 1
        anew = resets.to(device).index_select(0, after.clamp(max=L - 1)) & (after[:, None] < end)
    else:
        anew = resets.to(device) & there
    return Masks(there.unsqueeze(-1), anew.unsqueeze(-1))


def masked_igates(direction: Direction, there: Tensor) -> Tensor:
    """Return the igates of all steps (L, N, G*H_cell). What padding holds, a NaN for one, reaches no gradient."""
    return F.linear(torch.where(there, direction.input, 0), direction.weights.w_ih, direction.weights.b_ih)


def masked_step(direction: Direction, state: State, igates: Tensor, masks: Masks) -> tuple[State, Tensor]:
    """Return the state after one step and the output there, which is zero in rows that haven't the step."""
    if direction.reset_to:
        pairs = zip(direction.reset_to, state, strict=True)
        state = tuple(torch.where(masks.anew, other, s) for other, s in pairs)
    # What a row holds that hasn't the step, a NaN for one, reaches no gradient of the weights.
    after = stepper(direction)(igates, tuple(torch.where(masks.there, s, 0) for s in state))
    stays = tuple(torch.where(masks.there, new, s) for new, s in zip(after, state, strict=True))
    return stays, torch.where(masks.there, after[0], 0)


def masked_unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take a ragged direction over all steps, as `unroll` does."""
    there, anew = masks(direction)
    igates = masked_igates(direction, there)
    state, outputs = direction.state, list[Tensor]()
    steps = [*zip(igates.unbind(0), there.unbind(0), anew.unbind(0), strict=True)]
    for x, *now in reversed(steps) if direction.reverse else steps:
        state, output = masked_step(direction, state, x, Masks(*now))
        outputs.append(output)
    if direction.reverse:
        outputs.reverse()
    return torch.stack(outputs) if outputs else no_steps(direction, igates), state
