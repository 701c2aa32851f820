"""Planted mistakes: what the harness must find (`python -m parity --selftest`).

`Plain` is a correct implementation of all six classes, as short as can be: torch.nn's constructors, one loop. A fault
is a subclass that changes a few lines of it. `Plain` itself must not be accused, nor must `Reordered`, which adds in
another order: so a find is due to the mistake and to nothing else.

This module also is a subject: `python -m parity --subject parity.faults` runs the whole grid on `Plain`.
"""

# ruff: noqa: N801  (a fault is named by its string; its class needs no other name)

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

State = tuple[Tensor, ...]


class Weights(NamedTuple):
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


class Plain:
    """The six modules by one loop over steps. Mixed in before a class of torch.nn, for its constructor."""

    # One step ---------------------------------------------------------------------------------------------------

    lstm_order, gru_order = "ifgo", "rzn"

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def candidate(self, g: Tensor) -> Tensor:
        return torch.tanh(g)

    def squash(self, c: Tensor) -> Tensor:
        return torch.tanh(c)

    def rnn(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return (getattr(torch, self.nonlinearity)(hgates + igates),)

    def lstm(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return self.remember(*self.in_order(self.lstm_order, "ifgo", hgates + igates), state[1])

    def remember(self, i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
        c = self.sigmoid(f) * c + self.sigmoid(i) * self.candidate(g)
        return self.sigmoid(o) * self.squash(c), c

    def gru(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        ir, iz, in_ = self.in_order(self.gru_order, "rzn", igates)
        hr, hz, hn = self.in_order(self.gru_order, "rzn", hgates)
        return (self.mix(self.sigmoid(ir + hr), self.sigmoid(iz + hz), in_, hn, state[0]),)

    def mix(self, r: Tensor, z: Tensor, in_: Tensor, hn: Tensor, h: Tensor) -> Tensor:
        return (1 - z) * torch.tanh(in_ + r * hn) + z * h

    def in_order(self, order: str, wanted: str, gates: Tensor) -> list[Tensor]:
        named = dict(zip(order, gates.chunk(len(order), -1), strict=True))
        return [named[gate] for gate in wanted]

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x, w, b)

    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return self.linear(x, w.w_ih, w.b_ih), self.linear(h, w.w_hh, w.b_hh)

    def step(self, x: Tensor, state: State, w: Weights) -> State:
        equation = {"R": self.rnn, "L": self.lstm, "G": self.gru}[type(self).__name__[0]]
        h, *c = equation(*self.products(x, state[0], w), state)
        return (h if w.w_hr is None else self.linear(h, w.w_hr), *c)

    # Steps, directions, layers ----------------------------------------------------------------------------------

    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        steps = list(zip(rows.split(batch_sizes), batch_sizes, strict=True))
        outputs = []
        for x, alive in reversed(steps) if reverse else steps:
            new = self.step(x, tuple(s[:alive] for s in state), w)
            state = tuple(torch.cat([n, s[alive:].to(n.dtype)]) for n, s in zip(new, state, strict=True))
            outputs.append(new[0])
        return torch.cat(outputs[::-1] if reverse else outputs), state

    def stack(self, rows: Tensor, batch_sizes: list[int], states: list[State]) -> tuple[Tensor, list[State]]:
        directions = 2 if self.bidirectional else 1
        final = []
        for layer in range(self.num_layers):
            outputs = []
            for slot in range(layer * directions, (layer + 1) * directions):
                reverse = slot % directions == 1
                out, state = self.direction(rows, batch_sizes, states[slot], self.weights(slot), reverse)
                outputs.append(out)
                final.append(state)
            rows = self.between(torch.cat(outputs, -1), layer)
        return rows, final

    def between(self, rows: Tensor, layer: int) -> Tensor:
        return F.dropout(rows, self.dropout, self.training) if layer < self.num_layers - 1 else rows

    def weights(self, slot: int) -> Weights:
        directions = 2 if self.bidirectional else 1
        suffix = f"_l{slot // directions}" + "_reverse" * (slot % directions)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return Weights(*(getattr(self, name + suffix, None) for name in names))

    # In and out -------------------------------------------------------------------------------------------------

    def check(self, input: Any, hx: Any) -> None:
        """Refuse what torch.nn refuses, by asking it."""
        before = torch.get_rng_state()
        with torch.no_grad():
            super().forward(input, hx)  # type: ignore[misc]
        torch.set_rng_state(before)

    def forward(self, input: Any, hx: Any = None) -> Any:
        self.check(input, hx)
        hx = hx if hx is None or not type(self).__name__.startswith("LSTM") else tuple(hx)[:2]
        return self.cell(input, hx) if isinstance(self, nn.RNNCellBase) else self.layers(input, hx)

    def cell(self, input: Tensor, hx: Any) -> Any:
        if hx is None:
            hx = self.zeros(input, *input.shape[:-1])
        w = Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None)
        state = self.step(input, hx if isinstance(hx, tuple) else (hx,), w)
        return state if len(state) == 2 else state[0]

    def zeros(self, like: Tensor, *shape: int) -> State:
        sizes = [getattr(self, "proj_size", 0) or self.hidden_size]
        sizes += [self.hidden_size] * type(self).__name__.startswith("LSTM")
        return tuple(torch.zeros(*shape, size).to(like.device, like.dtype) for size in sizes)

    def layers(self, input: Any, hx: Any) -> Any:
        if isinstance(input, PackedSequence):
            rows, batch_sizes = input.data, input.batch_sizes.tolist()
        else:
            unbatched = input.dim() == 2
            steps_first = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if self.batch_first else input
            batch_sizes = [steps_first.size(1)] * steps_first.size(0)
            rows = steps_first.flatten(0, 1)
            input = input if not unbatched else None
        slots = self.num_layers * (2 if self.bidirectional else 1)
        hx = self.zeros(rows, slots, batch_sizes[0]) if hx is None else hx if isinstance(hx, tuple) else (hx,)
        rows, final = self.stack(rows, batch_sizes, self.enter(input, hx))
        states = self.leave(input, rows, [torch.stack(parts) for parts in zip(*final, strict=True)])
        return self.wrap(input, rows, batch_sizes), tuple(states) if len(states) == 2 else states[0]

    def enter(self, input: Any, hx: State) -> list[State]:
        """hx as one state per slot (layer and direction), in the order of the rows. `input` is None if unbatched."""
        if input is None:
            hx = tuple(h if h.dim() == 3 else h.unsqueeze(1) for h in hx)
        if isinstance(input, PackedSequence):
            if input.sorted_indices is not None:
                hx = tuple(h[:, input.sorted_indices] for h in hx)
        elif self.by_onednn() and torch.is_autocast_enabled("cpu"):  # there even c is of the lower precision
            hx = tuple(h.to(torch.get_autocast_dtype("cpu")) for h in hx)
        return list(zip(*hx, strict=True))

    def by_onednn(self) -> bool:
        return type(self).__name__ == "LSTM" and not self.proj_size and torch.backends.mkldnn.enabled

    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        if isinstance(input, PackedSequence) and input.unsorted_indices is not None:
            return [state[:, input.unsorted_indices] for state in states]
        return [state.squeeze(1) for state in states] if input is None else states

    def wrap(self, input: Any, rows: Tensor, batch_sizes: list[int]) -> Any:
        if isinstance(input, PackedSequence):
            return PackedSequence(rows, *input[1:])
        if input is None:
            return rows
        output = rows.unflatten(0, (len(batch_sizes), batch_sizes[0]))
        return output.transpose(0, 1) if self.batch_first else output


class Reordered(Plain):
    """Correct too, but every product is summed from its other end."""

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x.flip(-1), w.flip(-1), b)


def implementation(mixin: type) -> SimpleNamespace:
    """The six classes made of `mixin`: what the harness takes as a subject."""
    classes = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    return SimpleNamespace(**{cls.__name__: type(cls.__name__, (mixin, cls), {}) for cls in classes})


globals().update(vars(implementation(Plain)))


@dataclass(frozen=True)
class Fault:
    name: str
    level: str
    classes: tuple[str, ...]  # that make the mistake
    mixin: type
    where: str = ""  # where it is looked for first: an expression as for -k, or "contract"


FAULTS: list[Fault] = []
INITIALS = {"R": "RNN", "L": "LSTM", "G": "GRU", "r": "RNNCell", "l": "LSTMCell", "g": "GRUCell"}
EVERYWHERE = "".join(INITIALS)
LEVEL = ""  # of the faults that follow


def fault(name: str, initials: str = "RLG", where: str = "") -> Callable[[type], type]:
    def register(mixin: type) -> type:
        FAULTS.append(Fault(name, LEVEL, tuple(INITIALS[initial] for initial in initials), mixin, where))
        return mixin

    return register


def plant(name: str, initials: str = "RLG", where: str = "", **methods: Any) -> None:
    """A fault that is short: methods (or attributes) of `Plain` that are replaced."""
    fault(name, initials, where)(type("", (Plain,), methods))


def nudge(tensor: Tensor, target: Tensor) -> Tensor:
    """A ten-thousandth of the way to `target`, and no sign of it in the gradient."""
    return tensor + (1e-4 * (target - tensor)).detach()


LEVEL = "in a step"  # -------------------------------------------------------------------------------------------------

LSTM_ORDERS = {"iofg": "ONNX", "igfo": "Haiku", "ifog": "CoreML", "gifo": "Chainer", "figo": "OpenVINO"}
for order, system in LSTM_ORDERS.items():
    plant(f"gates in the order {' '.join(order)} ({system})", "Ll", lstm_order=order)
for order, system in {"zrn": "Keras, ONNX", "nzr": "reversed", "rnz": "z last"}.items():
    plant(f"gates in the order {' '.join(order)} ({system})", "Gg", gru_order=order)


def lstm(name: str, remember: Callable[..., State]) -> None:
    plant(name, "Ll", remember=remember)


def gru(name: str, mix: Callable[..., Tensor]) -> None:
    plant(name, "Gg", mix=mix)


def rnn(name: str, function: Callable[..., Tensor], where: str = "") -> None:
    """`function` of the sum of both products, the state, and the name of the nonlinearity."""
    plant(name, "Rr", where, rnn=lambda self, i, h, s: (function(i + h, s[0], getattr(torch, self.nonlinearity)),))


lstm("one gate for both, i = 1 - f", lambda self, i, f, g, o, c: Plain.remember(self, -f, f, g, o, c))
lstm("nothing is forgotten, f = 1", lambda self, i, f, g, o, c: Plain.remember(self, i, f + 1000, g, o, c))
lstm("the input gate left out, i = 1", lambda self, i, f, g, o, c: Plain.remember(self, i + 1000, f, g, o, c))
lstm("o looks at c (a peephole)", lambda self, i, f, g, o, c: Plain.remember(self, i, f, g, o + 0.1 * c, c))
plant("g without its tanh", "Ll", candidate=lambda self, g: g)
plant("g by a sigmoid", "Ll", candidate=lambda self, g: torch.sigmoid(g))
plant("c by a sigmoid on its way to h", "Ll", squash=lambda self, c: torch.sigmoid(c))
gru("reset on the input's part too", lambda self, r, z, i, h, s: Plain.mix(self, r, z, r * i, h, s))
gru("no reset gate", lambda self, r, z, i, h, s: Plain.mix(self, torch.ones_like(r), z, i, h, s))
gru("the state reset in the mixture too", lambda self, r, z, i, h, s: Plain.mix(self, r, z, i, h, r * s))
gru("the candidate added, not mixed in", lambda self, r, z, i, h, s: s + (1 - z) * torch.tanh(i + r * h))
gru("the candidate without its tanh", lambda self, r, z, i, h, s: (1 - z) * (i + r * h) + z * s)
rnn("the nonlinearity twice", lambda x, h, f: torch.tanh(f(x)))
rnn("no nonlinearity", lambda x, h, f: x)
rnn("the state added to its successor", lambda x, h, f: f(x) + 0.1 * h)
rnn("leaky relu in place of relu", lambda x, h, f: f(x) if f is torch.tanh else F.leaky_relu(x), where="relu")


def products(name: str, change: Callable[..., tuple[Tensor, Tensor, Weights]], where: str = "") -> None:
    """Every class computes its products on other operands: `change(self, x, h, w)`."""
    plant(name, EVERYWHERE, where, products=lambda self, x, h, w: Plain.products(self, *change(self, x, h, w)))


products("b_ih missing", lambda self, x, h, w: (x, h, w._replace(b_ih=None)))
products("b_ih used for b_hh as well", lambda self, x, h, w: (x, h, w._replace(b_hh=w.b_ih)))
products("the last feature of the input ignored", lambda self, x, h, w: (
    x[..., :-1], h, w._replace(w_ih=w.w_ih[:, :-1]),
))  # fmt: skip
products("a bias of 0.1 where there is none", lambda self, x, h, w: (
    x, h, w._replace(b_ih=w.w_ih[:, 0] * 0 + 0.1) if w.b_ih is w.b_hh is None else w,
), where="nobias")  # fmt: skip
products("h clipped to 0.5", lambda self, x, h, w: (x, h if h.is_complex() else h.clamp(-0.5, 0.5), w))
plant("products with weights of 16 bits", EVERYWHERE, linear=lambda self, x, w, b=None: Plain.linear(
    self, x, w if w.is_complex() else w.bfloat16().to(w.dtype), b,
))  # fmt: skip
plant("a kernel for no more than 32 units", EVERYWHERE, where="wide", products=lambda self, x, h, w: Plain.products(
    self, x, torch.cat([h[..., :32], 0 * h[..., 32:]], -1), w,
))  # fmt: skip


@fault("forget gate + 1", "Ll")
class _(Plain):
    def lstm(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        one = torch.tensor([0, 1, 0, 0]).repeat_interleave(self.hidden_size).to(igates)
        return super().lstm(igates + one, hgates, state)


@fault("hard sigmoid, clip(0.2 x + 0.5)", "LGlg")
class _(Plain):
    def sigmoid(self, x: Tensor) -> Tensor:
        x = 0.2 * x + 0.5
        return x if x.is_complex() else x.clamp(0, 1)


@fault("tanh missing on c", "Ll")
class _(Plain):
    def squash(self, c: Tensor) -> Tensor:
        return c


@fault("reset before the product", "Gg")
class _(Plain):
    def step(self, x: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        igates, hgates = self.products(x, h, w)
        ir, iz, in_ = igates.chunk(3, -1)
        hr, hz, _ = hgates.chunk(3, -1)
        r = torch.sigmoid(ir + hr)
        hn = F.linear(r * h, w.w_hh.chunk(3)[2], None if w.b_hh is None else w.b_hh.chunk(3)[2])
        return (self.mix(torch.ones_like(r), torch.sigmoid(iz + hz), in_, hn, h),)


@fault("update gate of the opposite sense", "Gg")
class _(Plain):
    def mix(self, r: Tensor, z: Tensor, in_: Tensor, hn: Tensor, h: Tensor) -> Tensor:
        return super().mix(r, 1 - z, in_, hn, h)


@fault("b_hn outside r", "Gg")
class _(Plain):
    def step(self, x: Tensor, state: State, w: Weights) -> State:
        if w.b_ih is not None and w.b_hh is not None:
            inside, outside = torch.tensor([[1, 1, 0], [0, 0, 1]]).repeat_interleave(self.hidden_size, 1).to(w.b_hh)
            w = w._replace(b_ih=w.b_ih + w.b_hh * outside, b_hh=w.b_hh * inside)
        return super().step(x, state, w)


@fault("b_hh missing", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w._replace(b_hh=None))


@fault("b_ih twice", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        igates, hgates = super().products(x, h, w)
        return (igates if w.b_ih is None else igates + w.b_ih), hgates


@fault("b_hh added where b_ih belongs and b_ih where b_hh does", "Gg")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w._replace(b_ih=w.b_hh, b_hh=w.b_ih))


@fault("W_hh transposed", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        if w.w_hh.size(1) == self.hidden_size:
            w = w._replace(w_hh=torch.cat([matrix.t() for matrix in w.w_hh.split(self.hidden_size)]))
        return super().products(x, h, w)


@fault("relu in place of tanh", "Rr")
class _(Plain):
    def rnn(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return (torch.relu(hgates + igates) if not igates.is_complex() else hgates + igates,)


@fault("h projected, but the recurrence is not", "L")
class _(Plain):
    def step(self, x: Tensor, state: State, w: Weights) -> State:
        h, c = super().step(x, state, w)
        return (h if w.w_hr is None else torch.tanh(h)), c


LEVEL = "states"  # ----------------------------------------------------------------------------------------------------


class OnStates(Plain):
    """Changes hx as it enters the layers or a cell."""

    def change(self, hx: State) -> State:
        return hx

    def enter(self, input: Any, hx: State) -> list[State]:
        return super().enter(input, self.change(hx))

    def cell(self, input: Tensor, hx: Any) -> Any:
        if hx is not None:
            hx = self.change(hx if isinstance(hx, tuple) else (hx,))
        return super().cell(input, hx)


@fault("h0 ignored", EVERYWHERE)
class _(OnStates):
    def change(self, hx: State) -> State:
        return (torch.zeros_like(hx[0]), *hx[1:])


@fault("c0 ignored", "Ll")
class _(OnStates):
    def change(self, hx: State) -> State:
        return hx[0], torch.zeros_like(hx[1])


@fault("h0 and c0 swapped", "Ll")
class _(OnStates):
    def change(self, hx: State) -> State:
        return hx[::-1] if hx[0].shape == hx[1].shape else hx


@fault("h_n is c_n", "L")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        return super().leave(input, rows, [states[1] if not self.proj_size else states[0], states[1]])


@fault("h0 taken as (batch, layers, H) under batch_first")
class _(OnStates):
    def change(self, hx: State) -> State:
        if not getattr(self, "batch_first", False) or hx[0].dim() < 3:
            return hx
        return tuple(h.reshape(h.size(1), h.size(0), -1).transpose(0, 1) for h in hx)


@fault("h_n of shape (batch, layers, H) under batch_first")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        states = super().leave(input, rows, states)
        return [s.transpose(0, 1) for s in states] if self.batch_first and input is not None else states


@fault("h_n direction-major")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        if self.bidirectional:
            states = [s.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) for s in states]
        return super().leave(input, rows, states)


@fault("h_n in the order of the rows: not unsorted")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        return states if isinstance(input, PackedSequence) else super().leave(input, rows, states)


@fault("hx sorted by unsorted_indices", where="packed_unsorted and hx")
class _(Plain):
    def enter(self, input: Any, hx: State) -> list[State]:
        if isinstance(input, PackedSequence):
            input = PackedSequence(input.data, input.batch_sizes, input.unsorted_indices, input.sorted_indices)
        return super().enter(input, hx)


def final(name: str, change: Callable[[list[Tensor]], list[Tensor]], initials: str = "RLG", where: str = "") -> None:
    """The final states are changed before they are handed out. Of cells too, where `initials` name them."""

    def cell(self: Plain, input: Tensor, hx: Any) -> Any:
        state = Plain.cell(self, input, hx)
        return tuple(change(list(state))) if isinstance(state, tuple) else change([state])[0]

    def leave(self: Plain, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        return Plain.leave(self, input, rows, change(states))

    plant(name, initials, where, cell=cell, leave=leave)


def initial(name: str, change: Callable[[State], State], initials: str = EVERYWHERE, where: str = "hx") -> None:
    fault(name, initials, where)(type("", (OnStates,), {"change": lambda self, hx: change(hx)}))


final("h_n of the layers in reverse order", lambda s: [s[0].flip(0), *s[1:]])
final("h_n of the last layer for all", lambda s: [s[0][-1:].expand_as(s[0]).contiguous(), *s[1:]])
final("h_n squashed by a tanh", lambda s: [torch.tanh(s[0]), *s[1:]], EVERYWHERE)
final("c_n squashed by a tanh", lambda s: [s[0], torch.tanh(s[1])], "Ll")
final("c_n clipped to 0.5", lambda s: [s[0], s[1] if s[1].is_complex() else s[1].clamp(-0.5, 0.5)], "Ll")
initial("h0 of the first layer for all", lambda hx: (hx[0][:1].expand_as(hx[0]), *hx[1:]), "RLG")
initial("c0 of the last layer for all", lambda hx: (hx[0], hx[1][-1:].expand_as(hx[1])), "L")
initial("h0 of the layers in reverse order", lambda hx: (hx[0].flip(0), *hx[1:]), "RLG")
initial("h0 squashed by a tanh", lambda hx: (torch.tanh(hx[0]), *hx[1:]))
initial("c0 squashed by a tanh", lambda hx: (hx[0], torch.tanh(hx[1])), "Ll")
plant("c_n in the order of the rows: not unsorted", "L", "packed_unsorted", leave=lambda self, input, rows, states: [
    Plain.leave(self, input, rows, states)[0],
    states[1] if isinstance(input, PackedSequence) else Plain.leave(self, input, rows, states)[1],
])  # fmt: skip
plant("states of ones when hx is not given", EVERYWHERE, zeros=lambda self, like, *shape: tuple(
    torch.ones_like(zeros) for zeros in Plain.zeros(self, like, *shape)
))  # fmt: skip


@fault("states kept from one call to the next", EVERYWHERE, where="second_call")
class _(Plain):
    kept: State = ()

    def zeros(self, like: Tensor, *shape: int) -> State:
        zeros = super().zeros(like, *shape)
        return tuple(k if k.shape == z.shape else z for k, z in zip(self.kept, zeros, strict=False)) or zeros

    def forward(self, input: Any, hx: Any = None) -> Any:
        result = super().forward(input, hx)
        states = result if isinstance(self, nn.RNNCellBase) else result[1]
        self.kept = tuple(s.detach() for s in (states if isinstance(states, tuple) else (states,)))
        return result


@fault("output forgets the order of its sequences")
class _(Plain):
    def wrap(self, input: Any, rows: Tensor, batch_sizes: list[int]) -> Any:
        output = super().wrap(input, rows, batch_sizes)
        return PackedSequence(*output[:2]) if isinstance(output, PackedSequence) else output


LEVEL = "directions and time"  # ---------------------------------------------------------------------------------------


@fault("reverse h_n taken from output[-1]")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        outputs, state = super().direction(rows, batch_sizes, state, w, reverse)
        if reverse:
            last = outputs.split(batch_sizes)[-1]
            state = (torch.cat([last, state[0][len(last) :]]), *state[1:])
        return outputs, state


@fault("reverse output not flipped back")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        outputs, state = super().direction(rows, batch_sizes, state, w, reverse)
        return (torch.cat(outputs.split(batch_sizes)[::-1]) if reverse else outputs), state


@fault("both directions with the forward weights")
class _(Plain):
    def weights(self, slot: int) -> Weights:
        return super().weights(slot - slot % 2 if self.bidirectional else slot)


@fault("final state taken at padding")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        outputs, final = super().direction(rows, batch_sizes, state, w, reverse)
        if not reverse:  # finished sequences go on, over inputs of zeros
            for alive in batch_sizes:
                zeros = rows.new_zeros(len(state[0]) - alive, rows.size(1))
                new = self.step(zeros, tuple(s[alive:] for s in final), w)
                final = tuple(torch.cat([s[:alive], n]) for s, n in zip(final, new, strict=True))
        return outputs, final


@fault("the first 32 steps only", where="long")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        first = sum(batch_sizes[:32])
        outputs, state = super().direction(rows[:first], batch_sizes[:32], state, w, reverse)
        return torch.cat([outputs, outputs.new_zeros(len(rows) - first, outputs.size(1))]), state


@fault("batch_first ignored", where="batch_first")
class _(Plain):
    def layers(self, input: Any, hx: Any) -> Any:
        self.batch_first, before = False, self.batch_first
        try:
            return super().layers(input, hx)
        finally:
            self.batch_first = before


@fault("2-D input taken as a batch of one step")
class _(Plain):
    def layers(self, input: Any, hx: Any) -> Any:
        if isinstance(input, Tensor) and input.dim() == 2 and hx is None:
            return super().layers(input.unsqueeze(1 if self.batch_first else 0), hx)
        return super().layers(input, hx)


@fault("the input of the step before")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        steps = rows.split(batch_sizes)
        late = [torch.zeros_like(steps[0])] + [x[: len(y)] for x, y in itertools.pairwise(steps)]
        return super().direction(torch.cat(late), batch_sizes, state, w, reverse)


@fault("a shortcut for one step that takes no hx", where="one_step")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        state = tuple(0 * s for s in state) if len(batch_sizes) == 1 else state
        return super().direction(rows, batch_sizes, state, w, reverse)


def direction(name: str, change: Callable[..., Any], where: str = "") -> None:
    """`change(rows, batch_sizes, state, w, reverse)` are other arguments of `Plain.direction`."""
    plant(name, "RLG", where, direction=lambda self, *given: Plain.direction(self, *change(*given)))


direction("both directions run forward", lambda *given: (*given[:4], False), where="bidirectional")
direction("the directions exchanged", lambda *given: (*given[:4], not given[4]))
plant("the weights of the second layer in the third", where="layers3", weights=lambda self, slot: Plain.weights(
    self, slot if slot < 2 * (2 if self.bidirectional else 1) else slot - (2 if self.bidirectional else 1),
))  # fmt: skip
plant("the reverse direction's output first", where="bidirectional", between=lambda self, rows, layer: Plain.between(
    self, torch.cat(rows.chunk(2, -1)[::-1], -1) if self.bidirectional else rows, layer,
))  # fmt: skip
plant("output (L, N, H) under batch_first", where="batch_first", wrap=lambda self, input, rows, sizes: (
    Plain.wrap(self, input, rows, sizes) if not isinstance(input, Tensor) else rows.unflatten(0, (len(sizes), sizes[0]))
))  # fmt: skip


LEVEL = "dropout"  # ---------------------------------------------------------------------------------------------------


@fault("dropout after the last layer")
class _(Plain):
    def between(self, rows: Tensor, layer: int) -> Tensor:
        return F.dropout(rows, self.dropout, self.training)


@fault("dropout before the first layer")
class _(Plain):
    def stack(self, rows: Tensor, batch_sizes: list[int], states: list[State]) -> tuple[Tensor, list[State]]:
        return super().stack(F.dropout(rows, self.dropout, self.training), batch_sizes, states)


@fault("dropout on the recurrence")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, F.dropout(h, getattr(self, "dropout", 0.0), self.training), w)


@fault("dropout in eval")
class _(Plain):
    def between(self, rows: Tensor, layer: int) -> Tensor:
        return F.dropout(rows, self.dropout) if layer < self.num_layers - 1 else rows


@fault("dropout never")
class _(Plain):
    def between(self, rows: Tensor, layer: int) -> Tensor:
        return rows


@fault("dropout without 1 / (1 - p)")
class _(Plain):
    def between(self, rows: Tensor, layer: int) -> Tensor:
        kept = super().between(rows, layer)
        return kept * (1 - self.dropout) if self.training and kept is not rows else kept


@fault("the same dropout mask at every step")
class _(Plain):
    def between(self, rows: Tensor, layer: int) -> Tensor:
        if layer == self.num_layers - 1 or not self.training or not self.dropout:
            return rows
        return rows * F.dropout(torch.ones_like(rows[:1]), self.dropout)


@fault("one extra draw from the generator")
class _(Plain):
    def stack(self, rows: Tensor, batch_sizes: list[int], states: list[State]) -> tuple[Tensor, list[State]]:
        result = super().stack(rows, batch_sizes, states)
        if self.dropout and self.training:
            torch.rand(1)
        return result


def dropout(name: str, function: Callable[[Tensor, float, bool], Tensor]) -> None:
    """`function(rows, p, training)` stands between two layers."""
    plant(name, where="dropout_train and not layers1", between=lambda self, rows, layer: (
        function(rows, self.dropout, self.training) if layer < self.num_layers - 1 else rows
    ))  # fmt: skip


dropout("dropout keeps p and drops 1 - p", lambda rows, p, training: F.dropout(rows, 1 - p if p else 0, training))
dropout("dropout of whole vectors", lambda rows, p, training: (
    rows * F.dropout(torch.ones_like(rows[:, :1]), p, training)
))  # fmt: skip
dropout("dropout twice", lambda rows, p, training: F.dropout(F.dropout(rows, p, training), p, training))
dropout("dropout scales in eval", lambda rows, p, training: F.dropout(rows, p, training) * (1 if training else 1 - p))
dropout("no gradient through dropout's mask", lambda rows, p, training: (
    rows + (F.dropout(rows, p, training) - rows).detach()
))  # fmt: skip
plant("alpha dropout", where="dropout_train and not layers1", between=lambda self, rows, layer: (
    rows if layer == self.num_layers - 1 or rows.is_complex() else F.alpha_dropout(rows, self.dropout, self.training)
))  # fmt: skip


LEVEL = "gradients"  # -------------------------------------------------------------------------------------------------


class Scale(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


@fault("a detach in the loop", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h.detach(), w)


@fault("c detached from one step to the next", "Ll")
class _(Plain):
    def lstm(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return super().lstm(igates, hgates, (state[0], state[1].detach()))


@fault("backpropagation through the last 3 steps only")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        cut = sum(batch_sizes[:-3])
        rows = torch.cat([rows[:cut].detach(), rows[cut:]])
        return super().direction(rows, batch_sizes, state, w, reverse)


@fault("gradient of W_hh 0.1 % off", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w._replace(w_hh=Scale.apply(w.w_hh, 1.001)))


@fault("gradient of the input 0.1 % off", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(Scale.apply(x, 0.999), h, w)


@fault("gradient of b_hh is zero", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w if w.b_hh is None else w._replace(b_hh=Scale.apply(w.b_hh, 0.0)))


@fault("gradient of b_hh missing", EVERYWHERE)
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w if w.b_hh is None else w._replace(b_hh=w.b_hh.detach()))


@fault("no gradient for hx", EVERYWHERE)
class _(OnStates):
    def change(self, hx: State) -> State:
        return tuple(h.detach() for h in hx)


@fault("no gradient through h_n")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        states = super().leave(input, rows, states)
        return [states[0].detach(), *states[1:]]


@fault("gradient through c_n lost", "L")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        states = super().leave(input, rows, states)
        return [*states[:1], *(Scale.apply(c, 0.0) for c in states[1:])]


class Mean(torch.autograd.Function):
    """The identity; every element gets the mean gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.mean().expand_as(grad) if grad.numel() else grad


class Sole(torch.autograd.Function):
    """The identity on two tensors, for a loss of both."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return a.view_as(a), b.view_as(b)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> Any:
        return (None, None) if a is None or b is None else (a, b)


class Spent(torch.autograd.Function):
    """The identity, whose backward takes the memory of its argument for itself."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.memory = tensor.detach()
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        ctx.memory.data.zero_()
        return grad


products("gradient of W_ih of the wrong sign", lambda self, x, h, w: (x, h, w._replace(w_ih=Scale.apply(w.w_ih, -1.0))))
products("gradient of b_ih twice", lambda self, x, h, w: (
    x, h, w if w.b_ih is None else w._replace(b_ih=Scale.apply(w.b_ih, 2.0)),
))  # fmt: skip
products("the input detached", lambda self, x, h, w: (x.detach(), h, w))
products("NaN for the gradient of a state of zeros", lambda self, x, h, w: (
    x, h + 0 * F.linear(h, w.w_hh).square().sum(-1, keepdim=True).sqrt(), w,
), where="not hx")  # fmt: skip
lstm("no gradient through the forget gate", lambda self, i, f, g, o, c: Plain.remember(self, i, f.detach(), g, o, c))
lstm("no gradient through the output gate", lambda self, i, f, g, o, c: Plain.remember(self, i, f, g, o.detach(), c))
gru("no gradient through the reset gate", lambda self, r, z, i, h, s: Plain.mix(self, r.detach(), z, i, h, s))
gru("no gradient through the update gate", lambda self, r, z, i, h, s: Plain.mix(self, r, z.detach(), i, h, s))
rnn("tanh's gradient straight through", lambda x, h, f: x + (f(x) - x).detach())
plant("no gradient from one layer to the layer below", between=lambda self, rows, layer: (
    Plain.between(self, rows, layer) if layer == self.num_layers - 1 else Plain.between(self, rows, layer).detach()
))  # fmt: skip
plant("finished sequences detached", where="packed", direction=lambda self, rows, sizes, state, w, reverse: (
    lambda out, new: (out, tuple(torch.cat([n[: sizes[-1]], n[sizes[-1] :].detach()]) for n in new))
)(*Plain.direction(self, rows, sizes, state, w, reverse)))  # fmt: skip
plant("no gradient for the reverse direction's weights", where="bidirectional", weights=lambda self, slot: (
    Plain.weights(self, slot)
    if slot % 2 == 0 or not self.bidirectional
    else Weights(*(w if w is None else Scale.apply(w, 0.0) for w in Plain.weights(self, slot)))
))  # fmt: skip
plant("no gradient for W_hr", "L", weights=lambda self, slot: (
    lambda w: w if w.w_hr is None else w._replace(w_hr=Scale.apply(w.w_hr, 0.0))
)(Plain.weights(self, slot)))  # fmt: skip
final("a backward for losses that are a sum", lambda s: [Mean.apply(s[0]), *s[1:]], EVERYWHERE)
final("gradient through h_n lost", lambda s: [Scale.apply(s[0], 0.0), *s[1:]])
final("a backward that needs a gradient of h_n and of c_n", lambda s: list(Sole.apply(*s)), "Ll", where="loss_h_n")
initial("gradient of h0 of the first layer only", lambda hx: (
    torch.cat([hx[0][:1], hx[0][1:].detach()]), *hx[1:],
), "RLG")  # fmt: skip


@fault("no gradient of the weights unless the input wants one", where="frozen_input")
class _(Plain):
    def layers(self, input: Any, hx: Any) -> Any:
        self.frozen = [not (input.data if isinstance(input, PackedSequence) else input).requires_grad]
        return super().layers(input, hx)

    def weights(self, slot: int) -> Weights:
        weights = super().weights(slot)
        return Weights(*(w if w is None else Scale.apply(w, 0.0) for w in weights)) if self.frozen[0] else weights


@fault("no gradient of the input unless the weights want one", EVERYWHERE, where="frozen_weights")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x if w.w_ih.requires_grad else x.detach(), h, w)


@fault("the backward overwrites the input", EVERYWHERE)
class _(Plain):
    def cell(self, input: Tensor, hx: Any) -> Any:
        return super().cell(Spent.apply(input) if input.requires_grad else input, hx)

    def layers(self, input: Any, hx: Any) -> Any:
        if isinstance(input, PackedSequence):
            return super().layers(PackedSequence(Spent.apply(input.data), *input[1:]), hx)
        return super().layers(Spent.apply(input), hx)


LEVEL = "memory and dtypes"  # -----------------------------------------------------------------------------------------


@fault("a float32 buffer in a float64 run", EVERYWHERE, where="float64")
class _(Plain):
    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = super().linear(x, w, b)
        return y.float().double() if y.dtype == torch.float64 else y


@fault("zeros of the default dtype when hx is not given", EVERYWHERE)
class _(Plain):
    def zeros(self, like: Tensor, *shape: int) -> State:
        return super().zeros(torch.zeros(()), *shape)


@fault("hx written in place", EVERYWHERE)
class _(OnStates):
    def change(self, hx: State) -> State:
        with torch.no_grad():
            hx[0].mul_(2).div_(3)
        return hx


@fault("input written in place", EVERYWHERE)
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        result = super().forward(input, hx)
        with torch.no_grad():
            (input.data if isinstance(input, PackedSequence) else input).clamp_(-0.5, 0.5)
        return result


@fault("a weight normalised in place", EVERYWHERE)
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        result = super().forward(input, hx)
        with torch.no_grad():
            next(iter(self.parameters())).mul_(0.99)
        return result


@fault("h_n a view of output", where="layers1 and padded")
class _(Plain):
    def leave(self, input: Any, rows: Tensor, states: list[Tensor]) -> list[Tensor]:
        states = super().leave(input, rows, states)
        if isinstance(input, Tensor) and states[0].size(0) == 1 and states[0].numel():
            states[0] = rows[-states[0].size(1) :].unsqueeze(0)
        return states


@fault("weights remembered from the first call", EVERYWHERE, where="second_call")
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        vars(self).setdefault("remembered", {name: p.detach().clone() for name, p in self.named_parameters()})
        return super().forward(input, hx)

    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        remembered = list(self.remembered.values())
        by_shape = {id(p): old for p, old in zip(self.parameters(), remembered, strict=True)}
        return super().products(x, h, w._replace(w_hh=w.w_hh + (by_shape[id(w.w_hh)] - w.w_hh).detach()))


def given(name: str, condition: Callable[[Tensor], bool], change: Callable[[Tensor], Tensor], where: str = "") -> None:
    """Changes the output of the layers where the tensor of weights satisfies `condition`."""
    plant(name, "RLG", where, stack=lambda self, rows, sizes, states: (
        lambda out, final: (change(out) if condition(self.weight_ih_l0) else out, final)
    )(*Plain.stack(self, rows, sizes, states)))  # fmt: skip


given("output of 16 bits comes as float32", lambda w: w.itemsize == 2, lambda out: out.float(), where="float16")
given("output of complex numbers real", lambda w: w.is_complex(), lambda out: out.real + 0j, where="complex64")
given("output rounded to 16 bits under no_grad", lambda w: not torch.is_grad_enabled(), lambda out: (
    out if out.is_complex() else out.bfloat16().to(out.dtype)
), where="no_grad or inference")  # fmt: skip
final("h_n not contiguous", lambda s: [s[0] if s[0].dim() < 2 else s[0].mT.contiguous().mT, *s[1:]], EVERYWHERE)
final("h_n of 16 bits comes as float32", lambda s: [
    s[0].float() if s[0].itemsize == 2 else s[0], *s[1:],
], EVERYWHERE, where="float16")  # fmt: skip
plant("no c of the lower precision under autocast", "L", "autocast and LSTM", by_onednn=lambda self: False)
plant("the generator seeded anew at each call", EVERYWHERE, check=lambda self, input, hx: (
    Plain.check(self, input, hx), torch.manual_seed(0),
))  # fmt: skip


@fault("no autocast", EVERYWHERE, where="autocast")
class _(Plain):
    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("autocast is not supported")
        return super().linear(x, w, b)


@fault("a warning where gradients are off", EVERYWHERE, where="no_grad or inference")
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        if not torch.is_grad_enabled():
            warnings.warn("gradients are off", stacklevel=2)
        return super().forward(input, hx)


@fault("memory of the input read as if contiguous", where="noncontiguous or expanded")
class _(Plain):
    def layers(self, input: Any, hx: Any) -> Any:
        if isinstance(input, Tensor) and not input.is_contiguous():
            strides = torch.empty(input.shape, device="meta").stride()
            size = input.untyped_storage().nbytes() // input.itemsize
            input = input.as_strided(input.shape, strides) if size >= input.numel() else input.flip(0)
        return super().layers(input, hx)


LEVEL = "the contract"  # ----------------------------------------------------------------------------------------------


@fault("no error for an hx of another size", EVERYWHERE, where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        super().check(input, None)


@fault("another message", EVERYWHERE, where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except RuntimeError as error:
            raise RuntimeError(f"{error}.") from None


@fault("ValueError where torch.nn raises RuntimeError", EVERYWHERE, where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except RuntimeError as error:
            raise ValueError(str(error)) from None


@fault("the caller's hx changed before it is refused", EVERYWHERE, where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except Exception:
            for h in hx if isinstance(hx, tuple) else (hx,):
                if isinstance(h, Tensor):
                    h.zero_()
            raise


@fault("no warning for dropout on one layer")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(*args, **kwargs)


@fault("other initial weights under one seed", EVERYWHERE, where="contract")
class _(Plain):
    def reset_parameters(self) -> None:
        for parameter in reversed(list(self.parameters())):
            bound = max(self.hidden_size, 1) ** -0.5
            nn.init.uniform_(parameter, -bound, bound)


@fault("another repr", EVERYWHERE, where="contract")
class _(Plain):
    def extra_repr(self) -> str:
        return super().extra_repr() + ", fast=True"


@fault("state_dict keys in another order", EVERYWHERE)
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = next(iter(self._parameters))
        self._parameters[name] = self._parameters.pop(name)


@fault("dtype argument ignored", EVERYWHERE)
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "dtype": None})


@fault("a buffer more", EVERYWHERE, where="contract")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("seen", torch.zeros(()))


@fault("bias of zeros", EVERYWHERE, where="contract")
class _(Plain):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)


@fault("another default of bias", EVERYWHERE, where="contract")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"bias": False} if len(args) < 3 else {}) | kwargs)


@fault("any dropout accepted", where="contract")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        wrong = kwargs.get("dropout") in (2, -0.1)
        super().__init__(*args, **(kwargs | {"dropout": 0.5} if wrong else kwargs))


@fault("any nonlinearity accepted", "R", where="contract")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        wrong = kwargs.get("nonlinearity") not in (None, "tanh", "relu")
        super().__init__(*args, **(kwargs | {"nonlinearity": "tanh"} if wrong else kwargs))


@fault("a call leaves its mark on the module", EVERYWHERE, where="contract")
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(input, hx)


@fault("another name for forward's first argument", EVERYWHERE, where="contract")
class _(Plain):
    def forward(self, x: Any, hx: Any = None) -> Any:
        return super().forward(x, hx)


def refusing(name: str, message: str, raised: type[Exception] | None = None, initials: str = EVERYWHERE) -> None:
    """What torch.nn refuses with this in its message is refused with another exception, or not at all."""

    def check(self: Plain, input: Any, hx: Any) -> None:
        try:
            Plain.check(self, input, hx)
        except Exception as error:
            if message not in str(error):
                raise
            if raised is not None:
                raise raised(str(error)) from None

    plant(name, initials, "contract", check=check)


refusing("TypeError for a wrong rank", "D", TypeError)
refusing("no error for an input of another size", "input", None)


LEVEL = "needles"  # ---------------------------------------------------------------------------------------------------
# A ten-thousandth off, with the right gradient: only the one observation or the one draw that is aimed at shows them.

final("h_n a ten-thousandth off", lambda s: [nudge(s[0], 0 * s[0]), *s[1:]], EVERYWHERE)
final("c_n a ten-thousandth off", lambda s: [s[0], nudge(s[1], 0 * s[1])], "Ll")
initial("h0 a ten-thousandth off", lambda hx: (nudge(hx[0], 0 * hx[0]), *hx[1:]))
initial("c0 a ten-thousandth off", lambda hx: (hx[0], nudge(hx[1], 0 * hx[1])), "Ll")
plant("output a ten-thousandth off", wrap=lambda self, input, rows, sizes: (
    Plain.wrap(self, input, nudge(rows, 0 * rows), sizes)
))  # fmt: skip
products("a ten-thousandth of the next row in each row of W_hh", lambda self, x, h, w: (
    x, h, w._replace(w_hh=nudge(w.w_hh, w.w_hh.roll(1, 0))),
))  # fmt: skip
products("a ten-thousandth of b_hh in b_ih", lambda self, x, h, w: (
    x, h, w if w.b_ih is None or w.b_hh is None else w._replace(b_ih=nudge(w.b_ih, w.b_hh)),
))  # fmt: skip
plant("a ten-thousandth of the forward weights in the reverse", where="bidirectional", weights=lambda self, slot: (
    Plain.weights(self, slot)
    if slot % 2 == 0 or not self.bidirectional
    else Weights(*(
        w if w is None else nudge(w, f)
        for w, f in zip(Plain.weights(self, slot), Plain.weights(self, slot - 1), strict=True)
    ))
))  # fmt: skip
