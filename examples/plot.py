"""What did the gates do? `plot` draws what `rnnkit.trace` has seen. The extra `examples` brings matplotlib for it.

from plot import plot

plot(rnnkit.trace(lstm, input).seen["l0"]).figure.savefig("gates.png")
"""

import torch

NAMES = {"x": "input", "i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate", "c": "cell"}
NAMES |= {"r": "reset gate", "z": "update gate", "n": "candidate", "h": "output"}


def plot(seen, axes=None, *, row=0, steps=None, watch=None):
    """Draw one layer and direction of a trace, time to the right: a band for each letter, in it a line for each unit.

    seen   letters and their tensors, (L, N, H) or (L, H): `trace(...).seen["l0"]`, with others added at will
    axes   matplotlib's, to draw on; default: those of a new figure
    row    which one of the batch; default: the first
    steps  L words below the steps, such as characters; default: their numbers
    watch  a letter and the word of `steps` at which its numbers are framed: {"f": "write"}; default: none
    returns the axes

    What lies between 0 and 1, as gates do, is green on one scale; what has a sign is blue below zero and red above, on
    another. Layers of one unit have their numbers written in. Raises ValueError for steps that are not L.
    """
    bands = {letter: (t if t.dim() == 2 else t[:, row]).detach().float().T.cpu() for letter, t in seen.items()}
    values, units = torch.cat([*bands.values()]), [len(band) for band in bands.values()]
    if steps is not None and len(steps) != values.size(1):
        raise ValueError(f"steps should be {values.size(1)} words, got: {len(steps)}")
    if axes is None:
        from matplotlib.figure import Figure

        figure = Figure(
            figsize=(min(16, 2 + 0.6 * values.size(1)), 1 + min(9, 0.35 * len(values))), layout="constrained"
        )
        axes = figure.subplots()
    is_gate = torch.cat([((band >= 0) & (band <= 1)).all().expand(len(band)) for band in bands.values()])
    largest = max(1.0, values[~is_gate].abs().max().item()) if not is_gate.all() else 1.0
    for which, colours, least, most in (is_gate, "Greens", 0, 1), (~is_gate, "RdBu_r", -largest, largest):
        shown = values.masked_fill(~which[:, None], torch.nan)
        # Half as much again on both scales, so that black numbers can be read on the darkest colour.
        image = axes.imshow(
            shown.numpy(), cmap=colours, vmin=1.5 * least, vmax=1.5 * most, aspect="auto", interpolation="none"
        )
        if which.any():
            label = "0 shut, 1 open" if least == 0 else "signed"
            axes.figure.colorbar(image, ax=axes, ticks=(least, 0, most), format="{x:.3g}", label=label, aspect=30)
    ends = torch.tensor(units).cumsum(0)
    axes.hlines(ends[:-1] - 0.5, -0.5, values.size(1) - 0.5, color="white", linewidth=2)
    names = [f"{NAMES.get(letter, '')}  {letter}".strip() for letter in bands]
    axes.set_yticks((ends - torch.tensor(units) / 2 - 0.5).tolist(), names)
    if steps is not None:
        axes.set_xticks(range(len(steps)), steps)
    if set(units) == {1}:
        for y, (letter, band) in enumerate(bands.items()):
            for x, value in enumerate(band[0].tolist()):
                watched = steps is not None and (watch or {}).get(letter) == steps[x]
                frame = {"edgecolor": "black", "facecolor": "none"} if watched else None
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", bbox=frame)
    return axes
