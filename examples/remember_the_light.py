"""Can an agent learn to remember, when its episodes lie end to end, and must it be called step by step for that?

A T-maze, after Bakker, Reinforcement Learning with Long Short-Term Memory (2001): at an episode's first step a light
says on which side the reward is, then a corridor of 2 to 15 steps shows but noise, and at the junction the agent turns
left or right, for a reward of 1 or -1, by which REINFORCE makes its turns more or less likely. The state must be zero
before a first step is read, h and c both: not one step late, and not at the last step, which is what `done` marks.

It learns twice from the same numbers: by one call of rnnkit's LSTM for all steps, with `resets`, and by a call of
torch.nn's for each step, with its state zeroed between episodes, as libraries for reinforcement learning do it.

    python examples/remember_the_light.py [--updates 100]
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import rnnkit

L, N, H = 64, 16, 8


class Episodes(NamedTuple):
    seen: Tensor  # (L, N, 3): the light, -1 or 1 at an episode's first step; the junction, 1 at its last; noise
    first: Tensor  # (L, N): whether the step is an episode's first
    side: Tensor  # (L, N): where its reward is


def walk() -> Episodes:
    seen, first, side = torch.zeros(L, N, 3), torch.zeros(L, N, dtype=torch.bool), torch.zeros(L, N)
    for n in range(N):
        t = 0
        while t < L:
            end, light = t + int(torch.randint(4, 18, ())), float(torch.randint(2, ()) * 2 - 1)
            seen[t, n, 0], first[t, n], side[t:end, n] = light, True, light
            seen[end - 1 : end, n, 1] = 1  # nothing, where the stream ends before the episode
            t = end
    seen[..., 2].normal_()
    return Episodes(seen, first, side)


def at_once(lstm: nn.Module, episodes: Episodes) -> Tensor:
    output, _ = lstm(episodes.seen, resets=episodes.first)
    return output


def step_by_step(lstm: nn.Module, episodes: Episodes) -> Tensor:
    h, c = torch.zeros(2, 1, N, H)
    outputs = []
    for x, first in zip(episodes.seen, episodes.first, strict=True):
        stays = (~first).unsqueeze(1)
        output, (h, c) = lstm(x.unsqueeze(0), (h * stays, c * stays))
        outputs.append(output)
    return torch.cat(outputs)


def learn(lstm: nn.Module, run: Callable[[nn.Module, Episodes], Tensor], updates: int) -> tuple[Tensor, Tensor, float]:
    """Return each update's loss and share of right turns, and the seconds that all of them took."""
    torch.manual_seed(1)
    turn = nn.Linear(H, 1)
    optimizer = torch.optim.Adam([*lstm.parameters(), *turn.parameters()], lr=0.02)
    losses, rights, seconds = [], [], 0.0
    for _ in range(updates):
        episodes, draw = walk(), torch.rand(L, N)
        start = time.perf_counter()
        to_the_right = turn(run(lstm, episodes)).squeeze(-1).sigmoid()  # its probability, at each step
        turned = draw < to_the_right
        reward = torch.where(turned == (episodes.side > 0), 1.0, -1.0)
        chosen = torch.where(turned, to_the_right, 1 - to_the_right)
        junction = episodes.seen[..., 1] == 1
        loss = -(reward * chosen.log())[junction].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - start
        losses.append(loss.detach())
        rights.append((reward[junction] == 1).double().mean())
    return torch.stack(losses), torch.stack(rights), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    updates = parser.parse_args().updates
    torch.set_default_dtype(torch.float64)  # so that rounding changes no turn
    torch.manual_seed(0)
    ours, native = rnnkit.LSTM(3, H), nn.LSTM(3, H)
    native.load_state_dict(ours.state_dict())
    losses, rights, seconds = learn(ours, at_once, updates)
    losses_2, _, seconds_2 = learn(native, step_by_step, updates)
    print("update   right turns   loss, with resets   loss, step by step")
    for k in range(0, updates, max(1, updates // 10)):
        print(f"{k + 1:6}{rights[k : k + 5].mean():14.0%}{losses[k]:20.9f}{losses_2[k]:21.9f}")
    print(f"losses differ by {(losses - losses_2).abs().max():.1e} at most")
    print(f"once with resets {seconds:.2f} s, step by step {seconds_2:.2f} s: {seconds_2 / seconds:.1f} times as long")
