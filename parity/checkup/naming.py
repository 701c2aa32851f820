"""Run a probe, and name what the subject does otherwise there, by the catalogue."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..grid.cases import Case
from ..grid.run import Draw, Precision, observe
from ..mutants.catalogue import ALLOCATE
from ..mutants.definition import Example
from ..mutants.variants import plain
from .calling import RETURN, WRAP, first_call
from .diagnosis import Unexplained
from .patient import Patient
from .probes import BASE, Probe, example_of, values
from .reading import answers_as_read, ask_extras
from .search import Finding, Search, distance, error_of, findings, fit, search, tolerance
from .subjects import GIVE_A_MAP


def look(patient: Patient, probe: Probe) -> bool:
    """Run the subject on a probe; record what is found. False if it cannot be explained."""
    problems = [patient.draw(probe, number) for number in (0, 1)]
    shown = [patient.run(case, drawn) for case, drawn in problems]
    seen = [values(observations) for observations in shown]
    if not all(seen):
        return refused(patient, probe, *problems[0], shown[0].error or shown[1].error)
    if shown[0].error:
        patient.backward_errors[probe.name] = shown[0].error
    narrow = [name for name, tensor in seen[0].items() if tensor.dtype != torch.float64]
    if narrow:
        dtype = str(seen[0][narrow[0]].dtype).removeprefix("torch.")
        return slip(patient, f"{' and '.join(narrow)} in {dtype} in a float64 run", probe)
    examples = [example_of(case, drawn) for case, drawn in problems]
    again = list(zip(examples[1:], seen[1:], strict=False))
    now = error_of(patient.base, examples[0], seen[0])
    narrower = 1e-11 < now < 1e-5  # a narrower dtype errs by so little, or a small constant
    if now > tolerance(examples[0]):
        fitted = (
            fit(examples, seen, patient.base, patient.step(*problems[0]))
            if "cell" in probe.levels or not probe.levels
            else None
        )
        if fitted is not None:
            evidence = f"{probe.name}: the same numbers, twice, with the constant read off one step"
            patient.add(*findings(fitted, patient.base, evidence))
            patient.base = fitted
            patient.prove(problems[0][1])
            return True
        reconsider(patient, examples, seen)
    found = search(examples[0], seen[0], ("dtype",) if narrower else patient.levels(probe), patient.base, again)
    if narrower:
        patient.exact = False
    if found.best is None and narrower:
        what = "something passes through float32, or a small constant is added"
        return slip(patient, what, probe, f"errors of {now:.1e}")
    if found.best is None:
        return unexplained(patient, probe, found, examples[0], seen[0])
    if found.best is patient.base:
        patient.diagnosis.passed.append(probe.name)
    else:
        accept(patient, found, probe)
    patient.prove(problems[0][1])
    return True


def takes_unbatched(patient: Patient) -> bool:
    """Ask for an input without a batch in every combination: a module that broadcasts it may get some right."""
    for options in ({}, {"hx": False}, {"layers": 2}, {"layers": 2, "hx": False}):
        if options.get("layers") and (patient.subject.is_cell or "two layers" in patient.diagnosis.left_out):
            continue
        if "hx" in options and "no hx" in patient.diagnosis.left_out:
            continue
        case, drawn = patient.draw(Probe("", (), {"form": "unbatched", **options}), 0)
        seen, expected = patient.run(case, drawn), patient.base.run(example_of(case, drawn))
        shapes = {name: tensor.shape for name, tensor in values(seen).items()}
        if {name: expected[name].shape for name in shapes or expected} != shapes:
            lists = {name: list(shape) for name, shape in shapes.items()}
            patient.diagnosis.not_offered["unbatched"] = seen.error if not shapes else f"returns {lists}"
            return False
    return True


def slip(patient: Patient, what: str, probe: Probe, evidence: str = "") -> bool:
    patient.add(Finding(what, "", ALLOCATE, f"{probe.name}{': ' * bool(evidence)}{evidence}"))
    patient.exact = False
    return True


def unexplained(
    patient: Patient, probe: Probe, found: Search, example: Example, seen: dict[str, Tensor], note: str = ""
) -> bool:
    usual = patient.base.run(example)
    for name in ("output",) if patient.output_alone else usual:
        if name not in seen or seen[name].shape != usual[name].shape:
            shape = f"has shape {list(seen[name].shape)}" if name in seen else "is missing"
            what = f"{name} {shape}, torch.nn's has {list(usual[name].shape)}"
            if probe is BASE:
                patient.diagnosis.unread = f"what it returns is not understood: {what}. {RETURN}: {WRAP}"
            elif probe.options.get("form", "").startswith("packed") and name == "output" and seen[name].dim() == 3:
                fix = "return a PackedSequence for a PackedSequence"
                evidence = f"{probe.name}: {what}"
                patient.add(Finding("a packed input comes back padded", "", fix, evidence, interface=True))
                patient.diagnosis.not_offered["packed"] = "a packed input comes back padded"
            else:
                fix = "refuse what is not offered, or return torch.nn's shape"
                patient.add(Finding(f"{probe.name}: {what}", "", fix, "and no exception was raised"))
            return False
    layout = patient.layout_of(patient.draw(probe, 0)[1])
    if layout is not None and probe is BASE and layout.extras:
        ask_extras(patient, BASE)
        if patient.diagnosis.findings:
            return False
    doubtful = layout is not None and not note and layout not in patient.proven
    if layout is not None and doubtful and not answers_as_read(patient, probe, layout):
        if probe is BASE:
            text = f"no reading of its parameters makes it torch.nn's or a known variant: {GIVE_A_MAP}"
            patient.diagnosis.unread = text
        else:
            patient.diagnosis.unclear[probe.name] = found.error
        return False
    wrong = [name for name in seen if distance(usual, {name: seen[name]}) > tolerance(example)]
    alone = " and ".join(wrong) if len(wrong) < min(4, len(seen)) else ""
    patient.diagnosis.unexplained.append(
        Unexplained(probe.name, found.error, found.near, found.distance, note=note, alone=alone)
    )
    return False


def reconsider(patient: Patient, examples: list[Example], seen: list[dict[str, Tensor]]) -> None:
    """Tell apart by these numbers names that meant the same so far."""
    pairs = list(zip(examples, seen, strict=True))
    fits = (one for one in patient.also if all(error_of(one, *pair) <= tolerance(pair[0]) for pair in pairs))
    other = next(fits, patient.base)
    if other is not patient.base:
        old = [part.name for part in patient.base.parts]
        evidence = next(f.evidence for f in patient.diagnosis.findings if f.what in old)
        patient.diagnosis.findings = [f for f in patient.diagnosis.findings if f.what not in old]
        patient.base = other
        patient.add(*findings(other, plain(patient.subject.kind), evidence))


def accept(patient: Patient, found: Search, probe: Probe) -> None:
    """Record what was found, and take it for granted from now on."""
    assert found.best is not None
    named, order = found.findings(patient.base, f"{probe.name}: ", " twice"), found.best.order
    layout = patient.layout_of(patient.draw(probe, 0)[1])
    if layout is not None and layout.split and not order.plain:  # there are no rows to permute
        pairs = zip(layout.gates, order.gates, strict=True)
        acts = ", ".join(f"what is named for {name} acts as {gate}" for name, gate in pairs if name != gate)
        fix = f"give each gate its own parameters: {acts}"
        named = [replace(one, where="", fix=fix) if one.what == str(order) else one for one in named]
    patient.add(*named)
    patient.base, patient.also = found.best, found.also


def refused(patient: Patient, probe: Probe, case: Case, drawn: Draw, error: str) -> bool:
    """Record that the subject raised. What it refuses is not offered; the base case it must have, in float64."""
    single = Precision(torch.float32, torch.float32)
    if observe(patient.subject.namespace, replace(case, dtype="float32"), drawn, single).tensors:
        patient.add(Finding("a float32 tensor in a float64 run", "", ALLOCATE, f"{probe.name}: {error}"))
        return probe is not BASE
    if probe is BASE:
        patient.diagnosis.unread = first_call(patient, case, drawn)
        return False
    kind, _, why = error.partition(": ")
    if kind == "IncomparableError":
        patient.diagnosis.not_run[probe.name] = why
        if patient.subject.reader is None or patient.subject.reader.weight_map is None:  # a map may be for one layer
            patient.diagnosis.unreadable.append(probe.name)
    else:
        patient.diagnosis.not_offered[probe.name] = why if kind == "NotOfferedError" else error
    return True
