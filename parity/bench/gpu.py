"""`python -m parity speed --device cuda`: how fast is the subject on a GPU beside torch.nn, which runs cuDNN there?

Times are by CUDA events: warmed up, in blocks of calls, all columns in turns, the median of the rounds. Training is the
gradients set to None, forward, a sum, and backward. A ratio a/b is the time of a by that of b: above 1, b is faster.

    nn, nn-graphed  torch.nn's module as it is, and captured in a CUDA graph
    eager, graphed  the subject's, likewise; training is captured as a whole, forward and backward
    fused           graphed, with the attribute `path` of the subject's module set to "fused", if it has one
    compiled        torch.compile(module, mode="reduce-overhead")
    blocks          the subject's `graphed(module, x)`, if it has one: some steps captured, and replayed along the batch
    bound           the matrix products of all steps in a CUDA graph, one after another, and nothing else

`cuDNN` says which algorithm torch has cuDNN run: a persistent kernel, or the standard one, a product a step. Peak
memory is what a training step allocates at its highest, gradients included. By `lengths`, the subject gets the padded
batch and where its rows end, on the device, and torch.nn the same rows packed ahead.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import shlex
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..grid import subject
from ..grid.run import tf32
from . import speed
from .speed import KINDS, Kind, Step, geometric_mean, megabytes
from .steps import WARM_UPS, Call, Compiled, Dry, Graphed, noise, products, timed

#: L, N, H_in, H, those that tell most first.
SIZES = {name: speed.SIZES[name] for name in ("small", "medium", "wide")}
SIZES |= {"large": (512, 64, 1024, 1024), **{name: speed.SIZES[name] for name in ("ptb", "tiny", "stream", "long")}}
DTYPES = ("float32", "tf32", "bfloat16", "float64", "float16")
FORMS = ("padded", "packed", "lengths")
WAYS = ("eager", "graphed", "fused", "compiled", "blocks")
COLUMNS = ("nn", *WAYS, "nn-graphed", "bound")
RATIOS = [f"nn/{way}" for way in WAYS] + ["nn-graphed/graphed", "nn-graphed/fused"]
RATIOS += ["bound/nn", "bound/graphed", "bound/fused"]
GOALS = (("nn/graphed", "standard", 1.0), ("nn/graphed", "persistent", 0.5), ("nn/eager", "", 0.3))
ROUNDS, MOST_CALLS = 15, 100  # of blocks, and in a block
HOST = {"inference": 60e-6, "training": 240e-6}  # seconds that a step takes to launch, by which cells are planned


@dataclass
class Cell:
    """What was measured for one configuration: by column the median and the least time in seconds, or what failed."""

    kind: str
    size: str
    mode: str
    dtype: str
    form: str
    cudnn: str
    seconds: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    rounds: int = 0

    def __str__(self) -> str:
        return ", ".join((self.dtype, self.form, self.kind, self.size, self.mode))

    def ratio(self, name: str) -> float | None:
        a, b = (self.seconds.get(column) for column in name.split("/"))
        return a / b if a and b else None

    def text(self, column: str) -> str:
        """Return the milliseconds of a column, or the name of the exception."""
        seconds = self.seconds.get(column)
        return self.errors.get(column, "").partition(":")[0] if seconds is None else f"{seconds * 1e3:.3f}"

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": {name: self.ratio(name) for name in RATIOS}}

    def failed(self, column: str, error: Exception) -> None:
        self.errors[column] = f"{type(error).__name__}: {error}"[:500]


def algorithm(kind: Kind, size: str, mode: str, dtype: str, form: str) -> str:
    """Say by torch's rule whether cuDNN runs a persistent kernel, in training both ways, or its standard algorithm."""
    _, N, H_in, H = SIZES[size]
    if "proj_size" in kind.options or form != "padded" or dtype == "float64":
        return "standard"
    forward, backward = (384, 256) if kind.layer == "RNN" else (192, 128)
    small = (backward if mode == "training" else forward) >= H
    aligned = H % 128 == H_in % 128 == N % 8 == 0 and H <= 1024 and N <= 128 and not kind.options
    large = kind.layer == "LSTM" or (kind.layer == "RNN" and (N < 96 or H < 896))
    return "persistent" if small or (dtype == "float16" and aligned and large) else "standard"


def shape(size: str, dry: bool) -> tuple[int, int, int, int]:
    """Return L, N, H_in and H, in a dry run tiny ones."""
    L, N, H_in, H = SIZES[size]
    return (min(L, 4), min(N, 3), min(H_in, 5), min(H, 6)) if dry else (L, N, H_in, H)


def inputs(L: int, N: int, H_in: int, form: str, **to: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return a batch for torch.nn, the subject's, and its options. Rows have L steps, or from half of them to all."""
    x = noise(L, N, H_in, **to)
    if form == "padded":
        return x, x, {}
    lengths = torch.cat([torch.tensor([L]), torch.randint((L + 1) // 2, L + 1, (N - 1,))]).sort(descending=True).values
    packed = pack_padded_sequence(x, lengths)
    if form == "packed":
        return packed, packed, {}
    return packed, x, {"lengths": lengths.to(x.device)}


def copied(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    if hasattr(module, "flatten_parameters"):
        module.flatten_parameters()  # type: ignore[operator]
    return module


def in_turns(cuda: Any, cell: Cell, steps: dict[str, Step], seconds: float) -> None:
    """Write the times of all steps to the cell, and the memory of those that nothing is captured of."""
    once: dict[str, float] = {}
    for name, step in steps.items():
        try:
            step()
            if isinstance(step, Call):
                step.module.zero_grad(set_to_none=True)
            cuda.reset_peak_memory_stats()
            before = cuda.memory_allocated()
            once[name] = timed(cuda, step, 1)
            if name in ("nn", "eager"):
                cell.memory[name] = cuda.max_memory_allocated() - before
        except Exception as error:
            cell.failed(name, error)
    block = seconds / ROUNDS / max(1, len(once))
    calls = {name: max(1, min(MOST_CALLS, round(block / max(time, 1e-6)))) for name, time in once.items()}
    cell.rounds = max(2, min(ROUNDS, int(seconds / max(1e-6, sum(once[name] * calls[name] for name in once)))))
    times = {name: [time] * (calls[name] == 1) for name, time in once.items()}
    for _ in range(cell.rounds):
        for name in list(times):
            try:
                times[name].append(timed(cuda, steps[name], calls[name]))
            except Exception as error:
                cell.failed(name, error)
                del times[name]
    cell.seconds = {name: statistics.median(of) for name, of in times.items()}
    cell.least = {name: min(of) for name, of in times.items()}


@lru_cache(maxsize=1)  # both modes have the same
def modules(name: str, namespace: Any, H_in: int, H: int, **to: Any) -> tuple[nn.Module, nn.Module]:
    """Build torch.nn's module of a kind and the subject's, with the same weights."""
    kind = next(kind for kind in KINDS if kind.name == name)
    theirs, ours = kind.build(nn, H_in, H), kind.build(namespace, H_in, H)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(**to), ours.to(**to)


def measure(cuda: Any, cell: Cell, kind: Kind, namespace: Any, ways: list[str], seconds: float) -> None:
    """Fill a cell in. What fails, fails alone: its column says how."""
    dry, training = cuda is Dry, cell.mode == "training"
    L, N, H_in, H = shape(cell.size, dry)
    to = {"device": "cpu" if dry else "cuda", "dtype": getattr(torch, cell.dtype.replace("tf32", "float32"))}
    torch.default_generator.manual_seed(0)
    x, own, options = inputs(L, N, H_in, cell.form, **to)
    step_sizes = x.batch_sizes.tolist() if isinstance(x, PackedSequence) else [N] * L
    theirs, ours = (module.train(training) for module in modules(kind.name, namespace, H_in, H, **to))

    def compiled() -> Step:
        torch.compiler.reset()
        module: Any = torch.compile(copied(ours), mode="reduce-overhead", disable=dry)
        step = Compiled(module, own, training, options)
        for _ in range(WARM_UPS):
            step()
        return step

    def fused() -> Step:
        module: Any = copied(ours)
        module.path = "fused"
        return Graphed(cuda, Call(module, own, training, options))

    def blocks() -> Step:
        module: Any = copied(ours)
        return Call(module, own, training, options, by=namespace.graphed(module, own))

    makers: dict[str, Callable[[], Step]] = {
        "nn": lambda: Call(theirs, x, training),
        "eager": lambda: Call(ours, own, training, options),
        "compiled": compiled,
        "graphed": lambda: Graphed(cuda, Call(copied(ours), own, training, options)),
        "fused": fused,
        "blocks": blocks,
        "bound": lambda: Graphed(cuda, products(kind, H_in, H, step_sizes, training, **to)),
        "nn-graphed": lambda: Graphed(cuda, Call(copied(theirs), x, training)),
    }
    wanted = {"nn", "bound", *ways} | ({"nn-graphed"} if "graphed" in ways else set())
    lacks = {"fused": not hasattr(ours, "path"), "blocks": cell.form != "padded" or not hasattr(namespace, "graphed")}
    steps: dict[str, Step] = {}
    for name in makers:
        if name in wanted and not lacks.get(name):
            try:
                steps[name] = makers[name]()
            except Exception as error:
                cell.failed(name, error)
    in_turns(cuda, cell, steps, seconds)


def synchronising(cuda: Any, kinds: list[Kind], forms: list[str], namespace: Any) -> list[str]:
    """Return what fails when synchronising with the host is an error in a training step, and how."""
    found, device = [], "cpu" if cuda is Dry else "cuda"
    L, N, H_in, H = shape("tiny", cuda is Dry)
    for form in forms:
        for kind in kinds:
            both = modules(kind.name, namespace, H_in, H, device=device)
            x, own, options = inputs(L, N, H_in, form, device=device)
            steps = Call(both[0], x, training=True), Call(both[1], own, training=True, options=options)
            for side, step in zip(("torch.nn", "subject"), steps, strict=True):
                try:
                    step()
                    cuda.set_sync_debug_mode("error")
                    step()
                except Exception as error:
                    found.append(f"{side}, {kind.name}, {form}: {type(error).__name__}: {error}".splitlines()[0])
                finally:
                    cuda.set_sync_debug_mode("default")
    return found


def cost(cell: Cell, kind: Kind, ways: list[str], seconds: float) -> float:
    """Estimate the seconds that a cell will take: a step's launches decide, and how often they are made."""
    directions = (2 if kind.options.get("bidirectional") else 1) * kind.options.get("num_layers", 1)
    once = SIZES[cell.size][0] * directions * HOST[cell.mode]
    graphs = sum(way in ("graphed", "fused") for way in ways)
    seconds += once * (5 + 2 * graphs) + 4 * ("compiled" in ways) + ("fused" in ways) + 0.2  # on average
    return seconds


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table(cells: list[Cell]) -> str:
    """Write Markdown: a line for each cell, with the columns that any of them has."""
    columns = [name for name in COLUMNS if any(name in cell.seconds or name in cell.errors for cell in cells)]
    ratios = [name for name in RATIOS if any(cell.ratio(name) for cell in cells)]
    heads = [*(f"{name} ms" for name in columns), *ratios, "peak MB: nn", "eager"]
    lines = ["| kind | size | mode | cuDNN | " + " | ".join(heads) + " |", "|---" * 4 + "|" + "---:|" * len(heads)]
    for cell in cells:
        row = [cell.kind, cell.size, cell.mode, cell.cudnn, *map(cell.text, columns)]
        row += [number(cell.ratio(name)) for name in ratios]
        row += [megabytes(cell.memory.get(name)) if cell.mode == "training" else "" for name in ("nn", "eager")]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def summary(cells: list[Cell]) -> str:
    """Return a line for each goal: the geometric mean of the ratios, how many cells reach it, and the worst."""
    lines = []
    for name, cudnn, goal in GOALS:
        group = [(cell.ratio(name) or 0, cell) for cell in cells if cell.ratio(name) and cudnn in ("", cell.cudnn)]
        title = f"{name} {f'where cuDNN is {cudnn}' if cudnn else 'over all'}, goal {goal}:"
        if not group:
            lines.append(f"{title} nothing measured")
            continue
        modes = {mode: [ratio for ratio, cell in group if cell.mode == mode] for mode in HOST}
        means = ", ".join(f"{mode} {geometric_mean(ratios):.2f}" for mode, ratios in modes.items() if ratios)
        reached, (worst, cell) = sum(ratio >= goal for ratio, _ in group), min(group, key=lambda pair: pair[0])
        mean = geometric_mean(ratio for ratio, _ in group)
        lines.append(
            f"{title} geometric mean {mean:.2f} ({means}); {reached} of {len(group)} cells reach it; "
            f"worst {worst:.2f} ({cell})"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(
        prog="python -m parity speed --device cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    subject.add_arguments(parser)
    add("--device", choices=["cuda"], default="cuda", help="a GPU; without, on a CPU, with other options")
    add("--dry", action="store_true", help="a CPU stands in for the GPU, sizes are tiny and times mean nothing")
    add("--kinds", nargs="+", choices=names, default=names, metavar="KIND", help="; ".join(names))
    add("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), metavar="SIZE", help=" ".join(SIZES))
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES[:3]), help="default: float32 tf32 bfloat16")
    add("--forms", nargs="+", choices=FORMS, default=["padded"], help="default: padded")
    add("--ways", nargs="+", choices=WAYS, default=["eager", "graphed"], help="default: eager graphed")
    add("--compiled-sizes", nargs="+", choices=list(SIZES), default=["tiny", "small"], metavar="SIZE",
        help="those of fused and compiled, which take long to compile; default: tiny small")  # fmt: skip
    add("--seconds", type=float, default=0.5, help="of timing for each cell; default: 0.5")
    add("--limit", type=float, metavar="SECONDS", help="leave out the cells that would end after so long a time")
    add("--sync", action="store_true", help="also say which kinds synchronise with the host in a training step")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE, after each cell")
    return parser


def main(argv: list[str]) -> int:
    """Return exit code 0: measured, whatever came out. 2: wrong usage."""
    start = time.monotonic()
    parser = _parser()
    options = parser.parse_args(argv)
    cuda: Any = Dry if options.dry else torch.cuda
    if not options.dry and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    if options.seconds <= 0 or (options.limit is not None and options.limit <= 0):
        parser.error("--seconds and --limit must be positive")
    namespace = subject.chosen(parser, options)
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    head = (
        f"{subject.title(options)} beside torch.nn {torch.__version__}, cuDNN {cudnn}, "
        f"{cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}, `python -m parity speed {shlex.join(argv)}`"
    )
    kinds = [kind for kind in KINDS if kind.name in options.kinds]
    sizes = [size for size in SIZES if size in options.sizes]
    left_out: Counter[str] = Counter()
    data: dict[str, Any] = {"head": head, "seconds": options.seconds, "sizes": SIZES, "left_out": left_out}
    if options.sync:
        with tf32(False):
            data["synchronises"] = synchronising(cuda, kinds, options.forms, namespace)
        print("Synchronise in a training step:", "; ".join(data["synchronises"]) or "none", flush=True)
    cells: list[Cell] = []
    gc.freeze()  # so that what follows collects only what is new

    for form, dtype in [(form, dtype) for form in options.forms for dtype in options.dtypes]:
        group: list[Cell] = []
        for size, kind, mode in [(size, kind, mode) for size in sizes for kind in kinds for mode in HOST]:
            cell = Cell(kind.name, size, mode, dtype, form, algorithm(kind, size, mode, dtype, form))
            late = size not in options.compiled_sizes
            ways = [way for way in options.ways if not (late and way in ("fused", "compiled"))]
            spent = time.monotonic() - start
            if options.limit and spent + cost(cell, kind, ways, options.seconds) > options.limit:
                left_out[f"{dtype} {form} {size}"] += 1
                continue
            try:
                with tf32(dtype == "tf32"):
                    measure(cuda, cell, kind, namespace, ways, options.seconds)
            except Exception as error:
                cell.failed("nn", error)
            gc.collect()
            with suppress(Exception):
                cuda.empty_cache()
            group.append(cell)
            figures = [f"{name} {cell.text(name)}" for name in COLUMNS if name in cell.seconds]
            figures += [f"{name} {error.splitlines()[0]}" for name, error in cell.errors.items()]
            spent = time.monotonic() - start
            print(f"{spent:.0f} s: {cell} ({cell.cudnn}): {', '.join(figures)}", file=sys.stderr, flush=True)
            if options.json:
                data["cells"] = [cell.figures() for cell in cells + group]
                options.json.write_text(json.dumps(data, indent=1) + "\n")
        cells += group
        if group:
            print(f"\n{dtype}, {form}: {head}\n\n{table(group)}\n\n{summary(group)}", flush=True)
    gc.unfreeze()
    if left_out:
        print("\nCells left out for want of time: " + "; ".join(f"{name} {n}" for name, n in left_out.items()))
    print(f"\nOver all\n{summary(cells)}")
    return 0
