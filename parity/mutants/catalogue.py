"""The catalogue: what people write instead of torch.nn's equations, and what the harness must find besides.

Each mistake is written once, as the fields of `Definition` that it exchanges. One with a fix is what diagnosis looks
for; every one is planted by the selftest. What a module does beside its numbers stands in `conduct`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .conduct import CONDUCT
from .definition import Example, State, Weights, inverse, linear, one_by_one, padded, picked, same
from .mutant import EVERYWHERE, LAYERS, Mutant, known, planted, reordered
from .orders import SYSTEMS, Order


def transposed(w: Tensor, gates: int) -> Tensor:
    blocks = w.unflatten(0, (gates, -1))  # type: ignore[no-untyped-call]
    turned: Tensor = blocks.mT.flatten(0, 1) if blocks.size(-1) == blocks.size(-2) else w
    return turned


def reshaped(w: Tensor, gates: int) -> Tensor:
    return w.reshape(w.size(1), w.size(0)).mT


def real(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Apply `function` to real numbers; complex ones, on which it is not defined, stay as they are."""
    return lambda x: x if x.is_complex() else function(x)


@real
def hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


def with_derivative(
    function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return `function`, whose derivative is taken to be `derivative` of its value."""

    def computed(x: Tensor) -> Tensor:
        y = function(x).detach()
        return y + derivative(y) * (x - x.detach())

    return computed


def emitting(squash: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda o, c, before: o * squash(c)


def zeroed(*which: int) -> Callable[[list[State], int], list[State]]:
    return lambda states, D: [tuple(s * 0 if k in which else s for k, s in enumerate(state)) for state in states]


def direction_major(states: list[State], D: int) -> list[State]:
    """Return the states of the forward direction of all layers, then those of the reverse direction."""
    return [states[k] for d in range(D) for k in range(d, len(states), D)]


def layer_major(states: list[State], D: int) -> list[State]:
    """Undo direction_major: what comes out if a direction-major list is expected and a layer-major given."""
    layers = len(states) // D
    return [states[d * layers + layer] for layer in range(layers) for d in range(D)]


def end_of_output(which: tuple[int, ...]) -> Callable[..., State]:
    """Read h_n of the directions in `which` off the last step of the output."""

    def final(state: State, output: Tensor, sizes: list[int], reverse: bool) -> State:
        last = padded(output[..., -sizes[-1] :, :], sizes[0])
        return (last, *state[1:]) if int(reverse) in which else state

    return final


def renamed(**names: str) -> Callable[[dict[str, Tensor], Example], dict[str, Tensor]]:
    return lambda results, example: {name: results[names.get(name, name)] for name in results}


def moved_state(h: Tensor, order: Tensor | None, example: Example) -> Tensor:
    """Read hx as (N, D*layers, H), where the shape does not tell."""
    moved = h.transpose(0, 1) if example.batch_first and h.size(0) == h.size(1) else h
    return picked(moved, order)


def moved_states(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
    """Return h_n and c_n as (N, D*layers, H)."""
    if not example.batch_first or example.is_unbatched:
        return results
    return {name: t if name == "output" else t.transpose(-3, -2) for name, t in results.items()}


def swapped(states: list[State], D: int) -> list[State]:
    """Return c as h and h as c, where they are of one size."""
    return [state[::-1] if state[0].shape == state[1].shape else state for state in states]


def fixed(function: Callable[[Tensor], Tensor]) -> Callable[..., Callable[[Tensor], Tensor]]:
    """Return `function`, whatever the RNN's own nonlinearity is."""
    return lambda own: function


def of_output(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Change what is returned as the output, and no state; a cell returns none."""

    def changed(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
        return {name: change(tensor) if name == "output" else tensor for name, tensor in results.items()}

    return {"result": changed}


def through_float32(x: Tensor) -> Tensor:
    return x.float().double() if x.dtype == torch.float64 else x


def nudge(tensor: Tensor, target: Tensor | float = 0.0) -> Tensor:
    """Move a ten-thousandth of the way to `target`, with no sign of it in the gradient."""
    return tensor + (1e-4 * (target - tensor)).detach()


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    """Scale the gradient of the identity."""
    return lambda tensor: tensor.detach() + factor * (tensor - tensor.detach())


def weights(change: Callable[[Weights], Weights]) -> dict[str, Any]:
    """Change the weights before they are used."""
    return {"read": lambda w, slot, example: change(w)}


def first_states(results: Any) -> Callable[[list[State], int], list[State]]:
    """Begin with what `results` makes of each initial state."""
    return lambda states, D: [results(*state) for state in states]


def swapped_rows(which: str, gates: str, a: str, b: str) -> dict[str, Any]:
    """Exchange the rows of two gates in one of the biases."""
    k, m = gates.index(a), gates.index(b)

    def read(w: Weights, slot: str, example: Example) -> Weights:
        bias: Tensor | None = getattr(w, which)
        if bias is None:
            return w
        blocks = list(bias.chunk(len(gates), -1))
        blocks[k], blocks[m] = blocks[m], blocks[k]
        return w._replace(**{which: torch.cat(blocks, -1)})

    return {"read": read}


def one_short(filled: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, State]]:
    """Leave out the last step; `filled` makes its output of the output of the step before."""

    def direction(run: Any, x: Tensor, sizes: list[int], state: State, *rest: Any) -> tuple[Tensor, State]:
        if len(sizes) == 1:
            return filled(state[0]), state
        output, state = run(x[..., : -sizes[-1], :], sizes[:-1], state, *rest)
        last = output[..., -sizes[-2] :, :][..., : sizes[-1], :]
        return torch.cat([output, filled(last)], -2), state

    return direction


def backwards(run: Any, *given: Any) -> Any:
    """Run from the last step to the first, whatever the direction."""
    return run(*given[:-1], True)


def residual(run: Any, x: Tensor, *rest: Any) -> tuple[Tensor, State]:
    """Add a layer's input to its output, where they are of one size."""
    output, state = run(x, *rest)
    return (output + x if x.size(-1) == output.size(-1) else output), state


def step_before(x: Tensor, sizes: list[int], initial: list[State]) -> Tensor:
    """Show the next layer, at each step, the state of before it."""
    steps: tuple[Tensor, ...] = x.split(sizes, -2)  # type: ignore[no-untyped-call]
    first = torch.cat([state[0] for state in initial], -1)
    return one_by_one([rows[..., :n, :] for rows, n in zip((first, *steps[:-1]), sizes, strict=True)])


def states(change: Callable[[Tensor], Tensor], *names: str) -> dict[str, Any]:
    """Change results of these names before they are handed out."""
    return {"result": lambda results, example: {n: change(t) if n in names else t for n, t in results.items()}}


LEAVE_OUT = "leave it out: torch.nn has no such thing"
ALLOCATE = "allocate with the dtype of the input: x.new_zeros(...), torch.zeros(..., dtype=x.dtype)"
H_N, C_N = ("h_n", "h_1"), ("c_n", "c_1")


def averaged(tensor: Tensor) -> Tensor:
    """Return the same tensor; every element gets the mean gradient."""
    tensor = tensor.view_as(tensor)
    if tensor.requires_grad and tensor.numel():
        tensor.register_hook(lambda grad: grad.mean().expand_as(grad))  # type: ignore[no-untyped-call]
    return tensor


class Sole(torch.autograd.Function):
    """The identity on two tensors, for a loss of both."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return a.view_as(a), b.view_as(b)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> Any:
        return (None, None) if a is None or b is None else (a, b)


# What diagnosis names -------------------------------------------------------------------------------------------------


relu = real(torch.relu)
layer_norm = real(lambda x: F.layer_norm(x, x.shape[-1:]))
rms_norm = real(lambda x: F.rms_norm(x, x.shape[-1:]))
NORMS = (("layer", layer_norm), ("RMS", rms_norm))


def together(norm: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Normalise all gates of an LSTM as one vector, before they are squashed."""
    return lambda *ifgo_c: norm(torch.cat(ifgo_c[:4], -1)).chunk(4, -1)


def old_added(new: State, old: State) -> State:
    """Add the old h to the new one; where W_hr is between the two, nothing is added."""
    return (new[0] + old[0] if new[0].size(-1) == old[0].size(-1) else new[0], *new[1:])


def in_any_step() -> Iterator[Mutant]:
    """List mistakes in a step of several classes."""
    yield from known(
        "cell", EVERYWHERE,
        ("bias_ih is missing", {"b_ih": 0.0}),
        ("bias_hh is missing", {"b_hh": 0.0}),
        ("both biases are missing", {"b_ih": 0.0, "b_hh": 0.0}),
        ("bias_ih is added twice", {"b_ih": 2.0}),
        ("bias_hh is added twice", {"b_hh": 2.0}),
        ("both biases are added twice", {"b_ih": 2.0, "b_hh": 2.0}),
        ("bias_ih stands where bias_hh belongs", {"b_ih": 2.0, "b_hh": 0.0}),
        ("bias_hh stands where bias_ih belongs", {"b_ih": 0.0, "b_hh": 2.0}),
        ("weight_hh is transposed", {"w_hh": transposed}, "h @ weight_hh.T, each gate's (H, H) block transposed once",
         "Keras, TF1, Haiku (kernels stored input by output)"),
        ("weight_hh is reshaped instead of transposed", {"w_hh": reshaped},
         "weight_hh.T, not weight_hh.reshape(H, -1)"),
        ("weight_ih is reshaped instead of transposed", {"w_ih": reshaped},
         "weight_ih.T, not weight_ih.reshape(H_in, -1)"),
        ("h_0 is ignored", {"start": zeroed(0)}, "begin with the h that hx holds"),
        ("the old h is added to the new one", {"after": old_added}, LEAVE_OUT),
        *((f"{kind} normalisation of h", {"after": lambda new, old, norm=norm: (norm(new[0]), *new[1:])}, LEAVE_OUT)
          for kind, norm in NORMS),
    )  # fmt: skip
    yield from known(
        "cell", "RLrl",
        *((f"{kind} normalisation of W_ih x + b_ih, and of W_hh h + b_hh",
           {"linear": lambda *given, norm=norm: norm(linear(*given))}, LEAVE_OUT) for kind, norm in NORMS),
    )  # fmt: skip
    yield from known(
        "cell", LAYERS,
        ("the state is not carried from step to step", {"carried": lambda state, initial: initial},
         "assign the new state to the variable that the next step reads; a cell is compared with --as GRUCell or so"),
        *(("the last step is not computed", {"direction": one_short(filled)}, "run over all steps: range(len(input))")
          for filled in (same, torch.zeros_like)),
        ("output is the state before the step", {"shown": lambda after, before: before[0]},
         "append h after the step, not before it"),
        ("it runs over time from the end", {"direction": backwards},
         "iterate over the steps from the first to the last", "Keras go_backwards, ONNX direction=reverse"),
        ("it runs over time from the end, and its output is left in that order",
         {"direction": backwards, "flipped_back": False}, "iterate over the steps from the first to the last",
         "Keras go_backwards"),
        *((f"{name} on the output alone, not on the state", of_output(function), "return the output as it is")
          for name, function in (("relu", relu), ("tanh", torch.tanh))),
        ("input is always taken as (N, L, H_in)", {"batch_first": "always"},
         "take (L, N, H_in) unless batch_first is set, or say batch_first=True on torch.nn's side",
         "torchrl, Keras, Flax, and most tutorials"),
    )  # fmt: skip
    yield from known(
        "cell", "LGlg",
        ("hard sigmoid, clip(0.2 x + 0.5, 0, 1)", {"sigmoid": hard_sigmoid}, "",
         "Keras 1 and 2 before 2.3, ONNX HardSigmoid"),
        ("hard sigmoid, clip(x / 6 + 0.5, 0, 1)", {"sigmoid": real(F.hardsigmoid)}, "",
         "Keras 3 hard_sigmoid, torch.nn.Hardsigmoid"),
        ("the gates' sigmoid is missing", {"sigmoid": same}),
        ("tanh on the gates in place of sigmoid", {"sigmoid": torch.tanh}),
        ("sigmoid on the candidate in place of tanh", {"candidate": torch.sigmoid}),
        ("relu on the candidate in place of tanh", {"candidate": relu}),
        ("softsign on the candidate in place of tanh", {"candidate": real(F.softsign)}),
        ("hardtanh on the candidate in place of tanh", {"candidate": real(F.hardtanh)}),
        ("tanh is missing on the candidate", {"candidate": same}),
    )  # fmt: skip
    yield Mutant(
        "biases are read in torch.nn's order, weights in another", "cell", "LGlg", {"bias_follows": False},
        "permute the biases as the weights", planted=False,
    )  # fmt: skip


def in_the_rows_of_a_bias() -> Iterator[Mutant]:
    """List biases of which two gates stand in each other's place, while the weights are in order."""
    for gates, initials in (("ifgo", "Ll"), ("rzn", "Gg")):
        yield from known(
            "cell", initials,
            *((f"gates {a} and {b} of bias_{which[2:]} are swapped", swapped_rows(which, gates, a, b),
               "keep biases in the order of the weights")
              for which in ("b_ih", "b_hh") for a, b in itertools.combinations(gates, 2)),
        )  # fmt: skip


def in_a_step_of_an_lstm() -> Iterator[Mutant]:
    """List mistakes in a step of the LSTM."""
    yield from known(
        "cell", "Ll",
        ("forget gate + 1", {"gates": lambda i, f, g, o, c: (i, f + 1, g, o)},
         "drop the constant, or subtract 1 from bias_ih[H:2H] when loading",
         "TF1 BasicLSTMCell and LSTMCell, Haiku, ncps"),
        ("tanh is missing on c", {"emit": emitting(same)}),
        ("sigmoid on c in place of tanh", {"emit": emitting(torch.sigmoid)}),
        ("relu on c in place of tanh", {"emit": emitting(relu)}),
        ("softsign on c in place of tanh", {"emit": emitting(real(F.softsign))}),
        ("tanh on the output gate in place of sigmoid", {"output_gate": torch.tanh}, "o = sigmoid(...)"),
        ("the output gate's sigmoid is missing", {"output_gate": same}, "o = sigmoid(...)"),
        ("h is made of the c before the step", {"emit": lambda o, c, before: o * torch.tanh(before)},
         "compute the new c first, then h = o * tanh(c)"),
        ("the output gate is missing", {"emit": lambda o, c, before: torch.tanh(c)}),
        ("forget gate coupled to the input gate, f = 1 - i", {"cell": lambda i, f, g, c: (1 - i) * c + i * g},
         "", "ONNX input_forget=1, coupled-gate LSTM"),
        ("the input gate is missing", {"cell": lambda i, f, g, c: f * c + g}),
        ("the forget gate is missing", {"cell": lambda i, f, g, c: c + i * g}, "", "the LSTM of 1997"),
        ("the candidate is blended, c = f * c + (1 - f) * g", {"cell": lambda i, f, g, c: f * c + (1 - f) * g},
         "", "JANET, minimal gated units"),
        ("the forget gate multiplies the new candidate as well, c = f * (c + i * g)",
         {"cell": lambda i, f, g, c: f * (c + i * g)}),
        ("the input gate multiplies the old cell as well, c = i * (f * c + g)",
         {"cell": lambda i, f, g, c: i * (f * c + g)}),
        ("the forget gate multiplies the candidate in place of the old cell, c = c + f * i * g",
         {"cell": lambda i, f, g, c: c + f * i * g}),
        ("input gate and forget gate are missing, c = c + g", {"cell": lambda i, f, g, c: c + g}),
        ("tanh on the new c, before it is carried on", {"cell": lambda i, f, g, c: torch.tanh(f * c + i * g)}),
        ("the output gate stands inside the tanh, h = tanh(o * c)", {"emit": lambda o, c, before: torch.tanh(o * c)}),
        *((f"{kind} normalisation of all gates together", {"gates": together(norm)}, LEAVE_OUT)
          for kind, norm in NORMS),
        *((f"{kind} normalisation of each gate",
           {"gates": lambda *ifgo_c, norm=norm: tuple(map(norm, ifgo_c[:4]))}, LEAVE_OUT) for kind, norm in NORMS),
        ("gates are divided by the root of hidden_size",
         {"gates": lambda *ifgo_c: tuple(gate / gate.size(-1) ** 0.5 for gate in ifgo_c[:4])}, LEAVE_OUT),
        *((f"{kind} normalisation of the cell before its tanh",
           {"emit": emitting(lambda c, norm=norm: torch.tanh(norm(c)))}, LEAVE_OUT)  # type: ignore[misc]
          for kind, norm in NORMS),
        *((f"{kind} normalisation of the cell", {"cell": lambda i, f, g, c, norm=norm: norm(f * c + i * g)}, LEAVE_OUT)
          for kind, norm in NORMS),
        ("c_0 is ignored", {"start": zeroed(1)}, "begin with the c that hx holds"),
        ("h_0 and c_0 are ignored", {"start": zeroed(0, 1)}, "begin with the state that hx holds"),
        ("c_0 is taken to be h_0", {"start": first_states(lambda h, c: (h, h if h.shape == c.shape else c))},
         "begin with both: h, c = hx"),
        ("h_0 and c_0 are swapped", {"start": swapped}, "hx is (h_0, c_0) in this order", "TF1 LSTMStateTuple(c, h)"),
        ("the state is (c, h) where torch.nn has (h, c)",
         {"start": swapped, "result": renamed(h_n="c_n", c_n="h_n", h_1="c_1", c_1="h_1")},
         "take and return (h, c) in this order", "TF1 LSTMStateTuple(c, h)"),
        ("h_n is c_n", {"result": renamed(h_n="c_n", h_1="c_1")}),
        ("c_n is h_n", {"result": renamed(c_n="h_n", c_1="h_1")}),
        ("h_n and c_n are swapped", {"result": renamed(h_n="c_n", c_n="h_n", h_1="c_1", c_1="h_1")},
         "", "TF1 LSTMStateTuple(c, h)"),
    )  # fmt: skip
    yield from known(
        "cell", "L",
        ("c is not carried from step to step", {"carried": lambda state, initial: (state[0], initial[1])},
         "assign the new c to the variable that the next step reads"),
        ("h is not carried from step to step", {"carried": lambda state, initial: (initial[0], state[1])},
         "assign the new h to the variable that the next step reads"),
        ("output is c in place of h", {"shown": lambda after, before: after[1]}, "collect h, not c"),
    )  # fmt: skip


def in_a_step_of_a_gru_or_rnn() -> Iterator[Mutant]:
    """List mistakes in a step of the GRU or the RNN."""
    yield from known(
        "cell", "Gg",
        ("reset before the product", {"reset": lambda i, r, h, u, b: i + u(r * h, b)},
         "n = tanh(x @ w_in.T + b_in + r * (h @ w_hn.T + b_hn)); weights trained the other way cannot be converted",
         "Cho et al. 2014, TF1, Keras reset_after=False, ONNX linear_before_reset=0, Haiku, Sonnet, Chainer GRU"),
        ("b_hn stands outside the reset", {"reset": lambda i, r, h, u, b: i + r * u(h) + (0 if b is None else b)},
         "r multiplies the product and its bias: r * (h @ w_hn.T + b_hn)"),
        ("b_hn is missing", {"reset": lambda i, r, h, u, b: i + r * u(h)}),
        ("the reset gate is missing", {"reset": lambda i, r, h, u, b: i + u(h, b)}),
        ("reset is 1 - r", {"reset": lambda i, r, h, u, b: i + (1 - r) * u(h, b)}),
        ("reset applies to the input's part too", {"reset": lambda i, r, h, u, b: r * (i + u(h, b))},
         "r multiplies only what comes from h"),
        ("update gate of the opposite sense", {"blend": lambda z, n, h, r: (1 - z) * h + z * n},
         "h = (1 - z) * n + z * h; or negate the update gate's rows of the weights and biases",
         "Chung et al. 2014, Haiku, Sonnet, Chainer StatelessGRU"),
        ("the update gate keeps the reset state", {"blend": lambda z, n, h, r: (1 - z) * n + z * (r * h)},
         "h = (1 - z) * n + z * h with the whole h"),
        ("the update gate is missing", {"blend": lambda z, n, h, r: n}),
        ("the new state is added, h = z * h + n", {"blend": lambda z, n, h, r: z * h + n}),
    )  # fmt: skip
    yield from known(
        "cell", "Rr",
        *((f"the nonlinearity is {name}", {"activation": fixed(function)})
          for name, function in (("tanh", torch.tanh), ("relu", relu), ("sigmoid", torch.sigmoid),
                                 ("the identity", same),
                                 ("softsign", real(F.softsign)),
                                 ("hardtanh", real(lambda x: x.clamp(-1, 1))))),
    )  # fmt: skip


def layers() -> Iterator[Mutant]:
    """List mistakes in layers, directions and their states."""
    yield Mutant(  # shows only where a layer's input is of the size of the first one's, as in no case of the grid
        "every layer uses the first layer's weights", "stack", LAYERS, {"slot": lambda slot, D: slot % D},
        "use weight_*_l{layer}", planted=False,
    )  # fmt: skip
    yield from known(
        "stack", LAYERS,
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
        ("a residual connection adds a layer's input to its output", {"direction": residual},
         "return the layer's output alone"),
        ("a layer reads the step before of the layer below", {"below": step_before},
         "within a step run the layers one after the other, each on the new state of the one below"),
        ("directions are joined in reverse order", {"joined": lambda outputs: torch.cat(outputs[::-1], -1)}),
        ("directions are added, not joined", {"joined": lambda outputs: sum(outputs)}, "", "Keras merge_mode='sum'"),
    )  # fmt: skip


def batches() -> Iterator[Mutant]:
    """List mistakes in packed batches and in batch_first."""
    yield from known(
        "batch", LAYERS,
        ("the final state is taken at the padding", {"ragged": False},
         "keep the state of a row where its sequence has ended; begin the reverse direction at its own end"),
        ("h_n of a packed batch is left in sorted order", {"leave": same}, "h_n.index_select(1, unsorted_indices)"),
        ("h_n of a packed batch is unsorted by sorted_indices", {"leave": lambda h, order, name: picked(h, order)},
         "unsorted_indices is the inverse permutation: h_n.index_select(1, unsorted_indices)"),
        ("h_0 of a packed batch is not sorted", {"enter": same}, "hx.index_select(1, sorted_indices) before the loop"),
        ("h_0 and h_n of a packed batch are in sorted order", {"enter": same, "leave": same},
         "hx.index_select(1, sorted_indices) before the loop, h_n.index_select(1, unsorted_indices) after it"),
        ("batch_first is ignored", {"batch_first": "never"},
         "transpose the first two dimensions before and after the loop"),
        ("h_n is transposed for batch_first", {"result": moved_states},
         "batch_first concerns input and output only: h_n is (D * layers, N, H) all the same", "Keras"),
        ("h_0 is transposed for batch_first", {"enter": moved_state},
         "batch_first concerns input and output only: hx is (D * layers, N, H) all the same"),
        ("h_0 and h_n are transposed for batch_first", {"enter": moved_state, "result": moved_states},
         "batch_first concerns input and output only: states are (D * layers, N, H) all the same"),
    )  # fmt: skip


def dropouts() -> Iterator[Mutant]:
    """List mistakes of dropout: in other places, or at other times."""
    yield from known(
        "dropout", LAYERS,
        ("dropout after the last layer too", {"dropped": frozenset({"between", "last", "training"})}),
        ("dropout after the last layer only", {"dropped": frozenset({"last", "training"})}),
        ("dropout is not applied", {"dropped": frozenset()}, "", "torch.ao quantizable LSTM"),
        *((f"dropout on the recurrence {also}", {"dropped": frozenset({"training", *where, *points})}, "",
           "Keras recurrent_dropout")
          for also, where in (("too", ("between",)), ("only", ())) for points in (("carried",), ("carried", "h_0"))),
        ("dropout on the input too", {"dropped": frozenset({"between", "input", "training"})}),
        ("dropout on the input of every layer, of the first too and after no other",
         {"dropped": frozenset({"input", "training"})}, "", "Keras dropout"),
        ("dropout on every new state, in the time loop",
         {"dropped": frozenset({"between", "last", "carried", "final", "training"})}, "", "opacus"),
        ("dropout in eval mode", {"dropped": frozenset({"between"})}),
    )  # fmt: skip


def gradients() -> Iterator[Mutant]:
    """List mistakes with right numbers, whose gradients are wrong."""

    def cut(*points: str) -> dict[str, Any]:
        return {f"at {point}": torch.Tensor.detach for point in points}

    keep = "remove the detach() (or .data, no_grad, item)"
    yield from known(
        "gradient", LAYERS,
        ("the state is detached between steps", cut("h", "c"), keep),
        ("the gradient stops between layers", cut("between"), keep),
        ("output is detached", cut("output"), keep),
    )  # fmt: skip
    yield from known(
        "gradient", EVERYWHERE,
        ("h is detached in the gates", cut("h in the gates"), keep),
        ("hx is detached", cut("h_0", "c_0"), keep),
        ("h_0 is detached", cut("h_0"), keep),
        ("the input is detached", cut("x"), keep),
        ("the gradient of h_0 is doubled", {"at h_0": scaled(2)}, "2 * h - h.detach() has twice h's gradient"),
        ("the gradient of the initial state is doubled", {"at h_0": scaled(2), "at c_0": scaled(2)},
         "2 * h - h.detach() has twice h's gradient"),
        ("h_n is detached", cut("h_n"), keep),
        ("h_n and c_n are detached", cut("h_n", "c_n"), keep),
        *((f"{name} is detached", cut(point), keep)
          for name, point in (("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "b_ih"), ("bias_hh", "b_hh"))),
        ("both biases are detached", cut("b_ih", "b_hh"), keep),
    )  # fmt: skip
    yield from known(
        "gradient", "L",
        ("h is detached between steps", cut("h"), keep),
        ("c is detached between steps", cut("c"), keep),
    )  # fmt: skip
    yield from known(
        "gradient", "Ll",
        ("c is detached in h", cut("c in h"), keep),
        ("c_0 is detached", cut("c_0"), keep),
        ("c_n is detached", cut("c_n"), keep),
        *((f"gate {gate} is detached", cut(gate), keep) for gate in "ifgo"),
    )  # fmt: skip
    yield from known(
        "gradient", "Gg",
        *((f"gate {gate} is detached", cut(gate), keep) for gate in "rzn"),
        ("h is detached in the blend", cut("h in the blend"), keep),
    )  # fmt: skip


def derivatives() -> Iterator[Mutant]:
    """List wrong derivatives of the nonlinearities, written by hand."""
    sigmoids = (("s", lambda s: s), ("1 - s", lambda s: 1 - s))
    tanhs = (("1 - y", lambda y: 1 - y), ("y", lambda y: y), ("1 + y * y", lambda y: 1 + y * y))
    yield from known(
        "gradient", "LGlg",
        *((f"the derivative of sigmoid is taken to be {name}", {"sigmoid": with_derivative(torch.sigmoid, wrong)},
           "s * (1 - s)") for name, wrong in sigmoids),
        *((f"the derivative of the candidate's tanh is taken to be {name}",
           {"candidate": with_derivative(torch.tanh, wrong)}, "1 - y * y") for name, wrong in tanhs),
    )  # fmt: skip
    yield from known(
        "gradient", "Ll",
        *((f"the derivative of tanh(c) is taken to be {name}",
           {"emit": emitting(with_derivative(torch.tanh, wrong))}, "1 - y * y")
          for name, wrong in tanhs),
    )  # fmt: skip
    yield from known(
        "gradient", "Rr",
        *((f"the derivative of tanh is taken to be {name}", {"activation": fixed(with_derivative(torch.tanh, wrong))},
           "1 - y * y") for name, wrong in tanhs),
    )  # fmt: skip


def dtypes() -> Iterator[Mutant]:
    """List mistakes of numbers that pass through a narrower dtype."""

    def rounded(*points: str) -> dict[str, Any]:
        return {f"at {point}": through_float32 for point in points}

    yield from known(
        "dtype", EVERYWHERE,
        *((f"{name} passes through float32", rounded(name), ALLOCATE) for name in ("h in the gates", "w_hh", "w_ih")),
    )  # fmt: skip
    yield from known(
        "dtype", LAYERS,
        *(("h passes through float32", rounded("h", *also), ALLOCATE) for also in ((), ("h_n",), ("h_n", "output"))),
        ("output passes through float32", rounded("output"), ALLOCATE),
    )  # fmt: skip
    yield from known(
        "dtype", "L",
        *(("c passes through float32", rounded("c", *also), ALLOCATE) for also in ((), ("c_n",))),
        *(("the state passes through float32", rounded("h", "c", *also), ALLOCATE)
          for also in ((), ("h_n", "c_n"), ("h_n", "c_n", "output"))),
    )  # fmt: skip


def merged(w: Weights, slot: str, example: Example) -> Weights:
    """Move a GRU's b_hn to b_in."""
    if w.b_ih is None or w.b_hh is None:
        return w
    keep = torch.ones_like(w.b_hh)
    keep[..., 2 * keep.size(-1) // 3 :] = 0
    return w._replace(b_ih=w.b_ih + (1 - keep) * w.b_hh, b_hh=keep * w.b_hh)


#: No mistake: a GRU of one bias is torch.nn's with b_hn = 0. What torch.nn has there is added to b_in.
ONE_BIAS = Mutant("one bias", "cell", "Gg", {"read": merged}, planted=False)


def last_step(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
    """Keep the last step of the output alone."""
    steps = -2 if example.batch_first or results["output"].dim() < 3 else -3
    return {"output": results["output"].select(steps, -1)}


#: No mistake in the numbers: what a module shows that returns the last step of its output alone.
LAST_STEP = Mutant("the last step alone", "stack", LAYERS, {"result": last_step}, planted=False)


# What has a constant of its own, to be read off the numbers -----------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Mistakes that are one but for a constant."""

    name: str  # with {k} in it
    initials: str
    knobs: Callable[[float], dict[str, Any]]
    guess: Callable[[dict[str, Tensor], dict[str, Tensor], Example], Tensor]  # of what is seen and what torch.nn shows
    fix: str

    def member(self, k: float) -> Mutant:
        return Mutant(self.name.format(k=f"{k:g}"), "cell", self.initials, self.knobs(k), self.fix, planted=False)


def last(seen: dict[str, Tensor], name: str) -> Tensor:
    """Return h or c after the step, of a layer or a cell."""
    return seen[f"{name}_n"] if f"{name}_n" in seen else seen[f"{name}_1"]


def beside(change: Callable[[State, State], State]) -> dict[str, Any]:
    return {"after": change}


def mixture(k: float, *which: int) -> dict[str, Any]:
    """Keep a share k of the state before the step."""
    return beside(lambda after, before: tuple(
        k * b + (1 - k) * a if n in which else a for n, (a, b) in enumerate(zip(after, before, strict=True))
    ))  # fmt: skip


def share(name: str) -> Callable[..., Tensor]:
    def guess(seen: dict[str, Tensor], true: dict[str, Tensor], example: Example) -> Tensor:
        before = example.hx["hc".index(name)]
        return (last(seen, name) - last(true, name)) / (before - last(true, name))

    return guess


def apart(name: str) -> Callable[..., Tensor]:
    return lambda seen, true, example: last(seen, name) - last(true, name)


def quotient(name: str) -> Callable[..., Tensor]:
    return lambda seen, true, example: last(seen, name) / last(true, name)


def largest(name: str) -> Callable[..., Tensor]:
    return lambda seen, true, example: last(seen, name).abs().max()


def clamped(k: float) -> Callable[[Tensor], Tensor]:
    return real(lambda x: x.clamp(-k, k))


def of_c(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Change c in the step, before h is made of it."""
    return {"cell": lambda i, f, g, c: change(f * c + i * g)}


def of_h(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return beside(lambda after, before: (change(after[0]), *after[1:]))


def of_all_shown(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Guess from the output."""
    return lambda seen, true, example: measure(seen["output"], true["output"])


def forgetting(k: float) -> dict[str, Any]:
    return {"gates": lambda i, f, g, o, c: (i, f + k, g, o)}


def clipped_gates(k: float) -> dict[str, Any]:
    clip = clamped(k)
    return {"sigmoid": lambda x: torch.sigmoid(clip(x)), "candidate": lambda x: torch.tanh(clip(x))}


def constant(k: float) -> Callable[..., Tensor]:
    """Guess k, whatever is seen."""
    return lambda seen, true, example: torch.tensor(k)


FAMILIES = (
    Family("a constant {k} is added to c", "Ll", lambda k: of_c(lambda c: c + k), apart("c"), LEAVE_OUT),
    Family("a constant {k} is added to h", EVERYWHERE, lambda k: of_h(lambda h: h + k), apart("h"), LEAVE_OUT),
    Family("c is multiplied by {k}", "Ll", lambda k: of_c(lambda c: k * c), quotient("c"), LEAVE_OUT),
    Family("h is multiplied by {k}", EVERYWHERE, lambda k: of_h(lambda h: k * h), quotient("h"), LEAVE_OUT),
    Family("the cell is clipped to {k}", "Ll", lambda k: of_c(clamped(k)), largest("c"), LEAVE_OUT),
    Family("h is clipped to {k}", EVERYWHERE, lambda k: of_h(clamped(k)), largest("h"), LEAVE_OUT),
    Family("zoneout: a share {k} of the state before the step is kept", "Ll", lambda k: mixture(k, 0, 1), share("h"),
           LEAVE_OUT),
    Family("zoneout: a share {k} of h before the step is kept", EVERYWHERE, lambda k: mixture(k, 0), share("h"),
           LEAVE_OUT),
    Family("zoneout: a share {k} of c before the step is kept", "Ll", lambda k: mixture(k, 1), share("c"), LEAVE_OUT),
    Family("the output alone is clamped to {k}, not the state", LAYERS, lambda k: of_output(clamped(k)),
           of_all_shown(lambda seen, true: seen.abs().max()), LEAVE_OUT),
    Family("the output alone is multiplied by {k}, not the state", LAYERS, lambda k: of_output(lambda y: k * y),
           of_all_shown(torch.div), LEAVE_OUT),
    Family("a constant {k} is added to the output alone, not to the state", LAYERS,
           lambda k: of_output(lambda y: y + k), of_all_shown(torch.sub), LEAVE_OUT),
    *(Family("what goes into the gates is clipped to {k}", "LGlg", clipped_gates, constant(k), LEAVE_OUT)
      for k in (1, 2, 3, 5, 8, 10, 15, 20, 30)),
    *(Family("forget gate + {k}", "Ll", forgetting, constant(k), "drop the constant, or subtract it from bias_ih[H:2H]")
      for k in (0.5, 2, 3, 5)),
)  # fmt: skip


# What is only planted -------------------------------------------------------------------------------------------------


def other_steps() -> Iterator[Mutant]:
    """List mistakes in a step that diagnosis has no name for."""

    def no_bias(w: Weights) -> Weights:
        return w._replace(b_ih=w.w_ih[:, 0] * 0 + 0.1) if w.b_ih is w.b_hh is None else w

    def few_bits(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return linear(x, w if w.is_complex() else w.bfloat16().to(w.dtype), b)

    yield from planted(
        "cell", EVERYWHERE,
        ("b_ih used for b_hh as well", weights(lambda w: w._replace(b_hh=w.b_ih))),
        ("the last feature of the input ignored", weights(
            lambda w: w._replace(w_ih=torch.cat([w.w_ih[:, :-1], 0 * w.w_ih[:, -1:]], 1)))),
        ("a bias of 0.1 where there is none", weights(no_bias), "nobias"),
        ("h clipped to 0.5", {"at h in the gates": real(lambda h: h.clamp(-0.5, 0.5))}),
        ("products with weights of 16 bits", {"linear": few_bits}),
        ("a kernel for no more than 32 units",
         {"at h in the gates": lambda h: torch.cat([h[..., :32], 0 * h[..., 32:]], -1)}, "wide"),
    )  # fmt: skip
    yield from planted("cell", "L", (
        "h projected, but the recurrence is not", {"project": lambda h, w: torch.tanh(linear(h, w))},
    ))  # fmt: skip
    yield from planted("cell", "Ll", (
        "o looks at c (a peephole)", {"gates": lambda i, f, g, o, c: (i, f, g, o + 0.1 * c)},
    ))  # fmt: skip
    yield from planted(
        "cell", "Gg",
        ("b_hh added where b_ih belongs and b_ih where b_hh does",
         weights(lambda w: w._replace(b_ih=w.b_hh, b_hh=w.b_ih))),
        ("the candidate added, not mixed in", {"blend": lambda z, n, h, r: h + (1 - z) * n}),
    )  # fmt: skip
    yield from planted(
        "cell", "Rr",
        ("the nonlinearity twice", {"activation": lambda own: lambda x: torch.tanh(own(x))}),
        ("the state added to its successor",
         {"after": lambda after, before: tuple(a + 0.1 * b for a, b in zip(after, before, strict=True))}),
        ("leaky relu in place of relu", {"activation": lambda own: own if own is torch.tanh else F.leaky_relu}, "relu"),
    )  # fmt: skip
    yield from map(reordered, (*dict.fromkeys(order for _, order, _ in SYSTEMS if not order.plain), Order("nzr")))


def other_stacks() -> Iterator[Mutant]:
    """List mistakes in states, layers, directions and batches that diagnosis has no name for."""

    def first_steps(run: Any, x: Tensor, sizes: list[int], *rest: Any) -> tuple[Tensor, State]:
        output, state = run(x[: sum(sizes[:32])], sizes[:32], *rest)
        return torch.cat([output, output.new_zeros(len(x) - len(output), output.size(1))]), state

    def late(run: Any, x: Tensor, sizes: list[int], *rest: Any) -> Any:
        steps: tuple[Tensor, ...] = x.split(sizes)  # type: ignore[no-untyped-call]
        inputs = [0 * steps[0], *(before[: len(now)] for before, now in itertools.pairwise(steps))]
        return run(torch.cat(inputs), sizes, *rest)

    def shortcut(run: Any, x: Tensor, sizes: list[int], state: State, *rest: Any) -> Any:
        return run(x, sizes, tuple(0 * s for s in state) if len(sizes) == 1 else state, *rest)

    def steps_first(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
        turned = example.batch_first and results["output"].dim() == 3
        return results | {"output": results["output"].transpose(0, 1)} if turned else results

    yield from planted(
        "stack", EVERYWHERE,
        ("h_n squashed by a tanh", {"at h_n": torch.tanh}),
        ("h0 squashed by a tanh", {"at h_0": torch.tanh}, "hx"),
        ("states of ones when hx is not given", {"zeros": torch.ones_like}, "not hx"),
    )  # fmt: skip
    yield from planted(
        "stack", "Ll",
        ("c_n squashed by a tanh", {"at c_n": torch.tanh}),
        ("c_n clipped to 0.5", {"at c_n": real(lambda c: c.clamp(-0.5, 0.5))}),
        ("c0 squashed by a tanh", {"at c_0": torch.tanh}, "hx"),
    )  # fmt: skip
    yield from planted(
        "stack", LAYERS,
        ("h_n of the last layer for all", {"finish": lambda states, D: [states[-1]] * len(states)}),
        ("h0 of the layers in reverse order", {"start": lambda states, D: [
            (other[0], *own[1:]) for own, other in zip(states, states[::-1], strict=True)]}, "hx"),
        ("the first 32 steps only", {"direction": first_steps}, "long"),
        ("the input of the step before", {"direction": late}),
        ("a shortcut for one step that takes no hx", {"direction": shortcut}, "one_step"),
        ("the directions exchanged", {"direction": lambda run, *given: run(*given[:-1], not given[-1])}),
        ("the weights of the second layer in the third", {"slot": lambda slot, D: slot - D * (slot >= 2 * D)},
         "layers3"),
    )  # fmt: skip
    yield from planted("stack", "L", ("c0 of the last layer for all", {
        "start": lambda states, D: [(h, states[-1][1]) for h, _ in states],
    }, "hx"))  # fmt: skip
    yield from planted(
        "batch", LAYERS,
        ("hx sorted by unsorted_indices", {"enter": lambda h, order, example: picked(h, inverse(order))},
         "packed_unsorted and hx"),
        ("output (L, N, H) under batch_first", {"result": steps_first}, "batch_first"),
    )  # fmt: skip
    yield from planted("batch", "L", ("c_n in the order of the rows: not unsorted", {
        "leave": lambda h, order, name: h if name == "c_n" else picked(h, inverse(order)),
    }, "packed_unsorted"))  # fmt: skip


def other_dropouts() -> Iterator[Mutant]:
    """List functions that stand between two layers in place of F.dropout."""

    def unscaled(x: Tensor, p: float, training: bool) -> Tensor:
        return F.dropout(x, p, training) * ((1 - p) if training else 1)

    def extra_draw(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
        if example.dropout and example.training:
            torch.rand(1)
        return results

    functions = {
        "dropout without 1 / (1 - p)": unscaled,
        "the same dropout mask at every step":
            lambda x, p, training: x * F.dropout(torch.ones_like(x[:1]), p, training),
        "dropout keeps p and drops 1 - p": lambda x, p, training: F.dropout(x, 1 - p, training),
        "dropout of whole vectors": lambda x, p, training: x * F.dropout(torch.ones_like(x[:, :1]), p, training),
        "dropout twice": lambda x, p, training: F.dropout(F.dropout(x, p, training), p, training),
        "dropout scales in eval": lambda x, p, training: F.dropout(x, p, training) * (1 if training else 1 - p),
        "no gradient through dropout's mask": lambda x, p, training: x + (F.dropout(x, p, training) - x).detach(),
        "alpha dropout": lambda x, p, training: x if x.is_complex() else F.alpha_dropout(x, p, training),
    }  # fmt: skip
    where = "dropout and not layers1"
    yield from planted(
        "dropout", LAYERS, *((name, {"dropout": function}, where) for name, function in functions.items())
    )
    yield from planted("dropout", LAYERS, ("one extra draw from the generator", {"result": extra_draw}, "dropout"))


def other_gradients() -> Iterator[Mutant]:
    """List wrong gradients that diagnosis has no name for."""

    def truncated(run: Any, x: Tensor, sizes: list[int], *rest: Any) -> Any:
        cut = sum(sizes[:-3])
        return run(torch.cat([x[:cut].detach(), x[cut:]]), sizes, *rest)

    def finished_detached(run: Any, x: Tensor, sizes: list[int], *rest: Any) -> tuple[Tensor, State]:
        output, state = run(x, sizes, *rest)
        return output, tuple(torch.cat([part[: sizes[-1]], part[sizes[-1] :].detach()]) for part in state)

    def infinite(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return linear(x, w, b) + 0 * linear(x, w).square().sum(-1, keepdim=True).sqrt()

    def forward_only(w: Weights, slot: str, example: Example) -> Weights:
        return lost(w) if slot.endswith("_reverse") else w

    def lost(w: Weights) -> Weights:
        each = (tensor if tensor is None else scaled(0)(tensor) for tensor in w)
        return Weights(*each)  # type: ignore[arg-type]  # what was a tensor is one

    def only_with_weights(run: Any, x: Tensor, sizes: list[int], state: State, w: Weights, reverse: bool) -> Any:
        return run(x if w.w_ih.requires_grad else x.detach(), sizes, state, w, reverse)

    def both(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
        (h, c) = (name for name in results if name != "output")
        joined = Sole.apply(results[h], results[c])  # type: ignore[no-untyped-call]
        return results | dict(zip((h, c), joined, strict=True))

    yield from planted(
        "gradient", EVERYWHERE,
        ("gradient of W_hh 0.1 % off", {"at w_hh": scaled(1.001)}),
        ("gradient of the input 0.1 % off", {"at x": scaled(0.999)}),
        ("gradient of W_ih of the wrong sign", {"at w_ih": scaled(-1)}),
        ("gradient of b_ih twice", {"at b_ih": scaled(2)}),
        ("gradient of b_hh is zero", {"at b_hh": scaled(0)}),
        ("NaN for the gradient of a state of zeros", {"linear": infinite}, "not hx"),
        ("a backward for losses that are a sum", {"at h_n": averaged}),
        ("no gradient of the input unless the weights want one", {"direction": only_with_weights}, "frozen_weights"),
    )  # fmt: skip
    yield from planted(
        "gradient", LAYERS,
        ("backpropagation through the last 3 steps only", {"direction": truncated}),
        ("finished sequences detached", {"direction": finished_detached}, "packed"),
        ("no gradient for the reverse direction's weights", {"read": forward_only}, "bidirectional"),
        ("gradient through h_n lost", {"at h_n": scaled(0)}),
        ("gradient of h0 of the first layer only", {"start": lambda states, D: [
            state if k == 0 else (state[0].detach(), *state[1:]) for k, state in enumerate(states)]}, "hx"),
        ("no gradient of the weights unless the input wants one",
         {"read": lambda w, slot, example: w if example.rows.requires_grad else lost(w)}, "frozen_input"),
    )  # fmt: skip
    yield from planted(
        "gradient",
        "L",
        ("no gradient for W_hr", weights(lambda w: w if w.w_hr is None else w._replace(w_hr=scaled(0)(w.w_hr)))),
    )
    yield from planted(
        "gradient", "Ll",
        ("gradient through c_n lost", {"at c_n": scaled(0)}),
        ("a backward that needs a gradient of h_n and of c_n", {"result": both}, "loss_h_n"),
    )  # fmt: skip
    yield from planted("gradient", "Rr", (
        "tanh's gradient straight through", {"activation": lambda own: lambda x: x + (own(x) - x).detach()},
    ))  # fmt: skip


def other_dtypes() -> Iterator[Mutant]:
    """List mistakes of numbers: of another dtype than torch.nn's, or of less precision."""

    def no_autocast(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("autocast is not supported")
        return linear(x, w, b)

    def widened(x: Tensor) -> Tensor:
        return x.float() if x.itemsize == 2 else x

    def rounded(x: Tensor) -> Tensor:
        return x if torch.is_grad_enabled() or x.is_complex() else x.bfloat16().to(x.dtype)

    yield from planted(
        "dtype", EVERYWHERE,
        ("a float32 buffer in a float64 run", {"linear": lambda x, w, b=None: through_float32(linear(x, w, b))},
         "float64"),
        ("zeros of the default dtype when hx is not given", {"zeros": lambda h: h.to(torch.get_default_dtype())},
         "not hx"),
        ("no autocast", {"linear": no_autocast}, "autocast"),
        ("h_n of 16 bits comes as float32", states(widened, *H_N), "float16"),
    )  # fmt: skip
    yield from planted(
        "dtype", LAYERS,
        ("output of 16 bits comes as float32", states(widened, "output"), "float16"),
        ("output of complex numbers real", states(lambda y: y.real + 0j if y.is_complex() else y, "output"),
         "complex64"),
        ("output rounded to 16 bits under no_grad", states(rounded, "output"), "no_grad or inference"),
    )  # fmt: skip


def memory() -> Iterator[Mutant]:
    """List mistakes with right numbers, in the wrong memory."""

    def in_place(h: Tensor) -> Tensor:
        with torch.no_grad():
            return h.mul_(2).div_(3)

    def view_of_output(results: dict[str, Tensor], example: Example) -> dict[str, Tensor]:
        output, h_n = results["output"], results["h_n"]
        if h_n.dim() < 3 or h_n.size(0) > 1 or not isinstance(example.input, Tensor) or not h_n.numel():
            return results
        return results | {"h_n": (output[:, -1] if example.batch_first else output[-1]).unsqueeze(0)}

    yield from planted(
        "memory", EVERYWHERE,
        ("hx written in place", {"at h_0": in_place}, "hx"),
        ("h_n not contiguous", states(lambda h: h if h.dim() < 2 else h.mT.contiguous().mT, *H_N)),
    )  # fmt: skip
    yield from planted("memory", LAYERS, ("h_n a view of output", {"result": view_of_output}, "layers1 and padded"))


def needles() -> Iterator[Mutant]:
    """List what is a ten-thousandth off, with the right gradient: only the observation that is aimed at shows it."""

    def shared(w: Weights, slot: str, example: Example) -> Weights:
        if not slot.endswith("_reverse"):
            return w
        forward = (example.weights.get(name + slot.removesuffix("_reverse")) for name in NAMES)
        return Weights(*(own if own is None else nudge(own, f) for own, f in zip(w, forward, strict=True)))  # type: ignore[arg-type]

    yield from planted(
        "needle", EVERYWHERE,
        ("h_n a ten-thousandth off", {"at h_n": nudge}),
        ("h0 a ten-thousandth off", {"at h_0": nudge}, "hx"),
        ("a ten-thousandth of the next row in each row of W_hh", {"at w_hh": lambda w: nudge(w, w.roll(1, 0))}),
        ("a ten-thousandth of b_hh in b_ih", weights(
            lambda w: w if w.b_ih is None or w.b_hh is None else w._replace(b_ih=nudge(w.b_ih, w.b_hh)))),
    )  # fmt: skip
    yield from planted(
        "needle", "Ll",
        ("c_n a ten-thousandth off", {"at c_n": nudge}),
        ("c0 a ten-thousandth off", {"at c_0": nudge}, "hx"),
    )  # fmt: skip
    yield from planted(
        "needle", LAYERS,
        ("output a ten-thousandth off", states(nudge, "output")),
        ("a ten-thousandth of the forward weights in the reverse", {"read": shared}, "bidirectional"),
    )  # fmt: skip


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")

LEVELS = ("cell", "stack", "batch", "dropout", "gradient", "dtype", "memory", "contract", "needle")
EVERY = (
    *in_any_step(), *in_a_step_of_an_lstm(), *in_a_step_of_a_gru_or_rnn(), *in_the_rows_of_a_bias(), *other_steps(),
    *layers(), *batches(),
    *other_stacks(), *dropouts(), *other_dropouts(), *gradients(), *derivatives(), *other_gradients(),
    *dtypes(), *other_dtypes(), *memory(), *needles(), *CONDUCT,
)  # fmt: skip
#: Every mistake, level by level. Where two of them mean the same, the first gives the name.
CATALOGUE: tuple[Mutant, ...] = tuple(sorted(EVERY, key=lambda mutant: LEVELS.index(mutant.level)))
