"""What a call leaves behind: memory that is shared, written to, or kept for the next call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils._pytree import tree_leaves

from ..grid.run import build, observe
from .patient import Patient
from .probes import BASE, EXACT, PROBES
from .search import Finding


def facts(patient: Patient) -> None:
    """Record what is shared, what is written to, what is kept."""
    states = "c_n shares memory with h_n", "c_1 shares memory with h_1"
    for probe in [BASE, *[probe for probe in PROBES if probe.name in patient.diagnosis.passed][:6]]:
        case, drawn = patient.draw(probe, 0)
        if probe.name in patient.backward_errors:
            case = replace(case, special="no_grad")
        shown, usual = patient.run(case, drawn), observe(patient.reference, case, drawn, EXACT)
        for pair in sorted(shown.facts.get("aliases", set()) - usual.facts["aliases"]):
            first, _, second = pair.partition(" and ")
            what = f"{second} shares memory with {first}"
            if what not in states or patient.base.deviations == ():  # one is the other: said already
                patient.add(Finding(what, "", f"return a copy: {second}.clone(), or stack the states", probe.name))
        for name in shown.facts.get("written to", []):
            fix = "work out of place, or on a clone"
            patient.add(Finding(f"{name} is written to", "", fix, probe.name))
    memory(patient)


def memory(patient: Patient) -> None:
    """Call the same module twice: the second result must be the first."""
    case, drawn = patient.draw(replace(BASE, options={"hx": False}), 0)
    try:
        module = build(patient.subject.namespace, case, drawn, EXACT).eval()
        first, second = (tree_leaves(module(drawn.input.to(case.device, copy=True))) for _ in range(2))
    except Exception:  # a call without a state is not offered, which is said elsewhere
        return
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=False)):
        where, fix = "Keras stateful=True, Chainer links", "begin with zeros at each call that gives no hx"
        patient.add(Finding("the state is kept from one call to the next", where, fix, "the same call twice"))
