"""Five cells that torch.nn hasn't, each an equation of some ten lines: which of them counts best?

An equation is all there is to write. Layers, directions, packing, lengths, resets, dropout, `trace`, compile, export
and vmap come with `rnnkit.RNNBase(equation, input_size, hidden_size, ...)`. W and b are torch.nn's, with a row block
for each gate; parameters besides these are named in the record.

The task is to count: which of two symbols has come more often? Run: python examples/cells_of_ones_own.py
"""

import time
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

import rnnkit
from rnnkit import EQUATIONS, Equation, Own


def layer_norm_lstm(igates, hgates, state, gamma_i, beta_i, gamma_h, beta_h, gamma_c, beta_c):
    """Ba, Kiros and Hinton, Layer normalization (2016), with bias=False: the norms have theirs."""
    _, c = state
    igates = F.layer_norm(igates, gamma_i.shape, gamma_i, beta_i)
    hgates = F.layer_norm(hgates, gamma_h.shape, gamma_h, beta_h)
    i, f, g, o = (igates + hgates).chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    return (o * torch.tanh(F.layer_norm(c, gamma_c.shape, gamma_c, beta_c)), c), (i, f, g, o)


def peephole_lstm(igates, hgates, state, p_i, p_f, p_o):
    """Gers and Schmidhuber, Recurrent nets that time and count (2000): i and f see the cell before, o the one after."""
    _, c = state
    i, f, g, o = (igates + hgates).chunk(4, dim=-1)
    i, f, g = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c), torch.tanh(g)
    c = f * c + i * g
    o = torch.sigmoid(o + p_o * c)
    return (o * torch.tanh(c), c), (i, f, g, o)


def mgu(igates, hgates, state):
    """Zhou et al., Minimal gated unit (2016), with f applied after the product, as torch.nn's GRU applies r."""
    (h,) = state
    f = torch.sigmoid((igates + hgates).chunk(2, dim=-1)[0])
    n = torch.tanh(igates.chunk(2, dim=-1)[1] + f * hgates.chunk(2, dim=-1)[1])
    return ((1 - f) * h + f * n,), (f, n)


def min_gru(igates, hgates, state):
    """Feng et al., Were RNNs all we needed? (2024): no gate reads h, and there are no weight_hh and bias_hh."""
    (h,) = state
    z, n = igates.chunk(2, dim=-1)
    z = torch.sigmoid(z)
    return ((1 - z) * h + z * n,), (z, n)


def slstm(igates, hgates, state):
    """Beck et al., xLSTM (2024): exponential gates, with the normaliser n and the stabiliser m as states beside c."""
    _, c, n, m = state
    i, f, z, o = (igates + hgates).chunk(4, dim=-1)
    f, after = F.logsigmoid(f), torch.maximum(F.logsigmoid(f) + m, i)
    i, f = torch.exp(i - after), torch.exp(f + m - after)  # divided by exp(after), which c / n doesn't notice
    z, o = torch.tanh(z), torch.sigmoid(o)
    c, n = f * c + i * z, f * n + i
    return (o * c / n, c, n, after), (i, f, z, o)


NORMS = [(f"{name}_{at}", shape, draw)
         for at, shape in (("i", "(G*H)"), ("h", "(G*H)"), ("c", "(H)"))
         for name, draw in (("gamma", nn.init.ones_), ("beta", nn.init.zeros_))]  # fmt: skip
CELLS = {
    "layer-normalised LSTM": Equation(layer_norm_lstm, tuple("ifgo"), ("h", "c"), tuple(Own(*norm) for norm in NORMS)),
    "peephole LSTM": Equation(peephole_lstm, tuple("ifgo"), ("h", "c"), tuple(Own(f"p_{at}", "(H)") for at in "ifo")),
    "MGU": Equation(mgu, ("f", "n"), ("h",)),
    "minGRU": Equation(min_gru, ("z", "n"), ("h",), recurrent=False),
    "sLSTM": Equation(slstm, tuple("ifzo"), ("h", "c", "n", "m")),
}


@dataclass(frozen=True)
class Zoneout:
    """Krueger et al., Zoneout (2016): each number of a state stays as it was with probability p, in training."""

    of: Equation
    p: tuple[float, ...]

    def __call__(self, igates, hgates, state, training, **own):
        after, gates = self.of.step(igates, hgates, state, **self.of.extras(tuple(own.values()), training))
        pairs = zip(self.p, state, after, strict=True)
        if training:
            return tuple(torch.where(torch.rand_like(new) < p, old, new) for p, old, new in pairs), gates
        return tuple(p * old + (1 - p) * new for p, old, new in pairs), gates


@dataclass(frozen=True)
class RecurrentDropout:
    """Zero each number of hgates with probability p, in training, anew at each step."""

    of: Equation
    p: float

    def __call__(self, igates, hgates, state, training, **own):
        hgates = F.dropout(hgates, self.p, training)
        return self.of.step(igates, hgates, state, **self.of.extras(tuple(own.values()), training))


def zoneout(equation, **p):
    """Return an equation with zoneout, of probability p for each state by its letter: zoneout(LSTM, h=0.05, c=0.5)."""
    step = Zoneout(equation, tuple(p.get(letter, 0.0) for letter in equation.state))
    return replace(equation, step=step, random=True)


def recurrent_dropout(equation, p):
    """Return an equation with dropout of what its state says to the gates."""
    return replace(equation, step=RecurrentDropout(equation, p), random=True)


def counts(N, L):
    """Return N sequences of two symbols, -1 and 1, their lengths, and whether 1 has come more often, at each end."""
    symbols, lengths = torch.randint(0, 2, (L, N)) * 2.0 - 1, torch.randint(1, L // 2, (N,)) * 2 + 1
    there = torch.arange(L)[:, None] < lengths
    return symbols.unsqueeze(-1), lengths, ((symbols * there).sum(0) > 0).float()


def last_h(rnn, x, lengths):
    """Return h of the last layer after each sequence, (N, H)."""
    _, hx = rnn(x, lengths=lengths)
    return (hx[0] if isinstance(hx, tuple) else hx)[-1]


def main():
    """Train each cell for as many steps, and print its size, how often it is right, and the time it took."""
    torch.set_num_threads(1)  # small products are slower on more
    GRU = EQUATIONS["GRU"]
    others = {"GRU": GRU, "GRU with zoneout": zoneout(GRU, h=0.1), "GRU with dropout": recurrent_dropout(GRU, 0.1)}
    print(f"{'':24}parameters   right  seconds")
    for name, equation in (CELLS | others).items():
        torch.manual_seed(0)
        start = time.perf_counter()
        rnn, readout = rnnkit.RNNBase(equation, 1, 24, bias=name != "layer-normalised LSTM"), nn.Linear(24, 1)
        parameters = [*rnn.parameters(), *readout.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(100):
            x, lengths, answer = counts(64, 30)
            loss = F.binary_cross_entropy_with_logits(readout(last_h(rnn, x, lengths))[:, 0], answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rnn.eval()
        x, lengths, answer = counts(1000, 30)
        right = ((readout(last_h(rnn, x, lengths))[:, 0] > 0) == answer.bool()).float().mean()
        size = sum(parameter.numel() for parameter in rnn.parameters())
        print(f"{name:24}{size:10}{right:8.1%}{time.perf_counter() - start:9.1f}")


if __name__ == "__main__":
    main()
