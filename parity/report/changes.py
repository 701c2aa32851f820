"""What changed between two runs? `python -m parity compare OLD.json NEW.json`, of the grid or of a check."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkup.record import OUTCOMES
from ..grid.verdict import Verdict


@dataclass
class Changes:
    """Cases by (old, new) verdict, findings that came and went, and what differs in the environment."""

    cases: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    appeared: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)  # cases that only one of them has
    exit_codes: tuple[int, int] = (0, 0)
    verdicts: tuple[str, str] = ("", "")  # a check's sentence

    @property
    def worse(self) -> bool:
        """Say whether a case or the whole got a worse verdict, or a mistake appeared."""
        fell = any(Verdict.named(new) > Verdict.named(old) for old, new in self.cases)
        return bool(self.appeared) or fell or self.exit_codes[1] > self.exit_codes[0]

    @property
    def better(self) -> bool:
        """Say whether a case or the whole got a better verdict, or a mistake vanished, and nothing got worse."""
        rose = any(Verdict.named(new) < Verdict.named(old) for old, new in self.cases)
        return not self.worse and (bool(self.vanished) or rose or self.exit_codes[1] < self.exit_codes[0])

    @property
    def verdict(self) -> str:
        """Say in a sentence what came of it."""
        if self.worse or self.better:
            counts = {
                "mistake{s} appeared": len(self.appeared),
                "mistake{s} vanished": len(self.vanished),
                "case{s} with another verdict": sum(map(len, self.cases.values())),
            }
            said = [f"{count} {what.format(s='s' * (count > 1))}" for what, count in counts.items() if count]
            return f"{'Worse' if self.worse else 'Better'}. {', '.join(said) or 'The verdict is another'}."
        return "No case got another verdict." if self.environment or self.missing else "Nothing changed."

    def __str__(self) -> str:
        """Say the verdict first, then what changed, then where it was run."""
        lines = [f"{side}: {said}" for side, said in zip(("old", "new"), self.verdicts, strict=True) if said]
        lines = lines if len(set(self.verdicts)) > 1 else []
        lines += [f"appeared: {what}" for what in self.appeared] + [f"vanished: {what}" for what in self.vanished]
        for (old, new), names in sorted(self.cases.items()):
            lines.append(f"{old} -> {new}: {len(names)} cases")
            lines += [f"  {name}" for name in names[:5]] + [f"  and {len(names) - 5} more"] * (len(names) > 5)
        lines += [f"only in the {side} run: {count} cases" for side, count in self.missing.items()]
        lines += [f"{name}: {old} -> {new}" for name, (old, new) in self.environment.items()]
        return "\n".join([self.verdict, *lines])


def changes(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """Compare two reports as their JSON says them."""
    found = Changes(exit_codes=(_exit_code(old), _exit_code(new)))
    found.verdicts = (old.get("verdict", ""), new.get("verdict", ""))
    before, after = ({name: str(case["verdict"]) for name, case in data["cases"].items()} for data in (old, new))
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            found.cases.setdefault((before[name], after[name]), []).append(name)
    for names in found.cases.values():
        names.sort()
    sides = {"old": len(before.keys() - after), "new": len(after.keys() - before)}
    found.missing = Counter({side: count for side, count in sides.items() if count})
    mistakes = [[finding["what"] for finding in data.get("findings", [])] for data in (old, new)]
    found.vanished, found.appeared = ([what for what in a if what not in b] for a, b in (mistakes, mistakes[::-1]))
    for name in old["environment"].keys() | new["environment"].keys():
        pair = old["environment"].get(name), new["environment"].get(name)
        if pair[0] != pair[1]:
            found.environment[name] = pair
    return found


def _exit_code(data: dict[str, Any]) -> int:
    """Return the exit code of a run: a check says its outcome, the grid the code itself."""
    return OUTCOMES.index(data["outcome"]) if "outcome" in data else int(data.get("exit_code", 0))


def main(argv: list[str]) -> int:
    """Return exit code 0: nothing got worse. 1: something did. 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m parity compare", description="What changed between two reports?")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(argv)
    try:
        found = changes(*(json.loads(file.read_text()) for file in (options.old, options.new)))
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"not two JSON reports of parity: {error!r}")
    print(found)
    return int(found.worse)
