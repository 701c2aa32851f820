"""`python -m parity speed --ragged`: what a training step costs on rows of unequal lengths, as these grow.

torch.nn runs them packed, and pays for it: each step of its backward fills a gradient of all rows, so that its time
grows with the square of the length. Beside it stand the subject on the same packed rows, and by `lengths=`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..grid import subject
from .speed import Step, Stopwatch, headline

KINDS = ("GRU", "LSTM", "RNN")
LENGTHS = (50, 200, 800, 2000)
N, SIZE = 16, 64  # of the batch; of input and state


@dataclass(frozen=True)
class Row:
    """The least time in seconds of a training step, forward, a sum and backward, in each way."""

    kind: str
    length: int
    steps: int  # of all rows
    theirs: float
    ours_packed: float
    ours_by_lengths: float


def least(step: Step, watch: Stopwatch) -> float:
    """Return the least time of a step, called as long as the watch says, or once if that takes longer."""
    times: list[float] = []
    while not times or sum(times) < watch.seconds:
        times.append(watch.once(step))
    return min(times)


def measure(kind: str, length: int, namespace: object, watch: Stopwatch) -> Row:
    """Measure the three ways, on lengths drawn from 1 to `length`, of which one is that."""
    torch.manual_seed(0)
    lengths = torch.randint(1, length + 1, (N,))
    lengths[0] = length
    theirs = getattr(nn, kind)(SIZE, SIZE)
    ours = getattr(namespace, kind)(SIZE, SIZE)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(length, N, SIZE)

    def by_packing(module: nn.Module) -> Step:
        def step() -> None:
            output, _ = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
            pad_packed_sequence(output)[0].sum().backward()  # type: ignore[no-untyped-call]

        return step

    def output() -> Tensor:
        first: Tensor = ours(x, lengths=lengths)[0]
        return first

    ways: list[Step] = [by_packing(theirs), by_packing(ours), lambda: output().sum().backward()]  # type: ignore[no-untyped-call]
    for way in ways if length <= min(LENGTHS) else ways[1:]:
        way()  # to warm up; long ones by torch.nn need none
    rows = pack_padded_sequence(x, lengths, enforce_sorted=False).data.size(0)
    return Row(kind, length, rows, *(least(way, watch) for way in ways))


def table(rows: list[Row]) -> str:
    """Write Markdown: a line for each kind and length."""
    lines = [
        "| kind | longest row | steps in all | torch.nn packed, ms | subject packed, ms | by lengths, ms | ratio |",
        "|---|" + "---:|" * 6,
    ]
    for row in rows:
        times = (f"{seconds * 1e3:,.1f}" for seconds in (row.theirs, row.ours_packed, row.ours_by_lengths))
        ratio = row.theirs / row.ours_by_lengths
        lines.append(f"| {row.kind} | {row.length} | {row.steps:,} | {' | '.join(times)} | **{ratio:.2f}** |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Return exit code 0: measured, whatever came out. 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m parity speed --ragged", description=__doc__.splitlines()[0])
    subject.add_arguments(parser)
    parser.add_argument("--ragged", action="store_true", help="this table")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all three")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="default: 50 200 800 2000")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure; default: 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    options = parser.parse_args(argv)
    if options.seconds <= 0 or min(options.lengths) < 1:
        parser.error("--seconds and --lengths must be positive")
    namespace = subject.chosen(parser, options)
    for kind in options.kinds:
        if "lengths" not in inspect.signature(getattr(namespace, kind).forward).parameters:
            parser.error(f"the subject's {kind} takes no lengths=")
    torch.set_num_threads(1)
    head = f"{headline(options)}, one thread"
    about = f"A training step in float32, {N} rows, input and state of {SIZE}"
    print(f"{head}\n{about}\n")
    rows: list[Row] = []
    for kind in options.kinds:
        for length in options.lengths:
            rows.append(measure(kind, length, namespace, Stopwatch(options.seconds)))
            print(f"{kind}, {length}: {rows[-1].theirs / rows[-1].ours_by_lengths:.2f}", file=sys.stderr, flush=True)
    print(table(rows))
    if options.json:
        data = {"head": head, "about": about, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0
