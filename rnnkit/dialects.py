"""Weights as other systems keep them: `load` makes a module of them, `dump` gives them back.

A dialect is a row of the table DIALECTS: the order of the gates, which arrays there are, how they lie. Arrays are given
layer by layer, as a list of one dictionary for each layer and direction (forward, then reverse); in systems that keep
both directions in one array (ONNX, OpenVINO), of one for each layer.

    lstm = load("keras", "LSTM", [dict(kernel=..., recurrent_kernel=..., bias=...)])
    dump("onnx", lstm)  # [{"W": (D, 4*H, H_in), "R": (D, 4*H, H), "B": (D, 8*H)}]

What a dialect says beyond its weights is given as keywords under the system's own names (`reset_after=True`,
`forget_bias=1.0`). A convention that torch's equations cannot represent is refused with a ValueError: no arrangement of
weights makes up for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .equations import EQUATIONS
from .layers import GRU, LSTM, RNN, RNNBase

Arrays = Mapping[str, Any]

RESET = "the reset gate multiplies h before the product with the recurrent kernel, torch's after it"
GATE = "torch's gates are sigmoids"
CANDIDATE = "torch's candidate and cell go through tanh"
PEEPHOLES = "torch's gates do not see the cell"
CLIP = "torch does not clip"
COUPLED = "torch's forget gate has weights of its own"
ALPHA = "torch's activations have no parameters"


@dataclass(frozen=True)
class Attribute:
    """What a system lets its users choose. `values` are those that torch can represent; () is whatever is given."""

    default: Any
    values: tuple[Any, ...]
    why: str = ""


@dataclass(frozen=True)
class Dialect:
    """How one system keeps the weights of one kind of layer.

    gates        the order of the blocks of rows (of columns, if `turned`), in the letters of `EQUATIONS`
    arrays       the names of input kernel, recurrent kernel (not if `joined`), bias
    turned       kernels are (in, out)
    joined       one kernel for [x, h]
    interleaved  row G*u + k is gate k of unit u
    biases       one: a single bias, which is the sum; two: (2, G*H); end to end: (2*G*H,)
    both         arrays have a leading dimension of directions
    attributes   by the system's name
    refused      why torch has no such layer, whatever the weights
    """

    gates: str
    arrays: tuple[str, ...]
    turned: bool = False
    joined: bool = False
    interleaved: bool = False
    biases: str = "one"
    both: bool = False
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    refused: str = ""

    def check(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with defaults filled in. TypeError for an unknown one, ValueError for what torch can't do."""
        if self.refused:
            raise ValueError(f"{name} cannot be represented: {self.refused}")
        unknown = given.keys() - self.attributes.keys()
        if unknown:
            raise TypeError(f"{name} has no attribute {', '.join(sorted(unknown))}: {', '.join(self.attributes)}")
        values = {key: given.get(key, attribute.default) for key, attribute in self.attributes.items()}
        for key, attribute in self.attributes.items():
            value = tuple(values[key]) if isinstance(values[key], list) else values[key]
            comparable = value is None or isinstance(value, (bool, int, float, str, tuple))
            if attribute.values and not (comparable and value in attribute.values):
                raise ValueError(f"{name} with {key}={values[key]!r} cannot be represented: {attribute.why}")
        return values


def _keras(**more: Attribute) -> dict[str, Attribute]:
    return {"activation": Attribute("tanh", ("tanh",), CANDIDATE), **more}


_SIGMOID = Attribute("sigmoid", ("sigmoid",), GATE)
_ONNX = {
    "clip": Attribute(None, (None, 0.0), CLIP),
    "activation_alpha": Attribute(None, (None, ()), ALPHA),
    "activation_beta": Attribute(None, (None, ()), ALPHA),
}
_GATED = {"activations": Attribute(None, (None, ("Sigmoid", "Tanh")), f"{GATE}, {CANDIDATE}")}
_FORGET = {"forget_bias": Attribute(1.0, ())}
_KERNELS = ("kernel", "recurrent_kernel", "bias")

#: By system and kind. Sources: the systems' own code or operator documentation.
DIALECTS: dict[tuple[str, str], Dialect] = {
    ("keras", "LSTM"): Dialect("ifgo", _KERNELS, turned=True, attributes=_keras(recurrent_activation=_SIGMOID)),
    ("keras", "GRU"): Dialect(
        "zrn", _KERNELS, turned=True, biases="two",
        attributes=_keras(recurrent_activation=_SIGMOID, reset_after=Attribute(True, (True,), RESET)),
    ),
    ("keras", "RNN"): Dialect(
        "h", _KERNELS, turned=True,
        attributes={"activation": Attribute("tanh", ("tanh", "relu"), "torch has tanh and relu")},
    ),
    ("onnx", "LSTM"): Dialect(
        "iofg", ("W", "R", "B"), biases="end to end", both=True,
        attributes={
            **_ONNX, "activations": Attribute(None, (None, ("Sigmoid", "Tanh", "Tanh")), f"{GATE}, {CANDIDATE}"),
            "P": Attribute(None, (None,), PEEPHOLES), "input_forget": Attribute(0, (0,), COUPLED),
        },
    ),
    ("onnx", "GRU"): Dialect(
        "zrn", ("W", "R", "B"), biases="end to end", both=True,
        attributes={**_ONNX, **_GATED, "linear_before_reset": Attribute(0, (1,), RESET)},
    ),
    ("onnx", "RNN"): Dialect(
        "h", ("W", "R", "B"), biases="end to end", both=True,
        attributes={**_ONNX, "activations": Attribute(("Tanh",), (("Tanh",), ("Relu",)), "torch has tanh and relu")},
    ),
    ("openvino", "LSTM"): Dialect("figo", ("W", "R", "B"), both=True, attributes={"clip": _ONNX["clip"]}),
    ("tf1", "LSTM"): Dialect(
        "igfo", ("kernel", "bias"), turned=True, joined=True,
        attributes=_keras(**_FORGET, use_peepholes=Attribute(False, (False,), PEEPHOLES)),
    ),
    ("tf1", "GRU"): Dialect("rzn", ("kernel", "bias"), refused=RESET),
    ("haiku", "LSTM"): Dialect("igfo", ("w", "b"), turned=True, joined=True, attributes=_FORGET),
    ("haiku", "GRU"): Dialect("zrn", ("w_i", "w_h", "b"), refused=RESET),
    ("sonnet", "LSTM"): Dialect("ifgo", ("w_i", "w_h", "b"), turned=True),
    ("sonnet", "GRU"): Dialect("zrn", ("w_i", "w_h", "b"), refused=RESET),
    ("coreml", "LSTM"): Dialect(
        "ifog", ("weight_ih", "weight_hh", "bias"),
        attributes={"peephole": Attribute(None, (None,), PEEPHOLES), "clip": _ONNX["clip"],
                    "recurrent_activation": _SIGMOID, "cell_activation": Attribute("tanh", ("tanh",), CANDIDATE),
                    "activation": Attribute("tanh", ("tanh",), CANDIDATE)},
    ),
    ("chainer", "LSTM"): Dialect("gifo", ("upward.W", "lateral.W", "upward.b"), interleaved=True),
    ("chainer", "GRU"): Dialect("rzn", ("W", "U"), refused=RESET),
    ("ncps", "LSTM"): Dialect(
        "gifo", ("input_map.weight", "recurrent_map.weight", "input_map.bias"), attributes=_FORGET,
    ),
    ("tracetorch", "LSTM"): Dialect("ifog", ("kernel", "bias"), joined=True),
}  # fmt: skip


def dialect(system: str, kind: str) -> Dialect:
    """The row of the table. ValueError if there is none."""
    if (system, kind) not in DIALECTS:
        known = ", ".join(f"{name} {of}" for name, of in DIALECTS)
        raise ValueError(f"no dialect {system} {kind}; there are {known}")
    return DIALECTS[system, kind]


def load(
    system: str,
    kind: str,
    layers: Sequence[Arrays],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    **given: Any,
) -> RNNBase:
    """A module with the weights of another system.

    kind is LSTM, GRU or RNN. `layers` are arrays (anything `torch.as_tensor` takes) as the module's docstring says; the
    dtype is theirs. A layer without bias throughout gives a module without. Raises ValueError for a dialect or an
    attribute that torch's equations cannot represent, TypeError for an attribute that the system doesn't have, KeyError
    for an array that is missing.
    """
    row = dialect(system, kind)
    values = row.check(f"{system} {kind}", given)
    D = 2 if bidirectional else 1
    if not row.both and len(layers) % D:
        raise ValueError(f"{len(layers)} sets of arrays are not {D} for each layer")
    slots = [one for arrays in layers for one in (_unbind(arrays, row, D) if row.both else [_tensors(arrays, row)])]
    bias = any(row.arrays[-1] in arrays for arrays in slots) or bool(values.get("forget_bias"))
    weights = [_read(arrays, row, values) for arrays in slots]
    H = weights[0]["weight_hh"].size(1)
    options: dict[str, Any] = {"nonlinearity": _nonlinearity(values)} if kind == "RNN" else {}
    module: RNNBase = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind](
        weights[0]["weight_ih"].size(1), H, len(slots) // D, bias=bias, bidirectional=bidirectional,
        batch_first=batch_first, dtype=weights[0]["weight_ih"].dtype, **options,
    )  # fmt: skip
    with torch.no_grad():
        for names, tensors in zip(module._all_weights, weights, strict=True):
            for name in names:
                getattr(module, name).copy_(tensors[name.partition("_l")[0]])
    return module


def dump(system: str, module: RNNBase, **given: Any) -> list[dict[str, Tensor]]:
    """The weights of `module` as another system keeps them: what `load` takes. Tensors are new.

    A system with one bias gets the sum of torch's two. Attributes that the system must be given for them are those
    that `load` insists on (`linear_before_reset=1` in ONNX, the activation of an RNN). Raises ValueError where the
    system has no such layer.
    """
    kind = module.mode.split("_")[0]
    row = dialect(system, kind)
    needed = {key: a.values[0] for key, a in row.attributes.items() if a.values and a.default not in a.values}
    if module.mode == "RNN_RELU":
        needed |= {key: a.values[-1] for key, a in row.attributes.items() if key.startswith("activation") and a.default}
    values = row.check(f"{system} {kind}", {**needed, **given})
    if module.proj_size:
        raise ValueError(f"{system} {kind} has no projection")
    fields = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    slots = [
        _write(dict(zip(fields, (weight.detach() for weight in weights), strict=False)), row, values)
        for weights in module.all_weights
    ]
    if not row.both:
        return slots
    D = 2 if module.bidirectional else 1
    pairs = [slots[start : start + D] for start in range(0, len(slots), D)]
    return [{name: torch.stack([slot[name] for slot in pair]) for name in pair[0]} for pair in pairs]


def _nonlinearity(values: Mapping[str, Any]) -> str:
    named = values.get("activation") or values["activations"][0]
    return str(named).lower()


def _tensors(arrays: Arrays, row: Dialect) -> dict[str, Tensor]:
    missing = [name for name in row.arrays[:-1] if name not in arrays]
    if missing:
        raise KeyError(f"{', '.join(missing)} missing: expected {', '.join(row.arrays)}")
    return {name: torch.as_tensor(arrays[name]) for name in row.arrays if arrays.get(name) is not None}


def _unbind(arrays: Arrays, row: Dialect, D: int) -> Iterator[dict[str, Tensor]]:
    tensors = _tensors(arrays, row)
    if any(tensor.size(0) != D for tensor in tensors.values()):
        raise ValueError(f"expected a leading dimension of {D} directions")
    return ({name: tensor[d] for name, tensor in tensors.items()} for d in range(D))


def _read(arrays: Mapping[str, Tensor], row: Dialect, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """One layer and direction in torch's names and order."""
    kernels = [arrays[name].mT if row.turned else arrays[name] for name in row.arrays[:-1]]
    H = kernels[-1].size(0) // len(row.gates)
    w_ih, w_hh = (kernels[0][:, :-H], kernels[0][:, -H:]) if row.joined else kernels
    bias = arrays.get(row.arrays[-1])
    if bias is None:
        bias = w_ih.new_zeros(2 * w_ih.size(0) if row.biases == "end to end" else w_ih.size(0))
        bias = bias.expand(2, -1) if row.biases == "two" else bias
    if row.biases == "one":
        b_ih, b_hh = bias, torch.zeros_like(bias)
    else:
        b_ih, b_hh = bias.unbind(0) if row.biases == "two" else bias.chunk(2)
    order = _order(row, H)
    read = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}
    read = {name: tensor[order] for name, tensor in read.items()}
    read["bias_ih"] = read["bias_ih"] + _forget(values, read["bias_ih"])
    return read


def _write(weights: Mapping[str, Tensor], row: Dialect, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """One layer and direction of torch's as the system's arrays: `_read` undone."""
    H = weights["weight_hh"].size(1)
    inverse = torch.argsort(_order(row, H))
    w_ih, w_hh = weights["weight_ih"], weights["weight_hh"]
    zeros = w_ih.new_zeros(w_ih.size(0))
    b_ih, b_hh = weights.get("bias_ih", zeros), weights.get("bias_hh", zeros)
    b_ih = (b_ih - _forget(values, b_ih))[inverse]
    w_ih, w_hh, b_hh = w_ih[inverse], w_hh[inverse], b_hh[inverse]
    kernels = [torch.cat([w_ih, w_hh], 1)] if row.joined else [w_ih, w_hh]
    biases = {"one": b_ih + b_hh, "two": torch.stack([b_ih, b_hh]), "end to end": torch.cat([b_ih, b_hh])}
    written = [kernel.mT.contiguous() if row.turned else kernel for kernel in kernels]
    return dict(zip(row.arrays, [*written, biases[row.biases]], strict=True))


def _forget(values: Mapping[str, Any], bias: Tensor) -> Tensor:
    """What the system adds to the forget gate at run time, as an addend of torch's bias."""
    added = torch.zeros_like(bias)
    if "forget_bias" in values:
        H = bias.size(0) // 4
        added[H : 2 * H] = values["forget_bias"]
    return added


def _order(row: Dialect, H: int) -> Tensor:
    """For each of torch's rows, the row of the system that holds it."""
    G = len(row.gates)
    letters = next(equation.gates for equation in EQUATIONS.values() if sorted(equation.gates) == sorted(row.gates))
    blocks = torch.arange(G * H).view(H, G).mT if row.interleaved else torch.arange(G * H).view(G, H)
    return torch.cat([blocks[row.gates.index(letter)] for letter in letters])
