"""Why does the subject differ from torch.nn? Search the catalogue for a definition that computes what it computes.

A probe is a configuration with numbers drawn for it. What the subject shows there is compared with torch.nn's
definition; where they differ, the variants of the probe's levels are run on the same numbers, one deviation, then two.
A variant is accepted if

- it reproduces the subject within rounding,
- every variant that means something else is a hundred times farther away than rounding explains,
- it reproduces the subject again on numbers drawn anew.

Variants that agree on a generic problem are one and the same; the simplest gives the name. What has been found on one
probe is taken for granted on the next, so that a mistake in a gate is not reported again for every layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

from ..grid.cases import Case
from ..grid.run import Draw, Observations, Precision, build, draw, observe
from ..mutants.catalogue import ALLOCATE
from ..mutants.definition import Example, Input
from ..mutants.variants import Variant, plain
from .search import Finding, Search, distance, error_of, findings, search, tolerance
from .subjects import CELL_CONVENTIONS, CONVENTIONS, Convention, Subject, translated

ALL = 0.999999999  # a dropout that leaves nothing to chance, nor divides by zero
EXACT = Precision(torch.float64, torch.float64)


@dataclass(frozen=True)
class Unexplained:
    """A difference that no known variant explains."""

    probe: str
    error: float
    nearest: str
    distance: float
    also: tuple[str, ...] = ()  # what fits as well: then the numbers cannot tell
    note: str = ""

    def __str__(self) -> str:
        if self.also:
            others = " and also ".join(self.also[:3])
            return (
                f"{self.probe}: {self.nearest} fits, but also {others}: these numbers cannot tell. "
                "Take biases and an initial state that are not zero, and more than one step"
            )
        note = f"; {self.note}" * bool(self.note)
        near = f"the nearest, {self.nearest}, is {self.distance:.1e} away" if self.nearest else "nothing comes near"
        return f"{self.probe}: differs by {self.error:.1e} and no known variant fits ({near}){note}"


# Probing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A configuration, and the levels of the catalogue that it can tell apart."""

    name: str
    levels: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = ()  # of which sizes a batch has to be to tell; of any where none is given

    def case(self, kind: str) -> Case:
        plain_case: dict[str, Any] = {
            "kind": kind, "dtype": "float64", "onednn": False, "layers": 1, "bias": True, "batch_first": False,
            "bidirectional": False, "dropout": "", "form": "batched" if "Cell" in kind else "padded", "hx": True,
        }  # fmt: skip
        return Case(**{**plain_case, **self.options})


UNSORTABLE = (3, 4)  # sorting two rows twice undoes it
TWO_BY_TWO = {"layers": 2, "bidirectional": True}
BASE = Probe("one layer", ("cell",))
PROBES = (
    Probe("no bias", ("cell",), {"bias": False}),
    Probe("no hx", ("stack",), {"hx": False}),
    Probe("two layers", ("stack",), {"layers": 2}),
    Probe("two directions", ("stack",), {"bidirectional": True}),
    Probe("two layers, two directions", ("stack",), TWO_BY_TWO),
    Probe("two layers, two directions, no hx", ("stack",), {**TWO_BY_TWO, "hx": False}),
    Probe("unbatched", ("batch",), {"form": "unbatched"}),
    Probe("batch_first, as many rows as states", ("batch",), {"batch_first": True, **TWO_BY_TWO}, batches=(4,)),
    Probe("batch_first, no hx", ("batch",), {"batch_first": True, "hx": False}),
    Probe("batch_first", ("batch",), {"batch_first": True}),
    Probe("packed", ("batch",), {"form": "packed"}),
    Probe("packed, two directions", ("batch", "stack"), {"form": "packed", **TWO_BY_TWO}),
    Probe("packed, unsorted", ("batch",), {"form": "packed_unsorted"}, UNSORTABLE),
    Probe("packed, unsorted, no hx", ("batch",), {"form": "packed_unsorted", "hx": False}, UNSORTABLE),
    Probe("projection", ("cell",), {"kind": "LSTM-proj"}),
    Probe("dropout, two layers", ("dropout",), {"dropout": "dropout_train", "layers": 2}),
    Probe("dropout, one layer", ("dropout",), {"dropout": "dropout_train"}),
    Probe("dropout in eval mode", ("dropout",), {"dropout": "dropout_eval", "layers": 2}),
)
CELL_PROBES = tuple(probe for probe in PROBES if probe.name in ("no bias", "no hx", "unbatched"))


def example_of(case: Case, drawn: Draw, gradients: bool = False) -> Example:
    """Pose the same problem for the catalogue."""
    input: Input = drawn.input
    if case.is_packed:
        lengths = torch.tensor(drawn.lengths)
        input = pack_padded_sequence(drawn.input, lengths, case.batch_first, enforce_sorted=case.form == "packed")
    return Example(
        kind=case.class_name.removesuffix("Cell"),
        weights=drawn.weights,
        input=input,
        hx=drawn.hx,
        batch_first=case.batch_first,
        nonlinearity=drawn.arguments.get("nonlinearity", "tanh"),
        dropout=drawn.arguments.get("dropout", 0.0),
        training=case.dropout != "dropout_eval",
        is_cell=case.is_cell,
        cotangents=drawn.cotangents if gradients else {},
    )


@dataclass
class Diagnosis:
    """What was found out about a subject."""

    subject: Subject
    findings: list[Finding] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)
    not_offered: dict[str, str] = field(default_factory=dict)  # probe -> why
    errors: dict[str, str] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    variant: Variant | None = None

    @property
    def names(self) -> list[str]:
        return [finding.what for finding in self.findings]

    @property
    def same(self) -> bool:
        """Say whether nothing at all was found, in what the subject offers."""
        return not (self.findings or self.unexplained or self.errors)

    @property
    def others(self) -> list[str]:
        """List what was found and has no name."""
        return [str(one) for one in self.unexplained] + [f"{probe}: {text}" for probe, text in self.errors.items()]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), *self.others]) or "nothing to report"


class Doctor:
    """Probes one subject."""

    def __init__(self, subject: Subject, seed: int = 0, nonlinearity: str = "tanh", device: str = "cpu") -> None:
        self.subject = subject
        self.kind = subject.class_name + (f"-{nonlinearity}" if subject.kind == "RNN" else "")
        self.seed = seed
        self.diagnosis = Diagnosis(subject)
        self.base = plain(subject.kind)
        self.also: tuple[Variant, ...] = ()
        self.exact = True  # no dtype slip was found, so that gradients can be compared
        self.output_alone = False
        self.always: dict[str, Any] = {"device": device}  # what every probe has, and options that the subject needs
        self.backward_errors: dict[str, str] = {}

    def diagnose(self) -> Diagnosis:
        diagnosis = self.diagnosis
        self.settle()
        if self.look(BASE):
            for probe in CELL_PROBES if self.subject.is_cell else PROBES:
                if probe.name != "projection" or self.subject.kind == "LSTM":
                    self.look(probe)
            if not self.output_alone:
                self.facts()
                self.gradients()
            diagnosis.variant = self.base
        diagnosis.subject = self.subject
        return diagnosis

    def draw(self, probe: Probe, number: int) -> tuple[Case, Draw]:
        """Return the probe's case and numbers; another `number` draws others."""
        case = replace(probe.case(self.kind), **self.always)
        seeds = itertools.count(self.seed + 1000 * number)
        drawn = next(
            d for d in (draw(case, seed) for seed in seeds) if not probe.batches or len(d.lengths) in probe.batches
        )
        if case.dropout:
            drawn = replace(drawn, arguments={**drawn.arguments, "dropout": ALL})
        return case, drawn

    def run(self, case: Case, drawn: Draw) -> Observations:
        if self.output_alone:
            return self.output_of(case, drawn)
        return observe(self.subject.namespace, case, drawn, EXACT)

    def output_of(self, case: Case, drawn: Draw) -> Observations:
        """Say what a subject shows that returns no states."""
        seen = Observations()
        if case.is_packed:
            seen.error = "not looked at where output is returned alone"
            return seen
        try:
            module = build(self.subject.namespace, case, drawn, EXACT)
            hx = tuple(state.to(case.device) for state in drawn.hx)
            with torch.no_grad():
                result = module(drawn.input.to(case.device, copy=True), *((hx,) if len(hx) > 1 else hx))
        except Exception as error:  # whatever a subject raises is an observation
            seen.error = f"{type(error).__name__}: {error}"
            return seen
        if isinstance(result, Tensor):
            seen.tensors["output"] = result.cpu()
        else:
            seen.error = f"forward returns {type(result).__name__}"
        return seen

    def settle(self) -> None:
        """Find out in which shapes the subject takes its arguments, and whether it takes a state at all."""
        subject = self.subject

        def fits(conventions: tuple[Convention, ...]) -> bool:
            self.subject = translated(subject, conventions) if conventions else subject
            shapes = {name: t.shape for name, t in plain(subject.kind).run(example_of(case, drawn)).items()}
            expected = {"output": shapes["output"]} if self.output_alone else shapes
            return {name: t.shape for name, t in _values(self.run(case, drawn)).items()} == expected

        known = CELL_CONVENTIONS if subject.is_cell else CONVENTIONS
        for self.output_alone, hx in itertools.product((False,) if subject.is_cell else (False, True), (True, False)):
            case, drawn = self.draw(replace(BASE, options={"hx": hx}), 0)
            chosen = next((conventions for conventions in _some(known, 3) if fits(conventions)), None)
            if chosen is not None:
                for convention in chosen:
                    self.add(Finding(convention.name, convention.where, convention.fix, "seen by the shapes"))
                if not hx:
                    self.always["hx"] = False
                    self.diagnosis.not_offered["hx"] = "forward takes no state"
                if self.output_alone:
                    fix = "return output, (h_n, c_n)" if subject.kind == "LSTM" else "return output, h_n"
                    self.add(Finding("output is returned alone, without the states", "Keras", fix, "seen by the type"))
                    self.exact = False
                return
        self.subject, self.output_alone = subject, False

    def look(self, probe: Probe) -> bool:
        """Run the subject on a probe; record what is found. False if it cannot be explained."""
        problems = [self.draw(probe, number) for number in (0, 1)]
        shown = [self.run(case, drawn) for case, drawn in problems]
        seen = [_values(observations) for observations in shown]
        if not all(seen):
            return self.refused(probe, *problems[0], shown[0].error or shown[1].error)
        if shown[0].error:
            self.backward_errors[probe.name] = shown[0].error
        narrow = [name for name, tensor in seen[0].items() if tensor.dtype != torch.float64]
        if narrow:
            dtype = str(seen[0][narrow[0]].dtype).removeprefix("torch.")
            return self.slip(f"{' and '.join(narrow)} in {dtype} in a float64 run", probe)
        examples = [example_of(case, drawn) for case, drawn in problems]
        again = list(zip(examples[1:], seen[1:], strict=False))
        now = error_of(self.base, examples[0], seen[0])
        narrower = 1e-11 < now < 1e-5  # nothing but a narrower dtype errs by so little
        if now > tolerance(examples[0]):
            self.reconsider(examples, seen)
        found = search(examples[0], seen[0], ("dtype",) if narrower else probe.levels, self.base, again)
        if narrower:
            self.exact = False
        if found.best is None and narrower:
            return self.slip("something passes through float32 in a float64 run", probe, f"errors of {now:.1e}")
        if found.best is None:
            return self.unexplained(probe, found, examples[0], seen[0])
        if found.best is self.base:
            self.diagnosis.passed.append(probe.name)
        else:
            self.accept(found, probe)
        return True

    def slip(self, what: str, probe: Probe, evidence: str = "") -> bool:
        self.add(Finding(what, "", ALLOCATE, f"{probe.name}{': ' * bool(evidence)}{evidence}"))
        self.exact = False
        return True

    def unexplained(
        self, probe: Probe, found: Search, example: Example, seen: dict[str, Tensor], note: str = ""
    ) -> bool:
        usual = self.base.run(example)
        for name in ("output",) if self.output_alone else usual:
            if name not in seen or seen[name].shape != usual[name].shape:
                shape = f"has shape {list(seen[name].shape)}" if name in seen else "is missing"
                self.add(Finding(
                    f"{probe.name}: {name} {shape}, torch.nn's has {list(usual[name].shape)}", "",
                    "refuse what is not offered, or return torch.nn's shape", "and no exception was raised",
                ))  # fmt: skip
                return False
        self.diagnosis.unexplained.append(Unexplained(probe.name, found.error, found.near, found.distance, note=note))
        return False

    def reconsider(self, examples: list[Example], seen: list[dict[str, Tensor]]) -> None:
        """Tell apart by these numbers names that meant the same so far."""
        pairs = list(zip(examples, seen, strict=True))
        fits = (one for one in self.also if all(error_of(one, *pair) <= tolerance(pair[0]) for pair in pairs))
        other = next(fits, self.base)
        if other is not self.base:
            old = [part.name for part in self.base.parts]
            evidence = next(f.evidence for f in self.diagnosis.findings if f.what in old)
            self.diagnosis.findings = [f for f in self.diagnosis.findings if f.what not in old]
            self.base = other
            self.add(*findings(other, plain(self.subject.kind), evidence))

    def accept(self, found: Search, probe: Probe) -> None:
        """Record what was found, and take it for granted from now on."""
        assert found.best is not None
        self.add(*found.findings(self.base, f"{probe.name}: ", ", twice"))
        self.base, self.also = found.best, found.also

    def add(self, *findings: Finding) -> None:
        self.diagnosis.findings += [one for one in findings if one.what not in self.diagnosis.names]

    def refused(self, probe: Probe, case: Case, drawn: Draw, error: str) -> bool:
        """Record that the subject raised. What it refuses is not offered; the base case it must have, in float64."""
        single = Precision(torch.float32, torch.float32)
        if observe(self.subject.namespace, replace(case, dtype="float32"), drawn, single).tensors:
            self.add(Finding("a float32 tensor in a float64 run", "", ALLOCATE, f"{probe.name}: {error}"))
            return probe is not BASE
        if probe is BASE:
            self.diagnosis.errors[probe.name] = error
            return False
        self.diagnosis.not_offered[probe.name] = error.removeprefix("NotOfferedError: ")
        return True

    # Gradients

    def gradients(self) -> None:
        """Compare gradients where values are understood."""
        names = ("one layer", "two layers", "two layers, two directions")
        for probe in [BASE, *(probe for probe in PROBES if probe.name in names[1:])] if self.exact else []:
            if probe.name not in self.diagnosis.passed and probe is not BASE:
                continue
            if probe.name in self.backward_errors:
                if not any("written to" in name for name in self.diagnosis.names):
                    self.diagnosis.errors[f"backward, {probe.name}"] = self.backward_errors[probe.name]
                return
            problems = [self.draw(probe, number) for number in (0, 1)]
            examples = [example_of(case, drawn, gradients=True) for case, drawn in problems]
            shown = [self.run(case, drawn) for case, drawn in problems]
            seen = [_values(one) | _gradients(one, example) for one, example in zip(shown, examples, strict=True)]
            again = [(examples[1], seen[1])]
            found = search(examples[0], seen[0], ("gradient",), self.base, again)
            if found.best is None:
                name = f"gradients, {probe.name}, the worst of {self.worst(examples[0], seen[0])}"
                self.unexplained(replace(probe, name=name), found, examples[0], seen[0], self.lag(*problems[0]))
                return
            if found.best is not self.base:
                self.accept(found, replace(probe, name=f"gradients, {probe.name}"))

    def lag(self, case: Case, drawn: Draw) -> str:
        """Count the steps back from the last output in which the gradient of the input is still right."""
        if case.is_cell or "output" not in drawn.cotangents:
            return ""
        last = torch.zeros_like(drawn.cotangents["output"])
        last[-1] = drawn.cotangents["output"][-1]
        drawn = replace(drawn, cotangents={"output": last})
        expected = self.base.run(example_of(case, drawn, gradients=True))["grad of input"]
        seen = self.run(case, drawn).tensors.get("grad of input")
        if seen is None:
            return "no gradient reaches the input"
        apart = (seen - expected).abs().flatten(1).amax(1) > 1e-9 * expected.abs().flatten(1).amax(1)
        wrong = [len(apart) - 1 - step for step in range(len(apart)) if apart[step]]
        first = min(wrong, default=None)
        return "" if first is None else f"from the last output back to the input it is right for {first} steps"

    def worst(self, example: Example, seen: dict[str, Tensor]) -> str:
        expected = self.base.run(example)
        return max(seen, key=lambda name: distance({name: expected[name]}, {name: seen[name]}).item())

    # Aliasing, memory from call to call

    def facts(self) -> None:
        """Record what is shared, what is written to, what is kept."""
        states = "c_n shares memory with h_n", "c_1 shares memory with h_1"
        for probe in [BASE, *[probe for probe in PROBES if probe.name in self.diagnosis.passed][:6]]:
            case, drawn = self.draw(probe, 0)
            if probe.name in self.backward_errors:
                case = replace(case, special="no_grad")
            shown, usual = self.run(case, drawn), observe(torch.nn, case, drawn, EXACT)
            for pair in sorted(shown.facts.get("aliases", set()) - usual.facts["aliases"]):
                first, _, second = pair.partition(" and ")
                what = f"{second} shares memory with {first}"
                if what not in states or self.base.deviations == ():  # one is the other: said already
                    self.add(Finding(what, "", f"return a copy: {second}.clone(), or stack the states", probe.name))
            for name in shown.facts.get("written to", []):
                fix = "work out of place, or on a clone"
                self.add(Finding(f"{name} is written to", "", fix, probe.name))
        self.memory()

    def memory(self) -> None:
        """Call the same module twice: the second result must be the first."""
        case, drawn = self.draw(replace(BASE, options={"hx": False}), 0)
        try:
            module = build(self.subject.namespace, case, drawn, EXACT).eval()
            first, second = (tree_leaves(module(drawn.input.to(case.device, copy=True))) for _ in range(2))
        except Exception:  # a call without a state is not offered, which is said elsewhere
            return
        if not all(torch.equal(a, b) for a, b in zip(first, second, strict=False)):
            where, fix = "Keras stateful=True, Chainer links", "begin with zeros at each call that gives no hx"
            self.add(Finding("the state is kept from one call to the next", where, fix, "the same call twice"))


def _some(conventions: tuple[Convention, ...], most: int) -> Iterator[tuple[Convention, ...]]:
    """Yield (), then each alone, then pairs."""
    for size in range(most + 1):
        yield from itertools.combinations(conventions, size)


def _values(observations: Observations) -> dict[str, Tensor]:
    return {name: t for name, t in observations.tensors.items() if t is not None and not name.startswith("grad of")}


def _gradients(observations: Observations, example: Example) -> dict[str, Tensor]:
    """Return gradients by name; one that is missing counts as zero, which it is."""
    named = {name: observations.tensors.get(f"grad of {name}") for name in example.leaves}
    zeros = {name: torch.zeros_like(leaf) for name, leaf in example.leaves.items()}
    return {f"grad of {name}": zeros[name] if grad is None else grad for name, grad in named.items()}
