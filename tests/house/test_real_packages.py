"""Modules of other packages under the parity runner: what each is accused of, and that nobody is accused wrongly.

A package that is not installed is skipped. One at a time: `python -m parity check opacus.layers:DPLSTM --as LSTM`.
"""

from functools import cache

import pytest
import torch

import parity
from parity.checkup.subjects import load
from rnnkit.dialects import DIALECTS

FLOAT32 = "in float32 in a float64 run"
IN_THE_LOOP = "dropout on every new state, in the time loop"
BATCH_FIRST = "batch_first is True where nothing is said"
PACKAGES = {  # torch.nn's name for it, the mistakes by name, what it does not offer
    "opacus.layers:DPLSTM": ("LSTM", [f"h_n and c_n {FLOAT32}", IN_THE_LOOP], {"unbatched", "projection"}),
    "opacus.layers:DPGRU": ("GRU", [f"h_n {FLOAT32}", IN_THE_LOOP], {"unbatched"}),
    "opacus.layers:DPRNN": ("RNN", [f"h_n {FLOAT32}", IN_THE_LOOP], {"unbatched"}),
    "torchrl.modules:LSTM": ("LSTM", [BATCH_FIRST], {"two directions", "unbatched", "packed", "projection"}),
    "torchrl.modules:GRU": ("GRU", [BATCH_FIRST], {"two directions", "unbatched", "packed"}),
    "torchrl.modules:LSTMCell": ("LSTMCell", [], set()),
    "torchrl.modules:GRUCell": ("GRUCell", [], set()),
    "torch.ao.nn.quantizable:LSTM": (
        "LSTM", ["a float32 tensor in a float64 run", "dropout is not applied"], {"unbatched", "packed", "projection"},
    ),
    "torch.ao.nn.quantizable:LSTMCell": ("LSTMCell", ["a float32 tensor in a float64 run"], {"unbatched"}),
}  # fmt: skip


def installed(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", PACKAGES)
def test_a_package_is_accused_of_what_it_does_and_of_nothing_else(target):
    installed(target.split(".")[0])
    as_, names, not_offered = PACKAGES[target]
    checkup = parity.check(load(target), as_, raises=False)
    assert checkup.diagnosis.names == names
    assert not_offered <= set(checkup.diagnosis.not_offered)
    assert checkup.diagnosis.unexplained == []
    assert checkup.same == (not names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_torchrl_differs_by_its_default_of_batch_first_alone(name):
    installed("torchrl")
    theirs = load(f"torchrl.modules:{name}")

    class StepsFirst(theirs):
        def __init__(self, *args, batch_first=False, **kwargs):
            super().__init__(*args, batch_first=batch_first, **kwargs)

    assert parity.check(StepsFirst, name).same


# Keras: its layers as functions of torch.nn's weights -----------------------------------------------------------------

USUAL = {"RNN": "h", "LSTM": "ifgo", "GRU": "rzn"}


@cache
def keras_layer(kind, size, hidden_size, bias, dtype):
    keras = pytest.importorskip("keras", reason="keras is not installed")
    cls = getattr(keras.layers, "SimpleRNN" if kind == "RNN" else kind)
    layer = cls(hidden_size, use_bias=bias, dtype=dtype, return_sequences=True, return_state=True)
    layer.build((None, None, size))
    return layer


def keras_function(kind, gates):
    """Keras's layer as f(input, state, weights), its weights torch.nn's transposed, with `gates` as their order."""

    def columns(weight):
        blocks = dict(zip(USUAL[kind], weight.chunk(len(gates)), strict=True))
        return torch.cat([blocks[gate] for gate in gates]).movedim(0, -1)

    def function(input, state, weights):
        kernel, recurrent_kernel, *biases = map(columns, weights.values())
        joined = torch.stack if DIALECTS["keras", kind].biases == "two" else sum
        layer = keras_layer(
            kind, len(kernel), len(recurrent_kernel), bool(biases), str(input.dtype).removeprefix("torch.")
        )
        fixed = [variable.value for variable in layer.non_trainable_variables]
        given = [kernel, recurrent_kernel, *([joined(biases)] if biases else [])]
        states = [h[0] for h in (state if isinstance(state, tuple) else (state,))]
        (output, *final), _ = layer.stateless_call(given, fixed, input.transpose(0, 1), initial_state=states)
        final = tuple(h.unsqueeze(0) for h in final)
        return output.transpose(0, 1), final if kind == "LSTM" else final[0]

    return function


@pytest.fixture
def keras_on_torch(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    if keras.backend.backend() != "torch":
        pytest.skip("keras runs on another backend here")


@pytest.mark.usefixtures("keras_on_torch")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_keras_is_torch_nn_under_its_dialect(kind):
    assert parity.check(keras_function(kind, DIALECTS["keras", kind].gates), kind).same


@pytest.mark.usefixtures("keras_on_torch")
def test_the_order_of_gates_in_a_keras_gru_is_named():
    checkup = parity.check(keras_function("GRU", USUAL["GRU"]), "GRU", raises=False)
    assert checkup.diagnosis.names == ["gates in the order z r n"]
    assert "Keras" in checkup.diagnosis.findings[0].where


@pytest.mark.usefixtures("keras_on_torch")
def test_keras_simple_rnn_rounds_to_float32_in_a_float64_run():
    """keras.ops.matmul returns float32 of float64 tensors; LSTM and GRU multiply without it."""
    import keras

    eye = torch.eye(2, dtype=torch.float64)
    assert keras.ops.matmul(eye, eye).dtype == torch.float32
    checkup = parity.check(keras_function("RNN", USUAL["RNN"]), "RNN", raises=False)
    assert checkup.diagnosis.names == ["something passes through float32, or a small constant is added"]
