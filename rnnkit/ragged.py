"""Lengths and resets, where the host can read them: what they make of a padded batch's rows is packed.

A row that ends at its length and begins anew at its resets is several sequences. Each of them is a row of its own of
a packed batch, the longest first: every path runs that as it is, and takes no step for what is padding.
"""

import torch
from torch import Tensor

from .equations import State
from .stack import Direction, Results, Stack, Unroll


class Sequences:
    """The sequences of a ragged batch (L, N, ...), M of them, with S steps in all.

    batch_sizes  of the packed rows
    steps        (S,) the place of each packed row among the L*N of the batch
    rows         (M,) the row of the batch that each sequence is part of
    given        (M, 1) for each direction, forward first: whether it begins with the given state, not with reset_to
    ends         (N,) for each direction: the sequence after which it has taken all steps of a row
    """

    def __init__(self, of: Stack | Direction) -> None:
        self.L, self.N = of.input.shape[:2]
        self.reset = of.resets is not None
        rows, first, sizes, at_once = cut(self.L, self.N, of.lengths, of.resets)
        sizes, order = torch.sort(sizes, descending=True)
        rows, first, opens, closes = rows[order], first[order], (first == 0)[order], (first == 0).roll(-1)[order]
        self.batch_sizes = (len(rows) - torch.bincount(sizes, minlength=1).cumsum(0))[:-1]
        step = torch.arange(len(self.batch_sizes), device="cpu").repeat_interleave(self.batch_sizes)
        starts = self.batch_sizes.cumsum(0) - self.batch_sizes
        sequence = torch.arange(len(step), device="cpu") - starts[step]
        device = of.input.device
        self.steps = ((first[sequence] + step) * self.N + rows[sequence]).to(device)
        self.rows = rows.to(device)
        self.given = [given.unsqueeze(1).to(device) for given in (opens & ~at_once[rows], closes)]
        self.ends = [by_row(rows, chosen).to(device) for chosen in (closes, opens)]

    def pack(self, batch: Tensor) -> Tensor:
        """Return the packed rows (S, F) of a batch (L, N, F)."""
        return batch.flatten(0, 1).index_select(0, self.steps)

    def pad(self, rows: Tensor) -> Tensor:
        """Return packed rows (S, F) as a batch (L, N, F), zero where there is no step."""
        flat = rows.new_zeros(self.L * self.N, rows.size(1)).index_copy(0, self.steps, rows)
        return flat.view(self.L, self.N, rows.size(1))

    def first(self, state: State, reset_to: State, reverse: bool) -> State:
        """Return the state (M, H) with which each sequence begins."""
        begin = tuple(s.index_select(0, self.rows) for s in state)
        if not self.reset:
            return begin
        others = (s.index_select(0, self.rows) for s in reset_to)
        return tuple(torch.where(self.given[reverse], s, other) for s, other in zip(begin, others, strict=True))

    def last(self, state: State, reverse: bool) -> State:
        """Return the state (N, H) of each row after all of its steps, of that (M, H) of each sequence after its own."""
        return tuple(s.index_select(0, self.ends[reverse]) for s in state)


def cut(L: int, N: int, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut rows into sequences, row by row in the order of time.

    returns of each sequence (M,) its row, first step and number of steps; of each row (N,) whether it begins by a reset
    """
    lengths = torch.full((N,), L, device="cpu") if lengths is None else lengths
    rows, first = torch.arange(N, device="cpu"), torch.zeros(N, dtype=torch.int64, device="cpu")
    if resets is None:
        return rows, first, lengths, first > 0
    begins = torch.zeros(N, L + 1, dtype=torch.bool, device="cpu")  # a row without any step begins, too
    begins[:, :L] = resets.t() & (torch.arange(L, device="cpu") < lengths[:, None])
    at_once = begins[:, 0].clone()
    begins[:, 0] = True
    rows, first = begins.nonzero(as_tuple=True)
    end = torch.where((first == 0).roll(-1), lengths[rows], first.roll(-1))  # of its row, or where the next one begins
    return rows, first, end - first, at_once


def by_row(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return for each row of the batch (N,) the one among its sequences that is chosen."""
    (sequences,) = chosen.nonzero(as_tuple=True)
    return sequences[rows[sequences].argsort()]


def pack(stack: Stack) -> tuple[Stack, Sequences]:
    """Return the packed stack of a ragged one's sequences, and these."""
    sequences, D = Sequences(stack), 2 if stack.bidirectional else 1
    reset_to = stack.reset_to or [()] * len(stack.states)
    pairs = enumerate(zip(stack.states, reset_to, strict=True))
    states = [sequences.first(*pair, reverse=k % D == 1) for k, pair in pairs]
    packed = stack._replace(input=sequences.pack(stack.input), states=states, batch_sizes=sequences.batch_sizes)
    return packed._replace(lengths=None, resets=None, reset_to=()), sequences


def unpack(results: Results, sequences: Sequences, bidirectional: bool) -> Results:
    """Return as a ragged stack's what its packed one gives."""
    (output, finals), D = results, 2 if bidirectional else 1
    return sequences.pad(output), [sequences.last(state, reverse=k % D == 1) for k, state in enumerate(finals)]


def unroll(direction: Direction, unroll: Unroll) -> tuple[Tensor, State]:
    """Take a ragged direction over all steps by the `unroll` of its packed sequences."""
    sequences, reverse = Sequences(direction), direction.reverse
    state = sequences.first(direction.state, direction.reset_to, reverse)
    packed = direction._replace(input=sequences.pack(direction.input), state=state, batch_sizes=sequences.batch_sizes)
    output, final = unroll(packed._replace(lengths=None, resets=None, reset_to=()))
    return sequences.pad(output), sequences.last(final, reverse)
