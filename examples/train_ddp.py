"""Do two processes, each with half of every batch, learn what one process learns from all of it?

A GRU reads numbers and marks and has to say the sum of the two numbers that were marked (the adding problem of
Hochreiter and Schmidhuber, 1997). It is trained once here, alone, and once by as many processes as there are, each on
its share of the batch, with DistributedDataParallel or, with --shard, with weights and optimizer divided among the
processes (FSDP2). The losses are the same, to rounding.

    python examples/train_ddp.py [--shard] [--steps 100]
    torchrun --nproc-per-node 2 examples/train_ddp.py [--shard] [--steps 100]
"""

import argparse
import os
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import rnnkit

L, N, H = 20, 64, 32


class Adder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = rnnkit.GRU(2, H)
        self.read = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, h_n = self.gru(x)  # (1, N, H)
        return self.read(h_n[0])  # (N, 1)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks (L, N, 2), and the sums of the marked numbers (N, 1)."""
    numbers = torch.rand(L, N, generator=generator)
    marked = torch.rand(L, N, generator=generator).topk(2, dim=0).indices
    marks = torch.zeros(L, N).scatter(0, marked, 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)[:, None]


def train(model: nn.Module, steps: int, share: slice) -> list[float]:
    """The losses of each step, of this process's share of the batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)  # all processes draw the same batches and take their share
    losses = []
    for _ in range(steps):
        x, sums = batch(generator)
        loss = nn.functional.mse_loss(model(x[:, share]), sums[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adder() -> Adder:
    torch.manual_seed(0)
    return Adder()


def work(rank: int, world: int, store: str, steps: int, shard: bool) -> None:
    """What each process does. The first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    model = fully_shard(adder(), mesh=mesh) if shard else nn.parallel.DistributedDataParallel(adder())
    rows = N // world
    together = torch.tensor(train(model, steps, slice(rank * rows, (rank + 1) * rows)))
    dist.all_reduce(together)
    together /= world
    if rank == 0:
        alone = torch.tensor(train(adder(), steps, slice(None)))
        print(f"{'step':>6}{'alone':>12}{f'{world} processes':>16}")
        for k in sorted({0, steps // 4, steps // 2, steps - 1}):
            print(f"{k + 1:6}{alone[k]:12.6f}{together[k]:16.6f}")
        print(f"The losses differ by {(alone - together).abs().max():.1e} at most.", flush=True)
    dist.barrier()  # none leaves while another is still busy
    os._exit(0)  # at once: taking gloo's threads apart has been seen to hang, about once in thirty times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shard", action="store_true", help="divide the weights among the processes (FSDP2)")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if "RANK" in os.environ:  # started by torchrun
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        work(rank, world, "env://", options.steps, options.shard)
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (2, f"file://{folder}/store", options.steps, options.shard)
            torch.multiprocessing.spawn(work, arguments, nprocs=2)
