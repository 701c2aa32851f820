"""The pictures of the cells: rnnkit's equations are run on wires, which note what is done to them, and that is drawn.

Only where things stand is said here. An equation that came to do anything else would find no place, and raise.
"""

import itertools

from ink import MONO, ink, of, pale, sheet
from matplotlib.patches import Circle, FancyBboxPatch

import rnnkit


class Wire:
    """A value of an equation that notes where it is from: an operation, and the wires that go into it."""

    def __init__(self, operation: str, *sources: "Wire", name: str = "") -> None:
        self.operation, self.sources, self.name = operation, sources, name

    def __add__(self, other: "Wire") -> "Wire":
        return Wire("+", self, other)

    def __sub__(self, other: "Wire") -> "Wire":
        return Wire("-", self, other)

    def __mul__(self, other: "Wire") -> "Wire":
        return Wire("*", self, other)

    def chunk(self, n: int, dim: int) -> "list[Wire]":
        return [Wire("rows", self, name=f"{self.name}[{k}]") for k in range(n)]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None) -> "Wire":
        return Wire(function.__name__, *args)

    def __str__(self) -> str:
        if self.name or self.operation in ("tanh", "sigmoid"):
            return self.name or f"{self.operation}({self.sources[0]})"
        left, right = (f"({s})" if s.operation in ("+", "-") and not s.name else str(s) for s in self.sources)
        return f"{left} {self.operation} {right}"


def record(mode: str) -> list[Wire]:
    """Run an equation of rnnkit on wires, and return all that it formed, in order; results under their letters."""
    equation = rnnkit.EQUATIONS[mode]
    state = tuple(Wire("in", name=letter) for letter in equation.state)
    igates = Wire("W_ih x + b_ih", Wire("in", name="x"), name="igates")
    hgates = Wire("W_hh h + b_hh", state[0], name="hgates")
    after, gates = equation.step(igates, hgates, state)
    for letter, wire in zip(equation.gates, gates, strict=True):
        wire.name = letter
    for letter, wire in zip(equation.state, after, strict=True):
        wire.name = f"{letter}'"
    found: list[Wire] = []

    def visit(wire: Wire) -> None:
        for source in wire.sources:
            visit(source)
        if wire not in found:
            found.append(wire)

    for wire in (*after, *gates):
        visit(wire)
    for wire in found:  # n's rows of igates and hgates go by the names they have in the code
        if wire.operation == "rows" and wire.sources[0].name:
            wire.name = f"n_{wire.sources[0].name[0]}"
    return found


#: Where each value is formed, by the expression that forms it.
PLACES = {
    "LSTM": {
        "x": (0.35, 0.7), "h": (0.35, 2.0), "c": (0.35, 5.0), "igates": (2.15, 0.7), "hgates": (2.15, 2.0),
        "hgates + igates": (3.95, 2.0), "i": (5.6, 4.0), "f": (5.6, 3.0), "g": (5.6, 2.0), "o": (5.6, 1.0),
        "f * c": (6.9, 5.0), "i * g": (7.7, 2.0), "c'": (8.4, 5.0), "tanh(c')": (9.5, 3.0), "h'": (9.5, 1.0),
    },
    "GRU": {
        "x": (0.35, 0.9), "h": (0.35, 5.0), "igates": (2.35, 0.9), "hgates": (2.35, 3.4),
        "hgates + igates": (4.5, 3.4), "z": (5.9, 3.9), "r": (5.9, 2.9), "r * n_h": (6.75, 1.9),
        "n_i + r * n_h": (6.75, 0.9), "n": (7.65, 0.9), "h - n": (8.5, 5.0),
        "(h - n) * z": (9.2, 5.0), "h'": (9.9, 5.0),
    },
}  # fmt: skip
#: Wires that don't go along to where they are wanted and then up or down: where they turn before that.
TURNS = {
    "LSTM": {("hgates + igates", gate): 4.55 for gate in "ifgo"} | {("i * g", "c'"): 8.4},
    "GRU": {("hgates + igates", gate): 5.05 for gate in "zr"} | {("h", "hgates"): 0.8, ("hgates", "r * n_h"): 3.85},
}
SIZE = 11.2, 5.5
END = 10.45  # where results leave
SHOWN = {"sigmoid": "σ", "*": "×", "-": "−"}  # noqa: RUF001
Points = list[tuple[float, float]]


def arrivals(mode: str) -> dict[tuple[str, str], Wire]:
    """Return by source and target what arrives there: all of the source, or a few of its rows."""
    found = {}
    for target in (wire for wire in record(mode) if wire.operation != "rows"):
        for wire in target.sources:
            source = wire.sources[0] if wire.operation == "rows" else wire
            found[str(source), str(target)] = wire
    return found


def half(wire: Wire) -> tuple[float, float]:
    """Return half of the width and height of what stands for the operation that forms a wire."""
    if wire.name in ("igates", "hgates"):
        return 1.2, 0.3
    return (0.42, 0.26) if wire.operation in ("tanh", "sigmoid") else (0.22, 0.22)


def head(axes, tip: tuple[float, float], before: tuple[float, float], colour: str) -> None:
    """Draw the head of an arrow that comes from `before`, along one axis."""
    (x, y), wide, long = tip, 0.08, 0.19
    dx, dy = ((a > b) - (a < b) for a, b in zip(tip, before, strict=True))
    back = x - long * dx, y - long * dy
    sides = [(back[0] + side * wide * dy, back[1] + side * wide * dx) for side in (1, -1)]
    axes.fill(*zip(tip, *sides, strict=True), color=colour, zorder=2, linewidth=0)


def branches(paths: list[Points]) -> Points:
    """Return the points from which the paths, taken together, lead in three directions."""
    leads: dict[tuple[float, float], set[tuple[int, int]]] = {}
    segments = [pair for path in paths for pair in itertools.pairwise(path) if pair[0] != pair[1]]
    for x, y in {point for path in paths for point in path}:
        for (a, b), (c, d) in segments:
            if min(a, c) <= x <= max(a, c) and min(b, d) <= y <= max(b, d):
                towards = [((u > x) - (u < x), (v > y) - (v < y)) for u, v in ((a, b), (c, d))]
                leads.setdefault((x, y), set()).update(set(towards) - {(0, 0)})
    return [point for point, directions in leads.items() if len(directions) > 2]


def draw_wires(axes, mode: str, wires: dict[str, Wire]) -> None:
    """Draw all wires, those of one source together: they part at dots, and pass over those of other sources."""
    places, state = PLACES[mode], rnnkit.EQUATIONS[mode].state
    groups: dict[str, list[tuple[str, Points]]] = {}
    for (source, target), wire in arrivals(mode).items():
        (x, y), (u, v) = places[source], places[target]
        turn = TURNS[mode].get((source, target), u)
        x += 0.25 * (wires[source].operation == "in")
        part = wire.name if wire.operation == "rows" and wire.name[0] == "n" else source
        groups.setdefault(source, []).append((part, [(x, y), (turn, y), (turn, v), (u, v)]))
    for letter in state:
        x, y = places[f"{letter}'"]
        groups.setdefault(f"{letter}'", []).append((f"{letter}'", [(x, y), (END, y)]))
    for source in sorted(groups, key=lambda source: source not in ("i", "h", "hgates", "z")):
        group = sorted(groups[source], key=lambda path: path[0] == source)
        for _, path in group:
            axes.plot(*zip(*path, strict=True), color=ink("paper"), linewidth=7, zorder=1, solid_capstyle="butt")
        for part, path in group:
            colour = of(part) if len(part.rstrip("'")) == 1 or part[:2] == "n_" else ink("ink")
            axes.plot(*zip(*path, strict=True), color=colour, linewidth=1.8, zorder=1)
            target = next((name for name, place in places.items() if place == path[-1]), "")
            wide, high = half(wires[target]) if target else (0, 0)
            before, (x, y) = next(p for p in reversed(path) if p != path[-1]), path[-1]
            along, up = ((a > b) - (a < b) for a, b in zip((x, y), before, strict=True))
            head(axes, (x - along * wide, y - up * high), before, colour)
        for x, y in branches([path for _, path in group]):
            axes.plot(
                x, y, "o", markersize=5, color=of(source) if len(source.rstrip("'")) == 1 else ink("ink"), zorder=2
            )


def draw_operation(axes, wire: Wire, x: float, y: float) -> None:
    """Draw what forms a wire: a disc for arithmetic, a box for a function, the letter alone for what is given."""
    wide, high = half(wire)
    gate = wire.operation in ("tanh", "sigmoid") and wire.name
    edge, ground = (of(wire.name), pale(wire.name)) if gate else (ink("ink"), ink("panel"))
    look = {"facecolor": ground, "edgecolor": edge, "linewidth": 1.4, "zorder": 3}
    if wire.operation == "in":
        axes.text(x, y, wire.name, ha="center", va="center", color=of(wire.name), size=17, weight="bold", **MONO)
        return
    if wire.operation in ("+", "-", "*"):
        axes.add_patch(Circle((x, y), wide, **look))
    else:
        shape = "round,pad=0,rounding_size=0.1"
        axes.add_patch(FancyBboxPatch((x - wide, y - high), 2 * wide, 2 * high, shape, **look))
    shown = SHOWN.get(wire.operation, wire.operation)
    font = MONO if wire.name in ("igates", "hgates") else {}
    axes.text(x, y, shown, ha="center", va="center", color=ink("ink"), size=11.5 if font else 13, zorder=4, **font)


def draw(mode: str):
    """Draw a cell: its inputs at the left, one place for each operation of the equation, its new state at the right."""
    places, wires = PLACES[mode], {str(wire): wire for wire in record(mode) if wire.operation != "rows"}
    if set(places) != set(wires):
        raise ValueError(f"{mode} forms {sorted(wires)}, and the picture has {sorted(places)}")
    figure, axes = sheet(*SIZE)
    draw_wires(axes, mode, wires)
    for name, wire in wires.items():
        draw_operation(axes, wire, *places[name])
    bold = {"ha": "center", "va": "center", "weight": "bold"} | MONO
    for letter in rnnkit.EQUATIONS[mode].state:
        axes.text(END + 0.35, places[f"{letter}'"][1], f"{letter}'", color=of(letter), size=17, **bold)
    for letter in rnnkit.EQUATIONS[mode].gates:
        x, y = places[letter]
        axes.text(x + 0.62, y + 0.27, letter, color=of(letter), size=15, **bold)
    for name in ("igates", "hgates"):
        x, y = places[name]
        axes.text(x - 1.18, y + 0.46, name, color=ink("faint"), size=11.5, va="center", **MONO)
    if mode == "GRU":
        for name, (x, y) in {"n_h": (5.6, 2.15), "n_i": (5.6, 1.15)}.items():
            axes.text(x, y, name, color=of("n"), size=12.5, **bold)
    return figure
