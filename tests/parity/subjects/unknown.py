"""Wrong in ways that the catalogue does not know, or knows but for a constant."""

import torch
import torch.nn.functional as F

from .grus import HandGRU
from .lstms import DropInLSTM, JointLSTM


class CosineLSTM(JointLSTM):
    def equations(self, a, b, c, d, cell):
        cell = b.sigmoid() * cell + a.sigmoid() * torch.cos(c)
        return d.sigmoid() * cell.tanh(), cell


class ClippedLSTM(JointLSTM):
    def equations(self, a, b, c, d, cell):
        cell = (b.sigmoid() * cell + a.sigmoid() * c.tanh()).clamp(-0.3, 0.3)
        return d.sigmoid() * cell.tanh(), cell


class DecayingLSTM(JointLSTM):
    def equations(self, a, b, c, d, cell):
        cell = 0.98 * b.sigmoid() * cell + a.sigmoid() * c.tanh()
        return d.sigmoid() * cell.tanh(), cell


class ScaledLSTM(DropInLSTM):
    """A scale for each product, nearly one."""

    def preactivation(self, x, h):
        return 1.001 * super().preactivation(x, h)


class PeepholeLSTM(JointLSTM):
    def equations(self, a, b, c, d, cell):
        cell = (b + 0.1 * cell).sigmoid() * cell + (a + 0.1 * cell).sigmoid() * c.tanh()
        return (d + 0.1 * cell).sigmoid() * cell.tanh(), cell


class SquareGRU(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return (1 - z) ** 2 * torch.tanh(xn + r * hn) + z * h


class GeluGRU(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return (1 - z) * F.gelu(xn + r * hn) + z * h


class HalfResetGRU(HandGRU):
    def combine(self, r, z, xn, hn, h):
        return (1 - z) * torch.tanh(xn + (r + 0.5) * hn) + z * h


UNKNOWN = [
    CosineLSTM, DecayingLSTM, ScaledLSTM, PeepholeLSTM, SquareGRU, GeluGRU, HalfResetGRU,
]  # fmt: skip
#: Known but for a constant.
EXPECTED = [(ClippedLSTM, "the cell is clipped to 0.3")]
