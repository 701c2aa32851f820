"""The readable path: an equation, taken over time.

Plain torch operations and nothing written in place: this is the definition, and every transform of torch goes through.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .equations import Equation, State
from .stack import Direction, Weights


def step(equation: Equation, igates: Tensor, state: State, weights: Weights) -> State:
    """Return the state after one step, whose input says `igates` (n, G*H_cell)."""
    hgates = F.linear(state[0], weights.w_hh, weights.b_hh)  # (n, G*H_cell)
    state, _ = equation.step(igates, hgates, state)
    return state if weights.w_hr is None else (F.linear(state[0], weights.w_hr), *state[1:])  # h (n, H_out)


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
    weights, carry, packed = direction.weights, Carry(direction.state), direction.batch_sizes is not None
    igates = F.linear(direction.input, weights.w_ih, weights.b_ih)  # of all steps at once
    steps = igates.split_with_sizes(direction.step_sizes) if packed else igates.unbind(0)
    outputs: list[Tensor] = []
    for x in reversed(steps) if direction.reverse else steps:
        state = carry.resize(x.size(0)) if packed else carry.state
        carry.state = step(direction.equation, x, state, weights)
        outputs.append(carry.state[0])
    if direction.reverse:
        outputs.reverse()
    if not outputs:
        h, *_ = direction.state
        return igates[..., : h.size(-1)], direction.state  # as empty as the igates, and differentiable like them
    return torch.cat(outputs) if packed else torch.stack(outputs), carry.whole()
