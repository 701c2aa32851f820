"""Each gate equation, once.

A step takes the pre-activations of its gates and the state before it, and returns the state after it and the gates:

    step(igates, hgates, state) -> (state, gates)

    igates  W_i* x + b_i*   (N, G*H)   what the input says: layers form it for all steps in one product
    hgates  W_h* h + b_h*   (N, G*H)   what the state says
    state   (h,) or (h, c)  each (N, H)
    gates   as named in the equation's record, each (N, H)

Columns of `igates` and `hgates` are in torch's gate order. The operations and their order are ATen's on a CPU, so that
values come out bit for bit; where a formula could be written two ways, that is why it is written this way. Even the
layout counts: a kernel works a row's last few elements one by one, with another exp than its vectors', so a gate is
activated as a slice of its row, never after the gates have been laid side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

State: TypeAlias = tuple[Tensor, ...]
Gates: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[Tensor, Tensor, State], tuple[State, Gates]]
Watcher: TypeAlias = Callable[[tuple[State, Gates]], object]


def rnn_tanh(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Elman, Finding structure in time (1990): h' = tanh(W_ih x + b_ih + W_hh h + b_hh)."""
    h = torch.tanh(hgates + igates)
    return (h,), (h,)


def rnn_relu(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Elman's network with a rectifier: h' = relu(W_ih x + b_ih + W_hh h + b_hh)."""
    h = torch.relu(hgates + igates)
    return (h,), (h,)


def lstm(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Hochreiter and Schmidhuber, Long short-term memory (1997), with the forget gate of Gers et al. (2000)."""
    _, c = state
    i, f, g, o = (hgates + igates).chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return (h, c), (i, f, g, o)


def gru(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Cho et al., Learning phrase representations (2014), with reset applied after the product, as in cuDNN."""
    (h,) = state
    r, z, _ = (hgates + igates).chunk(3, dim=-1)
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    *_, n_i = igates.chunk(3, dim=-1)
    *_, n_h = hgates.chunk(3, dim=-1)
    n = torch.tanh(n_i + r * n_h)
    h = (h - n) * z + n
    return (h,), (r, z, n)


@dataclass(frozen=True)
class Equation:
    """A recurrence that cells and layers can be built from.

    step   the function above, or your own
    gates  the gates' letters in the order of the weights' rows; their number is the weights' G
    state  the state's letters, h first
    """

    step: Step
    gates: tuple[str, ...]
    state: tuple[str, ...]

    def watched(self, see: Watcher) -> "Equation":
        """Return the same equation, whose step also hands what it returns to `see`."""

        def step(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
            taken = self.step(igates, hgates, state)
            see(taken)
            return taken

        return replace(self, step=step)


#: The equations that torch.nn has, by the name it gives them in the attribute `mode`.
EQUATIONS: dict[str, Equation] = {
    "RNN_TANH": Equation(rnn_tanh, ("h",), ("h",)),
    "RNN_RELU": Equation(rnn_relu, ("h",), ("h",)),
    "LSTM": Equation(lstm, ("i", "f", "g", "o"), ("h", "c")),
    "GRU": Equation(gru, ("r", "z", "n"), ("h",)),
}
