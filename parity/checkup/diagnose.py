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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

from ..grid.cases import Case
from ..grid.run import Draw, Observations, Precision, build, draw, observe
from ..mutants.catalogue import ALLOCATE, LAST_STEP, ONE_BIAS
from ..mutants.definition import Example, Input, same
from ..mutants.module import Planted, implementation
from ..mutants.mutant import Mutant, defined
from ..mutants.orders import Order, orders
from ..mutants.variants import Variant, plain
from .search import Finding, Search, distance, error_of, errors_of_orders, findings, fit, search, tolerance
from .subjects import (
    CELL_CONVENTIONS,
    CONVENTIONS,
    GIVE_A_MAP,
    Convention,
    IgnoredError,
    IncomparableError,
    Subject,
    steady,
    translated,
)  # fmt: skip
from .weights import Layout

ALL = 0.999999999  # a dropout that leaves nothing to chance, nor divides by zero
EXACT = Precision(torch.float64, torch.float64)


#: torch.nn's GRU of one bias: what it has in b_hn is added to b_in.
MERGED = implementation(type("", (Planted,), {"definition": defined(ONE_BIAS.knobs)}))
RETURN = "torch.nn's return output, (h_n, c_n) of an LSTM, output, h_n of others; a cell's the new state"


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
    scale: tuple[float, float] = (1.0, 1.0)  # of the input, and of the initial state
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
    Probe("large states", (), scale=(1.0, 10.0)),
    Probe("large inputs", (), scale=(30.0, 1.0)),
    Probe("no bias", ("cell",), {"bias": False}),
    Probe("no hx", ("stack",), {"hx": False}),
    Probe("two layers", ("stack",), {"layers": 2}),
    Probe("three layers", ("stack",), {"layers": 3}),
    Probe("two directions", ("stack",), {"bidirectional": True}),
    Probe("two layers, two directions", ("stack",), TWO_BY_TWO),
    Probe("two layers, two directions, no hx", ("stack",), {**TWO_BY_TWO, "hx": False}),
    Probe("unbatched", ("batch",), {"form": "unbatched"}),
    Probe("batch_first, as many rows as states", ("batch",), {"batch_first": True, **TWO_BY_TWO}, batches=(4,)),
    Probe("batch_first, no hx", ("batch",), {"batch_first": True, "hx": False}),
    Probe("batch_first", ("batch",), {"batch_first": True}),
    Probe("packed", ("batch",), {"form": "packed"}),
    Probe("packed, two directions", ("batch", "stack"), {"form": "packed", **TWO_BY_TWO}),
    Probe("packed, unsorted", ("batch",), {"form": "packed_unsorted"}, batches=UNSORTABLE),
    Probe("packed, unsorted, no hx", ("batch",), {"form": "packed_unsorted", "hx": False}, batches=UNSORTABLE),
    Probe("projection", ("cell",), {"kind": "LSTM-proj"}),
    Probe("dropout, two layers", ("dropout",), {"dropout": "dropout_train", "layers": 2}),
    Probe("dropout, one layer", ("dropout",), {"dropout": "dropout_train"}),
    Probe("dropout in eval mode", ("dropout",), {"dropout": "dropout_eval", "layers": 2}),
)
CELL_PROBES = tuple(p for p in PROBES if p.name in ("large states", "large inputs", "no bias", "no hx", "unbatched"))


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
    not_run: dict[str, str] = field(default_factory=dict)  # what it may well offer, and why nobody looked
    errors: dict[str, str] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    variant: Variant | None = None
    noted: list[str] = field(default_factory=list)  # beside the verdict
    unread: str = ""  # why nothing could be compared, and what to do

    @property
    def names(self) -> list[str]:
        return [finding.what for finding in self.findings]

    @property
    def left_out(self) -> dict[str, str]:
        """Say what was not compared, whoever is the cause."""
        return self.not_offered | self.not_run

    @property
    def same(self) -> bool:
        """Say whether nothing at all was found, in what the subject offers."""
        return not (self.findings or self.unexplained or self.errors or self.unread)

    @property
    def interface_alone(self) -> bool:
        """Say whether the numbers are torch.nn's, and nothing but the shape of arguments and results differs."""
        return bool(self.findings) and not (self.unexplained or self.errors) and all(f.interface for f in self.findings)

    @property
    def others(self) -> list[str]:
        """List what was found and has no name."""
        return [str(one) for one in self.unexplained] + [f"{probe}: {text}" for probe, text in self.errors.items()]

    def __str__(self) -> str:
        unread = [self.unread] if self.unread else []
        return "\n".join([*unread, *map(str, self.findings), *self.others]) or "nothing to report"


class Doctor:
    """Probes one subject."""

    def __init__(
        self,
        subject: Subject,
        seed: int = 0,
        nonlinearity: str = "tanh",
        device: str = "cpu",
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
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
        self.given: tuple[Mutant, ...] = ()  # what is taken for granted of all that it returns
        self.extras_matter = False  # parameters that torch.nn has not change the result
        self.asked_extras: tuple[str, ...] = ()  # those of which this is known
        self.progress = progress

    @property
    def reference(self) -> Any:
        """Return what the subject is compared with: torch.nn, or torch.nn with one bias where a GRU has one."""
        return MERGED if ONE_BIAS in self.base.deviations else torch.nn

    def diagnose(self) -> Diagnosis:
        diagnosis = self.diagnosis
        self.progress("constructing it")
        try:
            self.begin()
            self.progress("its first calls")
            self.settle()
            self.calm()
            self.read(BASE)
        except IncomparableError as error:
            diagnosis.unread = str(error)
            return diagnosis
        self.progress(BASE.name)
        if self.look(BASE):
            self.ask_extras(BASE)
            for probe in CELL_PROBES if self.subject.is_cell else PROBES:
                if probe.name != "projection" or self.subject.kind == "LSTM":
                    self.progress(probe.name)
                    self.read(probe)
                    if probe.name != "unbatched" or self.takes_unbatched():
                        self.look(probe)
                        self.ask_extras(probe)
            if not self.output_alone:
                self.progress("gradients, memory")
                self.facts()
                self.gradients()
            diagnosis.variant = self.base
        elif not diagnosis.unread:
            diagnosis.not_run["what comes after one layer"] = "that differs already, and no name was found for it"
        if self.extras_matter and self.subject.reader is not None:
            self.subject.reader.show_extras()
        diagnosis.subject = self.subject
        return diagnosis

    # Reading

    def diagnose_readings(self, case: Case) -> None:
        """Find out how to call the subject, and how to read its parameters in this case."""
        self.settle()
        self.read(BASE)
        self.read(Probe("", ("stack",), {"layers": case.layers, "bidirectional": case.bidirectional}))

    def begin(self) -> None:
        """Construct the subject once; find out whether it has biases at all. IncomparableError if it can't be."""
        _, drawn = self.draw(BASE, 0)
        reader = self.subject.reader
        if reader is None:
            return
        reader.module(**drawn.arguments)
        if reader.exact(drawn.arguments) or "bias" in reader.options:
            return
        if not any(part.bias for part in reader.layouts(drawn.arguments)[0].parts):
            reader.biased = False
            reader.readings.clear()
            self.always["bias"] = False
            self.diagnosis.not_offered["bias"] = "it has no biases"

    def calm(self) -> None:
        """Find out whether it draws random numbers where no dropout is asked for; then go on in eval mode."""
        case, drawn = self.draw(BASE, 0)
        first, again, other = (_values(self.run(case, replace(drawn, seed=seed))) for seed in (1, 1, 2))
        if not first or all(torch.equal(first[name], other.get(name, first[name])) for name in first):
            return
        same_seed = all(torch.equal(first[name], again.get(name, first[name])) for name in first)
        fix = "draw nothing where dropout is 0: torch.nn's are deterministic then"
        evidence = "two seeds, two results" if same_seed else "two results under one seed"
        evidence += "; what follows is of eval mode"
        self.add(Finding("random in training: numbers are drawn without dropout", "", fix, evidence))
        self.subject = steady(self.subject)

    def read(self, probe: Probe) -> None:
        """Choose, of the readings of the subject's parameters, one under which it is torch.nn's or a known variant."""
        reader = self.subject.reader
        problems = [self.draw(probe, number) for number in (0, 1)]
        arguments = problems[0][1].arguments
        if reader is None or reader.key(arguments) in reader.chosen:
            return
        try:
            if reader.exact(arguments):
                return
            layouts = reader.layouts(arguments)
        except IgnoredError as error:
            fix = "leave the biases out where bias is False"
            self.add(Finding(str(error), "", fix, "its parameters are the same"))
            return
        except IncomparableError:
            if probe is BASE:
                raise
            return
        except Exception:  # it isn't offered, which is said when it is run
            return
        examples = [example_of(case, drawn) for case, drawn in problems]
        shown: list[tuple[float, Layout, list[dict[str, Tensor]], Order]] = []
        for number, layout in enumerate(layouts):
            self.progress(f"{probe.name}: reading {number + 1} of its parameters, of {len(layouts)}")
            reader.readings[reader.key(arguments)] = [layout]
            base = self.base_of(layout) if probe is BASE else self.base
            free = layout.split and not layout.named and base.order.plain
            tried = [o for o in orders(self.subject.kind) if not o.interleaved] if free else [base.order]
            seen = [_values(self.run(case, drawn)) for case, drawn in problems]
            if not all(seen):
                continue
            errors = [errors_of_orders(base.deviations, tried, e, s) for e, s in zip(examples, seen, strict=True)]
            worst = torch.stack(errors).amax(0)
            order = tried[int(worst.argmin())]
            shown.append((worst.min().item(), layout, seen, order))
            if worst.min() <= tolerance(examples[0]):
                break
        if not shown:
            reader.readings[reader.key(arguments)] = layouts
            return
        least, layout, _, order = min(shown, key=lambda entry: entry[0])
        if least > 1e-4 and len(shown) > 1:
            layout, order = self.nearly(probe, shown, examples) or (shown[0][1], self.base.order)
        free = layout.split and not layout.named and not order.plain and not order.interleaved
        reader.choose(arguments, layout.relabelled(order.gates) if free else layout)
        if probe is BASE:
            self.base = self.base_of(layout)

    def nearly(
        self, probe: Probe, shown: list[tuple[float, Layout, list[dict[str, Tensor]], Order]], examples: list[Example]
    ) -> tuple[Layout, Order] | None:
        """Return a reading under which the subject is a known variant, and the order of its gates there."""
        for number, (_, layout, seen, _) in enumerate(shown[:6]):
            self.progress(f"{probe.name}: is it a known variant, by reading {number + 1}?")
            base = self.base_of(layout) if probe is BASE else self.base
            again = list(zip(examples[1:], seen[1:], strict=True))
            found = search(examples[0], seen[0], probe.levels, base, again, most=1, seconds=1.0)
            if found.best is not None:
                return layout, found.best.order
        return None

    def base_of(self, layout: Layout) -> Variant:
        """Return torch.nn's definition, of one bias where a GRU has one."""
        usual = plain(self.subject.kind)
        return replace(usual, deviations=(*self.given, *((ONE_BIAS,) if layout.merged else ())))

    def ask_extras(self, probe: Probe) -> None:
        """Find out what parameters do that torch.nn has not, those that no earlier probe had."""
        reader = self.subject.reader
        _, drawn = self.draw(probe, 0)
        layout = None if reader is None else reader.chosen.get(reader.key(drawn.arguments))
        names = () if layout is None else tuple(name for name in layout.extras if name not in self.asked_extras)
        if self.extras_matter or not names:
            return
        self.asked_extras += names
        given, absent = self.answers(probe), self.answers(replace(probe, options={**probe.options, "hx": False}))
        if not given and not absent:
            return
        self.extras_matter = True
        evidence = f"moving {', '.join(names)} changes {', '.join(sorted(given | absent))}"
        self.add(self.named_extras(probe, names, bool(given), evidence))

    def answers(self, probe: Probe, change: Callable[[Draw], Draw] = same) -> set[str]:
        """Name the results that answer when the parameters are moved that torch.nn has not."""
        case, drawn = self.draw(probe, 0)
        reader = self.subject.reader
        assert reader is not None
        layout = reader.chosen[reader.key(drawn.arguments)]
        results = []
        for fill in (layout.fill, 0.37):
            reader.choose(drawn.arguments, replace(layout, fill=fill))
            results.append(_values(self.run(case, change(drawn))))
        reader.choose(drawn.arguments, layout)
        first, second = results
        return {name for name in first if not torch.equal(first[name], second.get(name, torch.ones(0)))}

    def named_extras(self, probe: Probe, names: tuple[str, ...], with_hx: bool, evidence: str) -> Finding:
        """Say what parameters of these names stand for."""
        reader, listed = self.subject.reader, ", ".join(names)
        _, drawn = self.draw(probe, 0)
        assert reader is not None
        place = "" if probe is BASE else f" in {probe.name}"
        fix = "leave them out: torch.nn has no such thing"
        if not with_hx:
            what = f"the initial state is a parameter of its own{place}: {listed}"
            return Finding(what, "", "begin with zeros where no hx is given", evidence)
        if self.subject.kind == "LSTM" and all(reader.size(drawn, name) in reader.peepholes for name in names):
            still = (
                self.answers(probe, lambda d: one_step(replace(d, hx=(d.hx[0], 0 * d.hx[1])))) if drawn.hx else set()
            )
            if probe.options.get("layers", 1) > 1 or not any(name.startswith("c") for name in still):
                return Finding(
                    f"peephole connections{place}: the gates see the cell through {listed}", "", fix, evidence
                )
        kind = "layer normalisation" if normalises(names, drawn) else "it has parameters that torch.nn has not"
        return Finding(f"{kind}{place}: {listed}", "", fix, evidence)

    def draw(self, probe: Probe, number: int) -> tuple[Case, Draw]:
        """Return the probe's case and numbers; another `number` draws others."""
        case = replace(probe.case(self.kind), **self.always)
        seeds = itertools.count(self.seed + 1000 * number)
        drawn = next(
            d for d in (draw(case, seed) for seed in seeds) if not probe.batches or len(d.lengths) in probe.batches
        )
        if case.dropout:
            drawn = replace(drawn, arguments={**drawn.arguments, "dropout": ALL})
        of_input, of_states = probe.scale
        return case, replace(drawn, input=of_input * drawn.input, hx=tuple(of_states * state for state in drawn.hx))

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
            shapes = {name: t.shape for name, t in self.base.run(example_of(case, drawn)).items()}
            expected = {"output": shapes["output"]} if self.output_alone else shapes
            return {name: t.shape for name, t in _values(self.run(case, drawn)).items()} == expected

        known = CELL_CONVENTIONS if subject.is_cell else CONVENTIONS
        alone = (False,) if subject.is_cell else (False, True)
        for headless, self.output_alone, last, hx in itertools.product((False, True), alone, alone, (True, False)):
            if (last and not self.output_alone) or (headless and not self.leave_heads_out(subject)):
                continue
            self.always.pop("hx", None)
            self.given = (LAST_STEP,) if last else ()
            self.base = replace(plain(subject.kind), deviations=self.given)
            case, drawn = self.draw(replace(BASE, options={"hx": hx}), 0)
            chosen = next((conventions for conventions in _some(known, 3) if fits(conventions)), None)
            if chosen is not None:
                self.settled(chosen, hx, last, subject)
                return
        self.subject, self.output_alone, self.given, self.base = subject, False, (), plain(subject.kind)

    def leave_heads_out(self, subject: Subject) -> bool:
        """Take away the Linears on the output, if there are any."""
        reader = subject.reader
        if reader is not None and not reader.heads:
            reader.heads = reader.find_heads()
            reader.readings.clear()
        return reader is not None and bool(reader.heads)

    def settled(self, chosen: tuple[Convention, ...], hx: bool, last: bool, subject: Subject) -> None:
        """Write down how the subject is called."""

        def say(what: str, where: str, fix: str, evidence: str) -> None:
            self.add(Finding(what, where, fix, evidence, interface=True))

        for convention in chosen:
            say(convention.name, convention.where, convention.fix, "seen by the shapes")
        if subject.reader is not None and subject.reader.heads:
            heads = ", ".join(subject.reader.heads)
            say(f"a Linear stands on its output: {heads}", "classifiers", "keep the head outside", "left out here")
        if not hx:
            self.always["hx"] = False
            self.diagnosis.not_offered["hx"] = "forward takes no state"
        if self.output_alone:
            fix = "return output, (h_n, c_n)" if subject.kind == "LSTM" else "return output, h_n"
            what = "the last step of the output" if last else "output"
            say(f"{what} is returned alone, without the states", "Keras", fix, "seen by the type")
            self.exact = False

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
        narrower = 1e-11 < now < 1e-5  # a narrower dtype errs by so little, or a small constant
        if now > tolerance(examples[0]):
            fitted = (
                fit(examples, seen, self.base, self.step(*problems[0]))
                if "cell" in probe.levels or not probe.levels
                else None
            )
            if fitted is not None:
                evidence = f"{probe.name}: the same numbers, twice, with the constant read off one step"
                self.add(*findings(fitted, self.base, evidence))
                self.base = fitted
                return True
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

    def step(self, case: Case, drawn: Draw) -> tuple[Example, dict[str, Tensor]]:
        """Run one step of a problem."""
        one = drawn if case.is_cell else one_step(drawn)
        return example_of(case, one), _values(self.run(case, one))

    def takes_unbatched(self) -> bool:
        """Ask for an input without a batch in every combination: a module that broadcasts it may get some right."""
        for options in ({}, {"hx": False}, {"layers": 2}, {"layers": 2, "hx": False}):
            if options.get("layers") and (self.subject.is_cell or "two layers" in self.diagnosis.left_out):
                continue
            if "hx" in options and "no hx" in self.diagnosis.left_out:
                continue
            case, drawn = self.draw(Probe("", (), {"form": "unbatched", **options}), 0)
            seen, expected = self.run(case, drawn), self.base.run(example_of(case, drawn))
            shapes = {name: tensor.shape for name, tensor in _values(seen).items()}
            if {name: expected[name].shape for name in shapes or expected} != shapes:
                lists = {name: list(shape) for name, shape in shapes.items()}
                self.diagnosis.not_offered["unbatched"] = seen.error if not shapes else f"returns {lists}"
                return False
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
                what = f"{name} {shape}, torch.nn's has {list(usual[name].shape)}"
                if probe is BASE:
                    self.diagnosis.unread = f"what it returns is not understood: {what}. {RETURN}"
                elif probe.options.get("form", "").startswith("packed") and name == "output" and seen[name].dim() == 3:
                    fix = "return a PackedSequence for a PackedSequence"
                    evidence = f"{probe.name}: {what}"
                    self.add(Finding("a packed input comes back padded", "", fix, evidence, interface=True))
                    self.diagnosis.not_offered["packed"] = "a packed input comes back padded"
                else:
                    fix = "refuse what is not offered, or return torch.nn's shape"
                    self.add(Finding(f"{probe.name}: {what}", "", fix, "and no exception was raised"))
                return False
        reader = self.subject.reader
        layout = None if reader is None else reader.chosen.get(reader.key(self.draw(probe, 0)[1].arguments))
        if layout is not None and probe is BASE and layout.extras:
            self.ask_extras(BASE)
            if self.diagnosis.findings:
                return False
        if layout is not None and not note and not self.answers_as_read(probe, layout):
            text = f"no reading of its parameters makes it torch.nn's or a known variant: {GIVE_A_MAP}"
            if probe is BASE:
                self.diagnosis.unread = text
            else:
                self.diagnosis.not_run[probe.name] = text
            return False
        self.diagnosis.unexplained.append(Unexplained(probe.name, found.error, found.near, found.distance, note=note))
        return False

    def answers_as_read(self, probe: Probe, layout: Layout) -> bool:
        """Ask the module whether its weights are where they are thought to be.

        In one step, no weight of the state may matter where the state is zero, none of the input where that is zero.
        """
        if layout.how == "by their order" or set(probe.options) - {"layers", "bidirectional", "hx"}:
            return layout.how != "by their order"
        case, drawn = self.draw(probe, 0)
        drawn = drawn if case.is_cell else one_step(drawn)
        zero_h = (0 * drawn.hx[0], *drawn.hx[1:]) if drawn.hx else ()
        first = "weight_ih" if case.is_cell else "weight_ih_l0"

        def silent(problem: Draw, stem: str) -> bool:
            moved = {name: w + 1 if name.startswith(stem) else w for name, w in problem.weights.items()}
            before, after = (_values(self.run(case, each)) for each in (problem, replace(problem, weights=moved)))
            return all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before)

        still = silent(replace(drawn, hx=zero_h), "weight_hh")
        still = still and silent(replace(drawn, input=0 * drawn.input), first)
        return still and not silent(drawn, first)

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
        self.add(*found.findings(self.base, f"{probe.name}: ", " twice"))
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
            self.diagnosis.unread = f"it raises in its first call: {error}"
            return False
        kind, _, why = error.partition(": ")
        if kind == "IncomparableError":
            self.diagnosis.not_run[probe.name] = why
        else:
            self.diagnosis.not_offered[probe.name] = why if kind == "NotOfferedError" else error
        return True

    # Gradients

    def gradients(self) -> None:
        """Compare gradients where values are understood."""
        if not self.exact:
            self.diagnosis.not_run["gradients"] = "the numbers are not exact in float64"
            return
        names = ("one layer", "two layers", "two layers, two directions")
        for probe in [BASE, *(probe for probe in PROBES if probe.name in names[1:])]:
            if probe.name not in self.diagnosis.passed and probe is not BASE:
                continue
            if probe.name in self.backward_errors:
                if not any("written to" in name for name in self.diagnosis.names):
                    self.diagnosis.errors[f"backward, {probe.name}"] = self.backward_errors[probe.name]
                return
            if probe is BASE and self.clips():
                fix = "clip after the backward, in the training loop: torch.nn's gradients are not clipped"
                self.add(
                    Finding("the gradient is clipped on its way back", "", fix, "a smaller loss has another gradient")
                )
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

    def clips(self) -> bool:
        """Say whether the gradient of a tiny loss is not the tiny gradient of a loss, times the same."""
        case, drawn = self.draw(BASE, 0)
        grads = []
        for scale in (1e-4, 1.0, 100.0):
            scaled = {name: scale * cotangent for name, cotangent in drawn.cotangents.items()}
            shown = _gradients(self.run(case, replace(drawn, cotangents=scaled)), example_of(case, drawn))
            grads.append(torch.cat([grad.flatten() for grad in shown.values()]) / scale)
        return any(not torch.allclose(grads[0], other, rtol=1e-6, atol=1e-9) for other in grads[1:])

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
            shown, usual = self.run(case, drawn), observe(self.reference, case, drawn, EXACT)
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


def one_step(drawn: Draw) -> Draw:
    """Return the first step of a padded problem."""
    cotangents = {name: c[:1] if name == "output" else c for name, c in drawn.cotangents.items()}
    return replace(drawn, input=drawn.input[:1], lengths=(1,) * len(drawn.lengths), cotangents=cotangents)


def normalises(names: tuple[str, ...], drawn: Draw) -> bool:
    """Say whether parameters of these names are those of a normalisation."""
    return any(word in name.lower() for name in names for word in ("norm", "ln", "gamma", "beta"))


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
