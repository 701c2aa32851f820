"""Right, each in its own style: none may be accused."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WordyLSTM(nn.Module):
    """A Linear per gate, named in words, in no particular order."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.forget_x, self.forget_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.output_x, self.output_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.input_x, self.input_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.cell_x, self.cell_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, hx):
        h, c = hx[0][0], hx[1][0]
        hs = []
        for x_t in x:
            remembered = torch.sigmoid(self.forget_x(x_t) + self.forget_h(h)) * c
            new = torch.tanh(self.cell_x(x_t) + self.cell_h(h))
            c = remembered + torch.sigmoid(self.input_x(x_t) + self.input_h(h)) * new
            h = torch.sigmoid(self.output_x(x_t) + self.output_h(h)) * torch.tanh(c)
            hs.append(h)
        return torch.stack(hs), (h[None], c[None])


class KernelLSTM(nn.Module):
    """Kernels stored (in, out), a single bias, the input's product hoisted out of the loop."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(input_size, 4 * hidden_size))
        self.recurrent_kernel = nn.Parameter(torch.randn(hidden_size, 4 * hidden_size))
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size))

    def forward(self, x, hx):
        (h,), (c,) = hx
        xs, hs = x @ self.kernel + self.bias, []
        for z in xs:
            i, f, g, o = (z + h @ self.recurrent_kernel).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            hs.append(h)
        return torch.stack(hs), (h.unsqueeze(0), c.unsqueeze(0))


class JoinedLSTM(nn.Module):
    """One Linear of [x, h], one sigmoid over all gates: tanh(g) = 2 sigmoid(2 g) - 1."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.H = hidden_size
        self.linear = nn.Linear(input_size + hidden_size, 4 * hidden_size)

    def forward(self, x, hx):
        h, c = (s.squeeze(0) for s in hx)
        hs, scale = [], x.new_ones(4 * self.H)
        scale[2 * self.H : 3 * self.H] = 2
        for x_t in x.unbind():
            i, f, g, o = torch.sigmoid(scale * self.linear(torch.hstack([x_t, h]))).tensor_split(4, dim=1)
            c = f * c + i * (2 * g - 1)
            h = o * torch.tanh(c)
            hs.append(h)
        return torch.stack(hs), (h[None], c[None])


class EinsumGRU(nn.Module):
    """Gates as a dimension of the weights' view."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.W = nn.Parameter(torch.randn(3 * hidden_size, input_size))
        self.U = nn.Parameter(torch.randn(3 * hidden_size, hidden_size))
        self.b = nn.Parameter(torch.randn(3 * hidden_size))
        self.d = nn.Parameter(torch.randn(3 * hidden_size))

    def forward(self, x, hx):
        h = hx[0]
        W, U, b, d = (p.unflatten(0, (3, -1)) for p in (self.W, self.U, self.b, self.d))
        hs = []
        for x_t in x:
            a = torch.einsum("ghi,ni->gnh", W, x_t) + b[:, None]
            s = torch.einsum("ghi,ni->gnh", U, h) + d[:, None]
            r, z = torch.sigmoid(a[:2] + s[:2])
            n = torch.tanh(torch.addcmul(a[2], r, s[2]))
            h = torch.lerp(n, h, z)
            hs.append(h)
        return torch.stack(hs), h.clone()[None]


class GatedGRU(nn.Module):
    """Linears named update, reset, new."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.x_update, self.x_reset, self.x_new = (nn.Linear(input_size, hidden_size) for _ in range(3))
        self.h_update, self.h_reset, self.h_new = (nn.Linear(hidden_size, hidden_size) for _ in range(3))

    def forward(self, x, hx):
        hs = [hx[0]]
        for x_t in x:
            h = hs[-1]
            z = 1 / (1 + torch.exp(-(self.x_update(x_t) + self.h_update(h))))
            r = 1 / (1 + torch.exp(-(self.x_reset(x_t) + self.h_reset(h))))
            n = torch.tanh(self.x_new(x_t) + r * self.h_new(h))
            hs.append(n + z * (h - n))
        return torch.stack(hs[1:]), hs[-1].unsqueeze(0)


class BlockRNN(nn.Module):
    """[W U] [x; h], bias in the Linear, any number of layers."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(size + hidden_size, hidden_size) for size in sizes)

    def forward(self, x, hx):
        finals = []
        for layer, h in zip(self.layers, hx, strict=False):
            hs = []
            for x_t in x:
                h = torch.tanh(layer(torch.cat([x_t, h], -1)))
                hs.append(h)
            x = torch.stack(hs)
            finals.append(h)
        return x, torch.stack(finals)


class CellsGRU(nn.Module):
    """Time outside, layers inside, over torch.nn's own cells."""

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True):
        super().__init__()
        self.cells = nn.ModuleList(
            nn.GRUCell(hidden_size if layer else input_size, hidden_size, bias) for layer in range(num_layers)
        )

    def forward(self, x, hx):
        states, hs = list(hx), []
        for x_t in x:
            for layer, cell in enumerate(self.cells):
                states[layer] = x_t = cell(x_t, states[layer])
            hs.append(x_t)
        return torch.stack(hs), torch.stack(states)


class Backpropagation(torch.autograd.Function):
    """tanh(x W' + h U' + b + d) with its derivative written out."""

    @staticmethod
    def forward(ctx, x, h, w, u, b, d):
        y = torch.tanh(x @ w.T + h @ u.T + b + d)
        ctx.save_for_backward(x, h, w, u, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, h, w, u, y = ctx.saved_tensors
        dz = grad * (1 - y * y)
        return dz @ w, dz @ u, dz.T @ x, dz.T @ h, dz.sum(0), dz.sum(0)


class ManualRNN(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.randn(hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.randn(hidden_size))

    def forward(self, x, hx):
        h, hs = hx[0], []
        for x_t in x:
            h = Backpropagation.apply(x_t, h, *self.parameters())
            hs.append(h)
        return torch.stack(hs), h[None]


class TheLSTM(nn.LSTM):
    """torch.nn's own, with its mail forwarded."""


class TheGRUCell(nn.GRUCell):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        a, s = F.linear(input, self.weight_ih, self.bias_ih), F.linear(h, self.weight_hh, self.bias_hh)
        (a_r, a_z, a_n), (s_r, s_z, s_n) = a.chunk(3, -1), s.chunk(3, -1)
        z = torch.sigmoid(a_z + s_z)
        return z * h + (1 - z) * torch.tanh(a_n + torch.sigmoid(a_r + s_r) * s_n)


class ScriptedLSTMCell(nn.Module):
    """Joint weights in torch's order, addmm."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4 * hidden_size, input_size + hidden_size))
        self.bias = nn.Parameter(torch.randn(4 * hidden_size))

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (torch.cat([x, h], -1) @ self.weight.T + self.bias).chunk(4, -1)
        c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c


def lstm_function(input, state, weights):
    """A function over torch.nn's weights."""
    h, c = state[0][0], state[1][0]
    hs = []
    for x in input:
        gates = [
            x @ w.T + b + h @ u.T + d
            for w, u, b, d in zip(
                *(weights[name + "_l0"].chunk(4) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
                strict=False,
            )
        ]
        i, f, o = (torch.sigmoid(gates[k]) for k in (0, 1, 3))
        c = c * f + i * gates[2].tanh()
        h = c.tanh() * o
        hs.append(h)
    return torch.stack(hs), (h[None], c[None])


CORRECT = [
    WordyLSTM, KernelLSTM, JoinedLSTM, EinsumGRU, GatedGRU, BlockRNN, CellsGRU, ManualRNN, TheLSTM, TheGRUCell,
    ScriptedLSTMCell, lstm_function,
]  # fmt: skip
