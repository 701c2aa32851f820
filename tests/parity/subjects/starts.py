"""Modules of own names that begin a layer, a direction or a call where torch.nn's don't."""

import torch
from torch import nn


class LayersGRU(nn.Module):
    """Wrong: each layer begins where the one below it has ended."""

    def __init__(self, n_in, n_out, num_layers=1):
        super().__init__()
        sizes = [n_in] + [n_out] * (num_layers - 1)
        self.n_out = n_out
        self.x, self.h = (
            nn.ModuleList(nn.ModuleList(nn.Linear(size, n_out) for _ in "rzn") for size in columns)
            for columns in (sizes, [n_out] * num_layers)
        )

    def forward(self, x, h0=None):
        h = x.new_zeros(x.size(1), self.n_out) if h0 is None else h0[0]
        ends = []
        for of_x, of_h in zip(self.x, self.h, strict=True):
            ys = []
            for v in x:
                r, z = (torch.sigmoid(of_x[k](v) + of_h[k](h)) for k in (0, 1))
                h = (1 - z) * torch.tanh(of_x[2](v) + r * of_h[2](h)) + z * h
                ys.append(h)
            x = torch.stack(ys)
            ends.append(h)
        return x, torch.stack(ends)


class TwoWayLSTM(nn.Module):
    """Right: a Linear over [x, h] for each direction."""

    def __init__(self, input_size, hidden_size, bidirectional=False):
        super().__init__()
        self.hidden_size = hidden_size
        self.fwd = nn.Linear(input_size + hidden_size, 4 * hidden_size)
        self.bwd = nn.Linear(input_size + hidden_size, 4 * hidden_size) if bidirectional else None

    def sweep(self, gates, xs, h, c):
        ys = []
        for v in xs:
            i, f, g, o = gates(torch.cat([v, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        return ys, (h, c)

    def start(self, x, slots):
        return (x.new_zeros(slots, x.size(1), self.hidden_size),) * 2

    def turn(self, hx, end):
        return hx[0][1], hx[1][1]

    def forward(self, x, hx=None):
        hx = self.start(x, 1 if self.bwd is None else 2) if hx is None else hx
        ys, end = self.sweep(self.fwd, x, hx[0][0], hx[1][0])
        ends, y = [end], torch.stack(ys)
        if self.bwd is not None:
            ys, end = self.sweep(self.bwd, x.flip(0), *self.turn(hx, end))
            ends, y = [*ends, end], torch.cat([y, torch.stack(ys[::-1])], -1)
        return y, tuple(map(torch.stack, zip(*ends, strict=True)))


class CarriedLSTM(TwoWayLSTM):
    """Wrong: the reverse direction begins where the forward one has ended."""

    def turn(self, hx, end):
        return end


class OnesLSTM(TwoWayLSTM):
    """Wrong: begins with ones where no state is given."""

    def start(self, x, slots):
        return (x.new_ones(slots, x.size(1), self.hidden_size),) * 2


class RandomLSTM(TwoWayLSTM):
    """Wrong: begins with random numbers where no state is given."""

    def start(self, x, slots):
        return tuple(torch.randn(slots, x.size(1), self.hidden_size, dtype=x.dtype) for _ in range(2))


class KeptStateGRU(nn.Module):
    """Wrong: takes no state, and begins where its last call has ended."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell, self.kept = nn.GRUCell(input_size, hidden_size), None

    def forward(self, x):
        fits = self.kept is not None and len(self.kept) == x.size(1)
        h, ys = self.kept if fits else x.new_zeros(x.size(1), self.cell.hidden_size), []
        for v in x:
            h = self.cell(v, h)
            ys.append(h)
        self.kept = h.detach()
        return torch.stack(ys), h[None]
