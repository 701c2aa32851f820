"""When do the gates of an LSTM and of a GRU open and close?

Two networks of one unit each learn to handle a bit. At every step they read x, about 1 or -1, and a command: `write` x
into memory, `hold` what is there whatever x is, or a third. The LSTM's third is `ask`: say the bit, and 0 at all other
steps. The GRU's is `flip`: turn the bit over; having no output gate, it says the bit always.

Look for this: in the LSTM i lets x in and f drops the old bit at `write` alone; o lets the bit out at `ask` alone. In
the GRU z holds at `hold` alone; r opens at `flip`, where n is made from the old h, and shuts at `write`. (Each is one
seed; others find other ways.) `rnnkit.trace` says the numbers: it returns a call's results with every gate and state.

    python examples/watch_the_gates.py [--picture gates.png]
"""

import argparse

import torch
from plot import plot
from torch import Tensor
from torch.nn import functional as F

import rnnkit

WRITE, HOLD, THIRD = 0, 1, 2
X = torch.tensor([1.0, -1, -1, 1, -1, -1, 1, 1, -1, 1, -1, -1])
COMMAND = torch.tensor([WRITE, HOLD, HOLD, THIRD, HOLD, WRITE, HOLD, THIRD, THIRD, WRITE, HOLD, THIRD])


def answers(x: Tensor, command: Tensor, mode: str) -> Tensor:
    """What a perfect network says; x, command and the result are (L, N)."""
    bit, said = torch.zeros_like(x[0]), []
    for x_t, command_t in zip(x, command, strict=True):
        bit = torch.where(command_t == WRITE, x_t.sign(), bit)
        if mode == "GRU":
            bit = torch.where(command_t == THIRD, -bit, bit)
        said.append(bit if mode == "GRU" else bit * (command_t == THIRD))
    return 0.95 * torch.stack(said)


def encode(x: Tensor, command: Tensor) -> Tensor:
    return torch.stack((x, command == WRITE, command == THIRD), -1)  # (L, N, 3)


def train(kind: type[rnnkit.RNNBase], seed: int, L: int = 16, N: int = 64) -> rnnkit.RNNBase:
    torch.manual_seed(seed)
    network = kind(3, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(500):
        x = torch.randint(2, (L, N)) * 2 - 1 + 0.3 * torch.randn(L, N)
        command = torch.multinomial(torch.tensor([0.25, 0.5, 0.25]), L * N, replacement=True).view(L, N)
        loss = F.mse_loss(network(encode(x, command))[0].squeeze(-1), answers(x, command, network.mode))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


WATCH = {"i": "write", "f": "write", "o": "ask", "z": "hold", "r": "flip"}  # a gate, and the moments to watch it


def draw(panels: dict[str, tuple[list[str], dict[str, Tensor]]], path: str) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: matplotlib is missing, pip install 'rnnkit[examples]' brings it"
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axes, (title, (steps, seen)) in zip(figure.subplots(2, 1), panels.items(), strict=True):
        plot(seen, axes, steps=steps, watch=WATCH).set_title(title)
    figure.savefig(path, dpi=120)
    return f"picture: {path}"


def watched(kind: type[rnnkit.RNNBase], third: str, seed: int) -> tuple[rnnkit.RNNBase, list[str], dict[str, Tensor]]:
    """A trained network, the commands of a sequence in words, and what is seen of it by letter, each (L, 1)."""
    network = train(kind, seed)
    steps = [("write", "hold", third)[k] for k in COMMAND]
    return network, steps, {"x": X[:, None]} | rnnkit.trace(network, encode(X, COMMAND)).seen["l0"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", default="gates.png")
    path = parser.parse_args().picture
    panels = {}
    for kind, third, seed in (rnnkit.LSTM, "ask", 2), (rnnkit.GRU, "flip", 1):
        network, steps, seen = watched(kind, third, seed)
        rows = {letter: values.flatten().tolist() for letter, values in seen.items()}
        off = (network(encode(X, COMMAND))[0].squeeze(-1) - torch.tensor(rows["h"])).abs().max().item()
        panels[f"{kind.__name__} of one unit: write, hold, {third}"] = steps, seen
        print(f"{kind.__name__}".ljust(4) + "".join(f"{step:>6}" for step in steps))
        print("\n".join(f"{letter:4}" + "".join(f"{value:6.2f}" for value in row) for letter, row in rows.items()))
        print(f"h here and h from the layer differ by {off:.0e}\n")
    print(draw(panels, path))
