"""The contract: everything that isn't a number. Signatures, names, keys, initial weights, warnings, refusals.

Nothing here knows what torch.nn answers: every question is put to torch.nn and to the subject, in the same process,
and the answers are compared. A question is a line of Python over the six classes and a few helpers (see `Room`), so
that what is printed can be read and tried.
"""

from __future__ import annotations

import copy
import enum
import inspect
import itertools
import re
import typing
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..grid.run import same_bits

LAYERS = ("RNN", "LSTM", "GRU")
CLASSES = (*LAYERS, "RNNCell", "LSTMCell", "GRUCell")


class Agreement(enum.IntEnum):
    """EQUAL unless said otherwise; what is not equal is always counted and shown."""

    EQUAL = 0
    TYPE_ONLY = 1  # the same exception type, where torch.nn's message is a kernel's own (`KERNEL`)
    EXCUSED = 2  # another answer, to a question marked with the reason why it may be another
    DIFFERENT = 3


@dataclass(frozen=True)
class Answer:
    question: str
    agreement: Agreement
    reference: str
    subject: str
    excuse: str = ""


# What is asked ------------------------------------------------------------------------------------------------------

# Good constructions: each is asked for repr, attributes, keys, shapes, weights, generator, and loading both ways.
LAYER_CONSTRUCTIONS = """
C(3, 4)
C(3, 4, 2)
C(input_size=3, hidden_size=4)
C(hidden_size=4, input_size=3, num_layers=2)
C(3, 4, num_layers=3, bidirectional=True)
C(3, 4, bias=False)
C(3, 4, batch_first=True)
C(3, 4, num_layers=2, dropout=0.5)
C(3, 4, dropout=0.5)
C(3, 4, num_layers=2, dropout=1)
C(3, 4, num_layers=2, dropout=0)
C(3, 4, 2, bias=False, batch_first=True, dropout=0.25, bidirectional=True)
C(3, 4, dtype=torch.float64)
C(3, 4, dtype=torch.bfloat16)
C(3, 4, dtype=torch.float16)
C(3, 4, dtype=torch.complex64)
C(3, 4, device='cpu')
C(3, 4, device=torch.device('cpu'), dtype=torch.float32)
C(3, 4, device='meta')
C(3, 4, num_layers=2, bidirectional=True, device='meta', dtype=torch.float64)
C(1, 1)
C(True, 4)
C(3, 4, num_layers=True)
C(3, 4, bidirectional=1)
C(3, 4, num_layers=2, bidirectional='yes')
C(3, 4).double()
C(3, 4).eval()
C(3, 4).to('meta')
C(3, 4).to(torch.bfloat16)
C(3, 4).requires_grad_(False)
C(3, 4, 2).half().train(False)
"""
CONSTRUCTIONS = {
    "RNN": """
C(3, 4, 1, 'relu')
C(3, 4, 2, 'tanh', False, True, 0.5, True)
C(3, 4, nonlinearity='relu')
C(3, 4, 2, 'relu', False, True, 0.5, True, 'cpu', torch.float64)
C(3, 4, 2, 'relu', False, True, 0.5, True, 0, 'cpu', torch.float64)
""",
    "LSTM": """
C(3, 4, 2, False, True, 0.5, True)
C(3, 4, 2, False, True, 0.5, True, 2)
C(3, 4, 2, False, True, 0.5, True, 2, 'cpu', torch.float64)
C(3, 4, proj_size=2)
C(3, 4, proj_size=0)
C(3, 4, proj_size=3, num_layers=2, bidirectional=True, bias=False)
C(3, 4, proj_size=True)
""",
    "GRU": """
C(3, 4, 2, False, True, 0.5, True)
C(3, 4, 2, False, True, 0.5, True, 0, 'cpu', torch.float64)
C(3, 4, 2, False, True, 0.5, True, 2)
""",
    "RNNCell": """
C(3, 4, True, 'relu')
C(3, 4, False, 'tanh', 'cpu', torch.float64)
C(3, 4, nonlinearity='relu')
C(3, 4, nonlinearity='gelu')
C(3, 4, nonlinearity=None)
""",
    "LSTMCell": "C(3, 4, False, 'cpu', torch.float64)",
    "GRUCell": "C(3, 4, False, 'cpu', torch.float64)",
}
CELL_CONSTRUCTIONS = """
C(3, 4)
C(3, 4, True)
C(3, 4, False)
C(input_size=3, hidden_size=4, bias=False)
C(3, 4, bias=0)
C(3, 4, bias=None)
C(3, 4, bias='no')
C(3, 4, dtype=torch.float64)
C(3, 4, dtype=torch.complex64)
C(3, 4, device='meta')
C(3, 4).double()
C(3, 4).to('meta')
C(1, 1)
C(3, 0)
C(0, 4)
"""

# Bad constructions.
LAYER_REFUSALS = """
C()
C(3)
C(hidden_size=4)
C(input_size=3)
C(3, 4, input_size=3)
C(3, hidden_size=4, num_layers=2, layers=2)
C(3, 4, 1, 'tanh', True, False, 0.0, False, 0, None, None, None)
C(3, 4, 1, True, False, 0.0, False, 0, None, None, None)
C(*range(1, 20))
C(3, 4, unknown=1)
C(3, 4, nonlinearity='relu', mode='LSTM')
C(3, 4, mode='LSTM')
C('3', 4)
C(3, '4')
C(3.0, 4)
C(3, 4.0)
C(None, 4)
C(3, None)
C([3], 4)
C(3, (4,))
C(torch.tensor(3), 4)
C(3, torch.tensor(4))
C(0, 4)
C(-1, 4)
C(3, 0)
C(3, -4)
C(3, 4, 0)
C(3, 4, -1)
C(3, 4, 1.0)
C(3, 4, 1.5)
C(3, 4, '2')
C(3, 4, None)
C(3, 4, [2])
C(3, 4, num_layers=2.0)
C(3, 4, bias=None)
C(3, 4, bias=1)
C(3, 4, bias=0)
C(3, 4, bias='True')
C(3, 4, bias=torch.tensor(True))
C(3, 4, batch_first=None)
C(3, 4, batch_first=1)
C(3, 4, batch_first='yes')
C(3, 4, dropout=-0.1)
C(3, 4, dropout=1.1)
C(3, 4, dropout=2)
C(3, 4, dropout=nan)
C(3, 4, dropout=inf)
C(3, 4, dropout=True)
C(3, 4, dropout=False)
C(3, 4, dropout='0.5')
C(3, 4, dropout='half')
C(3, 4, dropout=None)
C(3, 4, dropout=[0.5])
C(3, 4, dropout=0.5j)
C(3, 4, dropout=torch.tensor(0.5))
C(3, 4, num_layers=2, dropout=torch.tensor(2.0))
C(3, 4, bidirectional=None)
C(3, 4, dropout=0.5, bias=1)
C(0, 4, dropout=2.0, bias=1)
C('3', 4, num_layers=0)
C(0, 0, 0)
C(3, 4, proj_size=2)
C(3, 4, proj_size=-1)
C(3, 4, proj_size=4)
C(3, 4, proj_size=5)
C(3, 4, proj_size=2.0)
C(3, 4, proj_size=0.5)
C(3, 4, proj_size='2')
C(3, 4, proj_size=None)
C(3, 4, nonlinearity='relu')
C(3, 4, nonlinearity='gelu')
C(3, 4, nonlinearity='TANH')
C(3, 4, nonlinearity=None)
C(3, 4, nonlinearity=torch.tanh)
C(3, 4, 1, 'gelu')
C(3, 4, 1, True)
C(3, 4, 1, True, True, True)
C(3, 4, 1, 'tanh', nonlinearity='tanh')
C(3, 4, device='nowhere')
C(3, 4, device='cuda:99')
C(3, 4, device=1.5)
C(3, 4, dtype='float32')
C(3, 4, dtype=float)
C(3, 4, dtype=torch.int64)
C(3, 4, dtype=torch.bool)
C(3, 4, dtype=torch.float8_e5m2)
C(3, 10 ** 12)
"""
CELL_REFUSALS = """
C()
C(3)
C(hidden_size=4)
C(3, 4, input_size=3)
C(3, 4, True, 'tanh', None, None, None)
C(3, 4, True, None, None, None)
C(3, 4, unknown=1)
C(3, 4, num_layers=2)
C(3, 4, batch_first=True)
C(3, 4, proj_size=2)
C(3, 4, num_chunks=4)
C(3, 4, nonlinearity='relu')
C(3, 4, True, 'gelu')
C('3', 4)
C(3, '4')
C(3.0, 4)
C(3, 4.0)
C(None, 4)
C(3, None)
C(-1, 4)
C(3, -4)
C(3, 4, bias=torch.tensor([True, False]))
C(3, 4, device='nowhere')
C(3, 4, dtype='float32')
C(3, 4, dtype=torch.int64)
C(3, 4, dtype=torch.bool)
"""

# Not asked, because torch.nn reads memory that isn't its own: a packed input with a 4-D hx for the LSTM (a segmentation
# fault), a float32 LSTM whose weight was replaced by one of another size (oneDNN doesn't look).
# Calls of a layer, good and bad alike: construction | arguments of forward. `h(...)` is a state of the class's form.
LAYER_CALLS = """
C(3, 4) |
C(3, 4) | x(5, 2, 3), h(1, 2, 4), h(1, 2, 4)
C(3, 4) | x(5, 2, 3), hidden=h(1, 2, 4)
C(3, 4) | inputs=x(5, 2, 3)
C(3, 4) | hx=h(1, 2, 4)
C(3, 4) | None
C(3, 4) | None, h(1, 2, 4)
C(3, 4) | [[1.0, 2.0, 3.0]]
C(3, 4) | 'input'
C(3, 4) | 1.0
C(3, 4) | x(5, 2, 3).numpy()
C(3, 4) | (x(5, 2, 3), h(1, 2, 4))
C(3, 4) | [x(5, 3), x(4, 3)]
C(3, 4) | x()
C(3, 4) | x(3)
C(3, 4) | x(5, 2, 3, 1)
C(3, 4) | x(1, 5, 2, 3), h(1, 2, 4)
C(3, 4) | x(5, 2, 7)
C(3, 4) | x(5, 7)
C(3, 4) | x(5, 2, 3, dtype=torch.float64)
C(3, 4) | x(5, 2, 3, dtype=torch.float16)
C(3, 4) | x(5, 2, 3, dtype=torch.bfloat16), h(1, 2, 4)
C(3, 4) | x(5, 2, 3, dtype=torch.complex64)
C(3, 4) | ints(5, 2, 3)
C(3, 4) | ints(5, 2, 3) > 0
C(3, 4) | x(5, 3, dtype=torch.float64)
C(3, 4) | x(5, 2, 7, dtype=torch.float64)
C(3, 4).double() | x(5, 2, 3)
C(3, 4).half() | x(5, 2, 3)
C(3, 4, dtype=torch.complex64) | x(5, 2, 3)
C(3, 4, dtype=torch.complex64) | x(5, 2, 3, dtype=torch.complex64), h(1, 2, 4)
C(3, 4) | meta(5, 2, 3)
C(3, 4) | meta(5, 2, 3), h(1, 2, 4)
C(3, 4) | x(5, 2, 3), h(1, 2, 4, device='meta')
C(3, 4, device='meta') | x(5, 2, 3)
C(3, 4, device='meta') | meta(5, 2, 3)
C(3, 4, 2, bidirectional=True, batch_first=True, device='meta') | meta(2, 5, 3)
C(3, 4) | x(5, 2, 3).to_sparse()
C(3, 4) | x(0, 2, 3)  # excused: torch.nn offers no length 0
C(3, 4) | x(0, 3)  # excused: torch.nn offers no length 0
C(3, 4) | x(0, 2, 3), h(1, 2, 4)  # excused: torch.nn offers no length 0
C(3, 4, batch_first=True) | x(2, 0, 3)  # excused: torch.nn offers no length 0
C(3, 4) | x(5, 0, 3)
C(3, 4) | x(5, 2, 0)
C(3, 4) | x(5, 2, 3), h(1, 2, 5)
C(3, 4) | x(5, 2, 3), h(1, 3, 4)
C(3, 4) | x(5, 2, 3), h(1, 1, 4)
C(3, 4) | x(5, 2, 3), h(2, 2, 4)
C(3, 4) | x(5, 2, 3), h(2, 1, 4)
C(3, 4) | x(5, 2, 3), h(0, 2, 4)
C(3, 4) | x(5, 2, 3), h(2, 4)
C(3, 4) | x(5, 2, 3), h(4)
C(3, 4) | x(5, 2, 3), h(1, 1, 2, 4)
C(3, 4) | x(5, 2, 3), h()
C(3, 4) | x(5, 3), h(1, 2, 4)
C(3, 4) | x(5, 3), h(1, 1, 4)
C(3, 4) | x(5, 3), h(4)
C(3, 4) | x(5, 3), h(2, 4)
C(3, 4) | x(5, 3), h(1, 5)
C(3, 4, 2) | x(5, 2, 3), h(1, 2, 4)
C(3, 4, 2) | x(5, 2, 3), h(4, 2, 4)
C(3, 4, 2) | x(5, 3), h(1, 4)
C(3, 4, bidirectional=True) | x(5, 2, 3), h(1, 2, 4)
C(3, 4, bidirectional=True) | x(5, 2, 3), h(2, 2, 8)
C(3, 4, batch_first=True) | x(2, 5, 3), h(2, 1, 4)
C(3, 4, batch_first=True) | x(2, 5, 3), h(1, 5, 4)
C(3, 4, batch_first=True) | x(5, 3), h(1, 4)
C(3, 4) | x(5, 2, 3), h(1, 2, 4, dtype=torch.float64)
C(3, 4) | x(5, 2, 3), h(1, 2, 4, dtype=torch.float16)
C(3, 4) | x(5, 2, 3), h(1, 2, 4, dtype=torch.int64)
C(3, 4) | x(5, 2, 3), h(1, 2, 4, dtype=torch.complex64)
C(3, 4) | x(5, 3), h(1, 4, dtype=torch.float64)
C(3, 4).double() | x(5, 2, 3, dtype=torch.float64), h(1, 2, 4)
C(3, 4) | x(5, 2, 3), ()
C(3, 4) | x(5, 2, 3), []
C(3, 4) | x(5, 2, 3), 0
C(3, 4) | x(5, 2, 3), False
C(3, 4) | x(5, 2, 3), 'zeros'
C(3, 4) | x(5, 2, 3), (None, None)
C(3, 4) | x(5, 2, 3), x(1, 2, 4)
C(3, 4) | x(5, 2, 3), x(2, 1, 2, 4)
C(3, 4) | x(5, 2, 3), x(2, 2, 4)
C(3, 4) | x(5, 2, 3), (x(1, 2, 4),)
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), x(1, 2, 4))
C(3, 4) | x(5, 2, 3), [x(1, 2, 4), x(1, 2, 4)]
C(3, 4) | x(5, 2, 3), [x(1, 2, 4)]
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), x(1, 2, 4), x(1, 2, 4))
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), None)
C(3, 4) | x(5, 2, 3), (None, x(1, 2, 4))
C(3, 4) | x(5, 2, 3), ((x(1, 2, 4), x(1, 2, 4)),)
C(3, 4) | x(5, 2, 3), {'h': x(1, 2, 4), 'c': x(1, 2, 4)}
C(3, 4) | x(5, 2, 3), x(1, 2, 4).numpy()
C(3, 4) | x(5, 2, 3), [[[0.0] * 4] * 2]
C(3, 4) | x(5, 3), x(1, 4)
C(3, 4) | x(5, 3), (x(1, 4), x(1, 4))
C(3, 4) | x(5, 3), [x(1, 4), x(1, 4)]
C(3, 4) | packed(3, 2), h(1, 2, 4)
C(3, 4) | packed(3, 2), h(1, 2, 5)
C(3, 4) | packed(3, 2), h(1, 3, 4)
C(3, 4) | packed(3, 2), h(1, 1, 4)
C(3, 4) | packed(3, 2), h(2, 2, 4)
C(3, 4) | packed(3, 2), h(2, 4)
C(3, 4) | packed(3, 2), h(4)
C(3, 4) | packed(3, 2), h()
C(3, 4) | packed(2, 3), h(1, 2, 4)
C(3, 4) | packed(2, 3), h(1, 2, 5)
C(3, 4) | packed(2, 3), h(1, 3, 4)
C(3, 4) | packed(2, 3), h(1, 1, 4)
C(3, 4) | packed(2, 3), h(2, 2, 4)
C(3, 4) | packed(2, 3), h(2, 4)
C(3, 4) | packed(2, 3), h(4)
C(3, 4) | packed(2, 3), h()
C(3, 4, 2) | packed(2, 3), h(1, 2, 4)
C(3, 4) | packed(3, 2), h(1, 2, 4, dtype=torch.float64)
C(3, 4) | packed(2, 3), h(1, 2, 4, dtype=torch.float64)
C(3, 4) | packed(3, 2), x(1, 2, 4)
C(3, 4) | packed(2, 3), x(1, 2, 4)
C(3, 4) | packed(3, 2), (x(1, 2, 4), x(1, 2, 4))
C(3, 4) | packed(2, 3), [x(1, 2, 4), x(1, 2, 4)]
C(3, 4) | packed(3, 2), (x(1, 2, 4),)
C(3, 4) | packed(2, 3), (x(1, 2, 4), x(1, 2, 4), x(1, 2, 4))
C(3, 4) | packed(3, 2), 0
C(3, 4) | packed(3, 2, size=7)
C(3, 4) | packed(2, 3, size=7), h(1, 2, 4)
C(3, 4) | packed(3, 2, dtype=torch.float64)
C(3, 4) | packed(3, 2, dtype=torch.int64)
C(3, 4) | PackedSequence(x(5, 1, 3), torch.tensor([2, 2, 1]))
C(3, 4) | PackedSequence(x(5), torch.tensor([2, 2, 1]))
C(3, 4) | PackedSequence(x(6, 3), torch.tensor([2, 2, 1]))  # excused: torch.nn lets it pass unchecked
C(3, 4) | PackedSequence(x(4, 3), torch.tensor([2, 2, 1]))
C(3, 4) | PackedSequence(x(5, 3), torch.tensor([1, 2, 2]))
C(3, 4) | PackedSequence(x(5, 3), torch.tensor([2, 2, 1], dtype=torch.int32))
C(3, 4) | PackedSequence(x(5, 3), torch.tensor([[2, 2, 1]]))  # excused: torch.nn lets it pass unchecked
C(3, 4) | PackedSequence(x(0, 3), torch.tensor([], dtype=torch.int64))  # excused: torch.nn offers no length 0
C(3, 4) | PackedSequence(x(5, 3), torch.tensor([2, 2, 1]), torch.tensor([0, 1, 2])), h(1, 2, 4)
C(3, 4, batch_first=True) | packed(2, 3), h(1, 2, 4)
broken(C(3, 4).double(), 'weight_hh_l0', x(4, 4).double()) | x(5, 2, 3).double()
broken(C(3, 4), 'bias_ih_l0', None) | x(5, 2, 3)
"""
CALLS = {
    "RNN": """
C(3, 4) | packed(3, 2), h(1, 1, 2, 4)
C(3, 4, dtype=torch.complex64, nonlinearity='relu') | x(5, 2, 3, dtype=torch.complex64)
C(3, 4, 2, dropout=0.5, dtype=torch.complex64) | x(5, 2, 3, dtype=torch.complex64)
""",
    "LSTM": """
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), x(1, 2, 5))
C(3, 4) | x(5, 2, 3), (x(1, 2, 5), x(1, 2, 4))
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), x(1, 1, 4))
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), x(2, 4))
C(3, 4) | x(5, 2, 3), (x(2, 4), x(1, 2, 4))
C(3, 4) | x(5, 3), (x(1, 4), x(1, 1, 4))
C(3, 4) | x(5, 3), (x(1, 4), x(4))
C(3, 4) | x(5, 3), (x(1, 4), x(2, 4))
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), x(1, 2, 4, dtype=torch.float64))
C(3, 4) | x(5, 2, 3), (x(1, 2, 4, dtype=torch.float64), x(1, 2, 4))
C(3, 4) | x(5, 2, 3), (x(1, 2, 4), meta(1, 2, 4))
C(3, 4, proj_size=2) | x(5, 2, 3), (x(1, 2, 4), x(1, 2, 4))
C(3, 4, proj_size=2) | x(5, 2, 3), (x(1, 2, 4), x(1, 2, 2))
C(3, 4, proj_size=2) | x(5, 2, 3), (x(1, 2, 2), x(1, 2, 2))
C(3, 4, proj_size=2) | x(5, 2, 3), x(2, 1, 2, 2)
C(3, 4, proj_size=2) | x(5, 3), (x(1, 4), x(1, 4))
C(3, 4, proj_size=2) | packed(3, 2), (x(1, 2, 4), x(1, 2, 4))
C(3, 4, proj_size=2) | packed(2, 3), (x(1, 2, 2), x(1, 2, 2))
C(3, 4) | packed(3, 2), (x(1, 2, 4), x(1, 2, 5))
C(3, 4) | packed(2, 3), (x(1, 2, 4), x(1, 3, 4))
C(3, 4) | packed(2, 3), (x(1, 2, 4), x(2, 4))
C(3, 4, 2, dropout=0.5, dtype=torch.complex64) | x(5, 2, 3, dtype=torch.complex64)
""",
    "GRU": """
C(3, 4) | packed(3, 2), h(1, 1, 2, 4)
C(3, 4, 2, dropout=0.5, dtype=torch.complex64) | x(5, 2, 3, dtype=torch.complex64)
""",
    "RNNCell": """
C(3, 4, nonlinearity='gelu') | x(2, 3)
C(3, 4, nonlinearity='gelu') | x(2, 5)
C(3, 4, nonlinearity='gelu') | x(2, 3, 1)
C(3, 4, nonlinearity=None) | x(3)
C(3, 4, nonlinearity='relu', dtype=torch.complex64) | x(2, 3, dtype=torch.complex64)
""",
    "LSTMCell": """
C(3, 4) | x(2, 3), (x(2, 4), x(2, 5))
C(3, 4) | x(2, 3), (x(2, 5), x(2, 4))
C(3, 4) | x(2, 3), (x(2, 4), x(1, 4))
C(3, 4) | x(2, 3), (x(2, 4), x(4))
C(3, 4) | x(2, 3), (x(2, 4), x(1, 2, 4))
C(3, 4) | x(2, 3), (x(4), x(2, 4))
C(3, 4) | x(3), (x(4), x(1, 4))
C(3, 4) | x(2, 3), (x(2, 4), x(2, 4, dtype=torch.float64))
C(3, 4) | x(2, 3), (x(2, 4), meta(2, 4))
""",
    "GRUCell": "",
}
CELL_CALLS = """
C(3, 4) |
C(3, 4) | x(2, 3), h(2, 4), h(2, 4)
C(3, 4) | x(2, 3), hidden=h(2, 4)
C(3, 4) | None
C(3, 4) | [1.0, 2.0, 3.0]
C(3, 4) | 'input'
C(3, 4) | x(2, 3).numpy()
C(3, 4) | packed(3, 2)
C(3, 4) | x()
C(3, 4) | x(5, 2, 3)
C(3, 4) | x(5, 2, 3), h(2, 4)
C(3, 4) | x(2, 7)
C(3, 4) | x(7)
C(3, 4) | x(2, 7), h(2, 4)
C(3, 4) | x(2, 3, dtype=torch.float64)
C(3, 4) | x(2, 3, dtype=torch.float16), h(2, 4)
C(3, 4) | x(2, 3, dtype=torch.complex64)
C(3, 4) | ints(2, 3)
C(3, 4) | ints(3)
C(3, 4).double() | x(2, 3)
C(3, 4, dtype=torch.complex64) | x(2, 3, dtype=torch.complex64), h(2, 4)
C(3, 4) | meta(2, 3)
C(3, 4, device='meta') | x(2, 3)
C(3, 4, device='meta') | meta(2, 3)
C(3, 4) | x(2, 3), h(2, 4, device='meta')
C(3, 4) | x(2, 3).to_sparse()
C(3, 4) | x(0, 3)
C(3, 4) | x(0, 3), h(0, 4)
C(3, 4) | x(0, 3), h(2, 4)
C(3, 4) | x(2, 0)
C(3, 4) | x(0)
C(3, 4) | x(2, 3), h(2, 5)
C(3, 4) | x(2, 3), h(3, 4)
C(3, 4) | x(2, 3), h(1, 4)
C(3, 4) | x(1, 3), h(2, 4)
C(3, 4) | x(2, 3), h(4)
C(3, 4) | x(4, 3), h(4)
C(3, 4) | x(2, 3), h(2)
C(3, 4) | x(2, 3), h(1, 2, 4)
C(3, 4) | x(2, 3), h()
C(3, 4) | x(3), h(4)
C(3, 4) | x(3), h(1, 4)
C(3, 4) | x(3), h(2, 4)
C(3, 4) | x(3), h(5)
C(3, 4) | x(3), h(1, 1, 4)
C(3, 4) | x(2, 3), h(2, 4, dtype=torch.float64)
C(3, 4) | x(2, 3), h(2, 4, dtype=torch.float16)
C(3, 4) | x(2, 3), h(2, 4, dtype=torch.int64)
C(3, 4) | x(2, 3), h(2, 4, dtype=torch.complex64)
C(3, 4) | x(3), h(4, dtype=torch.float64)
C(3, 4).double() | x(2, 3, dtype=torch.float64), h(2, 4)
C(3, 4) | x(2, 3), ()
C(3, 4) | x(2, 3), []
C(3, 4) | x(2, 3), 0
C(3, 4) | x(2, 3), False
C(3, 4) | x(2, 3), 'zeros'
C(3, 4) | x(2, 3), x(2, 4)
C(3, 4) | x(2, 3), x(2, 2, 4)
C(3, 4) | x(3), x(2, 4)
C(3, 4) | x(3), x(4)
C(3, 4) | x(2, 3), (x(2, 4),)
C(3, 4) | x(2, 3), (x(2, 4), x(2, 4))
C(3, 4) | x(2, 3), [x(2, 4), x(2, 4)]
C(3, 4) | x(2, 3), (x(2, 4), x(2, 4), x(2, 4))
C(3, 4) | x(3), (x(4), x(4), x(4))
C(3, 4) | x(2, 3), (x(2, 4), None)
C(3, 4) | x(2, 3), (None, None)
C(3, 4) | x(2, 3), {'h': x(2, 4), 'c': x(2, 4)}
C(3, 4) | x(2, 3), x(2, 4).numpy()
C(3, 4) | x(3), [x(4), x(4)]
C(3, 0) | x(2, 3)
C(0, 4) | x(2, 0)
broken(C(3, 4), 'weight_hh', x(4, 4)) | x(2, 3)
broken(C(3, 4), 'bias_ih', None) | x(2, 3)
broken(C(3, 4), 'bias_ih', x(4)) | x(2, 3)
"""

# Messages that name torch.nn's own kernels or argument parser, and say nothing that a user could act on.
KERNEL = re.compile(
    r"invalid combination of arguments|must be \w+, not |get_mkldnn_dtype|primitive descriptor|broadcast shape"
)


# How it is asked ----------------------------------------------------------------------------------------------------


class Room:
    """The names a question may use. Tensors made here are kept, to see whether a call writes to them."""

    def __init__(self, namespace: Any, class_name: str) -> None:
        self.tensors: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(7)
        self.is_lstm = class_name.startswith("LSTM")
        self.names: dict[str, Any] = {
            "C": getattr(namespace, class_name), "torch": torch, "nan": float("nan"), "inf": float("inf"),
            "PackedSequence": PackedSequence, "x": self.x, "h": self.h, "ints": self.ints, "meta": self.meta,
            "packed": self.packed, "broken": self.broken,
        }  # fmt: skip

    def x(self, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        """A random tensor."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64) * 2
        self.tensors.append(drawn.to(dtype).to(device))
        return self.tensors[-1]

    def h(self, *shape: int, **options: Any) -> Any:
        """A state: a tensor, or two in a tuple for the LSTM."""
        return (self.x(*shape, **options), self.x(*shape, **options)) if self.is_lstm else self.x(*shape, **options)

    def ints(self, *shape: int) -> Tensor:
        return self.x(*shape, dtype=torch.int64)

    def meta(self, *shape: int) -> Tensor:
        return self.x(*shape, device="meta")

    def packed(self, *lengths: int, size: int = 3, dtype: torch.dtype = torch.float32) -> PackedSequence:
        """A packed sequence, unsorted if the lengths are."""
        is_sorted = list(lengths) == sorted(lengths, reverse=True)
        padded = self.x(max(lengths), len(lengths), size, dtype=dtype)
        packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=is_sorted)
        self.tensors += [packed.data, packed.batch_sizes]
        return packed

    @staticmethod
    def broken(module: nn.Module, name: str, weight: Tensor | None) -> nn.Module:
        """The module with one weight replaced."""
        setattr(module, name, None if weight is None else nn.Parameter(weight))
        return module

    def evaluate(self, expression: str, **names: Any) -> Any:
        return eval(expression, self.names | names)  # the questions of this file only


@dataclass
class Reply:
    """What came of a question: text that must be equal, and tensors whose values must be close."""

    text: str
    tensors: list[Tensor]


def reply(namespace: Any, class_name: str, question: str) -> Reply:
    """Ask one construction, or one call (construction | arguments)."""
    construction, _, arguments = question.partition("#")[0].partition("|")
    room = Room(namespace, class_name)
    torch.manual_seed(3)
    texts: list[str] = []
    tensors: list[Tensor] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            module = room.evaluate(construction)
        except Exception as error:
            texts.append("constructor raises " + _exception(error))
        else:
            if "|" in question:
                _call(room, module, arguments, texts, tensors)
            else:
                _inspect(module, texts, tensors)
    told = [f"{w.category.__name__}: {w.message}" for w in caught if "Triggered internally" not in str(w.message)]
    return Reply(_normal("\n".join([*texts, *(f"warns {line}" for line in told)])), tensors)


def _exception(error: Exception) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}: {error}".removeprefix("builtins.")


def _call(room: Room, module: nn.Module, arguments: str, texts: list[str], tensors: list[Tensor]) -> None:
    def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    args, kwargs = room.evaluate(f"collect({arguments})", collect=collect)
    owned = [*room.tensors, *module.parameters()]
    before = [tensor.detach().clone() for tensor in owned]
    attributes = {name: value for name, value in vars(module).items() if isinstance(value, (int, float, str, bool))}
    try:
        result = module(*args, **kwargs)
    except Exception as error:
        texts.append("raises " + _exception(error))
    else:
        texts.append("returns " + _describe(result, tensors))
    if not all(old.is_meta or same_bits(old, tensor.detach()) for old, tensor in zip(before, owned, strict=True)):
        texts.append("writes to the caller's tensors or to the weights")
    after = {name: value for name, value in vars(module).items() if isinstance(value, (int, float, str, bool))}
    if after != attributes:
        texts.append(f"changes the module: {attributes} -> {after}")


def _describe(value: Any, tensors: list[Tensor]) -> str:
    if isinstance(value, Tensor):
        tensors.append(value.detach())
        grad = ", requires_grad" if value.requires_grad else ""
        return f"{value.dtype}{list(value.shape)} on {value.device}{grad}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(_describe(item, tensors) for item in value)})"
    return repr(value)


def _inspect(module: nn.Module, texts: list[str], tensors: list[Tensor]) -> None:
    """Everything about a constructed module that a user can read."""
    texts.append(repr(module))
    texts.append("generator " + str(zlib.crc32(torch.get_rng_state().numpy().tobytes())))
    texts.append("is a " + " ".join(base.__name__ for base in type(module).__mro__ if base.__name__.endswith("Base")))
    for name in ("__constants__", "mode", "nonlinearity", "input_size", "hidden_size", "num_layers", "bias",
                 "batch_first", "dropout", "bidirectional", "proj_size", "training"):  # fmt: skip
        texts.append(f"{name} = {getattr(module, name, 'absent')!r}")
    for name, parameter in module.named_parameters():
        texts.append(f"{name} {type(parameter).__name__} {_describe(parameter, tensors)}")
    texts.append("state_dict " + " ".join(module.state_dict()))
    texts.append("metadata " + repr(getattr(module.state_dict(), "_metadata", None)))
    texts.append("buffers " + " ".join(name for name, _ in module.named_buffers()))
    if hasattr(module, "all_weights"):
        named = {id(parameter): name for name, parameter in module.named_parameters()}
        texts.append("all_weights " + repr([[named.get(id(w)) for w in group] for group in module.all_weights]))
    if hasattr(module, "flatten_parameters"):
        texts.append(f"flatten_parameters() {module.flatten_parameters()}")
    torch.manual_seed(5)
    module.reset_parameters()
    tensors += [parameter.detach().clone() for parameter in module.parameters()]
    texts.append("generator after reset_parameters " + str(zlib.crc32(torch.get_rng_state().numpy().tobytes())))


def _normal(text: str) -> str:
    """Only where a class, a method or an object lives is forgotten: module, class that defines it, address."""
    text = re.sub(r"(?:\w+\.)+(RNN|LSTM|GRU|RNNCell|LSTMCell|GRUCell)\b", r"\1", text)
    text = re.sub(r"\b\w+\.(forward|__init__)\(\)", r"\1()", text)
    return re.sub(r"0x[0-9a-f]+", "0x...", text)


# What is compared ---------------------------------------------------------------------------------------------------


def questions() -> Iterator[tuple[str, str]]:
    """(class name, question) of every construction and call."""
    for name in CLASSES:
        layer = name in LAYERS
        blocks = [LAYER_CONSTRUCTIONS if layer else CELL_CONSTRUCTIONS, CONSTRUCTIONS[name]]
        blocks += [LAYER_REFUSALS if layer else CELL_REFUSALS, LAYER_CALLS if layer else CELL_CALLS, CALLS[name]]
        lines = (line.strip() for line in "\n".join(blocks).splitlines())
        yield from ((name, line) for line in dict.fromkeys(lines) if line)


def shown(class_name: str, question: str) -> str:
    """A question as a person would write it."""
    return re.sub(r"\bC\(", class_name + "(", question.partition("  # excused: ")[0])


def ask(subject: Any, reference: Any, class_name: str, question: str) -> Answer:
    theirs, ours = reply(reference, class_name, question), reply(subject, class_name, question)
    _, _, excuse = question.partition("  # excused: ")
    agreement = Agreement.EXCUSED if excuse else Agreement.DIFFERENT
    if theirs.text == ours.text and _close(theirs.tensors, ours.tensors, exactly="|" not in question):
        agreement = Agreement.EQUAL
    elif KERNEL.search(theirs.text) and _exception_type(theirs.text) == _exception_type(ours.text):
        agreement = Agreement.TYPE_ONLY
    return Answer(shown(class_name, question), agreement, *_first_difference(theirs, ours), excuse)


def _exception_type(text: str) -> str | None:
    found = re.match(r"(?:constructor )?raises ([\w.]+):", text)
    return found and found[0]


def _close(theirs: list[Tensor], ours: list[Tensor], exactly: bool) -> bool:
    """Initial weights must have the same bits; the values of an unusual call need only be the same to rounding."""
    for a, b in zip(theirs, ours, strict=False):
        if a.is_meta or a.is_sparse:
            continue
        if not same_bits(a, b) if exactly else not torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True):
            return False
    return True


def _first_difference(theirs: Reply, ours: Reply) -> tuple[str, str]:
    """The first line in which two replies differ; the whole replies if they don't."""
    if theirs.text == ours.text:
        return theirs.text, ours.text + "\nof other values"
    lines = itertools.zip_longest(theirs.text.splitlines(), ours.text.splitlines(), fillvalue="nothing more")
    return next((a, b) for a, b in lines if a != b)


def loading(subject: Any, reference: Any, class_name: str) -> Iterator[Answer]:
    """state_dict goes strictly both ways, and the loaded module computes the same."""
    options: dict[str, Any] = {} if class_name not in LAYERS else {"num_layers": 2, "bidirectional": True}
    for source, target, direction in ((reference, subject, "from torch.nn"), (subject, reference, "into torch.nn")):
        torch.manual_seed(1)
        giver, taker = getattr(source, class_name)(3, 4, **options), getattr(target, class_name)(3, 4, **options)
        question = f"{class_name}.load_state_dict(strict=True) {direction}"
        try:
            said = str(taker.load_state_dict(copy.deepcopy(giver.state_dict()), strict=True))
        except Exception as error:
            said = _exception(error)
        given, taken = list(giver.state_dict().values()), list(taker.state_dict().values())
        same = len(given) == len(taken) and all(map(same_bits, given, taken))
        good = said == "<All keys matched successfully>" and same
        yield Answer(question, Agreement.EQUAL if good else Agreement.DIFFERENT, "all keys matched", said)


def signatures(subject: Any, reference: Any, class_name: str) -> Iterator[Answer]:
    """The signatures of the constructor, of forward, and the public names of the class.

    torch.nn's layers take `*args, **kwargs` and declare what they mean as overloads: a subject may have either.
    """
    theirs, ours = getattr(reference, class_name), getattr(subject, class_name)
    for method in ("__init__", "forward"):
        accepted = [_signature(getattr(theirs, method))]
        if hasattr(typing, "get_overloads"):
            accepted += map(_signature, typing.get_overloads(getattr(theirs, method)))
        seen = _signature(getattr(ours, method))
        agreement = Agreement.EQUAL if seen in accepted else Agreement.DIFFERENT
        yield Answer(f"signature of {class_name}.{method}", agreement, " or ".join(dict.fromkeys(accepted)), seen)
    public = {name for name in dir(theirs) if not name.startswith("_")}
    missing = sorted(public - set(dir(ours)))
    agreement = Agreement.DIFFERENT if missing else Agreement.EQUAL
    yield Answer(f"public names of {class_name}", agreement, f"has {', '.join(missing) or 'no others'}", "has not")


def _signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    return "(" + ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters) + ")"


def contract(subject: Any, reference: Any = nn, classes: tuple[str, ...] = CLASSES) -> Iterator[Answer]:
    """Every answer, class by class."""
    for name in classes:
        yield from signatures(subject, reference, name)
        yield from loading(subject, reference, name)
    for name, question in questions():
        if name in classes:
            yield ask(subject, reference, name, question)
