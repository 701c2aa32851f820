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
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .grid import Case
from .run import Draw, Observations, Precision, draw, observe
from .subjects import NotOfferedError, Subject
from .variants import (
    GATES,
    Deviation,
    Example,
    Order,
    Variant,
    catalogue,
    compatible,
    define,
    orders,
    plain,
)

MARGIN = 100.0


@dataclass(frozen=True)
class Finding:
    """One mistake, by name."""

    what: str
    where: str  # the systems of which it is the convention
    fix: str
    evidence: str = ""

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  the convention of: {self.where}"] if self.where else []
        lines += [f"  to do: {self.fix}"] + ([f"  ({self.evidence})"] if self.evidence else [])
        return "\n".join(lines)


@dataclass(frozen=True)
class Unexplained:
    """A difference that no known variant explains."""

    probe: str
    error: float
    nearest: str
    distance: float

    def __str__(self) -> str:
        near = f"the nearest, {self.nearest}, is {self.distance:.1e} away" if self.nearest else "nothing comes near"
        return f"{self.probe}: differs by {self.error:.1e} and no known variant fits ({near})"


# Searching ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What came out of comparing one observation with the catalogue."""

    error: float  # from torch.nn's definition (and what was found before)
    best: Variant | None  # accepted
    nearest: Variant | None
    distance: float
    runner_up: float  # the distance of the next variant that means something else


def tolerance(example: Example, eps: float = torch.finfo(torch.float64).eps) -> float:
    """What rounding may do: a random walk of the roundings, with room for the ill-conditioned."""
    steps = 1 if example.is_cell else max(example.input.shape[:-1])
    return 256 * eps * math.sqrt(steps * len(example.slots))


def distance(expected: dict[str, Tensor], seen: dict[str, Tensor], orders: int = 0) -> Tensor:
    """The largest error relative to the largest number of each tensor; with `orders`, one for each of them."""
    total = torch.zeros(orders or 1, dtype=torch.float64)
    for name, tensor in seen.items():
        other = expected.get(name)
        if other is None or other.shape[other.dim() - tensor.dim() :] != tensor.shape or other.dim() < tensor.dim():
            return total + math.inf
        error = (other - tensor).abs().double()
        error = error.flatten(1).amax(1) if other.dim() > tensor.dim() else error.max() if error.numel() else error.sum()
        scale = tensor.abs().max().double() if tensor.numel() else 1.0
        error = error / scale if scale else torch.where(error > 0, math.inf, 0.0)
        total = torch.maximum(total, torch.nan_to_num(error, nan=math.inf))
    return total


def search(
    example: Example,
    seen: dict[str, Tensor],
    levels: Sequence[str],
    base: Variant,
    again: Iterable[tuple[Example, dict[str, Tensor]]] = (),
    eps: float = torch.finfo(torch.float64).eps,
) -> Search:
    """Search for the variant that shows `seen` on `example`, beginning from `base`."""
    allowed = tolerance(example, eps)
    error = _errors(base.deviations, (base.order,), example, seen)[0].item()
    if error <= allowed:
        return Search(error, base, base, error, math.inf)
    reordering = "cell" in levels and base.order.plain
    tried = orders(example.kind) if reordering else (base.order,)
    known = [deviation for deviation in catalogue(example.kind, levels) if deviation not in base.deviations]
    found: list[tuple[float, Variant]] = []
    for size in (0, 1, 2):
        for extra in itertools.combinations(known, size):
            deviations = base.deviations + extra
            if not compatible(deviations):
                continue
            distances = _errors(deviations, tried, example, seen)
            near = distances.argsort()[:3] if len(tried) > 1 else [0]
            found += [(distances[index].item(), Variant(tried[index], deviations)) for index in near]
        found = sorted(found, key=lambda pair: pair[0])[:50]
        if found[0][0] <= allowed:
            break
    nearest_distance, nearest = found[0]
    fits = sorted((v for d, v in found if d <= allowed), key=lambda v: (v.size, _position(v)))
    if not fits:
        return Search(error, None, nearest, nearest_distance, nearest_distance)
    best = fits[0]
    different = [(d, v) for d, v in found if v is not best and (d > allowed or not equivalent(best, v, example))]
    runner_up = min((d for d, _ in different), default=math.inf)
    accepted = runner_up > MARGIN * allowed and all(
        _errors(best.deviations, (best.order,), other, shown)[0].item() <= tolerance(other, eps) for other, shown in again
    )
    return Search(error, best if accepted else None, best, found[0][0], runner_up)


def _position(variant: Variant) -> tuple[int, ...]:
    from .variants import CATALOGUE

    return tuple(CATALOGUE.index(deviation) for deviation in variant.deviations)


def _errors(
    deviations: tuple[Deviation, ...], tried: Sequence[Order], example: Example, seen: dict[str, Tensor]
) -> Tensor:
    """The distance of a variant from what was seen, for each order."""
    H = example.weights["weight_hh" + example.slots[0]].size(0) // len(GATES[example.kind])
    rows = None
    if len(tried) > 1:
        rows = torch.stack([order.rows(H) for order in tried])
    elif not tried[0].plain:
        rows = tried[0].rows(H)
    try:
        expected = define(deviations).run(example, rows)
    except (RuntimeError, IndexError):  # a deviation that has no meaning for these shapes
        return torch.full((len(tried),), math.inf)
    return distance(expected, seen, len(tried) if len(tried) > 1 else 0)


def equivalent(first: Variant, second: Variant, example: Example) -> bool:
    """Whether two variants are the same function: they agree on other, generic numbers in the form of `example`."""
    generator = torch.Generator().manual_seed(20)

    def anew(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    other = replace(
        example,
        weights={name: anew(weight) for name, weight in example.weights.items()},
        input=anew(example.input),
        hx=tuple(anew(h) for h in example.hx),
        cotangents={name: anew(cotangent) for name, cotangent in example.cotangents.items()},
    )
    shown = first.run(other)
    return _errors(second.deviations, (second.order,), other, shown)[0].item() <= tolerance(other)


# Probing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A configuration, and the levels of the catalogue that it can tell apart."""

    name: str
    levels: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    square: bool = False  # as many rows as slots, so that a transposed state has the same shape

    def case(self, kind: str) -> Case:
        plain_case: dict[str, Any] = {
            "kind": kind, "dtype": "float64", "onednn": False, "layers": 1, "bias": True, "batch_first": False,
            "bidirectional": False, "dropout": "", "form": "batched" if "Cell" in kind else "padded", "hx": True,
        }  # fmt: skip
        return Case(**{**plain_case, **self.options})


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
    Probe("batch_first, no hx", ("batch",), {"batch_first": True, "hx": False}),
    Probe("batch_first, as many rows as layers", ("batch",), {"batch_first": True, **TWO_BY_TWO}, square=True),
    Probe("batch_first", ("batch",), {"batch_first": True}),
    Probe("packed", ("batch",), {"form": "packed"}),
    Probe("packed, two directions", ("batch", "stack"), {"form": "packed", **TWO_BY_TWO}),
    Probe("packed, unsorted", ("batch",), {"form": "packed_unsorted"}),
    Probe("packed, unsorted, no hx", ("batch",), {"form": "packed_unsorted", "hx": False}),
    Probe("projection", ("cell",), {"kind": "LSTM-proj"}),
    Probe("dropout 1, one layer", ("dropout",), {"dropout": "dropout_train"}),
    Probe("dropout 1, two layers", ("dropout",), {"dropout": "dropout_train", "layers": 2}),
    Probe("dropout 1 in eval mode", ("dropout",), {"dropout": "dropout_eval", "layers": 2}),
)
CELL_PROBES = (
    Probe("no bias", ("cell",), {"bias": False}),
    Probe("no hx", ("stack",), {"hx": False}),
    Probe("unbatched", ("batch",), {"form": "unbatched"}),
)


def example_of(case: Case, drawn: Draw, gradients: bool = False) -> Example:
    return Example(
        kind=case.class_name.removesuffix("Cell"),
        weights=drawn.weights,
        input=drawn.input,
        hx=drawn.hx,
        lengths=drawn.lengths if case.is_packed else None,
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
        """Whether nothing at all was found, in what the subject offers."""
        return not (self.findings or self.unexplained or self.errors)

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings] + [str(one) for one in self.unexplained]
        lines += [f"{probe}: {text}" for probe, text in self.errors.items()]
        return "\n".join(lines) or "nothing to report"


class Doctor:
    """Probes one subject."""

    def __init__(self, subject: Subject, seed: int = 0, nonlinearity: str = "tanh") -> None:
        self.subject = subject
        self.kind = subject.class_name + (f"-{nonlinearity}" if subject.kind == "RNN" else "")
        self.seed = seed
        self.diagnosis = Diagnosis(subject)
        self.base = plain(subject.kind)
        self.grads = True  # whether values agree, so that gradients can be looked at

    def diagnose(self) -> Diagnosis:
        diagnosis = self.diagnosis
        if not self.look(BASE):
            diagnosis.variant = None
            return diagnosis
        for probe in CELL_PROBES if self.subject.is_cell else PROBES:
            if self.subject.kind != "LSTM" and probe.name == "projection":
                continue
            if any(one.probe == probe.name.split(",")[0] for one in diagnosis.unexplained):
                continue
            self.look(probe)
        self.gradients()
        self.facts()
        diagnosis.variant = self.base
        return diagnosis

    def draw(self, probe: Probe, number: int) -> tuple[Case, Draw]:
        case = probe.case(self.kind) if "kind" not in probe.options else Probe.case(probe, self.kind)
        seed = self.seed + 1000 * number
        drawn = draw(case, seed)
        while probe.square and drawn.hx[0].size(0) != drawn.hx[0].size(1):
            seed += 1
            drawn = draw(case, seed)
            if seed > self.seed + 1000 * number + 50:
                break
        if case.dropout:
            drawn = replace(drawn, arguments={**drawn.arguments, "dropout": 1.0})
        return case, drawn

    def run(self, case: Case, drawn: Draw) -> Observations:
        return observe(self.subject.namespace, case, drawn, Precision(torch.float64, torch.float64))

    def look(self, probe: Probe) -> bool:
        """Run the subject on a probe; record what is found. False if it cannot be explained."""
        problems = [self.draw(probe, number) for number in (0, 1)]
        shown = [self.run(case, drawn) for case, drawn in problems]
        error = shown[0].error
        if error:
            return self.refused(probe, error)
        examples = [example_of(case, drawn) for case, drawn in problems]
        seen = [_values(observations) for observations in shown]
        narrowed = [name for name, tensor in seen[0].items() if tensor.dtype != torch.float64]
        if narrowed:
            self.add(Finding(
                f"{', '.join(narrowed)} in {str(seen[0][narrowed[0]].dtype).removeprefix('torch.')} in a float64 run",
                "", "allocate with the dtype of the input: x.new_zeros(...)", f"seen with {probe.name}",
            ))  # fmt: skip
            self.grads = False
            return True
        levels = probe.levels
        error_now = _errors(self.base.deviations, (self.base.order,), examples[0], seen[0])[0].item()
        if 1e-11 < error_now < 1e-5:  # only a narrower dtype errs by so little
            levels = ("dtype",)
        found = search(examples[0], seen[0], levels, self.base, list(zip(examples[1:], seen[1:])))
        if found.best is None and levels == ("dtype",):
            self.add(Finding(
                "something passes through float32 in a float64 run", "",
                "allocate with the dtype of the input: x.new_zeros(...)",
                f"errors of {error_now:.1e} are float32's, seen with {probe.name}",
            ))  # fmt: skip
            self.grads = False
            return True
        if found.best is None:
            nearest = found.nearest.name if found.nearest is not None and found.distance < found.error else ""
            self.diagnosis.unexplained.append(Unexplained(probe.name, found.error, nearest, found.distance))
            return False
        if found.best is self.base:
            self.diagnosis.passed.append(probe.name)
            return True
        self.accept(found, probe)
        return True

    def accept(self, found: Search, probe: Probe) -> None:
        best = found.best
        assert best is not None
        margin = "nothing else fits" if found.runner_up == math.inf else f"the next is {found.runner_up:.1e} away"
        evidence = f"{probe.name}: reproduced to {found.distance:.0e}, twice; {margin}"
        new = [part for part in zip(best.parts, best.fixes) if part[0] not in self.base.parts]
        for what, fix in new:
            single = Variant(best.order) if what == str(best.order) else None
            deviation = next((d for d in best.deviations if d.name == what), None)
            where = single.where if single else deviation.where if deviation else ""
            self.add(Finding(what, best.where if len(new) == best.size and best.where else where, fix, evidence))
        self.base = best

    def add(self, finding: Finding) -> None:
        if finding.what not in self.diagnosis.names:
            self.diagnosis.findings.append(finding)

    def refused(self, probe: Probe, error: str) -> bool:
        """The subject raised. Options that it refuses are not offered; an error in the base case is an error."""
        if probe is BASE:
            self.diagnosis.errors[probe.name] = error
            return False
        if probe.square or probe.name == "batch_first":  # it runs without a state, or with a transposed one?
            if "batch_first, no hx" not in self.diagnosis.not_offered:
                self.diagnosis.errors[probe.name] = error
                return True
        self.diagnosis.not_offered[probe.name] = error.removeprefix("NotOfferedError: ")
        return True

    # Gradients

    def gradients(self) -> None:
        """Compare gradients where values agree (with torch.nn, or with what was found)."""
        if not self.grads:
            return
        stacked = Probe("two layers, two directions", (), TWO_BY_TWO)
        deep = Probe("two layers", (), {"layers": 2})
        offered = [BASE] + [probe for probe in (deep, stacked) if probe.name in self.diagnosis.passed]
        for probe in offered:
            problems = [self.draw(probe, number) for number in (0, 1)]
            shown = [self.run(case, drawn) for case, drawn in problems]
            if any(observations.error for observations in shown):
                self.diagnosis.errors[f"backward, {probe.name}"] = shown[0].error or shown[1].error
                return
            examples = [example_of(case, drawn, gradients=True) for case, drawn in problems]
            seen = [
                _values(observations) | _gradients(observations, example)
                for observations, example in zip(shown, examples)
            ]
            found = search(examples[0], seen[0], ("gradient",), self.base, list(zip(examples[1:], seen[1:])))
            if found.best is None:
                self.diagnosis.unexplained.append(Unexplained(
                    f"gradients, {probe.name} ({self.worst(examples[0], seen[0])})", found.error,
                    found.nearest.name if found.nearest and found.distance < found.error else "", found.distance,
                ))  # fmt: skip
                return
            if found.best is not self.base:
                self.accept(found, replace(probe, name=f"gradients, {probe.name}"))

    def worst(self, example: Example, seen: dict[str, Tensor]) -> str:
        expected = self.base.run(example)
        return max(seen, key=lambda name: distance({name: expected[name]}, {name: seen[name]}).item())

    # Aliasing, memory from call to call

    def facts(self) -> None:
        for probe in [BASE] + [probe for probe in PROBES if probe.name in self.diagnosis.passed][:6]:
            case, drawn = self.draw(probe, 0)
            shown = self.run(case, drawn)
            usual = observe(torch.nn, case, drawn, Precision(torch.float64, torch.float64))
            for pair in sorted(shown.facts.get("aliases", set()) - usual.facts["aliases"]):
                first, _, second = pair.partition(" and ")
                self.add(Finding(
                    f"{second} shares memory with {first}", "",
                    f"return a copy: {second}.clone(), or torch.stack the states of the layers", probe.name,
                ))  # fmt: skip
            for name in shown.facts.get("written to", []):
                self.add(Finding(
                    f"{name} is written to", "", "work on a new tensor: out of place, or on a clone", probe.name
                ))  # fmt: skip
        self.memory()

    def memory(self) -> None:
        """Call the same module twice: the second result must be the first."""
        case, drawn = self.draw(replace(BASE, options={"hx": False}), 0)
        try:
            module = self.subject.make(**drawn.arguments, dtype=torch.float64).eval()
            first, second = module(drawn.input), module(drawn.input)
        except Exception:  # without a state it is not offered: reported elsewhere
            return
        values = [[t for t in _flatten(result)] for result in (first, second)]
        if any(not torch.equal(a, b) for a, b in zip(*values)):
            self.add(Finding(
                "the state is kept from one call to the next", "Keras stateful=True, Chainer links",
                "begin with zeros at each call that gives no hx", "the same call twice",
            ))  # fmt: skip


def _flatten(result: Any) -> Iterable[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _flatten(part)


def _values(observations: Observations) -> dict[str, Tensor]:
    return {name: t for name, t in observations.tensors.items() if t is not None and not name.startswith("grad of")}


def _gradients(observations: Observations, example: Example) -> dict[str, Tensor]:
    """Gradients by name; one that is missing counts as zero, which it is."""
    leaves = {**example.weights, "input": example.input, **dict(zip(("h_0", "c_0"), example.hx))}
    return {
        f"grad of {name}": torch.zeros_like(leaf) if (grad := observations.tensors.get(f"grad of {name}")) is None else grad
        for name, leaf in leaves.items()
    }


def diagnose(subject: Subject, seed: int = 0, nonlinearity: str = "tanh") -> Diagnosis:
    """Probe `subject` and name what makes it differ from torch.nn."""
    return Doctor(subject, seed, nonlinearity).diagnose()
