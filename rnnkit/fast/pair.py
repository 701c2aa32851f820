"""Both directions of a layer at once: half the calls, for sizes where those are what counts.

They are one direction of twice the size, whose weights are zero between the two: the reverse one takes the last step's
input when the forward one takes the first's. All of it is plain torch operations around one unroll.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import recurrence
from ..equations import State
from ..stack import Direction, Results, Unroll, Weights

FEW = 2**15  # multiplications in a step; of more, the products with zeros cost more than the calls


def pays(directions: Sequence[Direction]) -> bool:
    """Say whether a layer of these directions is faster in a pair."""
    first = directions[0]
    few = first.state[0].size(0) * first.weights.w_hh.numel() <= FEW
    by_float32 = first.input.is_cpu and first.input.dtype == torch.float32
    # A layer of inference mode is to be refused by autograd, which has to see its weights for that.
    seen = not (torch.is_grad_enabled() and first.weights.w_hh.is_inference())
    return len(directions) == 2 and first.batch_sizes is first.lengths is None and few and by_float32 and seen


def _joined(directions: Sequence[Direction]) -> tuple[Tensor, ...]:
    """Return aliases of what backward wants to find as it was, if there is to be one.

    An input whose steps don't lie on end isn't one of them: torch.nn keeps a copy of it, so a caller may write on it.
    """
    if not torch.is_grad_enabled():
        return ()
    forward, reverse = directions
    tensors = [*forward.tensors[not forward.input.is_contiguous() :], *reverse.tensors[1:]]
    return tuple([t.detach() for t in tensors if t is not None])  # which share the counter of writes


def run(directions: Sequence[Direction], unroll: Unroll) -> Results:
    """Run both directions of a padded layer by one unroll."""
    forward, reverse = directions
    gates = len(forward.equation.gates)
    w_ih, w_hh, b_ih, b_hh, w_hr = zip(forward.weights, reverse.weights, strict=True)
    biases = side_by_side(*b_ih, gates), side_by_side(*b_hh, gates)
    weights = Weights(
        blocks(w_ih, gates), blocks(w_hh, gates), *biases, blocks(w_hr, 1) if w_hr[0] is not None else None
    )
    input = torch.cat((forward.input, forward.input.flip(0)), -1)
    state = tuple(torch.cat(both, -1) for both in zip(forward.state, reverse.state, strict=True))
    pair = forward._replace(input=input, state=state, weights=weights, pair=True, joined=_joined(directions))
    output, final = unroll(pair)
    ahead, back = output.chunk(2, -1)
    finals = zip(*(s.chunk(2, -1) for s in final), strict=True)
    return torch.cat((ahead, back.flip(0)), -1), [*finals]


def finite(tensors: Sequence[Tensor | None]) -> bool:
    """Say whether all numbers are finite, by their sum, which no other operation tells sooner.

    Numbers so large that their sum is infinite are not taken to be finite: a pair that has them is run one by one.
    """
    return all(t is None or math.isfinite(t.detach().sum()) for t in tensors)


def blocks(pair: tuple[Any, ...], gates: int) -> Tensor:
    """Return two weights (G*H, F) as one (G*2*H, 2*F), in each gate's rows one above the other, zero elsewhere.

    They are padded with zeros, as the gradients of what is padded have memory of their own.
    """
    forward, reverse = (weight.view(gates, -1, weight.size(1)) for weight in pair)
    F_in = forward.size(2)
    return torch.cat((pad(forward, (0, F_in)), pad(reverse, (F_in, 0))), 1).flatten(0, 1)


def side_by_side(forward: Tensor | None, reverse: Tensor | None, gates: int) -> Tensor | None:
    """Return two biases (G*H) as one (G*2*H), gate by gate."""
    if forward is None or reverse is None:
        return None
    return torch.cat((forward.view(gates, -1), reverse.view(gates, -1)), 1).flatten()


def unroll_apart(pair: Direction) -> tuple[Tensor, State]:
    """Take the two of a pair over all steps one by one, by the readable path: then no zeros are multiplied."""
    (ahead, state), (back, other) = (recurrence.unroll(half(pair, k)) for k in (0, 1))
    return torch.cat((ahead, back), -1), tuple(torch.cat(both, -1) for both in zip(state, other, strict=True))


def half(pair: Direction, k: int) -> Direction:
    """Return one of the two directions of a pair, of whose tensors it has views."""
    w_ih, w_hh, b_ih, b_hh, w_hr = pair.weights
    gates = len(pair.equation.gates)

    def rows(tensor: Tensor, gates: int) -> Tensor:
        return tensor.view(gates, 2, -1, *tensor.shape[1:])[:, k].flatten(0, 1)

    def block(weight: Tensor, gates: int) -> Tensor:
        return rows(weight, gates).chunk(2, 1)[k]

    b_ih, b_hh = (None if b is None else rows(b, gates) for b in (b_ih, b_hh))
    weights = Weights(block(w_ih, gates), block(w_hh, gates), b_ih, b_hh, None if w_hr is None else block(w_hr, 1))
    state = tuple(s.chunk(2, -1)[k] for s in pair.state)
    return pair._replace(input=pair.input.chunk(2, -1)[k], state=state, weights=weights, pair=False)
