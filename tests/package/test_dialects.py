"""Weights from other systems: each system computes with its own equations what the loaded layer computes.

The systems' side is written here a second time, by hand and from their own code or documentation, never from the table
under test: shapes and slices are numbers, the order of the gates is the order of the slices.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import assert_equal_tensors, product, randn
from numpy import tanh
from torch import nn

import rnnkit
from rnnkit import dialects
from rnnkit.dialects import DIALECTS, dump, load
from rnnkit.equations import EQUATIONS

H_IN, H, L, N = 3, 2, 4, 2  # H_in, H and L are those of the numbers below
REPRESENTABLE = [key for key, row in DIALECTS.items() if not row.refused]
every_row = pytest.mark.parametrize(("system", "kind"), REPRESENTABLE)

#: No number twice, and no two that nearly agree: whatever is read from a wrong place changes the result.
NUMBERS = [
    0.31, -0.74, 0.92, -0.15, 0.58, -1.07, 0.23, 0.81, -0.46, 1.13, -0.88, 0.07, -0.29, 0.66, -0.97, 0.43,
    1.02, -0.52, 0.18, -0.83, 0.71, -0.34, -1.16, 0.49, -0.05, 0.87, -0.62, 0.26, -0.78, 1.09, 0.37, -0.21,
    0.54, -0.93, 0.12, 0.76, -0.41, -0.69, 0.98, -0.09, 0.63, -1.03, 0.34, -0.57, 0.84, 0.01, -0.24, 0.46,
    -0.86, 0.29, -0.38, 1.06, -0.12, 0.68, -0.71, 0.15, 0.95, -0.49, -0.02, 0.51,
]  # fmt: skip
X = np.array([[0.7, -0.4, 0.2], [-0.9, 0.5, 1.1], [0.3, 0.8, -0.6], [-0.1, -1.2, 0.4]])  # (L, H_IN)

Take = Callable[..., np.ndarray]


def literally() -> Take:
    """The next of NUMBERS, in an array of the given shape."""
    numbers = iter(NUMBERS)
    return lambda *shape: np.array([next(numbers) for _ in range(np.prod(shape))]).reshape(shape)


def at_random(seed: int) -> Take:
    generator = np.random.default_rng(seed)
    return lambda *shape: generator.normal(size=shape)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# What the systems say, H = 2 -----------------------------------------------------------------------------------------


def keras_lstm(x, h, c, kernel, recurrent_kernel, bias=0):
    """keras-team/keras, keras/src/layers/rnn/lstm.py: `build`, and `call` with its _compute_carry_and_output_fused."""
    z = x @ kernel + h @ recurrent_kernel + bias
    i, f, o = sigmoid(z[0:2]), sigmoid(z[2:4]), sigmoid(z[6:8])
    c = f * c + i * tanh(z[4:6])
    return o * tanh(c), c


def keras_gru(x, h, c, kernel, recurrent_kernel, bias=((0,) * 6, (0,) * 6)):
    """keras-team/keras, keras/src/layers/rnn/gru.py: reset_after=True, whose bias is (input's, recurrent's)."""
    of_x, of_h = x @ kernel + bias[0], h @ recurrent_kernel + bias[1]
    z = sigmoid(of_x[0:2] + of_h[0:2])
    r = sigmoid(of_x[2:4] + of_h[2:4])
    candidate = tanh(of_x[4:6] + r * of_h[4:6])
    return z * h + (1 - z) * candidate, c


def keras_rnn(x, h, c, kernel, recurrent_kernel, bias=0):
    """keras-team/keras, keras/src/layers/rnn/simple_rnn.py."""
    return tanh(x @ kernel + bias + h @ recurrent_kernel), c


def onnx_lstm(x, h, c, W, R, B=(0,) * 16):
    """onnx/onnx, docs/Operators.md, LSTM: W[iofc], R[iofc], B is [Wb[iofc], Rb[iofc]]; reference/ops/op_lstm.py."""
    i = sigmoid(W[0:2] @ x + R[0:2] @ h + B[0:2] + B[8:10])
    o = sigmoid(W[2:4] @ x + R[2:4] @ h + B[2:4] + B[10:12])
    f = sigmoid(W[4:6] @ x + R[4:6] @ h + B[4:6] + B[12:14])
    candidate = tanh(W[6:8] @ x + R[6:8] @ h + B[6:8] + B[14:16])
    c = f * c + i * candidate
    return o * tanh(c), c


def onnx_gru(x, h, c, W, R, B=(0,) * 12):
    """onnx/onnx, docs/Operators.md, GRU with linear_before_reset != 0: W[zrh], R[zrh], B is [Wb[zrh], Rb[zrh]]."""
    z = sigmoid(W[0:2] @ x + R[0:2] @ h + B[0:2] + B[6:8])
    r = sigmoid(W[2:4] @ x + R[2:4] @ h + B[2:4] + B[8:10])
    candidate = tanh(W[4:6] @ x + r * (R[4:6] @ h + B[10:12]) + B[4:6])
    return (1 - z) * candidate + z * h, c


def onnx_rnn(x, h, c, W, R, B=(0,) * 4):
    """onnx/onnx, docs/Operators.md, RNN: B is [Wbi, Rbi]."""
    return tanh(W @ x + R @ h + B[0:2] + B[2:4]), c


def openvino_lstm(x, h, c, W, R, B):
    """openvinotoolkit/openvino, docs/.../operation-specs/sequence/lstm-sequence-5.rst (gate order fico, B is the sum of
    biases) and lstm-cell-1.rst (the equations)."""
    f = sigmoid(W[0:2] @ x + R[0:2] @ h + B[0:2])
    i = sigmoid(W[2:4] @ x + R[2:4] @ h + B[2:4])
    candidate = tanh(W[4:6] @ x + R[4:6] @ h + B[4:6])
    o = sigmoid(W[6:8] @ x + R[6:8] @ h + B[6:8])
    c = f * c + i * candidate
    return o * tanh(c), c


def tf1_lstm(x, h, c, kernel, bias, forget_bias=1.0):
    """tensorflow/tensorflow, tensorflow/python/ops/rnn_cell_impl.py, BasicLSTMCell: i, j, f, o of [inputs, h]."""
    z = np.concatenate([x, h]) @ kernel + bias
    i, j, f, o = z[0:2], z[2:4], z[4:6], z[6:8]
    c = c * sigmoid(f + forget_bias) + sigmoid(i) * tanh(j)
    return tanh(c) * sigmoid(o), c


def haiku_lstm(x, h, c, w, b):
    """google-deepmind/dm-haiku, haiku/_src/recurrent.py, LSTM: one Linear of [inputs, prev_h], split i, g, f, o."""
    z = np.concatenate([x, h]) @ w + b
    i, g, f, o = z[0:2], z[2:4], z[4:6], z[6:8]
    c = sigmoid(f + 1) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def sonnet_lstm(x, h, c, w_i, w_h, b):
    """google-deepmind/sonnet (version 2), sonnet/src/recurrent.py, _lstm_fn: i, f, g, o. Its forget_bias is in b."""
    z = x @ w_i + h @ w_h + b
    i, f, g, o = z[0:2], z[2:4], z[4:6], z[6:8]
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def coreml_lstm(x, h, c, weight_ih, weight_hh, bias=0):
    """apple/coremltools, coremltools/converters/mil/mil/ops/defs/iOS15/recurrent.py, lstm: input, forget, output, cell
    ("ifoz layout"); the bias is the sum of two."""
    gates = weight_ih @ x + weight_hh @ h + bias
    i, f, o, z = sigmoid(gates[0:2]), sigmoid(gates[2:4]), sigmoid(gates[4:6]), tanh(gates[6:8])
    c = f * c + i * z
    return o * tanh(c), c


def chainer_lstm(x, h, c, **links):
    """chainer/chainer, chainer/functions/rnn/lstm.py, _extract_gates: a, i, f, o of each unit lie together;
    chainer/links/rnn/lstm.py: `upward` has a bias, `lateral` none."""
    z = links["upward.W"] @ x + links["upward.b"] + links["lateral.W"] @ h
    a, i, f, o = z[[0, 4]], z[[1, 5]], z[[2, 6]], z[[3, 7]]
    c = tanh(a) * sigmoid(i) + c * sigmoid(f)
    return sigmoid(o) * tanh(c), c


def ncps_lstm(x, h, c, **maps):
    """mlech26l/ncps, ncps/torch/lstm.py: chunks are i (through tanh), ig, fg, og; `recurrent_map` has no bias."""
    z = maps["input_map.weight"] @ x + maps["input_map.bias"] + maps["recurrent_map.weight"] @ h
    i, ig, fg, og = z[0:2], z[2:4], z[4:6], z[6:8]
    c = c * sigmoid(fg + 1.0) + tanh(i) * sigmoid(ig)
    return tanh(c) * sigmoid(og), c


def tracetorch_lstm(x, h, c, **layers):
    """Yegor-men/tracetorch, tracetorch/rnn/_lstm.py: one Linear of [H, x], the state first; chunks i, f, o, g."""
    z = layers["gate_layers.weight"] @ np.concatenate([h, x]) + layers["gate_layers.bias"]
    i, f, o, g = sigmoid(z[0:2]), sigmoid(z[2:4]), sigmoid(z[4:6]), tanh(z[6:8])
    c = f * c + i * g
    return o * tanh(c), c


class System(NamedTuple):
    """One step as the system computes it, and a layer's arrays as the system shapes them for n inputs and 2 units."""

    step: Callable[..., tuple[np.ndarray, np.ndarray]]
    arrays: Callable[[Take, int], dict[str, np.ndarray]]
    leading: bool = False  # the arrays have a first dimension of directions, which `arrays` leaves out
    given: dict[str, Any] = {}
    optional_bias: bool = False


SYSTEMS = {
    ("keras", "LSTM"): System(
        keras_lstm, lambda take, n: {"kernel": take(n, 8), "recurrent_kernel": take(2, 8), "bias": take(8)},
        optional_bias=True,
    ),
    ("keras", "GRU"): System(
        keras_gru, lambda take, n: {"kernel": take(n, 6), "recurrent_kernel": take(2, 6), "bias": take(2, 6)},
        optional_bias=True,
    ),
    ("keras", "RNN"): System(
        keras_rnn, lambda take, n: {"kernel": take(n, 2), "recurrent_kernel": take(2, 2), "bias": take(2)},
        optional_bias=True,
    ),
    ("onnx", "LSTM"): System(
        onnx_lstm, lambda take, n: {"W": take(8, n), "R": take(8, 2), "B": take(16)}, leading=True, optional_bias=True,
    ),
    ("onnx", "GRU"): System(
        onnx_gru, lambda take, n: {"W": take(6, n), "R": take(6, 2), "B": take(12)}, leading=True, optional_bias=True,
        given={"linear_before_reset": 1},
    ),
    ("onnx", "RNN"): System(
        onnx_rnn, lambda take, n: {"W": take(2, n), "R": take(2, 2), "B": take(4)}, leading=True, optional_bias=True,
    ),
    ("openvino", "LSTM"): System(
        openvino_lstm, lambda take, n: {"W": take(8, n), "R": take(8, 2), "B": take(8)}, leading=True,
    ),
    ("tf1", "LSTM"): System(tf1_lstm, lambda take, n: {"kernel": take(n + 2, 8), "bias": take(8)}),
    ("haiku", "LSTM"): System(haiku_lstm, lambda take, n: {"w": take(n + 2, 8), "b": take(8)}),
    ("sonnet", "LSTM"): System(sonnet_lstm, lambda take, n: {"w_i": take(n, 8), "w_h": take(2, 8), "b": take(8)}),
    ("coreml", "LSTM"): System(
        coreml_lstm, lambda take, n: {"weight_ih": take(8, n), "weight_hh": take(8, 2), "bias": take(8)},
        optional_bias=True,
    ),
    ("chainer", "LSTM"): System(
        chainer_lstm, lambda take, n: {"upward.W": take(8, n), "lateral.W": take(8, 2), "upward.b": take(8)},
    ),
    ("ncps", "LSTM"): System(
        ncps_lstm,
        lambda take, n: {
            "input_map.weight": take(8, n), "recurrent_map.weight": take(8, 2), "input_map.bias": take(8),
        },
    ),
    ("tracetorch", "LSTM"): System(
        tracetorch_lstm, lambda take, n: {"gate_layers.weight": take(8, 2 + n), "gate_layers.bias": take(8)},
    ),
}  # fmt: skip


def unroll(step: Callable, x: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The outputs (L, H) of one layer and direction from a state of zeros."""
    h, c, outputs = np.zeros(H), np.zeros(H), []
    for x_t in x:
        h, c = step(x_t, h, c, **arrays)
        outputs.append(h)
    return np.stack(outputs)


def unroll_all(system: System, x: np.ndarray, slots: list[list[dict[str, np.ndarray]]]) -> np.ndarray:
    """The outputs (L, D*H) of layers of one or two directions, of which the second sees the steps turned round."""
    for directions in slots:
        outputs = [unroll(system.step, x, directions[0])]
        if len(directions) == 2:
            outputs.append(unroll(system.step, x[::-1], directions[1])[::-1])
        x = np.concatenate(outputs, 1)
    return x


def weights(system: System, directions: int = 1, layers: int = 1, seed: int = 0) -> list[list[dict[str, np.ndarray]]]:
    """Random arrays of each layer and direction."""
    take = at_random(seed)
    sizes = [H_IN] + [directions * H] * (layers - 1)
    return [[system.arrays(take, n) for _ in range(directions)] for n in sizes]


def as_layers(system: System, slots: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """The list that `load` takes."""
    if system.leading:
        return [{name: np.stack([slot[name] for slot in pair]) for name in pair[0]} for pair in slots]
    return [arrays for pair in slots for arrays in pair]


def outputs_of(module: Any, x: np.ndarray) -> np.ndarray:
    return module(torch.tensor(x).unsqueeze(1))[0].squeeze(1).detach().numpy()


def assert_agree(expected: np.ndarray, seen: np.ndarray, case: str) -> None:
    seen, expected = ({"output": torch.from_numpy(output)} for output in (seen, expected))
    assert_equal_tensors(seen, expected, 1e-14, case)


def example(system: str, kind: str) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """The literal arrays as `load` takes them, and the outputs that the system's equations give for X."""
    spoken = SYSTEMS[system, kind]
    slots = [[spoken.arrays(literally(), H_IN)]]
    return as_layers(spoken, slots), unroll_all(spoken, X, slots)


def test_every_row_has_an_example_written_by_hand():
    assert sorted(SYSTEMS) == sorted(REPRESENTABLE)


@every_row
def test_literal_weights_compute_what_the_systems_own_equations_say(system, kind):
    layers, expected = example(system, kind)
    module = load(system, kind, layers, **SYSTEMS[system, kind].given)
    assert (module.input_size, module.hidden_size) == (H_IN, H)
    assert_agree(expected, outputs_of(module, X), f"{system} {kind}")


@every_row
def test_two_gates_swapped_in_a_row_are_seen_by_its_example(system, kind, monkeypatch):
    row, (layers, expected) = DIALECTS[system, kind], example(system, kind)
    for a, b in itertools.combinations(row.gates, 2):
        swapped = row.gates.translate(str.maketrans(a + b, b + a))
        monkeypatch.setitem(DIALECTS, (system, kind), replace(row, gates=swapped))
        seen = outputs_of(load(system, kind, layers, **SYSTEMS[system, kind].given), X)
        assert np.abs(seen - expected).max() > 0.01, f"{system} {kind}: {swapped} computes what {row.gates} does"


@every_row
@pytest.mark.parametrize("size", product(directions=[1, 2], layers=[1, 2]), ids=str)
def test_layers_and_directions_come_in_the_systems_order(system, kind, size):
    spoken = SYSTEMS[system, kind]
    slots = weights(spoken, **size)
    module = load(system, kind, as_layers(spoken, slots), bidirectional=size["directions"] == 2, **spoken.given)
    assert_agree(unroll_all(spoken, X, slots), outputs_of(module, X), f"{system} {kind} {size}")


def test_the_forget_bias_that_is_given_is_added():
    (arrays,) = weights(SYSTEMS["tf1", "LSTM"])[0]
    expected = unroll(lambda *args, **given: tf1_lstm(*args, **given, forget_bias=-0.5), X, arrays)
    assert_agree(expected, outputs_of(load("tf1", "LSTM", [arrays], forget_bias=-0.5), X), "tf1, forget_bias -0.5")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_forget_bias_that_no_dtype_holds_comes_off_again_to_the_bit(dtype):
    (arrays,) = as_layers(SYSTEMS["tf1", "LSTM"], weights(SYSTEMS["tf1", "LSTM"]))
    arrays = {name: torch.tensor(array).to(dtype) for name, array in arrays.items()}
    (again,) = dump("tf1", load("tf1", "LSTM", [arrays], forget_bias=0.1), forget_bias=0.1)
    for name, array in arrays.items():
        assert_equal(array, again[name], f"tf1, forget_bias 0.1, {name}")


def test_a_layer_of_the_base_class_is_dumped_too():
    module = rnnkit.RNNBase("RNN_RELU", H_IN, H, dtype=torch.float64)
    other = load("keras", "RNN", dump("keras", module, activation="relu"), activation="relu")
    assert_agree(outputs_of(module, X), outputs_of(other, X), "keras RNN, relu")


# There and back ------------------------------------------------------------------------------------------------------


def assert_equal(before: Any, after: Any, case: str) -> None:
    assert_equal_tensors({"array": torch.as_tensor(after)}, {"array": torch.as_tensor(before)}, case=case)


@every_row
@pytest.mark.parametrize("size", product(directions=[1, 2], layers=[1, 2]), ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_was_loaded_is_dumped_again_to_the_bit(system, kind, size, dtype):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken, **size))
    layers = [{name: torch.tensor(array).to(dtype) for name, array in arrays.items()} for arrays in layers]
    given = spoken.given | {"bidirectional": size["directions"] == 2}
    module = load(system, kind, layers, **given)
    again = dump(system, module, **spoken.given)
    assert len(again) == len(layers)
    for k, (before, after) in enumerate(zip(layers, again, strict=True)):
        assert list(after) == list(before)
        for name in before:
            assert_equal(before[name], after[name], f"{system} {kind}, entry {k}, {name}")
    for (name, before), after in zip(
        module.named_parameters(), load(system, kind, again, **given).parameters(), strict=True
    ):
        assert_equal(before.detach(), after.detach(), f"{system} {kind}, {name}")


@every_row
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", product(bidirectional=[False, True], num_layers=[1, 2]), ids=str)
def test_a_layer_survives_the_way_through_a_dialect(system, kind, bias, size):
    """Matrices to the bit; of biases a system that has one gets the sum, which rounds."""
    spoken = SYSTEMS[system, kind]
    module = getattr(rnnkit, kind)(H_IN, H, **size, bias=bias, dtype=torch.float64)
    other = load(system, kind, dump(system, module), bidirectional=size["bidirectional"], **spoken.given)
    assert other.bias == (bias or not spoken.optional_bias)
    for name, weight in module.named_parameters():
        if name.startswith("weight"):
            assert_equal(weight.detach(), getattr(other, name).detach(), f"{system} {kind}, {name}")
    assert_agree(outputs_of(module, X), outputs_of(other, X), f"{system} {kind} {size}, bias={bias}")


@every_row
def test_dumped_tensors_are_new(system, kind):
    module = getattr(rnnkit, kind)(H_IN, H, dtype=torch.float64)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for array in dump(system, module)[0].values():
        array.zero_()
    for name, weight in module.named_parameters():
        assert_equal(before[name], weight.detach(), f"{system} {kind}, {name}")


@pytest.mark.parametrize("system", ["keras", "onnx"])
def test_relu_is_a_nonlinearity_too(system):
    module = rnnkit.RNN(H_IN, H, nonlinearity="relu", dtype=torch.float64)
    given = {"activation": "relu"} if system == "keras" else {"activations": ["Relu"]}
    other = load(system, "RNN", dump(system, module), **given)
    assert other.nonlinearity == "relu"
    assert_agree(outputs_of(module, X), outputs_of(other, X), f"{system} RNN, relu")


@every_row
def test_nan_and_infinity_are_data(system, kind):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken))
    for array in layers[0].values():
        array.flat[0], array.flat[1] = float("nan"), float("-inf")
    again = dump(system, load(system, kind, layers, **spoken.given), **spoken.given)
    for name, array in layers[0].items():
        assert_equal(array, again[0][name], f"{system} {kind}, {name}")


@every_row
@pytest.mark.filterwarnings("error")
def test_arrays_may_be_numpys_lists_or_tensors(system, kind):
    """Those that can't be written, as JAX gives them, are read without a warning."""
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken))
    expected = load(system, kind, layers, **spoken.given).float()
    for array in layers[0].values():
        array.flags.writeable = False
    for make in (np.float32, np.ndarray.tolist, torch.tensor, np.asfortranarray):
        module = load(system, kind, [{name: make(array) for name, array in layers[0].items()}], **spoken.given)
        for (name, before), after in zip(expected.named_parameters(), module.float().parameters(), strict=True):
            assert_equal(before.detach(), after.detach(), f"{system} {kind}, {name} from {make}")


@every_row
def test_a_loaded_layer_shares_no_memory_with_the_arrays(system, kind):
    spoken = SYSTEMS[system, kind]
    layers = [
        {name: torch.tensor(array) for name, array in arrays.items()} for arrays in as_layers(spoken, weights(spoken))
    ]
    module = load(system, kind, layers, **spoken.given)
    before = outputs_of(module, X)
    for array in layers[0].values():
        array.zero_()
    assert_agree(before, outputs_of(module, X), f"{system} {kind}")


# Biases that are not there -------------------------------------------------------------------------------------------


def without(layers: list[dict[str, Any]], k: int, name: str, as_none: bool = False) -> list[dict[str, Any]]:
    """The same arrays, with one of entry k left out, or there as None."""
    fewer = {key: array for key, array in layers[k].items() if key != name} | ({name: None} if as_none else {})
    return [*layers[:k], fewer, *layers[k + 1 :]]


@every_row
@pytest.mark.parametrize("as_none", [False, True])
def test_a_bias_may_be_absent_where_the_system_has_such_layers(system, kind, as_none):
    """Keras: use_bias=False; ONNX and CoreML: optional, "assumed to be 0". The others always have one."""
    spoken = SYSTEMS[system, kind]
    slots = weights(spoken)
    name = list(slots[0][0])[-1]
    layers = without(as_layers(spoken, slots), 0, name, as_none)
    if not spoken.optional_bias:
        with pytest.raises(
            ValueError, match=f"^{system} {kind}, layer 0: got the arrays .*; expected .*{re.escape(name)}"
        ):
            load(system, kind, layers, **spoken.given)
        return
    module = load(system, kind, layers, **spoken.given)
    assert not module.bias
    assert_agree(unroll_all(spoken, X, [without(slots[0], 0, name)]), outputs_of(module, X), f"{system} {kind}")
    assert list(dump(system, module, **spoken.given)[0]) == list(slots[0][0])[:-1]


@pytest.mark.parametrize(("system", "kind"), [key for key in SYSTEMS if SYSTEMS[key].optional_bias])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_bias_that_one_layer_lacks_is_zeros_there(system, kind, layer):
    spoken = SYSTEMS[system, kind]
    slots = weights(spoken, layers=2)
    name = list(slots[0][0])[-1]
    module = load(system, kind, without(as_layers(spoken, slots), layer, name), **spoken.given)
    assert module.bias
    slots[layer] = without(slots[layer], 0, name)
    assert_agree(unroll_all(spoken, X, slots), outputs_of(module, X), f"{system} {kind}, layer {layer} without {name}")


# Arrays that don't fit -----------------------------------------------------------------------------------------------

#: Ways to misshape an array, by name; those that leave this one as it is are skipped.
MISSHAPEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned": lambda array: array.swapaxes(-1, -2) if array.ndim > 1 else array,
    "one row more": lambda array: np.concatenate([array, array[..., :1, :]], -2) if array.ndim > 1 else array,
    "one column more": lambda array: np.concatenate([array, array[..., :1]], -1),
    "one column less": lambda array: array[..., :-1],
    "twice as long": lambda array: np.concatenate([array, array], -1),
    "twice as high": lambda array: np.concatenate([array, array], -2) if array.ndim > 1 else array,
    "half as long": lambda array: array[..., : array.shape[-1] // 2],
    "flat": np.ravel,
    "a dimension more": lambda array: array[..., None],
    "a leading dimension": lambda array: array[None],
    "a number": lambda array: array.flat[0],
    "empty": lambda array: array[..., :0],
}


def is_another_input_size(spoken: System, directions: int, name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array of the first layer and direction has the right shape for another H_in."""
    leads = (directions,) if spoken.leading else ()
    return any(shape == (*leads, *spoken.arrays(at_random(0), n)[name].shape) for n in range(1, 20))


@every_row
@pytest.mark.parametrize("size", product(directions=[1, 2], layers=[1, 2]), ids=str)
@pytest.mark.parametrize("way", MISSHAPEN)
def test_an_array_of_another_shape_is_refused_by_name(system, kind, size, way):
    """Every array of every layer and direction in turn. An input kernel may say another H_in, if it alone says it."""
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken, **size))
    per_layer = 1 if spoken.leading else size["directions"]
    for k, name in itertools.product(range(len(layers)), layers[0]):
        wrong = MISSHAPEN[way](layers[k][name])
        kernel_of_the_first = k == 0 and name == next(iter(layers[0]))
        fits = kernel_of_the_first and is_another_input_size(spoken, size["directions"], name, np.shape(wrong))
        if np.shape(wrong) == layers[k][name].shape or (fits and per_layer == 1):
            continue
        place = f"layer {k // per_layer}" + (f", {('forward', 'reverse')[k % per_layer]}" if per_layer == 2 else "")
        case = f"{system} {kind} {size}, {place}: {name} {way}, {np.shape(wrong)}"
        given = [*layers[:k], layers[k] | {name: wrong}, *layers[k + 1 :]]
        with pytest.raises(ValueError, match=r"has shape .* expected ") as refusal:
            pytest.fail(
                f"{case} gave {load(system, kind, given, bidirectional=size['directions'] == 2, **spoken.given)}"
            )
        if not kernel_of_the_first:  # whose sizes others are held against
            said = f"{system} {kind}, {place}: {name} has shape {np.shape(wrong)}, expected ("
            assert str(refusal.value).startswith(said), f"{case}: {refusal.value}"


def zeros(**shapes: Any) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("system", "kind", "arrays", "message"),
    [
        (
            "openvino", "LSTM", zeros(W=(1, 16, 3), R=(1, 16, 4), B=(1, 32)),  # ONNX's B
            "layer 0: B has shape (1, 32), expected (D, 4*H) = (1, 16)",
        ),
        ("tf1", "LSTM", zeros(kernel=(16, 7), bias=16), "layer 0: kernel has shape (16, 7), expected (H_in + H, 4*H)"),
        ("tf1", "LSTM", zeros(kernel=(3, 16), bias=16), "layer 0: kernel has shape (3, 16), expected (H_in + H, 4*H)"),
        (
            "keras", "LSTM", zeros(kernel=(3, 16), recurrent_kernel=(4, 19), bias=16),
            "layer 0: recurrent_kernel has shape (4, 19), expected (H, 4*H) = (4, 16)",
        ),
        (
            "keras", "LSTM", zeros(kernel=(3, 16), recurrent_kernel=(4, 16), bias=32),
            "layer 0: bias has shape (32,), expected (4*H) = (16,)",
        ),
        (
            "keras", "LSTM", zeros(kernel=(16, 3), recurrent_kernel=(16, 4), bias=16),  # torch's own arrays
            "layer 0: kernel has shape (16, 3), expected (H_in, 4*H) = (16, 4)",
        ),
        (
            "keras", "GRU", zeros(kernel=(3, 12), recurrent_kernel=(4, 12), bias=24),  # CuDNNGRU's bias
            "layer 0: bias has shape (24,), expected (2, 3*H)",
        ),
        (
            "keras", "LSTM", zeros(kernel=(3, 16), recurrent_kernel=16, bias=16),
            "layer 0: recurrent_kernel has shape (16,), expected (H, 4*H)",
        ),
        (
            "keras", "LSTM", zeros(kernel=(3, 0), recurrent_kernel=(0, 0), bias=0),
            "layer 0: kernel has shape (3, 0), expected (H_in, 4*H)",
        ),
        (
            "keras", "LSTM", zeros(kernel=(0, 16), recurrent_kernel=(4, 16), bias=16),
            "layer 0: kernel has shape (0, 16), expected (H_in, 4*H)",
        ),
        (
            "onnx", "GRU", zeros(W=(12, 3), R=(12, 4), B=24),
            "layer 0: W has shape (12, 3), expected (D, 3*H, H_in)",
        ),
        (
            "onnx", "RNN", zeros(W=(2, 4, 3), R=(2, 4, 4), B=(2, 8)),  # of two directions
            "layer 0: W has shape (2, 4, 3), expected (D, H, H_in) = (1, 4, 3)",
        ),
        (
            "tracetorch", "LSTM", {"gate_layers.weight": np.zeros((7, 16)), "gate_layers.bias": np.zeros(16)},
            "layer 0: gate_layers.weight has shape (7, 16), expected (4*H, H + H_in)",
        ),
    ],
)  # fmt: skip
def test_arrays_of_another_system_are_refused_by_name(system, kind, arrays, message):
    with pytest.raises(ValueError, match=re.escape(f"{system} {kind}, {message}")):
        load(system, kind, [arrays], **SYSTEMS[system, kind].given)


@every_row
@pytest.mark.parametrize("directions", [1, 2])
def test_layers_whose_sizes_do_not_follow_from_each_other_are_refused(system, kind, directions):
    """Layer 1 takes D*H inputs, H as layer 0 has it: here it has those of the other number of directions."""
    spoken = SYSTEMS[system, kind]
    take = at_random(0)
    slots = [[spoken.arrays(take, n) for _ in range(directions)] for n in (H_IN, (3 - directions) * H)]
    name = next(iter(slots[0][0]))
    direction = ", forward" if directions == 2 and not spoken.leading else ""
    with pytest.raises(ValueError, match=f"^{system} {kind}, layer 1{direction}: {re.escape(name)} has shape"):
        load(system, kind, as_layers(spoken, slots), bidirectional=directions == 2, **spoken.given)


@every_row
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex128], ids=str)
def test_weights_that_are_no_floats_are_refused_by_name(system, kind, dtype):
    spoken = SYSTEMS[system, kind]
    layers = [
        {name: torch.tensor(array) for name, array in arrays.items()}
        for arrays in as_layers(spoken, weights(spoken, layers=2))
    ]
    for name, array in layers[1].items():
        given = [layers[0], layers[1] | {name: array.to(dtype)}]
        with pytest.raises(ValueError, match=f"^{system} {kind}, layer 1: {re.escape(name)} is {dtype}, expected"):
            load(system, kind, given, **spoken.given)


@every_row
def test_arrays_of_different_dtypes_are_refused_by_name(system, kind):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken, layers=2))
    for name, array in layers[1].items():
        given = [layers[0], layers[1] | {name: array.astype(np.float32)}]
        said = f"^{system} {kind}, layer 1: {re.escape(name)} is torch.float32, expected .* the same for all"
        with pytest.raises(ValueError, match=said):
            load(system, kind, given, **spoken.given)


@every_row
@pytest.mark.parametrize("junk", ["a path", {1.0}, [[1.0], [1.0, 2.0]], {"an": "array"}], ids=str)
def test_what_is_no_array_is_refused_by_name(system, kind, junk):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken))
    for name in layers[0]:
        with pytest.raises(
            ValueError, match=f"^{system} {kind}, layer 0: {re.escape(name)} is not an array of numbers"
        ):
            load(system, kind, [layers[0] | {name: junk}], **spoken.given)


@every_row
@pytest.mark.parametrize("as_none", [False, True])
def test_a_missing_kernel_is_refused_by_name(system, kind, as_none):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken, layers=2))
    for name in list(layers[1])[:-1]:
        there = ", ".join(key for key in layers[1] if key != name)
        said = f"^{system} {kind}, layer 1: got the arrays {there}; expected {re.escape(', '.join(layers[0]))}$"
        with pytest.raises(ValueError, match=said):
            load(system, kind, without(layers, 1, name, as_none), **spoken.given)


@every_row
def test_an_array_that_the_system_does_not_have_is_refused_by_name(system, kind):
    """A name mistyped would else be a bias of zeros, an array of more than the system can say would be dropped."""
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken, layers=2))
    with pytest.raises(ValueError, match=f"^{system} {kind}, layer 1: got the arrays .*, Bias; expected"):
        load(system, kind, [layers[0], layers[1] | {"Bias": np.zeros(8)}], **spoken.given)
    load(system, kind, [layers[0] | {"Bias": None}, layers[1]], **spoken.given)


@every_row
@pytest.mark.parametrize("junk", [None, 3, "kernel", {"kernel": 1}, [None], [[1.0]], ["kernel"], {1}, []], ids=str)
def test_what_is_no_list_of_dictionaries_is_refused(system, kind, junk):
    with pytest.raises(ValueError, match=f"^{system} {kind}: layers should be a list of dictionaries"):
        load(system, kind, junk, **SYSTEMS[system, kind].given)


@every_row
def test_a_wrong_number_of_directions_is_refused(system, kind):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken))
    said = r"has shape \(1, .* expected \(D, .* = \(2, " if spoken.leading else "1 sets of arrays are not 2 for each"
    with pytest.raises(ValueError, match=f"^{system} {kind}.*{said}"):
        load(system, kind, layers, bidirectional=True, **spoken.given)


@every_row
def test_nothing_is_built_before_everything_is_checked(system, kind, monkeypatch):
    spoken = SYSTEMS[system, kind]
    layers = as_layers(spoken, weights(spoken, layers=2))
    monkeypatch.setattr(dialects, kind, lambda *_, **__: pytest.fail("built"))
    for name in layers[1]:
        with pytest.raises(ValueError, match=re.escape(name)):
            load(system, kind, [layers[0], layers[1] | {name: layers[1][name][..., :-1]}], **spoken.given)


# What can't be represented -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "kind", "given", "reason"),
    [
        ("keras", "GRU", {"reset_after": False}, "before the product"),
        ("keras", "LSTM", {"recurrent_activation": "hard_sigmoid"}, "sigmoids"),
        ("keras", "RNN", {"activation": "sigmoid"}, "tanh and relu"),
        ("onnx", "GRU", {}, "before the product"),
        ("onnx", "GRU", {"linear_before_reset": 0}, "before the product"),
        ("onnx", "LSTM", {"P": np.zeros((1, 3 * H))}, "do not see the cell"),
        ("onnx", "LSTM", {"input_forget": 1}, "of its own"),
        ("onnx", "LSTM", {"clip": 3.0}, "does not clip"),
        ("onnx", "LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "sigmoids"),
        ("onnx", "LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Relu"]}, "sigmoids"),
        ("onnx", "RNN", {"activations": ["Tanh", "Relu"]}, "tanh and relu"),
        ("openvino", "LSTM", {"activations": ["sigmoid", "relu", "tanh"]}, "sigmoids"),
        ("openvino", "LSTM", {"clip": 3.0}, "does not clip"),
        ("tf1", "LSTM", {"use_peepholes": True}, "do not see the cell"),
        ("coreml", "LSTM", {"peephole": [0.0]}, "do not see the cell"),
        ("coreml", "LSTM", {"clip": 0.0}, "does not clip"),
        ("tf1", "GRU", {}, "before the product"),
        ("haiku", "GRU", {}, "before the product"),
        ("sonnet", "GRU", {}, "before the product"),
        ("chainer", "GRU", {}, "before the product"),
    ],
)
def test_what_torch_cannot_represent_is_refused(system, kind, given, reason):
    """Of the GRUs: tensorflow's rnn_cell_impl.py, haiku's and sonnet's recurrent.py, chainer's links/rnn/gru.py."""
    spoken = SYSTEMS.get((system, kind))
    layers = as_layers(spoken, weights(spoken)) if spoken else []
    with pytest.raises(ValueError, match=f"{system} {kind} .*cannot be represented: .*{reason}"):
        load(system, kind, layers, **given)


@pytest.mark.parametrize(
    ("system", "kind", "given"),
    [
        ("onnx", "LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh"] * 2, "clip": float("inf")}),
        ("onnx", "LSTM", {"activations": None, "P": None, "input_forget": 0, "activation_alpha": []}),
        ("onnx", "GRU", {"activations": ["Sigmoid", "Tanh"] * 2, "linear_before_reset": 1}),
        ("onnx", "RNN", {"activations": ["Tanh", "Tanh"]}),
        ("onnx", "RNN", {"activations": None}),
        ("openvino", "LSTM", {"activations": ["sigmoid", "tanh", "tanh"], "clip": float("inf")}),
        ("coreml", "LSTM", {"clip": float("inf"), "peephole": None}),
        ("tf1", "LSTM", {"forget_bias": 1, "activation": "tanh", "use_peepholes": False}),
    ],
)
def test_what_says_the_default_in_other_words_is_taken(system, kind, given):
    """ONNX lists the activations of two directions one after the other; no bound is an infinite bound."""
    spoken = SYSTEMS[system, kind]
    slots = weights(spoken)
    module = load(system, kind, as_layers(spoken, slots), **given)
    assert_agree(unroll_all(spoken, X, slots), outputs_of(module, X), f"{system} {kind} {given}")


def test_an_rnns_activations_of_both_directions_are_one():
    module = rnnkit.RNN(H_IN, H, nonlinearity="relu", bidirectional=True)
    for listed in (["Relu"], ["Relu", "Relu"]):
        given = {"activations": listed}
        other = load("onnx", "RNN", dump("onnx", module, **given), bidirectional=True, **given)
        assert other.nonlinearity == "relu"


@pytest.mark.parametrize(
    ("system", "kind", "given"),
    [("tf1", "LSTM", {"forget_bias": value}) for value in (None, "1", True, [1.0])] + [("keras", "LSTM", {"P": 1})],
)
def test_attributes_that_have_no_meaning_are_refused(system, kind, given):
    spoken = SYSTEMS[system, kind]
    (name,) = given
    with pytest.raises(TypeError, match=f"{system} {kind}.*{name}"):
        load(system, kind, as_layers(spoken, weights(spoken)), **given)


def test_unknown_systems_and_projections_are_refused():
    with pytest.raises(ValueError, match="no dialect theano LSTM; there are keras LSTM"):
        load("theano", "LSTM", [])
    with pytest.raises(ValueError, match="neither projections"):
        dump("keras", rnnkit.LSTM(H_IN, H, proj_size=1))


@pytest.mark.parametrize(
    ("junk", "said"),
    [
        (None, "NoneType"),
        (rnnkit.LSTM, "the class LSTM"),
        (nn.Linear(1, 1), "Linear"),
        ([rnnkit.LSTM(1, 1)], "list"),
        (nn.LSTM(1, 1), "LSTM"),
        (nn.GRUCell(1, 1), "GRUCell"),
        (rnnkit.GRUCell(1, 1), "GRUCell"),
    ],
    ids=repr,
)
def test_dump_says_what_it_takes(junk, said):
    with pytest.raises(TypeError, match=rf"dump takes an rnnkit\.LSTM, GRU or RNN; rnnkit\.convert.*, got: {said}$"):
        dump("keras", junk)


@pytest.mark.parametrize(("system", "given"), [("keras", {"activation": "tanh"}), ("onnx", {"activations": ["Tanh"]})])
def test_dump_refuses_an_activation_that_the_module_does_not_have(system, given):
    with pytest.raises(ValueError, match="the module's activation is relu, not tanh"):
        dump(system, rnnkit.RNN(H_IN, H, nonlinearity="relu"), **given)


def test_dump_does_not_take_an_equation_of_ones_own_for_the_one_its_name_begins_with(monkeypatch):
    monkeypatch.setitem(EQUATIONS, "GRU_OF_MINE", EQUATIONS["GRU"])
    with pytest.raises(ValueError, match="no dialect keras GRU_OF_MINE"):
        dump("keras", rnnkit.RNNBase("GRU_OF_MINE", H_IN, H))


def test_dump_refuses_complex_weights():
    with pytest.raises(ValueError, match=r"keras LSTM has neither .* complex weights"):
        dump("keras", rnnkit.LSTM(H_IN, H, dtype=torch.complex64))


# The real thing, where it is installed -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_keras_itself(kind, bidirectional, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    layer = getattr(keras.layers, "SimpleRNN" if kind == "RNN" else kind)(H, return_sequences=True)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    x = randn(N, L, H_IN, seed=1, dtype=torch.float32)
    layer(x)
    layer.set_weights([0.7 * randn(*w.shape, seed=k).numpy() for k, w in enumerate(layer.get_weights())])
    weights = layer.get_weights()
    layers = [
        dict(zip(("kernel", "recurrent_kernel", "bias"), weights[k : k + 3], strict=True))
        for k in range(0, len(weights), 3)
    ]
    module = load("keras", kind, layers, bidirectional=bidirectional, batch_first=True)
    expected = torch.as_tensor(np.asarray(layer(x).detach().cpu()))
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_onnxruntime_itself(kind, directions):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    module = getattr(rnnkit, kind)(H_IN, H, bidirectional=directions == 2)
    (layer,) = dump("onnx", module)
    attributes = {"hidden_size": H, "direction": "bidirectional" if directions == 2 else "forward"}
    attributes |= {"linear_before_reset": 1} if kind == "GRU" else {}
    node = onnx.helper.make_node(kind, ["X", "W", "R", "B"], ["Y"], **attributes)
    given = {"X": randn(L, N, H_IN, seed=1, dtype=torch.float32)} | layer
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, t.shape) for name, t in given.items()]
    result = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "one_layer", infos, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (Y,) = session.run(["Y"], {name: tensor.numpy() for name, tensor in given.items()})  # (L, D, N, H)
    expected = torch.as_tensor(Y).permute(0, 2, 1, 3).flatten(2)
    torch.testing.assert_close(module(given["X"])[0], expected, rtol=0, atol=2e-6)


def test_haiku_itself():
    haiku = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    jax = pytest.importorskip("jax", reason="jax is not installed")

    def run(x):
        core = haiku.LSTM(H)
        return haiku.dynamic_unroll(core, x, core.initial_state(N))[0]

    transformed = haiku.without_apply_rng(haiku.transform(run))
    x = randn(L, N, H_IN, seed=1, dtype=torch.float32)
    parameters = transformed.init(jax.random.PRNGKey(0), x.numpy())
    (layer,) = ({name: np.array(array) for name, array in module.items()} for module in parameters.values())
    layer["b"] += randn(4 * H, seed=2, dtype=torch.float32).numpy()
    (name,) = parameters
    expected = torch.as_tensor(np.array(transformed.apply({name: layer}, x.numpy())))
    torch.testing.assert_close(load("haiku", "LSTM", [layer])(x)[0], expected, rtol=0, atol=2e-6)


def test_ncps_itself():
    ncps = pytest.importorskip("ncps.torch.lstm", reason="ncps is not installed")
    cell, x, h, outputs = ncps.LSTMCell(H_IN, H), randn(L, N, H_IN, seed=1, dtype=torch.float32), torch.zeros(N, H), []
    c = h
    for x_t in x:
        h, c = cell(x_t, (h, c))
        outputs.append(h)
    module = load("ncps", "LSTM", [cell.state_dict()])
    torch.testing.assert_close(module(x)[0], torch.stack(outputs), rtol=0, atol=1e-6)


def test_tracetorch_itself():
    tracetorch = pytest.importorskip("tracetorch", reason="tracetorch is not installed")
    layer, x = tracetorch.rnn.LSTM(H_IN, H), randn(L, N, H_IN, seed=1, dtype=torch.float32)
    expected = torch.stack([layer(x_t) for x_t in x])
    module = load("tracetorch", "LSTM", [{name: weight.detach() for name, weight in layer.named_parameters()}])
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-6)
