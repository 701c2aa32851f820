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


def unroll(direction: Direction) -> tuple[Tensor, State]:
    """Take one direction over all of its steps.

    returns output (L, N, H_out) or (S, H_out), and the state after the step taken last
    """
    weights, state, packed = direction.weights, direction.state, direction.batch_sizes is not None
    igates = F.linear(direction.input, weights.w_ih, weights.b_ih)  # of all steps at once
    steps = igates.split_with_sizes(direction.step_sizes) if packed else igates.unbind(0)
    outputs: list[Tensor] = []
    rest: State = ()  # of the rows without a step now: forward, those sequences are over; in reverse, yet to begin
    for x in reversed(steps) if direction.reverse else steps:
        if packed and len(x) != len(state[0]):
            whole = _joined(state, rest)
            state = tuple(s[: len(x)] for s in whole)
            rest = tuple(s[len(x) :] for s in whole) if len(x) < len(whole[0]) else ()
        state = step(direction.equation, x, state, weights)
        outputs.append(state[0])
    state = _joined(state, rest)
    if direction.reverse:
        outputs.reverse()
    if not outputs:
        return igates[..., : state[0].size(-1)], state  # as empty as the igates, and differentiable like them
    return torch.cat(outputs) if packed else torch.stack(outputs), state


def _joined(state: State, rest: State) -> State:
    """Return the state of all rows."""
    return tuple(torch.cat(pair) for pair in zip(state, rest, strict=True)) if rest else state
