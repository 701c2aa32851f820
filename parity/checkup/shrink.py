"""The smallest case that still differs, and a script that shows it with torch alone."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..grid.cases import Case
from ..grid.run import Draw, Observations, Sizes, draw, observe
from .probes import ALL, EXACT

SIMPLER: tuple[dict[str, Any], ...] = (
    {"special": ""}, {"dropout": ""}, {"layers": 1}, {"bidirectional": False}, {"batch_first": False},
    {"form": "padded"}, {"hx": False}, {"bias": False}, {"kind": "LSTM"},
)  # fmt: skip


@dataclass
class Smallest:
    """A failing problem that nothing can be taken from, and what both sides show on it."""

    case: Case
    drawn: Draw
    ours: Observations
    theirs: Observations
    tensor: str  # the one that differs most

    @property
    def is_gradient(self) -> bool:
        return self.tensor.startswith("grad of ")


def differing(ours: Observations, theirs: Observations, tolerance: float = 1e-6) -> str:
    """Name the tensor that differs, the outputs' first; "" if none does, or if the subject did not run."""
    if theirs.error or not ours.tensors:
        return ""
    for name, true in theirs.tensors.items():
        seen = ours.tensors.get(name)
        if true is None or (seen is None and not true.any()):
            continue
        if seen is None or seen.shape != true.shape:
            return name
        if true.numel() and not bool((seen - true).abs().max() <= tolerance * max(1.0, true.abs().max().item())):
            return name
    return ""


def attempt(subject: Any, case: Case, drawn: Draw, reference: Any = torch.nn) -> Smallest | None:
    """Run a problem on both sides. None if they don't differ."""
    theirs, ours = (observe(namespace, case, drawn, EXACT) for namespace in (reference, subject))
    tensor = differing(ours, theirs)
    return Smallest(case, drawn, ours, theirs, tensor) if tensor else None


def shrink(subject: Any, case: Case, drawn: Draw, reference: Any = torch.nn) -> Smallest | None:
    """Take away what can be taken away while the subject still differs. None if it doesn't differ to begin with."""
    best = attempt(subject, case, drawn, reference)
    if best is None:
        return None

    def better(case: Case, drawn: Draw) -> bool:
        """Keep a simpler problem, unless it shows a gradient alone where a value differed."""
        nonlocal best
        found = attempt(subject, case, drawn, reference)
        if found is None or best is None or (found.is_gradient and not best.is_gradient):
            return False
        best = found
        return True

    for simpler in SIMPLER:
        other = replace(best.case, **simpler)
        if other != best.case and ("kind" not in simpler or best.case.kind.startswith("LSTM-")):
            better(other, drawn_anew(other))
    sizes = sizes_of(best)
    for name in ("lengths", "batch", "input", "hidden"):
        for size in (1, 2, 3):
            fewer = sizes.limited(name, size)
            if better(best.case, drawn_anew(best.case, fewer)):
                sizes = fewer
                break
    for digits in (0, 1, 2):
        if better(best.case, _rounded(best.drawn, digits)):
            break
    return best


def drawn_anew(case: Case, sizes: Sizes | None = None) -> Draw:
    """Draw numbers for a case; its dropout leaves nothing to chance."""
    drawn = draw(case, 0, sizes)
    return replace(drawn, arguments={**drawn.arguments, "dropout": ALL}) if case.dropout else drawn


def sizes_of(problem: Smallest) -> Sizes:
    """Read the sizes of a problem off its numbers."""
    arguments, case, input = problem.drawn.arguments, problem.case, problem.drawn.input
    batch = input.size(0) if case.is_cell and case.form != "unbatched" else len(problem.drawn.lengths)
    sizes = arguments["input_size"], arguments["hidden_size"], arguments.get("proj_size", 0)
    return Sizes(*sizes, batch, problem.drawn.lengths)


def _rounded(drawn: Draw, digits: int) -> Draw:
    def around(tensor: Tensor) -> Tensor:
        return torch.round(tensor * (1 if digits else 2), decimals=digits) / (1 if digits else 2)

    return replace(
        drawn,
        weights={name: around(weight) for name, weight in drawn.weights.items()},
        input=around(drawn.input),
        hx=tuple(around(state) for state in drawn.hx),
        cotangents={name: torch.ones_like(cotangent) for name, cotangent in drawn.cotangents.items()},
    )


def script(smallest: Smallest, subject: str) -> str:
    """Write a few lines that compute torch.nn's numbers, beside those of the subject."""
    case, drawn, name = smallest.case, smallest.drawn, smallest.tensor
    hx = [_literal(state) for state in drawn.hx]
    lines = _set_up(case, drawn)
    if hx:
        lines.append(f"hx = ({', '.join(hx)})" if len(hx) > 1 else f"hx = {hx[0]}")
    tensors = {"input": "input", "h_0": "hx[0]" if len(hx) > 1 else "hx", "c_0": "hx[1]"}
    leaf = name.removeprefix("grad of ") if name.startswith("grad of ") else ""
    if leaf in tensors:
        lines.append(f"{tensors[leaf]}.requires_grad_()")
    of_cells, of_layers = ("h_1, c_1", "output, (h_n, c_n)") if case.is_lstm else ("h_1", "output, h_n")
    results = of_cells if case.is_cell else of_layers
    lines.append(f"{results} = rnn(input, hx)" if hx else f"{results} = rnn(input)")
    rows = {"output": "output.data"} if case.is_packed else {}
    shown = rows.get(name, name)
    if leaf:
        lines.append(f"({' + '.join(f'{rows.get(one, one)}.sum()' for one in drawn.cotangents)}).backward()")
        shown = f"{tensors.get(leaf, f'rnn.{leaf}')}.grad"
    lines.append(f"print({shown})  # torch.nn")
    lines.append(f"print({_literal(smallest.ours.tensors.get(name))})  # {subject}")
    return "\n".join(lines) + "\n"


def _set_up(case: Case, drawn: Draw) -> list[str]:
    """Write the lines that make the module and its input."""
    defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
    arguments = [str(drawn.arguments["input_size"]), str(drawn.arguments["hidden_size"])]
    for key, value in drawn.arguments.items():
        if key not in ("input_size", "hidden_size") and defaults.get(key, "tanh") != value:
            arguments.append(f"{key}={value!r}")
    lines = [
        "import torch",
        "from torch import nn, tensor",
        "",
        "torch.set_default_dtype(torch.float64)",
        *([f"torch.set_default_device({case.device!r})"] if case.on_gpu else []),
        f"rnn = nn.{case.class_name}({', '.join(arguments)})" + ".eval()" * (case.dropout == "dropout_eval"),
        "rnn.load_state_dict({",
        *(f"    {key!r}: {_literal(weight)}," for key, weight in drawn.weights.items()),
        "})",
        f"input = {_literal(drawn.input)}",
    ]
    if case.dropout:
        lines.append(f"torch.manual_seed({drawn.seed})")
    if case.is_packed:
        sort = ", enforce_sorted=False" * (case.form == "packed_unsorted") + ", batch_first=True" * case.batch_first
        lines.append(f"input = nn.utils.rnn.pack_padded_sequence(input, {list(drawn.lengths)}{sort})")
    return lines


def _literal(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    values = [float(f"{value:.10g}") + 0.0 for value in tensor.detach().flatten().tolist()]
    flat = iter(values)

    def nested(shape: tuple[int, ...]) -> Any:
        return [nested(shape[1:]) for _ in range(shape[0])] if shape else next(flat)

    numbers = str(nested(tuple(tensor.shape)))
    for odd in ("nan", "inf"):
        numbers = re.sub(rf"\b{odd}\b", f"torch.{odd}", numbers)
    return f"tensor({numbers})"


# Replay ---------------------------------------------------------------------------------------------------------------


def save(smallest: Smallest, subject: dict[str, Any], file: Path) -> None:
    """Write down everything that is needed to run the smallest case again; `subject` says how it is made."""
    data = {**subject, "case": asdict(smallest.case), "tensor": smallest.tensor}
    file.write_text(json.dumps(data | asdict(smallest.drawn), indent=1, default=Tensor.tolist) + "\n")


def restore(file: Path) -> tuple[dict[str, Any], Case, Draw]:
    """Read what `save` wrote: (how the subject is made, case, numbers). ValueError where it wrote something else."""
    data = json.loads(file.read_text())
    if not isinstance(data, dict) or not {"target", "case", "weights"} <= set(data):
        raise ValueError("it has no target, case and weights")

    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    drawn = Draw(
        arguments=data["arguments"],
        weights={name: tensor(values) for name, values in data["weights"].items()},
        input=tensor(data["input"]),
        hx=tuple(tensor(values) for values in data["hx"]),
        lengths=tuple(data["lengths"]),
        cotangents={name: tensor(values) for name, values in data["cotangents"].items()},
        seed=data["seed"],
    )
    return data, Case(**data["case"]), drawn
