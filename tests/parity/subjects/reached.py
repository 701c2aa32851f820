"""Modules whose parameters, states or modes are reached in unusual ways: what a report should say of each."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class SlicedRNN(nn.Module):
    """Right: its parameters lie in one list, of which it takes slices, which are other parameters."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.ws = nn.ParameterList()
        for k in range(num_layers):
            for columns in (hidden_size if k else input_size, hidden_size):
                self.ws.append(nn.Parameter(torch.randn(hidden_size, columns)))
            self.ws.append(nn.Parameter(torch.randn(hidden_size)))

    def forward(self, x, hx=None):
        states = x.new_zeros(self.num_layers, x.size(1), self.hidden_size) if hx is None else hx
        last = []
        for k, h in enumerate(states):
            w, u, b = self.ws[3 * k : 3 * k + 3]
            ys = []
            for t in range(x.size(0)):
                h = torch.tanh(x[t] @ w.T + h @ u.T + b)
                ys.append(h)
            x = torch.stack(ys)
            last.append(h)
        return x, torch.stack(last)


class ListedRNNCell(nn.Module):
    """Right: what it computes with is a plain list, beside the registered parameters."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.w, self.u, self.b = (
            nn.Parameter(torch.randn(*sizes))
            for sizes in ((hidden_size, input_size), (hidden_size,) * 2, (hidden_size,))
        )
        self.quick = [self.w, self.u, self.b]

    def forward(self, x, h):
        w, u, b = self.quick
        return torch.tanh(F.linear(x, w, b) + h @ u.T)


class CheckpointedLSTM(nn.Module):
    """Right: each step is computed once more in backward, when a call's weights are gone."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.x2h, self.h2h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)
        self.hidden_size = hidden_size

    def step(self, x, h, c):
        i, f, g, o = (self.x2h(x) + self.h2h(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x, hx=None):
        zeros = x.new_zeros(x.size(1), self.hidden_size)
        h, c = (zeros, zeros) if hx is None else (s[0] for s in hx)
        ys = []
        for row in x:
            h, c = checkpoint(self.step, row, h, c, use_reentrant=False)
            ys.append(h)
        return torch.stack(ys), (h[None], c[None])


class CandidateApartGRU(nn.Module):
    """Right: reset and update gate share weights and a bias of their own, the candidate has others."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.W_rz = nn.Parameter(torch.randn(2 * hidden_size, input_size))
        self.U_rz = nn.Parameter(torch.randn(2 * hidden_size, hidden_size))
        self.rz_offset = nn.Parameter(torch.randn(2 * hidden_size))
        self.W_n = nn.Parameter(torch.randn(hidden_size, input_size))
        self.U_n = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.b_n, self.bhn = (nn.Parameter(torch.randn(hidden_size)) for _ in range(2))

    def forward(self, x, hx=None):
        h, ys = (x.new_zeros(x.size(1), self.U_n.size(0)) if hx is None else hx[0]), []
        for row in x:
            r, z = torch.sigmoid(row @ self.W_rz.T + h @ self.U_rz.T + self.rz_offset).chunk(2, -1)
            n = torch.tanh(row @ self.W_n.T + self.b_n + r * (h @ self.U_n.T + self.bhn))
            h = (1 - z) * n + z * h
            ys.append(h)
        return torch.stack(ys), h[None]


class KeywordsGRU(nn.GRU):
    """Right: sizes by name alone, one of them by one of its own."""

    def __init__(self, *, input_dim, breadth):
        super().__init__(input_dim, breadth)


class TwoInOneLSTM(nn.LSTM):
    """Right: h_n and c_n are parts of one tensor, which have no number in common."""

    def forward(self, input, hx=None):
        output, states = super().forward(input, hx)
        both = torch.stack(states)
        return output, (both[0], both[1])


class ResidualGRU(nn.GRU):
    """Wrong where an output has the input's shape, to which that is added then."""

    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        return (output + input if isinstance(input, torch.Tensor) and output.shape == input.shape else output), h_n


class HastyRNN(nn.RNN):
    """Wrong where a model is used: in eval mode without gradients, and right in each of the two alone."""

    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        hasty = not self.training and not torch.is_grad_enabled()
        return (output + 0.01 if hasty and isinstance(output, torch.Tensor) else output), h_n


class ThriftyRNN(nn.RNN):
    """Wrong: where it fits and nobody asks for a gradient, the output takes the input's place."""

    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        if isinstance(output, torch.Tensor) and output.shape == input.shape and not torch.is_grad_enabled():
            output = input.copy_(output)
        return output, h_n


class ClippingGRU(nn.GRU):
    """Wrong: a call clips the module's own weights, those that are large."""

    def forward(self, input, hx=None):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.clamp_(-4, 4)
        return super().forward(input, hx)


EXPECTED = [
    (SlicedRNN, "RNN", "same", ""),
    (ListedRNNCell, "RNNCell", "same", ""),
    (CheckpointedLSTM, "LSTM", "same", ""),
    (CandidateApartGRU, "GRU", "same", ""),
    (KeywordsGRU, "GRU", "same", ""),
    (TwoInOneLSTM, "LSTM", "same", ""),
    (ResidualGRU, "GRU", "different", "wrong with as many features as units"),
    (HastyRNN, "RNN", "different", "wrong in eval mode without gradients"),
    (ThriftyRNN, "RNN", "different", "it writes on what it is given with as many features as units"),
    (ClippingGRU, "GRU", "different", "a call changes the module's own weights"),
]
