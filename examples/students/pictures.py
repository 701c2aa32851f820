"""Draw the pictures of this page, as SVG: python examples/students/pictures.py [--folder FOLDER]

Each is drawn from what rnnkit's own code says: an equation run on wires, the letters of a record, the keys and
values of a trace. Needs the extra `examples`. `--lengths FILE.json` says which times are drawn against the length.
"""

import argparse
import json
import sys
from pathlib import Path

import cells
import shapes
import torch
from ink import ink, keep, of, pale, sheet
from matplotlib.patches import Rectangle
from shapes import BOLD, SMALL

import rnnkit

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import watch_the_gates  # noqa: E402
from plot import NAMES  # noqa: E402


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
    figure, _ = sheet(1, 0.92, 8.6)
    halves = (rnnkit.LSTM, "ask", 2, (0, 0.47, 1, 0.52)), (rnnkit.GRU, "flip", 1, (0, 0.035, 1, 0.38))
    for kind, third, seed, place in halves:
        _, steps, seen = watch_the_gates.watched(kind, third, seed)
        rows = {letter: values.flatten().tolist() for letter, values in seen.items()}
        axes = figure.add_axes(place, xlim=(-3.4, 11.7), ylim=(-0.1, len(rows) + 1.15))
        axes.axis("off")
        watch = {letter: step for letter, step in watch_the_gates.WATCH.items() if letter in rows}
        strip(axes, rows, steps, watch, NAMES)
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


def plain(axes) -> None:
    """Leave of a chart's frame a faint grid."""
    axes.minorticks_off()
    axes.grid(color=ink("panel"), linewidth=1.2)
    axes.tick_params(colors=ink("ink"), length=0, labelsize=11)
    for side in axes.spines.values():
        side.set_visible(False)


def lengths(path: Path):
    """Time against length of a training step of a GRU, as `python -m parity speed --ragged --json FILE` measures it."""
    measured = json.loads(path.read_text())
    rows = [row for row in measured["rows"] if row["kind"] == "GRU"]
    at = [row["length"] for row in rows]
    lines = ("theirs", "torch.nn", "g"), ("ours_packed", "rnnkit", "f"), ("ours_by_lengths", "lengths=", "i")
    both = [[1000 * row[way] for row in rows] for way, *_ in lines]
    figure, _ = sheet(1, 0.62)
    axes = figure.add_axes((0.13, 0.15, 0.71, 0.6), facecolor=ink("paper"), xscale="log", yscale="log")
    for times, (_, name, letter), up in zip(both, lines, (0, 7, -7), strict=True):
        axes.plot(at, times, "o-", color=of(letter), linewidth=2.2, markersize=6)
        style = {"color": of(letter), "size": 12.5, "weight": "bold", "va": "center"}
        axes.annotate(name, (at[-1], times[-1]), (10, up), textcoords="offset points", **style)
    axes.set_xticks(at, [f"{n:,.0f}" for n in at])
    top = 10 ** torch.tensor(max(map(max, both))).log10().ceil().int().item()
    marks = [m for m in (0.1, 1, 10, 100, 1000, 10_000, 100_000) if min(map(min, both)) / 10 < m <= top]
    axes.set_yticks(marks, [f"{m:,g} ms" if m < 1000 else f"{m // 1000:,g} s" for m in marks])
    plain(axes)
    axes.set_xlabel("L, steps (both axes logarithmic)", color=ink("ink"), size=11)
    told = "Training on rows of lengths from 1 to L, packed and by lengths="
    where = f"{measured['about']}\n{measured['head'].partition(' beside ')[2]}"
    figure.text(0.02, 0.93, told, color=ink("ink"), size=12.5, weight="bold", va="center")
    figure.text(0.02, 0.89, where, color=ink("faint"), size=10.5, va="top")
    return figure


def gradients():
    """How much of the loss's derivative by c arrives at each step, by the bias of the forget gate."""
    figure, _ = sheet(1, 0.62)
    axes = figure.add_axes((0.2, 0.16, 0.7, 0.68), facecolor=ink("paper"), yscale="log")
    L, H = 40, 16
    for bias, letter in (4, "f"), (1, "i"), (0, "g"), (-1, "c"):
        torch.manual_seed(0)
        cell = rnnkit.LSTMCell(H, H, dtype=torch.float64)
        with torch.no_grad():
            cell.bias_ih[H : 2 * H] = bias  # the rows of f
        state, cs = cell(torch.zeros(1, H, dtype=torch.float64)), []
        for x in torch.randn(L, 1, H, dtype=torch.float64):
            state = cell(x, state)
            cs.append(state[1])
        left = [dc.norm().item() for dc in torch.autograd.grad(state[0].sum(), cs)]
        axes.plot(range(L), left, color=of(letter), linewidth=2.2)
        name = f"f's bias {bias}".replace("-", "−")  # noqa: RUF001
        axes.text(-0.8, left[0], name, color=of(letter), size=12, weight="bold", ha="right", va="center")
    axes.yaxis.tick_right()
    axes.set_yticks([10.0**n for n in range(-15, 1, 3)], ["1e-15", "1e-12", "1e-9", "1e-6", "0.001", "1"])
    plain(axes)
    axes.set_xlabel(f"step t, of {L}", color=ink("ink"), size=11)
    bold = {"color": ink("ink"), "size": 12.5, "weight": "bold", "va": "center"}
    figure.text(0.02, 0.93, "|dc| at step t, for a loss at the last step", **bold)
    return figure


def pictures(times: Path) -> dict[str, tuple]:
    """Return by its file's name each picture's drawing, and what it shows."""
    return {
        "lstm.svg": (lambda: cells.draw("LSTM"), "An LSTM cell"),
        "gru.svg": (lambda: cells.draw("GRU"), "A GRU cell"),
        "rows.svg": (shapes.rows, "The stacked rows of the weights"),
        "order.svg": (shapes.order, "The order of h_n for two layers and both directions"),
        "packed.svg": (shapes.packed, "A packed batch through time"),
        "projection.svg": (shapes.projection, "The shapes of an LSTM with a projection"),
        "gradients.svg": (gradients, "What is left of a gradient, step by step back"),
        "gates.svg": (gates, "Gates and states through time"),
        "lengths.svg": (lambda: lengths(times), "Time against length"),
    }


def main() -> None:
    """Draw all pictures, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="as lstm.svg; all, if none is named")
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--lengths", type=Path, default=HERE / "lengths.json", metavar="FILE")
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
