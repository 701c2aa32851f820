"""A base class for tests of one's own module.

class TestMyLSTM(parity.testing.ParityTests):
    subject = MyLSTM
"""

from __future__ import annotations

import inspect
from typing import Any

from .checkup.examine import check
from .checkup.maps import WeightMap
from .checkup.record import Checkup


class ParityTests:
    """Derive from it, set `subject`; the other attributes are the arguments of `parity.check`. pytest collects it."""

    subject: Any = None
    as_: str | None = None
    weight_map: WeightMap | None = None
    grid: str = "quick"
    seed: int = 0
    _checkup: Checkup

    @classmethod
    def checkup(cls) -> Checkup:
        """Return the checkup, once for each class."""
        if "_checkup" not in vars(cls):
            target, weight_map = (inspect.getattr_static(cls, name) for name in ("subject", "weight_map"))
            cls._checkup = check(target, cls.as_, weight_map=weight_map, grid=cls.grid, seed=cls.seed, raises=False)
        return cls._checkup

    def test_no_mistake_is_found(self) -> None:
        checkup = self.checkup()
        assert checkup.diagnosis.same, f"\n{checkup}"

    def test_every_case_that_is_offered_agrees(self) -> None:
        checkup = self.checkup()
        assert checkup.outcome != "unread", f"\n{checkup}"
        assert all(row.verdict.passes for row in checkup.rows), f"\n{checkup}"
