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

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .cells import RNNCellBase
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
    """What a system lets its users choose. `values` are those that torch can represent; () is any number."""

    default: Any
    values: tuple[Any, ...]
    why: str = ""


@dataclass(frozen=True)
class Dialect:
    """How one system keeps the weights of one kind of layer.

    gates        the order of the blocks of rows (of columns, if `turned`), in the letters of `EQUATIONS`
    arrays       the names of input kernel, recurrent kernel (not if `joined`), bias
    turned       kernels are (in, out)
    joined       "xh": one kernel, for x and h side by side; "hx": h comes first; "": a kernel for each
    interleaved  row G*u + k is gate k of unit u
    biases       one: a single bias, which is the sum; two: (2, G*H); end to end: (2*G*H,)
    both         arrays have a leading dimension of directions
    unbiased     the system has layers without a bias array, and reads a missing one as zeros
    attributes   by the system's name
    refused      why torch has no such layer, whatever the weights
    """

    gates: str
    arrays: tuple[str, ...]
    turned: bool = False
    joined: Literal["", "xh", "hx"] = ""
    interleaved: bool = False
    biases: str = "one"
    both: bool = False
    unbiased: bool = False
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
            if not attribute.values and (not isinstance(value, Real) or isinstance(value, bool)):
                raise TypeError(f"{name}: {key} should be a number, got: {type(value).__name__}")
        return values


def _keras(**more: Attribute) -> dict[str, Attribute]:
    return {"activation": Attribute("tanh", ("tanh",), CANDIDATE), **more}


_SIGMOID = Attribute("sigmoid", ("sigmoid",), GATE)
_UNBOUNDED = float("inf")


def _onnx(*activations: tuple[str, ...], why: str, **more: Attribute) -> dict[str, Attribute]:
    """What ONNX lets its users choose; of two directions it lists the activations twice."""
    listed = tuple(names * times for names in activations for times in (1, 2))
    return {
        "activations": Attribute(activations[0], (None, *listed), why),
        "clip": Attribute(None, (None, 0.0, _UNBOUNDED), CLIP),
        "activation_alpha": Attribute(None, (None, ()), ALPHA),
        "activation_beta": Attribute(None, (None, ()), ALPHA),
        **more,
    }


_FORGET = {"forget_bias": Attribute(1.0, ())}
_KERNELS = ("kernel", "recurrent_kernel", "bias")

#: By system and kind. Sources: the systems' own code or operator documentation, file by file in tests/test_dialects.py.
DIALECTS: dict[tuple[str, str], Dialect] = {
    ("keras", "LSTM"): Dialect(
        "ifgo", _KERNELS, turned=True, unbiased=True, attributes=_keras(recurrent_activation=_SIGMOID),
    ),
    ("keras", "GRU"): Dialect(
        "zrn", _KERNELS, turned=True, biases="two", unbiased=True,
        attributes=_keras(recurrent_activation=_SIGMOID, reset_after=Attribute(True, (True,), RESET)),
    ),
    ("keras", "RNN"): Dialect(
        "h", _KERNELS, turned=True, unbiased=True,
        attributes={"activation": Attribute("tanh", ("tanh", "relu"), "torch has tanh and relu")},
    ),
    ("onnx", "LSTM"): Dialect(
        "iofg", ("W", "R", "B"), biases="end to end", both=True, unbiased=True,
        attributes=_onnx(
            ("Sigmoid", "Tanh", "Tanh"), why=f"{GATE}, {CANDIDATE}",
            P=Attribute(None, (None,), PEEPHOLES), input_forget=Attribute(0, (0,), COUPLED),
        ),
    ),
    ("onnx", "GRU"): Dialect(
        "zrn", ("W", "R", "B"), biases="end to end", both=True, unbiased=True,
        attributes=_onnx(
            ("Sigmoid", "Tanh"), why=f"{GATE}, {CANDIDATE}", linear_before_reset=Attribute(0, (1,), RESET),
        ),
    ),
    ("onnx", "RNN"): Dialect(
        "h", ("W", "R", "B"), biases="end to end", both=True, unbiased=True,
        attributes=_onnx(("Tanh",), ("Relu",), why="torch has tanh and relu"),
    ),
    ("openvino", "LSTM"): Dialect(
        "figo", ("W", "R", "B"), both=True,
        attributes={
            "activations": Attribute(None, (None, ("sigmoid", "tanh", "tanh")), f"{GATE}, {CANDIDATE}"),
            "clip": Attribute(None, (None, 0.0, _UNBOUNDED), CLIP),
        },
    ),
    ("tf1", "LSTM"): Dialect(
        "igfo", ("kernel", "bias"), turned=True, joined="xh",
        attributes=_keras(**_FORGET, use_peepholes=Attribute(False, (False,), PEEPHOLES)),
    ),
    ("tf1", "GRU"): Dialect("rzn", ("kernel", "bias"), refused=RESET),
    ("haiku", "LSTM"): Dialect("igfo", ("w", "b"), turned=True, joined="xh", attributes=_FORGET),
    ("haiku", "GRU"): Dialect("zrn", ("w_i", "w_h", "b"), refused=RESET),
    ("sonnet", "LSTM"): Dialect("ifgo", ("w_i", "w_h", "b"), turned=True),
    ("sonnet", "GRU"): Dialect("zrn", ("w_i", "w_h", "b"), refused=RESET),
    ("coreml", "LSTM"): Dialect(
        "ifog", ("weight_ih", "weight_hh", "bias"), unbiased=True,
        attributes={"peephole": Attribute(None, (None,), PEEPHOLES),
                    "clip": Attribute(None, (None, _UNBOUNDED), CLIP),  # 0 is a bound here: the cell gate is 0
                    "recurrent_activation": _SIGMOID, "cell_activation": Attribute("tanh", ("tanh",), CANDIDATE),
                    "activation": Attribute("tanh", ("tanh",), CANDIDATE)},
    ),
    ("chainer", "LSTM"): Dialect("gifo", ("upward.W", "lateral.W", "upward.b"), interleaved=True),
    ("chainer", "GRU"): Dialect("rzn", ("W", "U"), refused=RESET),
    ("ncps", "LSTM"): Dialect(
        "gifo", ("input_map.weight", "recurrent_map.weight", "input_map.bias"), attributes=_FORGET,
    ),
    ("tracetorch", "LSTM"): Dialect("ifog", ("gate_layers.weight", "gate_layers.bias"), joined="hx"),
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
    """Make a layer of rnnkit with the weights of another system.

    system, kind    a row of DIALECTS: "keras", "onnx", ..., and "LSTM", "GRU" or "RNN"
    layers          the arrays by name, a dictionary for each layer and direction as the module's docstring says. An
                    array is anything `torch.tensor` takes, of a floating-point dtype, which all share and the result
                    has; None stands for an array that is not there
    bidirectional   whether there are two directions (default False)
    batch_first     of the result (default False); no system's weights depend on it
    given           what the system lets its users choose, under its own names

    Returns an `rnnkit.LSTM`, `GRU` or `RNN` on the CPU with copies of the weights. A system's single bias goes to
    bias_ih, what it adds to the forget gate to bias_hh. Where the system lets a layer have no bias (Keras, ONNX,
    CoreML), the result has none if no layer has, and zeros for those that have none if others have.

    Raises ValueError, before anything is built, for a dialect or an attribute that torch's equations cannot represent;
    for `layers` that are no list of dictionaries, or an empty one; for an array that is missing, that the system does
    not have, that has another shape than the system documents or that fits the other layers', or another dtype than the
    others; TypeError for an attribute that the system does not have. Values are not looked at: nan passes.
    """
    row = dialect(system, kind)
    values = row.check(f"{system} {kind}", given)
    D = 2 if bidirectional else 1
    read = _read_layers(layers, row, f"{system} {kind}", D)
    H_in, H = _check_shapes(read, row, D)
    slots = [
        {name: tensor[d] for name, tensor in arrays.items()} if row.both else arrays
        for _, arrays in read
        for d in range(D if row.both else 1)
    ]
    options: dict[str, Any] = {"nonlinearity": _nonlinearity(values)} if kind == "RNN" else {}
    module: RNNBase = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind](
        H_in, H, len(slots) // D, bias=any(row.arrays[-1] in arrays for arrays in slots), bidirectional=bidirectional,
        batch_first=batch_first, dtype=slots[0][row.arrays[0]].dtype, **options,
    )  # fmt: skip
    with torch.no_grad():
        for names, arrays in zip(module._all_weights, slots, strict=True):
            weights = _as_torch(arrays, row, values)
            for name in names:
                getattr(module, name).copy_(weights[name.partition("_l")[0]])
    return module


def dump(system: str, module: RNNBase, **given: Any) -> list[dict[str, Tensor]]:
    """Give the weights of `module`, an `rnnkit.LSTM`, `GRU` or `RNN`, as another system keeps them: what `load` takes.

    Returns new tensors of the module's dtype, in a dictionary for each layer and direction or for each layer. What
    `load` makes of them computes the same. A system with one bias gets the sum of torch's two, less what the system
    itself adds to the forget gate: that sum rounds, all else is exact, and so are biases that `load` brought. Without
    biases there is no bias array, or zeros where the system must have one.

    Attributes that the system must be given for these weights are those that `load` insists on
    (`linear_before_reset=1` in ONNX, the activation of an RNN). Raises TypeError for what is no recurrent layer of
    rnnkit, ValueError where the system has no such layer: projections, complex weights, another activation.
    """
    _check_is_layer(module)
    kind = "RNN" if module.mode in ("RNN_TANH", "RNN_RELU") else module.mode
    row = dialect(system, kind)
    needed = {key: a.values[0] for key, a in row.attributes.items() if a.values and a.default not in a.values}
    if module.mode == "RNN_RELU":
        needed |= {key: a.values[-1] for key, a in row.attributes.items() if key.startswith("activation") and a.default}
    values = row.check(f"{system} {kind}", {**needed, **given})
    if kind == "RNN" and f"RNN_{_nonlinearity(values).upper()}" != module.mode:
        raise ValueError(f"the module's activation is {module.mode[4:].lower()}, not {_nonlinearity(values)}")
    if module.proj_size:
        raise ValueError(f"{system} {kind} has no projection")
    if not module.all_weights[0][0].is_floating_point():
        raise ValueError(f"{system} {kind} has no weights of {module.all_weights[0][0].dtype}")
    fields = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    slots = [
        _as_system(dict(zip(fields, (weight.detach() for weight in weights), strict=False)), row, values)
        for weights in module.all_weights
    ]
    if not row.both:
        return slots
    D = 2 if module.bidirectional else 1
    pairs = [slots[start : start + D] for start in range(0, len(slots), D)]
    return [{name: torch.stack([slot[name] for slot in pair]) for name in pair[0]} for pair in pairs]


def _nonlinearity(values: Mapping[str, Any]) -> str:
    named = values.get("activation") or (values.get("activations") or ["tanh"])[0]
    return str(named).lower()


def _check_is_layer(module: Any) -> None:
    """Raise TypeError for what is no recurrent layer of rnnkit, and say what to do."""
    if isinstance(module, RNNBase):
        return
    wanted = "dump takes an rnnkit.LSTM, GRU or RNN"
    if isinstance(module, nn.RNNBase):
        wanted += "; rnnkit.convert makes one of torch.nn's"
    elif isinstance(module, (nn.RNNCellBase, RNNCellBase)):
        wanted += "; a cell's weights go into a layer by load_state_dict, under names that end in _l0"
    got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
    raise TypeError(f"{wanted}, got: {got}")


# The arrays, as they are given ---------------------------------------------------------------------------------------


def _read_layers(layers: Any, row: Dialect, name: str, D: int) -> list[tuple[str, dict[str, Tensor]]]:
    """Each dictionary's arrays as tensors, with words that say which it is. Names and dtypes are in order then."""
    what = "layer" if row.both or D == 1 else "layer and direction"
    listed = isinstance(layers, Sequence) and not isinstance(layers, (str, bytes))
    if not listed or not all(isinstance(arrays, Mapping) for arrays in layers):
        raise ValueError(f"{name}: layers should be a list of dictionaries of arrays, one for each {what}")
    if not layers:
        raise ValueError(f"{name}: layers is empty; expected a dictionary of arrays for each {what}")
    directions = 1 if row.both else D
    if len(layers) % directions:
        raise ValueError(f"{name}: {len(layers)} sets of arrays are not {D} for each layer")
    read = []
    for k, arrays in enumerate(layers):
        layer, d = divmod(k, directions)
        place = f"{name}, layer {layer}" + (f", {('forward', 'reverse')[d]}" if directions > 1 else "")
        read.append((place, _read_arrays(arrays, row, place)))
    dtype = read[0][1][row.arrays[0]].dtype
    for place, tensors in read:
        for array, tensor in tensors.items():
            if tensor.dtype != dtype:
                raise ValueError(
                    f"{place}: {array} is {tensor.dtype}, but {row.arrays[0]} of the first layer is {dtype}"
                )
    return read


def _read_arrays(arrays: Arrays, row: Dialect, place: str) -> dict[str, Tensor]:
    """The arrays that there are, as tensors, in the row's order. ValueError for missing, foreign or unusable ones."""
    there = [name for name in arrays if arrays[name] is not None]
    for name in there:
        if name not in row.arrays:
            attribute = row.attributes.get(name)
            why = f": {attribute.why}" if attribute and attribute.why else ""
            raise ValueError(f"{place}: no array is named {name!r}{why}; expected {', '.join(row.arrays)}")
    needed = row.arrays[:-1] if row.unbiased else row.arrays
    missing = [name for name in needed if name not in there]
    if missing:
        raise ValueError(f"{place}: {', '.join(missing)} missing; expected {', '.join(row.arrays)}")
    return {name: _as_tensor(arrays[name], f"{place}: {name}") for name in row.arrays if name in there}


def _as_tensor(array: Any, place: str) -> Tensor:
    """The array as a tensor of floats. NumPy's are copied, for torch warns of those that can't be written."""
    try:
        tensor = array.detach() if isinstance(array, Tensor) else torch.tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{place} is not an array of numbers: {error}") from error
    if not tensor.is_floating_point():
        raise ValueError(f"{place} is {tensor.dtype}; expected floating-point numbers")
    return tensor


def _documented(row: Dialect) -> dict[str, tuple[str, ...]]:
    """The shape of each array in the words of the systems' documentation, of which `_sizes` says the numbers."""
    G = len(row.gates)
    rows, ends = (f"{G}*H" if G > 1 else "H"), f"{2 * G}*H"
    kernels = [(rows, " + ".join(_JOINED[row.joined]))] if row.joined else [(rows, "H_in"), (rows, "H")]
    bias = {"one": (rows,), "two": ("2", rows), "end to end": (ends,)}[row.biases]
    shapes = [*(kernel[::-1] if row.turned else kernel for kernel in kernels), bias]
    return {name: ("D",) * row.both + shape for name, shape in zip(row.arrays, shapes, strict=True)}


_JOINED = {"xh": ("H_in", "H"), "hx": ("H", "H_in")}


def _sizes(row: Dialect, H_in: int, H: int, D: int) -> dict[str, int]:
    """What the words of `_documented` mean for these sizes."""
    G = len(row.gates)
    joined = {" + ".join(order): H_in + H for order in _JOINED.values()}
    return {"2": 2, "D": D, "H_in": H_in, f"{G}*H": G * H, f"{2 * G}*H": 2 * G * H, "H": H, **joined}


def _check_shapes(read: list[tuple[str, dict[str, Tensor]]], row: Dialect, D: int) -> tuple[int, int]:
    """Return H_in and H, as the first layer's kernels have them. ValueError unless all arrays fit them."""
    documented = _documented(row)
    for place, tensors in read:
        for name, tensor in tensors.items():
            if tensor.dim() != len(documented[name]):
                raise _misshapen(place, name, tensor, documented[name])
    H_in, H = _first_sizes(*read[0], row, documented)
    kernel = row.arrays[-2]  # the one that says H; where it contradicts itself, the others are not to blame
    for k, (place, tensors) in enumerate(read):
        sizes = _sizes(row, H_in if k < (1 if row.both else D) else D * H, H, D)
        for name in sorted(tensors, key=lambda name: name != kernel):
            if tuple(tensors[name].shape) != tuple(sizes[word] for word in documented[name]):
                raise _misshapen(place, name, tensors[name], documented[name], sizes)
    return H_in, H


def _first_sizes(
    place: str, tensors: Mapping[str, Tensor], row: Dialect, documented: Mapping[str, tuple[str, ...]]
) -> tuple[int, int]:
    """H_in and H from one layer's kernels. ValueError where these are no sizes."""
    found: dict[str, int] = {}
    for name in row.arrays[:-1]:  # the recurrent kernel is the last, so its H counts
        found |= zip(documented[name], tensors[name].shape, strict=True)
    if row.joined:
        H = found[f"{len(row.gates)}*H"] // len(row.gates)
        H_in = found[" + ".join(_JOINED[row.joined])] - H
    else:
        H, H_in = found["H"], found["H_in"]
    if H < 1 or H_in < 1:
        name = row.arrays[0] if H else row.arrays[-2]
        raise _misshapen(place, name, tensors[name], documented[name])
    return H_in, H


def _misshapen(
    place: str, name: str, tensor: Tensor, words: tuple[str, ...], sizes: Mapping[str, int] | None = None
) -> ValueError:
    expected = f"({', '.join(words)}{',' * (len(words) == 1)})"
    if sizes:
        expected += f" = {tuple(sizes[word] for word in words)}, with H_in={sizes['H_in']} and H={sizes['H']}"
    return ValueError(f"{place}: {name} has shape {tuple(tensor.shape)}, expected {expected}")


# From the system's layout to torch's, and back -----------------------------------------------------------------------


def _as_torch(arrays: Mapping[str, Tensor], row: Dialect, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """One layer and direction in torch's names and order."""
    kernels = [arrays[name].mT if row.turned else arrays[name] for name in row.arrays[:-1]]
    rows = kernels[0].size(0)
    H = rows // len(row.gates)
    if row.joined:
        sizes = {"H": H, "H_in": kernels[0].size(1) - H}
        words = _JOINED[row.joined]
        halves = dict(zip(words, torch.split(kernels[0], [sizes[word] for word in words], 1), strict=True))
        kernels = [halves["H_in"], halves["H"]]
    bias = arrays.get(row.arrays[-1])
    if bias is None:
        b_ih = b_hh = kernels[0].new_zeros(rows)
    elif row.biases == "one":
        b_ih, b_hh = bias, torch.zeros_like(bias)
    else:
        b_ih, b_hh = bias.unbind(0) if row.biases == "two" else bias.chunk(2)
    order = _order(row, H)
    read = {"weight_ih": kernels[0], "weight_hh": kernels[1], "bias_ih": b_ih, "bias_hh": b_hh}
    read = {name: tensor[order] for name, tensor in read.items()}
    read["bias_hh"] = read["bias_hh"] + _forget(values, read["bias_hh"])
    return read


def _as_system(weights: Mapping[str, Tensor], row: Dialect, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """One layer and direction of torch's as the system's arrays: `_as_torch` undone."""
    H = weights["weight_hh"].size(1)
    inverse = torch.argsort(_order(row, H))
    zeros = weights["weight_ih"].new_zeros(weights["weight_ih"].size(0))
    b_ih, b_hh = weights.get("bias_ih", zeros), weights.get("bias_hh", zeros)
    b_hh = (b_hh - _forget(values, b_hh))[inverse]  # before the sum: what `load` added comes off without rounding
    w_ih, w_hh, b_ih = weights["weight_ih"][inverse], weights["weight_hh"][inverse], b_ih[inverse]
    halves = {"H_in": w_ih, "H": w_hh}
    kernels = [torch.cat([halves[word] for word in _JOINED[row.joined]], 1)] if row.joined else [w_ih, w_hh]
    kernels = [kernel.mT.contiguous() if row.turned else kernel for kernel in kernels]
    written = dict(zip(row.arrays[:-1], kernels, strict=True))
    if "bias_ih" in weights or not row.unbiased:
        biases = {"one": b_ih + b_hh, "two": torch.stack([b_ih, b_hh]), "end to end": torch.cat([b_ih, b_hh])}
        written[row.arrays[-1]] = biases[row.biases]
    return written


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
