"""Which cell learns to count best? They are told which of two symbols has come more often, at the end of each row.

The cells are those of cells_of_ones_own.py, torch.nn's GRU and LSTM, and these two with zoneout and recurrent dropout.
What has no hand-written kernel takes longer.
"""

import argparse
import time

import torch
from cells_of_ones_own import CELLS
from torch import nn
from torch.nn import functional as F
from zoneout import recurrent_dropout, zoneout

import rnnkit


def counts(N, L):
    """Return N sequences of two symbols, -1 and 1, their lengths, and whether 1 has come more often, at each end."""
    symbols, lengths = torch.randint(0, 2, (L, N)) * 2.0 - 1, torch.randint(1, L // 2, (N,)) * 2 + 1
    there = torch.arange(L)[:, None] < lengths
    return symbols.unsqueeze(-1), lengths, ((symbols * there).sum(0) > 0).float()


def last_h(rnn, x, lengths):
    """Return h of the last layer after each sequence, (N, H)."""
    _, hx = rnn(x, lengths=lengths)
    return (hx[0] if isinstance(hx, tuple) else hx)[-1]


def main(updates):
    """Train each cell for as many steps, and print its size, how often it is right, and the time it took."""
    torch.set_num_threads(1)  # small products are slower on more
    GRU, LSTM = rnnkit.EQUATIONS["GRU"], rnnkit.EQUATIONS["LSTM"]
    others = {"GRU": GRU, "GRU, zoneout": zoneout(GRU, h=0.1), "GRU, dropout": recurrent_dropout(GRU, 0.1)}
    others |= {"LSTM": LSTM, "LSTM, zoneout": zoneout(LSTM, h=0.05, c=0.5)}
    print(f"{'':24}parameters   right  seconds")
    for name, equation in (CELLS | others).items():
        torch.manual_seed(0)
        start = time.perf_counter()
        rnn, readout = rnnkit.RNNBase(equation, 1, 24, bias=name != "layer-normalised LSTM"), nn.Linear(24, 1)
        parameters = [*rnn.parameters(), *readout.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(updates):
            x, lengths, answer = counts(64, 30)
            loss = F.binary_cross_entropy_with_logits(readout(last_h(rnn, x, lengths))[:, 0], answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rnn.eval()
        x, lengths, answer = counts(1000, 30)
        right = ((readout(last_h(rnn, x, lengths))[:, 0] > 0) == answer.bool()).float().mean()
        size = sum(parameter.numel() for parameter in rnn.parameters())
        print(f"{name:24}{size:10}{right:8.1%}{time.perf_counter() - start:9.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=100)
    main(parser.parse_args().updates)
