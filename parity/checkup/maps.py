"""A weight map that a person gives: the file to fill in, made for one module, and what is asked of it once it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..mutants.definition import GATES
from .weights import Shapes

WeightMap = Callable[[dict[str, Tensor]], dict[str, Tensor]]
#: The configurations of which a file has rows, and how it tells that it is asked for them.
SHOWN: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, ""),
    ({"num_layers": 2}, '"weight_ih_l1" in w'),
    ({"bidirectional": True}, '"weight_ih_l0_reverse" in w'),
    ({"num_layers": 2, "bidirectional": True}, '"weight_ih_l1_reverse" in w'),
)
LISTED = 9  # of torch.nn's names, so many are listed


class MapError(ValueError):
    """A weight map gives something else than the module's parameters."""


def mapped(weight_map: WeightMap, weights: dict[str, Tensor], own: Shapes) -> dict[str, Tensor]:
    """Return the module's parameters by name, those aside that the map leaves (None). MapError if it isn't a map."""
    try:
        made = weight_map(weights)
    except Exception as error:  # whatever a person's function raises
        raise MapError(f"it raises {type(error).__name__}: {error}") from error
    problem = next(_problems(made, own), "")
    if problem:
        raise MapError(problem)
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _problems(made: Any, own: Shapes) -> Iterator[str]:
    if not isinstance(made, dict):
        yield f"it returns a {type(made).__name__}, not a dictionary of the module's parameters by name"
        return
    yield from (f"there is no {name} in the module, which has {', '.join(own)}" for name in made if name not in own)
    yield from (f"it says nothing of {name}; None leaves a parameter as it is" for name in own if name not in made)
    for name, tensor in made.items():
        if tensor is ...:
            yield f"it leaves {name!r} open"
        elif tensor is not None and not isinstance(tensor, Tensor):
            yield f"it gives a {type(tensor).__name__} for {name}, not a tensor"
        elif tensor is not None and tuple(tensor.shape) != own[name]:
            yield f"it gives {name} of shape {list(tensor.shape)}, it is {list(own[name])}"


def template(name: str, class_name: str, shapes: Callable[[dict[str, Any]], tuple[Shapes, Shapes]]) -> str:
    """Write a weight map to fill in. `shapes` returns the module's and torch.nn's of a configuration."""
    seen: Shapes = {}
    body: list[str] = []
    theirs: Shapes = {}
    for options, condition in SHOWN:
        try:
            own, theirs_now = shapes(options)
        except Exception:  # a configuration that the module doesn't offer
            continue
        theirs = theirs or theirs_now
        rows = [f'"{one}": ...,  # {list(shape)}' for one, shape in own.items() if one not in seen]
        seen |= own
        if condition and rows:
            body += [f"    if {condition}:", "        made |= {", *(f"            {row}" for row in rows), "        }"]
        elif not condition:
            body += ["    made = {", *(f"        {row}" for row in rows), "    }"]
    listed = [f"        {one} {list(shape)}" for one, shape in theirs.items()][:LISTED]
    gates, first = ", ".join(GATES[class_name.removesuffix("Cell")]), next(iter(theirs), "")
    head = [
        "import torch",
        "",
        "",
        "def weights(w):",
        f'    """Return the parameters of {name}, made of torch.nn.{class_name}\'s.',
        "",
        "    w has torch.nn's by name, here with their shapes at 5 features and 7 units:",
        *listed,
        f'    Write what each ... is made of, for example w["{first}"].T or torch.cat([..., ...], 1), or',
        f"    None for what torch.nn has not. The rows of each are those of {gates}, one below the other.",
        '    """',
    ]
    return "\n".join([*head, *body, "    return made", ""])
