"""The contract: everything that isn't a number. Signatures, names, keys, initial weights, warnings, refusals.

Nothing here knows what torch.nn answers: every question is put to torch.nn and to the subject, in the same process,
and the answers are compared. A question is a line of Python over the six classes and a few helpers (see `Room`), so
that what is printed can be read and tried.
"""

from __future__ import annotations

import copy
import importlib.resources
import inspect
import itertools
import re
import typing
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..grid.cases import CLASSES, LAYERS
from ..grid.run import generator_state, same_bits
from ..grid.verdict import Verdict


def _has_numpy() -> bool:
    try:
        torch.empty(0).numpy()
    except RuntimeError:
        return False
    return True


#: Whether `x(2, 3).numpy()` can be asked. Without NumPy a question like it is left out, and the report says so.
NUMPY = _has_numpy()


@dataclass(frozen=True)
class Answer:
    """What torch.nn and the subject said, and whether it is the same. What is not equal is always counted and shown."""

    question: str
    verdict: Verdict
    reference: str
    subject: str
    excuse: str = ""


# Messages that name torch.nn's own kernels or argument parser, and say nothing that a user could act on.
KERNEL = re.compile(
    r"invalid combination of arguments|must be \w+, not |get_mkldnn_dtype|primitive descriptor|broadcast shape"
)


# How it is asked ----------------------------------------------------------------------------------------------------


class Room:
    """The names a question may use. Tensors made here are kept, to see whether a call writes to them."""

    def __init__(self, namespace: Any, class_name: str) -> None:
        self.tensors: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(7)
        self.is_lstm = class_name.startswith("LSTM")
        self.names: dict[str, Any] = {
            "C": getattr(namespace, class_name), "torch": torch, "nan": float("nan"), "inf": float("inf"),
            "PackedSequence": PackedSequence, "x": self.x, "h": self.h, "ints": self.ints, "meta": self.meta,
            "packed": self.packed, "broken": self.broken,
        }  # fmt: skip

    def x(self, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        """Return a random tensor."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64) * 2
        self.tensors.append(drawn.to(dtype).to(device))
        return self.tensors[-1]

    def h(self, *shape: int, **options: Any) -> Any:
        """Return a state: a tensor, or two in a tuple for the LSTM."""
        return (self.x(*shape, **options), self.x(*shape, **options)) if self.is_lstm else self.x(*shape, **options)

    def ints(self, *shape: int) -> Tensor:
        return self.x(*shape, dtype=torch.int64)

    def meta(self, *shape: int) -> Tensor:
        return self.x(*shape, device="meta")

    def packed(self, *lengths: int, size: int = 3, dtype: torch.dtype = torch.float32) -> PackedSequence:
        """Return a packed sequence, unsorted if the lengths are."""
        is_sorted = list(lengths) == sorted(lengths, reverse=True)
        padded = self.x(max(lengths), len(lengths), size, dtype=dtype)
        packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=is_sorted)
        self.tensors += [packed.data, packed.batch_sizes]
        return packed

    @staticmethod
    def broken(module: nn.Module, name: str, weight: Tensor | None) -> nn.Module:
        """Replace one weight of the module."""
        setattr(module, name, None if weight is None else nn.Parameter(weight))
        return module

    def evaluate(self, expression: str, **names: Any) -> Any:
        return eval(expression, self.names | names)  # the questions of questions.txt, and one that a user asks


@dataclass
class Reply:
    """What came of a question: text that must be equal, and tensors whose values must be close."""

    text: str
    tensors: list[Tensor]


def reply(namespace: Any, class_name: str, question: str) -> Reply:
    """Ask one construction, or one call (construction | arguments)."""
    construction, _, arguments = question.partition("#")[0].partition("|")
    room = Room(namespace, class_name)
    torch.manual_seed(3)
    texts: list[str] = []
    tensors: list[Tensor] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            module = room.evaluate(construction)
        except Exception as error:
            texts.append("constructor raises " + _exception(error))
        else:
            if "|" in question:
                _call(room, module, arguments, texts, tensors)
            else:
                _inspect(module, texts, tensors)
    told = [f"{w.category.__name__}: {w.message}" for w in caught if "Triggered internally" not in str(w.message)]
    return Reply(_normal("\n".join([*texts, *(f"warns {line}" for line in told)])), tensors)


def _exception(error: Exception) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}: {error}".removeprefix("builtins.")


def _call(room: Room, module: nn.Module, arguments: str, texts: list[str], tensors: list[Tensor]) -> None:
    def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    args, kwargs = room.evaluate(f"collect({arguments})", collect=collect)
    owned = [*room.tensors, *module.parameters()]
    before = [tensor.detach().clone() for tensor in owned]
    attributes = {name: value for name, value in vars(module).items() if isinstance(value, (int, float, str, bool))}
    try:
        result = module(*args, **kwargs)
    except Exception as error:
        texts.append("raises " + _exception(error))
    else:
        texts.append("returns " + _describe(result, tensors))
    if not all(old.is_meta or same_bits(old, tensor.detach()) for old, tensor in zip(before, owned, strict=True)):
        texts.append("writes to the caller's tensors or to the weights")
    after = {name: value for name, value in vars(module).items() if isinstance(value, (int, float, str, bool))}
    if after != attributes:
        texts.append(f"changes the module: {attributes} -> {after}")


def _describe(value: Any, tensors: list[Tensor]) -> str:
    if isinstance(value, Tensor):
        tensors.append(value.detach())
        grad = ", requires_grad" if value.requires_grad else ""
        return f"{value.dtype}{list(value.shape)} on {value.device}{grad}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(_describe(item, tensors) for item in value)})"
    return repr(value)


def _inspect(module: Any, texts: list[str], tensors: list[Tensor]) -> None:
    """Write down everything about a constructed module that a user can read."""
    texts.append(repr(module))
    texts.append(f"generator {generator_state()}")
    texts.append("is a " + " ".join(base.__name__ for base in type(module).__mro__ if base.__name__.endswith("Base")))
    for name in ("__constants__", "mode", "nonlinearity", "input_size", "hidden_size", "num_layers", "bias",
                 "batch_first", "dropout", "bidirectional", "proj_size", "training"):  # fmt: skip
        texts.append(f"{name} = {getattr(module, name, 'absent')!r}")
    for name, parameter in module.named_parameters():
        texts.append(f"{name} {type(parameter).__name__} {_describe(parameter, tensors)}")
    texts.append("state_dict " + " ".join(module.state_dict()))
    texts.append("metadata " + repr(getattr(module.state_dict(), "_metadata", None)))
    texts.append("buffers " + " ".join(name for name, _ in module.named_buffers()))
    if hasattr(module, "all_weights"):
        named = {id(parameter): name for name, parameter in module.named_parameters()}
        texts.append("all_weights " + repr([[named.get(id(w)) for w in group] for group in module.all_weights]))
    if hasattr(module, "flatten_parameters"):
        texts.append(f"flatten_parameters() {module.flatten_parameters()}")
    torch.manual_seed(5)
    module.reset_parameters()
    tensors += [parameter.detach().clone() for parameter in module.parameters()]
    texts.append(f"generator after reset_parameters {generator_state()}")


def _normal(text: str) -> str:
    """Forget where a class, a method or an object lives: module, class that defines it, address."""
    text = re.sub(r"(?:\w+\.)+(RNN|LSTM|GRU|RNNCell|LSTMCell|GRUCell)\b", r"\1", text)
    text = re.sub(r"\b\w+\.(forward|__init__)\(\)", r"\1()", text)
    return re.sub(r"0x[0-9a-f]+", "0x...", text)


# What is compared ---------------------------------------------------------------------------------------------------


def questions() -> Iterator[tuple[str, str]]:
    """Yield (class name, question) of every construction and call in questions.txt, class by class."""
    asked: dict[str, dict[str, None]] = {name: {} for name in CLASSES}  # a question of two blocks is asked once
    names: list[str] = []
    for line in importlib.resources.files(__package__).joinpath("questions.txt").read_text().splitlines():
        if line.startswith("["):
            names = line.strip("[]").split()
        elif line and not line.startswith("#") and (NUMPY or ".numpy()" not in line):
            for name in names:
                asked[name][line] = None
    yield from ((name, question) for name in CLASSES for question in asked[name])


def shown(class_name: str, question: str) -> str:
    """Return a question as a person would write it."""
    return re.sub(r"\bC\(", class_name + "(", question.partition("  # excused: ")[0])


def ask(subject: Any, reference: Any, class_name: str, question: str) -> Answer:
    theirs, ours = reply(reference, class_name, question), reply(subject, class_name, question)
    _, _, excuse = question.partition("  # excused: ")
    verdict = Verdict.EXCUSED if excuse else Verdict.DIFFERENT
    if theirs.text == ours.text and _close(theirs.tensors, ours.tensors, exactly="|" not in question):
        verdict = Verdict.EQUAL
    elif KERNEL.search(theirs.text) and _exception_type(theirs.text) == _exception_type(ours.text):
        verdict = Verdict.TYPE_ONLY
    return Answer(shown(class_name, question), verdict, *_first_difference(theirs, ours), excuse)


def _exception_type(text: str) -> str | None:
    found = re.match(r"(?:constructor )?raises ([\w.]+):", text)
    return found and found[0]


def _close(theirs: list[Tensor], ours: list[Tensor], exactly: bool) -> bool:
    """Require the same bits of initial weights; the values of an unusual call need only be the same to rounding."""
    for a, b in zip(theirs, ours, strict=False):
        if a.is_meta or a.is_sparse:
            continue
        if not same_bits(a, b) if exactly else not torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True):
            return False
    return True


def _first_difference(theirs: Reply, ours: Reply) -> tuple[str, str]:
    """Return the first line in which two replies differ; the whole replies if they don't."""
    if theirs.text == ours.text:
        return theirs.text, ours.text + "\nof other values"
    lines = itertools.zip_longest(theirs.text.splitlines(), ours.text.splitlines(), fillvalue="nothing more")
    return next((a, b) for a, b in lines if a != b)


def loading(subject: Any, reference: Any, class_name: str) -> Iterator[Answer]:
    """Load state_dict strictly both ways: the loaded module computes the same."""
    options: dict[str, Any] = {} if class_name not in LAYERS else {"num_layers": 2, "bidirectional": True}
    for source, target, direction in ((reference, subject, "from torch.nn"), (subject, reference, "into torch.nn")):
        torch.manual_seed(1)
        giver, taker = getattr(source, class_name)(3, 4, **options), getattr(target, class_name)(3, 4, **options)
        question = f"{class_name}.load_state_dict(strict=True) {direction}"
        try:
            said = str(taker.load_state_dict(copy.deepcopy(giver.state_dict()), strict=True))
        except Exception as error:
            said = _exception(error)
        given, taken = list(giver.state_dict().values()), list(taker.state_dict().values())
        same = len(given) == len(taken) and all(map(same_bits, given, taken))
        good = said == "<All keys matched successfully>" and same
        yield Answer(question, Verdict.EQUAL if good else Verdict.DIFFERENT, "all keys matched", said)


def signatures(subject: Any, reference: Any, class_name: str) -> Iterator[Answer]:
    """Compare the signatures of the constructor, of forward, and the public names of the class.

    torch.nn's layers take `*args, **kwargs` and declare what they mean as overloads: a subject may have either. Beyond
    torch.nn's parameters it may have some of its own that a call must name, and need not give.
    """
    theirs, ours = getattr(reference, class_name), getattr(subject, class_name)
    for method in ("__init__", "forward"):
        accepted = [_signature(getattr(theirs, method))]
        if hasattr(typing, "get_overloads"):
            accepted += map(_signature, typing.get_overloads(getattr(theirs, method)))
        known = {name for signature in accepted for name in re.findall(r"\w+", signature)}
        seen = _signature(getattr(ours, method), known)
        verdict = Verdict.EQUAL if seen in accepted else Verdict.DIFFERENT
        yield Answer(f"signature of {class_name}.{method}", verdict, " or ".join(dict.fromkeys(accepted)), seen)
    public = {name for name in dir(theirs) if not name.startswith("_")}
    missing = sorted(public - set(dir(ours)))
    verdict = Verdict.DIFFERENT if missing else Verdict.EQUAL
    yield Answer(f"public names of {class_name}", verdict, f"has {', '.join(missing) or 'no others'}", "has not")


def _signature(function: Any, known: set[str] | None = None) -> str:
    """Return a function's parameters; where some are known, less others that must be named and may be left out."""
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if known is None or p.name in known or p.kind is not p.KEYWORD_ONLY or p.default is p.empty
    ]
    return "(" + ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters) + ")"


def contract(subject: Any, reference: Any = nn, classes: tuple[str, ...] = CLASSES) -> Iterator[Answer]:
    """Yield every answer, class by class."""
    for name in classes:
        yield from signatures(subject, reference, name)
        yield from loading(subject, reference, name)
    for name, question in questions():
        if name in classes:
            yield ask(subject, reference, name, question)
