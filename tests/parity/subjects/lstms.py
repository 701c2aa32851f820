"""LSTM layers and cells, one mistake each."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class JointLSTM(nn.Module):
    """One Linear for x and h together; a function of the four pre-activations is what the subclasses get wrong."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.gates = nn.Linear(input_size + hidden_size, 4 * hidden_size)

    def equations(self, a, b, c, d, cell):
        i, f, g, o = a.sigmoid(), b.sigmoid(), c.tanh(), d.sigmoid()
        cell = f * cell + i * g
        return o * cell.tanh(), cell

    def forward(self, x, hx):
        h, c = hx[0][0], hx[1][0]
        out = []
        for step in x:
            h, c = self.equations(*self.gates(torch.cat([step, h], dim=1)).chunk(4, dim=1), c)
            out.append(h)
        return torch.stack(out), (h[None], c[None])


class OnnxOrder(JointLSTM):
    def equations(self, a, b, c, d, cell):
        i, o, f, g = a.sigmoid(), b.sigmoid(), c.sigmoid(), d.tanh()
        cell = f * cell + i * g
        return o * torch.tanh(cell), cell


class TensorFlow(JointLSTM):
    def equations(self, a, b, c, d, cell):
        i, j, f, o = a, b, c, d
        cell = cell * torch.sigmoid(f + 1.0) + torch.sigmoid(i) * torch.tanh(j)
        return torch.tanh(cell) * torch.sigmoid(o), cell


class Bare(JointLSTM):
    def equations(self, a, b, c, d, cell):
        cell = b.sigmoid() * cell + a.sigmoid() * c.tanh()
        return d.sigmoid() * cell, cell


class OldState(JointLSTM):
    def equations(self, a, b, c, d, cell):
        return d.sigmoid() * cell.tanh(), b.sigmoid() * cell + a.sigmoid() * c.tanh()


class Coupled(JointLSTM):
    def equations(self, a, b, c, d, cell):
        i = torch.sigmoid(a)
        cell = (1 - i) * cell + i * torch.tanh(c)
        return torch.sigmoid(d) * torch.tanh(cell), cell


class SigmoidCandidate(JointLSTM):
    def equations(self, a, b, c, d, cell):
        i, f, g, o = torch.sigmoid(torch.stack([a, b, c, d]))
        cell = f * cell + i * g
        return o * torch.tanh(cell), cell


class ForgetfulInput(JointLSTM):
    """Adds the candidate ungated."""

    def equations(self, a, b, c, d, cell):
        cell = b.sigmoid() * cell + c.tanh()
        return d.sigmoid() * cell.tanh(), cell


class KerasOne(JointLSTM):
    def equations(self, a, b, c, d, cell):
        def hard(t):
            return torch.clamp(0.2 * t + 0.5, min=0, max=1)

        cell = hard(b) * cell + hard(a) * torch.tanh(c)
        return hard(d) * torch.tanh(cell), cell


class Mobile(JointLSTM):
    def equations(self, a, b, c, d, cell):
        cell = F.hardsigmoid(b) * cell + F.hardsigmoid(a) * torch.tanh(c)
        return F.hardsigmoid(d) * torch.tanh(cell), cell


class FourLinearLSTM(nn.Module):
    """A Linear per gate; its input gate's layer drives the forget gate."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        for gate in "ifgo":
            setattr(self, f"x_{gate}", nn.Linear(input_size, hidden_size))
            setattr(self, f"h_{gate}", nn.Linear(hidden_size, hidden_size))

    def forward(self, x, hx):
        (h,), (c,) = hx
        outputs = []
        for t in range(x.size(0)):
            i = torch.sigmoid(self.x_f(x[t]) + self.h_f(h))
            f = torch.sigmoid(self.x_i(x[t]) + self.h_i(h))
            g = torch.tanh(self.x_g(x[t]) + self.h_g(h))
            o = torch.sigmoid(self.x_o(x[t]) + self.h_o(h))
            c = f * c + i * g
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))


class DropInLSTM(nn.Module):
    """torch.nn's parameters by name; one layer."""

    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)
        self.hidden_size = hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(4 * hidden_size)) if bias else None
        self.bias_hh_l0 = nn.Parameter(torch.zeros(4 * hidden_size)) if bias else None

    def preactivation(self, x, h):
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)

    def start(self, x, hx):
        if x.dim() != 3:
            raise ValueError("expected (L, N, H_in)")
        if hx is None:
            zeros = x.new_zeros(1, x.size(1), self.hidden_size)
            return zeros, zeros
        return hx

    def forward(self, x, hx=None):
        (h,), (c,) = self.start(x, hx)
        hs = []
        for x_t in x.unbind(0):
            i, f, g, o = torch.split(self.preactivation(x_t, h), self.hidden_size, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            hs.append(h)
        return torch.stack(hs, 0), (h.unsqueeze(0), c.unsqueeze(0))


class OneBias(DropInLSTM):
    def preactivation(self, x, h):
        return x @ self.weight_ih_l0.t() + h @ self.weight_hh_l0.t() + self.bias_ih_l0


class SameBiasTwice(DropInLSTM):
    def preactivation(self, x, h):
        return F.linear(x, self.weight_ih_l0, self.bias_hh_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)


class Reshaped(DropInLSTM):
    def preactivation(self, x, h):
        hidden = h @ self.weight_hh_l0.reshape(self.hidden_size, -1)
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + hidden + self.bias_hh_l0


class TransposedBlocks(DropInLSTM):
    def preactivation(self, x, h):
        blocks = torch.cat([h @ w for w in self.weight_hh_l0.chunk(4)], dim=-1)
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + blocks + self.bias_hh_l0


class FromZero(DropInLSTM):
    def start(self, x, hx):
        return super().start(x, None)


class NoCellState(DropInLSTM):
    def start(self, x, hx):
        h, c = super().start(x, hx)
        return h, torch.zeros_like(c)


class SwappedStates(DropInLSTM):
    def start(self, x, hx):
        c, h = super().start(x, hx)
        return h, c


class WrongPair(DropInLSTM):
    def forward(self, x, hx=None):
        output, (h, c) = super().forward(x, hx)
        return output, (c, h)


class CellAsHidden(DropInLSTM):
    def forward(self, x, hx=None):
        output, (_h, c) = super().forward(x, hx)
        return output, (c, c)


class Late(DropInLSTM):
    """Appends before it updates."""

    def forward(self, x, hx=None):
        (h,), (c,) = self.start(x, hx)
        hs = []
        for x_t in x:
            hs.append(h)
            i, f, g, o = self.preactivation(x_t, h).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return torch.stack(hs), (h[None], c[None])


class Amnesic(DropInLSTM):
    """Computes a new c at each step, but from the initial one."""

    def forward(self, x, hx=None):
        (h,), (c,) = self.start(x, hx)
        hs = []
        for x_t in x:
            i, f, g, o = self.preactivation(x_t, h).chunk(4, -1)
            c_next = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c_next)
            hs.append(h)
        return torch.stack(hs), (h[None], c_next[None])


class EinsumLSTMCell(nn.Module):
    """Weights (gates, out, in) in the order i f o g, as tracetorch and Caffe have it."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(4 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.randn(4 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.randn(4 * hidden_size))
        self.bias_hh = nn.Parameter(torch.randn(4 * hidden_size))

    def forward(self, x, hx):
        h, c = hx
        w_ih, w_hh = (w.view(4, h.size(-1), -1) for w in (self.weight_ih, self.weight_hh))
        z = torch.einsum("goi,...i->g...o", w_ih, x) + torch.einsum("goi,...i->g...o", w_hh, h)
        z = z + (self.bias_ih + self.bias_hh).view(4, *[1] * (x.dim() - 1), -1)
        i, f, o = torch.sigmoid(z[:3])
        c = f * c + i * torch.tanh(z[3])
        return o * torch.tanh(c), c


class ForgetBiasLSTMCell(nn.LSTMCell):
    def forward(self, x, hx):
        h, c = hx
        i, f, g, o = (F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)).chunk(
            4, -1
        )
        c = c * torch.sigmoid(f + 1) + torch.sigmoid(i) * torch.tanh(g)
        return torch.tanh(c) * torch.sigmoid(o), c


def chainer_lstm(input, state, weights):
    """Units interleaved: a0 i0 f0 o0 a1 i1 ..."""
    (h,), (c,) = state
    output = []
    for x in input:
        z = x @ weights["weight_ih_l0"].T + h @ weights["weight_hh_l0"].T
        z = z + weights["bias_ih_l0"] + weights["bias_hh_l0"]
        a, i, f, o = z.reshape(len(x), -1, 4).unbind(-1)
        c = a.tanh() * i.sigmoid() + f.sigmoid() * c
        h = o.sigmoid() * c.tanh()
        output.append(h)
    return torch.stack(output), (h[None], c[None])


ORDER = "gates in the order"
EXPECTED = [
    (OnnxOrder, f"{ORDER} i o f g"),
    (TensorFlow, f"{ORDER} i g f o", "forget gate + 1"),
    (Bare, "tanh is missing on c"),
    (OldState, "h is made of the c before the step"),
    (Coupled, "forget gate coupled to the input gate, f = 1 - i"),
    (SigmoidCandidate, "sigmoid on the candidate in place of tanh"),
    (ForgetfulInput, "the input gate is missing"),
    (KerasOne, "hard sigmoid, clip(0.2 x + 0.5, 0, 1)"),
    (Mobile, "hard sigmoid, clip(x / 6 + 0.5, 0, 1)"),
    (FourLinearLSTM, f"{ORDER} f i g o"),
    (OneBias, "bias_hh is missing"),
    (SameBiasTwice, "bias_hh stands where bias_ih belongs"),
    (Reshaped, "weight_hh is reshaped instead of transposed"),
    (TransposedBlocks, "weight_hh is transposed"),
    (FromZero, "h_0 and c_0 are ignored"),
    (NoCellState, "c_0 is ignored"),
    (SwappedStates, "h_0 and c_0 are swapped"),
    (WrongPair, "h_n and c_n are swapped"),
    (CellAsHidden, "h_n is c_n"),
    (Late, "output is the state before the step"),
    (Amnesic, "c is not carried from step to step"),
    (EinsumLSTMCell, f"{ORDER} i f o g"),
    (ForgetBiasLSTMCell, "forget gate + 1"),
    (chainer_lstm, f"{ORDER} g i f o, interleaved unit by unit"),
]
