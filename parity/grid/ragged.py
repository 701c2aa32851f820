"""Batches whose rows end early or begin anew: by `lengths=` and `resets=` where a module takes them.

What rnnkit does in one call, torch.nn does in several: it runs packed rows, and every segment of every row alone. So
that is what the subject's call is compared with, and what a subject without these arguments is asked for, too.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

States = Sequence[Tensor]  # h and, of an LSTM, c: each (D*num_layers, N, H)


class Ragged(NamedTuple):
    """How the rows of a batch are cut, as the arguments of rnnkit's layers say it."""

    lengths: Tensor | None  # (N,)
    resets: Tensor | None  # (L, N), or (N, L) with batch_first
    reset_to: Any  # as hx


def call(module: nn.Module, input: Tensor, hx: Any, ragged: Ragged, sizes: Sequence[int]) -> tuple[Any, Any]:
    """Run a batch that is cut. `sizes` are the features of h and, of an LSTM, of c."""
    if "lengths" in inspect.signature(module.forward).parameters:
        result: tuple[Any, Any] = module(input, hx, **ragged._asdict())
        return result
    if ragged.resets is None:
        return packed(module, input, hx, ragged.lengths)
    return alone(module, input, hx, ragged, sizes)


def packed(module: Any, input: Tensor, hx: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """Run the rows packed, and pad what comes back to the length of the input.

    They are gathered and laid back by their places: torch's functions for both can't differentiate complex numbers.
    """
    assert lengths is not None
    rows = input.transpose(0, 1) if module.batch_first else input
    L, N = rows.shape[:2]
    order = pack_padded_sequence(torch.arange(L * N).view(L, N), lengths.cpu(), enforce_sorted=False)
    order = order.to(input.device)  # type: ignore[arg-type]  # as `Tensor.to` takes it
    output, state = module(order._replace(data=rows.flatten(0, 1).index_select(0, order.data)), hx)
    flat = output.data.new_zeros(L * N, output.data.size(1)).index_copy(0, order.data, output.data)
    padded = flat.view(L, N, -1)
    return padded.transpose(0, 1) if module.batch_first else padded, state


def alone(module: Any, input: Tensor, hx: Any, ragged: Ragged, sizes: Sequence[int]) -> tuple[Tensor, Any]:
    """Run every segment of every row alone, and put them together.

    A forward direction begins a row with hx, or with reset_to if there is a reset at its first step; a reverse one
    begins it with hx at its end. Both begin the other segments with reset_to.
    """
    lengths, resets, reset_to = ragged
    assert resets is not None
    rows, resets = (input.transpose(0, 1), resets.t()) if module.batch_first else (input, resets)
    L, N = rows.shape[:2]
    zeros = [rows.new_zeros(_layers(module), N, size) for size in sizes]
    given, other = (zeros if states is None else _list(states) for states in (hx, reset_to))
    outputs, finals = [], []
    for n in range(N):
        length = L if lengths is None else int(lengths[n])
        cuts = [0, *(t for t in range(1, length) if resets[t, n]), length]
        parts, lasts = [], []
        for a, b in itertools.pairwise(cuts):
            forward, reverse = other if a or resets[0, n] else given, other if b < length else given
            state = [s[:, n : n + 1] for s in _by_direction(module, forward, reverse)]
            segment = rows[a:b, n : n + 1]
            part, last = module(segment.transpose(0, 1) if module.batch_first else segment, _hx(state))
            parts.append(part.transpose(0, 1) if module.batch_first else part)
            lasts.append(_list(last))
        parts.append(parts[0].new_zeros(L - length, 1, parts[0].size(2)))
        outputs.append(torch.cat(parts))
        finals.append(_by_direction(module, lasts[-1], lasts[0]))
    output, last = torch.cat(outputs, 1), _hx([torch.cat(s, 1) for s in zip(*finals, strict=True)])
    return output.transpose(0, 1) if module.batch_first else output, last


def _layers(module: Any) -> int:
    return int(module.num_layers) * (2 if module.bidirectional else 1)


def _list(states: Any) -> list[Tensor]:
    return list(states) if isinstance(states, (tuple, list)) else [states]


def _hx(states: States) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def _by_direction(module: Any, forward: States, reverse: States) -> list[Tensor]:
    """Return the states of `forward` for the forward directions, and those of `reverse` for the reverse ones."""
    if not module.bidirectional:
        return [*forward]
    of_reverse = (torch.arange(_layers(module)) % 2 == 1).to(forward[0].device)[:, None, None]
    return [torch.where(of_reverse, r, f) for f, r in zip(forward, reverse, strict=True)]
