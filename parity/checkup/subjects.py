"""Anybody's implementation as a namespace of torch.nn-like classes, which is what the harness takes.

`adapt` takes a class (of layers or of a cell) or a function `f(input, state, weights)`. A class whose parameters are
called and laid out as torch.nn's is taken as it is. Any other is wrapped in a module that has torch.nn's parameters,
and a weight map carries them over at each call; gradients flow back through it, so they too are compared in
torch.nn's layout.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from ..grid.cases import CLASSES
from ..grid.run import Draw
from ..mutants.definition import GATES
from . import maps
from .maps import WeightMap
from .substitution import CLEAR, Call, reaching
from .weights import Layout, Shapes, UnreadableError, readings

DEFAULTS = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False, "proj_size": 0,
    "nonlinearity": "tanh", "device": None, "dtype": None,
}  # fmt: skip


class NotOfferedError(Exception):
    """The subject has no such option: it cannot be built that way."""


class IncomparableError(Exception):
    """Nothing can be compared; the text says why, and what to do."""


class UnlikeError(NotOfferedError):
    """Its parameters show that it is not torch.nn's: (what it does, what to do, how that was seen)."""


SAME = "its parameters are the same"  # without the option

#: Other names of options and of sizes in people's constructors.
ALIASES = {
    "num_layers": ("n_layers", "nlayers", "layers", "depth", "n_layer", "num_layer"),
    "bias": ("use_bias", "with_bias"),
    "dropout": ("p", "p_drop", "drop", "dropout_p", "drop_prob", "dropout_rate"),
    "bidirectional": ("bidir", "bi", "is_bidirectional"),
    "proj_size": ("proj", "proj_dim", "projection_size", "n_proj"),
    "nonlinearity": ("activation", "act"),
    "batch_first": (),
}
INPUTS = (
    "input_size", "input_dim", "input_sz", "in_dim", "n_in", "in_features", "in_size", "inp_size", "n_inputs",
    "num_inputs", "n_input", "n_x", "input_features", "in_channels", "d_in", "embed_size", "emb_size",
)  # fmt: skip
HIDDENS = (
    "hidden_size", "hidden_dim", "hidden_sz", "hid_dim", "n_hid", "n_hidden", "hid_size", "hidden", "units",
    "num_units", "n_units", "num_hiddens", "n_h", "n_out", "state_size", "hidden_features", "hidden_channels",
    "d_hidden", "rnn_size", "nhid", "hid", "out_features",
)  # fmt: skip


@dataclass
class Subject:
    """What is tested: `namespace` holds one class under torch.nn's name for it."""

    name: str
    class_name: str  # torch.nn's name: LSTM, GRUCell, ...
    make: Callable[..., nn.Module]  # torch.nn's keyword arguments -> a module with torch.nn's parameters
    reader: Reader | None = None  # how its parameters are read; None where it has torch.nn's by definition
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

    @property
    def torchs(self) -> str:
        """Return what it is compared with."""
        both = self.reader is not None and self.reader.both
        return f"torch.nn.{self.class_name}" + "(bidirectional=True)" * both

    @property
    def notes(self) -> list[str]:
        """Say how its parameters are read, for the report."""
        return [] if self.reader is None else list(self.reader.lines())


def load(path: str) -> Any:
    """Return the object `PKG.MOD:NAME` or `FILE.py:NAME`. ValueError, in one line, if there is none."""
    module, _, name = path.rpartition(":")
    if path.endswith(".py") or (module and not name):
        file = module or path
        raise ValueError(f"{path}: expected {file}:NAME; {_classes_of(file)}")
    if not module:
        raise ValueError(f"{path!r}: expected PKG.MOD:NAME or FILE.py:NAME")
    if module.endswith(".py"):
        if not os.path.exists(module):
            raise ValueError(f"{module}: there is no such file")
        sys.path.insert(0, os.path.dirname(os.path.abspath(module)))
        module = os.path.basename(module).removesuffix(".py")
    elif os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except SystemExit as error:
        raise ValueError(f"importing {module}: it calls sys.exit({error.code!r})") from None
    except Exception as error:  # whatever importing a person's file raises
        raise ValueError(f"importing {module}: {type(error).__name__}: {error}") from None
    if not hasattr(found, name):
        near = difflib.get_close_matches(name, vars(found), 1)
        also = f": did you mean {near[0]}?" if near else f"; {_classes_of(getattr(found, '__file__', '') or '')}"
        raise ValueError(f"{module} has no {name}{also}")
    return getattr(found, name)


def _classes_of(file: str) -> str:
    """List the classes and functions of a file, without running it."""
    try:
        with open(file) as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return "it cannot be read"
    names = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return f"it has {', '.join(names)}" if names else "it has no class"


def adapt(
    target: Any, as_: str | None = None, weight_map: WeightMap | None = None, init: dict[str, Any] | None = None
) -> Subject:
    """Make a subject of a class, of a function that computes, or of one (input_size, hidden_size, ...) that makes one.

    `as_` is torch.nn's name for it, where its own name doesn't say; `init` has more arguments of its constructor.
    ValueError if the kind cannot be told from the name. IncomparableError for what can't be constructed anew.
    """
    target = load(target) if isinstance(target, str) else target
    if isinstance(target, nn.Module):
        raise IncomparableError(
            f"this is an instance of {type(target).__name__}, of one size; give its class, or a function that makes "
            f"one of any size: lambda input_size, hidden_size: {type(target).__name__}(...)"
        )
    if not callable(target):
        raise IncomparableError(f"{target!r} is neither a class nor a function")
    whole = target.func if isinstance(target, functools.partial) else target
    name = getattr(whole, "__name__", type(whole).__name__)
    makes = isinstance(whole, type) or _is_factory(target)
    class_name = known_name(as_) if as_ else _guess(whole, name, target if makes else None, init or {})
    if not makes:
        return Subject(name, class_name, lambda **arguments: FunctionSubject(target, class_name, arguments))
    reader = Reader(target, class_name, weight_map, init or {})
    return Subject(name, class_name, reader.module, reader, _defaults(target, init or {}))


def known_name(text: str) -> str:
    """Return torch.nn's class of this name, whatever its case. ValueError with those that there are."""
    for name in CLASSES:
        if name.lower() == text.lower():
            return name
    raise ValueError(f"there is no torch.nn class {text!r} to compare with, only {', '.join(CLASSES)}")


def _is_factory(target: Any) -> bool:
    """Say whether a function of two sizes makes a module."""
    if isinstance(target, functools.partial):
        return isinstance(target.func, type)
    try:
        return isinstance(target(5, 7), nn.Module)
    except Exception:  # a function that computes wants three arguments, of which the first is a tensor
        return False


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    try:
        own = dict(inspect.signature(target).parameters)
    except (ValueError, TypeError):
        own = {}
    if isinstance(target, functools.partial):  # what it gives to **kwargs is in no signature
        given = target.keywords.items()
        kind = inspect.Parameter.KEYWORD_ONLY
        own |= {name: inspect.Parameter(name, kind, default=value) for name, value in given if name not in own}
    return own


def _options(target: Any) -> dict[str, str]:
    """Return the options of torch.nn that a constructor has, by their names there."""
    own = _parameters(target)
    names = {option: next((n for n in (option, *ALIASES.get(option, ())) if n in own), "") for option in DEFAULTS}
    return {option: name for option, name in names.items() if name}


def _defaults(target: Any, init: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of a constructor's options that are not torch.nn's."""
    own = {name: parameter.default for name, parameter in _parameters(target).items()}
    options = {option: own[name] for option, name in _options(target).items() if name not in init}
    return {
        option: default for option, default in sorted(options.items())
        if option not in ("device", "dtype", "proj_size", "nonlinearity")
        and default not in (DEFAULTS[option], inspect.Parameter.empty, None)
    }  # fmt: skip


def _guess(target: Any, name: str, makes: Any, init: dict[str, Any]) -> str:
    """Guess torch.nn's class that `target` is meant to be, by its name or that of a class it is derived from."""
    words = [name.upper(), *(base.__name__.upper() for base in getattr(target, "__mro__", ()))]
    if makes is not None and not isinstance(target, type):
        words.append(type(makes(5, 7)).__name__.upper())
    for word, kind in itertools.product(words, GATES):
        if kind in word:
            return f"{kind}Cell" if word.endswith("CELL") else kind
    raise ValueError(f"is {name} an LSTM, a GRU or an RNN? Say so with --as (as_=)")


class Reader:
    """Makes modules of a class (or by a function) with torch.nn's parameters, however its own are laid out."""

    def __init__(self, target: Any, class_name: str, weight_map: WeightMap | None, init: dict[str, Any]) -> None:
        self.target, self.class_name, self.weight_map, self.init = target, class_name, weight_map, init
        self.readings: dict[tuple[Any, ...], list[Layout]] = {}  # by configuration: the likeliest first, or the chosen
        self.style: tuple[Any, ...] = ()  # of the reading that was found right
        self.chosen: dict[tuple[Any, ...], Layout] = {}  # what was found right, by configuration
        self.biased = True  # False where it has no biases, whatever is asked
        self.both = False  # True where it has two directions, whatever is asked
        self.said: list[str] = []
        self.bound: tuple[str, ...] | None = None  # weights that a parametrization keeps from being any, once asked for
        self.heads: tuple[str, ...] = ()  # Linears on the output, which are left out
        self.states: tuple[str, ...] = ()  # arguments of forward that are states, where they don't follow the input

    def module(self, **arguments: Any) -> nn.Module:
        """Make a module with torch.nn's parameters."""
        arguments = dict(arguments)
        dtype, device = arguments.pop("dtype", None) or torch.float32, arguments.pop("device", None)
        if not self.biased and arguments.get("bias", True):
            raise NotOfferedError("it has no biases")
        if self.both and not arguments.get("bidirectional"):
            raise NotOfferedError("it always has two directions")
        reference = reference_of(self.class_name, arguments)
        module = self.construct(arguments).to(device, dtype)
        own, shapes = shapes_of(module), shapes_of(reference)
        if self.weight_map is None and list(own.items()) == list(shapes.items()):
            return module
        if self.weight_map is not None:
            return self.by_map(self.weight_map, module, reference, dtype, device)
        if own == shapes:
            self._say("its parameters come in another order than torch.nn's")
            return MappedSubject(module, reference, dict, dtype, device, self.call)
        layout = self.layouts(arguments)[0]
        mapped = MappedSubject(module, reference, lambda weights: layout.map(weights, own), dtype, device, self.call)
        mapped.fill(layout.extras, layout.fill)
        return mapped

    def by_map(
        self, weight_map: WeightMap, module: nn.Module, reference: nn.Module, dtype: torch.dtype, device: str | None
    ) -> nn.Module:
        """Make a module whose parameters are made by the map that was given. IncomparableError if it can't be used."""
        own = shapes_of(module)
        mapped = functools.partial(maps.mapped, weight_map, own=own)
        made = MappedSubject(module, reference, mapped, dtype, device, self.call)
        try:
            with torch.no_grad():
                made.weight_map(dict(made.named_parameters()))
        except maps.MapError as error:
            raise IncomparableError(f"the weight map does not serve: {error}") from None
        return made

    @functools.cached_property
    def call(self) -> Call:
        """How it is called with other weights than its own."""
        return reaching(lambda: self.construct(CLEAR).double(), self.class_name.endswith("Cell"))

    def key(self, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """Return what the parameters of a configuration depend on."""
        options = [arguments.get(name, DEFAULTS[name]) for name in ("num_layers", "bias", "bidirectional")]
        return (*options, bool(arguments.get("proj_size")))

    def layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        """Read the parameters at sizes of which no two are alike: at the sizes asked for, shapes may be ambiguous."""
        key = self.key(arguments)
        if key in self.readings:
            return self.readings[key]
        clear = {**arguments, **CLEAR}
        clear |= {"proj_size": 3} if arguments.get("proj_size") else {}
        with torch.random.fork_rng(devices=[]):
            module, reference = self.construct(clear).double(), reference_of(self.class_name, clear)
            if not arguments.get("bias", True) and "bias" in _options(self.target):
                other = self.construct({**clear, "bias": True})
                if shapes_of(other) == shapes_of(module):
                    raise UnlikeError("bias=False is ignored", "leave the biases out where bias is False", SAME)
        if not shapes_of(module):
            if [*module.buffers()]:
                raise IncomparableError("its weights are buffers, which learn nothing: register them as parameters")
            raise IncomparableError(
                "it has no parameters: if it makes them at its first call, name a function (input_size, hidden_size) "
                "that makes a module and calls it once"
            )
        try:
            found = readings(shapes_of(module), shapes_of(reference), self.class_name.removesuffix("Cell"), module)
        except UnreadableError as error:
            self._unlike(module, clear)
            if any(isinstance(child, nn.Embedding) for child in module.modules()):
                raise IncomparableError(
                    "an Embedding stands before it: name the recurrent module inside, or a function (input_size, "
                    "hidden_size) that makes it"
                ) from None
            raise IncomparableError(f"its parameters could not be read: {error}; {GIVE_A_MAP}") from None
        order = self.style[1] if self.style else ""
        if order:
            found = [layout.relabelled(order) if layout.split else layout for layout in found]
        found.sort(key=lambda layout: layout.style != self.style)
        self.readings[key] = found
        return found

    def _unlike(self, module: nn.Module, arguments: dict[str, Any]) -> None:
        """Raise UnlikeError if a module has the parameters of fewer layers or directions than it was made with."""
        several = [
            name for name in ("num_layers", "bidirectional") if arguments.get(name, DEFAULTS[name]) != DEFAULTS[name]
        ]
        for name in several:
            plain = self.construct({**arguments, name: DEFAULTS[name]})
            if shapes_of(plain) == shapes_of(module):
                raise UnlikeError(f"{name} is ignored", "make parameters for each layer and direction", SAME)
        if len(several) == 2 and runs(module):
            one = reference_of(self.class_name, {**arguments, "bidirectional": False})
            if sum(p.numel() for p in module.parameters()) == 2 * sum(p.numel() for p in one.parameters()):
                raise UnlikeError(
                    "the two directions are stacks apart, joined at the end",
                    "hand both directions' outputs, side by side, to both directions of the layer above",
                    "it has as many parameters as two such stacks",
                )

    def choose(self, arguments: dict[str, Any], layout: Layout) -> None:
        """Take this reading for the right one, in this configuration and, as far as it says, in all others."""
        self.style = self.style or layout.style
        key = self.key(arguments)
        self.readings[key], self.chosen[key] = [layout], layout

    def exact(self, arguments: dict[str, Any]) -> bool:
        """Say whether the parameters are torch.nn's by name and shape, or a map is given."""
        arguments = {name: value for name, value in arguments.items() if name not in ("dtype", "device")}
        module, reference = self.construct(arguments), reference_of(self.class_name, arguments)
        return self.weight_map is not None or shapes_of(module) == shapes_of(reference)

    @property
    def options(self) -> dict[str, str]:
        return _options(self.target)

    def size(self, drawn: Draw, name: str) -> int:
        """Count the numbers of a parameter, at five features and seven units."""
        arguments = {**drawn.arguments, **CLEAR}
        return self.construct(arguments).get_parameter(name).numel()

    def takes(self) -> list[str]:
        """Name the arguments of forward after the input: those passed by place, an empty name, those by name alone."""
        module = self.construct(CLEAR)
        own = list(_parameters(module.forward).values())[1:]
        by_place, by_name = ([p.name for p in own if (p.kind is p.KEYWORD_ONLY) is alone] for alone in (False, True))
        return [*by_place, "", *by_name]

    peepholes = (7, 14, 21, 49, 98, 147)  # what the size of a peephole's parameter may be: vectors, or matrices

    def construct(self, arguments: dict[str, Any]) -> nn.Module:
        """Pass what deviates from torch.nn's defaults or its own, and what is required: a class need not have all."""
        own, options = _parameters(self.target), _options(self.target)
        arguments = dict(arguments)
        if not self.biased:
            arguments.pop("bias", None)
        if self.both:
            arguments.pop("bidirectional", None)
        unsaid = DEFAULTS | _defaults(self.target, self.init)
        asked = {option: DEFAULTS[option] for option in options} | arguments
        given = dict(self.init)
        for option, value in asked.items():
            if option not in DEFAULTS:
                continue
            name = options.get(option, option if self.hands_on else "")
            required = name in own and own[name].default is inspect.Parameter.empty
            if name in self.init:
                if self.init[name] != value and (option, value) != ("batch_first", False):  # seen by the shapes, later
                    raise NotOfferedError(f"{name} is fixed by --init (init=)")
            elif name and (required or unsaid[option] != value):
                given[name] = value
            elif not name and unsaid[option] != value:
                raise NotOfferedError(f"no argument {option}")
        return self._call(own, given, arguments["input_size"], arguments["hidden_size"])

    @functools.cached_property
    def hands_on(self) -> bool:
        """Whether the constructor hands on what it takes by **: then a name that nobody has is refused."""
        own = _parameters(self.target)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            return False
        try:
            self._call(own, {**self.init, "no_such_option": None}, *CLEAR.values())
        except IncomparableError:
            return True
        return False

    def _call(self, own: dict[str, inspect.Parameter], given: dict[str, Any], *sizes: int) -> nn.Module:
        named = [next((name for name in names if name in own and name not in given), "") for names in (INPUTS, HIDDENS)]
        required = [
            name for name, parameter in own.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in given and name not in named
        ]  # fmt: skip
        if named.count("") == len(required) == 1:  # whatever the other size is called
            named = [name or required[0] for name in named]
        positional: tuple[int, ...] = sizes
        if all(named):
            given, positional = given | dict(zip(named, sizes, strict=True)), ()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        order = [name for name, parameter in own.items() if parameter.kind in kinds and name not in given]
        taken = order[: len(positional)]
        missing = [name for name in order[len(positional) :] if own[name].default is inspect.Parameter.empty]
        if not missing and not given and len(taken) == 1 and len(own) == 1:
            raise IncomparableError(
                f"its constructor takes one argument, {taken[0]}, where torch.nn's take input_size and hidden_size: "
                "name a function (input_size, hidden_size) that makes a module, and calls it once if it is lazy"
            )
        if missing or (own and len(taken) < len(positional) and not _takes_more(own)):
            listed = missing or taken or required
            wanted = ", ".join(f"{name}=..." for name in listed)
            raise IncomparableError(
                f"its constructor wants more, or other, arguments than two sizes: {', '.join(listed)}. Give "
                f"them with --init '{wanted}' (init=), or name a function (input_size, hidden_size) that makes a module"
            )
        try:
            if positional and given and taken:
                given, positional = given | dict(zip(taken, positional, strict=False)), ()
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # parameters that torch.nn has not are the same in each
                module = self.target(*positional, **given)
        except Exception as error:  # whatever a person's constructor raises
            raise ConstructionError(f"its constructor raises {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise IncomparableError(f"it makes a {type(module).__name__}, which is no torch.nn.Module")
        if made := [*parametrized(module)]:
            self._say("weights under one of torch's parametrizations are compared as they come out of it")
            if self.bound is None:
                self.bound = tuple(
                    f"{path}.{name}".lstrip(".") for path, child, name in made if not can_be_any(child, name)
                )
            for _, child, name in made:
                parametrize.remove_parametrizations(child, name)
        for name in self.heads:
            module.set_submodule(name, nn.Identity())
        if isinstance(module, torch.jit.ScriptModule):
            raise IncomparableError("a ScriptModule's parameters cannot be exchanged: give the class before scripting")
        if self.states:
            module.forward = taking(module.forward, self.states)
        return module

    def find_heads(self) -> tuple[str, ...]:
        """Name the Linears that take a state and give anything but gates: a classifier's head."""
        module = self.construct(CLEAR)
        return tuple(
            name for name, child in module.named_modules()
            if isinstance(child, nn.Linear) and child.in_features in (7, 14) and child.out_features % 7
        )  # fmt: skip

    def lines(self) -> Iterator[str]:
        yield from self.said
        for (layers, bias, bidirectional, projected), found in self.readings.items():
            many = (
                [f"{layers} layers"] * (layers > 1) + ["two directions"] * bidirectional + ["a projection"] * projected
            )
            many += [] if bias else ["no bias"]
            if not bias or (layers > 2):
                continue
            if many:
                yield f"{', '.join(many)}{', told apart ' * bool(found[0].how)}{found[0].how}:"
            yield from ("  " * bool(many) + line for line in found[0].lines())
            if found[0].merged and not many:
                yield "one bias where torch.nn has b_in and b_hn: it is compared with torch.nn's of b_hn = 0"
            for name in found[0].extras:
                yield f"{name} stands for nothing that torch.nn has"

    def template(self) -> str:
        """Write a weight map for this class, to be filled in."""

        def shapes(options: dict[str, Any]) -> tuple[Shapes, Shapes]:
            arguments = {**CLEAR, **options, **({"bidirectional": True} if self.both else {})}
            return shapes_of(self.construct(arguments)), shapes_of(reference_of(self.class_name, arguments))

        return maps.template(getattr(self.target, "__name__", "the module"), self.class_name, shapes)

    def show_extras(self) -> None:
        """Leave parameters that torch.nn has not at what the constructor makes them."""
        for key, layouts in self.readings.items():
            self.readings[key] = [replace(layout, fill=None) for layout in layouts]

    def _say(self, line: str) -> None:
        if line not in self.said:
            self.said.append(line)


def parametrized(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the weights that torch's parametrizations compute: the path of their module, that module, their name."""
    for path, child in module.named_modules():
        if isinstance(lists := getattr(child, "parametrizations", None), nn.ModuleDict):
            yield from ((path, child, name) for name in lists)


def can_be_any(module: nn.Module, name: str) -> bool:
    """Say whether a parametrized weight, set to random numbers, has them. It is left as it was."""
    before = getattr(module, name).detach().clone()
    wanted = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
    try:
        setattr(module, name, wanted)
        found = getattr(module, name)
        setattr(module, name, before)
    except Exception:  # it has no right_inverse, or that one refuses them
        return False
    return torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def taking(forward: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Pass the states that follow the input by these names."""

    @functools.wraps(forward)
    def passed(input: Any, *states: Any) -> Any:
        return forward(input, **dict(zip(names, states, strict=True))) if states else forward(input)

    return passed


class ConstructionError(IncomparableError):
    """The constructor raised."""


GIVE_A_MAP = (
    "say how they are made of torch.nn's: --write-map maps.py writes a file to fill in, --map maps.py:weights gives it "
    "(weight_map=)"
)


def runs(module: nn.Module) -> bool:
    """Say whether a layer can be called with an input alone."""
    try:
        with torch.no_grad():
            module(torch.zeros(3, 3, CLEAR["input_size"], dtype=next(module.parameters()).dtype))
    except Exception:  # whatever it raises
        return False
    return True


def _takes_more(own: dict[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values())


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module's parameters by name. IncomparableError where one has none yet."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise IncomparableError(
                f"{name} has no shape before the first call (it is lazy): name a function (input_size, hidden_size) "
                "that makes a module and calls it once"
            )
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def reference_of(class_name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return torch.nn's module, for the names and shapes of its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout in one layer
        module: nn.Module = getattr(nn, class_name)(**arguments, device="meta")
    return module


class Adapted(nn.Module):
    """torch.nn's parameters by name and shape, before anything that computes with them."""

    def __init__(self, reference: nn.Module, dtype: torch.dtype, device: str | None = None) -> None:
        super().__init__()
        for name, parameter in reference.named_parameters():
            setattr(self, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device)))


def version(tensor: Tensor) -> int:
    """Count how often a tensor was written to; under inference_mode nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


class MappedSubject(Adapted):
    """The subject's own module behind torch.nn's parameters."""

    def __init__(
        self,
        inner: nn.Module,
        reference: nn.Module,
        weight_map: WeightMap,
        dtype: torch.dtype,
        device: str | None,
        call: Call,
    ) -> None:
        super().__init__(reference, dtype, device)
        self.hidden = [inner]  # in a list, so that its parameters are not counted
        self.weight_map = weight_map
        self.call = call
        self.filled: dict[str, Tensor] = {}
        self.written: list[str] = []  # weights that the last call wrote to

    def fill(self, names: tuple[str, ...], value: float | None) -> None:
        """Set parameters that torch.nn has not to `value`; None leaves them."""
        own = dict(self.hidden[0].named_parameters())
        self.filled = {} if value is None else {name: torch.full_like(own[name], value) for name in names}

    def forward(self, input: Any, hx: Any = None, *others: Any) -> Any:
        (inner,), states = self.hidden, (hx, *others)
        weights = self.weight_map(dict(self.named_parameters())) | self.filled
        inner.train(self.training)
        before = {name: version(weight) for name, weight in weights.items()}
        result = self.call(inner, weights, (input, *(state for state in states if state is not None)))
        self.written = [name for name, weight in weights.items() if version(weight) != before[name]]
        return result


class FunctionSubject(Adapted):
    """A function f(input, state, weights) as a module of one layer: weights by torch.nn's names, state as hx."""

    def __init__(self, function: Callable[..., Any], class_name: str, arguments: dict[str, Any]) -> None:
        for name in ("num_layers", "bidirectional", "batch_first", "nonlinearity"):
            if arguments.get(name, DEFAULTS[name]) != DEFAULTS[name]:
                raise NotOfferedError(f"a function has no {name}")
        dtype = arguments.get("dtype") or torch.float32
        shaping = {name: value for name, value in arguments.items() if name not in ("dtype", "device")}
        reference: Any = reference_of(class_name, shaping)
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


def stacked(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn (input, (h_0, c_0)) into (input, the two in one tensor)."""
    return (parts[0], torch.stack(parts[1])) if len(parts) > 1 and isinstance(parts[1], tuple) else parts


def unstacked(result: Any) -> Any:
    """Turn (output, h_n and c_n in one tensor) into (output, (h_n, c_n))."""
    states = result[1] if isinstance(result, (tuple, list)) and len(result) == 2 else None
    return (result[0], (*states,)) if isinstance(states, Tensor) and len(states) == 2 else result


def of_pair(place: int) -> Callable[[Any], Any]:
    """Turn (h, state), or (state, h), into the state, which is at this place."""
    return lambda result: result[place] if isinstance(result, (tuple, list)) and len(result) == 2 else result


def swapped(tensor: Tensor) -> Tensor:
    """Exchange steps and rows; the last step alone has no steps."""
    return tensor.transpose(0, 1) if tensor.dim() > 2 else tensor


#: Of layers. Those that change how many arguments there are come first.
CONVENTIONS = (
    Convention(
        "h_n and c_n are returned side by side", "Keras with return_state", "return output, (h_n, c_n)", leave=paired,
    ),
    Convention(
        "h_0 and c_0 are taken side by side", "", "take one argument hx, a pair: h_0, c_0 = hx", side_by_side,
    ),
    Convention("h_n and c_n are returned in one tensor", "", "return output, (h_n, c_n)", leave=unstacked),
    Convention("h_0 and c_0 are taken in one tensor", "", "take a pair: h_0, c_0 = hx", stacked),
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
    Convention("a cell returns output and state", "Keras, Flax, Haiku", "return the state alone", leave=of_pair(1)),
    Convention("a cell returns state and output", "Flax", "return the state alone", leave=of_pair(0)),
    Convention(
        "the state is taken before the input", "Flax", "forward(input, hx=None)", lambda parts: (*parts[1:], parts[0]),
    ),
    Convention("h_0 and c_0 are taken side by side", "", "take one argument hx, a pair: h_0, c_0 = hx", side_by_side),
)  # fmt: skip


def steady(subject: Subject) -> Subject:
    """Return the subject as it is in eval mode, whatever is asked."""

    def make(**arguments: Any) -> nn.Module:
        module = subject.make(**arguments).eval()
        module.train = lambda mode=True: module  # type: ignore[method-assign]
        return module

    return Subject(subject.name, subject.class_name, make, subject.reader, subject.defaults)


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

    return Subject(subject.name, subject.class_name, make, subject.reader, subject.defaults)
