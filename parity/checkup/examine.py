"""Is my module torch.nn's, and if not, why? `python -m parity check PKG.MOD:MyLSTM`, or `parity.check(MyLSTM)`.

First the diagnosis: a few configurations that tell most mistakes apart. Then cases of the grid, those that the subject
offers, each with a verdict. Then the first number that differs, how the error grows, and the smallest case that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..grid import cases as grid
from ..grid.cases import CLASSES, Case
from ..grid.compare import Difference, Result, judge
from ..grid.engine import environment
from ..grid.run import Draw
from ..grid.verdict import Verdict
from . import locate, shrink, subjects
from .diagnose import Doctor
from .diagnosis import Diagnosis
from .habits import habits
from .maps import WeightMap
from .probes import BASE, PROBES, example_of
from .record import Checkup, Row
from .search import Finding
from .subjects import Subject

#: What torch.testing.assert_close allows, relative to the largest number.
TOLERANCES = {"float64": 1e-7, "float32": 1.3e-6, "bfloat16": 1.6e-2, "float16": 1e-3}
#: What is raised by a module that could not be made, or not with torch.nn's parameters.
UNMADE = (subjects.IncomparableError, subjects.NotOfferedError, subjects.UnlikeError)
#: Facts that a person's own module need not share with torch.nn's.
PEDANTIC = {"warnings", "contiguous", "structure"}
#: Options by the probe that finds out whether they are offered.
FEATURES: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("no bias", lambda case: not case.bias),
    ("bias", lambda case: case.bias),
    ("no hx", lambda case: not case.hx),
    ("hx", lambda case: case.hx),
    ("two layers", lambda case: case.layers > 1),
    ("three layers", lambda case: case.layers > 2),
    ("two directions", lambda case: case.bidirectional),
    ("one direction", lambda case: not case.bidirectional),
    ("unbatched", lambda case: case.form == "unbatched"),
    ("batch_first, no hx", lambda case: case.batch_first),
    ("packed", lambda case: case.is_packed),
    ("packed, unsorted", lambda case: case.form == "packed_unsorted"),
    ("packed, unsorted, no hx", lambda case: case.is_packed and not case.hx),
    ("projection", lambda case: case.kind == "LSTM-proj"),
    ("dropout, one layer", lambda case: bool(case.dropout)),
)
#: Special circumstances in which a person's own module is compared: it need not have torch.nn's names of arguments, nor
#: take autocast's dtype for its own operations.
SPECIALS = ("", *(name for name in grid.SPECIALS if name not in ("autocast", "keywords")))


def check(
    target: Any,
    as_: str | None = None,
    *,
    weight_map: WeightMap | None = None,
    grid: str = "quick",
    seed: int = 0,
    raises: bool = True,
    device: str = "cpu",
    init: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Checkup:
    """Check a class, a function or `PKG.MOD:NAME` against torch.nn.

    as_         torch.nn's name for it (LSTM, GRUCell, ...), where its own doesn't say
    weight_map  torch.nn's weights by name -> the subject's parameters by name; found from names and shapes otherwise
    grid        quick, or full: every case that the subject offers
    raises      AssertionError with the report if the subject is not torch.nn's, or could not be compared
    device      where torch.nn and the subject run
    init        more arguments of its constructor
    progress    is told what is being done

    For a test of one's own: `def test_parity(): parity.check(MyLSTM)`.
    """
    start = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        subject = subjects.adapt(target, as_, weight_map, init)
        checkup = examine(subject, grid, seed, device, progress)
    except (subjects.IncomparableError, SystemExit) as error:
        text = f"it calls sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        checkup = incomparable(target, as_, text)
    finally:
        torch.set_num_threads(threads)
    checkup.seconds = time.monotonic() - start
    if raises and not checkup.same:
        raise AssertionError(f"\n{checkup}")
    return checkup


def incomparable(target: Any, as_: str | None, text: str) -> Checkup:
    """Return the checkup of what could not be compared."""
    name = target.rpartition(":")[2] if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    known = (cls for cls in reversed(CLASSES) if cls.lower() in name.lower())
    class_name = as_ or next(known, "LSTM, GRU or RNN")
    subject = Subject(name, class_name, torch.nn.Identity)
    return Checkup(name, class_name, Diagnosis(subject, unread=text))


def examine(
    subject: Subject, size: str, seed: int, device: str = "cpu", progress: Callable[[str], None] = lambda what: None
) -> Checkup:
    """Check a subject, on one thread."""
    doctor = Doctor(subject, seed, device=device, progress=progress)
    diagnosis = doctor.diagnose()
    for name, value in subject.defaults.items():
        fix = f"let {name} default to {subjects.DEFAULTS[name]!r}, as in torch.nn, or pass it"
        diagnosis.findings.append(Finding(f"{name} is {value!r} where nothing is said", "", fix, interface=True))
    checkup = Checkup(subject.name, subject.class_name, diagnosis, seed=seed, environment=environment(device))
    if diagnosis.unread:
        if subjects.GIVE_A_MAP in diagnosis.unread and subject.reader is not None:
            checkup.template = subject.reader.template()
        return checkup
    if not doctor.output_alone and doctor.subject.reader is not None and doctor.diagnosis.variant is not None:
        for finding in habits(doctor):
            doctor.add(finding)
    if doctor.output_alone:
        diagnosis.not_run["the cases of the grid"] = "the output is returned alone"
    if diagnosis.unclear and subject.reader is not None:
        checkup.template = subject.reader.template()
    chosen = [] if doctor.output_alone else cases(subject, diagnosis, size, device)
    if subject.kind == "RNN":  # relu as well, if the constructor has it
        relu = Doctor(subject, seed, "relu", device)
        relu.always = doctor.always
        if not relu.run(*relu.draw(BASE, 0)).tensors:
            diagnosis.not_offered["relu"] = "no argument nonlinearity"
            chosen = [case for case in chosen if not case.kind.endswith("relu")]
    results = []
    for number, case in enumerate(chosen):
        progress(f"case {number + 1} of {len(chosen)}")
        results.append(judge(case, doctor.subject.namespace, doctor.reference, seed))
    checkup.rows = rows(results, diagnosis)
    for result in results:
        if _unmade(result, subjects.IncomparableError) and not diagnosis.unreadable:
            diagnosis.unreadable.append(result.case.name)
            diagnosis.not_run[result.case.name] = "its parameters could not be read"
    diagnosis.noted += noted(subject)
    progress("where it begins")
    measure(checkup, doctor)
    checkup.notes = subject.notes
    return checkup


def noted(subject: Subject) -> list[str]:
    """Say what torch.nn does and a person's module need not, where it differs."""
    if subject.reader is None:
        return []
    torch.manual_seed(0)
    try:
        module = subject.reader.construct({"input_size": 50, "hidden_size": 64})
    except (subjects.IncomparableError, subjects.NotOfferedError):  # of other sizes than what was compared
        return []
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    usual = flat.abs().max() <= 1 / 8 and abs(flat.std() - 1 / 8 / 3**0.5) < 0.002
    lines = [] if usual else ["initial weights are drawn otherwise than torch.nn's, uniform within 1/sqrt(hidden_size)"]
    return [*lines, "not looked at: what refused calls say, the order of keys, autocast, arguments by keyword"]


def cases(subject: Subject, diagnosis: Diagnosis, size: str, device: str = "cpu") -> list[Case]:
    """Choose the cases that the subject offers: all of them, or a subset that covers all pairs of options."""
    lacking = [applies for name, applies in FEATURES if name in diagnosis.left_out]
    every = (case for case in grid.grid(device, ragged=False) if case.class_name == subject.class_name)
    if "two layers" in diagnosis.left_out:  # special circumstances are of two layers in the grid
        every = (replace(case, layers=1) if case.special else case for case in every)
    if "bias" in diagnosis.left_out:
        every = (replace(case, bias=False) if case.special else case for case in every)
    every = (case for case in dict.fromkeys(every) if case.special in SPECIALS)
    offered = [case for case in every if not any(applies(case) for applies in lacking)]
    if size == "full":
        return [case for case in offered if not case.dtype.startswith("complex")]
    few = [case for case in offered if case.dtype in ("float64", "float32") and not case.onednn]
    few = [c for c in few if not c.special or not (c.batch_first or c.kind == "LSTM-proj")]
    return few if len(few) < 60 else grid.quick(few, strength=2)


def rows(results: Sequence[Result], diagnosis: Diagnosis) -> list[Row]:
    """Judge results as rows. A subject that raises wherever an axis has some value doesn't offer that value."""
    worked = {pair for result in results if not _raised(result) for pair in _axes(result.case)}
    placed = not any("dropout" in name for name in (*diagnosis.names, *(one.probe for one in diagnosis.unexplained)))
    found = []
    for result in results:
        verdict = _verdict(result)
        if verdict is Verdict.ERROR and (_unmade(result, *UNMADE) or not _axes(result.case) <= worked):
            verdict = Verdict.NOT_OFFERED
        masked = result.case.dropout == "dropout_train" and result.case.layers > 1
        if verdict is Verdict.DIFFERENT and masked and placed:
            verdict = Verdict.OTHER_MASKS
        worst = max(_serious(result), key=lambda d: (d.verdict, d.error), default=None)
        what = "" if worst is None else f"{worst.name}: {worst.note or f'error {worst.error:.1e}'}"
        found.append(Row(result.case, verdict, what, worst.error if worst else 0.0))
    return found


def _axes(case: Case) -> set[tuple[str, Any]]:
    return {(axis, getattr(case, axis)) for axis in grid.AXES}


def _raised(result: Result) -> bool:
    return any(difference.name == "error" for difference in result.differences)


def _unmade(result: Result, *kinds: type[Exception]) -> bool:
    """Say whether it raised one of these: there was no such module to compare, or nothing told its parameters."""
    reasons = [difference.note for difference in result.differences if difference.name == "error"]
    return any(f"the subject: {kind.__name__}" in reason for reason in reasons for kind in kinds)


def _serious(result: Result) -> list[Difference]:
    return [difference for difference in result.differences if difference.name not in PEDANTIC]


def _verdict(result: Result) -> Verdict:
    if _raised(result):
        return Verdict.ERROR
    serious = _serious(result)
    verdict = max((difference.verdict for difference in serious), default=Verdict.BITWISE)
    if verdict is not Verdict.DIFFERENT:
        return verdict
    bad = [difference for difference in serious if difference.verdict is Verdict.DIFFERENT]
    tolerable = all(d.allowed and d.error <= TOLERANCES.get(result.case.dtype, 0.0) for d in bad)
    return Verdict.TOLERANCE if tolerable else Verdict.DIFFERENT


def failing(checkup: Checkup, doctor: Doctor) -> Iterator[tuple[Case, Draw]]:
    """Yield problems in which the subject may differ: the probes, then the cases that did, as far as they are exact."""
    left_out = doctor.diagnosis.left_out
    yield doctor.draw(BASE, 0)
    if not doctor.subject.is_cell:
        yield from (doctor.draw(probe, 0) for probe in PROBES if probe.name not in left_out)
    for row in checkup.rows:
        if not row.verdict.passes and row.case.dtype == "float64":
            yield row.case, shrink.drawn_anew(row.case)


def measure(checkup: Checkup, doctor: Doctor) -> None:
    """Locate the first difference, follow the error in time, shrink the first failing problem."""
    diagnosis, offered = doctor.diagnosis, doctor.subject.namespace
    base_case, _ = doctor.draw(BASE, 0)
    grown = None if base_case.is_cell else locate.growth(offered, base_case, doctor.seed, doctor.reference)
    if grown is not None:
        checkup.growth, checkup.ulps = grown
    for case, drawn in () if checkup.same else failing(checkup, doctor):
        smallest = shrink.shrink(offered, case, drawn, doctor.reference)
        if smallest is not None:
            example, seen = example_of(case, drawn), doctor.run(case, drawn)
            checkup.location = locate.first_difference(case, example, seen, diagnosis.variant, 1e-9)
            checkup.smallest, checkup.script = smallest, shrink.script(smallest, checkup.subject)
            return
