"""Draw the pictures of this page, as SVG: python examples/students/pictures.py [--folder FOLDER]

Each is drawn from what rnnkit's own code says: an equation run on wires, the letters of a record, the keys and
values of a trace. Needs the extra `examples`. `--lengths FILE.csv` says which times are drawn against the length.
"""

import argparse
import csv
import sys
from pathlib import Path

import cells
import torch
from ink import MONO, ink, keep, of, pale, sheet
from matplotlib.patches import Rectangle
from torch import nn

import rnnkit

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import watch_the_gates  # noqa: E402

BOLD = {"ha": "center", "va": "center", "weight": "bold"} | MONO
SMALL = {"color": ink("faint"), "size": 11, "va": "center"}


def box(axes, x: float, y: float, wide: float, high: float, letter: str, text: str = "", **more) -> None:
    """Draw a box in a letter's colours, and its text."""
    look = {"facecolor": pale(letter), "edgecolor": of(letter), "linewidth": 1.3} | more
    axes.add_patch(Rectangle((x, y), wide, high, **look))
    if text:
        axes.text(x + wide / 2, y + high / 2, text, color=of(letter), size=13, **BOLD)


def rows():
    """Which rows of a parameter are which gate's."""
    figure, axes = sheet(11.2, 5.6)
    H, high, top = 3, 0.92, 4.4
    for left, layer in (1.0, rnnkit.LSTM(4, H)), (6.75, rnnkit.GRU(4, H)):
        gates = rnnkit.EQUATIONS[layer.mode].gates
        axes.text(
            left,
            5.25,
            f"{type(layer).__name__}, {len(gates)}H rows",
            color=ink("ink"),
            size=13,
            va="center",
            weight="bold",
        )
        x = left
        for name, wide in ("weight_ih", 1.5), ("weight_hh", 1.5), ("bias_ih", 0.35), ("bias_hh", 0.35):
            assert getattr(layer, f"{name}_l0").size(0) == len(gates) * H
            for k, letter in enumerate(gates):
                box(axes, x, top - (k + 1) * high, wide, high, letter, letter)
            if wide > 1:
                axes.text(x + wide / 2, top + 0.27, name, color=ink("ink"), size=11.5, ha="center", va="center", **MONO)
            x += wide + 0.2
        bottom = top - len(gates) * high - 0.27
        axes.text(x - 0.2, bottom, "bias_ih, bias_hh", color=ink("ink"), size=11.5, ha="right", va="center", **MONO)
        for k in range(len(gates)):
            first, last = ("H" if n == 1 else f"{n}H" if n else "0" for n in (k, k + 1))
            y = top - (k + 0.5) * high
            axes.text(left - 0.12, y, f"{first}:{last}", ha="right", **SMALL | MONO)
    return figure


def order():
    """Where each entry of h_n comes from, for two layers and both directions."""
    L = 4
    seen = rnnkit.trace(nn.GRU(1, 1, num_layers=2, bidirectional=True), torch.zeros(L, 1)).seen
    figure, axes = sheet(11.2, 6.9)
    colour = {False: "f", True: "g"}
    for t in range(L):
        x = 1.75 + 1.55 * t
        axes.text(x + 0.5, 0.4, f"x[{t}]", color=ink("ink"), size=12.5, ha="center", va="center", **MONO)
        axes.text(x + 0.5, 6.6, f"output[{t}]", color=ink("ink"), size=11.5, ha="center", va="center", **MONO)
    axes.text(9.95, 6.6, "h_n", color=ink("ink"), size=14, **BOLD)
    for k, name in enumerate(seen):
        reverse, y = name.endswith("reverse"), 0.95 + 1.25 * k + 0.35 * (k // 2)
        letter = colour[reverse]
        axes.text(
            1.55, y + 0.35, name.replace("_", "\n_"), color=of(letter), size=11.5, ha="right", va="center", **MONO
        )
        last = 0 if reverse else L - 1
        for t in range(L):
            x = 1.75 + 1.55 * t
            thick = {"linewidth": 2.6, "zorder": 3} if t == last else {"facecolor": ink("panel")}
            box(axes, x, y, 1.0, 0.7, letter, f"h[{t}]", **thick)
            if t < L - 1:
                tip, tail = (x + 1.5, y + 0.35), (x + 1.05, y + 0.35)
                tip, tail = (tail, tip) if reverse else (tip, tail)
                axes.plot(*zip(tip, tail, strict=True), color=of(letter), linewidth=1.5)
                cells.head(axes, tip, tail, of(letter))
        x = 1.75 + 1.55 * last
        box(axes, 8.85, y, 2.2, 0.7, letter, f"h_n[{k}]", linewidth=2.6)
        path = (
            [(x + 1.0, y + 0.35), (8.85, y + 0.35)]
            if not reverse
            else [(x + 0.5, y), (x + 0.5, y - 0.2), (8.6, y - 0.2), (8.6, y + 0.35), (8.85, y + 0.35)]
        )
        axes.plot(*zip(*path, strict=True), color=of(letter), linewidth=1.5, linestyle=(0, (4, 2)))
        cells.head(axes, path[-1], path[-2], of(letter))
    return figure


def strip(axes, rows: dict[str, list[float]], steps: list[str], watch: dict[str, str], names: dict[str, str]) -> None:
    """Draw a row for each letter: a gate grows from the floor, what has a sign to both sides of a line."""
    for k, (letter, values) in enumerate(rows.items()):
        floor = len(rows) - 1 - k
        gate = letter in watch
        zero, unit = (floor + 0.12, 0.72) if gate else (floor + 0.48, 0.36)
        axes.text(-0.7, floor + 0.48, letter, color=of(letter), size=14, **BOLD)
        axes.text(-1.0, floor + 0.48, names[letter], ha="right", **SMALL | {"color": ink("ink"), "size": 11.5})
        axes.plot((-0.46, len(steps) - 0.54), (zero, zero), color=ink("faint"), linewidth=0.8)
        for t, value in enumerate(values):
            watched = watch.get(letter) == steps[t]
            if watched:
                axes.add_patch(Rectangle((t - 0.46, floor + 0.05), 0.92, 0.86, facecolor=pale(letter), zorder=0))
            high = value * unit
            solid = {"facecolor": of(letter), "edgecolor": of(letter)}
            axes.add_patch(Rectangle((t - 0.3, min(zero, zero + high)), 0.6, abs(high), linewidth=0.8, **solid))
    for t, step in enumerate(steps):
        axes.text(t, len(rows) + 0.2, step, ha="center", color=ink("ink"), size=11, va="center")


def gates():
    """What the gates of a trained LSTM and GRU do through time, and what to look for."""
    x = torch.tensor([1.0, -1, -1, 1, -1, -1, 1, 1, -1, 1, -1, -1])
    command = torch.tensor([0, 1, 1, 2, 1, 0, 1, 2, 2, 0, 1, 2])
    figure, _ = sheet(1, 1.12, 8.6)
    halves = (rnnkit.LSTM, "ask", 2, (0, 0.47, 1, 0.52)), (rnnkit.GRU, "flip", 1, (0, 0.035, 1, 0.38))
    for kind, third, seed, place in halves:
        network = watch_the_gates.train(kind, seed)
        seen = rnnkit.trace(network, watch_the_gates.encode(x, command)).seen["l0"]
        rows = {"x": x.tolist()} | {letter: values.flatten().tolist() for letter, values in seen.items()}
        axes = figure.add_axes(place, xlim=(-3.4, 11.7), ylim=(-0.1, len(rows) + 1.15))
        axes.axis("off")
        steps = [("write", "hold", third)[k] for k in command]
        watch = {letter: step for letter, step in watch_the_gates.WATCH.items() if letter in rows}
        strip(axes, rows, steps, watch, watch_the_gates.NAMES)
        axes.text(
            -3.3,
            len(rows) + 0.85,
            f"{kind.__name__} of one unit",
            size=14,
            weight="bold",
            color=ink("ink"),
            va="center",
        )
    told = "A bit is written, held, asked for or flipped. Shaded: the steps at which a gate has work to do."
    figure.text(0.02, 0.015, told, color=ink("ink"), size=11)
    return figure


def lengths(path: Path):
    """Time against length, torch.nn's and rnnkit's, of a CSV: columns length, nn, rnnkit, in ms; # begins a title."""
    lines = path.read_text().splitlines()
    told = [line.lstrip("# ") for line in lines if line.startswith("#")]
    data = [
        [float(number) for number in row.values()] for row in csv.DictReader(line for line in lines if line[:1] != "#")
    ]
    figure, _ = sheet(1, 0.62)
    axes = figure.add_axes((0.1, 0.16, 0.78, 0.64), facecolor=ink("paper"), xscale="log", yscale="log")
    at, *both = zip(*data, strict=True)
    for times, name, letter in zip(both, ("torch.nn", "rnnkit"), ("g", "f"), strict=True):
        axes.plot(at, times, "o-", color=of(letter), linewidth=2.2, markersize=6)
        axes.annotate(
            name,
            (at[-1], times[-1]),
            (10, 0),
            textcoords="offset points",
            color=of(letter),
            size=12.5,
            weight="bold",
            va="center",
        )
    axes.set_xticks(at, [f"{n:,.0f}" for n in at])
    top = 10 ** torch.tensor(max(map(max, both))).log10().ceil().int().item()
    marks = [m for m in (0.1, 1, 10, 100, 1000, 10_000, 100_000) if min(map(min, both)) / 10 < m <= top]
    axes.set_yticks(marks, [f"{m:,g} ms" if m < 1000 else f"{m // 1000:,g} s" for m in marks])
    axes.minorticks_off()
    axes.grid(color=ink("panel"), linewidth=1.2)
    axes.tick_params(colors=ink("ink"), length=0, labelsize=11)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("steps, both axes by powers", color=ink("ink"), size=11)
    figure.text(0.02, 0.93, told[0], color=ink("ink"), size=12.5, weight="bold", va="center")
    figure.text(0.02, 0.86, "\n".join(told[1:]), color=ink("faint"), size=10.5, va="center")
    return figure


def pictures(times: Path) -> dict[str, tuple]:
    """Return by its file's name each picture's drawing, and what it shows."""
    return {
        "lstm.svg": (lambda: cells.draw("LSTM"), "An LSTM cell"),
        "gru.svg": (lambda: cells.draw("GRU"), "A GRU cell"),
        "rows.svg": (rows, "The stacked rows of the weights"),
        "order.svg": (order, "The order of h_n for two layers and both directions"),
        "gates.svg": (gates, "Gates and states through time"),
        "lengths.svg": (lambda: lengths(times), "Time against length"),
    }


def main() -> None:
    """Draw all pictures, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="as lstm.svg; all, if none is named")
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--lengths", type=Path, default=HERE / "lengths.csv", metavar="FILE")
    parser.add_argument("--png", action="store_true", help="as PNG too, to look at")
    options = parser.parse_args()
    for name, (draw, about) in pictures(options.lengths).items():
        if not options.names or name in options.names:
            figure = draw()
            keep(figure, options.folder / name, about)
            if options.png:
                figure.savefig((options.folder / name).with_suffix(".png"), dpi=110)
            print(options.folder / name)


if __name__ == "__main__":
    main()
