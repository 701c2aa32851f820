"""Convert weights between rnnkit and other systems: `load` makes a layer of them, `dump` gives them back.

A dialect is a row of the table DIALECTS: the order of the gates, which arrays there are, how they lie. Arrays are given
layer by layer, as a list of one dictionary for each layer and direction (forward, then reverse); in systems that keep
both directions in one array (ONNX, OpenVINO), of one for each layer. The names of the arrays are the system's own.

    lstm = load("keras", "LSTM", [dict(kernel=..., recurrent_kernel=..., bias=...)])
    dump("onnx", lstm)  # [{"W": (D, 4*H, H_in), "R": (D, 4*H, H), "B": (D, 8*H)}]

What a dialect says beyond its weights is given as keywords under the system's own names (`reset_after=True`,
`forget_bias=1.0`). A convention that torch's equations cannot represent is refused with a ValueError: no arrangement of
weights makes up for it. So is an array that has not the shape which the system documents.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .equations import EQUATIONS
from .layers import GRU, LSTM, RNN, RNNBase

Slot: TypeAlias = tuple[dict[str, Tensor], dict[str, int]]

RESET = "the reset gate multiplies h before the product with the recurrent kernel, torch's after it"
EITHER = "torch has tanh and relu"


@dataclass(frozen=True)
class Attribute:
    """Describe what a system lets its users choose. `values` are those that torch can represent; () is any number."""

    default: Any
    values: tuple[Any, ...]
    why: str = ""


@dataclass(frozen=True)
class Dialect:
    """Describe how one system keeps the weights of one kind of layer.

    gates        the order of the blocks of rows (of columns, if `turned`), in the letters of `EQUATIONS`
    arrays       the shapes by name: of the input and the recurrent kernel, or of one for both, and of the bias. Where
                 they begin with D, arrays hold all directions. A bias of G*H numbers is the sum of torch's two
    attributes   by the system's name
    unbiased     the system has layers without a bias array, and reads a missing one as zeros
    interleaved  row G*u + k is gate k of unit u
    refused      why torch has no such layer, whatever the weights
    """

    gates: str = ""
    arrays: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    unbiased: bool = False
    interleaved: bool = False
    refused: str = ""

    @property
    def columns(self) -> dict[str, list[str]]:
        """List what each kernel multiplies: H_in, H or both, as they lie."""
        kernels = list(self.arrays.items())[:-1]
        return {name: shape.split(", ")[-2 if self.turned else -1].split(" + ") for name, shape in kernels}

    @property
    def turned(self) -> bool:
        """Tell whether kernels are (in, out)."""
        return "H_in" in next(iter(self.arrays.values())).split(", ")[-2]

    @property
    def both(self) -> bool:
        """Tell whether arrays have a leading dimension of directions."""
        return next(iter(self.arrays.values())).startswith("D")

    def check(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes with defaults filled in. Raise as `load` does."""
        if self.refused:
            raise ValueError(f"{name} cannot be represented: {self.refused}")
        unknown = given.keys() - self.attributes.keys()
        if unknown:
            raise TypeError(f"{name} has no attribute {', '.join(sorted(unknown))}: {', '.join(self.attributes)}")
        values = {key: given.get(key, attribute.default) for key, attribute in self.attributes.items()}
        for key, attribute in self.attributes.items():
            value = tuple(values[key]) if isinstance(values[key], list) else values[key]
            if attribute.values and not (isinstance(value, Hashable) and value in attribute.values):
                raise ValueError(f"{name} with {key}={values[key]!r} cannot be represented: {attribute.why}")
            if not attribute.values and (not isinstance(value, Real) or isinstance(value, bool)):
                raise TypeError(f"{name}: {key} should be a number, got: {type(value).__name__}")
        return values


_TANH = Attribute("tanh", ("tanh",), "torch's candidate and cell go through tanh")
_SIGMOID = Attribute("sigmoid", ("sigmoid",), "torch's gates are sigmoids")
_GATES = f"{_SIGMOID.why}, {_TANH.why}"
_KERAS = {"activation": _TANH, "recurrent_activation": _SIGMOID}
_PEEPHOLES = Attribute(None, (None, False), "torch's gates do not see the cell")
_COUPLED = Attribute(0, (0,), "torch's forget gate has weights of its own")
_CLIP = Attribute(None, (None, 0.0, math.inf), "torch does not clip")
_PARAMETERS = Attribute(None, (None, ()), "torch's activations have no parameters")
_FORGET = {"forget_bias": Attribute(1.0, ())}


def _onnx(*activations: tuple[str, ...], why: str, **more: Attribute) -> dict[str, Attribute]:
    """Return what ONNX lets its users choose; of two directions it lists the activations twice."""
    listed = Attribute(None, (None, *(names * times for names in activations for times in (1, 2))), why)
    parameters = {"activation_alpha": _PARAMETERS, "activation_beta": _PARAMETERS}
    return {"activations": listed, "clip": _CLIP, **parameters, **more}


#: By system and kind. Sources: the systems' own code or operator documentation, file by file in tests/test_dialects.py.
DIALECTS: dict[tuple[str, str], Dialect] = {
    ("keras", "LSTM"): Dialect(
        "ifgo", {"kernel": "H_in, 4*H", "recurrent_kernel": "H, 4*H", "bias": "4*H"}, _KERAS, unbiased=True,
    ),
    ("keras", "GRU"): Dialect(
        "zrn", {"kernel": "H_in, 3*H", "recurrent_kernel": "H, 3*H", "bias": "2, 3*H"},
        {**_KERAS, "reset_after": Attribute(True, (True,), RESET)}, unbiased=True,
    ),
    ("keras", "RNN"): Dialect(
        "h", {"kernel": "H_in, H", "recurrent_kernel": "H, H", "bias": "H"},
        {"activation": Attribute("tanh", ("tanh", "relu"), EITHER)}, unbiased=True,
    ),
    ("onnx", "LSTM"): Dialect(
        "iofg", {"W": "D, 4*H, H_in", "R": "D, 4*H, H", "B": "D, 8*H"},
        _onnx(("Sigmoid", "Tanh", "Tanh"), why=_GATES, P=_PEEPHOLES, input_forget=_COUPLED), unbiased=True,
    ),
    ("onnx", "GRU"): Dialect(
        "zrn", {"W": "D, 3*H, H_in", "R": "D, 3*H, H", "B": "D, 6*H"},
        _onnx(("Sigmoid", "Tanh"), why=_GATES, linear_before_reset=Attribute(0, (1,), RESET)), unbiased=True,
    ),
    ("onnx", "RNN"): Dialect(
        "h", {"W": "D, H, H_in", "R": "D, H, H", "B": "D, 2*H"}, _onnx(("Tanh",), ("Relu",), why=EITHER), unbiased=True,
    ),
    ("openvino", "LSTM"): Dialect(
        "figo", {"W": "D, 4*H, H_in", "R": "D, 4*H, H", "B": "D, 4*H"},
        {"activations": Attribute(None, (None, ("sigmoid", "tanh", "tanh")), _GATES), "clip": _CLIP},
    ),
    ("tf1", "LSTM"): Dialect(
        "igfo", {"kernel": "H_in + H, 4*H", "bias": "4*H"},
        {"activation": _TANH, "use_peepholes": _PEEPHOLES, **_FORGET},
    ),
    ("haiku", "LSTM"): Dialect("igfo", {"w": "H_in + H, 4*H", "b": "4*H"}, _FORGET),
    ("sonnet", "LSTM"): Dialect("ifgo", {"w_i": "H_in, 4*H", "w_h": "H, 4*H", "b": "4*H"}),
    ("coreml", "LSTM"): Dialect(
        "ifog", {"weight_ih": "4*H, H_in", "weight_hh": "4*H, H", "bias": "4*H"},
        {**_KERAS, "cell_activation": _TANH, "peephole": _PEEPHOLES,
         "clip": Attribute(None, (None, math.inf), _CLIP.why)}, unbiased=True,  # 0 is a bound here
    ),
    ("chainer", "LSTM"): Dialect(
        "gifo", {"upward.W": "4*H, H_in", "lateral.W": "4*H, H", "upward.b": "4*H"}, interleaved=True,
    ),
    ("ncps", "LSTM"): Dialect(
        "gifo", {"input_map.weight": "4*H, H_in", "recurrent_map.weight": "4*H, H", "input_map.bias": "4*H"}, _FORGET,
    ),
    ("tracetorch", "LSTM"): Dialect("ifog", {"gate_layers.weight": "4*H, H + H_in", "gate_layers.bias": "4*H"}),
    **{(system, "GRU"): Dialect(refused=RESET) for system in ("tf1", "haiku", "sonnet", "chainer")},
}  # fmt: skip


def dialect(system: str, kind: str) -> Dialect:
    """Return the row of the table. ValueError if there is none."""
    if (system, kind) not in DIALECTS:
        known = ", ".join(f"{name} {of}" for name, of in DIALECTS)
        raise ValueError(f"no dialect {system} {kind}; there are {known}")
    return DIALECTS[system, kind]


def load(
    system: str,
    kind: str,
    layers: Sequence[Mapping[str, Any]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    **given: Any,
) -> RNNBase:
    """Make a layer of rnnkit with the weights of another system.

    system, kind    a row of DIALECTS: "keras", "onnx", ..., and "LSTM", "GRU" or "RNN"
    layers          a dictionary of arrays for each layer and direction, as the module's docstring says. An array is
                    anything `torch.tensor` takes, or None if not there; all have the dtype of the result
    bidirectional   whether there are two directions; batch_first is of the result, no system's weights depend on it
    given           what the system lets its users choose, under its own names

    Returns an `rnnkit.LSTM`, `GRU` or `RNN` on the CPU with copies of the weights. A single bias goes to bias_ih, what
    the system adds to the forget gate to bias_hh. Where a system lets a layer have no bias, the result has none if no
    layer has, and zeros for those that have none if others have.

    Raises, before anything is built, ValueError for what torch's equations cannot represent, and for arrays that are
    missing, foreign or of another shape or dtype than the system and the other layers have; TypeError for an attribute
    that the system does not have. Values are not looked at: nan passes.
    """
    row = dialect(system, kind)
    values = row.check(f"{system} {kind}", given)
    D = 2 if bidirectional else 1
    slots = _read(layers, row, f"{system} {kind}", D)
    first, sizes = slots[0]
    dtype, bias = first[next(iter(first))].dtype, any(len(arrays) == len(row.arrays) for arrays, _ in slots)
    options: dict[str, Any] = {"nonlinearity": _nonlinearity(values)} if kind == "RNN" else {}
    module: RNNBase = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind](
        sizes["H_in"], sizes["H"], len(slots) // D, bias=bias, bidirectional=bidirectional, batch_first=batch_first,
        dtype=dtype, **options,
    )  # fmt: skip
    for names, slot in zip(module._all_weights, slots, strict=True):
        module.load_state_dict(dict(zip(names, _as_torch(slot, row, values), strict=False)), strict=False)
    return module


def dump(system: str, module: RNNBase, **given: Any) -> list[dict[str, Tensor]]:
    """Give the weights of `module`, an `rnnkit.LSTM`, `GRU` or `RNN`, as another system keeps them: what `load` takes.

    Returns new tensors, in a dictionary for each layer and direction or for each layer. A system with one bias gets the
    sum of torch's two, less what it adds to the forget gate itself: that sum rounds, all else is exact, and so are
    biases that `load` brought. Without biases there is no bias array, or zeros where the system must have one.

    `given` is for `load` to be given again; what it insists on (`linear_before_reset=1` in ONNX, the activation of an
    RNN) may be left out here. Raises TypeError for what is no recurrent layer of rnnkit, ValueError where the system
    has no such layer: projections, complex weights, another activation.
    """
    if not isinstance(module, RNNBase):
        got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"dump takes an rnnkit.LSTM, GRU or RNN; rnnkit.convert makes one of torch.nn's, got: {got}")
    kind = "RNN" if module.mode in ("RNN_TANH", "RNN_RELU") else module.mode
    row = dialect(system, kind)
    needed = {key: a.values[0] for key, a in row.attributes.items() if a.values and a.default not in a.values}
    values = row.check(f"{system} {kind}", {**needed, **given})
    named = kind == "RNN" and {"activation", "activations"} & given.keys()
    if named and f"RNN_{_nonlinearity(values).upper()}" != module.mode:
        raise ValueError(f"the module's activation is {module.mode[4:].lower()}, not {_nonlinearity(values)}")
    if module.proj_size or not module.all_weights[0][0].is_floating_point():
        raise ValueError(f"{system} {kind} has neither projections nor complex weights")
    slots = [_as_system([weight.detach() for weight in weights], row, values) for weights in module.all_weights]
    if not row.both:
        return slots
    D = 2 if module.bidirectional else 1
    pairs = [slots[start : start + D] for start in range(0, len(slots), D)]
    return [{name: torch.stack([slot[name] for slot in pair]) for name in pair[0]} for pair in pairs]


def _nonlinearity(values: Mapping[str, Any]) -> str:
    """Return torch's name of an RNN's activation: the first that is listed, for they are all the same."""
    return str(values.get("activation") or (values.get("activations") or ["tanh"])[0]).lower()


def _read(layers: Any, row: Dialect, name: str, D: int) -> list[Slot]:
    """Return the arrays of each layer and direction as tensors, with its sizes. ValueError for one that doesn't fit."""
    if not (isinstance(layers, Sequence) and layers and all(isinstance(arrays, Mapping) for arrays in layers)):
        raise ValueError(f"{name}: layers should be a list of dictionaries of arrays, and not empty")
    directions = ("",) if row.both or D == 1 else (", forward", ", reverse")
    if len(layers) % len(directions):
        raise ValueError(f"{name}: {len(layers)} sets of arrays are not {D} for each layer")
    slots: list[Slot] = []
    for k, given in enumerate(layers):
        layer, d = divmod(k, len(directions))
        place = f"{name}, layer {layer}{directions[d]}"
        arrays = _as_tensors(given, row, place)
        if not slots:  # the first kernel says the sizes, whatever its shape; 1 at least, which then won't fit it
            (kernel, columns), *_ = row.columns.items()
            rows, into = (1, 1, *arrays[kernel].shape)[-2:][:: -1 if row.turned else 1]
            dtype, H = arrays[kernel].dtype, max(1, rows // len(row.gates))
            H_in = max(1, into - H if "H" in columns else into)
        sizes = {"D": D, "H": H, "H_in": D * H if layer else H_in}
        for array, tensor in arrays.items():
            shape, expected = tuple(tensor.shape), _shape(row.arrays[array], sizes)
            if shape != expected:
                said = f"({row.arrays[array]}) = {expected}, with H_in={sizes['H_in']} and H={H}"
                raise ValueError(f"{place}: {array} has shape {shape}, expected {said}")
            if tensor.dtype != dtype or not dtype.is_floating_point:
                raise ValueError(f"{place}: {array} is {tensor.dtype}, expected one of floats, the same for all")
        for i in range(D if row.both else 1):
            slots.append(({array: tensor[i] if row.both else tensor for array, tensor in arrays.items()}, sizes))
    return slots


def _as_tensors(given: Mapping[str, Any], row: Dialect, place: str) -> dict[str, Tensor]:
    """Return the arrays that there are as tensors, in the row's order."""
    there = [name for name in given if given[name] is not None]
    needed = list(row.arrays)[: -1 if row.unbiased else None]
    if not set(needed) <= set(there) <= set(row.arrays):
        raise ValueError(f"{place}: got the arrays {', '.join(map(str, there))}; expected {', '.join(row.arrays)}")
    tensors = {}
    for name in sorted(there, key=list(row.arrays).index):
        try:  # NumPy's are copied, for torch warns of those that can't be written
            tensors[name] = given[name].detach() if isinstance(given[name], Tensor) else torch.tensor(given[name])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{place}: {name} is not an array of numbers: {error}") from error
    return tensors


def _shape(words: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Compute what a shape of the table means for these sizes: products, or sums of two."""
    return tuple(
        sum(math.prod(sizes.get(factor) or int(factor) for factor in term.split("*")) for term in word.split(" + "))
        for word in words.split(", ")
    )


def _as_torch(slot: Slot, row: Dialect, values: Mapping[str, Any]) -> list[Tensor]:
    """Return one layer and direction as torch has it: weight_ih, weight_hh, bias_ih, bias_hh."""
    arrays, sizes = slot
    parts: dict[str, Tensor] = {}
    for name, columns in row.columns.items():
        kernel = arrays[name].mT if row.turned else arrays[name]
        parts |= zip(columns, torch.split(kernel, [sizes[column] for column in columns], 1), strict=True)
    zeros = parts["H"].new_zeros(parts["H"].size(0))
    biases = arrays.get(list(row.arrays)[-1], zeros).reshape(-1, zeros.size(0))  # of one or two rows
    b_ih, b_hh = [*biases, zeros][:2]
    *weights, b_hh = (weight[_order(row, sizes["H"])] for weight in (parts["H_in"], parts["H"], b_ih, b_hh))
    return [*weights, _add_forget(b_hh, values, 1)]


def _as_system(weights: Sequence[Tensor], row: Dialect, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return one layer and direction of torch's as the system's arrays: `_as_torch` undone."""
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or [w_ih.new_zeros(w_ih.size(0))] * 2
    b_hh = _add_forget(b_hh, values, -1)  # before the sum: what `load` added comes off without rounding
    order = torch.argsort(_order(row, w_hh.size(1)))
    w_ih, w_hh, b_ih, b_hh = (weight[order] for weight in (w_ih, w_hh, b_ih, b_hh))
    parts, written = {"H_in": w_ih, "H": w_hh}, {}
    for name, columns in row.columns.items():
        kernel = torch.cat([parts[column] for column in columns], 1)
        written[name] = kernel.mT.contiguous() if row.turned else kernel
    if biases or not row.unbiased:
        name, words = list(row.arrays.items())[-1]
        shape = _shape(words.removeprefix("D, "), {"H": w_hh.size(1)})
        bias = b_ih + b_hh if math.prod(shape) == b_ih.numel() else torch.stack([b_ih, b_hh])
        written[name] = bias.reshape(shape)
    return written


def _add_forget(bias: Tensor, values: Mapping[str, Any], sign: int) -> Tensor:
    """Add to torch's bias what the system adds to the forget gate at run time, rounded so that it comes off again."""
    added, H = torch.zeros_like(bias), bias.size(0) // 4
    added[H : 2 * H] = values.get("forget_bias", 0.0)
    return bias + sign * added


def _order(row: Dialect, H: int) -> Tensor:
    """Return, for each of torch's rows, the row of the system that holds it."""
    G = len(row.gates)
    letters = next(equation.gates for equation in EQUATIONS.values() if sorted(equation.gates) == sorted(row.gates))
    blocks = torch.arange(G * H).view(H, G).mT if row.interleaved else torch.arange(G * H).view(G, H)
    return torch.cat([blocks[row.gates.index(letter)] for letter in letters])
