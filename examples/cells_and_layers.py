"""What shape has each tensor that a recurrent module takes, returns and holds, and is a layer its cell in a loop?

The tables are read off live modules. All sizes differ, so a number tells where it is from: N = 3 sequences of L = 5
steps with H_in = 7 features; H = 11 units, or H_out = 2 where they are projected; D = 2 directions; num_layers = 2; the
equations have G = 1 (RNN), 4 (LSTM) or 3 (GRU) gates. An unbatched input is the same without N.

    python examples/cells_and_layers.py
"""

import torch
from torch import Tensor, nn

import rnnkit

N, L, H_in, H = 3, 5, 7, 11


def named(letters: str, hx: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """A state by its names: h alone, or h and c."""
    names = ("h" + letters, "c" + letters)
    return dict(zip(names, hx if isinstance(hx, tuple) else (hx,), strict=False))


def shapes(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: str(tuple(tensor.shape)) for name, tensor in {**tensors, **dict(module.named_parameters())}.items()}


def of_layer(layer: rnnkit.RNNBase) -> dict[str, str]:
    input = torch.randn(L, N, H_in)
    output, hx = layer(input)  # without hx, zeros of the shapes of what comes out
    return shapes(layer, {"input": input, **named("_0", hx), "output": output, **named("_n", hx)})


def of_cell(cell: rnnkit.RNNCellBase) -> dict[str, str]:
    input = torch.randn(N, H_in)
    hx = cell(input)
    return shapes(cell, {"input": input, **named("", hx), **named("'", hx)})


def show(title: str, columns: dict[str, dict[str, str]]) -> None:
    names = list(max(columns.values(), key=len))  # the LSTM with a projection has every row that there is
    print(f"{title:24}" + "".join(f"{column:>16}" for column in columns))
    for name in names:
        print(f"  {name:22}" + "".join(f"{column.get(name, '-'):>16}" for column in columns.values()))
    print()


def loop(kind: str) -> dict[str, float]:
    """The largest difference, tensor by tensor, between a layer and a loop over the cell that has its weights."""
    layer, cell = getattr(rnnkit, kind)(H_in, H).double(), getattr(rnnkit, f"{kind}Cell")(H_in, H).double()
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    input = torch.randn(L, N, H_in).double()
    output, h_n = layer(input)

    hx, outputs = None, []
    for x in input:
        hx = cell(x, hx)
        outputs.append(hx[0] if isinstance(hx, tuple) else hx)

    ours = {"output": torch.stack(outputs), **named("_n", hx)}
    theirs = {"output": output, **{name: state.squeeze(0) for name, state in named("_n", h_n).items()}}
    return {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}


if __name__ == "__main__":
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True}
    layers = {
        "RNN": rnnkit.RNN(H_in, H, **options),
        "LSTM": rnnkit.LSTM(H_in, H, **options),
        "LSTM, projected": rnnkit.LSTM(H_in, H, proj_size=2, **options),
        "GRU": rnnkit.GRU(H_in, H, **options),
    }
    show("layers", {name: of_layer(layer) for name, layer in layers.items()})
    cells = rnnkit.RNNCell(H_in, H), rnnkit.LSTMCell(H_in, H), rnnkit.GRUCell(H_in, H)
    show("cells", {type(cell).__name__: of_cell(cell) for cell in cells})
    print(
        f"the cell, step by step, against the layer: largest differences in float64, eps {torch.finfo(float).eps:.1e}"
    )
    for kind in "RNN", "LSTM", "GRU":
        print(f"  {kind:6}" + "".join(f"{name:>10} {value:.1e}" for name, value in loop(kind).items()))
