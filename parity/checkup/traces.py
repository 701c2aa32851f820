"""What a call leaves behind: memory that is shared, written to, or kept for the next call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..grid.run import build, observe
from .patient import Patient
from .probes import BASE, EXACT, PROBES
from .search import Finding

KEPT = "the state is kept from one call to the next"
DRAWN = "its initial state is drawn at random"


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
    """Call without a state twice, new modules and then the same one: the second result must be the first."""
    case, drawn = patient.draw(replace(BASE, options={"hx": False}), 0)

    def result(module: nn.Module, seed: int) -> list[Tensor]:
        torch.default_generator.manual_seed(seed)
        return tree_leaves(module(drawn.input.to(case.device, copy=True)))

    def agree(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=False))

    try:
        modules = [build(patient.subject.namespace, case, drawn, EXACT).eval() for _ in range(3)]
        first, again, other = (result(module, seed) for module, seed in zip(modules, (1, 1, 2), strict=True))
        second = result(modules[0], 1)
    except Exception:  # a call without a state is not offered, which is said elsewhere
        return
    fix = "begin with zeros at each call that gives no hx"
    if not (agree(first, again) and agree(first, other)):
        patient.add(Finding(DRAWN, "", fix, "the same call of two new modules"))
        unnamed = patient.diagnosis.unexplained
        patient.diagnosis.unexplained = [one for one in unnamed if not one.probe.endswith("no hx")]
    elif not agree(first, second):
        patient.add(Finding(KEPT, "Keras stateful=True, Chainer links", fix, "the same call twice"))
