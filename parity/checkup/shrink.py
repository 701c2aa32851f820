"""The smallest case that still differs, and a script that shows it with torch alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..grid.cases import Case
from ..grid.run import Draw, Observations, Precision, draw, observe
from ..mutants.definition import GATES

EXACT = Precision(torch.float64, torch.float64)
SIMPLER: tuple[dict[str, Any], ...] = (
    {"special": ""}, {"dropout": ""}, {"layers": 1}, {"bidirectional": False}, {"batch_first": False},
    {"form": "padded"}, {"hx": False}, {"bias": False}, {"kind": "LSTM"},
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    input: int
    hidden: int
    steps: int
    rows: int


@dataclass
class Smallest:
    """A failing problem that nothing can be taken from, and what both sides show on it."""

    case: Case
    drawn: Draw
    ours: Observations
    theirs: Observations
    tensor: str  # the one that differs most


def differing(ours: Observations, theirs: Observations, tolerance: float = 1e-6) -> str:
    """The tensor that differs, the outputs' first; "" if none does, or if the subject did not run."""
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


def shrink(subject: Any, case: Case, drawn: Draw) -> Smallest | None:
    """Take away what can be taken away while the subject still differs. None if it doesn't differ to begin with."""

    def attempt(case: Case, drawn: Draw) -> Smallest | None:
        theirs = observe(torch.nn, case, drawn, EXACT)
        ours = observe(subject, case, drawn, EXACT)
        tensor = differing(ours, theirs)
        values_before = best is not None and not best.tensor.startswith("grad of")
        if not tensor or (values_before and tensor.startswith("grad of")):
            return None
        return Smallest(case, drawn, ours, theirs, tensor)

    best = None
    best = attempt(case, drawn)
    if best is None:
        return None
    for simpler in SIMPLER:
        if any(getattr(best.case, name) != value for name, value in simpler.items()):
            if "kind" in simpler and not best.case.kind.startswith("LSTM-"):
                continue
            other = replace(best.case, **simpler)
            anew = draw(other, 0)
            if other.dropout:
                anew = replace(anew, arguments={**anew.arguments, "dropout": best.drawn.arguments["dropout"]})
            found = attempt(other, anew)
            best = found or best
    for cut in _cuts():
        found = attempt(best.case, cut(best.case, best.drawn))
        best = found or best
    for digits in (0, 1, 2):
        found = attempt(best.case, _rounded(best.drawn, digits))
        if found is not None:
            return found
    return best


def _cuts() -> Iterator[Callable[[Case, Draw], Draw]]:
    for name in ("steps", "rows", "input", "hidden"):
        for size in (1, 2, 3):
            yield lambda case, drawn, name=name, size=size: _cut(case, drawn, **{name: size})  # type: ignore[misc]


def _cut(case: Case, drawn: Draw, **limits: int) -> Draw:
    """The first steps, rows, inputs, units of a problem. A projection stays."""
    H, H_in = drawn.arguments["hidden_size"], drawn.arguments["input_size"]
    h, h_in = min(H, limits.get("hidden", H)), min(H_in, limits.get("input", H_in))
    P = drawn.arguments.get("proj_size", 0) or H
    p = h if P == H else P
    G = len(GATES[case.class_name.removesuffix("Cell")])
    D = 2 if case.bidirectional else 1
    weights = {}
    for name, weight in drawn.weights.items():
        if name.startswith("weight_hr"):
            weights[name] = weight[:, :h]
            continue
        weight = weight.unflatten(0, (G, H))[:, :h].flatten(0, 1)  # type: ignore[no-untyped-call]
        if name.startswith("weight_hh"):
            weight = weight[:, :p]
        elif name.startswith("weight_ih"):
            first = case.is_cell or "_l0" in name
            weight = weight[:, :h_in] if first else weight.unflatten(1, (D, P))[..., :p].flatten(1)
        weights[name] = weight
    lengths, batch_dim = drawn.lengths, 0 if case.batch_first else 1
    input, cotangents = drawn.input[..., :h_in], dict(drawn.cotangents)
    widths = {"output": (D, P, p), "h_n": (1, P, p), "c_n": (1, H, h), "h_1": (1, H, h), "c_1": (1, H, h)}
    cotangents = {
        name: t.unflatten(-1, (widths[name][0], widths[name][1]))[..., : widths[name][2]].flatten(-2)  # type: ignore[no-untyped-call]
        for name, t in cotangents.items()
    }
    hx = tuple(state[..., : (p, h)[k]] for k, state in enumerate(drawn.hx))
    if case.form != "unbatched":
        rows_dim = 0 if case.is_cell else batch_dim
        rows = min(limits.get("rows", input.size(rows_dim)), input.size(rows_dim))
        input = input.narrow(rows_dim, 0, rows)
        hx = tuple(state[..., :rows, :] for state in hx)
        cotangents = {
            name: t.narrow(batch_dim, 0, rows) if name == "output" and not case.is_packed else t
            for name, t in cotangents.items()
        }
        cotangents = {name: t if name == "output" else t[..., :rows, :] for name, t in cotangents.items()}
        lengths = lengths[:rows] if case.is_packed else lengths
    if not case.is_cell and case.form != "unbatched":
        lengths = tuple(min(limits.get("steps", length), length) for length in lengths)
        steps = max(lengths)
        input = input.narrow(1 - batch_dim, 0, steps)
        if "output" in cotangents:
            output = cotangents["output"]
            cotangents["output"] = output[: sum(lengths)] if case.is_packed else output.narrow(1 - batch_dim, 0, steps)
    arguments = {**drawn.arguments, "hidden_size": h, "input_size": h_in}
    return replace(
        drawn, arguments=arguments, weights=weights, input=input, hx=hx, lengths=lengths, cotangents=cotangents
    )


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
    """A few lines that compute torch.nn's numbers, beside those of the subject."""
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
    """The lines that make the module and its input."""
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

    return f"tensor({nested(tuple(tensor.shape))})"


# Replay ---------------------------------------------------------------------------------------------------------------


def save(smallest: Smallest, target: str, as_: str, file: Path) -> None:
    """Everything that is needed to run the smallest case again."""
    drawn = smallest.drawn
    data = {
        "target": target,
        "as": as_,
        "case": asdict(smallest.case),
        "tensor": smallest.tensor,
        "arguments": drawn.arguments,
        "weights": {name: weight.tolist() for name, weight in drawn.weights.items()},
        "input": drawn.input.tolist(),
        "hx": [state.tolist() for state in drawn.hx],
        "lengths": drawn.lengths,
        "cotangents": {name: cotangent.tolist() for name, cotangent in drawn.cotangents.items()},
        "seed": drawn.seed,
    }
    file.write_text(json.dumps(data, indent=1) + "\n")


def restore(file: Path) -> tuple[dict[str, Any], Case, Draw]:
    """What `save` wrote: (target and so on, case, numbers)."""
    data = json.loads(file.read_text())

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
