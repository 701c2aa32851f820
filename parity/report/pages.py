"""A checkup as JSON, JUnit, Markdown and one static page of HTML."""

from __future__ import annotations

import html
import importlib.resources
import itertools
import json
import math
from xml.sax.saxutils import escape, quoteattr

from ..checkup.locate import ULP_BINS
from ..checkup.record import AXES, Checkup, Row, Section, label
from ..grid.verdict import Verdict

COLOURS = {
    Verdict.BITWISE: "#1a7f4b",
    Verdict.ROUNDING: "#66b287",
    Verdict.REFUSED: "#8fa3bf",
    Verdict.NOT_OFFERED: "#b8bcc4",
    Verdict.OTHER_MASKS: "#c9d36a",
    Verdict.TOLERANCE: "#e3b341",
    Verdict.DIFFERENT: "#c93c37",
    Verdict.ERROR: "#7d2a8c",
}


# Data -----------------------------------------------------------------------------------------------------------------


def as_json(checkup: Checkup) -> str:
    """Return versions, threads, seed, findings, one entry for each case."""
    diagnosis = checkup.diagnosis
    data = {
        "subject": checkup.subject,
        "class": checkup.class_name,
        "verdict": checkup.verdict,
        "outcome": checkup.outcome,
        "same": checkup.same,
        "seed": checkup.seed,
        "seconds": round(checkup.seconds, 2),
        "environment": checkup.environment,
        "findings": [vars(finding) for finding in diagnosis.ordered],
        "unexplained": [vars(one) for one in diagnosis.unexplained],
        "errors": diagnosis.errors,
        "unclear": diagnosis.unclear,
        "not compared": diagnosis.unread or None,
        "not offered": diagnosis.not_offered,
        "not run": diagnosis.not_run,
        "notes": checkup.notes,
        "first difference": str(checkup.location) if checkup.location else None,
        "growth": checkup.growth
        and {"errors": checkup.growth.errors, "slope": checkup.growth.slope, "kind": checkup.growth.kind},
        "ulps": {str(end): count for end, count in checkup.ulps.items()},
        "counts": {verdict.label: count for verdict, count in checkup.counts.items()},
        "cases": {
            row.case.name: {"verdict": row.verdict.label, "what": row.what, "error": _finite(row.error)}
            for row in checkup.rows
        },
        "script": checkup.script,
    }
    return json.dumps(data, indent=1) + "\n"


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def as_junit(checkup: Checkup) -> str:
    """Write one test case for each case, and one for the diagnosis."""
    name = f"parity.{checkup.subject}"
    entries = [_junit("diagnosis", name, "" if checkup.diagnosis.same else str(checkup.diagnosis), Verdict.DIFFERENT)]
    entries += [
        _junit(row.case.name, name, "" if row.verdict.passes else row.what, row.verdict) for row in checkup.rows
    ]
    failures = sum("<failure" in entry or "<error" in entry for entry in entries)
    skipped = checkup.counts[Verdict.NOT_OFFERED]
    head = f'name={quoteattr(name)} tests="{len(entries)}" failures="{failures}" skipped="{skipped}"'
    head += f' time="{checkup.seconds:.2f}"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n<testsuite {head}>\n' + "\n".join(entries) + "\n</testsuite>\n"


def _junit(name: str, group: str, message: str, verdict: Verdict) -> str:
    inside = ""
    if message:
        tag = "error" if verdict is Verdict.ERROR else "failure"
        inside = f"<{tag} message={quoteattr(message.splitlines()[0])}>{escape(message)}</{tag}>"
    elif verdict is Verdict.NOT_OFFERED:
        inside = '<skipped message="not offered"/>'
    return f"  <testcase classname={quoteattr(group)} name={quoteattr(name)}>{inside}</testcase>"


def as_markdown(checkup: Checkup) -> str:
    """Write a comment for a pull request."""
    mark = {"unread": "not compared"}.get(checkup.outcome, checkup.outcome)
    lines = [f"### parity: `{checkup.subject}` ({mark})", "", f"{checkup.verdict}.", ""]
    for finding in checkup.diagnosis.ordered:
        where = f" (the convention of {finding.where})" if finding.where else ""
        lines += [f"- **{finding.what}**{where}  ", f"  To do: {finding.fix}  ", f"  <sub>{finding.evidence}</sub>"]
    lines += [f"- {other}" for other in checkup.diagnosis.others]
    if checkup.rows:
        lines += ["", "| verdict | cases |", "|---|---|"]
        lines += [f"| {verdict.label} | {count} |" for verdict, count in sorted(checkup.counts.items())]
    for section in checkup.sections():
        inside = ["```python", *section.lines, "```"] if section.is_code else [f"- {line}" for line in section.lines]
        lines += ["", f"<details><summary>{section.title}</summary>", "", *inside, "", "</details>"]
    return "\n".join([*lines, "", f"<sub>{checkup.footer}</sub>", ""])


# HTML -----------------------------------------------------------------------------------------------------------------

STYLE = importlib.resources.files(__package__).joinpath("page.css").read_text()


COPY = "navigator.clipboard.writeText(document.getElementById('script').textContent)"


def as_html(checkup: Checkup) -> str:
    """Write one page that needs nothing from elsewhere."""
    e = html.escape
    colour = {"same": Verdict.BITWISE, "different": Verdict.DIFFERENT, "unread": Verdict.ERROR}[checkup.outcome]
    word = {"unread": "not compared"}.get(checkup.outcome, checkup.outcome)
    badge = f'<span class="badge" style="background:{COLOURS[colour]}">{word}</span>'
    body = [f"<h1>{e(checkup.headline)}</h1>", f"<p>{badge} {e(checkup.summary)}</p>"]
    if checkup.diagnosis.unread:
        body.append(f'<div class="finding">{e(checkup.diagnosis.unread)}</div>')
    for finding in checkup.diagnosis.ordered:
        where = f"<br>The convention of: {e(finding.where)}" if finding.where else ""
        body.append(
            f'<div class="finding"><b>{e(finding.what)}</b>{where}<br>To do: {e(finding.fix)}'
            f'<br><span class="muted">{e(finding.evidence)}</span></div>'
        )
    body += [f'<div class="finding">{e(other)}</div>' for other in checkup.diagnosis.others]
    sections = sorted(checkup.sections(), key=lambda section: not section.is_code)  # code comes first
    body += [_section(section) for section in sections if section.is_code]
    figures = [_growth(checkup), _ulps(checkup)]
    if any(figures):
        body += ['<h2>A long sequence in float32</h2><div class="charts">', *figures, "</div>"]
    if any(row.verdict is not Verdict.NOT_OFFERED for row in checkup.rows):
        head = "<h2>Which options work together</h2><p>Each cell stands for the cases that have both options, and shows"
        head += (
            " the worst of them. A number counts those that fail; where there is no colour there is no such case.</p>"
        )
        body += [head, heat_map(checkup.rows), _key(checkup.rows)]
    body += [_section(section) for section in sections if not section.is_code]
    body.append(f'<p class="muted">{e(checkup.footer)}</p>')
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{e(checkup.subject)}</title><style>{STYLE}</style>"
    return "\n".join([f"<!doctype html><html lang=en><head>{head}</head><body>", *body, "</body></html>", ""])


def _section(section: Section) -> str:
    name, button = ' class="prose"', ""
    if section.is_code:
        name, button = ' id="script"', f' <button onclick="{COPY}">copy</button>'
    lines = html.escape("\n".join(section.lines))
    return f"<h2>{html.escape(section.title)}{button}</h2>\n<pre{name}>{lines}</pre>"


def heat_map(rows: list[Row]) -> str:
    """Colour the worst verdict of the cases that have both values; the number is how many fail."""
    values = [
        (axis, value)
        for axis in AXES
        for value in sorted({getattr(row.case, axis) for row in rows}, key=str)
        if len({getattr(row.case, axis) for row in rows}) > 1
    ]
    columns = [pair for pair in values if pair[0] != "special"]  # no two of these go together
    top = "".join(f'<th class="top"><span>{html.escape(label(*pair))}</span></th>' for pair in columns)
    lines = [f"<tr><th></th>{top}</tr>"]
    for axis, value in values:
        name, cells = html.escape(label(axis, value)), []
        for other, wanted in columns:
            both = [r for r in rows if getattr(r.case, axis) == value and getattr(r.case, other) == wanted]
            if (axis == other and value != wanted) or not both:
                cells.append("<td></td>")
                continue
            worst = max((r.verdict for r in both), key=lambda verdict: (not verdict.passes, verdict))
            failing = sum(not r.verdict.passes for r in both)
            title = f"{name}, {html.escape(label(other, wanted))}: {len(both)} cases, worst {worst.label}"
            cells.append(f'<td style="background:{COLOURS[worst]}" title="{title}">{failing or ""}</td>')
        lines.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    return f'<div class="map"><table>{"".join(lines)}</table></div>'


def _key(rows: list[Row]) -> str:
    shown = {row.verdict for row in rows}
    items = "".join(
        f'<span><i style="background:{colour}"></i>{verdict.label}</span>'
        for verdict, colour in COLOURS.items()
        if verdict in shown
    )
    return f'<p class="key">{items}</p>'


WIDTH, HEIGHT, LEFT, BOTTOM = 420, 190, 46, 24


def _growth(checkup: Checkup) -> str:
    """Draw error against step, on a logarithmic scale."""
    if checkup.growth is None or checkup.growth.kind == "none":
        return ""
    shown = [(step, math.log10(error)) for step, error in enumerate(checkup.growth.errors) if 0 < error < math.inf]
    low, high = math.floor(min(y for _, y in shown)) - 1, math.ceil(max(y for _, y in shown))
    x_scale = (WIDTH - LEFT - 10) / max(1, len(checkup.growth.errors) - 1)
    y_scale = (HEIGHT - BOTTOM - 10) / (high - low)

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * x_scale, 10 + (high - y) * y_scale

    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{at(0, y)[1]:.1f}" y2="{at(0, y)[1]:.1f}" stroke="#8883"/>'
        f'<text x="{LEFT - 6}" y="{at(0, y)[1] + 4:.1f}" text-anchor="end">1e{y}</text>'
        for y in range(low, high + 1, max(1, (high - low) // 4))
    )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in itertools.starmap(at, shown))
    colour = COLOURS[Verdict.ROUNDING if checkup.growth.kind == "rounding" else Verdict.DIFFERENT]
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>' for x, y in itertools.starmap(at, shown)
    )
    axis = "".join(
        f'<text x="{at(step, low)[0]:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{step}</text>'
        for step in range(0, len(checkup.growth.errors), 10)
    )
    return (
        f"<figure><figcaption>Error at each time step: {html.escape(str(checkup.growth))}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{grid}'
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}{axis}</svg></figure>'
    )


def _ulps(checkup: Checkup) -> str:
    """Draw how many numbers are how far from torch.nn's, in units in the last place."""
    total = sum(checkup.ulps.values())
    if not total:
        return ""
    ends = [*ULP_BINS, -1]
    names = ["0", "1", "2", *(f"≤{end}" for end in ULP_BINS[3:]), "more"]
    step = (WIDTH - 20) / len(ends)
    tallest = max(checkup.ulps.values())
    bars = ""
    for k, (end, name) in enumerate(zip(ends, names, strict=True)):
        share = checkup.ulps[end]
        height = share / tallest * (HEIGHT - BOTTOM - 24)
        x, y = 10 + k * step, HEIGHT - BOTTOM - height
        likely = Verdict.ROUNDING if end <= 16 else Verdict.TOLERANCE
        colour = COLOURS[{0: Verdict.BITWISE, -1: Verdict.DIFFERENT}.get(end, likely)]
        bars += f'<rect x="{x + 3:.1f}" y="{y:.1f}" width="{step - 6:.1f}" height="{height:.1f}" fill="{colour}"/>'
        bars += f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{name}</text>'
        if share:
            bars += f'<text x="{x + step / 2:.1f}" y="{y - 4:.1f}" text-anchor="middle">{share / total:.0%}</text>'
    return (
        "<figure><figcaption>How far the output's numbers are from torch.nn's, in the smallest steps that float32 has: "
        "0 is the same number</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{bars}</svg></figure>'
    )


RENDERERS = {"json": as_json, "junit": as_junit, "markdown": as_markdown, "html": as_html}
