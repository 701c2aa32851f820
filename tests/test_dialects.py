"""Weights from other systems: each dialect computes with its own equations what the loaded module computes."""

import numpy as np
import pytest
import torch
from helpers import randn
from torch import Tensor

import rnnkit
from parity.variants import CATALOGUE, Example, Order, Variant
from rnnkit.dialects import DIALECTS, dump, load

H_IN, H, L, N = 3, 4, 5, 2
REPRESENTABLE = [key for key, row in DIALECTS.items() if not row.refused]
ATTRIBUTES = {("onnx", "GRU"): {"linear_before_reset": 1}}
SHAPES = {"one": lambda rows: (rows,), "two": lambda rows: (2, rows), "end to end": lambda rows: (2 * rows,)}


def arrays(system: str, kind: str, size: int = H_IN, directions: int = 1, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random weights of one layer as the system keeps them."""
    row = DIALECTS[system, kind]
    rows = len(row.gates) * H
    kernels = [(rows, size + H)] if row.joined else [(rows, size), (rows, H)]
    shapes = [shape[::-1] if row.turned else shape for shape in kernels] + [SHAPES[row.biases](rows)]
    leads = [(directions,)] if row.both else [()] * directions
    return [
        {
            name: randn(*lead, *shape, seed=seed + 10 * d + k)
            for k, (name, shape) in enumerate(zip(row.arrays, shapes, strict=True))
        }
        for d, lead in enumerate(leads)
    ]


def as_read_by_the_system(system: str, kind: str, layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays under torch's names, rows in the system's own order."""
    row = DIALECTS[system, kind]
    layer = {name: array[0] if row.both else array for name, array in layer.items()}
    *kernels, bias = (layer[name] for name in row.arrays)
    kernels = [kernel.T if row.turned else kernel for kernel in kernels]
    if row.joined:
        kernels = [kernels[0][:, :-H], kernels[0][:, -H:]]
    biases = {
        "one": (bias, 0 * bias),
        "two": tuple(bias),
        "end to end": (bias[: len(bias) // 2], bias[len(bias) // 2 :]),
    }
    tensors = (*kernels, *biases[row.biases])
    return dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), tensors, strict=True))


@pytest.mark.parametrize(("system", "kind"), REPRESENTABLE)
def test_the_module_computes_what_the_dialect_computes(system, kind):
    """The dialect's side is the catalogue's variant: torch's definition with the system's order and habits."""
    row, layers = DIALECTS[system, kind], arrays(system, kind)
    forget = tuple(d for d in CATALOGUE if d.name == "forget gate + 1" and "forget_bias" in row.attributes)
    hx = tuple(randn(1, N, H, seed=s) for s in (7, 8)[: 1 + (kind == "LSTM")])
    problem = Example(kind, as_read_by_the_system(system, kind, layers[0]), randn(L, N, H_IN, seed=9), hx)
    expected = Variant(Order(row.gates, row.interleaved), forget).run(problem)

    module = load(system, kind, layers, **ATTRIBUTES.get((system, kind), {}))
    output, states = module(problem.input, hx if kind == "LSTM" else hx[0])
    states = states if isinstance(states, tuple) else (states,)
    torch.testing.assert_close(output, expected["output"], rtol=0, atol=1e-14)
    for name, state in zip(("h_n", "c_n"), states, strict=False):
        torch.testing.assert_close(state, expected[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("system", "kind"), REPRESENTABLE)
@pytest.mark.parametrize("directions", [1, 2])
def test_what_was_loaded_is_dumped_again(system, kind, directions):
    """Two layers. Forget biases are added and taken off, which rounds; all else is moved, not computed."""
    layers = arrays(system, kind, directions=directions) + arrays(system, kind, directions * H, directions, seed=50)
    given = ATTRIBUTES.get((system, kind), {})
    again = dump(system, load(system, kind, layers, bidirectional=directions == 2, **given), **given)
    assert len(again) == len(layers)
    for before, after in zip(layers, again, strict=True):
        assert list(after) == list(before)
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("system", "kind"), REPRESENTABLE)
def test_a_module_survives_the_way_through_a_dialect(system, kind):
    module = getattr(rnnkit, kind)(H_IN, H, 2, bidirectional=True, dtype=torch.float64)
    given = ATTRIBUTES.get((system, kind), {})
    other = load(system, kind, dump(system, module), bidirectional=True, **given)
    x = randn(L, N, H_IN, seed=3)
    torch.testing.assert_close(other(x)[0], module(x)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("system", ["keras", "onnx"])
def test_relu_is_a_nonlinearity_too(system):
    module = rnnkit.RNN(H_IN, H, nonlinearity="relu", dtype=torch.float64)
    given = {"activation": "relu"} if system == "keras" else {"activations": ["Relu"]}
    other = load(system, "RNN", dump(system, module), **given)
    assert other.nonlinearity == "relu"
    x = randn(L, N, H_IN, seed=3)
    torch.testing.assert_close(other(x)[0], module(x)[0], rtol=0, atol=1e-15)


def test_arrays_may_be_numpy_and_biases_absent():
    layers = [{name: np.asarray(array, dtype=np.float32) for name, array in arrays("keras", "LSTM")[0].items()}]
    del layers[0]["bias"]
    module = load("keras", "LSTM", layers, batch_first=True)
    assert not module.bias
    assert module.batch_first
    assert module.weight_ih_l0.dtype == torch.float32
    assert load("tf1", "LSTM", [{"kernel": torch.zeros(H_IN + H, 4 * H)}]).bias_ih_l0[H : 2 * H].tolist() == [1.0] * H


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
        ("tf1", "LSTM", {"use_peepholes": True}, "do not see the cell"),
        ("coreml", "LSTM", {"peephole": [0.0]}, "do not see the cell"),
        ("tf1", "GRU", {}, "before the product"),
        ("haiku", "GRU", {}, "before the product"),
        ("sonnet", "GRU", {}, "before the product"),
        ("chainer", "GRU", {}, "before the product"),
    ],
)
def test_what_torch_cannot_represent_is_refused(system, kind, given, reason):
    layers = [] if DIALECTS[system, kind].refused else arrays(system, kind)
    with pytest.raises(ValueError, match=f"{system} {kind} .*cannot be represented: .*{reason}"):
        load(system, kind, layers, **given)


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="no dialect theano LSTM; there are keras LSTM"):
        load("theano", "LSTM", [])
    with pytest.raises(TypeError, match="keras LSTM has no attribute peephole"):
        load("keras", "LSTM", arrays("keras", "LSTM"), peephole=1)
    with pytest.raises(KeyError, match="recurrent_kernel missing"):
        load("keras", "LSTM", [{"kernel": torch.zeros(H_IN, 4 * H)}])
    with pytest.raises(ValueError, match="leading dimension of 2"):
        load("onnx", "LSTM", arrays("onnx", "LSTM"), bidirectional=True)
    with pytest.raises(ValueError, match="no projection"):
        dump("keras", rnnkit.LSTM(H_IN, H, proj_size=2))


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
