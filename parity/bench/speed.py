"""`python -m parity speed`: how fast is the subject, and how much memory does it take, beside torch.nn?

Both run in one process, in turns, so that a drift of the machine hits both; a time is the least of many. A ratio is
torch.nn's time by the subject's: above 1 the subject is faster. Training is forward, a sum, and backward.

The roofline is the time that a step's matrix products alone take, at the best rate that any product reached in the same
run. Peak memory is what a training step adds to the process at its highest, gradients included (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..grid import subject

SIZES = {  # L, N, H_in, H
    "tiny": (5, 3, 10, 20),
    "stream": (50, 1, 64, 64),
    "small": (100, 32, 64, 128),
    "medium": (100, 64, 128, 256),
    "wide": (100, 16, 256, 512),
    "ptb": (35, 20, 650, 650),
    "long": (1000, 8, 40, 256),
}
Step = Callable[[], object]
COMPUTE_BOUND = ("small", "medium", "wide", "ptb", "long")


@dataclass(frozen=True)
class Kind:
    """A configuration, and whether torch.nn has oneDNN run it."""

    name: str
    layer: str
    onednn: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, namespace: Any, H_in: int, H: int) -> nn.Module:
        options = {name: H // 2 if name == "proj_size" else value for name, value in self.options.items()}
        module: nn.Module = getattr(namespace, self.layer)(H_in, H, **options)
        return module

    def multiplications(self, L: int, N: int, H_in: int, H: int, training: bool) -> int:
        """Count those of all matrix products. Backward, the input of the first layer asks for no gradient."""
        gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[self.layer]
        D, layers = 2 if self.options.get("bidirectional") else 1, self.options.get("num_layers", 1)
        H_out = H // 2 if "proj_size" in self.options else H
        total = 0
        for k in range(layers):
            x = (H_in if k == 0 else D * H_out) * gates * H
            h = H_out * gates * H + (H_out * H if H_out != H else 0)
            times_x = 1 if not training else 2 if k == 0 else 3
            total += D * (x * times_x + h * (3 if training else 1))
        return L * N * total


KINDS = [
    Kind("RNN", "RNN"),
    Kind("GRU", "GRU"),
    Kind("LSTM projection", "LSTM", options={"proj_size": True}),
    Kind("GRU 2 layers, both directions", "GRU", options={"num_layers": 2, "bidirectional": True}),
    Kind("LSTM", "LSTM", onednn=True),
    Kind("LSTM 2 layers, both directions", "LSTM", onednn=True, options={"num_layers": 2, "bidirectional": True}),
]


@dataclass
class Cell:
    """What was measured for one kind, size, mode and number of threads; times in seconds."""

    kind: str
    size: str
    mode: str
    threads: int
    theirs: float
    ours: float
    ratio_of_medians: float
    roofline: float
    their_memory: int | None = None
    our_memory: int | None = None
    compiled: float | None = None

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def inference(module: nn.Module, x: Tensor) -> Step:
    return lambda: torch.no_grad()(module)(x)


def training(module: nn.Module, x: Tensor) -> Step:
    return lambda: module(x)[0].sum().backward()


MODES = {"inference": inference, "training": training}


@dataclass(frozen=True)
class Stopwatch:
    """How long to measure, and by which clock."""

    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def once(self, step: Step) -> float:
        start = self.clock()
        step()
        return self.clock() - start

    def in_turns(self, *steps: Step) -> list[list[float]]:
        """Return the times of each, all of them called in turns."""
        for step in steps:
            step()
            step()
        rounds = max(5, min(2000, int(self.seconds / sum(map(self.once, steps)))))
        times = [[self.once(step) for step in steps] for _ in range(rounds)]
        return [list(own) for own in zip(*times, strict=True)]


def best_rate(seconds: float = 0.5) -> float:
    """Measure multiplications a second in the best of some large products, by each of torch's libraries."""
    x, w = torch.randn(512, 1024), torch.randn(1024, 1024)
    products: list[Step] = [lambda: torch.mm(x, w.t())]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # type: ignore[no-untyped-call]
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
    with torch.no_grad():
        return x.numel() * len(w) / min(min(times) for times in Stopwatch(seconds).in_turns(*products))


def peak_memory(module: nn.Module, x: Tensor) -> int | None:
    """Measure the bytes that a training step adds to the process at its highest; None where the system doesn't say."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    step = training(module, x)
    step()
    module.zero_grad(set_to_none=True)
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # the highest so far is forgotten

    def kilobytes(entry: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(entry))

    before = kilobytes("VmRSS")
    step()
    peak = kilobytes("VmHWM")
    module.zero_grad(set_to_none=True)
    return max(0, peak - before) * 1024


def measure(
    kind: Kind, size: str, threads: int, namespace: Any, watch: Stopwatch, rate: float, compiled: bool
) -> Iterable[Cell]:
    """Measure both modes; `rate` is that of the best product."""
    L, N, H_in, H = SIZES[size]
    torch.manual_seed(0)
    theirs = kind.build(nn, H_in, H)
    ours = kind.build(namespace, H_in, H)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(L, N, H_in)
    for mode, run in MODES.items():
        times = watch.in_turns(run(theirs, x), run(ours, x))
        medians = statistics.median(times[0]) / statistics.median(times[1])
        roofline = kind.multiplications(L, N, H_in, H, mode == "training") / rate
        cell = Cell(kind.name, size, mode, threads, min(times[0]), min(times[1]), medians, roofline)
        if mode == "training":
            cell.their_memory, cell.our_memory = peak_memory(theirs, x), peak_memory(ours, x)
        elif compiled and size in ("tiny", "stream"):
            torch.compiler.reset()
            cell.compiled = min(watch.in_turns(run(torch.compile(ours), x))[0])  # type: ignore[arg-type]
        yield cell


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f}"


def table(cells: list[Cell]) -> str:
    """Write Markdown: a line for each kind and size."""
    lines = [
        "| kind | size | inference: torch.nn ms | subject ms | ratio | roofline |"
        " training: torch.nn ms | subject ms | ratio | roofline | peak MB: torch.nn | subject |",
        "|---|---|" + "---:|" * 10,
    ]
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        row = rows.setdefault((cell.kind, cell.size), [])
        share = f"{cell.roofline / cell.ours:.0%}"
        row += [f"{cell.theirs * 1e3:.3f}", f"{cell.ours * 1e3:.3f}", f"**{cell.ratio:.2f}**", share]
        if cell.mode == "training":
            row += [megabytes(cell.their_memory), megabytes(cell.our_memory)]
    lines += [f"| {kind} | {size} | " + " | ".join(row) + " |" for (kind, size), row in rows.items()]
    return "\n".join(lines)


def summary(cells: list[Cell], kinds: list[Kind]) -> str:
    """Return geometric means of the ratios and the worst cells, for what torch.nn runs natively and by oneDNN."""
    lines = []
    for onednn, title in ((False, "torch.nn native"), (True, "torch.nn by oneDNN")):
        names = [kind.name for kind in kinds if kind.onednn == onednn]
        for mode in MODES:
            group = [cell for cell in cells if cell.kind in names and cell.mode == mode]
            bound = [cell.ratio for cell in group if cell.size in COMPUTE_BOUND]
            if group:
                worst = min(group, key=lambda cell: cell.ratio)
                mean = f"geometric mean {geometric_mean(bound):.2f} from small to long, " if bound else ""
                mean += f"{geometric_mean(cell.ratio for cell in group):.2f} over all"
                lines.append(f"{title}, {mode}: {mean}; worst {worst.ratio:.2f} ({worst.kind}, {worst.size})")
    measured = [cell for cell in cells if cell.our_memory is not None and cell.their_memory]
    if measured:
        share = geometric_mean(max(1, cell.our_memory or 1) / (cell.their_memory or 1) for cell in measured)
        lines.append(f"peak memory of training, subject by torch.nn: geometric mean {share:.2f}")
    for cell in cells:
        if cell.compiled is not None:
            ratio = cell.theirs / cell.compiled
            lines.append(
                f"torch.compile, {cell.kind}, {cell.size}, inference: {cell.compiled * 1e3:.3f} ms, ratio {ratio:.2f}"
            )
    return "\n".join(lines)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def headline(options: argparse.Namespace) -> str:
    """Say what is measured, when and where."""
    return f"{subject.title(options)} beside torch.nn {torch.__version__}, {time.strftime('%Y-%m-%d')}, {processor()}"


def _parser() -> argparse.ArgumentParser:
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(prog="python -m parity speed", description=__doc__.splitlines()[0])
    add = parser.add_argument
    subject.add_arguments(parser)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="cuda has other options: --device cuda --help")
    add("--ragged", action="store_true", help="rows of unequal lengths, packed and by lengths=: --ragged --help")
    add("--kinds", nargs="+", choices=names, default=names, metavar="KIND", help="; ".join(names))
    add("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), metavar="SIZE", help=" ".join(SIZES))
    add("--threads", nargs="+", type=int, default=[1], metavar="N", help="numbers of threads; default: 1")
    add("--seconds", type=float, default=1.0, help="for each cell; default: 1")
    add("--quick", action="store_true", help="a tenth of a second for each cell")
    add("--compile", action="store_true", help="tiny and stream also with the subject compiled")
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of this process, for busy machines")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Return exit code 0: measured, whatever came out. 2: wrong usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    if min(options.threads) < 1 or options.seconds <= 0:
        parser.error("--threads and --seconds must be positive")
    namespace = subject.chosen(parser, options)
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
    seconds = 0.1 if options.quick else options.seconds
    watch = Stopwatch(seconds, time.process_time if options.clock == "cpu" else time.perf_counter)
    kinds = [kind for kind in KINDS if kind.name in options.kinds]

    head = headline(options)
    print(head)
    results: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    for threads in options.threads:
        torch.set_num_threads(threads)
        rate = best_rate()
        cells: list[Cell] = []
        for kind in kinds:
            for size in options.sizes:
                cells += measure(kind, size, threads, namespace, watch, rate, options.compile)
                ratios = ", ".join(f"{cell.mode} {cell.ratio:.2f}" for cell in cells[-len(MODES) :])
                print(f"{kind.name}, {size}: {ratios}", file=sys.stderr, flush=True)
        print(f"\n{threads} thread{'s' * (threads > 1)}, best product {2e-9 * rate:.0f} GFLOP/s\n\n{table(cells)}\n")
        print(summary(cells, kinds), flush=True)
        results += [{**asdict(cell), "ratio": cell.ratio} for cell in cells]
    torch.set_num_threads(before)
    if options.json:
        data = {"head": head, "clock": options.clock, "seconds": seconds, "cells": results}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0
