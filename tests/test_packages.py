"""What other packages' modules are, where they are installed: the verdict on each and its reason."""

import warnings

import numpy as np
import pytest
import torch

from parity.checkup import check, check_arrays

FLOAT32 = "a float32 tensor in a float64 run"
STEPS_SECOND = "input is always taken as (N, L, H_in)"
LOOP = "dropout on every new state, in the time loop"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "path", "class_name", "expected", "lacking"),
    [
        ("opacus", "opacus.layers:DPLSTM", "LSTM", ["h_n and c_n in float32 in a float64 run", LOOP], "projection"),
        ("opacus", "opacus.layers:DPGRU", "GRU", ["h_n in float32 in a float64 run", LOOP], "unbatched"),
        ("opacus", "opacus.layers:DPRNN", "RNN", ["h_n in float32 in a float64 run", LOOP], "unbatched"),
        ("torchrl", "torchrl.modules:LSTM", "LSTM", [STEPS_SECOND], "two directions"),
        ("torchrl", "torchrl.modules:GRU", "GRU", [STEPS_SECOND], "packed"),
        ("torch", "torch.ao.nn.quantizable:LSTM", "LSTM", [FLOAT32, "dropout is not applied"], "packed"),
        ("torch", "torch.ao.nn.quantizable:LSTMCell", "LSTMCell", [FLOAT32], "unbatched"),
    ],
)
def test_a_package_and_its_reasons(package, path, class_name, expected, lacking):
    pytest.importorskip(package, reason=f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkup = check(path, class_name, raises=False)
    assert checkup.diagnosis.names == expected, str(checkup)
    assert not checkup.diagnosis.unexplained
    assert lacking in checkup.diagnosis.not_offered


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "options", "expected"),
    [
        ("LSTM", {}, []),
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}, ["hard sigmoid, clip(x / 6 + 0.5, 0, 1)"]),
        ("GRU", {}, ["gates in the order z r n"]),
        ("GRU", {"reset_after": False}, ["gates in the order z r n", "reset before the product"]),
        ("SimpleRNN", {}, []),
    ],
)
def test_keras_by_its_numbers(layer, options, expected, monkeypatch):
    """Keras's weights under torch.nn's names, kernels turned and nothing else; its output; and the names of both."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    kind, generator = layer.removeprefix("Simple"), torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 3, generator=generator)
    module = getattr(keras.layers, layer)(6, return_sequences=True, **options)
    module(x)
    random = [torch.randn(weight.shape, generator=generator) for weight in module.get_weights()]
    module.set_weights([weight.numpy() for weight in random])
    kernel, recurrent, bias = (torch.as_tensor(weight) for weight in random)
    b_ih, b_hh = bias if bias.dim() == 2 else (bias, 0 * bias)
    weights = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh}
    states = {name: torch.zeros(1, 4, 6) for name in ("h_0", "c_0")[: 1 + (kind == "LSTM")]}
    output = torch.as_tensor(np.asarray(module(x).detach().cpu()))
    arrays = {**weights, **states, "input": x, "output": output}
    checkup = check_arrays(arrays, kind, batch_first=True, raises=False)
    assert checkup.diagnosis.names == expected, str(checkup)
