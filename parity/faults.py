"""Planted mistakes, and the proof that the harness finds each of them: `python -m parity --selftest`.

`Plain` is a correct implementation of all six classes, as short as can be: torch.nn's constructors, one loop. A fault
is a subclass that changes a few lines of it. `Plain` itself must not be accused, nor must `Reordered`, which adds in
another order: so a kill is due to the mistake and to nothing else.

This module also is a subject: `python -m parity --subject parity.faults` runs the whole grid on `Plain`.
"""

# ruff: noqa: N801  (a fault is named by its string; its class needs no other name)

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .compare import Verdict, judge
from .contract import CLASSES, Agreement, contract
from .grid import Case, grid, quick, select

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

    def squash(self, c: Tensor) -> Tensor:
        return torch.tanh(c)

    def rnn(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return (getattr(torch, self.nonlinearity)(hgates + igates),)

    def lstm(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        i, f, g, o = self.in_order(self.lstm_order, "ifgo", hgates + igates)
        c = self.sigmoid(f) * state[1] + self.sigmoid(i) * torch.tanh(g)
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
    family: str  # the initials of the classes that show it: R, L, G
    mixin: type
    where: str = ""  # where it is looked for first: an expression as for -k, or "contract"


FAULTS: list[Fault] = []


def fault(name: str, family: str = "RLG", where: str = "") -> Callable[[type], type]:
    def register(mixin: type) -> type:
        FAULTS.append(Fault(name, family, mixin, where))
        return mixin

    return register


# In a step ----------------------------------------------------------------------------------------------------------

LSTM_ORDERS = {"iofg": "ONNX", "igfo": "Haiku", "ifog": "CoreML", "gifo": "Chainer", "figo": "OpenVINO"}
for order, system in LSTM_ORDERS.items():
    fault(f"gates in the order {' '.join(order)} ({system})", "L")(type("", (Plain,), {"lstm_order": order}))
fault("gates in the order z r n (Keras, ONNX)", "G")(type("", (Plain,), {"gru_order": "zrn"}))


@fault("forget gate + 1", "L")
class _(Plain):
    def lstm(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        one = torch.tensor([0, 1, 0, 0]).repeat_interleave(self.hidden_size).to(igates)
        return super().lstm(igates + one, hgates, state)


@fault("hard sigmoid, clip(0.2 x + 0.5)", "LG")
class _(Plain):
    def sigmoid(self, x: Tensor) -> Tensor:
        x = 0.2 * x + 0.5
        return x if x.is_complex() else x.clamp(0, 1)


@fault("tanh missing on c", "L")
class _(Plain):
    def squash(self, c: Tensor) -> Tensor:
        return c


@fault("reset before the product", "G")
class _(Plain):
    def step(self, x: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        igates, hgates = self.products(x, h, w)
        ir, iz, in_ = igates.chunk(3, -1)
        hr, hz, _ = hgates.chunk(3, -1)
        r = torch.sigmoid(ir + hr)
        hn = F.linear(r * h, w.w_hh.chunk(3)[2], None if w.b_hh is None else w.b_hh.chunk(3)[2])
        return (self.mix(torch.ones_like(r), torch.sigmoid(iz + hz), in_, hn, h),)


@fault("update gate of the opposite sense", "G")
class _(Plain):
    def mix(self, r: Tensor, z: Tensor, in_: Tensor, hn: Tensor, h: Tensor) -> Tensor:
        return super().mix(r, 1 - z, in_, hn, h)


@fault("b_hn outside r", "G")
class _(Plain):
    def step(self, x: Tensor, state: State, w: Weights) -> State:
        if w.b_ih is not None and w.b_hh is not None:
            inside, outside = torch.tensor([[1, 1, 0], [0, 0, 1]]).repeat_interleave(self.hidden_size, 1).to(w.b_hh)
            w = w._replace(b_ih=w.b_ih + w.b_hh * outside, b_hh=w.b_hh * inside)
        return super().step(x, state, w)


@fault("b_hh missing")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w._replace(b_hh=None))


@fault("b_ih twice")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        igates, hgates = super().products(x, h, w)
        return (igates if w.b_ih is None else igates + w.b_ih), hgates


@fault("b_hh added where b_ih belongs and b_ih where b_hh does", "G")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w._replace(b_ih=w.b_hh, b_hh=w.b_ih))


@fault("W_hh transposed")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        if w.w_hh.size(1) == self.hidden_size:
            w = w._replace(w_hh=torch.cat([matrix.t() for matrix in w.w_hh.split(self.hidden_size)]))
        return super().products(x, h, w)


@fault("relu in place of tanh", "R")
class _(Plain):
    def rnn(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return (torch.relu(hgates + igates) if not igates.is_complex() else hgates + igates,)


@fault("h projected, but the recurrence is not", "L")
class _(Plain):
    def step(self, x: Tensor, state: State, w: Weights) -> State:
        h, c = super().step(x, state, w)
        return (h if w.w_hr is None else torch.tanh(h)), c


# States in and out ----------------------------------------------------------------------------------------------------


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


@fault("h0 ignored")
class _(OnStates):
    def change(self, hx: State) -> State:
        return (torch.zeros_like(hx[0]), *hx[1:])


@fault("c0 ignored", "L")
class _(OnStates):
    def change(self, hx: State) -> State:
        return hx[0], torch.zeros_like(hx[1])


@fault("h0 and c0 swapped", "L")
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


@fault("output forgets the order of its sequences")
class _(Plain):
    def wrap(self, input: Any, rows: Tensor, batch_sizes: list[int]) -> Any:
        output = super().wrap(input, rows, batch_sizes)
        return PackedSequence(*output[:2]) if isinstance(output, PackedSequence) else output


# Directions and time --------------------------------------------------------------------------------------------------


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


# Dropout --------------------------------------------------------------------------------------------------------------


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


# Gradients ------------------------------------------------------------------------------------------------------------


class Scale(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


@fault("a detach in the loop")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h.detach(), w)


@fault("c detached from one step to the next", "L")
class _(Plain):
    def lstm(self, igates: Tensor, hgates: Tensor, state: State) -> State:
        return super().lstm(igates, hgates, (state[0], state[1].detach()))


@fault("backpropagation through the last 3 steps only")
class _(Plain):
    def direction(self, rows: Tensor, batch_sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        cut = sum(batch_sizes[:-3])
        rows = torch.cat([rows[:cut].detach(), rows[cut:]])
        return super().direction(rows, batch_sizes, state, w, reverse)


@fault("gradient of W_hh 0.1 % off")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w._replace(w_hh=Scale.apply(w.w_hh, 1.001)))


@fault("gradient of the input 0.1 % off")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(Scale.apply(x, 0.999), h, w)


@fault("gradient of b_hh is zero")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w if w.b_hh is None else w._replace(b_hh=Scale.apply(w.b_hh, 0.0)))


@fault("gradient of b_hh missing")
class _(Plain):
    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        return super().products(x, h, w if w.b_hh is None else w._replace(b_hh=w.b_hh.detach()))


@fault("no gradient for hx")
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


# Memory and dtypes ----------------------------------------------------------------------------------------------------


@fault("a float32 buffer in a float64 run", where="float64")
class _(Plain):
    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = super().linear(x, w, b)
        return y.float().double() if y.dtype == torch.float64 else y


@fault("zeros of the default dtype when hx is not given")
class _(Plain):
    def zeros(self, like: Tensor, *shape: int) -> State:
        return super().zeros(torch.zeros(()), *shape)


@fault("hx written in place")
class _(OnStates):
    def change(self, hx: State) -> State:
        with torch.no_grad():
            hx[0].mul_(2).div_(3)
        return hx


@fault("input written in place")
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        result = super().forward(input, hx)
        with torch.no_grad():
            (input.data if isinstance(input, PackedSequence) else input).clamp_(-0.5, 0.5)
        return result


@fault("a weight normalised in place")
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


@fault("weights remembered from the first call", where="second_call")
class _(Plain):
    def forward(self, input: Any, hx: Any = None) -> Any:
        vars(self).setdefault("remembered", {name: p.detach().clone() for name, p in self.named_parameters()})
        return super().forward(input, hx)

    def products(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        remembered = list(self.remembered.values())
        by_shape = {id(p): old for p, old in zip(self.parameters(), remembered, strict=True)}
        return super().products(x, h, w._replace(w_hh=w.w_hh + (by_shape[id(w.w_hh)] - w.w_hh).detach()))


# Refusals and the rest of the contract --------------------------------------------------------------------------------


@fault("no error for an hx of another size", where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        super().check(input, None)


@fault("another message", where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except RuntimeError as error:
            raise RuntimeError(str(error).replace("must be equal to", "should equal")) from None


@fault("ValueError where torch.nn raises RuntimeError", where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except RuntimeError as error:
            raise ValueError(str(error)) from None


@fault("the caller's hx changed before it is refused", where="contract")
class _(Plain):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except Exception:
            if isinstance(hx, Tensor):
                hx.zero_()
            raise


@fault("no warning for dropout on one layer")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(*args, **kwargs)


@fault("other initial weights under one seed", where="contract")
class _(Plain):
    def reset_parameters(self) -> None:
        for parameter in reversed(list(self.parameters())):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)


@fault("another repr", where="contract")
class _(Plain):
    def extra_repr(self) -> str:
        return super().extra_repr() + ", fast=True"


@fault("state_dict keys in another order")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = next(iter(self._parameters))
        self._parameters[name] = self._parameters.pop(name)


@fault("dtype argument ignored")
class _(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "dtype": None})


# The proof ------------------------------------------------------------------------------------------------------------


ENOUGH = 3  # finds, after which a fault is left alone
CONTROLS = {"control: a plain loop": Plain, "control: sums in another order": Reordered}
PARTS = 5  # pieces of a control's cases, so that no process waits long for another


@dataclass(frozen=True)
class Trial:
    """What became of one fault, or of a part of a control."""

    name: str
    found: int
    tried: int
    half: str  # of the harness: the grid, or the contract
    first: str  # the case or question that found it
    sign: str  # the tensor or fact that gave it away

    @property
    def is_control(self) -> bool:
        return self.name in CONTROLS


@cache
def quick_cases() -> list[Case]:
    return quick(grid())


def try_grid(name: str, subject: Any, cases: list[Case], enough: int) -> Trial:
    found = tried = 0
    first = sign = ""
    for result in (judge(case, subject) for case in cases):
        tried += 1
        if result.verdict is Verdict.DIFFERENT and result.worst is not None:
            found += 1
            if found == 1:
                first, sign = result.case.name, result.worst.name
            if found == enough:
                break
    return Trial(name, found, tried, "grid", first, sign)


def try_contract(name: str, subject: Any, classes: tuple[str, ...], enough: int) -> Trial:
    found = tried = 0
    first = sign = ""
    for answer in contract(subject, classes=classes):
        tried += 1
        if answer.agreement is Agreement.DIFFERENT:
            found += 1
            if found == 1:
                first, sign = answer.question, answer.subject
            if found == enough:
                break
    return Trial(name, found, tried, "contract", first, sign)


def try_fault(fault: Fault) -> Trial:
    """Set the harness on a fault: the quick grid, from where it looks likeliest; if that is blind, the contract."""
    subject = implementation(fault.mixin)
    if fault.where != "contract":
        cases = [case for case in quick_cases() if case.kind[0] in fault.family]
        likely = select(cases, fault.where) if fault.where else []
        trial = try_grid(fault.name, subject, likely + [case for case in cases if case not in likely], ENOUGH)
        if trial.found:
            return trial
    return try_contract(fault.name, subject, tuple(name for name in CLASSES if name[0] in fault.family), ENOUGH)


def try_control(name: str, part: int) -> Trial:
    """A control, on a part of the quick grid, or on the contract (the last part)."""
    subject = implementation(CONTROLS[name])
    if part == PARTS:
        return try_contract(name, subject, CLASSES, enough=10**6)
    return try_grid(name, subject, quick_cases()[part::PARTS], enough=10**6)


def attempt(task: tuple[int, str, int]) -> Trial:
    index, name, part = task
    return try_control(name, part) if name else try_fault(FAULTS[index])


def selftest(jobs: int = 2) -> Iterator[Trial]:
    """Every control and every fault, in this order."""
    tasks = [(0, name, part) for name in CONTROLS for part in range(PARTS)]
    tasks.append((0, next(iter(CONTROLS)), PARTS))  # the order of sums is no affair of the contract
    tasks += [(index, "", 0) for index in range(len(FAULTS))]
    if jobs == 1:
        yield from map(attempt, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(attempt, tasks)
