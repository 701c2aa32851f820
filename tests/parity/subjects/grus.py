"""GRU and RNN layers and cells, one mistake each."""

import torch
import torch.nn.functional as F
from torch import nn


class PaperGRU(nn.Module):
    """Three Linears of [x, h], as in the paper and most tutorials: the reset comes before the product."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.reset = nn.Linear(input_size + hidden_size, hidden_size)
        self.update = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, hx):
        h, out = hx[0], []
        for x_t in x:
            both = torch.cat((x_t, h), 1)
            r, z = torch.sigmoid(self.reset(both)), torch.sigmoid(self.update(both))
            n = torch.tanh(self.candidate(torch.cat((x_t, r * h), 1)))
            h = (1 - z) * n + z * h
            out.append(h)
        return torch.stack(out), h.unsqueeze(0)


class HandGRU(nn.Module):
    """torch.nn's parameters, and a step that the subclasses get wrong."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(3 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.randn(3 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.randn(3 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.randn(3 * hidden_size))

    def step(self, x, h):
        xr, xz, xn = F.linear(x, self.weight_ih_l0, self.bias_ih_l0).chunk(3, 1)
        hr, hz, hn = F.linear(h, self.weight_hh_l0, self.bias_hh_l0).chunk(3, 1)
        return self.combine(torch.sigmoid(xr + hr), torch.sigmoid(xz + hz), xn, hn, h)

    def combine(self, r, z, xn, hn, h):
        return (1 - z) * torch.tanh(xn + r * hn) + z * h

    def forward(self, x, hx):
        h, outputs = hx.squeeze(0), []
        for t in range(len(x)):
            h = self.step(x[t], h)
            outputs += [h]
        return torch.stack(outputs), h.unsqueeze(0)


class Opposite(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return z * torch.tanh(xn + r * hn) + (1 - z) * h


class KerasOrder(HandGRU):
    def combine(self, r, z, xn, hn, h):
        z, r = r, z
        return z * h + (1 - z) * torch.tanh(xn + r * hn)


class Unreset(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return (1 - z) * torch.tanh(xn + hn) + z * h


class ResetAll(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return (1 - z) * torch.tanh(r * (xn + hn)) + z * h


class KeepsReset(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return (1 - z) * torch.tanh(xn + r * hn) + z * (r * h)


class Accumulating(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return torch.tanh(xn + r * hn) + z * h


class OuterBias(HandGRU):
    def step(self, x, h):
        gi, gh = F.linear(x, self.weight_ih_l0), F.linear(h, self.weight_hh_l0)
        bias = (self.bias_ih_l0 + self.bias_hh_l0).chunk(3)
        (xr, xz, xn), (hr, hz, hn) = gi.chunk(3, 1), gh.chunk(3, 1)
        r, z = torch.sigmoid(xr + hr + bias[0]), torch.sigmoid(xz + hz + bias[1])
        n = torch.tanh(xn + r * hn + bias[2])
        return n + z * (h - n)


class HaikuGRU(HandGRU):
    """z r a, reset before the product, and z takes instead of keeping."""

    def step(self, x, h):
        w_z, w_r, w_a = self.weight_hh_l0.chunk(3)
        b_z, b_r, b_a = (self.bias_ih_l0 + self.bias_hh_l0).chunk(3)
        x_z, x_r, x_a = (x @ self.weight_ih_l0.T).chunk(3, dim=1)
        z, r = torch.sigmoid(x_z + h @ w_z.T + b_z), torch.sigmoid(x_r + h @ w_r.T + b_r)
        a = torch.tanh(x_a + (r * h) @ w_a.T + b_a)
        return (1 - z) * h + z * a


class ResetFirstGRUCell(nn.GRUCell):
    def forward(self, input, hx):
        w, u = self.weight_ih.split(self.hidden_size), self.weight_hh.split(self.hidden_size)
        b, d = self.bias_ih.split(self.hidden_size), self.bias_hh.split(self.hidden_size)
        r = torch.sigmoid(F.linear(input, w[0], b[0]) + F.linear(hx, u[0], d[0]))
        z = torch.sigmoid(F.linear(input, w[1], b[1]) + F.linear(hx, u[1], d[1]))
        n = torch.tanh(F.linear(input, w[2], b[2]) + F.linear(r * hx, u[2], d[2]))
        return torch.lerp(n, hx, z)


class ElmanRNN(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.i2h = nn.Linear(input_size, hidden_size)
        self.h2h = nn.Linear(hidden_size, hidden_size)

    def activation(self, x):
        return torch.tanh(x)

    def forward(self, x, hx):
        hs = [hx[0]]
        for step in x:
            hs.append(self.activation(self.i2h(step) + self.h2h(hs[-1])))
        return torch.stack(hs[1:]), hs[-1][None]


class SigmoidRNN(ElmanRNN):
    def activation(self, x):
        return torch.sigmoid(x)


class ReluRNN(ElmanRNN):
    def activation(self, x):
        return F.relu(x)


class MemorylessRNN(ElmanRNN):
    def forward(self, x, hx):
        output = torch.tanh(self.i2h(x) + self.h2h(hx))
        return output, output[-1:].clone()


class MatmulRNN(nn.Module):
    """h @ W where W is torch's (out, in)."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.randn(hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.randn(hidden_size))

    def forward(self, x, hx):
        h, out = hx[0], []
        for x_t in x:
            z = x_t @ self.weight_ih_l0.t() + h @ self.weight_hh_l0 + self.bias_ih_l0 + self.bias_hh_l0
            h = z.tanh()
            out.append(h)
        return torch.stack(out), h[None]


EXPECTED = [
    (PaperGRU, "reset before the product"),
    (Opposite, "update gate of the opposite sense"),
    (KerasOrder, "gates in the order z r n"),
    (Unreset, "the reset gate is missing"),
    (ResetAll, "reset applies to the input's part too"),
    (KeepsReset, "the update gate keeps the reset state"),
    (Accumulating, "the new state is added, h = z * h + n"),
    (OuterBias, "b_hn stands outside the reset"),
    (HaikuGRU, "gates in the order z r n", "reset before the product", "update gate of the opposite sense"),
    (ResetFirstGRUCell, "reset before the product"),
    (SigmoidRNN, "the nonlinearity is sigmoid"),
    (ReluRNN, "the nonlinearity is relu"),
    (MemorylessRNN, "the state is not carried from step to step"),
    (MatmulRNN, "weight_hh is transposed"),
]
