"""Which reading of a subject's parameters is right, and what those are for that torch.nn has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..grid.run import Draw
from ..mutants.definition import Example, same
from ..mutants.orders import Order, orders
from .patient import Patient
from .probes import BASE, Probe, example_of, one_step, values
from .search import Finding, errors_of_orders, search, tolerance
from .subjects import IncomparableError, UnlikeError
from .weights import Layout, normalising


def read(patient: Patient, probe: Probe) -> None:
    """Choose, of the readings of the subject's parameters, one under which it is torch.nn's or a known variant."""
    reader = patient.subject.reader
    problems = [patient.draw(probe, number) for number in (0, 1)]
    arguments = problems[0][1].arguments
    if reader is None or reader.key(arguments) in reader.chosen:
        return
    try:
        if reader.exact(arguments):
            return
        layouts = reader.layouts(arguments)
    except UnlikeError as error:
        what, fix, seen = error.args
        patient.add(Finding(what, "", fix, seen))
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
        patient.progress(f"{probe.name}: reading {number + 1} of its parameters, of {len(layouts)}")
        reader.readings[reader.key(arguments)] = [layout]
        base = patient.base_of(layout) if probe is BASE else patient.base
        free = layout.split and not layout.named and base.order.plain
        tried = [o for o in orders(patient.subject.kind) if not o.interleaved] if free else [base.order]
        seen = [values(patient.run(case, drawn)) for case, drawn in problems]
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
        layout, order = nearly(patient, probe, shown, examples) or (shown[0][1], patient.base.order)
    free = layout.split and not layout.named and not order.plain and not order.interleaved
    reader.choose(arguments, layout.relabelled(order.gates) if free else layout)
    if probe is BASE:
        patient.base = patient.base_of(layout)


def nearly(
    patient: Patient,
    probe: Probe,
    shown: list[tuple[float, Layout, list[dict[str, Tensor]], Order]],
    examples: list[Example],
) -> tuple[Layout, Order] | None:
    """Return a reading under which the subject is a known variant, and the order of its gates there."""
    for number, (_, layout, seen, _) in enumerate(shown[:6]):
        patient.progress(f"{probe.name}: is it a known variant, by reading {number + 1}?")
        base = patient.base_of(layout) if probe is BASE else patient.base
        again = list(zip(examples[1:], seen[1:], strict=True))
        found = search(examples[0], seen[0], patient.levels(probe), base, again, most=1, seconds=1.0)
        if found.best is not None:
            return layout, found.best.order
    return None


def ask_extras(patient: Patient, probe: Probe) -> None:
    """Find out what parameters do that torch.nn has not, those that no earlier probe had."""
    layout = patient.layout_of(patient.draw(probe, 0)[1])
    names = () if layout is None else tuple(name for name in layout.extras if name not in patient.asked_extras)
    if patient.extras_matter or not names:
        return
    patient.asked_extras += names
    given, absent = answers(patient, probe), answers(patient, replace(probe, options={**probe.options, "hx": False}))
    if not given and not absent:
        return
    patient.extras_matter = True
    if any("normalisation of the cell" in name for name in patient.diagnosis.names):
        return  # they are its weight and bias
    evidence = f"moving {', '.join(names)} changes {', '.join(sorted(given | absent))}"
    patient.add(named_extras(patient, probe, names, bool(given), evidence))


def answers(patient: Patient, probe: Probe, change: Callable[[Draw], Draw] = same, allowed: float = 0.0) -> set[str]:
    """Name the results that answer when the parameters are moved that torch.nn has not."""
    case, drawn = patient.draw(probe, 0)
    reader = patient.subject.reader
    assert reader is not None
    layout = reader.chosen[reader.key(drawn.arguments)]
    results = []
    for fill in (layout.fill, 0.37):
        reader.choose(drawn.arguments, replace(layout, fill=fill))
        results.append(values(patient.run(case, change(drawn))))
    reader.choose(drawn.arguments, layout)
    first, second = results
    return {n for n in first if n not in second or not torch.allclose(first[n], second[n], rtol=0, atol=allowed)}


def named_extras(patient: Patient, probe: Probe, names: tuple[str, ...], with_hx: bool, evidence: str) -> Finding:
    """Say what parameters of these names stand for."""
    reader, listed = patient.subject.reader, ", ".join(names)
    _, drawn = patient.draw(probe, 0)
    assert reader is not None
    place = "" if probe is BASE else f" in {probe.name}"
    fix = "leave them out: torch.nn has no such thing"
    if not with_hx:
        what = f"the initial state is a parameter of its own{place}: {listed}"
        return Finding(what, "", "begin with zeros where no hx is given", evidence)
    if normalises(names) or set(names) & set(normalising(reader.construct(drawn.arguments))):
        return Finding(f"layer normalisation{place}: {listed}", "", fix, evidence)
    sizes = [reader.size(drawn, name) for name in names]
    if patient.subject.kind == "LSTM" and set(sizes) <= set(reader.peepholes) and gates_see_the_cell(patient, probe):
        return Finding(f"peephole connections{place}: the gates see the cell through {listed}", "", fix, evidence)
    return Finding(f"it has parameters that torch.nn has not{place}: {listed}", "", fix, evidence)


def gates_see_the_cell(patient: Patient, probe: Probe) -> bool:
    """Say whether the parameters that an LSTM has beside torch.nn's are peepholes.

    Those act on gates alone: nothing answers where all gates are open, whatever is added. And they act by way of the
    cell: where c_0 is zero, c of one step doesn't answer; where it is tiny and nothing new comes in, what answers is
    smaller by another such factor.
    """
    H = patient.draw(probe, 0)[1].arguments["hidden_size"]
    permuted = patient.base.order.permutation(H)
    i, f, g, o = (torch.arange(4 * H) if permuted is None else permuted).chunk(4)

    def opened(drawn: Draw) -> Draw:
        rows = torch.cat([i, f, o])
        biases = {name: w.index_fill(0, rows, 100.0) for name, w in drawn.weights.items() if name.startswith("bias_ih")}
        return replace(drawn, weights=drawn.weights | biases)

    def begun(drawn: Draw, scale: float) -> Draw:
        one = drawn if patient.subject.is_cell else one_step(drawn)
        return replace(one, hx=(one.hx[0], scale * one.hx[1]))

    def faint(drawn: Draw) -> Draw:
        weights = {name: w if "_hr" in name else w.index_fill(0, g, 0.0) for name, w in drawn.weights.items()}
        return replace(begun(drawn, 1e-6), weights=weights)

    _, drawn = patient.draw(probe, 0)
    if any(name.startswith("bias_ih") for name in drawn.weights) and answers(patient, probe, opened):
        return False
    if not drawn.hx:
        return True
    still = answers(patient, probe, lambda drawn: begun(drawn, 0.0))
    if probe.options.get("layers", 1) == 1 and any(name.startswith("c") for name in still):
        return False
    return not answers(patient, probe, faint, 1e-10)


def answers_as_read(patient: Patient, probe: Probe, layout: Layout) -> bool:
    """Ask the module whether its weights are where they are thought to be.

    In one step, no weight of the state may matter where the state is zero, none of the input where that is zero; and
    what one bias has more, the other may have less.
    """
    if layout.how == "by their order" or set(probe.options) - {"layers", "bidirectional", "hx"}:
        return layout.how != "by their order"
    case, drawn = patient.draw(probe, 0)
    drawn = drawn if case.is_cell else one_step(drawn)
    zero_h = (0 * drawn.hx[0], *drawn.hx[1:]) if drawn.hx else ()
    first = "weight_ih" if case.is_cell else "weight_ih_l0"

    def silent(problem: Draw, stem: str) -> bool:
        return still_with(problem, {name: w + 1 for name, w in problem.weights.items() if name.startswith(stem)})

    def still_with(problem: Draw, weights: dict[str, Tensor]) -> bool:
        moved = problem.weights | weights
        before, after = (values(patient.run(case, each)) for each in (problem, replace(problem, weights=moved)))
        return all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before)

    still = silent(replace(drawn, hx=zero_h), "weight_hh")
    still = still and silent(replace(drawn, input=0 * drawn.input), first)
    still = still and still_with(drawn, exchanged(drawn.weights, layout.gates))
    return still and not silent(drawn, first)


def exchanged(weights: dict[str, Tensor], gates: str) -> dict[str, Tensor]:
    """Add to each bias_ih and take away from bias_hh, but where a reset gate tells them apart."""
    moved: dict[str, Tensor] = {}
    for name in weights:
        other = name.replace("bias_ih", "bias_hh")
        if other != name and other in weights:
            shift = torch.linspace(0.1, 0.5, len(weights[name]), dtype=weights[name].dtype)
            shift = shift.reshape(len(gates), -1) * torch.tensor([[gate != "n"] for gate in gates])
            moved |= {name: weights[name] + shift.flatten(), other: weights[other] - shift.flatten()}
    return moved


def normalises(names: tuple[str, ...]) -> bool:
    """Say whether parameters of these names are those of a normalisation."""
    return any(word in name.lower() for name in names for word in ("norm", "ln", "gamma", "beta"))
