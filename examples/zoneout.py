"""What if a state sometimes stays as it was, or what it says is dropped? Two wrappers of any equation, for training.

    rnn = rnnkit.RNNBase(zoneout(rnnkit.EQUATIONS["LSTM"], h=0.05, c=0.5), 10, 20)

An equation whose record says `random=True` is told whether the module trains. Each wrapper is an equation again.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from rnnkit import Equation


@dataclass(frozen=True)
class Zoneout:
    """Krueger et al., Zoneout (2016): each number of a state stays as it was with probability p, in training."""

    of: Equation
    p: tuple[float, ...]

    def __call__(self, igates, hgates, state, training, **own):
        after, gates = self.of.bound(tuple(own.values()), training)(igates, hgates, state)
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
        return self.of.bound(tuple(own.values()), training)(igates, hgates, state)


def zoneout(equation, **p):
    """Return an equation with zoneout, of probability p for each state by its letter: zoneout(LSTM, h=0.05, c=0.5)."""
    step = Zoneout(equation, tuple(p.get(letter, 0.0) for letter in equation.state))
    return replace(equation, step=step, random=True)


def recurrent_dropout(equation, p):
    """Return an equation with dropout of what its state says to the gates."""
    return replace(equation, step=RecurrentDropout(equation, p), random=True)
