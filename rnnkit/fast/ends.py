"""Rows that end where only their device knows, as on a GPU: every row takes every step, and is shut once it is through.

The steps that a row hasn't come last, for which the reverse direction first turns each row around within its length.
There the igates shut the gates (`Kernel.shut`), so that c stays and no gradient arises; h is read where the row ends.
"""

from functools import wraps

import torch
from torch import Tensor

from ..equations import State
from ..stack import Direction, Unroll


def through(direction: Direction) -> Tensor:
    """Return for each step and row, as rows (L*N, 1), whether the row is through by then."""
    steps = torch.arange(direction.length, device=direction.input.device)
    return (steps[:, None] >= _lengths(direction)).view(-1, 1)


def _lengths(direction: Direction) -> Tensor:
    """Return the lengths (N,) where the input lives. Nobody has looked whether they are in it: beyond it, it ends."""
    assert direction.lengths is not None
    return direction.lengths.to(direction.input.device).clamp(0, direction.length)


def by_ends(unroll: Unroll) -> Unroll:
    """Make an `unroll`, if it shuts the rows that are through, serve directions with lengths, too."""

    @wraps(unroll)
    def by_ends(direction: Direction) -> tuple[Tensor, State]:
        if direction.lengths is None:
            return unroll(direction)
        lengths = _lengths(direction)  # in memory of their own: nobody writes on them before backward
        there = ~through(direction).view(*direction.input.shape[:2], 1)

        def turned(steps: Tensor) -> Tensor:
            """Return the steps with those of each row turned around, if this is the reverse direction."""
            if not direction.reverse:
                return steps
            step = torch.arange(direction.length, device=lengths.device)[:, None]
            around = torch.where(there.squeeze(2), lengths - 1 - step, step).unsqueeze(2)  # (L, N, 1)
            return steps.gather(0, around.expand_as(steps))

        # What a row without steps holds, a NaN for one, reaches no gradient; nor does padding.
        begins = lengths[:, None] > 0
        input = turned(torch.where(there, direction.input, 0))
        state = tuple(torch.where(begins, s, 0) for s in direction.state)
        output, (_, *others) = unroll(direction._replace(input=input, state=state, reverse=False, lengths=lengths))
        last = (lengths - 1).clamp(min=0).view(1, -1, 1).expand(1, -1, output.size(2))
        finals = output.gather(0, last).squeeze(0), *others
        final = tuple(torch.where(begins, s, first) for s, first in zip(finals, direction.state, strict=True))
        return turned(torch.where(there, output, 0)), final

    return by_ends
