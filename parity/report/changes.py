"""What changed between two runs? `python -m parity compare OLD.json NEW.json`, of the grid or of a check."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..grid.verdict import Verdict


@dataclass
class Changes:
    """Cases by (old, new) verdict, findings that came and went, and what differs in the environment."""

    cases: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    appeared: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)  # cases that only one of them has

    @property
    def worse(self) -> bool:
        """Say whether a case got a worse verdict or a mistake appeared."""
        return bool(self.appeared) or any(Verdict.named(new) > Verdict.named(old) for old, new in self.cases)

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, (old, new) in self.environment.items()]
        lines += [f"appeared: {what}" for what in self.appeared] + [f"vanished: {what}" for what in self.vanished]
        for (old, new), names in sorted(self.cases.items()):
            lines.append(f"{old} -> {new}: {len(names)} cases")
            lines += [f"  {name}" for name in names[:5]] + [f"  and {len(names) - 5} more"] * (len(names) > 5)
        lines += [f"only in the {side} run: {count} cases" for side, count in self.missing.items()]
        return "\n".join(lines) or "nothing changed"


def changes(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """Compare two reports as their JSON says them."""
    found = Changes()
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
