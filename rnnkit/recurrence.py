"""The readable path: an equation, taken over time, directions and layers.

    step     an equation on one step's rows
    unroll   one direction of one layer: the steps
    layer    one or both directions
    stack    the layers, with dropout between them

Plain torch operations and nothing written in place: this is the definition, and every transform of torch goes through.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .equations import Equation, State
from .stack import Results, Stack, Weights, run

Unroll: TypeAlias = Callable[[Stack, int], tuple[Tensor, State]]


def step(equation: Equation, igates: Tensor, state: State, weights: Weights) -> State:
    """Return the state after one step, whose input says `igates` (n, G*H_cell)."""
    hgates = F.linear(state[0], weights.w_hh, weights.b_hh)  # (n, G*H_cell)
    state, _ = equation.step(igates, hgates, state)
    return state if weights.w_hr is None else (F.linear(state[0], weights.w_hr), *state[1:])  # h (n, H_out)


def unroll(layer: Stack, direction: int) -> tuple[Tensor, State]:
    """Take one direction of `layer` over all steps: direction 0 from the first to the last, 1 from the last to the first.

    returns output (L, N, H_out) or (S, H_out), and the state after the step taken last
    """
    weights, state, packed = layer.weights[direction], layer.states[direction], layer.batch_sizes is not None
    igates = F.linear(layer.input, weights.w_ih, weights.b_ih)  # of all steps at once
    steps = igates.split_with_sizes(layer.step_sizes) if packed else igates.unbind(0)
    outputs: list[Tensor] = []
    rest: State = ()  # of the rows without a step now: forward, those sequences are over; in reverse, yet to begin
    for x in reversed(steps) if direction else steps:
        if packed and len(x) != len(state[0]):
            whole = _joined(state, rest)
            state = tuple(s[: len(x)] for s in whole)
            rest = tuple(s[len(x) :] for s in whole) if len(x) < len(whole[0]) else ()
        state = step(layer.equation, x, state, weights)
        outputs.append(state[0])
    state = _joined(state, rest)
    if direction:
        outputs.reverse()
    if not outputs:
        return igates[..., : state[0].size(-1)], state  # as empty as the igates, and differentiable like them
    return torch.cat(outputs) if packed else torch.stack(outputs), state


def _joined(state: State, rest: State) -> State:
    """Return the state of all rows."""
    return tuple(torch.cat(pair) for pair in zip(state, rest, strict=True)) if rest else state


def layer(layer: Stack, unroll: Unroll = unroll) -> Results:
    """Take both directions of `layer` over its input, or the forward one alone if it isn't bidirectional."""
    output, final = unroll(layer, 0)
    if not layer.bidirectional:
        return output, [final]
    reverse, last = unroll(layer, 1)
    return torch.cat((output, reverse), -1), [final, last]


def stack(stack: Stack) -> Results:
    """Run a stack by the readable path."""
    return run(stack, layer)
