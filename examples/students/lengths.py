"""Measure one forward and backward of a packed batch, torch.nn's and rnnkit's, at growing lengths: prints a CSV.

python examples/students/lengths.py > examples/students/lengths.csv
"""

import platform
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnkit

N, H = 32, 64


def milliseconds(rnn: nn.Module, lengths: list[int]) -> float:
    """Return the least time of three."""
    packed, times = pack_sequence([torch.randn(length, H) for length in lengths], enforce_sorted=False), []
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        rnn(packed)[0].data.sum().backward()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:])


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("# Training on a packed batch, forward and backward")
    print(f"# GRU({H}, {H}), {N} rows of all lengths up to L, one thread, least of three")
    print(f"# {platform.processor() or platform.machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print("length,nn,rnnkit")
    for L in 64, 128, 256, 512, 1024:
        lengths = [max(1, L * (n + 1) // N) for n in range(N)]
        native, ours = (milliseconds(kind(H, H), lengths) for kind in (nn.GRU, rnnkit.GRU))
        print(f"{L},{native:.1f},{ours:.1f}", flush=True)
