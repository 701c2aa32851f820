"""Write into one_unit.html what rnnkit says of a few settings, and the colours: python examples/students/one_unit.py

The page works the formulas out by itself. With these numbers it can say, and a test can, how far it is from rnnkit.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from ink import COLOURS

import rnnkit

PAGE = Path(__file__).resolve().parent / "one_unit.html"


def setting(mode: str, seed: int, L: int = 6) -> dict[str, Any]:
    """Draw weights and inputs, a decimal each, and return them with every gate and state of rnnkit's in float64."""
    generator = torch.Generator().manual_seed(seed)
    layer = {"LSTM": rnnkit.LSTM, "GRU": rnnkit.GRU}[mode](1, 1, dtype=torch.float64)

    def draw(n: int) -> torch.Tensor:
        return (4 * torch.randn(n, generator=generator, dtype=torch.float64)).round(decimals=1)

    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(draw(parameter.numel()).view_as(parameter))
    x = draw(L)
    names = {"w_ih": layer.weight_ih_l0, "w_hh": layer.weight_hh_l0, "b_ih": layer.bias_ih_l0, "b_hh": layer.bias_hh_l0}
    seen = rnnkit.trace(layer, x.unsqueeze(-1)).seen["l0"]
    return {
        "mode": mode,
        "weights": {name: parameter.flatten().tolist() for name, parameter in names.items()},
        "x": x.tolist(),
        "seen": {letter: [round(value, 12) for value in values.flatten().tolist()] for letter, values in seen.items()},
    }


def colours() -> str:
    """Return the colours of the pictures as CSS variables, for light and for dark."""
    named = {name: pair for name, pair in COLOURS.items() if " " not in name} | {"quiet": ("#59636e", "#9198a1")}
    light, dark = ("; ".join(f"--{name}: {pair[k]}" for name, pair in named.items()) for k in (0, 1))
    return f"  :root {{ {light} }}\n  @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def page() -> str:
    """Return the page as it should be."""
    checks = ",\n".join(json.dumps(setting(mode, seed)) for mode in ("LSTM", "GRU") for seed in range(4))
    text = PAGE.read_text()
    for opening, inside in (
        ('<script type="application/json" id="checks">', f"[\n{checks}\n]\n"),
        ('<style id="colours">', colours()),
    ):
        text = re.sub(
            f"({opening}\n).*?(</s)",
            lambda found, inside=inside: found[1] + inside + found[2],
            text,
            count=1,
            flags=re.S,
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
