"""What was found out about a subject: with names, without, not offered, not run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..mutants.variants import Variant
from .search import Finding
from .subjects import Subject

DOUBT = "either its parameters are read wrongly there or it is not torch.nn's"


@dataclass(frozen=True)
class Unexplained:
    """A difference that no known variant explains."""

    probe: str
    error: float
    nearest: str
    distance: float
    also: tuple[str, ...] = ()  # what fits as well: then the numbers cannot tell
    note: str = ""
    alone: str = ""  # the results that differ, where others don't

    @property
    def short(self) -> str:
        """Say where it differs, for a headline."""
        place = self.probe.removeprefix("gradients, ")
        what = "numbers" if place == self.probe else "gradients"
        what = f"its {what}" if not self.alone else f"its {what}, those of {self.alone} alone,"
        return f"{what} differ in {place}" + ", and no known variant fits" * (not self.also)

    def __str__(self) -> str:
        if self.also:
            others = " and also ".join(self.also[:3])
            return (
                f"{self.probe}: {self.nearest} fits, but also {others}: these numbers cannot tell. "
                "Take biases and an initial state that are not zero, and more than one step"
            )
        note = f"; {self.note}" * bool(self.note)
        near = f"the nearest, {self.nearest}, is {self.distance:.1e} away" if self.nearest else "nothing comes near"
        what = f"{self.alone} alone differs" if self.alone else "differs"
        return f"{self.probe}: {what} by {self.error:.1e} and no known variant fits ({near}){note}"


@dataclass
class Diagnosis:
    """What was found out about a subject."""

    subject: Subject
    findings: list[Finding] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)
    not_offered: dict[str, str] = field(default_factory=dict)  # probe -> why
    not_run: dict[str, str] = field(default_factory=dict)  # what it may well offer, and why nobody looked
    unclear: dict[str, float] = field(default_factory=dict)  # probe -> by how much it differs, under a doubtful reading
    unreadable: list[str] = field(default_factory=list)  # of `not_run`, what it offers and could not be read or passed
    errors: dict[str, str] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    variant: Variant | None = None
    noted: list[str] = field(default_factory=list)  # beside the verdict
    unread: str = ""  # why nothing could be compared, and what to do

    @property
    def names(self) -> list[str]:
        return [finding.what for finding in self.findings]

    @property
    def ordered(self) -> list[Finding]:
        """List what has a name: wrong numbers first, then what is of another shape."""
        return sorted(self.findings, key=lambda finding: finding.interface)

    @property
    def reasons(self) -> list[str]:
        """Say in a few words why it is not torch.nn's, wrong numbers first, whether they have a name or not."""
        numbers = [finding.what for finding in self.findings if not finding.interface]
        unnamed = [] if numbers else [one.short for one in self.unexplained[:1]]
        return [*numbers, *unnamed, *(finding.what for finding in self.findings if finding.interface)]

    @property
    def left_out(self) -> dict[str, str]:
        """Say what was not compared, whoever is the cause."""
        return self.not_offered | self.not_run | dict.fromkeys(self.unclear, DOUBT)

    @property
    def same(self) -> bool:
        """Say whether nothing at all was found, in what the subject offers."""
        return not (self.findings or self.unexplained or self.errors or self.unread or self.unclear or self.unreadable)

    @property
    def accused(self) -> bool:
        """Say whether numbers differ, and not because parameters may have been read wrongly."""
        return bool(self.unexplained or self.errors) or not all(finding.interface for finding in self.findings)

    @property
    def interface_alone(self) -> bool:
        """Say whether the numbers are torch.nn's, and nothing but the shape of arguments and results differs."""
        return bool(self.findings) and not (self.accused or self.unclear or self.unreadable)

    @property
    def others(self) -> list[str]:
        """List what was found and has no name."""
        errors = [f"{probe}: {text}" for probe, text in self.errors.items()]
        unclear = [f"{probe}: differs by {error:.1e}; {DOUBT}" for probe, error in self.unclear.items()]
        return [*map(str, self.unexplained), *errors, *unclear]

    def __str__(self) -> str:
        unread = [self.unread] if self.unread else []
        return "\n".join([*unread, *map(str, self.findings), *self.others]) or "nothing to report"
