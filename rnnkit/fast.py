"""The six classes with the fast path wherever it serves, for a parity run: `python -m parity --subject rnnkit.fast`."""

from . import layers
from .cells import GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class RNN(layers.RNN):
    path = "always fast"


class LSTM(layers.LSTM):
    path = "always fast"


class GRU(layers.GRU):
    path = "always fast"
