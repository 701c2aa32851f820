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

from collections.abc import Iterator

from ..grid.cases import Case
from .calling import begin, calm, settle
from .diagnosis import Diagnosis
from .gradients import gradients
from .naming import look, refused, takes_unbatched
from .patient import Patient
from .probes import BASE, CELL_PROBES, PROBES, Probe, values
from .reading import ask_extras, read
from .subjects import IncomparableError
from .traces import facts


class Doctor(Patient):
    """Probes one subject."""

    def diagnose(self) -> Diagnosis:
        """Find out how it is called and read, then run the probes, then look at gradients and at what a call leaves."""
        diagnosis = self.diagnosis
        self.progress("constructing it")
        try:
            begin(self)
            self.progress("its first calls")
            settle(self)
            calm(self)
            read(self, BASE)
        except IncomparableError as error:
            diagnosis.unread = str(error)
            return diagnosis
        self.progress(BASE.name)
        if look(self, BASE):
            ask_extras(self, BASE)
            for probe in self.following():
                read(self, probe)
                if probe.name != "unbatched" or takes_unbatched(self):
                    look(self, probe)
                    ask_extras(self, probe)
            self.progress("gradients, memory")
            facts(self)
            gradients(self)
            diagnosis.variant = self.base
        elif not diagnosis.unread:
            diagnosis.not_run["what comes after one layer"] = "that differs already, and no name was found for it"
            self.ask_offers()
        if self.extras_matter and self.subject.reader is not None:
            self.subject.reader.show_extras()
        diagnosis.subject = self.subject
        return diagnosis

    def following(self) -> Iterator[Probe]:
        """Yield what is asked after the base case, and tell that it is its turn."""
        for probe in CELL_PROBES if self.subject.is_cell else PROBES:
            if probe.name != "projection" or self.subject.kind == "LSTM":
                self.progress(probe.name)
                yield probe

    def ask_offers(self) -> None:
        """Find out what it refuses, where nothing but that is asked of the probes: the grid has cases of the rest."""
        for probe in self.following():
            case, drawn = self.draw(probe, 0)
            seen = self.run(case, drawn)
            if not values(seen):
                refused(self, probe, case, drawn, seen.error)
            elif probe.name == "unbatched":
                takes_unbatched(self)

    def diagnose_readings(self, case: Case) -> None:
        """Find out how to call the subject, and how to read its parameters in this case."""
        settle(self)
        read(self, BASE)
        read(self, Probe("", ("stack",), {"layers": case.layers, "bidirectional": case.bidirectional}))
