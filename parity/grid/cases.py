"""What is compared: the cases, their names, and how to choose among them.

The grid is the full product of the axes, less what torch.nn does not offer (a complex ReLU, dropout on complex
numbers) and less repetitions (see `_backends`). Beside it stands a smaller family of special circumstances, crossed
with the axes that matter to them, and the family of RAGGED, a full product, of what rnnkit's layers take by `lengths=`
and `resets=`. On a GPU the same cases run, but for what is different there (see `_on`).
"""

from __future__ import annotations

import ast
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

LAYERS = ("RNN", "LSTM", "GRU")
CLASSES = (*LAYERS, "RNNCell", "LSTMCell", "GRUCell")
KINDS = ("RNN-tanh", "RNN-relu", "LSTM", "LSTM-proj", "GRU")
CELLS = ("RNNCell-tanh", "RNNCell-relu", "LSTMCell", "GRUCell")
DTYPES = ("float64", "float32", "bfloat16", "float16", "complex128", "complex64")
FORMS = ("unbatched", "padded", "packed", "packed_unsorted")
RAGGED = {
    "lengths": "padded, with the length of each row: as torch.nn does it by packing",
    "resets": "padded, with states that begin anew within a row: as torch.nn does it on each segment alone",
}
DROPOUTS = ("", "dropout_train", "dropout_eval")
YES_NO = (True, False)

SPECIALS = {
    "empty_batch": "a batch of no sequences",
    "one_step": "sequences of length 1",
    "long": "forty steps, so that rounding and memory add up",
    "wide": "sizes beyond one vector register, so that sums are split",
    "noncontiguous": "input and hx are strided views",
    "expanded": "input and hx are one row expanded",
    "keywords": "forward(input=..., hx=...)",
    "autocast": "under torch.autocast('cpu', torch.bfloat16)",
    "no_grad": "under torch.no_grad()",
    "inference": "under torch.inference_mode()",
    "frozen_input": "neither input nor hx requires a gradient, as in ordinary training",
    "frozen_weights": "only input and hx require a gradient",
    "loss_output": "the loss sees output alone",
    "loss_h_n": "the loss sees h_n alone",
    "loss_c_n": "the loss sees c_n alone",
    "huge": "input and hx are 1e10 times as large, so that gates are shut or open to the last bit",
    "written_on": "the output is written on before backward",
    "second_call": "the module was called before, and its weights have been updated in place since",
}
AUTOCAST_FLOAT16 = "autocast_float16"  # a special circumstance of GPUs alone


@dataclass(frozen=True)
class Case:
    """One configuration. Field names are the axes of the report; `name` is unique and can be given to `-k`."""

    kind: str
    dtype: str
    onednn: bool
    layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    dropout: str
    form: str
    hx: bool
    special: str = ""
    tf32: bool = False  # products of float32 in TF32, as a GPU can
    device: str = "cpu"  # no part of the name: the numbers of a case are the same everywhere

    @cached_property
    def name(self) -> str:
        parts = [self.kind, self.dtype, self.onednn and "onednn", self.tf32 and "tf32"]
        parts += [not self.is_cell and f"layers{self.layers}", "bias" if self.bias else "nobias"]
        parts += [self.batch_first and "batch_first", self.bidirectional and "bidirectional"]
        parts += [self.dropout, self.form, self.hx and "hx", self.special]
        return "-".join(part for part in parts if part)

    @property
    def is_cell(self) -> bool:
        return self.kind in CELLS

    @property
    def class_name(self) -> str:
        return self.kind.split("-")[0]

    @property
    def is_lstm(self) -> bool:
        return self.class_name in ("LSTM", "LSTMCell")

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def is_packed(self) -> bool:
        return self.form.startswith("packed")

    @property
    def is_ragged(self) -> bool:
        return self.form in RAGGED

    def seed(self, seed: int) -> int:
        """Return a seed of the case's own, the same in every process and on every machine."""
        return zlib.crc32(f"{seed} {self.name}".encode())


#: The axes of the CPU's grid; a GPU's has `tf32` beside them.
AXES = tuple(field.name for field in fields(Case) if field.name not in ("tf32", "device"))


def _backends(kind: str) -> Iterator[tuple[str, bool]]:
    """Yield (dtype, oneDNN on) pairs that can differ from one another.

    torch.nn hands to oneDNN the whole LSTM (float32, bfloat16 and, where the processor has it, float16), and through
    `addmm` the matrix products of every mode in bfloat16 and float16. Nothing it does in float64 or complex numbers,
    and nothing outside the LSTM in float32, looks at the switch: those run once, with oneDNN off.
    """
    for dtype in DTYPES:
        if dtype.startswith("complex") and kind.endswith("relu"):
            continue  # clamp is not defined on complex numbers: torch.nn refuses
        yield dtype, False
        if dtype in ("bfloat16", "float16") or (dtype == "float32" and kind.startswith("LSTM")):
            yield dtype, True


def _layers(dropouts: Iterable[str] = DROPOUTS, forms: Iterable[str] = FORMS) -> Iterator[Case]:
    for kind in KINDS:
        for dtype, onednn in _backends(kind):
            for rest in itertools.product((1, 2, 3), YES_NO, YES_NO, YES_NO, dropouts, forms, YES_NO):
                case = Case(kind, dtype, onednn, *rest)
                if case.dropout == "dropout_train" and dtype.startswith("complex"):
                    continue  # bernoulli_ is not defined on complex numbers: torch.nn refuses
                yield case


def _cells() -> Iterator[Case]:
    for kind in CELLS:
        for dtype, onednn in _backends(kind):
            for bias, form, hx in itertools.product(YES_NO, ("unbatched", "batched"), YES_NO):
                yield Case(kind, dtype, onednn, 1, bias, False, False, "", form, hx)


def _specials() -> Iterator[Case]:
    forms: tuple[str, ...]
    for special in SPECIALS:
        dtypes = ("float32",) if special == "autocast" else ("float64", "float32")
        for kind, dtype, onednn in itertools.product(KINDS, dtypes, YES_NO):
            if onednn and not (dtype == "float32" and kind == "LSTM"):
                continue
            if special == "loss_c_n" and not kind.startswith("LSTM"):
                continue
            if special == "written_on" and onednn:
                continue  # oneDNN's LSTM reads its output again: torch.nn refuses
            forms = ("padded",) if special == "empty_batch" else ("unbatched", "padded", "packed_unsorted")
            for batch_first, bidirectional, form, hx in itertools.product(YES_NO, YES_NO, forms, YES_NO):
                if form != "padded" and (batch_first or (special == "expanded" and form != "unbatched")):
                    continue
                yield Case(kind, dtype, onednn, 2, True, batch_first, bidirectional, "", form, hx, special)
        for kind, dtype, hx in itertools.product(CELLS, dtypes, YES_NO):
            if special in ("one_step", "long", "loss_output", "written_on") or (
                special == "loss_c_n" and kind != "LSTMCell"
            ):
                continue
            forms = ("batched",) if special == "empty_batch" else ("unbatched", "batched")
            for form in forms:
                yield Case(kind, dtype, False, 1, True, False, False, "", form, hx, special)


def _on(device: str, case: Case) -> Iterator[Case]:
    """Yield what becomes of a case on a GPU: no oneDNN, float32 without TF32 and with it, two dtypes of autocast."""
    if case.onednn:
        return
    case = replace(case, device=device)
    yield case
    if case.special == "autocast":
        yield replace(case, special=AUTOCAST_FLOAT16)
    elif case.dtype == "float32":
        yield replace(case, tf32=True)


def grid(device: str = "cpu", ragged: bool = True) -> list[Case]:
    """Return every case that runs on `device`, in a fixed order; without `ragged`, those of torch.nn's arguments."""
    cases = [*_layers(), *_cells(), *_specials(), *(_layers(("",), RAGGED) if ragged else ())]
    return cases if device == "cpu" else [other for case in cases for other in _on(device, case)]


def quick(cases: list[Case], strength: int = 3) -> list[Case]:
    """Choose a covering subset: any `strength` axis values that occur together in `cases` do so here too.

    Greedy in a fixed pseudo-random order (by hash of the name): a case is taken when it shows a combination that no
    case before it has shown. Ordinary cells and special circumstances are covered by pairs: they have fewer axes.
    """
    seen: set[tuple[tuple[str, object], ...]] = set()
    chosen = []
    for case in sorted(cases, key=lambda case: zlib.crc32(case.name.encode())):
        plain = not case.special and not case.is_cell
        values = [("kind", case.kind)] + [(axis, getattr(case, axis)) for axis in (*AXES[1:], "tf32")]
        shown = set(itertools.combinations(values, strength if plain else 2))
        if not plain:  # combinations within the family, so that a special case covers nothing for the plain grid
            shown = {(("family", case.special or "cell"), *pair) for pair in shown}
        if not shown <= seen:
            seen |= shown
            chosen.append(case)
    return chosen


def select(cases: list[Case], expression: str) -> list[Case]:
    """Select the cases whose name satisfies an expression: words joined by `and`, `or`, `not`, parentheses.

    A word matches where a part of the name begins with it: `packed` matches packed_unsorted, and `bias` doesn't match
    nobias. An expression that is exactly the name of a case selects that case alone. ValueError if it can't be read.
    """
    exact = [case for case in cases if case.name == expression.strip()]
    if exact:
        return exact
    matches = parse(expression)
    return [case for case in cases if matches(case.name.lower())]


def parse(expression: str) -> Callable[[str], bool]:
    """Read `expression` as a predicate on lower-case text. In Python, each word becomes the question has(word)."""
    words = re.findall(r"[()]|[^\s()]+", expression.lower())
    grammar = ("and", "or", "not", "(", ")")
    code = " ".join(word if word in grammar else f"has[{word!r}]" for word in words)
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError:
        raise ValueError(f"-k: cannot read {expression!r}: words, and, or, not, ()") from None
    if any(isinstance(node, (ast.Call, ast.Tuple)) for node in ast.walk(tree)):  # two words, or none, by parentheses
        raise ValueError(f"-k: expected 'and' or 'or' between words, and a word in parentheses, in {expression!r}")
    compiled = compile(tree, "-k", "eval")
    return lambda text: bool(eval(compiled, {"has": _Parts(text)}))


class _Parts:
    """The parts of a name: has[word] says whether one of them begins with it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, word: str) -> bool:
        return re.search(r"(?:^|[-_])" + re.escape(word), self.name) is not None
