"""rnnkit: torch.nn's recurrent modules, written by hand in torch operations.

Sizes, as torch.nn's documentation names them:

    N      batch                    L      length of the sequence
    H_in   input_size               H_cell hidden_size
    H_out  proj_size or hidden_size D      2 if bidirectional, else 1
    G      gates of the equation    S      rows of a packed sequence, sum(batch_sizes)
"""

from .cells import GRUCell, LSTMCell, RNNCell, RNNCellBase
from .convert import convert, to_native
from .equations import EQUATIONS, Equation, Own
from .explain import explain
from .graphs import graphed
from .layers import GRU, LSTM, RNN, RNNBase
from .tracing import Trace, trace

__version__ = "0.2.0"

__all__ = [
    "EQUATIONS",
    "GRU",
    "LSTM",
    "RNN",
    "Equation",
    "GRUCell",
    "LSTMCell",
    "Own",
    "RNNBase",
    "RNNCell",
    "RNNCellBase",
    "Trace",
    "convert",
    "explain",
    "graphed",
    "to_native",
    "trace",
]
