"""Gradients, compared where the values are understood."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..grid.cases import Case
from ..grid.run import Draw
from ..mutants.definition import Example
from .naming import accept, unexplained
from .patient import Patient
from .probes import BASE, PROBES, example_of, gradients_of, values
from .search import Finding, distance, search


def gradients(patient: Patient) -> None:
    """Compare gradients where values are understood."""
    if not patient.exact:
        patient.diagnosis.not_run["gradients"] = "the numbers are not exact in float64"
        return
    names = ("one layer", "two layers", "two layers, two directions")
    for probe in [BASE, *(probe for probe in PROBES if probe.name in names[1:])]:
        if probe.name not in patient.diagnosis.passed and probe is not BASE:
            continue
        if probe.name in patient.backward_errors:
            if not any("written to" in name for name in patient.diagnosis.names):
                patient.diagnosis.errors[f"backward, {probe.name}"] = patient.backward_errors[probe.name]
            return
        if probe is BASE and clips(patient):
            fix = "clip after the backward, in the training loop: torch.nn's gradients are not clipped"
            patient.add(
                Finding("the gradient is clipped on its way back", "", fix, "a smaller loss has another gradient")
            )
            return
        problems = [patient.draw(probe, number) for number in (0, 1)]
        examples = [example_of(case, drawn, gradients=True) for case, drawn in problems]
        shown = [patient.run(case, drawn) for case, drawn in problems]
        seen = [values(one) | gradients_of(one, example) for one, example in zip(shown, examples, strict=True)]
        again = [(examples[1], seen[1])]
        found = search(examples[0], seen[0], ("gradient",), patient.base, again)
        if found.best is None:
            name = f"gradients, {probe.name}, the worst of {worst(patient, examples[0], seen[0])}"
            unexplained(patient, replace(probe, name=name), found, examples[0], seen[0], lag(patient, *problems[0]))
            return
        if found.best is not patient.base:
            accept(patient, found, replace(probe, name=f"gradients, {probe.name}"))


def clips(patient: Patient) -> bool:
    """Say whether the gradient of a tiny loss is not the tiny gradient of a loss, times the same."""
    case, drawn = patient.draw(BASE, 0)
    grads = []
    for scale in (1e-4, 1.0, 100.0):
        scaled = {name: scale * cotangent for name, cotangent in drawn.cotangents.items()}
        shown = gradients_of(patient.run(case, replace(drawn, cotangents=scaled)), example_of(case, drawn))
        grads.append(torch.cat([grad.flatten() for grad in shown.values()]) / scale)
    return any(not torch.allclose(grads[0], other, rtol=1e-6, atol=1e-9) for other in grads[1:])


def lag(patient: Patient, case: Case, drawn: Draw) -> str:
    """Count the steps back from the last output in which the gradient of the input is still right."""
    if case.is_cell or "output" not in drawn.cotangents or patient.given:
        return ""
    last = torch.zeros_like(drawn.cotangents["output"])
    last[-1] = drawn.cotangents["output"][-1]
    drawn = replace(drawn, cotangents={"output": last})
    expected = patient.base.run(example_of(case, drawn, gradients=True))["grad of input"]
    seen = patient.run(case, drawn).tensors.get("grad of input")
    if seen is None:
        return "no gradient reaches the input"
    apart = (seen - expected).abs().flatten(1).amax(1) > 1e-9 * expected.abs().flatten(1).amax(1)
    wrong = [len(apart) - 1 - step for step in range(len(apart)) if apart[step]]
    first = min(wrong, default=None)
    return "" if first is None else f"from the last output back to the input it is right for {first} steps"


def worst(patient: Patient, example: Example, seen: dict[str, Tensor]) -> str:
    expected = patient.base.run(example)
    return max(seen, key=lambda name: distance({name: expected[name]}, {name: seen[name]}).item())
