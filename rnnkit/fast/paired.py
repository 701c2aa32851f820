"""Both directions of one layer at once, over a padded batch: half the calls, for sizes where those are what counts.

A row is here a direction's N vectors of a step, (N, F), and a step has two of them: the forward direction's, and the
one that the reverse direction takes at the same time. Weights are stacked, and products are batched over the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..stack import Stack, Weights
from .backprop import Direction
from .kernels import Kernel
from .maps import Maps
from .products import Affine, Gradient, Product
from .timeline import Timeline

FEW = 2**17  # multiplications in a step; of more, products one by one are faster than batched ones


def pays(layer: Stack) -> bool:
    """Say whether both directions of `layer` are faster in a pair."""
    w_hh, N = layer.weights[0].w_hh, layer.states[0][0].size(0)
    padded = layer.batch_sizes is None and layer.input.size(1) == N
    return layer.bidirectional and padded and w_hh.dtype == torch.float32 and N * w_hh.numel() <= FEW


class PairedMaps(Maps):
    """The maps of both directions, stacked."""

    def __init__(self, kernel: Kernel, weights: Sequence[Weights], steps: int, N: int) -> None:
        pairs = zip(*weights, strict=True)
        stacked = Weights(*(None if pair[0] is None else torch.stack(pair) for pair in pairs))  # type: ignore[arg-type]
        super().__init__(kernel, stacked, steps, N)

    def igates(self, total: int, most: int) -> Affine:
        return lambda x, out: out.copy_(product(x, self.weights.w_ih, self.bias))

    def b_hh(self, steps: int) -> Tensor | None:
        return None if self.weights.b_hh is None else self.weights.b_hh.unsqueeze(1).repeat(steps, 1, 1)

    def dx(self, digates: Tensor) -> Tensor:
        return product(digates, self.w_x)

    def gradient(self, dy: Tensor) -> Gradient:
        dy_t = matrices(dy).mT

        def gradient(x: Tensor, total: Tensor | None) -> Tensor:
            return dy_t @ matrices(x) if total is None else total.add_(dy_t @ matrices(x))

        return gradient

    def sum(self, dy: Tensor) -> Tensor:
        return matrices(dy).sum(1)

    def repeated(self, w_t: Tensor) -> Product:
        return Product(w_t.contiguous(), torch.baddbmm, torch.bmm)


def product(rows: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Return rows @ w.T + b (k*2, N, F), each direction's rows by its own w and b."""
    x = matrices(rows)
    y = torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)
    return y.view(2, -1, rows.size(1), y.size(-1)).transpose(0, 1).flatten(0, 1)


def matrices(rows: Tensor) -> Tensor:
    """Return rows (k*2, N, F) as a matrix for each direction, (2, k*N, F)."""
    return rows.view(-1, 2, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)


def as_rows(forward: Tensor, reverse: Tensor) -> Tensor:
    """Return the steps (L, N, F) of both directions as rows (L*2, N, F), the reverse direction's last step first."""
    return torch.stack((forward, reverse.flip(0)), 1).flatten(0, 1)


def as_steps(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (L*2, N, F) as the steps (L, N, F) of the forward direction and of the reverse one."""
    forward, reverse = rows.view(-1, 2, *rows.shape[1:]).unbind(1)
    return forward, reverse.flip(0)


def direction(layer: Stack, kernel: Kernel) -> Direction:
    """Return both directions of `layer` as one, a step of which has two rows."""
    L, N = layer.input.shape[:2]
    maps, state = PairedMaps(kernel, layer.weights, L, N), tuple(map(torch.stack, zip(*layer.states, strict=True)))
    return Direction(maps, Timeline([2] * L, 2, reverse=False), as_rows(layer.input, layer.input), state)


def apart(stacked: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return tensors (2, ...) of both directions as those of the forward one, then those of the reverse one."""
    pairs = [(None, None) if tensor is None else (tensor[0].clone(), tensor[1].clone()) for tensor in stacked]
    return [tensor for half in zip(*pairs, strict=True) for tensor in half]
