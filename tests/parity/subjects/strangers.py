"""Modules in other people's styles, right, wrong and unreadable: what a report should say of each."""

import os
import random

import torch
import torch.nn.functional as F
from torch import nn


class StackedConcatLSTM(nn.Module):
    """Right: a Linear over [h, x] for each layer, in a ModuleList; time outside."""

    def __init__(self, in_dim, hid_dim, n_layers=1):
        super().__init__()
        self.hid, sizes = hid_dim, [in_dim] + [hid_dim] * (n_layers - 1)
        self.gates = nn.ModuleList(nn.Linear(hid_dim + size, 4 * hid_dim) for size in sizes)

    def forward(self, x, hc=None):
        shape = len(self.gates), x.size(1), self.hid
        h, c = (list(s) for s in (hc or (x.new_zeros(shape), x.new_zeros(shape))))
        ys = []
        for y in x:
            for k, gates in enumerate(self.gates):
                i, f, g, o = gates(torch.cat([h[k], y], 1)).chunk(4, 1)
                c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
                h[k] = y = o.sigmoid() * c[k].tanh()
            ys.append(y)
        return torch.stack(ys), (torch.stack(h), torch.stack(c))


class ListsGRU(nn.Module):
    """Right: lists of a parameter for each gate (update, reset, new), stored (in, out), two biases."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.n_out = n_out
        self.W = nn.ParameterList(nn.Parameter(torch.randn(n_in, n_out)) for _ in range(3))
        self.U = nn.ParameterList(nn.Parameter(torch.randn(n_out, n_out)) for _ in range(3))
        self.b = nn.ParameterList(nn.Parameter(torch.randn(n_out)) for _ in range(3))
        self.d = nn.ParameterList(nn.Parameter(torch.randn(n_out)) for _ in range(3))

    def forward(self, x, h0=None):
        h, ys = (x.new_zeros(x.size(1), self.n_out) if h0 is None else h0[0]), []
        for v in x:
            a, s = ([v @ w + b for w, b in zip(self.W, self.b, strict=True)], list(zip(self.U, self.d, strict=True)))
            z, r = (torch.sigmoid(a[k] + h @ s[k][0] + s[k][1]) for k in (0, 1))
            n = torch.tanh(a[2] + r * (h @ s[2][0] + s[2][1]))
            h = z * h + (1 - z) * n
            ys.append(h)
        return torch.stack(ys), h[None]


class BackwardFirstRNN(nn.Module):
    """Right: the reverse direction's parameters come first, its name is bw."""

    def __init__(self, input_size, hidden_size, bidirectional=False):
        super().__init__()
        self.hidden_size = hidden_size
        if bidirectional:
            self.bw = nn.ModuleDict(
                {"h2h": nn.Linear(hidden_size, hidden_size), "x2h": nn.Linear(input_size, hidden_size)}
            )
        self.fw = nn.ModuleDict({"h2h": nn.Linear(hidden_size, hidden_size), "x2h": nn.Linear(input_size, hidden_size)})

    def run(self, part, steps, h):
        ys = []
        for v in steps:
            h = torch.tanh(part["x2h"](v) + part["h2h"](h))
            ys.append(h)
        return ys, h

    def forward(self, x, h0=None):
        parts = [self.fw, self.bw] if hasattr(self, "bw") else [self.fw]
        h0 = x.new_zeros(len(parts), x.size(1), self.hidden_size) if h0 is None else h0
        y, h = self.run(self.fw, list(x), h0[0])
        if len(parts) == 1:
            return torch.stack(y), h[None]
        z, g = self.run(self.bw, list(x)[::-1], h0[1])
        return torch.cat([torch.stack(y), torch.stack(z[::-1])], 2), torch.stack([h, g])


class ProjectedLSTM(nn.Module):
    """Right: the projection is a Linear without a bias."""

    def __init__(self, input_size, hidden_size, proj_size=0):
        super().__init__()
        self.hidden_size, self.out = hidden_size, proj_size or hidden_size
        self.wx = nn.Linear(input_size, 4 * hidden_size)
        self.wh = nn.Linear(self.out, 4 * hidden_size)
        self.proj = nn.Linear(hidden_size, proj_size, bias=False) if proj_size else nn.Identity()

    def forward(self, x, hc=None):
        zeros = (x.new_zeros(1, x.size(1), self.out), x.new_zeros(1, x.size(1), self.hidden_size))
        (h,), (c,) = hc or zeros
        ys = []
        for v in x:
            i, f, g, o = (self.wx(v) + self.wh(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = self.proj(o.sigmoid() * c.tanh())
            ys.append(h)
        return torch.stack(ys), (h[None], c[None])


class SplitGRUCell(nn.Module):
    """Right: one Linear over [x, h] for both gates, two for the candidate."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.gates = nn.Linear(input_size + hidden_size, 2 * hidden_size)
        self.candidate_x, self.candidate_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        z, r = torch.sigmoid(self.gates(torch.cat([x, h], -1))).chunk(2, -1)
        n = torch.tanh(self.candidate_x(x) + r * self.candidate_h(h))
        return z * h + (1 - z) * n


class ColumnsLSTMCell(nn.Module):
    """Right: vectors are columns, and so are biases."""

    def __init__(self, n_x, n_h):
        super().__init__()
        self.Wx, self.Wh = nn.Parameter(torch.randn(4 * n_h, n_x)), nn.Parameter(torch.randn(4 * n_h, n_h))
        self.b = nn.Parameter(torch.zeros(4 * n_h, 1))

    def forward(self, x, state):
        h, c = (s.mT for s in state)
        i, f, g, o = (self.Wx @ x.mT + self.Wh @ h + self.b).chunk(4, 0)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return (o.sigmoid() * c.tanh()).mT, c.mT


class SoftsignGRU(nn.Module):
    """Wrong: softsign on the candidate."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.i2h, self.h2h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x, h0=None):
        h, ys = (x.new_zeros(x.size(1), self.hidden_size) if h0 is None else h0[0]), []
        for v in x:
            (ir, iz, i_n), (hr, hz, hn) = self.i2h(v).chunk(3, 1), self.h2h(h).chunk(3, 1)
            r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
            h = (1 - z) * F.softsign(i_n + r * hn) + z * h
            ys.append(h)
        return torch.stack(ys), h[None]


class BufferLSTM(nn.Module):
    """Wrong: without gradients the result lies in a buffer that the next call writes to."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell, self.buffer = nn.LSTMCell(input_size, hidden_size), None

    def forward(self, x, hc=None):
        zeros = 2 * (x.new_zeros(1, x.size(1), self.cell.hidden_size),)
        (h,), (c,) = hc or zeros
        ys = []
        for v in x:
            h, c = self.cell(v, (h, c))
            ys.append(h)
        if torch.is_grad_enabled():
            return torch.stack(ys), (h[None], c[None])
        if self.buffer is None or self.buffer.shape != (len(x), *h.shape):
            self.buffer = torch.stack(ys)
        torch.stack(ys, out=self.buffer)
        return self.buffer, (h[None], c[None])


class SystolicGRU(nn.Module):
    """Wrong: a layer reads what the layer below had at the step before."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(nn.GRUCell(size, hidden_size) for size in sizes)

    def forward(self, x, h0=None):
        shape = len(self.cells), x.size(1), self.cells[0].hidden_size
        h, ys = list(x.new_zeros(shape) if h0 is None else h0), []
        for v in x:
            inputs = [v, *h[:-1]]
            h = [cell(below, own) for cell, below, own in zip(self.cells, inputs, h, strict=True)]
            ys.append(h[-1])
        return torch.stack(ys), torch.stack(h)


class OneMaskLSTM(nn.Module):
    """Wrong: the same dropout mask at every step."""

    def __init__(self, input_size, hidden_size, num_layers=1, dropout=0.0):
        super().__init__()
        self.p, sizes = dropout, [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(nn.LSTMCell(size, hidden_size) for size in sizes)

    def forward(self, x, hc=None):
        shape = len(self.cells), x.size(1), self.cells[0].hidden_size
        hc = hc or (x.new_zeros(shape), x.new_zeros(shape))
        finals = []
        for k, cell in enumerate(self.cells):
            if k:
                x = x * F.dropout(torch.ones_like(x[:1]), self.p, self.training)
            h, c, ys = hc[0][k], hc[1][k], []
            for v in x:
                h, c = cell(v, (h, c))
                ys.append(h)
            x = torch.stack(ys)
            finals.append((h, c))
        return x, tuple(map(torch.stack, zip(*finals, strict=True)))


class CopiedStateLSTM(nn.Module):
    """Wrong: c begins with h_0."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x, hc=None):
        h = x.new_zeros(x.size(1), self.cell.hidden_size) if hc is None else hc[0][0]
        c, ys = h, []
        for v in x:
            h, c = self.cell(v, (h, c))
            ys.append(h)
        return torch.stack(ys), (h[None], c[None])


class PeepholeBackLSTM(nn.Module):
    """Wrong: the cell of the reverse direction has peepholes, the forward one has none."""

    def __init__(self, input_size, hidden_size, bidirectional=False):
        super().__init__()
        self.forth = nn.LSTMCell(input_size, hidden_size)
        self.back = nn.LSTMCell(input_size, hidden_size) if bidirectional else None
        self.peep = nn.Parameter(torch.randn(3, hidden_size)) if bidirectional else None

    def run(self, cell, x, h, c, peep):
        ys = []
        for v in x:
            i, f, g, o = (v @ cell.weight_ih.T + h @ cell.weight_hh.T + cell.bias_ih + cell.bias_hh).chunk(4, 1)
            c_in = c if peep is not None else 0 * c
            a, b, d = (0, 0, 0) if peep is None else peep
            c = (f + b * c_in).sigmoid() * c + (i + a * c_in).sigmoid() * g.tanh()
            h = (o + d * c).sigmoid() * c.tanh()
            ys.append(h)
        return torch.stack(ys), h, c

    def forward(self, x, hc=None):
        cells = [self.forth] if self.back is None else [self.forth, self.back]
        shape = len(cells), x.size(1), self.forth.hidden_size
        h_0, c_0 = hc or (x.new_zeros(shape), x.new_zeros(shape))
        ys, h, c = self.run(self.forth, x, h_0[0], c_0[0], None)
        if self.back is None:
            return ys, (h[None], c[None])
        behind, h_back, c_back = self.run(self.back, x.flip(0), h_0[1], c_0[1], self.peep)
        return torch.cat([ys, behind.flip(0)], -1), (torch.stack([h, h_back]), torch.stack([c, c_back]))


class ClampedOutputGRU(nn.GRU):
    """Wrong: the output is clamped, the state is not."""

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        if isinstance(output, torch.Tensor):
            return output.clamp(-0.4, 0.4), state
        return output._replace(data=output.data.clamp(-0.4, 0.4)), state


class BlendingGRUCell(nn.Module):
    """Right: the new state is the old one and a step towards the candidate, whatever that costs in digits."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.x2h, self.h2h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x, h=None):
        h = x.new_zeros(*x.shape[:-1], self.h2h.in_features) if h is None else h
        (a, b, c), (d, e, f) = self.x2h(x).chunk(3, -1), self.h2h(h).chunk(3, -1)
        return h + (1 - (b + e).sigmoid()) * ((c + (a + d).sigmoid() * f).tanh() - h)


class WeightNormGRUCell(BlendingGRUCell):
    """Right: its weights are made of directions and lengths, by torch's parametrization."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.x2h, self.h2h = map(nn.utils.parametrizations.weight_norm, (self.x2h, self.h2h))


class OverflowingLSTM(nn.Module):
    """Wrong: tanh is made of exp, which overflows."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.x2h, self.h2h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x, hc=None):
        h = x.new_zeros(x.size(1), self.h2h.in_features) if hc is None else hc[0][0]
        c, ys = torch.zeros_like(h) if hc is None else hc[1][0], []
        for v in x:
            i, f, g, o = (self.x2h(v) + self.h2h(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * self.tanh(g)
            h = o.sigmoid() * self.tanh(c)
            ys.append(h)
        return torch.stack(ys), (h[None], c[None])

    def tanh(self, x):
        return (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())


class ClippedGatesLSTMCell(nn.LSTMCell):
    """Wrong: what goes into the gates is clipped."""

    def forward(self, x, hx=None):
        zeros = x.new_zeros(*x.shape[:-1], self.hidden_size)
        h, c = hx or (zeros, zeros)
        sums = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = sums.clamp(-20, 20).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class CleaningGRU(nn.GRU):
    """Wrong: a NaN in the input is taken for 0."""

    def forward(self, input, hx=None):
        numbers = input.nan_to_num() if isinstance(input, torch.Tensor) else input
        return super().forward(numbers, hx)


class FiniteRNNCell(nn.RNNCell):
    """Wrong: an infinity in the input is taken for 1."""

    def forward(self, input, hx=None):
        return super().forward(input.where(~input.isinf(), 1.0), hx)


class ForeignMasksRNN(nn.Module):
    """Wrong: dropout is drawn by Python, which torch's seed doesn't reach."""

    def __init__(self, input_size, hidden_size, num_layers=1, dropout=0.0):
        super().__init__()
        self.p, sizes = dropout, [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(nn.RNNCell(size, hidden_size) for size in sizes)

    def forward(self, x, hx=None):
        hx = x.new_zeros(len(self.cells), x.size(1), self.cells[0].hidden_size) if hx is None else hx
        finals = []
        for k, cell in enumerate(self.cells):
            if k and self.p and self.training:
                kept = torch.tensor([random.random() >= self.p for _ in range(x.numel())]).view_as(x)
                x = x * kept / (1 - self.p)
            h, ys = hx[k], []
            for v in x:
                h = cell(v, h)
                ys.append(h)
            x = torch.stack(ys)
            finals.append(h)
        return x, torch.stack(finals)


class LeavingGRUCell(nn.GRUCell):
    """Unreadable: the process ends in its forward."""

    def forward(self, input, hx=None):
        os._exit(0)


EXPECTED = [
    (StackedConcatLSTM, "LSTM", "same", ""),
    (ListsGRU, "GRU", "same", ""),
    (BackwardFirstRNN, "RNN", "same", ""),
    (ProjectedLSTM, "LSTM", "same", ""),
    (SplitGRUCell, "GRUCell", "same", ""),
    (ColumnsLSTMCell, "LSTMCell", "same", ""),
    (SoftsignGRU, "GRU", "different", "softsign"),
    (BufferLSTM, "LSTM", "different", "buffer"),
    (SystolicGRU, "GRU", "different", "step before"),
    (OneMaskLSTM, "LSTM", "different", "mask"),
    (CopiedStateLSTM, "LSTM", "different", "c_0"),
    (BlendingGRUCell, "GRUCell", "same", ""),
    (WeightNormGRUCell, "GRUCell", "same", ""),
    (OverflowingLSTM, "LSTM", "different", "large numbers become NaN"),
    (ClippedGatesLSTMCell, "LSTMCell", "different", "what goes into the gates is clipped to 20"),
    (CleaningGRU, "GRU", "different", "a NaN in the input"),
    (FiniteRNNCell, "RNNCell", "different", "an infinity in the input"),
    (ForeignMasksRNN, "RNN", "different", "torch's seed"),
    (PeepholeBackLSTM, "LSTM", "different", "peephole connections in two directions"),
    (ClampedOutputGRU, "GRU", "different", "the output alone is clamped to 0.4"),
    (LeavingGRUCell, "GRUCell", "unread", ""),
]
