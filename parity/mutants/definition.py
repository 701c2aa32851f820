"""torch.nn's recurrence in plain torch operations. Each choice that somebody might make otherwise is a field.

All orders of the gates are one computation: weights may have leading dimensions (one of orders, say), which every
result then has too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

State = tuple[Tensor, ...]
Input = Tensor | PackedSequence
GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}  # torch.nn's order


class Weights(NamedTuple):
    """One layer and direction, rows in torch.nn's order; any leading dimensions."""

    w_ih: Tensor  # (..., G*H, H_in)
    w_hh: Tensor  # (..., G*H, H_out)
    b_ih: Tensor | None  # (G*H), or (..., 1, G*H)
    b_hh: Tensor | None
    w_hr: Tensor | None  # (H_out, H)


@dataclass(frozen=True)
class Example:
    """A problem: tensors as a torch.nn module takes them, weights by its names, hx () or (h_0,) or (h_0, c_0)."""

    kind: str  # LSTM, GRU, RNN
    weights: dict[str, Tensor]
    input: Input
    hx: State = ()
    batch_first: bool = False
    nonlinearity: str = "tanh"
    dropout: float = 0.0
    training: bool = True
    is_cell: bool = False
    cotangents: dict[str, Tensor] = field(default_factory=dict)
    state_dtype: torch.dtype | None = None  # of the initial state, where it is not the input's

    @property
    def slots(self) -> list[str]:
        """Name layers and directions by their suffixes: `_l0`, `_l0_reverse`, ...; a cell has one, which is empty."""
        return [name.removeprefix("weight_ih") for name in self.weights if name.startswith("weight_ih")]

    @property
    def directions(self) -> int:
        return 2 if any(slot.endswith("_reverse") for slot in self.slots) else 1

    @property
    def hidden_size(self) -> int:
        return self.weights["weight_hh" + self.slots[0]].size(0) // len(GATES[self.kind])

    @property
    def rows(self) -> Tensor:
        """Return the input's numbers."""
        return self.input.data if isinstance(self.input, PackedSequence) else self.input

    @property
    def is_unbatched(self) -> bool:
        return isinstance(self.input, Tensor) and self.input.dim() == (1 if self.is_cell else 2)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Return everything that has a gradient, by name."""
        return {**self.weights, "input": self.rows, **dict(zip(("h_0", "c_0"), self.hx, strict=False))}

    def with_leaves(self, leaves: dict[str, Tensor]) -> Example:
        """Pose the same problem on other numbers."""
        weights = {name: leaves[name] for name in self.weights}
        hx = tuple(leaves[name] for name in ("h_0", "c_0") if name in leaves)
        packed = isinstance(self.input, PackedSequence)
        input = PackedSequence(leaves["input"], *self.input[1:]) if packed else leaves["input"]
        return replace(self, weights=weights, input=input, hx=hx)


def same(value: Any, *_: Any) -> Any:
    """Return the first argument: nothing is done to it."""
    return value


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Compute x @ w.T + b, of weights with leading dimensions too."""
    if w.dim() == 2:
        return F.linear(x, w, b)
    return x @ w.mT if b is None else x @ w.mT + b


def picked(h: Tensor, rows: Tensor | None) -> Tensor:
    """Pick rows of the batch (..., N, H), in this order; None picks all of them as they are."""
    return h if rows is None else h[..., rows, :]


def inverse(order: Tensor | None) -> Tensor | None:
    """Return the permutation that undoes `order`."""
    return None if order is None else torch.argsort(order)


def followed(new: Tensor, old: Tensor) -> Tensor:
    """Join the new state of the first rows of a batch and the old one of the rest, which have ended or not begun."""
    rest = old[..., new.size(-2) :, :]
    return torch.cat([new, rest.to(new.dtype).expand(*new.shape[:-2], -1, -1)], -2) if rest.size(-2) else new


def one_by_one(outputs: list[Tensor]) -> Tensor:
    """Put the rows of each step behind those of the step before. Those of before the first step have no orders yet."""
    lead = max((output.shape[:-2] for output in outputs), key=len)
    return torch.cat([output.expand(*lead, -1, -1) for output in outputs], -2)


def padded(rows: Tensor, N: int) -> Tensor:
    """Fill up the rows of one step (..., n, H) to a batch of N, with zeros for sequences that have no such step."""
    return F.pad(rows, (0, 0, 0, N - rows.size(-2)))


def stacked(tensors: Iterable[Tensor]) -> Tensor:
    """Stack K tensors (..., N, H) to (..., K, N, H); what doesn't depend on the order has no such dimension yet."""
    return torch.stack(torch.broadcast_tensors(*tensors), -3)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Definition:
    """torch.nn's recurrence. A field is what somebody might do otherwise; its default is what torch.nn does."""

    # the weights
    b_ih: float = 1.0  # how often it is added
    b_hh: float = 1.0
    w_ih: Callable[[Tensor, int], Tensor] = same  # (weight, number of gates)
    w_hh: Callable[[Tensor, int], Tensor] = same
    bias_follows: bool = True  # biases are read in the order that the weights are read in
    read: Callable[[Weights, str, Example], Weights] = same  # the weights of a slot as they are used
    slot: Callable[[int, int], int] = same  # whose weights a layer and direction uses
    # the equations
    linear: Callable[..., Tensor] = linear
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid
    candidate: Callable[[Tensor], Tensor] = torch.tanh
    gates: Callable[..., tuple[Tensor, ...]] = lambda *ifgo_c: ifgo_c[:4]  # the LSTM's, before they are squashed
    output_gate: Callable[[Tensor], Tensor] | None = None  # instead of `sigmoid`
    cell: Callable[..., Tensor] = lambda i, f, g, c: f * c + i * g
    emit: Callable[..., Tensor] = lambda o, c, before: o * torch.tanh(c)
    reset: Callable[..., Tensor] = lambda i, r, h, u, b: i + r * u(h, b)  # u(h, b) is W_hn h + b
    blend: Callable[..., Tensor] = lambda z, n, h, r: (1 - z) * n + z * h
    activation: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] = same  # of the RNN's own
    after: Callable[[State, State], State] = same  # (state after the step, state before it) -> state after
    project: Callable[..., Tensor] = linear
    # time
    carried: Callable[[State, State], State] = same  # (state after the step, initial state) -> state before the next
    shown: Callable[[State, State], Tensor] = lambda after, before: after[0]
    direction: Callable[..., tuple[Tensor, State]] = lambda run, *given: run(*given)  # see `run_direction`
    # directions
    reversed: bool = True  # the reverse direction begins at the end
    flipped_back: bool = True
    final: Callable[..., State] = same  # (last state, output, batch sizes, reverse) -> h_n, c_n of a slot
    joined: Callable[[list[Tensor]], Tensor] = lambda outputs: torch.cat(outputs, -1)
    # layers
    start: Callable[[list[State], int], list[State]] = same
    finish: Callable[[list[State], int], list[State]] = same
    below: Callable[..., Tensor] = same  # (output of a layer, batch sizes, its initial states) -> the next one's input
    dropout: Callable[[Tensor, float, bool], Tensor] = F.dropout
    dropped: frozenset[str] = frozenset({"between", "training"})
    # batches
    ragged: bool = True  # rows end at their own lengths
    batch_first: str = "as asked"  # or never, or always
    zeros: Callable[[Tensor], Tensor] = same  # the initial state where none is given
    enter: Callable[..., Tensor] = lambda h, order, example: picked(h, order)  # hx -> in the order of the rows
    leave: Callable[..., Tensor] = lambda h, order, name: picked(h, inverse(order))  # and back
    result: Callable[[dict[str, Tensor], Example], dict[str, Tensor]] = same
    # what is done to a tensor on its way, by its name: detach, round
    at: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def via(self, name: str, tensor: Tensor) -> Tensor:
        """Do to the tensor of this name what `at` says."""
        return self.at[name](tensor) if name in self.at else tensor

    # One step. igates (..., N, G*H)

    def step(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        """Compute the next state."""
        h, *rest = self.after(getattr(self, example.kind.lower())(example, igates, state, w), state)
        return (h if w.w_hr is None else self.project(h, w.w_hr), *rest)

    def lstm(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        h, c = self.via("h in the gates", state[0]), state[1]
        i, f, g, o = self.gates(*(self.linear(h, w.w_hh, w.b_hh) + igates).chunk(4, -1), c)
        i, f, g, o = self.sigmoid(i), self.sigmoid(f), self.candidate(g), (self.output_gate or self.sigmoid)(o)
        i, f, g, o = (self.via(name, gate) for name, gate in zip("ifgo", (i, f, g, o), strict=True))
        new = self.cell(i, f, g, c)
        return self.emit(o, self.via("c in h", new), c), new

    def gru(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        h, H = self.via("h in the gates", state[0]), w.w_hh.size(-2) // 3
        b_rz, b_n = (None, None) if w.b_hh is None else (w.b_hh[..., : 2 * H], w.b_hh[..., 2 * H :])
        rz = self.sigmoid(self.linear(h, w.w_hh[..., : 2 * H, :], b_rz) + igates[..., : 2 * H])
        r, z = (self.via(name, gate) for name, gate in zip("rz", rz.chunk(2, -1), strict=True))

        def u(h: Tensor, b: Tensor | None = None) -> Tensor:
            return self.linear(h, w.w_hh[..., 2 * H :, :], b)

        n = self.via("n", self.candidate(self.reset(igates[..., 2 * H :], r, h, u, b_n)))
        return (self.blend(z, n, self.via("h in the blend", state[0]), r),)

    def rnn(self, example: Example, igates: Tensor, state: State, w: Weights) -> State:
        activation = self.activation(getattr(torch, example.nonlinearity))
        return (activation(self.linear(self.via("h in the gates", state[0]), w.w_hh, w.b_hh) + igates),)

    # Steps, directions, layers. Rows (..., S, H) are ordered by time; `sizes` says how many of them each step has

    def run_direction(
        self, example: Example, x: Tensor, sizes: list[int], initial: State, w: Weights, reverse: bool
    ) -> Any:
        """Run a direction: x (..., S, H_in) -> output (..., S, H_out) and the state after the last step."""
        products = self.linear(self.via("x", x), w.w_ih, w.b_ih)
        igates: tuple[Tensor, ...] = products.split(sizes, -2)  # type: ignore[no-untyped-call]
        backwards = reverse and self.reversed
        state, outputs = initial, list[Tensor]()
        for t in reversed(range(len(sizes))) if backwards else range(len(sizes)):
            before = state
            if outputs:
                carried = self.carried(state, initial)
                before = tuple(self.via(name, part) for name, part in zip("hc", carried, strict=False))
            before = self.drop(example, "carried" if outputs else "h_0", before)
            alive = tuple(part[..., : sizes[t], :] for part in before)
            new = self.step(example, igates[t], alive, w)
            outputs.append(self.via("output", self.shown(new, alive)))
            state = tuple(map(followed, new, before))
        if backwards:
            outputs.reverse()
        if backwards and not self.flipped_back:
            late_first = [padded(output, sizes[0]) for output in reversed(outputs)]
            outputs = [output[..., :n, :] for output, n in zip(late_first, sizes, strict=True)]
        output = one_by_one(outputs)
        state = self.drop(example, "final", state)
        state = tuple(self.via(name, part) for name, part in zip(("h_n", "c_n"), state, strict=False))
        return output, self.final(state, output, sizes, reverse)

    def drop(self, example: Example, where: str, state: State) -> State:
        """Apply dropout to the first of some tensors, if it is applied at this place."""
        if where not in self.dropped or not example.dropout:
            return state
        training = example.training or "training" not in self.dropped
        return (self.dropout(state[0], example.dropout, training), *state[1:])

    def stack(
        self, example: Example, x: Tensor, sizes: list[int], states: list[State], weights: list[Weights]
    ) -> tuple[Tensor, list[State]]:
        D, finals = example.directions, []
        layers = len(weights) // D
        states = self.start(states, D)
        (x,) = self.drop(example, "input", (x,))

        def run(*given: Any) -> Any:
            return self.run_direction(example, *given)

        for layer in range(layers):
            outputs = []
            for slot in range(layer * D, (layer + 1) * D):
                w = weights[self.slot(slot, D)]
                if w.w_ih.size(-1) != x.size(-1):
                    w = weights[slot]
                output, state = self.direction(run, x, sizes, states[slot], w, slot % D == 1)
                outputs.append(output)
                finals.append(state)
            where = "between" if layer < layers - 1 else "last"
            (x,) = self.drop(example, where, (self.joined(outputs),))
            if where == "between":
                x = self.via("between", self.below(x, sizes, states[layer * D : (layer + 1) * D]))
        return x, self.finish(finals, D)

    # In and out

    def run(self, example: Example, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Show what an implementation by this definition shows: output, h_n, c_n by name (a cell's h_1, c_1).

        rows, if given, are the rows of each weight as they are read: (G*H,), or (orders, G*H) for several at once.
        Where `example` has cotangents, gradients are shown too, as `grad of NAME`; `rows` then has no orders.
        """
        if not example.cotangents:
            with torch.no_grad():
                return self.forward(example, rows)
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in example.leaves.items()}
        with torch.enable_grad():
            results = self.forward(example.with_leaves(leaves), rows)
        wanted = [name for name in example.cotangents if results[name].requires_grad]
        shown, weights = [results[name] for name in wanted], [example.cotangents[name] for name in wanted]
        inputs = list(leaves.values())
        grads = torch.autograd.grad(shown, inputs, weights, allow_unused=True) if wanted else [None] * len(inputs)
        results = {name: tensor.detach() for name, tensor in results.items()}
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            results[f"grad of {name}"] = torch.zeros_like(leaf) if grad is None else grad
        return results

    def forward(self, example: Example, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Compute output, h_n, c_n by name, within the caller's graph; a packed output is its rows."""
        x, sizes = self.into_rows(example)
        alive = None
        if isinstance(example.input, PackedSequence) and not self.ragged:  # finished sequences go on, over zeros
            N, L = sizes[0], len(sizes)
            alive = torch.cat([torch.arange(n) + t * N for t, n in enumerate(sizes)])
            x, sizes = x.new_zeros(L * N, x.size(-1)).index_copy(0, alive, x), [N] * L
        weights = [self.weights(example, slot, rows) for slot in example.slots]
        output, finals = self.stack(example, x, sizes, self.initial(example, x, sizes[0], weights), weights)
        return self.result(self.named(example, picked(output, alive), finals, sizes), example)

    def takes_batch_first(self, example: Example) -> bool:
        return example.batch_first if self.batch_first == "as asked" else self.batch_first == "always"

    def into_rows(self, example: Example) -> tuple[Tensor, list[int]]:
        """Order the input by time: rows (S, H_in) and how many of them each step has."""
        if isinstance(example.input, PackedSequence):
            return example.input.data, example.input.batch_sizes.tolist()
        x = example.input
        if example.is_cell:  # one step
            return (x.unsqueeze(0), [1]) if example.is_unbatched else (x, [x.size(0)])
        if example.is_unbatched:
            return x, [1] * x.size(0)
        x = x.transpose(0, 1) if self.takes_batch_first(example) else x
        return x.flatten(0, 1), [x.size(1)] * x.size(0)

    def initial(self, example: Example, x: Tensor, N: int, weights: list[Weights]) -> list[State]:
        """Make the initial state (N, H) of each slot, the batch in the order of the rows."""
        order = example.input.sorted_indices if isinstance(example.input, PackedSequence) else None
        if example.hx:
            hx = tuple(h.unsqueeze(0) for h in example.hx) if example.is_cell else example.hx
            hx = tuple(h.unsqueeze(1) for h in hx) if example.is_unbatched else hx
            named = zip(("h_0", "c_0"), hx, strict=False)
            hx = tuple(self.via(name, self.enter(h, order, example)) for name, h in named)
            if hx[0].size(1) != N:
                raise RuntimeError(f"hx is for a batch of {hx[0].size(1)}, the input has one of {N}")
        else:
            sizes = [weights[0].w_hh.size(-1), weights[0].w_hh.size(-2) // 4]
            shapes = ((len(weights), N, size) for size in sizes[: 1 + (example.kind == "LSTM")])
            hx = tuple(torch.zeros(shape, dtype=x.dtype, device=x.device) for shape in shapes)
            hx = tuple(map(self.zeros, hx))
        hx = hx if example.state_dtype is None else tuple(h.to(example.state_dtype) for h in hx)
        return list(zip(*hx, strict=True))

    def named(self, example: Example, output: Tensor, finals: list[State], sizes: list[int]) -> dict[str, Tensor]:
        order = example.input.sorted_indices if isinstance(example.input, PackedSequence) else None
        names = ("h_1", "c_1") if example.is_cell else ("h_n", "c_n")
        states = {
            name: self.leave(stacked(parts), order, name)
            for name, parts in zip(names, zip(*finals, strict=False), strict=False)
        }
        if example.is_cell:
            states = {name: state.squeeze(-3) for name, state in states.items()}
        if example.is_unbatched:
            states = {name: state.squeeze(-2) for name, state in states.items()}
        if example.is_cell:
            return states
        if isinstance(example.input, Tensor) and not example.is_unbatched:
            output = output.unflatten(-2, (len(sizes), sizes[0]))  # type: ignore[no-untyped-call]
            output = output.transpose(-3, -2) if self.takes_batch_first(example) else output
        return {"output": output, **states}

    def weights(self, example: Example, slot: str, rows: Tensor | None) -> Weights:
        """Read the weights of one layer and direction as this definition uses them."""
        gates = len(GATES[example.kind])
        w_ih = self.w_ih(example.weights["weight_ih" + slot], gates)
        w_hh = self.w_hh(example.weights["weight_hh" + slot], gates)
        w = Weights(
            self.via("w_ih", w_ih if rows is None else w_ih[rows]),
            self.via("w_hh", w_hh if rows is None else w_hh[rows]),
            self.bias(example, "ih", slot, rows),
            self.bias(example, "hh", slot, rows),
            example.weights.get("weight_hr" + slot),
        )
        return self.read(w, slot, example)

    def bias(self, example: Example, which: str, slot: str, rows: Tensor | None) -> Tensor | None:
        bias, times = example.weights.get(f"bias_{which}{slot}"), self.b_ih if which == "ih" else self.b_hh
        if bias is None:
            return None
        if rows is not None and self.bias_follows:
            bias = bias[rows].unsqueeze(-2) if rows.dim() > 1 else bias[rows]
        return self.via(f"b_{which}", bias if times == 1 else times * bias)
