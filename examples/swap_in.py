"""Does a program notice when its LSTM comes from rnnkit instead of torch.nn?

A model of characters learns the topics of Python's own help (`pydoc_data.topics`, half a megabyte of English that comes
with the standard library). It is trained three times from one seed: twice with `nn.LSTM`, with and without oneDNN,
which is torch's faster but differently rounded LSTM for CPUs, and once with `rnnkit.LSTM`. Everything else is the same
text: initial weights, dropout masks, batches, optimizer. So the three curves of the loss should coincide.

    python examples/swap_in.py [--steps 200]
"""

import argparse
import textwrap
from pydoc_data.topics import topics
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rnnkit

N, L = 32, 32  # streams of text side by side, and characters of each in one step of training

text = " ".join(word for word in " ".join(topics.values()).split() if word.strip("*=-~+|"))  # without ruled lines
alphabet = sorted(set(text))
index = {character: k for k, character in enumerate(alphabet)}


class Speaker(nn.Module):
    def __init__(self, kit: ModuleType, hidden_size: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(alphabet), 64)
        self.lstm = kit.LSTM(64, hidden_size, num_layers=2, dropout=0.1)  # kit is torch.nn or rnnkit: the only change
        self.read = nn.Linear(hidden_size, len(alphabet))

    def forward(self, characters: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, hx = self.lstm(self.embed(characters), hx)  # (L, N, H)
        return self.read(output), hx  # (L, N, len(alphabet))


def train(kit: ModuleType, steps: int) -> tuple[Speaker, list[float]]:
    torch.manual_seed(1)
    model = Speaker(kit)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = torch.tensor([index[character] for character in text])
    streams = data[: len(data) // N * N].view(N, -1).t()  # (len(text) // N, N)
    hx, losses = None, []
    for start in range(0, steps * L, L):
        start %= len(streams) // L * L - L
        seen, following = streams[start : start + L], streams[start + 1 : start + L + 1]
        logits, hx = model(seen, hx)
        hx = tuple(state.detach() for state in hx)  # the state goes on to the next step, gradients don't
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def speak(model: Speaker, prompt: str, length: int, temperature: float = 0.5) -> str:
    model.eval()
    said, hx = prompt, None
    characters = torch.tensor([[index[c]] for c in prompt])  # (L, 1), then (1, 1)
    for _ in range(length):
        logits, hx = model(characters, hx)
        characters = torch.multinomial((logits[-1] / temperature).softmax(-1), 1)
        said += alphabet[characters.item()]
    return said


def agreement(one: list[float], other: list[float]) -> str:
    worst = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return "equal bit for bit at every step" if worst == 0 else f"largest difference {worst:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    _, onednn = train(nn, steps)
    torch.backends.mkldnn.enabled = False
    _, native = train(nn, steps)
    model, ours = train(rnnkit, steps)

    print(f"{len(text):,} characters of Python's help; loss in nats per character\n")
    print("step   nn.LSTM, oneDNN           nn.LSTM       rnnkit.LSTM")
    for k in sorted({j * (steps - 1) // 7 for j in range(8)}):
        print(f"{k + 1:4}   {onednn[k]:15.9f}   {native[k]:15.9f}   {ours[k]:15.9f}   {'█' * round(8 * ours[k])}")
    print(f"\nrnnkit and nn:              {agreement(ours, native)}")
    print(f"rnnkit and nn with oneDNN:  {agreement(ours, onednn)}")
    print(f"nn and nn with oneDNN:      {agreement(native, onednn)}\n")
    print(textwrap.fill(speak(model, "The statement ", 300), 100))


if __name__ == "__main__":
    main()
