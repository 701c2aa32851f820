"""From a case to observations: draw the numbers, build a module, run it forward and backward, write down what is seen.

Nothing here compares anything and nothing knows which implementation it runs: reference and subject are namespaces
(`torch.nn`, any module, any object) that offer the six classes.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from . import ragged
from .cases import AUTOCAST_FLOAT16, Case


class Sizes(NamedTuple):
    """The sizes of a problem: small, pairwise unequal where it helps, ragged where packed."""

    input: int
    hidden: int
    proj: int
    batch: int
    lengths: tuple[int, ...]

    def limited(self, name: str, most: int) -> Sizes:
        """Limit one of the sizes; without some of its rows a batch also lacks their lengths."""
        if name == "lengths":
            return self._replace(lengths=tuple(min(length, most) for length in self.lengths))
        fewer = self._replace(**{name: min(getattr(self, name), most)})
        return fewer._replace(lengths=self.lengths[: fewer.batch]) if name == "batch" else fewer


SIZES = (
    Sizes(5, 4, 3, 3, (2, 5, 3)),
    Sizes(3, 7, 2, 4, (3, 1, 6, 3)),
    Sizes(6, 5, 4, 2, (1, 4)),
)
WIDE = Sizes(19, 37, 11, 5, (2, 9, 4, 9, 1))


@dataclass(frozen=True)
class Draw:
    """The numbers of a case: constructor arguments, and float64 (complex128) tensors by name."""

    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    input: Tensor
    hx: tuple[Tensor, ...]
    lengths: tuple[int, ...]
    cotangents: dict[str, Tensor]  # the loss is the sum of cotangent * output, over all outputs
    seed: int
    resets: Tensor | None = None  # booleans, as `ragged.Ragged` has them
    reset_to: tuple[Tensor, ...] = ()  # as hx

    @property
    def rows(self) -> int:
        """Return the number of vectors in the input."""
        return self.input[..., 0].numel()

    def shifted(self, eps: float, seed: int) -> Draw:
        """Move every weight, input and state by a factor of 1 + eps or 1 - eps."""
        generator = torch.Generator().manual_seed(seed)

        def shift(tensor: Tensor) -> Tensor:
            return tensor * (1 + eps * (2 * torch.randint(2, tensor.shape, generator=generator) - 1))

        weights = {name: shift(weight) for name, weight in self.weights.items()}
        hx, reset_to = (tuple(map(shift, states)) for states in (self.hx, self.reset_to))
        return replace(self, weights=weights, input=shift(self.input), hx=hx, reset_to=reset_to)


@dataclass(frozen=True)
class Precision:
    """Compute in `dtype` on numbers first rounded to `rounded_to`.

    A run in a wider dtype on the same rounded numbers does the same problem with less rounding, so the difference
    between the two is the narrow run's error.
    """

    dtype: torch.dtype
    rounded_to: torch.dtype

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.rounded_to).to(self.dtype)


@dataclass
class Observations:
    """What a run shows: tensors by name, other facts by name, or the exception that ended it."""

    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def draw(case: Case, seed: int, sizes: Sizes | None = None) -> Draw:
    """Draw the numbers of `case`, of its own sizes where none are given.

    Weights have standard deviation 1.2 / sqrt(fan in), biases 0.6, states 0.7 and inputs 1: gates spread over their
    whole range without sticking to its ends, and no two gates, layers or directions share a number. Complex weights
    are a quarter of that: sigmoid and tanh have poles on the imaginary axis, and no rounding is small near a pole. In
    16 bits they are two thirds of it: chaos, to which a recurrence of large weights is near, eats eight bits up.

    Below float64 a ReLU is given units that are firmly on or off (numbers of one sign), for the same reason: beside
    the kink a rounding decides whether a gradient is there at all. In float64 the odds of that are negligible.
    """
    firm = case.kind.endswith("relu") and case.dtype != "float64"
    generator = torch.Generator().manual_seed(case.seed(seed))
    dtype, gain = torch.float64, 1.2
    if case.dtype.startswith("complex"):
        dtype, gain = torch.complex128, 0.3
    if case.dtype in ("bfloat16", "float16") or case.special.startswith("autocast"):
        gain = 0.8

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def parameter(rows: int, fan_in: int = 0) -> Tensor:
        drawn = randn(rows, fan_in) * gain / fan_in**0.5 if fan_in else randn(rows) * gain / 2
        if firm:  # even rows positive, odd rows negative, each of the same sum whatever its length
            drawn = drawn.abs() / max(1, fan_in) ** 0.5
            drawn[1::2].neg_()
        return drawn

    def value(*shape: int) -> Tensor:
        return randn(*shape).abs() if firm else randn(*shape)

    input_size, hidden_size, proj_size, batch, lengths = sizes or _sizes(case, seed)
    out_size = proj_size if case.kind == "LSTM-proj" else hidden_size
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[case.class_name.removesuffix("Cell")]
    directions = 2 if case.bidirectional else 1
    arguments = _constructor(case, input_size, hidden_size, proj_size)

    weights = {}
    for layer in range(case.layers):
        for direction in range(directions):
            suffix = "" if case.is_cell else f"_l{layer}" + "_reverse" * direction
            fan_in = input_size if layer == 0 else out_size * directions
            weights["weight_ih" + suffix] = parameter(gates * hidden_size, fan_in)
            weights["weight_hh" + suffix] = parameter(gates * hidden_size, out_size)
            if case.bias:
                weights["bias_ih" + suffix] = parameter(gates * hidden_size)
                weights["bias_hh" + suffix] = parameter(gates * hidden_size)
            if case.kind == "LSTM-proj":
                weights["weight_hr" + suffix] = parameter(proj_size, hidden_size)

    rows = () if case.form == "unbatched" else (batch,)
    if case.is_cell:
        input = value(*rows, input_size)
        states = {"h_1": value(*rows, hidden_size), "c_1": value(*rows, hidden_size)}
        outputs = {name: randn(*state.shape) for name, state in states.items()}
    else:
        steps, slots = max(lengths), case.layers * directions
        shape = (steps,) if case.form == "unbatched" else (batch, steps) if case.batch_first else (steps, batch)
        input = value(*shape, input_size)
        states = {"h_n": value(slots, *rows, out_size), "c_n": value(slots, *rows, hidden_size)}
        outputs = {"output": randn(*shape, out_size * directions)}
        if case.is_packed:
            outputs["output"] = randn(sum(lengths), out_size * directions)
        outputs |= {name: randn(*state.shape) for name, state in states.items()}
    names = list(states) if case.is_lstm else list(states)[:1]
    hx = tuple(states[name] * 0.7 for name in names) if case.hx else ()
    if case.special == "huge":
        input, hx = input * 1e10, tuple(state * 1e10 for state in hx)
    only = case.special.removeprefix("loss_") if case.special.startswith("loss_") else ""
    only = only.replace("_n", "_1") if case.is_cell else only
    wanted = [only] if only else [name for name in outputs if name in names or name == "output"]
    cotangents = {name: outputs[name] for name in wanted}
    resets = torch.rand(shape[:2], generator=generator) < 0.3 if case.form == "resets" else None
    reset_to = tuple(value(*state.shape) * 0.7 for state in hx) if resets is not None else ()
    masks = case.seed(seed) & 0x7FFFFFFF
    return Draw(arguments, weights, input, hx, lengths, cotangents, masks, resets, reset_to)


def _sizes(case: Case, seed: int) -> Sizes:
    input_size, hidden_size, proj_size, batch, lengths = WIDE if case.special == "wide" else SIZES[case.seed(seed) % 3]
    if case.special in ("one_step", "long", "empty_batch"):
        steps = {"one_step": 1, "long": 40, "empty_batch": 5}[case.special]
        lengths = tuple(min(steps, 7 * length) for length in lengths)
    if case.special == "empty_batch":
        batch, lengths = 0, lengths[:1]
    if case.form == "unbatched":
        batch, lengths = 1, (max(lengths),)
    if case.form == "packed":
        lengths = tuple(sorted(lengths, reverse=True))
    return Sizes(input_size, hidden_size, proj_size, batch, lengths)


def _constructor(case: Case, input_size: int, hidden_size: int, proj_size: int) -> dict[str, Any]:
    """Return the arguments of a case's constructor. No two GPU kernels draw the same masks: there all is dropped."""
    arguments: dict[str, Any] = {"input_size": input_size, "hidden_size": hidden_size, "bias": case.bias}
    if case.class_name.startswith("RNN"):
        arguments["nonlinearity"] = case.kind.split("-")[1]
    if not case.is_cell:
        dropout = 1.0 if case.on_gpu and case.dropout == "dropout_train" else 0.4 if case.dropout else 0.0
        arguments |= {"num_layers": case.layers, "batch_first": case.batch_first}
        arguments |= {"bidirectional": case.bidirectional, "dropout": dropout}
    if case.kind == "LSTM-proj":
        arguments["proj_size"] = proj_size
    return arguments


def build(namespace: Any, case: Case, drawn: Draw, precision: Precision) -> torch.nn.Module:
    """Make a module of `namespace` in `case`'s configuration, with the drawn weights."""
    place = {"device": case.device} if case.on_gpu else {}
    module: torch.nn.Module = getattr(namespace, case.class_name)(**drawn.arguments, dtype=precision.dtype, **place)
    names = [name for name, _ in module.named_parameters()]
    if names != list(drawn.weights):
        raise AttributeError(f"parameters are {names}, torch.nn's are {list(drawn.weights)}")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(precision.cast(drawn.weights[name]), non_blocking=True)
    module.train(case.dropout != "dropout_eval")
    return module


def observe(namespace: Any, case: Case, drawn: Draw, precision: Precision) -> Observations:
    """Build, run forward and backward, observe."""
    seen = Observations()
    products = tf32(case.tf32) if case.on_gpu else contextlib.nullcontext()
    with onednn(case.onednn), warnings.catch_warnings(record=True) as caught, products:
        warnings.simplefilter("always")
        try:
            _observe(seen, namespace, case, drawn, precision)
        except Exception as error:  # whatever a subject raises is an observation
            seen.error = f"{type(error).__name__}: {error}"
        seen.tensors = fetched(seen.tensors, case.device)
        seen.facts["warnings"] = [  # torch's C++ warns once per process: whoever comes first
            (warning.category.__name__, str(warning.message))
            for warning in caught
            if "Triggered internally" not in str(warning.message)
        ]
    return seen


def _observe(seen: Observations, namespace: Any, case: Case, drawn: Draw, precision: Precision) -> None:
    module = build(namespace, case, drawn, precision)
    input, hx, leaves = _arguments(case, drawn, precision)
    if case.special == "frozen_weights":
        module.requires_grad_(False)
    if case.special == "second_call":
        with torch.no_grad():
            module(input, *hx)
            for parameter in module.parameters():
                parameter.mul_(0.9)

    named = dict(zip(("input", "hx"), (input, *hx), strict=False))
    snapshot = {name: tensor.detach().clone() for name, tensor in _callers(module, leaves, input)}
    (torch if case.on_gpu else torch.default_generator).manual_seed(drawn.seed)  # torch.manual_seed keeps a stack trace
    with _circumstances(case, precision.dtype):
        if case.is_ragged:
            result = _run_ragged(module, case, drawn, named, leaves)
        else:
            result = module(**named) if case.special == "keywords" else module(*named.values())
    outputs = _outputs(seen, case, result)
    seen.tensors |= {name: tensor.detach() for name, tensor in outputs.items()}
    seen.facts["requires_grad"] = {name: tensor.requires_grad for name, tensor in outputs.items()}
    if not case.is_ragged:  # where torch.nn makes several calls, its layout says nothing
        seen.facts["contiguous"] = {name: tensor.is_contiguous() for name, tensor in outputs.items()}
    seen.facts["aliases"] = _aliases([*outputs.items(), *_callers(module, leaves, input)], set(outputs))

    if case.special == "written_on":
        seen.tensors |= {name: tensor.clone() for name, tensor in seen.tensors.items() if tensor is not None}
        outputs["output"].mul_(0.5)
    if any(tensor.requires_grad for tensor in outputs.values()):
        wanted = [name for name in drawn.cotangents if outputs[name].requires_grad]
        cotangents = [precision.cast(drawn.cotangents[name]).to(outputs[name]) for name in wanted]
        torch.autograd.backward([outputs[name] for name in wanted], cotangents)
        seen.tensors |= {f"grad of {name}": leaf.grad for name, leaf in leaves.items()}
        if case.is_ragged:  # a state that no segment begins with has no gradient, or one of zeros
            unused = {name: leaf for name, leaf in leaves.items() if leaf.grad is None}
            seen.tensors |= {f"grad of {name}": torch.zeros_like(leaf) for name, leaf in unused.items()}
        seen.tensors |= {f"grad of {name}": parameter.grad for name, parameter in module.named_parameters()}
    seen.facts["generator"] = None if case.on_gpu else generator_state()  # a GPU has generators of its own
    after = fetched({name: tensor.detach() for name, tensor in _callers(module, leaves, input)}, case.device)
    before = fetched(snapshot, case.device)
    seen.facts["written to"] = [name for name in after if not same_bits(after[name], before[name])]


def _run_ragged(
    module: torch.nn.Module, case: Case, drawn: Draw, named: dict[str, Any], leaves: dict[str, Tensor]
) -> tuple[Any, Any]:
    arguments, other = drawn.arguments, tuple(leaf for name, leaf in leaves.items() if name.startswith("reset_to"))
    lengths = torch.tensor(drawn.lengths, device=case.device) if case.form == "lengths" else None
    resets = None if drawn.resets is None else drawn.resets.to(case.device)
    given = ragged.Ragged(lengths, resets, (other if case.is_lstm else other[0]) if other else None)
    sizes = [arguments.get("proj_size", arguments["hidden_size"]), arguments["hidden_size"]][: 1 + case.is_lstm]
    return ragged.call(module, named["input"], named.get("hx"), given, sizes)


def _arguments(
    case: Case, drawn: Draw, precision: Precision
) -> tuple[Tensor | PackedSequence, tuple[Any, ...], dict[str, Tensor]]:
    """Return (input, () or (hx,), the leaf tensors by name)."""
    wants_grad = case.special != "frozen_input"

    def leaf(tensor: Tensor) -> Tensor:
        tensor = precision.cast(tensor).to(case.device, non_blocking=True)
        if case.special == "expanded":  # the first row of the batch (of the steps, of the features) stands for all
            tensor = tensor.narrow(0 if tensor.dim() < 3 else 1, 0, 1)
        if case.special == "noncontiguous":
            return torch.stack([tensor, tensor.flip(0)], dim=-1)[..., 0].requires_grad_(wants_grad)
        return tensor.clone().requires_grad_(wants_grad)

    input: Tensor | PackedSequence
    if case.is_packed:
        lengths = torch.tensor(drawn.lengths)
        padded = precision.cast(drawn.input).to(case.device)
        packed = pack_padded_sequence(padded, lengths, case.batch_first, enforce_sorted=case.form == "packed")
        rows = leaf(packed.data)  # a leaf of its own: complex padding has no derivative in torch
        leaves = {"input": rows}
        input = PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    else:
        leaves = {"input": leaf(drawn.input)}
        input = leaves["input"]
    names = ("h_0", "c_0")[: len(drawn.hx)]
    leaves |= {name: leaf(state) for name, state in zip(names, drawn.hx, strict=True)}
    states = [leaves[name] for name in names]
    leaves |= {f"reset_to {name}": leaf(state) for name, state in zip(names, drawn.reset_to, strict=False)}
    if case.special == "expanded":
        input = leaves["input"].expand_as(drawn.input)
        states = [state.expand_as(drawn_state) for state, drawn_state in zip(states, drawn.hx, strict=True)]
    hx = () if not states else (tuple(states),) if case.is_lstm else (states[0],)
    return input, hx, leaves


def _outputs(seen: Observations, case: Case, result: Any) -> dict[str, Tensor]:
    """Name the tensors of a forward's result; their container is recorded as a fact."""
    seen.facts["structure"] = _structure(result)
    if case.is_cell:
        names, states = ("h_1", "c_1")[: 1 + case.is_lstm], result if case.is_lstm else (result,)
        return dict(zip(names, states, strict=True))
    output, states = result
    if isinstance(output, PackedSequence):
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            indices = getattr(output, name)
            seen.facts[name] = None if indices is None else (str(indices.device), indices.tolist())
        output = output.data
    if case.is_lstm and isinstance(states, Tensor):
        raise TypeError("h_n and c_n are one tensor, not two")
    names, states = ("h_n", "c_n")[: 1 + case.is_lstm], states if case.is_lstm else (states,)
    return {"output": output} | dict(zip(names, states, strict=True))


def _structure(value: Any) -> str:
    if isinstance(value, PackedSequence):
        return "PackedSequence"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(_structure, value))})"
    return type(value).__name__


def _callers(
    module: torch.nn.Module, leaves: dict[str, Tensor], input: Tensor | PackedSequence
) -> Iterator[tuple[str, Tensor]]:
    """Return everything that belongs to the caller and that a forward or a backward must not write to."""
    yield from leaves.items()
    yield from module.named_parameters()
    if isinstance(input, PackedSequence):
        yield from ((name, tensor) for name, tensor in input._asdict().items() if tensor is not None and name != "data")


def _aliases(tensors: list[tuple[str, Tensor]], outputs: set[str]) -> set[str]:
    """List pairs that share memory and of which one at least is an output."""
    owner: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        if tensor.numel():
            owner.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    return {
        f"{first} and {second}"
        for sharing in owner.values()
        for (first, a), (second, b) in itertools.combinations(sharing, 2)
        if first in outputs and _overlap(a, b)
    }


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors on the same memory have a number in common."""
    if a.element_size() != b.element_size():
        return True
    taken = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    taken.as_strided(a.size(), a.stride(), a.storage_offset()).fill_(True)
    return bool(taken.as_strided(b.size(), b.stride(), b.storage_offset()).any())


@contextlib.contextmanager
def onednn(enabled: bool) -> Iterator[None]:
    """Turn oneDNN on or off. (`torch.backends.mkldnn.flags` does it too, and warns of TensorFloat-32 at each use.)"""
    mkldnn: Any = torch.backends.mkldnn  # the switch is a descriptor of the module's class
    before = mkldnn.enabled
    mkldnn.enabled = enabled
    try:
        yield
    finally:
        mkldnn.enabled = before


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Turn TF32 on or off for all products on a GPU, cuDNN's too, which alone has it on by default.

    These are torch's older switches. Its compiler still reads them, and they must not be mixed with `fp32_precision`.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def _circumstances(case: Case, dtype: torch.dtype) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if case.special.startswith("autocast") and dtype == torch.float32:  # the float64 run tells what would be exact
            lower = torch.float16 if case.special == AUTOCAST_FLOAT16 else torch.bfloat16
            stack.enter_context(torch.autocast(torch.device(case.device).type, dtype=lower))
        if case.special == "no_grad":
            stack.enter_context(torch.no_grad())
        if case.special == "inference":
            stack.enter_context(torch.inference_mode())
        yield


def fetched(tensors: dict[str, Any], device: str) -> dict[str, Any]:
    """Return tensors on the CPU. A GPU is waited for once, not once for each of them."""
    if device == "cpu":
        return tensors
    there = {
        name: tensor if tensor is None else tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()
    }
    torch.get_device_module(torch.device(device)).synchronize()
    return there


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors have the same dtype, shape and bits (so that 0.0 is not -0.0, and a NaN is itself)."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return tensor
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def generator_state() -> int:
    """Return a checksum of torch's generator, which tells how much was drawn from it."""
    return zlib.crc32(bytes(torch.get_rng_state().tolist()))
