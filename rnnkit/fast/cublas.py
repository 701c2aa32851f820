"""Products where tensors live on a GPU: torch's own, of weights as they lie.

The functions are those of `products`, which are for a CPU: there it matters which library forms a product, and how a
weight lies in memory. cuBLAS sees to that by itself, and nothing here waits for the device or looks at a clock.
"""

import torch
from torch import Tensor

from .products import Affine, Gradient, Product


def new_rows(like: Tensor, *shape: int) -> Tensor:
    """Allocate a tensor of like's dtype and device."""
    return like.new_empty(shape)


def affine(total: int, rows: int, w: Tensor, b: Tensor | None) -> Affine:
    """Return the function (x, out) -> x @ w.T + b, written to `out`."""
    w_t = w.t()
    if b is None:
        return lambda x, out: torch.mm(x, w_t, out=out)
    return lambda x, out: torch.addmm(b, x, w_t, out=out)


def repeated(times: int, rows: int, w_t: Tensor) -> Product:
    """Make the product with w_t ready for many calls."""
    return Product(w_t, torch.addmm, torch.mm)


def gradient(dy: Tensor) -> Gradient:
    """Return, for y = x @ w.T, the function (x, total) -> total + the gradient of w, which is dy.T @ x."""
    dy_t = dy.t()
    return lambda x, total: torch.mm(dy_t, x) if total is None else total.addmm_(dy_t, x)
