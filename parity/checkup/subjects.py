"""Anybody's implementation as a namespace of torch.nn-like classes, which is what the harness takes.

`adapt` takes a class (of layers or of a cell) or a function `f(input, state, weights)`. A class whose parameters are
called and laid out as torch.nn's is taken as it is. Any other is wrapped in a module that has torch.nn's parameters,
and a weight map carries them over at each call; gradients flow back through it, so they too are compared in
torch.nn's layout.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..mutants.definition import GATES

WeightMap = Callable[[dict[str, Tensor]], dict[str, Tensor]]
DEFAULTS = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False, "proj_size": 0,
    "nonlinearity": "tanh", "device": None, "dtype": None,
}  # fmt: skip


class NotOfferedError(Exception):
    """The subject has no such option: it cannot be built that way."""


@dataclass
class Subject:
    """What is tested: `namespace` holds one class under torch.nn's name for it."""

    name: str
    class_name: str  # torch.nn's name: LSTM, GRUCell, ...
    make: Callable[..., nn.Module]  # torch.nn's keyword arguments -> a module with torch.nn's parameters
    notes: list[str] = field(default_factory=list)  # how it was adapted, for the report
    defaults: dict[str, Any] = field(default_factory=dict)  # those of its constructor that are not torch.nn's

    @property
    def kind(self) -> str:
        return self.class_name.removesuffix("Cell")

    @property
    def is_cell(self) -> bool:
        return self.class_name.endswith("Cell")

    @property
    def namespace(self) -> SimpleNamespace:
        return SimpleNamespace(**{self.class_name: self.make})


def load(path: str) -> Any:
    """Return the object `PKG.MOD:NAME` or `FILE.py:NAME`."""
    module, _, name = path.rpartition(":")
    if not module:
        raise ValueError(f"{path!r}: expected PKG.MOD:NAME")
    if module.endswith(".py"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(module)))
        module = os.path.basename(module).removesuffix(".py")
    elif os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), name)


def adapt(target: Any, as_: str | None = None, weight_map: WeightMap | None = None) -> Subject:
    """Make a subject of a class or a function. `as_` is torch.nn's name for it, where its own name doesn't say.

    ValueError if the kind cannot be told from the name.
    """
    target = load(target) if isinstance(target, str) else target
    name = getattr(target, "__name__", type(target).__name__)
    class_name = as_ or _guess(target, name)
    if not isinstance(target, type):
        return Subject(name, class_name, lambda **arguments: FunctionSubject(target, class_name, arguments))
    notes: list[str] = []

    def make(**arguments: Any) -> nn.Module:
        return _module(target, class_name, arguments, weight_map, notes)

    return Subject(name, class_name, make, notes, _defaults(target))


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a constructor's options that are not torch.nn's."""
    own = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    options = own.keys() & DEFAULTS.keys() - {"device", "dtype"}
    return {name: own[name] for name in sorted(options) if own[name] not in (DEFAULTS[name], inspect.Parameter.empty)}


def _guess(target: Any, name: str) -> str:
    """Guess torch.nn's class that `target` is meant to be, by its name or that of a class it is derived from."""
    words = [name.upper(), *(base.__name__.upper() for base in getattr(target, "__mro__", ()))]
    for word, kind in itertools.product(words, GATES):
        if kind in word:
            return f"{kind}Cell" if word.endswith("CELL") else kind
    raise ValueError(f"is {name} an LSTM, a GRU or an RNN? Say so with --as (as_=)")


def _module(
    cls: type, class_name: str, arguments: dict[str, Any], weight_map: WeightMap | None, notes: list[str]
) -> nn.Module:
    arguments = dict(arguments)
    dtype, device = arguments.pop("dtype", None) or torch.float32, arguments.pop("device", None)
    reference = _reference(class_name, arguments)
    shapes = {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}
    module = _construct(cls, arguments).to(device, dtype)
    own = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    if weight_map is None and list(own.items()) == list(shapes.items()):
        return module
    said: list[str] = []
    if weight_map is None and own == shapes:
        said.append("its parameters come in another order than torch.nn's")
        weight_map = dict
    if weight_map is None:
        layout = _layout(cls, class_name, arguments)
        weight_map = layout.map
        said += layout.lines() if len(own) == len(layout.parts) else ()
    notes += [line for line in said if line not in notes]
    return MappedSubject(module, reference, weight_map, dtype, device)


def _reference(class_name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return torch.nn's module, for the names and shapes of its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout in one layer
        module: nn.Module = getattr(nn, class_name)(**arguments, device="meta")
    return module


def _layout(cls: type, class_name: str, arguments: dict[str, Any]) -> Layout:
    """Infer the layout at sizes of which no two are alike: at the sizes asked for, shapes may be ambiguous."""
    clear = {**arguments, "input_size": 5, "hidden_size": 7}
    own, shapes = (
        {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for module in (_construct(cls, clear), _reference(class_name, clear))
    )
    return infer(own, shapes, class_name.removesuffix("Cell"))


def _construct(cls: type, arguments: dict[str, Any]) -> nn.Module:
    """Pass only what deviates from torch.nn's defaults or its own: a class need not have every option."""
    sizes = arguments["input_size"], arguments["hidden_size"]
    asked = {name: DEFAULTS[name] for name in _defaults(cls)} | arguments
    unsaid = DEFAULTS | _defaults(cls)
    options = {name: value for name, value in asked.items() if name in unsaid and unsaid[name] != value}
    signature = inspect.signature(cls)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    missing = [name for name in options if name not in signature.parameters and not takes_any]
    if missing:
        raise NotOfferedError(f"no argument {', '.join(missing)}")
    module: nn.Module = cls(*sizes, **options)
    return module


class Adapted(nn.Module):
    """torch.nn's parameters by name and shape, before anything that computes with them."""

    def __init__(self, reference: nn.Module, dtype: torch.dtype, device: str | None = None) -> None:
        super().__init__()
        for name, parameter in reference.named_parameters():
            setattr(self, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device)))


class MappedSubject(Adapted):
    """The subject's own module behind torch.nn's parameters."""

    def __init__(
        self, inner: nn.Module, reference: nn.Module, weight_map: WeightMap, dtype: torch.dtype, device: str | None
    ) -> None:
        super().__init__(reference, dtype, device)
        self.hidden = [inner]  # in a list, so that its parameters are not counted
        self.weight_map = weight_map

    def forward(self, input: Any, *hx: Any) -> Any:
        (inner,) = self.hidden
        weights = self.weight_map(dict(self.named_parameters()))
        inner.train(self.training)
        return torch.func.functional_call(inner, weights, (input, *(state for state in hx if state is not None)))


class FunctionSubject(Adapted):
    """A function f(input, state, weights) as a module of one layer: weights by torch.nn's names, state as hx."""

    def __init__(self, function: Callable[..., Any], class_name: str, arguments: dict[str, Any]) -> None:
        for name in ("num_layers", "bidirectional", "batch_first", "nonlinearity"):
            if arguments.get(name, DEFAULTS[name]) != DEFAULTS[name]:
                raise NotOfferedError(f"a function has no {name}")
        dtype = arguments.get("dtype") or torch.float32
        shaping = {name: value for name, value in arguments.items() if name not in ("dtype", "device")}
        reference: Any = _reference(class_name, shaping)
        super().__init__(reference, dtype, arguments.get("device"))
        self.sizes = (getattr(reference, "proj_size", 0) or reference.hidden_size, reference.hidden_size)
        self.is_lstm, self.is_cell = class_name.startswith("LSTM"), class_name.endswith("Cell")
        self.function = function

    def forward(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            raise NotOfferedError("a function takes no PackedSequence")
        if hx is None:
            rows = input.shape[: input.dim() - 1] if self.is_cell else (1, *input.shape[1:-1])
            zeros = tuple(input.new_zeros(*rows, size) for size in self.sizes)
            hx = zeros if self.is_lstm else zeros[0]
        return self.function(input, hx, dict(self.named_parameters()))


# Conventions of shape -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """Another way to pass the same tensors: from torch.nn's arguments to the subject's, and from its result back."""

    name: str
    where: str
    fix: str
    enter: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda arguments: arguments
    leave: Callable[[Any], Any] = lambda result: result
    with_batch_first: bool = True  # whether it still differs where batch_first is asked for


def first(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Apply `function` to the input among arguments, to the output in a result (which may be alone)."""
    return lambda parts: function(parts) if isinstance(parts, Tensor) else (function(parts[0]), *parts[1:])


def rest(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Apply `function` to the states among arguments or in a result, as far as there are any."""

    def each(state: Any) -> Any:
        return tuple(map(each, state)) if isinstance(state, (tuple, list)) else function(state)

    return lambda parts: parts if isinstance(parts, Tensor) else (parts[0], *map(each, parts[1:]))


def side_by_side(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn (input, (h_0, c_0)) into (input, h_0, c_0)."""
    return (parts[0], *parts[1]) if len(parts) > 1 and isinstance(parts[1], tuple) else parts


def paired(result: Any) -> Any:
    """Turn (output, h_n, c_n) into (output, (h_n, c_n))."""
    return (result[0], tuple(result[1:])) if isinstance(result, (tuple, list)) and len(result) == 3 else result


def state_of_pair(result: Any) -> Any:
    """Turn (h, state) into state."""
    return result[1] if isinstance(result, (tuple, list)) and len(result) == 2 else result


swapped = operator.methodcaller("transpose", 0, 1)
#: Of layers. Those that change how many arguments there are come first.
CONVENTIONS = (
    Convention(
        "h_n and c_n are returned side by side", "Keras with return_state", "return output, (h_n, c_n)", leave=paired,
    ),
    Convention(
        "h_0 and c_0 are taken side by side", "", "take one argument hx, a pair: h_0, c_0 = hx", side_by_side,
    ),
    Convention(
        "input is always taken as (N, L, H_in)", "torchrl, Keras, Flax, and most tutorials",
        "take (L, N, H_in) unless batch_first is set, or say batch_first=True on torch.nn's side",
        first(swapped), first(swapped), with_batch_first=False,
    ),
    Convention(
        "states have no dimension of layers", "most tutorials; torch.nn's own cells",
        "take hx[0] and return h_n.unsqueeze(0): torch.nn's states are (D * layers, N, H)",
        rest(lambda h: h.squeeze(0)), rest(lambda h: h.unsqueeze(0)),
    ),
    Convention(
        "states are (N, D * layers, H)", "torchrl, OpenVINO",
        "transpose the states: torch.nn's are (D * layers, N, H)", rest(swapped), rest(swapped),
    ),
)  # fmt: skip
CELL_CONVENTIONS = (
    Convention("a cell returns output and state", "Keras, Flax, Haiku", "return the state alone", leave=state_of_pair),
    Convention("h_0 and c_0 are taken side by side", "", "take one argument hx, a pair: h_0, c_0 = hx", side_by_side),
)


def translated(subject: Subject, conventions: tuple[Convention, ...]) -> Subject:
    """Return the subject as it would be if it followed torch.nn's conventions of shape."""

    def make(**arguments: Any) -> nn.Module:
        module = subject.make(**arguments)
        inner = module.forward
        needed = [one for one in conventions if one.with_batch_first or not arguments.get("batch_first")]

        def forward(input: Any, hx: Any = None) -> Any:
            passed: tuple[Any, ...] = (input,) if hx is None else (input, hx)
            for convention in reversed(needed):
                passed = convention.enter(passed)
            result = inner(*passed)
            for convention in needed:
                result = convention.leave(result)
            return result

        module.forward = forward
        return module

    return Subject(subject.name, subject.class_name, make, subject.notes)


# The weight map, found from shapes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Where one parameter of the subject comes from."""

    sources: tuple[str, ...]  # ih, hh: concatenated; for a bias: added
    gate: str = ""  # "" for all gates
    transposed: bool = False
    bias: bool = False

    def take(self, weights: dict[str, Tensor], slot: str, gates: str) -> Tensor:
        stem = "bias_" if self.bias else "weight_"
        tensors = [weights[stem + source + slot] for source in self.sources if stem + source + slot in weights]
        whole = sum(tensors[1:], tensors[0]) if self.bias else torch.cat(tensors, 1)
        if self.gate:
            whole = whole.chunk(len(gates), 0)[gates.index(self.gate)]
        return whole.mT if self.transposed else whole

    def __str__(self) -> str:
        rows = f"[gate {self.gate}]" if self.gate else ""
        joined = (" + " if self.bias else ", ").join(
            f"{'bias' if self.bias else 'weight'}_{source}{rows}" for source in self.sources
        )
        text = joined if self.bias or len(self.sources) == 1 else f"cat([{joined}], 1)"
        return f"{text}.T" if self.transposed and len(self.sources) == 1 else f"({text}).T" if self.transposed else text


@dataclass(frozen=True)
class Layout:
    """The parameters of one layer and direction, in the subject's order; the same for each."""

    names: tuple[str, ...]
    parts: tuple[Part, ...]
    slots: tuple[str, ...]
    gates: str

    def map(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        taken = [part.take(weights, slot, self.gates) for slot in self.slots for part in self.parts]
        return dict(zip(self.names, taken, strict=False))

    def lines(self) -> Iterator[str]:
        for name, part in zip(self.names, self.parts, strict=False):
            yield f"{name} = {part}"


def infer(own: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]], kind: str) -> Layout:
    """Infer the layout in which the subject keeps torch.nn's weights, from names and shapes.

    Parameters are taken to come layer by layer, direction by direction, each time in the same order. A joined matrix is
    taken to be [weight_ih, weight_hh]; of one bias, both are added into it. Gates of their own are told apart by the
    letters or words in which their names differ, or else come in torch.nn's order. NotOfferedError if shapes don't fit.
    """
    slots = tuple(name.removeprefix("weight_ih") for name in shapes if name.startswith("weight_ih"))
    names = tuple(own)
    if len(names) % len(slots):
        raise NotOfferedError(f"{len(names)} parameters for {len(slots)} layers and directions")
    group = names[: len(names) // len(slots)]
    gates = GATES[kind]
    G, H_in, H_out = len(gates), shapes["weight_ih" + slots[0]][1], shapes["weight_hh" + slots[0]][1]
    H = shapes["weight_hh" + slots[0]][0] // G
    width = {("ih",): H_in, ("hh",): H_out, ("ih", "hh"): H_in + H_out}

    matrices: dict[str, tuple[tuple[str, ...], bool, bool]] = {}  # name -> (sources, one gate only, transposed)
    for name in group:
        fits = [
            (sources, rows == H and G > 1, turned)
            for sources, columns in width.items()
            for rows in {G * H, H}
            for turned in (False, True)
            if own[name] == ((columns, rows) if turned else (rows, columns))
        ]
        turned_already = any(turned for _, _, turned in matrices.values())
        fits.sort(key=lambda fit: fit[2] != turned_already)  # a square matrix is stored as the others are
        if fits:
            matrices[name] = fits[0]
    parts: dict[str, Part] = {}
    for key in dict.fromkeys(matrices.values()):
        members = [name for name in group if matrices.get(name) == key]
        sources, single, turned = key
        for name, gate in zip(members, _letters(members, gates) if single else [""] * len(members), strict=False):
            parts[name] = Part(sources, gate, turned)
    vectors = [name for name in group if name not in matrices]
    parts |= _biases(vectors, own, parts, gates, H)
    if set(parts) != set(group):
        unknown = ", ".join(f"{name} {list(own[name])}" for name in group if name not in parts)
        raise NotOfferedError(f"no weight map fits {unknown}: give one")
    return Layout(names, tuple(parts[name] for name in group), slots, gates)


def _biases(
    vectors: list[str], own: dict[str, tuple[int, ...]], matrices: dict[str, Part], gates: str, H: int
) -> dict[str, Part]:
    """Give a bias to the matrix of its own submodule, if there is one; else the first half is ih, the second hh."""
    parts: dict[str, Part] = {}
    owned = [name.rpartition(".")[0] for name in matrices]
    beside = {
        owner: part for owner, part in zip(owned, matrices.values(), strict=False) if owner and owned.count(owner) == 1
    }
    for size in {len(gates) * H, H}:
        members = [name for name in vectors if own[name] == (size,)]
        single = size == H and len(gates) > 1
        count = len(gates) if single else 1
        owners = [beside.get(name.rpartition(".")[0]) for name in members]
        if members and all(owners):
            sources = [owner.sources for owner in owners if owner]
            letters = [owner.gate for owner in owners if owner]
        else:
            halves = [("ih",), ("hh",)] if len(members) == 2 * count else [("ih", "hh")]
            sources = [half for half in halves for _ in range(count)]
            chunks = [members[start : start + count] for start in range(0, len(members), count)]
            letters = [letter for chunk in chunks for letter in (_letters(chunk, gates) if single else [""])]
        if len(members) != len(sources) or len(members) != len(letters):
            continue
        alone = len(set(sources)) == 1  # the only bias there is stands for both
        for name, source, letter in zip(members, sources, letters, strict=False):
            parts[name] = Part(("ih", "hh") if alone else source, letter, bias=True)
    return parts


WORDS = {
    "ifgo": {"i": "i", "f": "f", "g": "g", "c": "g", "a": "g", "o": "o"},
    "rzn": {"r": "r", "z": "z", "u": "z", "n": "n", "h": "n", "c": "n"},
    "h": {},
}


def _letters(names: list[str], gates: str) -> list[str]:
    """Read each parameter's gate off the part in which the names differ; torch.nn's order where that says nothing."""
    in_order = [gates[k % len(gates)] for k in range(len(names))]
    start, end = _common(names), _common([name[::-1] for name in names])
    words = [re.sub(r"[^a-z]", "", name[start : len(name) - end].lower())[:1] for name in names]
    found = [WORDS[gates].get(word, "") for word in words]
    return found if sorted(found) == sorted(gates) else in_order


def _common(names: list[str]) -> int:
    """Count the characters with which all names begin."""
    return next((k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
