"""What does a recurrence of one's own take? Here are five that torch.nn hasn't, each an equation of some ten lines.

    rnn = rnnkit.RNNBase(CELLS["sLSTM"], 10, 20, num_layers=2, bidirectional=True)

Layers, directions, packing, lengths, resets, dropout, trace, compile, export and vmap come with RNNBase. W and b are
torch.nn's, with a block of rows for each gate; parameters besides these are named in the record.
"""

import torch
from torch import nn
from torch.nn import functional as F

from rnnkit import Equation, Own


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
