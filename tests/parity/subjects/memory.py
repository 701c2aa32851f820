"""Values right, or nearly: shared memory, inputs written to, states kept, narrow buffers, conventions of shape."""

import torch
import torch.nn.functional as F
from torch import nn


class TidyLSTM(nn.Module):
    """Correct; one layer, torch.nn's parameters."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.randn(4 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.randn(4 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.randn(4 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.randn(4 * hidden_size))

    def zeros(self, x):
        return x.new_zeros(1, x.size(1), self.hidden_size)

    def step(self, x, h, c):
        return torch.lstm_cell(x, (h, c), self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)

    def forward(self, x, hx=None):
        h, c = hx if hx is not None else (self.zeros(x), self.zeros(x))
        h, c, outputs = h[0], c[0], []
        for x_t in x:
            h, c = self.step(x_t, h, c)
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


class ViewLSTM(TidyLSTM):
    """h_n is a slice of the output."""

    def forward(self, x, hx=None):
        output, (_, c) = super().forward(x, hx)
        return output, (output[-1:], c)


class InPlaceStateLSTM(TidyLSTM):
    """Leaves its last state in the caller's tensors."""

    def forward(self, x, hx=None):
        output, (h, c) = super().forward(x, hx)
        if hx is not None:
            with torch.no_grad():
                hx[0].copy_(h)
                hx[1].copy_(c)
        return output, (h, c)


class NormalisingLSTM(TidyLSTM):
    """Scales its input in place, and back."""

    def forward(self, x, hx=None):
        output = super().forward(x.clone(), hx)
        with torch.no_grad():
            x.mul_(0.5)
        return output


class StatefulLSTM(TidyLSTM):
    """Begins where the last call ended."""

    kept = None

    def forward(self, x, hx=None):
        if hx is None and self.kept is not None:
            hx = self.kept
        output, states = super().forward(x, hx)
        self.kept = tuple(s.detach() for s in states)
        return output, states


class FloatBufferGRU(nn.Module):
    """Collects its output in a float32 buffer."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)

    def forward(self, x, hx):
        output, h = torch.zeros(*x.shape[:2], self.cell.hidden_size), hx[0]
        for t, x_t in enumerate(x):
            h = self.cell(x_t, h)
            output[t] = h
        return output, h[None]


class FloatStateLSTM(TidyLSTM):
    """Carries c in single precision."""

    def step(self, x, h, c):
        h, c = super().step(x, h, c)
        return h, c.float().to(x.dtype)


class FloatWeightRNN(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.w, self.u = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, hx):
        u, outputs, h = self.u.weight.float().type_as(x), [], hx[0]
        for x_t in x:
            h = torch.tanh(self.w(x_t) + F.linear(h, u, self.u.bias))
            outputs.append(h)
        return torch.stack(outputs), h[None]


class BatchFirstLSTM(nn.Module):
    """Takes (N, L, H_in), whatever torch.nn's default is."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x, hx=None):
        if hx is None:
            hx = 2 * [x.new_zeros(1, x.size(0), self.cell.hidden_size)]
        h, c = hx[0][0], hx[1][0]
        hs = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            hs.append(h)
        return torch.stack(hs, dim=1), (h.unsqueeze(0), c.unsqueeze(0))


class FlatStateGRU(nn.Module):
    """States are (N, H), as in most tutorials."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)

    def forward(self, x, h=None):
        h = x.new_zeros(x.size(1), self.cell.hidden_size) if h is None else h
        hs = []
        for x_t in x:
            h = self.cell(x_t, h)
            hs.append(h)
        return torch.stack(hs), h


class TutorialRNN(FlatStateGRU):
    """Both at once."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.cell = nn.RNNCell(input_size, hidden_size)

    def forward(self, x, h=None):
        output, h = super().forward(x.transpose(0, 1), h)
        return output.transpose(0, 1), h


class TripleLSTM(TidyLSTM):
    """Takes and returns h and c side by side."""

    def forward(self, x, h, c):
        output, (h, c) = super().forward(x, (h, c))
        return output, h, c


class SequenceGRU(nn.Module):
    """Batch first, no state in, output alone out; and its gates in Keras's order."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.H = hidden_size
        self.x2h, self.h2h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x):
        h, outputs = x.new_zeros(x.size(0), self.H), []
        for x_t in x.unbind(1):
            (xz, xr, xn), (hz, hr, hn) = self.x2h(x_t).chunk(3, -1), self.h2h(h).chunk(3, -1)
            z, r = torch.sigmoid(xz + hz), torch.sigmoid(xr + hr)
            h = torch.lerp(torch.tanh(xn + r * hn), h, z)
            outputs.append(h)
        return torch.stack(outputs, 1)


class PairLSTMCell(nn.Module):
    """Returns its output beside its state."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.inner = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x, state):
        h, c = self.inner(x, state)
        return h, (h, c)


EXPECTED = [
    (ViewLSTM, "h_n shares memory with output"),
    (InPlaceStateLSTM, "h_0 is written to", "c_0 is written to"),
    (NormalisingLSTM, "input is written to"),
    (StatefulLSTM, "the state is kept from one call to the next"),
    (FloatBufferGRU, "output in float32 in a float64 run"),
    (FloatStateLSTM, "c passes through float32"),
    (FloatWeightRNN, "w_hh passes through float32"),
    (BatchFirstLSTM, "input is always taken as (N, L, H_in)"),
    (FlatStateGRU, "states have no dimension of layers"),
    (TripleLSTM, "h_n and c_n are returned side by side", "h_0 and c_0 are taken side by side"),
    (
        SequenceGRU,
        "output is returned alone, without the states",
        "gates in the order z r n",
        "input is always taken as (N, L, H_in)",
    ),
    (PairLSTMCell, "a cell returns output and state"),
    (TutorialRNN, "input is always taken as (N, L, H_in)", "states have no dimension of layers"),
]
CORRECT = [TidyLSTM]
