"""Values right, gradients wrong."""

import torch
import torch.nn.functional as F
from torch import nn


class LoopLSTM(nn.Module):
    """One layer, torch.nn's parameters; the subclasses cut the graph somewhere."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.H = hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.randn(4 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.randn(4 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.randn(4 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.randn(4 * hidden_size))

    def gates(self, x, h):
        gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
        i, f, g, o = gates.chunk(4, 1)
        return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)

    def carry(self, h, c):
        return h, c

    def forward(self, x, hx):
        h, c = hx[0].squeeze(0), hx[1].squeeze(0)
        outputs = []
        for t, x_t in enumerate(x):
            if t:
                h, c = self.carry(h, c)
            i, f, g, o = self.gates(x_t, h)
            c = f * c + i * g
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))


class Truncated(LoopLSTM):
    def carry(self, h, c):
        return h.detach(), c.detach()


class HiddenCut(LoopLSTM):
    def carry(self, h, c):
        return h.data, c


class CellCut(LoopLSTM):
    def carry(self, h, c):
        return h, c.detach()


class ConstantForget(LoopLSTM):
    def gates(self, x, h):
        i, f, g, o = super().gates(x, h)
        return i, f.detach(), g, o


class FrozenRecurrence(LoopLSTM):
    def gates(self, x, h):
        gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + h @ self.weight_hh_l0.data.t() + self.bias_hh_l0
        i, f, g, o = gates.split(self.H, dim=1)
        return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


class FixedStart(LoopLSTM):
    def forward(self, x, hx):
        return super().forward(x, tuple(h.detach() for h in hx))


class LoopGRU(nn.Module):
    """The state reaches the gates only as a constant."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(3 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.randn(3 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.randn(3 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.randn(3 * hidden_size))

    def blend(self, z, n, h):
        return (1 - z) * n + z * h

    def forward(self, x, hx):
        h, outputs = hx[0], []
        for x_t in x:
            i_r, i_z, i_n = F.linear(x_t, self.weight_ih_l0, self.bias_ih_l0).chunk(3, 1)
            h_r, h_z, h_n = F.linear(self.seen(h), self.weight_hh_l0, self.bias_hh_l0).chunk(3, 1)
            r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
            h = self.blend(z, torch.tanh(i_n + r * h_n), h)
            outputs.append(h)
        return torch.stack(outputs), h[None]

    def seen(self, h):
        return h.detach()


class LeakGRU(LoopGRU):
    """The blend keeps a constant."""

    def blend(self, z, n, h):
        with torch.no_grad():
            kept = h.clone()
        return (1 - z) * n + z * kept

    def seen(self, h):
        return h


class LoopRNN(nn.Module):
    """tanh applied to .data, as in code from 2017."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.i2h, self.h2h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, hx):
        h, outputs = hx[0], []
        for t, x_t in enumerate(x):
            h = torch.tanh(self.i2h(x_t) + self.h2h(h if t == 0 else torch.tensor(h.tolist(), dtype=h.dtype)))
            outputs.append(h)
        return torch.stack(outputs), h[None]


class Sigmoid(torch.autograd.Function):
    """The derivative by hand, and one factor short."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx, grad):
        (s,) = ctx.saved_tensors
        return grad * (1 - s)


class HandSigmoidLSTM(LoopLSTM):
    def gates(self, x, h):
        gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
        i, f, g, o = gates.chunk(4, 1)
        return Sigmoid.apply(i), Sigmoid.apply(f), torch.tanh(g), Sigmoid.apply(o)


class Tanh(torch.autograd.Function):
    """The derivative without its square."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.tanh(x))
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0])


class HandTanhRNN(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, hx):
        h, outputs = hx[0], []
        for x_t in x:
            h = Tanh.apply(self.cell(torch.cat([x_t, h], 1)))
            outputs.append(h)
        return torch.stack(outputs), h[None]


EXPECTED = [
    (Truncated, "the state is detached between steps"),
    (HiddenCut, "h is detached between steps"),
    (CellCut, "c is detached between steps"),
    (ConstantForget, "gate f is detached"),
    (FrozenRecurrence, "weight_hh is detached"),
    (FixedStart, "hx is detached"),
    (LoopGRU, "h is detached in the gates"),
    (LeakGRU, "h is detached in the blend"),
    (HandSigmoidLSTM, "the derivative of sigmoid is taken to be 1 - s"),
    (HandTanhRNN, "the derivative of tanh is taken to be 1 - y"),
    (LoopRNN, "the state is detached between steps"),
]
