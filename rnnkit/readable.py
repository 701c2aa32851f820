"""The six classes with the readable path alone, for a parity run: `python -m parity --subject rnnkit.readable`."""

from . import layers
from .cells import GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class RNN(layers.RNN):
    path = "readable"


class LSTM(layers.LSTM):
    path = "readable"


class GRU(layers.GRU):
    path = "readable"
