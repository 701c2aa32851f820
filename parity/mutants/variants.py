"""The catalogue: what people write instead of torch.nn's equations.

`Definition` is torch.nn's recurrence in plain torch operations. Each of its fields is a place where an implementation
may do otherwise; a `Deviation` names such a place, says in which system it is the convention, and how to repair it.
A variant is an order of the gates and any number of deviations that don't touch the same field.

All orders of the gates are one computation: weights may have leading dimensions (one of orders, say), which every
result then has too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

State = tuple[Tensor, ...]
GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}  # torch.nn's order


class Weights(NamedTuple):
    """One layer and direction, rows in torch.nn's order; any leading dimensions."""

    w_ih: Tensor  # (..., G*H, H_in)
    w_hh: Tensor  # (..., G*H, H_out)
    b_ih: Tensor  # (..., 1, G*H)
    b_hh: Tensor
    w_hr: Tensor | None  # (H_out, H)


@dataclass(frozen=True)
class Example:
    """A problem: tensors as a torch.nn module takes them, weights by its names, hx () or (h_0,) or (h_0, c_0)."""

    kind: str  # LSTM, GRU, RNN
    weights: dict[str, Tensor]
    input: Tensor  # padded where `lengths` is given
    hx: State = ()
    lengths: tuple[int, ...] | None = None
    batch_first: bool = False
    nonlinearity: str = "tanh"
    dropout: float = 0.0  # 0, or so near to 1 that nothing is left to chance
    training: bool = True
    is_cell: bool = False
    cotangents: dict[str, Tensor] = field(default_factory=dict)

    @property
    def slots(self) -> list[str]:
        """The suffixes of layers and directions: `_l0`, `_l0_reverse`, ...; a cell has one, which is empty."""
        return [name.removeprefix("weight_ih") for name in self.weights if name.startswith("weight_ih")]

    @property
    def directions(self) -> int:
        return 2 if any(slot.endswith("_reverse") for slot in self.slots) else 1


def same(value: Any, *_: Any) -> Any:
    return value


def stacked(tensors: Iterable[Tensor]) -> Tensor:
    """(..., N, H) each -> (..., K, N, H); what doesn't depend on the order of the gates has no such dimension yet."""
    return torch.stack(torch.broadcast_tensors(*tensors), -3)


# torch.nn's definition ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Definition:
    """torch.nn's recurrence. A field is what somebody might do otherwise; its default is what torch.nn does."""

    # the weights
    b_ih: float = 1.0  # how often it is added
    b_hh: float = 1.0
    w_ih: Callable[[Tensor, int], Tensor] = same
    w_hh: Callable[[Tensor, int], Tensor] = same
    bias_follows: bool = True  # biases are read in the order that the weights are read in
    slot: Callable[[int, int], int] = same  # whose weights a layer and direction uses
    # the equations
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid
    candidate: Callable[[Tensor], Tensor] = torch.tanh
    forget_bias: float = 0.0
    cell: Callable[..., Tensor] = lambda i, f, g, c: f * c + i * g
    emit: Callable[..., Tensor] = lambda o, c, before: o * torch.tanh(c)
    reset: Callable[..., Tensor] = lambda i, r, h, w, b: i + r * (h @ w.mT + b)
    blend: Callable[..., Tensor] = lambda z, n, h, r: (1 - z) * n + z * h
    activation: Callable[[Tensor], Tensor] | None = None  # None: the RNN's own nonlinearity
    # time
    carried: Callable[[State, State], State] = same  # (state after the step, initial state) -> state before the next
    shown: Callable[[State, State], Tensor] = lambda after, before: after[0]
    # directions
    reversed: bool = True  # the reverse direction begins at the end
    flipped_back: bool = True
    final: Callable[[State, Tensor, bool], State] = same  # (last state, output, reverse) -> h_n, c_n of a slot
    joined: Callable[[list[Tensor]], Tensor] = lambda outputs: torch.cat(outputs, -1)
    # layers
    start: Callable[[list[State], int], list[State]] = same
    finish: Callable[[list[State], int], list[State]] = same
    dropped: frozenset[str] = frozenset({"between", "training"})
    # batches
    ragged: bool = True  # rows end at their own lengths
    batch_first: str = "as asked"  # or never, or always
    enter: Callable[[Tensor, Tensor, Example], Tensor] = same  # (hx, sorted_indices, ...) -> hx as it is used
    leave: Callable[[Tensor, Tensor], Tensor] = same
    result: Callable[[dict[str, Tensor], Example], dict[str, Tensor]] = same
    # what is done to a tensor on its way, by its name: detach, round
    at: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def via(self, name: str, tensor: Tensor) -> Tensor:
        return self.at[name](tensor) if name in self.at else tensor

    # One step. igates (..., N, G*H)

    def step(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        h, *rest = getattr(self, example.kind.lower())(example, igates, state, w)
        return (h if w.w_hr is None else h @ w.w_hr.mT, *rest)

    def lstm(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        h, c = self.via("h in the gates", state[0]), state[1]
        i, f, g, o = (igates + h @ w.w_hh.mT + w.b_hh).chunk(4, -1)
        i, f, o = self.sigmoid(i), self.sigmoid(f + self.forget_bias), self.sigmoid(o)
        i, f, g, o = (self.via(name, gate) for name, gate in zip("ifgo", (i, f, self.candidate(g), o), strict=False))
        c = self.cell(i, f, g, c)
        return self.emit(o, self.via("c in h", c), state[1]), c

    def gru(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        h, H = self.via("h in the gates", state[0]), w.w_hh.size(-2) // 3
        i_n = igates[..., 2 * H :]
        r, z = self.sigmoid(igates[..., : 2 * H] + h @ w.w_hh[..., : 2 * H, :].mT + w.b_hh[..., : 2 * H]).chunk(2, -1)
        r, z = self.via("r", r), self.via("z", z)
        n = self.candidate(self.reset(i_n, r, h, w.w_hh[..., 2 * H :, :], w.b_hh[..., 2 * H :]))
        return (self.blend(z, self.via("n", n), self.via("h in the blend", state[0]), r),)

    def rnn(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        activation = self.activation or getattr(torch, example.nonlinearity)
        return (activation(igates + self.via("h in the gates", state[0]) @ w.w_hh.mT + w.b_hh),)

    # Steps, directions, layers

    def direction(self, example: Example, x: Tensor, initial: State, w: Weights, reverse: bool) -> tuple[Tensor, State]:
        """x (..., L, N, H_in) -> output (..., L, N, H_out) and the state after the last step."""
        igates = x @ w.w_ih.unsqueeze(-3).mT + w.b_ih.unsqueeze(-3)
        lengths = torch.tensor(example.lengths) if example.lengths and self.ragged else None
        steps = range(x.size(-3))
        state = initial
        outputs: dict[int, Tensor] = {}
        for t in reversed(steps) if reverse and self.reversed else steps:
            before = self.carried(state, initial) if outputs else state
            before = (
                tuple(self.via(name, part) for name, part in zip("hc", before, strict=False)) if outputs else before
            )
            if ("carried" if outputs else "h_0") in self.dropped and self.drops(example):
                before = (before[0] * 0, *before[1:])
            state = self.step(example, igates[..., t, :, :], before, w)
            outputs[t] = self.via("output", self.shown(state, before))
            if lengths is not None:
                alive = (lengths > t).unsqueeze(-1)
                outputs[t] = outputs[t] * alive
                state = tuple(torch.where(alive, new, old) for new, old in zip(state, before, strict=False))
        in_order = outputs.values() if not self.flipped_back else (outputs[t] for t in steps)
        output = stacked(in_order)
        if "final" in self.dropped and self.drops(example):
            state = (state[0] * 0, *state[1:])
        state = tuple(self.via(name, part) for name, part in zip(("h_n", "c_n"), state, strict=False))
        return output, self.final(state, output, reverse)

    def drops(self, example: Example) -> bool:
        return bool(example.dropout) and (example.training if "training" in self.dropped else True)

    def stack(
        self, example: Example, x: Tensor, states: list[State], weights: list[Weights]
    ) -> tuple[Tensor, list[State]]:
        D, finals = example.directions, []
        layers = len(weights) // D
        states = self.start(states, D)
        for layer in range(layers):
            outputs = []
            if "input" in self.dropped and layer == 0 and self.drops(example):
                x = x * 0
            for slot in range(layer * D, (layer + 1) * D):
                w = weights[self.slot(slot, D)]
                if w.w_ih.size(-1) != x.size(-1):
                    w = weights[slot]
                output, state = self.direction(example, x, states[slot], w, slot % D == 1)
                outputs.append(output)
                finals.append(state)
            x = self.joined(outputs)
            where = "between" if layer < layers - 1 else "last"
            if where in self.dropped and self.drops(example):
                x = x * 0
            x = self.via("between", x) if where == "between" else x
        return x, self.finish(finals, D)

    # In and out

    def run(self, example: Example, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What an implementation by this definition shows: output, h_n, c_n by name (a cell's h_1, c_1).

        rows, if given, are the rows of each weight as they are read: (G*H,), or (orders, G*H) for several at once.
        Where `example` has cotangents, gradients are shown too, as `grad of NAME`; `rows` then has no orders.
        """
        leaves: dict[str, Tensor] = {}
        if example.cotangents:
            named = {**example.weights, "input": example.input, **dict(zip(("h_0", "c_0"), example.hx, strict=False))}
            leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in named.items()}
            example = replace(
                example,
                weights={name: leaves[name] for name in example.weights},
                input=leaves["input"],
                hx=tuple(leaves[name] for name in ("h_0", "c_0")[: len(example.hx)]),
            )
        with torch.set_grad_enabled(bool(leaves)):
            results = self._run(example, rows)
        if leaves:
            wanted = [name for name in example.cotangents if results[name].requires_grad]
            shown, weights = [results[name] for name in wanted], [example.cotangents[name] for name in wanted]
            inputs = list(leaves.values())
            grads = torch.autograd.grad(shown, inputs, weights, allow_unused=True) if wanted else [None] * len(inputs)
            results = {name: tensor.detach() for name, tensor in results.items()}
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
                results[f"grad of {name}"] = torch.zeros_like(leaf) if grad is None else grad
        return results

    def _run(self, example: Example, rows: Tensor | None) -> dict[str, Tensor]:
        batch_first = example.batch_first if self.batch_first == "as asked" else self.batch_first == "always"
        batch_dim = 0 if batch_first else 1
        x, unbatched = example.input, example.input.dim() == (1 if example.is_cell else 2)
        x = x.unsqueeze(0) if example.is_cell else x  # a cell is one step
        x = x.unsqueeze(1) if unbatched else x
        x = x if unbatched or example.is_cell or batch_dim == 1 else x.transpose(0, 1)
        weights = [self.read(example, slot, rows) for slot in example.slots]
        hx = tuple(h.unsqueeze(0) for h in example.hx) if example.is_cell else example.hx
        hx = tuple(h.unsqueeze(1) for h in hx) if unbatched else hx
        order = torch.argsort(torch.tensor(example.lengths or [1] * x.size(1)), descending=True, stable=True)
        if hx:
            hx = tuple(
                self.via(name, self.enter(h, order, example)) for name, h in zip(("h_0", "c_0"), hx, strict=False)
            )
        else:
            sizes = [weights[0].w_hh.size(-1), weights[0].w_hh.size(-2) // 4]
            hx = tuple(x.new_zeros(len(weights), x.size(1), size) for size in sizes[: 1 + (example.kind == "LSTM")])

        output, finals = self.stack(example, x, list(zip(*hx, strict=False)), weights)
        names = ("h_1", "c_1") if example.is_cell else ("h_n", "c_n")
        states = {
            name: self.leave(stacked(parts), order)
            for name, parts in zip(names, zip(*finals, strict=False), strict=False)
        }
        if unbatched:
            output, states = output.squeeze(-2), {name: state.squeeze(-2) for name, state in states.items()}
        elif batch_dim == 0:
            output = output.transpose(-3, -2)
        if example.is_cell:
            return {name: state.squeeze(0 if rows is None or rows.dim() == 1 else 1) for name, state in states.items()}
        if example.lengths:
            output = packed(output, example.lengths, batch_dim)
        return self.result({"output": output, **states}, example)

    def read(self, example: Example, slot: str, rows: Tensor | None) -> Weights:
        """The weights of one layer and direction as this definition uses them."""
        gates = len(GATES[example.kind])
        w_ih, w_hh = example.weights["weight_ih" + slot], example.weights["weight_hh" + slot]
        biases = [example.weights.get(name + slot, w_ih.new_zeros(w_ih.size(0))) for name in ("bias_ih", "bias_hh")]
        w_ih, w_hh = self.w_ih(w_ih, gates), self.w_hh(w_hh, gates)
        if rows is not None:
            w_ih, w_hh = w_ih[rows], w_hh[rows]
            biases = [bias[rows] for bias in biases] if self.bias_follows else biases
        b_ih, b_hh = (times * bias.unsqueeze(-2) for times, bias in zip((self.b_ih, self.b_hh), biases, strict=False))
        return Weights(
            self.via("w_ih", w_ih),
            self.via("w_hh", w_hh),
            self.via("b_ih", b_ih),
            self.via("b_hh", b_hh),
            example.weights.get("weight_hr" + slot),
        )


def packed(output: Tensor, lengths: Sequence[int], batch_dim: int) -> Tensor:
    """(..., L, N, H) or (..., N, L, H) -> the rows of a PackedSequence, (..., S, H)."""
    lead = output.dim() - 3
    moved = output.movedim(lead, 0).movedim(lead + 1, 1) if lead else output
    return pack_padded_sequence(moved, list(lengths), batch_dim == 0, enforce_sorted=False).data.movedim(0, lead)


# The order of the gates -----------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """The gates in the order in which an implementation reads rows: block by block, or unit by unit (interleaved)."""

    gates: str
    interleaved: bool = False

    def rows(self, H: int) -> Tensor:
        """For each row in torch.nn's order, the row that this implementation reads there."""
        G = len(self.gates)
        blocks = torch.arange(G * H).view(H, G).mT if self.interleaved else torch.arange(G * H).view(G, H)
        return torch.cat([blocks[self.gates.index(gate)] for gate in GATES[_kind_of(self.gates)]])

    @property
    def plain(self) -> bool:
        return self.gates == GATES[_kind_of(self.gates)] and not self.interleaved

    def __str__(self) -> str:
        return f"gates in the order {' '.join(self.gates)}" + ", interleaved unit by unit" * self.interleaved

    @property
    def fix(self) -> str:
        ours = GATES[_kind_of(self.gates)]
        blocks = ["0:H", "H:2H", "2H:3H", "3H:4H"]
        taken = ", ".join(f"[{blocks[ours.index(gate)]}]" for gate in self.gates)
        text = f"permute rows {taken} of weight_ih and weight_hh and of the biases"
        if self.interleaved:
            text += f", then interleave them: row {len(ours)}*u + k is gate k of unit u"
        split = f"{', '.join(ours)} = gates.chunk({len(ours)}, -1)"
        return f"{text} when loading torch.nn's weights, or split the gates as torch.nn does: {split}"


def _kind_of(gates: str) -> str:
    return next(kind for kind, ours in GATES.items() if sorted(ours) == sorted(gates))


@cache
def orders(kind: str) -> tuple[Order, ...]:
    """Every order, torch.nn's own first."""
    gates = GATES[kind]
    permutations = ["".join(order) for order in itertools.permutations(gates)]
    return tuple(Order(order, how) for how in ((False, True) if len(gates) > 1 else (False,)) for order in permutations)


# The deviations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Deviation:
    name: str
    level: str  # cell, stack, batch, dropout, gradient, dtype
    kinds: str  # the letters its kinds begin with
    knobs: dict[str, Any]  # fields of Definition; `at NAME` is an entry of `at`
    fix: str
    where: str = ""  # the systems of which it is the convention


def transposed(w: Tensor, gates: int) -> Tensor:
    blocks = w.unflatten(0, (gates, -1))
    return blocks.mT.flatten(0, 1) if blocks.size(-1) == blocks.size(-2) else w


def reshaped(w: Tensor, gates: int) -> Tensor:
    return w.reshape(w.size(1), w.size(0)).mT


def hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


def with_derivative(
    function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """`function`, whose derivative is taken to be `derivative` of its value."""

    def computed(x: Tensor) -> Tensor:
        y = function(x).detach()
        return y + derivative(y) * (x - x.detach())

    return computed


def emitting(squash: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda o, c, before: o * squash(c)


def zeroed(*which: int) -> Callable[[list[State], int], list[State]]:
    return lambda states, D: [tuple(s * 0 if k in which else s for k, s in enumerate(state)) for state in states]


def direction_major(states: list[State], D: int) -> list[State]:
    """The states of the forward direction of all layers, then those of the reverse direction."""
    return [states[k] for d in range(D) for k in range(d, len(states), D)]


def layer_major(states: list[State], D: int) -> list[State]:
    """The inverse of direction_major: what comes out if a direction-major list is expected and a layer-major given."""
    layers = len(states) // D
    return [states[d * layers + layer] for layer in range(layers) for d in range(D)]


def end_of_output(which: tuple[int, ...]) -> Callable[[State, Tensor, bool], State]:
    """h_n of the directions in `which` read off the last step of the output."""
    return lambda state, output, reverse: (output[..., -1, :, :], *state[1:]) if int(reverse) in which else state


def renamed(**names: str) -> Callable[[dict[str, Tensor], Example], dict[str, Tensor]]:
    return lambda results, example: {name: results[names.get(name, name)] for name in results}


def moved_state(h: Tensor, order: Tensor, example: Example) -> Tensor:
    return h.transpose(0, 1) if example.batch_first and h.size(0) == h.size(1) else h


def moved_states(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
    """h_n and c_n as (N, D*layers, H)."""
    moved = {name: t.transpose(-3, -2) for name, t in results.items() if name != "output" and example.batch_first}
    return results | moved


def inverse(order: Tensor) -> Tensor:
    return torch.argsort(order)


def _deviations() -> Iterator[Deviation]:
    """level, kinds, (name, knobs, fix[, where])"""

    def group(level: str, kinds: str, *rows: tuple[Any, ...]) -> Iterator[Deviation]:
        for name, knobs, fix, *where in rows:
            yield Deviation(name, level, kinds, knobs, fix, *where)

    identity, relu = same, torch.relu
    both = "gates = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh"
    yield from group(
        "cell", "LGR",
        ("bias_ih is missing", {"b_ih": 0.0}, f"add it once: {both}"),
        ("bias_hh is missing", {"b_hh": 0.0}, f"add it once: {both}"),
        ("both biases are missing", {"b_ih": 0.0, "b_hh": 0.0}, f"add each once: {both}"),
        ("bias_ih is added twice", {"b_ih": 2.0}, f"add it once: {both}"),
        ("bias_hh is added twice", {"b_hh": 2.0}, f"add it once: {both}"),
        ("both biases are added twice", {"b_ih": 2.0, "b_hh": 2.0}, f"add each once: {both}"),
        ("bias_ih stands where bias_hh belongs", {"b_ih": 2.0, "b_hh": 0.0}, f"add each once: {both}"),
        ("bias_hh stands where bias_ih belongs", {"b_ih": 0.0, "b_hh": 2.0}, f"add each once: {both}"),
        ("weight_hh is transposed", {"w_hh": transposed}, "h @ weight_hh.T, each gate's (H, H) block transposed once",
         "Keras, TF1, Haiku (kernels stored input by output)"),
        ("weight_hh is reshaped instead of transposed", {"w_hh": reshaped},
         "weight_hh.T, not weight_hh.reshape(H, -1)"),
        ("weight_ih is reshaped instead of transposed", {"w_ih": reshaped},
         "weight_ih.T, not weight_ih.reshape(H_in, -1)"),
        ("the state is not carried from step to step", {"carried": lambda state, initial: initial},
         "assign the new state to the variable that the next step reads"),
        ("output is the state before the step", {"shown": lambda after, before: before[0]},
         "append h after the step, not before it"),
        ("input is always taken as (N, L, H_in)", {"batch_first": "always"},
         "take (L, N, H_in) unless batch_first is set, or say batch_first=True on torch.nn's side",
         "torchrl, Keras, Flax, and most tutorials"),
        ("h_0 is ignored", {"start": zeroed(0)}, "begin with the h that hx holds"),
    )  # fmt: skip
    yield from group(
        "cell", "LG",
        ("hard sigmoid, clip(0.2 x + 0.5, 0, 1)", {"sigmoid": hard_sigmoid}, "torch.sigmoid",
         "Keras 1 and 2 before 2.3, ONNX HardSigmoid"),
        ("hard sigmoid, clip(x / 6 + 0.5, 0, 1)", {"sigmoid": F.hardsigmoid}, "torch.sigmoid",
         "Keras 3 hard_sigmoid, torch.nn.Hardsigmoid"),
        ("the gates' sigmoid is missing", {"sigmoid": identity}, "torch.sigmoid on every gate but the candidate"),
        ("tanh on the gates in place of sigmoid", {"sigmoid": torch.tanh},
         "torch.sigmoid on every gate but the candidate"),
        ("sigmoid on the candidate in place of tanh", {"candidate": torch.sigmoid}, "tanh on the candidate"),
        ("relu on the candidate in place of tanh", {"candidate": relu}, "tanh on the candidate"),
        ("tanh is missing on the candidate", {"candidate": identity}, "tanh on the candidate"),
        ("biases are read in torch.nn's order, weights in another", {"bias_follows": False},
         "permute the biases as the weights"),
    )  # fmt: skip
    yield from group(
        "cell", "L",
        ("forget gate + 1", {"forget_bias": 1.0}, "drop the constant, or subtract 1 from bias_ih[H:2H] when loading",
         "TF1 BasicLSTMCell and LSTMCell, Haiku, ncps"),
        ("tanh is missing on c", {"emit": emitting(same)}, "h = o * tanh(c)"),
        ("sigmoid on c in place of tanh", {"emit": emitting(torch.sigmoid)}, "h = o * tanh(c)"),
        ("relu on c in place of tanh", {"emit": emitting(relu)}, "h = o * tanh(c)"),
        ("h is made of the c before the step", {"emit": lambda o, c, before: o * torch.tanh(before)},
         "compute the new c first, then h = o * tanh(c)"),
        ("the output gate is missing", {"emit": lambda o, c, before: torch.tanh(c)}, "h = o * tanh(c)"),
        ("forget gate coupled to the input gate, f = 1 - i", {"cell": lambda i, f, g, c: (1 - i) * c + i * g},
         "c = f * c + i * g", "ONNX input_forget=1, coupled-gate LSTM"),
        ("the input gate is missing", {"cell": lambda i, f, g, c: f * c + g}, "c = f * c + i * g"),
        ("the forget gate is missing", {"cell": lambda i, f, g, c: c + i * g}, "c = f * c + i * g",
         "the LSTM of 1997"),
        ("the candidate is blended, c = f * c + (1 - f) * g", {"cell": lambda i, f, g, c: f * c + (1 - f) * g},
         "c = f * c + i * g", "JANET, minimal gated units"),
        ("c_0 is ignored", {"start": zeroed(1)}, "begin with the c that hx holds"),
        ("h_0 and c_0 are ignored", {"start": zeroed(0, 1)}, "begin with the state that hx holds"),
        ("h_0 and c_0 are swapped", {"start": lambda states, D: [state[::-1] for state in states]},
         "hx is (h_0, c_0) in this order", "TF1 LSTMStateTuple(c, h)"),
        ("c is not carried from step to step", {"carried": lambda state, initial: (state[0], initial[1])},
         "assign the new c to the variable that the next step reads"),
        ("h is not carried from step to step", {"carried": lambda state, initial: (initial[0], state[1])},
         "assign the new h to the variable that the next step reads"),
        ("output is c in place of h", {"shown": lambda after, before: after[1]}, "collect h, not c"),
        ("h_n is c_n", {"result": renamed(h_n="c_n", h_1="c_1")}, "return (h_n, c_n)"),
        ("c_n is h_n", {"result": renamed(c_n="h_n", c_1="h_1")}, "return (h_n, c_n)"),
        ("h_n and c_n are swapped", {"result": renamed(h_n="c_n", c_n="h_n", h_1="c_1", c_1="h_1")},
         "return (h_n, c_n)", "TF1 LSTMStateTuple(c, h)"),
    )  # fmt: skip
    yield from group(
        "cell", "G",
        ("reset before the product", {"reset": lambda i, r, h, w, b: i + (r * h) @ w.mT + b},
         "n = tanh(x @ w_in.T + b_in + r * (h @ w_hn.T + b_hn)); weights trained the other way cannot be converted",
         "Cho et al. 2014, TF1, Keras reset_after=False, ONNX linear_before_reset=0, Haiku, Sonnet, Chainer GRU"),
        ("b_hn stands outside the reset", {"reset": lambda i, r, h, w, b: i + r * (h @ w.mT) + b},
         "r multiplies the product and its bias: r * (h @ w_hn.T + b_hn)"),
        ("b_hn is missing", {"reset": lambda i, r, h, w, b: i + r * (h @ w.mT)}, "r * (h @ w_hn.T + b_hn)"),
        ("the reset gate is missing", {"reset": lambda i, r, h, w, b: i + h @ w.mT + b}, "r * (h @ w_hn.T + b_hn)"),
        ("reset is 1 - r", {"reset": lambda i, r, h, w, b: i + (1 - r) * (h @ w.mT + b)}, "r * (h @ w_hn.T + b_hn)"),
        ("reset applies to the input's part too", {"reset": lambda i, r, h, w, b: r * (i + h @ w.mT + b)},
         "r multiplies only what comes from h"),
        ("update gate of the opposite sense", {"blend": lambda z, n, h, r: (1 - z) * h + z * n},
         "h = (1 - z) * n + z * h; or negate the update gate's rows of the weights and biases",
         "Chung et al. 2014, Haiku, Sonnet, Chainer StatelessGRU"),
        ("the update gate keeps the reset state", {"blend": lambda z, n, h, r: (1 - z) * n + z * (r * h)},
         "h = (1 - z) * n + z * h with the whole h"),
        ("the update gate is missing", {"blend": lambda z, n, h, r: n}, "h = (1 - z) * n + z * h"),
        ("the new state is added, h = z * h + n", {"blend": lambda z, n, h, r: z * h + n}, "h = (1 - z) * n + z * h"),
    )  # fmt: skip
    yield from group(
        "cell", "R",
        *((f"the nonlinearity is {name}", {"activation": function}, "the nonlinearity that the constructor was given")
          for name, function in (("tanh", torch.tanh), ("relu", relu), ("sigmoid", torch.sigmoid),
                                 ("the identity", same),
                                 ("hardtanh", lambda x: x.clamp(-1, 1)))),
    )  # fmt: skip
    yield from group(
        "stack", "LGR",
        ("h_n is direction-major", {"finish": direction_major},
         "append the states layer by layer, forward before reverse: l0, l0_reverse, l1, l1_reverse"),
        ("h_0 is read direction-major", {"start": layer_major},
         "slot 2 * layer + direction of hx belongs to that layer and direction"),
        ("every layer starts from the first slot of hx", {"start": lambda states, D: [states[0]] * len(states)},
         "hx[D * layer + direction]"),
        ("only the first layer starts from hx",
         {"start": lambda states, D: states[:D] + zeroed(0, 1)(states[D:], D)}, "hx[D * layer + direction]"),
        ("the reverse direction starts from the forward state",
         {"start": lambda states, D: [states[k - k % D] for k in range(len(states))]}, "hx[D * layer + direction]"),
        ("the layers of h_n are in reverse order", {"finish": lambda states, D: states[::-1]},
         "append the states layer by layer, the first layer first"),
        ("h_n holds the last layer only", {"finish": lambda states, D: states[-D:]}, "stack the states of all layers"),
        ("reverse output is not flipped back", {"flipped_back": False},
         "flip the reverse direction's output in time before joining it to the forward one"),
        ("the reverse direction runs forward", {"reversed": False},
         "iterate over the steps from the last to the first"),
        ("reverse h_n is read at output[-1]", {"final": end_of_output((1,))},
         "the reverse direction ends at the first step: its h_n is output[0, :, H:]"),
        ("h_n is read at output[-1]", {"final": end_of_output((0, 1))},
         "take the state after a row's own last step; the reverse direction ends at output[0, :, H:]"),
        ("the reverse direction uses the forward weights", {"slot": lambda slot, D: slot - slot % D},
         "use weight_*_reverse"),
        ("every layer uses the first layer's weights", {"slot": lambda slot, D: slot % D}, "use weight_*_l{layer}"),
        ("directions are joined in reverse order", {"joined": lambda outputs: torch.cat(outputs[::-1], -1)},
         "torch.cat([forward, reverse], -1)"),
        ("directions are added, not joined", {"joined": lambda outputs: sum(outputs)},
         "torch.cat([forward, reverse], -1)",
         "Keras merge_mode='sum'"),
    )  # fmt: skip
    yield from group(
        "batch", "LGR",
        ("the final state is taken at the padding", {"ragged": False},
         "keep the state of a row where its sequence has ended; begin the reverse direction at its own end"),
        ("h_n of a packed batch is left in sorted order", {"leave": lambda h, order: h[..., order, :]},
         "h_n.index_select(1, unsorted_indices)"),
        ("h_n of a packed batch is unsorted by sorted_indices",
         {"leave": lambda h, order: h[..., order, :][..., order, :]},
         "unsorted_indices is the inverse permutation: h_n.index_select(1, unsorted_indices)"),
        ("h_0 of a packed batch is not sorted", {"enter": lambda h, order, example: h[..., inverse(order), :]},
         "hx.index_select(1, sorted_indices) before the loop"),
        ("h_0 and h_n of a packed batch are in sorted order",
         {"enter": lambda h, order, example: h[..., inverse(order), :], "leave": lambda h, order: h[..., order, :]},
         "hx.index_select(1, sorted_indices) before the loop, h_n.index_select(1, unsorted_indices) after it"),
        ("batch_first is ignored", {"batch_first": "never"},
         "transpose the first two dimensions before and after the loop"),
        ("h_n is transposed for batch_first", {"result": moved_states},
         "batch_first concerns input and output only: h_n is (D * layers, N, H) all the same", "Keras"),
        ("h_0 is transposed for batch_first",
         {"enter": moved_state},
         "batch_first concerns input and output only: hx is (D * layers, N, H) all the same"),
        ("h_0 and h_n are transposed for batch_first",
         {"enter": moved_state, "result": moved_states},
         "batch_first concerns input and output only: states are (D * layers, N, H) all the same"),
    )  # fmt: skip
    between = "F.dropout(output, p, self.training) on the output of every layer but the last"
    yield from group(
        "dropout", "LGR",
        ("dropout after the last layer too", {"dropped": frozenset({"between", "last", "training"})}, between),
        ("dropout after the last layer only", {"dropped": frozenset({"last", "training"})}, between),
        ("dropout is not applied", {"dropped": frozenset()}, between, "torch.ao quantizable LSTM"),
        *((f"dropout on the recurrence {also}", {"dropped": frozenset({"training", *where, *points})}, between,
           "Keras recurrent_dropout")
          for also, where in (("too", ("between",)), ("only", ())) for points in (("carried",), ("carried", "h_0"))),
        ("dropout on the input too", {"dropped": frozenset({"between", "input", "training"})}, between),
        ("dropout on the input of every layer, of the first too and after no other",
         {"dropped": frozenset({"input", "training"})}, between, "Keras dropout"),
        ("dropout on every new state, in the time loop",
         {"dropped": frozenset({"between", "last", "carried", "final", "training"})}, between, "opacus"),
        ("dropout in eval mode", {"dropped": frozenset({"between"})}, between),
    )  # fmt: skip

    def cut(*points: str) -> dict[str, Any]:
        return {f"at {point}": torch.Tensor.detach for point in points}

    def rounded(*points: str) -> dict[str, Any]:
        return {f"at {point}": lambda x: x.float().double() for point in points}

    keep = "remove the detach() (or .data, no_grad, item)"
    yield from group(
        "gradient", "LGR",
        ("the state is detached between steps", cut("h", "c"), keep),
        ("h is detached in the gates", cut("h in the gates"), keep),
        ("the gradient stops between layers", cut("between"), keep),
        ("hx is detached", cut("h_0", "c_0"), keep),
        ("h_0 is detached", cut("h_0"), keep),
        ("h_n is detached", cut("h_n"), keep),
        ("h_n and c_n are detached", cut("h_n", "c_n"), keep),
        ("output is detached", cut("output"), keep),
        *((f"{name} is detached", cut(point), keep)
          for name, point in (("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "b_ih"), ("bias_hh", "b_hh"))),
        ("both biases are detached", cut("b_ih", "b_hh"), keep),
    )  # fmt: skip
    yield from group(
        "gradient",
        "L",
        ("h is detached between steps", cut("h"), keep),
        ("c is detached between steps", cut("c"), keep),
        ("c is detached in h", cut("c in h"), keep),
        ("c_0 is detached", cut("c_0"), keep),
        ("c_n is detached", cut("c_n"), keep),
        *((f"gate {gate} is detached", cut(gate), keep) for gate in "ifgo"),
    )
    yield from group(
        "gradient",
        "G",
        *((f"gate {gate} is detached", cut(gate), keep) for gate in "rzn"),
        ("h is detached in the blend", cut("h in the blend"), keep),
    )
    sigmoids = (("s", lambda s: s), ("1 - s", lambda s: 1 - s))
    tanhs = (("1 - y", lambda y: 1 - y), ("y", lambda y: y), ("1 + y * y", lambda y: 1 + y * y))
    yield from group(
        "gradient", "LG",
        *((f"the derivative of sigmoid is taken to be {name}", {"sigmoid": with_derivative(torch.sigmoid, wrong)},
           "s * (1 - s)") for name, wrong in sigmoids),
        *((f"the derivative of the candidate's tanh is taken to be {name}",
           {"candidate": with_derivative(torch.tanh, wrong)}, "1 - y * y") for name, wrong in tanhs),
    )  # fmt: skip
    yield from group(
        "gradient", "L",
        *((f"the derivative of tanh(c) is taken to be {name}",
           {"emit": emitting(with_derivative(torch.tanh, wrong))}, "1 - y * y")
          for name, wrong in tanhs),
    )  # fmt: skip
    yield from group(
        "gradient", "R",
        *((f"the derivative of tanh is taken to be {name}", {"activation": with_derivative(torch.tanh, wrong)},
           "1 - y * y") for name, wrong in tanhs),
    )  # fmt: skip
    dtype = "allocate with the dtype of the input: x.new_zeros(...), torch.zeros(..., dtype=x.dtype)"
    yield from group(
        "dtype", "LGR",
        *((f"{point} passes through float32", rounded(point), dtype) for point in ("h in the gates", "w_hh", "w_ih")),
        *(("h passes through float32", rounded("h", *also), dtype) for also in ((), ("h_n",), ("h_n", "output"))),
        ("output passes through float32", rounded("output"), dtype),
    )  # fmt: skip
    yield from group(
        "dtype",
        "L",
        *(("c passes through float32", rounded("c", *also), dtype) for also in ((), ("c_n",))),
        *(
            ("the state passes through float32", rounded("h", "c", *also), dtype)
            for also in ((), ("h_n", "c_n"), ("h_n", "c_n", "output"))
        ),
    )


CATALOGUE: tuple[Deviation, ...] = tuple(_deviations())

#: Systems by the order in which they keep gates and by what else they do.
SYSTEMS: tuple[tuple[str, Order, tuple[str, ...]], ...] = (
    ("cuDNN, Keras, MXNet, oneDNN, Sonnet 2, TensorFlow BlockLSTMV2", Order("ifgo"), ()),
    ("ONNX, WebNN's default", Order("iofg"), ()),
    ("TF1 BasicLSTMCell and LSTMCell, Haiku", Order("igfo"), ("forget gate + 1",)),
    ("haste, TensorFlow BlockLSTM, Metal with forgetGateLast", Order("igfo"), ()),
    ("ncps", Order("gifo"), ("forget gate + 1",)),
    ("CoreML, Caffe, tracetorch", Order("ifog"), ()),
    ("OpenVINO", Order("figo"), ()),
    ("Chainer's LSTM", Order("gifo", interleaved=True), ()),
    ("Keras with reset_after=True, ONNX with linear_before_reset=1, haste", Order("zrn"), ()),
    ("Keras with reset_after=False, ONNX's default", Order("zrn"), ("reset before the product",)),
    ("CoreML", Order("rnz"), ()),
    ("TF1 GRUCell", Order("rzn"), ("reset before the product",)),
    ("Haiku, Sonnet", Order("zrn"), ("reset before the product", "update gate of the opposite sense")),
    ("Chainer's StatelessGRU", Order("rzn"), ("reset before the product", "update gate of the opposite sense")),
)


# Variants -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """An order of the gates and deviations; () and torch.nn's order is torch.nn."""

    order: Order
    deviations: tuple[Deviation, ...] = ()

    @property
    def size(self) -> int:
        return len(self.deviations) + (not self.order.plain)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what deviates."""
        return (str(self.order),) * (not self.order.plain) + tuple(deviation.name for deviation in self.deviations)

    @property
    def name(self) -> str:
        return " and ".join(self.parts) or "torch.nn's definition"

    @property
    def system(self) -> str:
        """The systems that do exactly this."""
        names = {deviation.name for deviation in self.deviations}
        return "; ".join(name for name, order, also in SYSTEMS if order == self.order and set(also) == names)

    @property
    def wheres(self) -> tuple[str, ...]:
        """For each part, the systems of which it is the convention, whatever else they do."""
        alike = "; ".join(dict.fromkeys(name for name, order, _ in SYSTEMS if order == self.order))
        return (alike,) * (not self.order.plain) + tuple(deviation.where for deviation in self.deviations)

    @property
    def fixes(self) -> tuple[str, ...]:
        return (self.order.fix,) * (not self.order.plain) + tuple(deviation.fix for deviation in self.deviations)

    def run(self, example: Example) -> dict[str, Tensor]:
        H = example.weights["weight_hh" + example.slots[0]].size(0) // len(GATES[example.kind])
        return define(self.deviations).run(example, None if self.order.plain else self.order.rows(H))


def plain(kind: str) -> Variant:
    return Variant(orders(kind)[0])


@cache
def define(deviations: tuple[Deviation, ...]) -> Definition:
    knobs = {key: value for deviation in deviations for key, value in deviation.knobs.items()}
    at = {key.removeprefix("at "): knobs.pop(key) for key in list(knobs) if key.startswith("at ")}
    return Definition(**knobs, at=at)


def compatible(deviations: Iterable[Deviation]) -> bool:
    """Whether no two of them change the same thing."""
    keys = [key for deviation in deviations for key in deviation.knobs]
    return len(keys) == len(set(keys))


def catalogue(kind: str, levels: Iterable[str]) -> list[Deviation]:
    return [deviation for deviation in CATALOGUE if kind[0] in deviation.kinds and deviation.level in levels]
