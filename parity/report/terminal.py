"""What a run says: a progress line, two tables, the worst difference, the failing cases; the same as JSON."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..contract.answers import NUMPY, Answer
from ..grid.cases import AUTOCAST_FLOAT16, CELLS, DTYPES, FORMS, KINDS, RAGGED, SPECIALS, Case
from ..grid.compare import Difference, Result, severity
from ..grid.engine import environment
from ..grid.verdict import Verdict, exit_code

WIDTH = 100
COLUMNS = (*KINDS, "cells")
#: Verdicts of cases, and of questions.
OF_CASES = (Verdict.BITWISE, Verdict.ROUNDING, Verdict.DIFFERENT, Verdict.ERROR)
OF_QUESTIONS = (Verdict.EQUAL, Verdict.TYPE_ONLY, Verdict.EXCUSED, Verdict.DIFFERENT)


def progress(results: Iterable[Result], total: int) -> Iterator[Result]:
    """Pass results through and say how far they are: in one line on a terminal, every tenth elsewhere."""
    live = sys.stderr.isatty()
    start = shown = time.monotonic()
    different = decile = 0
    for done, result in enumerate(results, 1):
        yield result
        different += not result.verdict.passes
        now = time.monotonic()
        if (now - shown > 0.2) if live else (done * 10 // total > decile):
            shown, decile = now, done * 10 // total
            left = (now - start) * (total - done) / done
            line = f"{done:,} of {total:,} cases, {different:,} different, {left:.0f} s left"
            print(f"\r{line:<{WIDTH - 1}}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
    if live:
        print("\r" + " " * (WIDTH - 1) + "\r", end="", file=sys.stderr, flush=True)


def column(case: Case) -> str:
    return "cells" if case.is_cell else case.kind


def labels(case: Case) -> Iterator[str]:
    """Return the rows of the table by axis that a case counts in."""
    yield case.dtype + (" oneDNN" if case.onednn else " TF32" if case.tf32 else "")
    if not case.is_cell:
        yield f"{case.layers} layer" + "s" * (case.layers > 1)
    yield "bias" if case.bias else "no bias"
    if not case.is_cell:
        yield "batch_first" if case.batch_first else "steps first"
        yield "bidirectional" if case.bidirectional else "one direction"
        yield case.dropout.replace("_", " ") or "no dropout"
    yield case.form.replace("_", " ")
    yield "hx given" if case.hx else "no hx"
    if case.special:
        yield case.special


GROUPS = (
    tuple(dtype + suffix for dtype in DTYPES for suffix in ("", " oneDNN", " TF32")),
    ("1 layer", "2 layers", "3 layers"),
    ("bias", "no bias"),
    ("steps first", "batch_first"),
    ("one direction", "bidirectional"),
    ("no dropout", "dropout train", "dropout eval"),
    (*(form.replace("_", " ") for form in (*FORMS, *RAGGED)), "batched"),
    ("hx given", "no hx"),
    (*SPECIALS, AUTOCAST_FLOAT16),
    ("all",),
)


def table(results: list[Result]) -> str:
    """Return counts of bitwise / within rounding / different by module and axis value."""
    counts: dict[tuple[str, str], Counter[Verdict]] = {}
    for result in results:
        for row in ("all", *labels(result.case)):
            counts.setdefault((row, column(result.case)), Counter())[result.verdict] += 1
    columns = [name for name in COLUMNS if ("all", name) in counts]
    lines = [f"{'':16}" + "".join(f"{name:>14}" for name in columns)]
    for group in GROUPS:
        rows = [row for row in group if any((row, name) in counts for name in columns)]
        for row in rows:
            lines.append(f"{row:16}" + "".join(f"{_counts(counts.get((row, name))):>14}" for name in columns))
        lines += [""] * bool(rows)
    lines.pop()
    return "\n".join(lines)


def _counts(cell: Counter[Verdict] | None) -> str:
    if not cell:
        return "-"
    return f"{cell[Verdict.BITWISE]}/{cell[Verdict.ROUNDING]}/{cell[Verdict.DIFFERENT] + cell[Verdict.ERROR]}"


def bitwise_share(results: list[Result]) -> str:
    """Say in how many cases all values are bitwise equal, and all gradients too, with oneDNN and TF32 off."""
    values: dict[tuple[str, str], list[bool]] = {}
    everything: dict[tuple[str, str], list[bool]] = {}
    for result in results:
        if not (result.case.onednn or result.case.tf32 or result.case.special.startswith("autocast")):
            key = (result.case.kind, result.case.dtype)
            values.setdefault(key, []).append(result.values_verdict is Verdict.BITWISE)
            everything.setdefault(key, []).append(result.verdict is Verdict.BITWISE)
    dtypes = [dtype for dtype in DTYPES if any(key[1] == dtype for key in values)]
    lines = [f"{'':16}" + "".join(f"{dtype:>14}" for dtype in dtypes)]
    for kind in (*KINDS, *CELLS):
        cells = [
            f"{_share(values[kind, dtype])} | {_share(everything[kind, dtype])}" if (kind, dtype) in values else "-"
            for dtype in dtypes
        ]
        if any(cell != "-" for cell in cells):
            lines.append(f"{kind:16}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def _share(equal: list[bool]) -> str:
    """Round percents away from 100 and 0: 100 means all, 0 means none."""
    percent = 100 * sum(equal) / len(equal)
    return f"{percent:.0f}" if percent in (0, 100) else f"{min(max(percent, 0.1), 99.9):.1f}"


def worst(results: list[Result]) -> Result | None:
    """Return the result with the largest error in proportion to what is allowed."""
    measured = (result for result in results if result.worst is not None and result.verdict is not Verdict.REFUSED)
    return max(measured, key=lambda result: severity(result.worst), default=None)


def text(results: list[Result], answers: list[Answer], seconds: float, again: str, seed: int) -> str:
    """Return the report of a run. `again` is the command line that runs this subject."""
    parts: list[str] = []
    if len(results) == 1:
        parts += [detail(results[0]), ""]
    elif results:
        parts += ["Cases by module and axis: bitwise / within rounding / different", table(results), ""]
        lower, torchs = "TF32" if results[0].case.on_gpu else "oneDNN", [r for r in results if not r.case.is_ragged]
        if torchs:
            parts += [f"With {lower} off, torch.nn's arguments: percentage of cases bitwise in every value | gradient"]
            parts += [bitwise_share(torchs), ""]
        extreme = worst(results)
        if extreme is not None and extreme.worst is not None:
            parts += [f"Worst: {extreme.worst.name}: {what(extreme.worst)}, in", f"  {extreme.case.name}", ""]
        parts += refusals(results)
    parts += failures(results, again + (f" --seed {seed}" if seed else ""))
    if answers:
        parts += contract_text(answers, again)
    counts = Counter(result.verdict for result in results)
    if results:
        parts.append(
            f"Grid: {len(results):,} cases: {counts[Verdict.BITWISE]:,} bitwise, {counts[Verdict.ROUNDING]:,} "
            f"within rounding, {counts[Verdict.DIFFERENT]:,} different"
            + (f", {counts[Verdict.REFUSED]:,} refused by torch.nn on this device" if counts[Verdict.REFUSED] else "")
            + (f", {counts[Verdict.ERROR]:,} ended in an error." if counts[Verdict.ERROR] else ".")
        )
    if answers:
        parts.append(contract_line(answers))
    worst_of_all = max([result.verdict for result in results] + [answer.verdict for answer in answers])
    conclusion = "No difference" if worst_of_all.passes else worst_of_all.name
    parts.append(f"{conclusion}. ({seconds:.0f} s)")
    return "\n".join(parts)


def what(difference: Difference) -> str:
    return difference.note or (
        f"error {difference.error:.2g}, torch.nn's own {difference.own:.2g}, allowed {difference.allowed:.2g}"
    )


def refusals(results: list[Result]) -> list[str]:
    """Say what torch.nn refuses on this device, how often, and what the subject does there."""
    reasons = Counter(
        (one.name, one.note) for result in results for one in result.differences if one.verdict is Verdict.REFUSED
    )
    lines = [f"{count:6,} {name}: {' '.join(note.split())}"[:WIDTH] for (name, note), count in reasons.most_common()]
    title = "Refused by torch.nn on this device, not on the CPU, whose numbers are then the true ones:"
    return [title, *lines, ""] if lines else []


def contract_line(answers: list[Answer]) -> str:
    counts = Counter(answer.verdict for answer in answers)
    return (
        f"Contract: {len(answers):,} questions: {counts[Verdict.EQUAL]:,} answered alike, "
        f"{counts[Verdict.TYPE_ONLY]} in type only, {counts[Verdict.EXCUSED]} excused, "
        f"{counts[Verdict.DIFFERENT]} different."
        + " What needs NumPy was not asked: it is not installed."
        * (not NUMPY)
    )


def contract_text(answers: list[Answer], again: str, limit: int = 12) -> list[str]:
    """Return the questions that were answered differently; those excused or equal in type only, by reason."""
    lines = []
    different = [answer for answer in answers if answer.verdict is Verdict.DIFFERENT]
    for answer in different[:limit]:
        lines += ["DIFFERENT " + answer_text(answer), f'  {again} --ask "{answer.question.strip()}"', ""]
    if len(different) > limit:
        lines += [f"... and {len(different) - limit} more (--json lists all)", ""]
    reasons: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.verdict is Verdict.TYPE_ONLY:
            reasons.setdefault("in type only: torch.nn's message is a kernel's own", []).append(answer)
        if answer.verdict is Verdict.EXCUSED:
            reasons.setdefault(f"excused: {answer.excuse}", []).append(answer)
    for reason, members in reasons.items():
        lines.append(f"{len(members):4} {reason}")
        lines.append(f"       {members[0].question}")
    return lines + [""] * bool(reasons)


def answer_text(answer: Answer) -> str:
    if answer.verdict is Verdict.EQUAL:
        return f"{answer.question}\n  both        {answer.reference}"
    return f"{answer.question}\n  torch.nn    {answer.reference}\n  the subject {answer.subject}"


def failures(results: list[Result], again: str, limit: int = 12) -> list[str]:
    """Gather the differing cases by module and by what differs first, one example of each with its command."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if not result.verdict.passes and result.worst is not None:
            name = result.worst.name.removesuffix("_reverse").rstrip("_l0123456789")
            groups.setdefault((result.case.kind, name), []).append(result)
    lines = []
    for (kind, name), members in sorted(groups.items(), key=lambda item: -len(item[1]))[:limit]:
        example = min(members, key=lambda result: len(result.case.name))
        assert example.worst is not None
        lines += [f"{example.verdict.name} {kind}: {name} in {len(members):,} cases, for example"]
        lines += [f"  {example.worst.name}: {what(example.worst)}", f"  {again} -k {example.case.name}", ""]
    if len(groups) > limit:
        lines += [f"... and {len(groups) - limit} more kinds of difference (--json lists every case)", ""]
    return lines


def detail(result: Result) -> str:
    """Say everything about one case."""
    lines = [result.case.name, f"  {'tensor or fact':28}{'verdict':12}{'error':>10}{'torch.nn':>10}{'allowed':>10}"]
    for difference in result.differences:
        line = f"  {difference.name:28}{difference.verdict.name.lower():12}"
        if not difference.note:
            line += f"{difference.error:10.2g}{difference.own:10.2g}{difference.allowed:10.2g}"
        lines.append(line + (f"\n    {difference.note}" if difference.note else ""))
    lines.append(f"  {result.bitwise} tensors bitwise")
    return "\n".join(lines)


def as_json(
    results: list[Result], answers: list[Answer], subject: str, seed: int, seconds: float, device: str = "cpu"
) -> dict[str, Any]:
    """Write the whole run as plain data: `cases` by name, `contract` as the questions not answered alike."""
    counts = Counter(result.verdict for result in results)
    said = Counter(answer.verdict for answer in answers)
    of_cases = (*OF_CASES, Verdict.REFUSED) if counts[Verdict.REFUSED] else OF_CASES
    return {
        "subject": subject,
        "seed": seed,
        "seconds": round(seconds, 1),
        "environment": environment(device),
        "exit_code": exit_code([*results, *answers]),
        "counts": {_word(verdict): counts[verdict] for verdict in of_cases},
        "contract_counts": {_word(verdict): said[verdict] for verdict in OF_QUESTIONS},
        "contract": [_plain(answer) for answer in answers if answer.verdict is not Verdict.EQUAL],
        "cases": {
            result.case.name: {
                "verdict": _word(result.verdict),
                "values": _word(result.values_verdict),
                "differences": list(map(_plain, result.differences)),
            }
            for result in results
        },
    }


def _word(verdict: Verdict) -> str:
    return verdict.name.lower()


def _plain(one: Difference | Answer) -> dict[str, Any]:
    return {**vars(one), "verdict": _word(one.verdict)}
