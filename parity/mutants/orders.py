"""The order of the gates, in which an implementation keeps the rows of its weights, and which system has which."""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .definition import GATES


class Order(NamedTuple):
    """The gates in the order in which an implementation reads rows: block by block, or unit by unit (interleaved)."""

    gates: str
    interleaved: bool = False

    def rows(self, H: int) -> Tensor:
        """Return, for each row in torch.nn's order, the row that this implementation reads there."""
        G = len(self.gates)
        blocks = torch.arange(G * H).view(H, G).mT if self.interleaved else torch.arange(G * H).view(G, H)
        return torch.cat([blocks[self.gates.index(gate)] for gate in GATES[_kind_of(self.gates)]])

    def permutation(self, H: int) -> Tensor | None:
        """Return the rows where they are not torch.nn's own."""
        return None if self.plain else self.rows(H)

    @property
    def plain(self) -> bool:
        return self.gates == GATES[_kind_of(self.gates)] and not self.interleaved

    def __str__(self) -> str:
        return f"gates in the order {' '.join(self.gates)}" + ", interleaved unit by unit" * self.interleaved

    @property
    def fix(self) -> str:
        ours = GATES[_kind_of(self.gates)]
        blocks = ["0:H", "H:2H", "2H:3H", "3H:4H"]
        taken = ", ".join(f"[{blocks[ours.index(gate)]}]" for gate in self.gates)
        text = f"permute rows {taken} of weight_ih and weight_hh and of the biases"
        if self.interleaved:
            text += f", then interleave them: row {len(ours)}*u + k is gate k of unit u"
        split = f"{', '.join(ours)} = gates.chunk({len(ours)}, -1)"
        return f"{text} when loading torch.nn's weights, or split the gates as torch.nn does: {split}"


def _kind_of(gates: str) -> str:
    return next(kind for kind, ours in GATES.items() if sorted(ours) == sorted(gates))


@cache
def orders(kind: str) -> tuple[Order, ...]:
    """Return every order, torch.nn's own first."""
    gates = GATES[kind]
    permutations = ["".join(order) for order in itertools.permutations(gates)]
    return tuple(Order(order, how) for how in ((False, True) if len(gates) > 1 else (False,)) for order in permutations)


#: Systems by the order in which they keep gates and by what else they do.
SYSTEMS: tuple[tuple[str, Order, tuple[str, ...]], ...] = (
    ("cuDNN, Keras, MXNet, oneDNN, Sonnet 2, TensorFlow BlockLSTMV2", Order("ifgo"), ()),
    ("ONNX, WebNN's default", Order("iofg"), ()),
    ("TF1 BasicLSTMCell and LSTMCell, Haiku", Order("igfo"), ("forget gate + 1",)),
    ("haste, TensorFlow BlockLSTM, Metal with forgetGateLast", Order("igfo"), ()),
    ("ncps", Order("gifo"), ("forget gate + 1",)),
    ("CoreML, Caffe, tracetorch", Order("ifog"), ()),
    ("OpenVINO", Order("figo"), ()),
    ("Chainer's LSTM", Order("gifo", interleaved=True), ()),
    ("Keras with reset_after=True, ONNX with linear_before_reset=1, haste", Order("zrn"), ()),
    ("Keras with reset_after=False, ONNX's default", Order("zrn"), ("reset before the product",)),
    ("CoreML", Order("rnz"), ()),
    ("TF1 GRUCell", Order("rzn"), ("reset before the product",)),
    ("Haiku, Sonnet", Order("zrn"), ("reset before the product", "update gate of the opposite sense")),
    ("Chainer's StatelessGRU", Order("rzn"), ("reset before the product", "update gate of the opposite sense")),
)
