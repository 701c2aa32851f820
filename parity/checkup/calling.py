"""How a subject is constructed and called: what it takes, in which shapes, what it returns, whether it is random."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..grid.cases import Case
from ..grid.run import Draw, build
from ..mutants.catalogue import LAST_STEP
from ..mutants.variants import plain
from .patient import Patient
from .probes import BASE, EXACT, after_input, example_of, values
from .search import Finding
from .subjects import (
    CELL_CONVENTIONS,
    CONVENTIONS,
    Convention,
    IncomparableError,
    NotOfferedError,
    Subject,
    side_by_side,
    steady,
    translated,
)

RETURN = "torch.nn's return output, (h_n, c_n) of an LSTM, output, h_n of others; a cell's the new state"
WRAP = (
    "a derived class with forward(self, input, hx=None) that returns this can be compared (parity/README.md has an "
    "example of three lines)"
)
#: What people call the argument of forward that is a state.
STATE = re.compile(r"hid|state|init|carry|prev|mem|^[hcs](_?[0-9tnhcx].*)?$")
#: Names of which nobody would call anything else; `of` is what it is the state of.
CLEARLY_STATE = re.compile(
    r"((init|initial|prev|previous|last|past)_?)?(?P<of>hidden|hid|cell|state|carry|init|h|c|hx|cx|hc)s?"
    r"(_?(states?|init|prev|in|t|[0nx]))*"
)


def begin(patient: Patient) -> None:
    """Construct the subject once; find out whether it has biases at all. IncomparableError if it can't be."""
    reader = patient.subject.reader
    if reader is None:
        return
    if not reader.init.get(reader.options.get("bias", "bias"), True):
        patient.always["bias"] = False
        patient.diagnosis.not_offered["bias"] = "it is fixed by --init (init=)"
    _, drawn = patient.draw(BASE, 0)
    try:
        reader.module(**drawn.arguments)
    except NotOfferedError as error:
        raise IncomparableError(
            f"one layer in one direction is where it begins, and that is not offered: {error}"
        ) from None
    if reader.exact(drawn.arguments) or "bias" in reader.options:
        return
    if not any(part.bias for part in reader.layouts(drawn.arguments)[0].parts):
        reader.biased = False
        reader.readings.clear()
        patient.always["bias"] = False
        patient.diagnosis.not_offered["bias"] = "it has no biases"


def calm(patient: Patient) -> None:
    """Find out whether it draws random numbers where no dropout is asked for; then go on in eval mode."""
    case, drawn = patient.draw(BASE, 0)
    first, again, other = (values(patient.run(case, replace(drawn, seed=seed))) for seed in (1, 1, 2))
    if not first or all(torch.equal(first[name], other.get(name, first[name])) for name in first):
        return
    same_seed = all(torch.equal(first[name], again.get(name, first[name])) for name in first)
    fix = "draw nothing where dropout is 0: torch.nn's are deterministic then"
    evidence = "two seeds, two results" if same_seed else "two results under one seed"
    evidence += "; what follows is of eval mode"
    patient.add(Finding("random in training: numbers are drawn without dropout", "", fix, evidence))
    patient.subject = steady(patient.subject)


def settle(patient: Patient) -> None:
    """Find out how the subject is called: in one direction or, where that is nowhere to be seen, always in two."""
    reader = patient.subject.reader
    if called_as_known(patient) or reader is None or patient.subject.is_cell:
        return
    if reader.both or "bidirectional" in reader.options:
        return
    before = dict(patient.always)
    take_both(patient)
    if not called_as_known(patient):
        reader.both, patient.always = False, before
        reader.readings.clear()
        del patient.diagnosis.not_offered["one direction"]


def take_both(patient: Patient) -> None:
    """Take it to have two directions, whatever is asked."""
    reader = patient.subject.reader
    assert reader is not None
    reader.both, reader.heads = True, ()
    reader.readings.clear()
    patient.always["bidirectional"] = True
    patient.diagnosis.not_offered["one direction"] = "it always has two"


def called_as_known(patient: Patient) -> bool:
    """Find out in which shapes it takes its arguments, and whether it takes a state at all. False if in none known."""
    subject = patient.subject

    def fits(conventions: tuple[Convention, ...]) -> bool:
        patient.subject = translated(subject, conventions) if conventions else subject
        shapes = {name: t.shape for name, t in patient.base.run(example_of(case, drawn)).items()}
        expected = {"output": shapes["output"]} if patient.output_alone else shapes
        return {name: t.shape for name, t in values(patient.run(case, drawn)).items()} == expected

    known = CELL_CONVENTIONS if subject.is_cell else CONVENTIONS
    alone = (False,) if subject.is_cell else (False, True)
    ways = itertools.product((False, True), alone, alone, states_given(subject))
    for headless, patient.output_alone, last, (hx, names) in ways:
        if (last and not patient.output_alone) or (headless and not leave_heads_out(patient, subject)):
            continue
        if subject.reader is not None:
            subject.reader.states = names
        patient.always.pop("hx", None)
        patient.given = (LAST_STEP,) if last else ()
        patient.base = replace(plain(subject.kind), deviations=patient.given)
        case, drawn = patient.draw(replace(BASE, options={"hx": hx}), 0)
        chosen = next((conventions for conventions in _some(known, 3) if fits(conventions)), None)
        if chosen is not None:
            settled(patient, chosen, hx, last, subject)
            return True
    patient.subject, patient.output_alone, patient.given, patient.base = subject, False, (), plain(subject.kind)
    return False


def states_given(subject: Subject) -> list[tuple[bool, tuple[str, ...]]]:
    """List whether a state may be given, and by which names: by name, by place where that may be one, not at all."""
    arguments = [] if subject.reader is None else subject.reader.takes()
    named = states_by_name(arguments, subject.kind)
    by_place = not named or STATE.search(arguments[0].lower())
    return [*((True, names) for names in named), *[(True, ())] * bool(by_place), (False, ())]


def states_by_name(arguments: list[str], kind: str) -> list[tuple[str, ...]]:
    """Choose, of what forward takes after the input, states that have to be passed by name: none if they come first."""
    found = {name: match["of"] for name in arguments if (match := CLEARLY_STATE.fullmatch(name.lower()))}
    of_cell = [name for name, of in found.items() if of in ("cell", "c", "cx")]
    first = [name for name in found if name not in of_cell][:1]
    ways = [(*first, of_cell[0])] if kind == "LSTM" and first and of_cell else []
    ways += [tuple(first)] if first else []
    return [] if any(tuple(arguments[: len(names)]) == names for names in ways[:1]) else ways


def leave_heads_out(patient: Patient, subject: Subject) -> bool:
    """Take away the Linears on the output, if there are any."""
    reader = subject.reader
    if reader is not None and not reader.heads:
        reader.heads = reader.find_heads()
        reader.readings.clear()
    return reader is not None and bool(reader.heads)


def settled(patient: Patient, chosen: tuple[Convention, ...], hx: bool, last: bool, subject: Subject) -> None:
    """Write down how the subject is called."""

    def say(what: str, where: str, fix: str, evidence: str) -> None:
        patient.add(Finding(what, where, fix, evidence, interface=True))

    if subject.reader is not None and subject.reader.states:
        names, pair = " and ".join(subject.reader.states), len(subject.reader.states) > 1
        state = f"states as {names}, not as one pair" if pair else f"state as {names}, not second"
        say(f"forward takes its {state}", "", "forward(self, input, hx=None)", "passed by name here")
        chosen = tuple(one for one in chosen if one.enter is not side_by_side or not pair)
    for convention in chosen:
        say(convention.name, convention.where, convention.fix, "seen by the shapes")
    if subject.reader is not None and subject.reader.heads:
        heads = ", ".join(subject.reader.heads)
        say(f"a Linear stands on its output: {heads}", "classifiers", "keep the head outside", "left out here")
    if not hx:
        stateless(patient, subject)
        patient.always["hx"] = False
    if patient.output_alone:
        fix = "return output, (h_n, c_n)" if subject.kind == "LSTM" else "return output, h_n"
        what = "the last step of the output" if last else "output"
        say(f"{what} is returned alone, without the states", "Keras", fix, "seen by the type")


def stateless(patient: Patient, subject: Subject) -> None:
    """Say why no state is given: it takes none, or what it takes could not be passed."""
    diagnosis, reader = patient.diagnosis, subject.reader
    names = [] if reader is None else reader.takes()
    if reader is None or not any(STATE.search(name.lower()) for name in names):
        diagnosis.not_offered["hx"] = "forward takes no state"
        return
    case, drawn = patient.draw(BASE, 0)
    reader.states = next(iter(states_by_name(names, subject.kind)), ())
    error = patient.run(case, drawn).error
    written = patient.run(replace(case, special="no_grad"), drawn).facts.get("written to", [])
    for name in written:
        fix = "work out of place, or on a clone"
        patient.add(Finding(f"{name} is written to", "", fix, "without gradients, with which it raises"))
    why = f"raises: {error}" if error else "returns other shapes"
    clearly = [name for name in names if CLEARLY_STATE.fullmatch(name.lower())]
    if written or not clearly:
        diagnosis.not_offered["hx"] = f"with a state it {why}"
    else:
        wrap = "give a derived class whose forward(self, input, hx=None) passes it (parity/README.md has an example)"
        diagnosis.not_run["hx"] = f"with {' and '.join(reader.states or clearly[:1])} given it {why}; {wrap}"
        diagnosis.unreadable.append("hx")
    reader.states = ()


def first_call(patient: Patient, case: Case, drawn: Draw) -> str:
    """Say what the first call returns where that is not what torch.nn's does, or what it raises."""
    errors = []
    for states in (drawn.hx, ()):
        try:
            with torch.no_grad():
                module = build(patient.subject.namespace, case, drawn, EXACT)
                result = module(drawn.input.to(case.device, copy=True), *after_input(states))
        except Exception as error:  # whatever a subject raises is what is to be said
            errors.append(f"{type(error).__name__}: {error}")
        else:
            return f"it returns {described(result)}. {RETURN}: {WRAP}"
    with_state, without = errors
    also = "" if without == with_state else f"; without a state: {without}"
    is_cell = takes_a_step(patient, case, drawn)
    todo = f"Is it a cell? Then say --as {patient.subject.class_name}Cell" if is_cell else f"{RETURN}: {WRAP}"
    return f"it raises in its first call: {with_state}{also}. {todo}"


def takes_a_step(patient: Patient, case: Case, drawn: Draw) -> bool:
    """Say whether what should be a layer runs with the input and the state of one step."""
    if patient.subject.is_cell:
        return False
    states = tuple(state[0] for state in drawn.hx)
    for arguments in ((states,), states):
        try:
            with torch.no_grad():
                build(patient.subject.namespace, case, drawn, EXACT)(drawn.input[0], *arguments)
        except Exception:  # whatever it raises
            continue
        return True
    return False


def described(result: object) -> str:
    """Say in a few words what a call has returned."""
    if isinstance(result, torch.Tensor):
        return f"a tensor of shape {list(result.shape)}"
    if isinstance(result, dict):
        return f"a dict with the keys {', '.join(map(str, result))}"
    if dataclasses.is_dataclass(result):
        fields = ", ".join(field.name for field in dataclasses.fields(result))
        return f"a {type(result).__name__} with the fields {fields}"
    if isinstance(result, (tuple, list)):
        return f"a {type(result).__name__} of {len(result)} ({', '.join(map(described, result))})"
    return f"a {type(result).__name__}"


def _some(conventions: tuple[Convention, ...], most: int) -> Iterator[tuple[Convention, ...]]:
    """Yield (), then each alone, then pairs."""
    for size in range(most + 1):
        yield from itertools.combinations(conventions, size)
