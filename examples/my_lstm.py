"""Is this LSTM torch.nn's? Many people write one like it; here it has one mistake, and the harness names it:

python -m parity check examples/my_lstm.py:MyLSTM
"""

import torch
from torch import Tensor, nn


class MyLSTM(nn.Module):
    """One layer: input (L, N, H_in) and a state (h, c), each (N, H), to output (L, N, H) and the last state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.x2h = nn.Linear(input_size, 4 * hidden_size)
        self.h2h = nn.Linear(hidden_size, 4 * hidden_size)

    def forward(
        self, input: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state or (input.new_zeros(input.size(1), self.hidden_size),) * 2
        outputs = []
        for x in input:
            i, f, o, g = (self.x2h(x) + self.h2h(h)).chunk(4, -1)  # torch.nn's order is i, f, g, o
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h, c)
