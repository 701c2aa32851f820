"""What a checkup found out, and how a terminal shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..grid.cases import Case
from ..grid.engine import environment
from ..grid.verdict import Verdict
from .diagnosis import DOUBT, Diagnosis
from .locate import Growth, Location
from .shrink import Smallest
from .subjects import GIVE_A_MAP

AXES = ("kind", "dtype", "layers", "bias", "batch_first", "bidirectional", "dropout", "form", "hx", "special")

OUTCOMES = ("same", "different", "unread")  # by exit code


@dataclass(frozen=True)
class Row:
    """One case and its verdict; `what` says what differs most."""

    case: Case
    verdict: Verdict
    what: str = ""
    error: float = 0.0


@dataclass(frozen=True)
class Section:
    """A part of the report: a title and lines of text, or of Python."""

    title: str
    lines: list[str]
    is_code: bool = False


@dataclass
class Checkup:
    """Everything that was found out. `str()` of it is the report."""

    subject: str
    class_name: str
    diagnosis: Diagnosis
    notes: list[str] = field(default_factory=list)  # how its parameters, or the arrays, are read
    of_arrays: bool = False
    rows: list[Row] = field(default_factory=list)
    location: Location | None = None
    growth: Growth | None = None
    ulps: Counter[int] = field(default_factory=Counter)
    script: str = ""
    smallest: Smallest | None = None
    template: str = ""  # a weight map to be filled in
    seed: int = 0
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def counts(self) -> Counter[Verdict]:
        return Counter(row.verdict for row in self.rows)

    @property
    def _bad(self) -> list[Row]:
        return [row for row in self.rows if not row.verdict.passes]

    @property
    def outcome(self) -> str:
        """Say same, different, or unread: nothing could be compared, or not all that it offers, or its parameters may
        have been read wrongly."""
        passes, doubtful = not self._bad, self.diagnosis.unclear or self.diagnosis.unreadable
        if self.diagnosis.unread or (doubtful and passes and not self.diagnosis.accused):
            return "unread"
        return "same" if self.diagnosis.same and passes else "different"

    @property
    def same(self) -> bool:
        return self.outcome == "same"

    @property
    def exit_code(self) -> int:
        return OUTCOMES.index(self.outcome)

    @property
    def verdict(self) -> str:
        """Say in one sentence whether the subject is torch.nn's."""
        torchs = self.diagnosis.subject.torchs
        if self.outcome == "unread":
            return f"{self.headline}: {self._why_unread}"
        if self.outcome == "different":
            why = "; ".join(self.diagnosis.reasons or [f"{row.case.name}: {row.what}" for row in self._bad[:1]])
            if self.diagnosis.interface_alone and not self._bad:
                return f"The numbers of {self.subject} are {torchs}'s, the interface differs: {why}"
            return f"{self.subject} is not {torchs}" + f": {why}" * bool(why)
        worst = max(
            (row.verdict for row in self.rows if row.verdict is not Verdict.NOT_OFFERED), default=Verdict.ROUNDING
        )
        part = "could be compared" if self.diagnosis.not_run else "it offers" if self.diagnosis.not_offered else ""
        lacking = f" in what {part}" * bool(part)
        how = "bit for bit" if worst is Verdict.BITWISE else "within rounding"
        reader = self.diagnosis.subject.reader
        bound = ", ".join((reader and reader.bound) or ())
        limits = f", where its weights can be torch.nn's: a parametrization limits {bound}" * bool(bound)
        return f"{self.subject} is {torchs}{lacking}, {how}{limits}"

    @property
    def _why_unread(self) -> str:
        if self.diagnosis.unread:
            return self.diagnosis.unread
        if self.diagnosis.unclear:
            return f"it differs, and {DOUBT}: {GIVE_A_MAP}"
        return self.diagnosis.not_run[self.diagnosis.unreadable[0]]

    @property
    def headline(self) -> str:
        """Return the verdict, without the reason where nothing could be compared."""
        if self.outcome != "unread":
            return self.verdict
        places = self.diagnosis.unclear or self.diagnosis.unreadable
        place = "" if self.diagnosis.unread else f" in {' and '.join(places)}"
        return f"{self.subject} could not be compared with {self.diagnosis.subject.torchs}{place}"

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{count} {verdict.label}" for verdict, count in sorted(self.counts.items()))
        if self.rows:
            return f"{len(self.rows)} cases: {counts}"
        if self.of_arrays:
            return "the arrays alone, no case of the grid"
        why = list(self.diagnosis.not_run.values())
        return f"no case of the grid was run: {why[-1]}" if why else "no case of the grid was run"

    @property
    def footer(self) -> str:
        place = f" on {self.environment['device']}" if "device" in self.environment else ""
        return f"{self.seconds:.1f} s, torch {self.environment['torch']}{place}, seed {self.seed}"

    def __str__(self) -> str:
        """Say verdict and diagnosis first, then the table: for a terminal and for an assertion's message."""
        parts = [self.verdict + ".", ""]
        named = [f"{number}. {finding}" for number, finding in enumerate(self.diagnosis.ordered, 1)]
        numbers = sum(not finding.interface for finding in self.diagnosis.findings)
        for text in (*named[:numbers], *(f"? {other}" for other in self.diagnosis.others), *named[numbers:]):
            parts += [text.replace("\n", "\n   "), ""]
        if self.rows:
            parts += [self.summary, table(self), ""]
            if self._bad and not self.diagnosis.reasons:  # then the cases have to speak
                parts += [f"{row.verdict.label}: {row.case.name}: {row.what}" for row in self._bad[:8]] + [""]
        elif self.outcome != "unread":
            parts += [self.summary, ""]
        for section in self.sections():
            one = len(section.lines) == 1
            lines = [f" {section.lines[0]}"] if one else [f"\n  {line}" for line in section.lines]
            parts += [f"{section.title}:" + "".join(lines), ""]
        return "\n".join([*parts, self.footer])

    def sections(self) -> Iterator[Section]:
        """List what every report says below the diagnosis, however it is laid out."""
        if self.location:
            yield Section("First difference", [str(self.location)])
        if self.growth and self.growth.kind != "none":
            yield Section(f"Over {len(self.growth.errors)} steps of float32", [str(self.growth)])
        if self.diagnosis.not_offered:
            yield Section("Not offered", [f"{probe}: {why}" for probe, why in self.lacking.items()])
        if self.diagnosis.not_run:
            lines = [f"{what}: {' '.join(why.split())}" for what, why in self.diagnosis.not_run.items()]
            yield Section("Not run", lines)
        if self.notes:
            yield Section("Array by array" if self.of_arrays else "Read as", self.notes)
        if self.diagnosis.noted:
            yield Section("Beside the verdict", self.diagnosis.noted)
        if self.template:
            yield Section(
                "A weight map to fill in (--write-map FILE.py writes it)", self.template.splitlines(), is_code=True
            )
        if self.script:
            yield Section("The smallest case, with torch alone", self.script.splitlines(), is_code=True)

    @property
    def lacking(self) -> dict[str, str]:
        """Say what is not offered: combinations only where each of their parts alone is offered."""
        why = self.diagnosis.not_offered
        return {
            probe: " ".join(reason.split())[:90]
            for probe, reason in why.items()
            if "," not in probe or probe.split(",")[0] not in why
        }


def table(checkup: Checkup) -> str:
    """Return counts of verdicts by axis value."""
    shown = [verdict for verdict in Verdict if checkup.counts[verdict]]
    lines = [f"{'':24}" + "".join(f"{verdict.label:>{max(14, len(verdict.label) + 2)}}" for verdict in shown)]
    for axis in AXES:
        values = list(dict.fromkeys(getattr(row.case, axis) for row in checkup.rows))
        if len(values) < 2:
            continue
        for value in sorted(values, key=str):
            counts = Counter(row.verdict for row in checkup.rows if getattr(row.case, axis) == value)
            cells = (f"{counts[verdict] or '-':>{max(14, len(verdict.label) + 2)}}" for verdict in shown)
            lines.append(f"{label(axis, value):24}" + "".join(cells))
    return "\n".join(lines)


#: Values of axes in a few words, where the values themselves are none.
WORDS: dict[tuple[str, Any], str] = {
    ("bidirectional", False): "one direction",
    ("bidirectional", True): "two directions",
    ("batch_first", False): "steps first",
    ("hx", False): "without hx",
    ("hx", True): "with hx",
    ("dropout", "dropout_train"): "dropout in training",
    ("dropout", "dropout_eval"): "dropout in eval mode",
    ("form", "packed_unsorted"): "packed, unsorted",
    ("special", ""): "nothing special",
    ("special", "empty_batch"): "a batch of none",
    ("special", "long"): "forty steps",
    ("special", "wide"): "larger sizes",
    ("special", "noncontiguous"): "strided input, hx",
    ("special", "expanded"): "expanded input, hx",
    ("special", "keywords"): "called by keywords",
    ("special", "no_grad"): "under no_grad",
    ("special", "inference"): "under inference_mode",
    ("special", "frozen_input"): "input wants no grad",
    ("special", "frozen_weights"): "weights want no grad",
    ("special", "loss_output"): "loss of output alone",
    ("special", "loss_h_n"): "loss of h_n alone",
    ("special", "loss_c_n"): "loss of c_n alone",
    ("special", "huge"): "huge numbers",
    ("special", "written_on"): "output written on",
    ("special", "second_call"): "a second call",
}


def label(axis: str, value: Any) -> str:
    """Return an axis and a value in a few words."""
    if (axis, value) in WORDS:
        return WORDS[axis, value]
    if isinstance(value, bool):
        return axis if value else f"no {axis}"
    if axis == "layers":
        return f"{value} layer{'s' * (value != 1)}"
    return str(value).replace("_", " ") or f"no {axis}"
