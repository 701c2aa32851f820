"""Colours, letters, and how a picture is kept: as SVG that follows light and dark, the same whenever it is drawn."""

import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "rnnkit", "font.family": "DejaVu Sans", "font.size": 12}

#: What a thing is drawn with, in light and in dark.
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#8b949e", "#7d8590"),
    "panel": ("#f3f5f7", "#1b222b"),
    "green": ("#1a7f4b", "#4cc38a"),
    "blue": ("#1f6fd0", "#6cb0ff"),
    "orange": ("#b35900", "#ffa657"),
    "purple": ("#7d4ed0", "#c297ff"),
    "red": ("#c0304f", "#ff8095"),
    "pale green": ("#dcf2e5", "#12372a"),
    "pale blue": ("#dceafa", "#12304f"),
    "pale orange": ("#fbe8d3", "#43290d"),
    "pale purple": ("#ece3fa", "#312052"),
    "pale red": ("#fbe1e6", "#4a1923"),
}
#: A letter has the same colour in all pictures: what lets in, what keeps, what is offered, what lets out.
LETTERS = {"i": "green", "f": "blue", "g": "orange", "o": "purple", "c": "red"}
LETTERS |= {"r": "green", "z": "blue", "n": "orange", "h": "ink", "x": "faint"}
MONO = {"family": "DejaVu Sans Mono"}


def ink(name: str) -> str:
    """Return a colour by its name, as it is in light."""
    return COLOURS[name][0]


def of(letter: str) -> str:
    """Return the colour of a letter of the equations; n_h and c' go by their first."""
    return ink(LETTERS[letter[0]])


def pale(letter: str) -> str:
    """Return the ground on which a letter's colour is read well."""
    name = f"pale {LETTERS[letter[0]]}"
    return ink(name if name in COLOURS else "panel")


def sheet(x: float, y: float, width: float = 6.5):
    """Return a figure of so many inches, and axes that fill it: from 0 to x and to y, equally scaled, no frame."""
    figure = Figure(figsize=(width, width * y / x), facecolor=ink("paper"))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, x), ylim=(0, y))
    axes.axis("off")
    return figure, axes


def keep(figure: Figure, path: Path, about: str) -> None:
    """Write a figure as SVG without a date, with its colours for the dark, and what it is about."""
    figure.savefig(path, metadata={"Date": None, "Creator": None, "Title": about}, facecolor=ink("paper"))
    text = path.read_text()
    rules = [
        f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}'
        for light, dark in COLOURS.values()
        for what in ("fill", "stroke")
    ]
    style = "\n   ".join(["@media (prefers-color-scheme: dark) {", *rules, "}"])
    text = text.replace("</style>", f"\n   {style}\n  </style>", 1)
    text = re.sub(r"'DejaVu Sans Mono'", "'DejaVu Sans Mono', Menlo, Consolas, monospace", text)
    text = re.sub(r"'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif", text)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
