"""The readable path: an equation, taken over time, directions and layers.

    unroll   one direction of one layer: the equation over time
    layer    one or both directions of one layer
    stack    the layers, with dropout between them

Plain torch operations and nothing written in place: this is the definition, and every transform of torch goes through.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .equations import Equation, State


class Weights(NamedTuple):
    """The parameters of one direction of one layer, under torch's names and in torch's order."""

    w_ih: Tensor  # (G*H_cell, H_in)
    w_hh: Tensor  # (G*H_cell, H_out)
    b_ih: Tensor | None = None  # (G*H_cell)
    b_hh: Tensor | None = None  # (G*H_cell)
    w_hr: Tensor | None = None  # (H_out, H_cell)


Hgates: TypeAlias = Callable[[Tensor], Any]  # h (n, H_out) -> hgates (n, G*H_cell)
Run: TypeAlias = Callable[..., Any]
Products: TypeAlias = Callable[[Tensor, Weights], tuple[Tensor, Hgates]]


def hgates(weights: Weights) -> Hgates:
    """The function that forms what the state says to its gates."""
    return lambda h: F.linear(h, weights.w_hh, weights.b_hh)


def products(input: Tensor, weights: Weights) -> tuple[Tensor, Hgates]:
    """The igates (..., G*H_cell) of all steps at once, and the function that forms the hgates of one."""
    return F.linear(input, weights.w_ih, weights.b_ih), hgates(weights)


def step(equation: Equation, igates: Tensor, hgates: Hgates, state: State, w_hr: Tensor | None) -> State:
    """The state after one step, whose input says `igates` (n, G*H_cell)."""
    state, _ = equation.step(igates, hgates(state[0]), state)
    return state if w_hr is None else (F.linear(state[0], w_hr), *state[1:])  # h (n, H_out)


def unroll(
    equation: Equation,
    input: Tensor,
    state: State,
    weights: Weights,
    batch_sizes: Sequence[int] | None,
    reverse: bool,
    products: Products = products,
) -> tuple[Tensor, State]:
    """Take `equation` over the steps of `input`, from the last to the first if `reverse`.

    input   (L, N, H_in), or packed rows (S, H_in) of which step t has the next batch_sizes[t]
    state   h (N, H_out), and for an LSTM c (N, H_cell)
    products  forms igates and hgates
    returns output (L, N, H_out) or (S, H_out), and the state after the last step
    """
    igates, hgates = products(input, weights)
    packed = batch_sizes is not None
    steps = igates.split_with_sizes(batch_sizes) if batch_sizes is not None else igates.unbind(0)
    outputs: list[Tensor] = []
    rest: State = ()
    for x in reversed(steps) if reverse else steps:
        if packed and len(x) != len(state[0]):
            # Rows past this step's batch keep their state: forward, those sequences are over; in reverse, yet to begin.
            whole = tuple(torch.cat(pair) for pair in zip(state, rest, strict=True)) if rest else state
            state = tuple(s[: len(x)] for s in whole)
            rest = tuple(s[len(x) :] for s in whole) if len(x) < len(whole[0]) else ()
        state = step(equation, x, hgates, state, weights.w_hr)
        outputs.append(state[0])
    if rest:
        state = tuple(torch.cat(pair) for pair in zip(state, rest, strict=True))
    if reverse:
        outputs.reverse()
    if not outputs:
        return igates[..., : state[0].size(-1)], state  # as empty as the igates, and differentiable like them
    return torch.cat(outputs) if packed else torch.stack(outputs), state


def named(equation: Equation, layer: int, run: Run) -> Run:
    """`run`, which under a profiler goes by this layer's name, lstm_l0 for one."""
    # torch keeps this flag for itself: should it go, so does the name, and nothing else.
    if not getattr(torch.autograd.profiler, "_is_profiler_enabled", False):
        return run
    name = f"{equation.step.__name__}_l{layer}"
    return torch.profiler.record_function(name)(run)


Unroll: TypeAlias = Callable[[Equation, Tensor, State, Weights, Sequence[int] | None, bool], tuple[Tensor, State]]


def layer(
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None,
    unroll: Unroll = unroll,
) -> tuple[Tensor, list[State]]:
    """Both directions over one input, or the forward one alone where there is only one state.

    returns output (L, N, D*H_out) or (S, D*H_out), and the state of each direction
    """
    output, final = unroll(equation, input, states[0], weights[0], batch_sizes, False)
    if len(states) == 1:
        return output, [final]
    reverse, last = unroll(equation, input, states[1], weights[1], batch_sizes, True)
    return torch.cat((output, reverse), -1), [final, last]


def stack(
    equation: Equation,
    input: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None,
    dropout: float,
    bidirectional: bool,
    unroll: Unroll = unroll,
) -> tuple[Tensor, list[State]]:
    """Layers on top of each other, with dropout on what one hands to the next.

    states and weights are ordered as h_n's first dimension: layer by layer, in each the forward direction first.
    """
    D = 2 if bidirectional else 1
    output, finals = input, []
    for k in range(0, len(weights), D):
        if k and dropout:
            output = F.dropout(output, dropout)
        run = named(equation, k // D, layer)
        output, final = run(equation, output, states[k : k + D], weights[k : k + D], batch_sizes, unroll)
        finals += final
    return output, finals
