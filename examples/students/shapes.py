"""The pictures of what lies where: the rows of the weights, the entries of h_n, a packed batch, a projection."""

import cells
import torch
from ink import MONO, ink, of, pale, sheet
from matplotlib.patches import Rectangle
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnkit

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
        axes.text(x + 0.5, 0.4, f"[{t}]", color=ink("ink"), size=12.5, ha="center", va="center", **MONO)
        axes.text(x + 0.5, 6.6, f"[{t}]", color=ink("ink"), size=12.5, ha="center", va="center", **MONO)
    axes.text(9.95, 6.6, "h_n", color=ink("ink"), size=14, **BOLD)
    for name, y in ("x", 0.4), ("output", 6.6):
        axes.text(1.55, y, name, color=ink("ink"), size=12.5, ha="right", va="center", **MONO)
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


def packed():
    """Which rows of a packed batch are at work at which step, and where each ends."""
    lengths = [3, 5, 2]
    batch = pack_sequence([torch.tensor([[float(10 * k + t)] for t in range(n)]) for k, n in enumerate(lengths)], False)
    places = batch.data.flatten().tolist()
    figure, axes = sheet(11.2, 4.9)
    left, wide, high = 2.2, 1.15, 0.85
    letters = "ifg"
    for t in range(max(lengths)):
        x = left + t * wide + wide / 2
        axes.text(x, 4.55, f"step {t}", ha="center", **SMALL | {"color": ink("ink")})
        axes.text(x, 0.45, int(batch.batch_sizes[t]), ha="center", **SMALL | MONO | {"color": ink("ink"), "size": 13})
    axes.text(left - 0.2, 0.45, "batch_sizes", ha="right", **SMALL | MONO | {"color": ink("ink")})
    axes.text(left - 0.2, 4.55, "rows as given", ha="right", **SMALL | {"color": ink("ink")})
    for k, n in enumerate(lengths):
        y, letter = 3.25 - k * 1.15, letters[k]
        axes.text(left - 0.2, y + high / 2, f"{k}: length {n}", ha="right", **SMALL | {"color": ink("ink")})
        for t in range(max(lengths)):
            if t < n:
                box(axes, left + t * wide, y, wide - 0.15, high, letter, f"{places.index(10 * k + t)}")
            else:
                look = {"facecolor": "none", "edgecolor": ink("faint"), "linestyle": (0, (2, 3))}
                axes.add_patch(Rectangle((left + t * wide, y), wide - 0.15, high, linewidth=1, **look))
                axes.text(left + t * wide + wide / 2 - 0.07, y + high / 2, "waits", ha="center", **SMALL)
        box(axes, 8.9, y, 2.05, high, letter, f"h_n[:, {k}]")
        lane = [(left + n * wide - 0.65, y), (left + n * wide - 0.65, y - 0.15), (8.5, y - 0.15), (8.5, y + high / 2)]
        lane = lane if n < max(lengths) else [(left + n * wide - 0.15, y + high / 2)]
        lane.append((8.9, y + high / 2))
        axes.plot(*zip(*lane, strict=True), color=of(letter), linewidth=1.5)
        cells.head(axes, lane[-1], lane[-2], of(letter))
    return figure


def projection():
    """What a projection does to shapes: to scale, for H_in = 4, H_cell = 6, H_out = 2."""
    lstm = rnnkit.LSTM(4, 6, proj_size=2)
    figure, axes = sheet(11.2, 5.9)
    unit, top = 0.19, 5.3

    def matrix(x: float, y: float, name: str, shape: tuple[int, ...], letters: str, words: str) -> None:
        """Draw a matrix or a column, its upper left corner at (x, y), its rows parted among `letters`."""
        rows, columns = shape[0], (shape[1] if len(shape) > 1 else 1)
        each = rows / len(letters) * unit
        for k, letter in enumerate(letters):
            box(axes, x, y - (k + 1) * each, columns * 2 * unit, each, letter)
        centre = x + columns * unit
        axes.text(centre, y + 0.2, name, ha="center", va="center", color=ink("ink"), size=11.5, **MONO)
        axes.text(centre, y - rows * unit - 0.22, words, ha="center", **SMALL | {"size": 10.5})

    def size(name: str) -> tuple[int, ...]:
        return tuple(lstm.get_parameter(f"{name}_l0").shape)

    matrix(0.35, top, "weight_ih", size("weight_ih"), "ifgo", "4 H_cell × H_in")  # noqa: RUF001
    matrix(3.05, top, "weight_hh", size("weight_hh"), "ifgo", "4 H_cell × H_out")  # noqa: RUF001
    _, (h, c) = lstm(torch.zeros(1, 1, 4))
    matrix(5.05, top - 1.7, "c'", (c.size(-1),), "c", "H_cell")
    matrix(6.15, top - 1.7, "m", (c.size(-1),), "h", "H_cell")
    matrix(7.35, top - 2.08, "weight_hr", size("weight_hr"), "o", "H_out × H_cell")  # noqa: RUF001
    matrix(10.4, top - 2.08, "h'", (h.size(-1),), "h", "H_out")
    for x, y, wide in (
        (4.25, top - 2.27, 0.6),
        (5.57, top - 2.27, 0.45),
        (6.67, top - 2.27, 0.55),
        (9.75, top - 2.27, 0.5),
    ):
        axes.plot((x, x + wide), (y, y), color=ink("ink"), linewidth=1.5)
        cells.head(axes, (x + wide, y), (x, y), ink("ink"))
    axes.text(5.05, 1.3, "m = o*tanh(c')", color=ink("ink"), size=12, va="center", **MONO)
    axes.text(5.05, 0.85, "h' = W_hr m: what the layer hands on,", color=ink("ink"), size=12, va="center")
    axes.text(5.05, 0.4, "and what the next step gets", color=ink("ink"), size=12, va="center")
    return figure
