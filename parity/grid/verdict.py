"""Verdicts: one word for each thing that was compared, whoever compared it.

grid      bitwise, within rounding, different, error; torch.nn refuses (on a GPU)
contract  answered alike, in type only, excused, different
checkup   those of the grid; not offered, other masks, within tolerance
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Protocol


class Verdict(enum.IntEnum):
    """From best to worst."""

    BITWISE = 0  # the same dtype, shape and bits
    EQUAL = 1  # the same answer to a question
    ROUNDING = 2  # other numbers, by no more than rounding explains (see `compare.allowance`)
    TYPE_ONLY = 3  # the same exception type, where torch.nn's message is a kernel's own
    EXCUSED = 4  # another answer, to a question marked with the reason why it may be another
    REFUSED = 5  # torch.nn raises an exception on this GPU; the subject too, or it shows torch.nn's numbers of the CPU
    NOT_OFFERED = 6  # the subject has no such option
    OTHER_MASKS = 7  # dropout in the right places, but other numbers are drawn from the generator
    TOLERANCE = 8  # more than rounding, less than torch.testing.assert_close lets pass
    DIFFERENT = 9  # another error, shape or dtype, a missing gradient, another fact, another answer
    ERROR = 10  # torch.nn or the subject raised an exception, so that nothing else is known

    @property
    def label(self) -> str:
        """Return the verdict as a report says it."""
        return LABELS.get(self, self.name.lower().replace("_", " "))

    @property
    def passes(self) -> bool:
        """Say whether a run with this verdict ends well."""
        return self < Verdict.TOLERANCE

    @classmethod
    def named(cls, word: str) -> Verdict:
        """Return the verdict of that name or label, as a report in JSON has it."""
        return next(verdict for verdict in cls if word in (verdict.label, verdict.name.lower()))


LABELS = {
    Verdict.EQUAL: "answered alike",
    Verdict.ROUNDING: "within rounding",
    Verdict.TYPE_ONLY: "in type only",
    Verdict.REFUSED: "torch.nn refuses",
    Verdict.TOLERANCE: "within tolerance, not rounding",
}


class Judged(Protocol):
    """Anything that has a verdict: the result of a case, the answer to a question."""

    @property
    def verdict(self) -> Verdict: ...


def exit_code(findings: Iterable[Judged]) -> int:
    """Return 0 if everything passes, else 1."""
    return int(not all(found.verdict.passes for found in findings))
