"""Each gate equation, once.

A step takes the pre-activations of its gates and the state before it, and returns the state after it and the gates:

    step(igates, hgates, state) -> (state, gates)

    igates  W_i* x + b_i*   (N, G*H)   what the input says: layers form it for all steps in one product
    hgates  W_h* h + b_h*   (N, G*H)   what the state says
    state   (h,) or (h, c)  each (N, H)
    gates   as named in the equation's record, each (N, H)

An equation of your own may have parameters besides W and b, and may draw random numbers in training: its step takes
these by name, `step(igates, hgates, state, gamma=..., training=...)`; see `Equation`.

Columns of `igates` and `hgates` are in torch's gate order. The operations and their order are ATen's on a CPU, so that
values come out bit for bit; where a formula could be written two ways, that is why it is written this way. Even the
layout counts: a kernel works a row's last few elements one by one, with another exp than its vectors', so a gate is
activated as a slice of its row, never after the gates have been laid side by side.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import count
from math import prod
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor

State: TypeAlias = tuple[Tensor, ...]
Gates: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[..., tuple[State, Gates]]  # what it takes is said above
Watcher: TypeAlias = Callable[[tuple[State, Gates]], object]


def rnn_tanh(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Elman, Finding structure in time (1990): h' = tanh(W_ih x + b_ih + W_hh h + b_hh)."""
    h = torch.tanh(hgates + igates)
    return (h,), (h,)


def rnn_relu(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Elman's network with a rectifier: h' = relu(W_ih x + b_ih + W_hh h + b_hh)."""
    h = torch.relu(hgates + igates)
    return (h,), (h,)


def lstm(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Hochreiter and Schmidhuber, Long short-term memory (1997), with the forget gate of Gers et al. (2000)."""
    _, c = state
    i, f, g, o = (hgates + igates).chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return (h, c), (i, f, g, o)


def gru(igates: Tensor, hgates: Tensor, state: State) -> tuple[State, Gates]:
    """Cho et al., Learning phrase representations (2014), with reset applied after the product, as in cuDNN."""
    (h,) = state
    r, z, _ = (hgates + igates).chunk(3, dim=-1)
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    *_, n_i = igates.chunk(3, dim=-1)
    *_, n_h = hgates.chunk(3, dim=-1)
    n = torch.tanh(n_i + r * n_h)
    h = (h - n) * z + n
    return (h,), (r, z, n)


def name_of(step: Step) -> str:
    """Return the name of a function, or of the class of what can be called like one."""
    return getattr(step, "__name__", type(step).__name__)


class Own(NamedTuple):
    """A parameter that an equation has besides W and b, one for each layer and direction.

    name   by which the step takes it. A layer has it as name_l0, name_l0_reverse, name_l1 and so on
    shape  as in the documentation of torch.nn: "(H)", "(G*H, H_in)". The letters are H or H_cell for hidden_size, H_in
           for the features of the layer's input, H_out for those of h (proj_size, if there is one), and G for the
           number of gates; numbers, and products of both, are read, too
    draw   fills the parameter in place, as torch.nn.init.ones_ does; default: U(-1/sqrt(H), 1/sqrt(H)), like W and b
    """

    name: str
    shape: str
    draw: Callable[[Tensor], object] | None = None

    def sizes(self, **letters: int) -> list[int]:
        """Return the shape, with the letters' sizes. Raises ValueError where it can't be read."""
        known = letters | {word: int(word) for word in re.findall(r"\d+", str(self.shape))}
        text = re.sub(r"\s", "", str(self.shape))
        inside = text[1:-1] if text[:1] == "(" and text[-1:] == ")" else text
        sides = [side.split("*") for side in inside.split(",")] if inside else []
        if not text or not all(factor in known for side in sides for factor in side):
            error = f"shape of {self.name} should be made of numbers and {', '.join(letters)}, got: {self.shape!r}"
            raise ValueError(error)
        return [prod(known[factor] for factor in side) for side in sides]


@dataclass(frozen=True)
class Equation:
    """A recurrence that layers can be built from: `RNNBase(equation, input_size, hidden_size, ...)`.

    step        the function above, or your own. It writes on nothing that it is given, and holds no tensor that wants a
                gradient: that is one of the parameters
    gates       a tuple of the gates' letters in the order of the weights' rows; their number is the weights' G
    state       a tuple of the state's letters, h first
    parameters  what the step takes by name besides igates, hgates and state; default: none
    recurrent   False: no gate reads h through a product, so there are no weight_hh and bias_hh, and hgates is (N, 0)
    random      True: the step takes `training` by name, by which it may draw random numbers; default: False

    Raises TypeError unless gates and state are tuples of names and parameters one of Own, ValueError for a name twice.

    >>> def peephole(igates, hgates, state, p):
    ...     ...
    >>> PEEPHOLE = Equation(peephole, ("i", "f", "g", "o"), ("h", "c"), (Own("p", "(3, H)"),))
    """

    step: Step
    gates: tuple[str, ...]
    state: tuple[str, ...]
    parameters: tuple[Own, ...] = ()
    recurrent: bool = True
    random: bool = False
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the record, and enter it among those that are known by their key."""
        for what, names in ("gates", self.gates), ("state", self.state):
            if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
                raise TypeError(f"{what} should be a tuple of names, got: {names!r}")
        if not isinstance(self.parameters, tuple) or not all(isinstance(each, Own) for each in self.parameters):
            raise TypeError(f"parameters should be a tuple of Own, got: {self.parameters!r}")
        letters = *self.gates, *self.state[1:]  # a gate may be the state's h
        for names in letters, self.state, tuple(each.name for each in self.parameters):
            if len(set(names)) < len(names):
                raise ValueError(f"a name stands twice among {', '.join(names)}")
        shape = "_".join([self.name, *self.gates, *self.state, *(own.name for own in self.parameters)])
        object.__setattr__(self, "key", f"{shape}_{next(NUMBERS)}")
        KNOWN[self.key] = self

    def __reduce__(self) -> Any:
        values = (getattr(self, each.name) for each in fields(self) if each.init)
        return Equation, tuple(values)  # so that a copy is entered, too

    @property
    def name(self) -> str:
        """The name of the step."""
        return name_of(self.step)

    def bound(self, own: tuple[Tensor, ...], training: bool) -> Step:
        """Return the step as a function of igates, hgates and state alone: what it takes by name is given here."""
        if not (self.parameters or self.random):  # as of all steps of torch.nn's
            return self.step
        named: dict[str, Any] = {each.name: tensor for each, tensor in zip(self.parameters, own, strict=True)}
        return partial(self.step, **named, **({"training": training} if self.random else {}))

    def watched(self, see: Watcher) -> "Equation":
        """Return the same equation, whose step also hands what it returns to `see`."""

        def step(igates: Tensor, hgates: Tensor, state: State, **extras: Any) -> tuple[State, Gates]:
            taken = self.step(igates, hgates, state, **extras)
            see(taken)
            return taken

        return replace(self, step=step)


#: Every record there is, by a key of its own: a compiled graph holds that in its place.
KNOWN: WeakValueDictionary[str, Equation] = WeakValueDictionary()
NUMBERS = count()


#: The equations that torch.nn has, by the name it gives them in the attribute `mode`.
EQUATIONS: dict[str, Equation] = {
    "RNN_TANH": Equation(rnn_tanh, ("h",), ("h",)),
    "RNN_RELU": Equation(rnn_relu, ("h",), ("h",)),
    "LSTM": Equation(lstm, ("i", "f", "g", "o"), ("h", "c")),
    "GRU": Equation(gru, ("r", "z", "n"), ("h",)),
}
