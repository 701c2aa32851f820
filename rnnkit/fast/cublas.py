"""Products where tensors live on a GPU: torch's own, of weights as they lie.

The functions are those of `products`, which are for a CPU: there it matters which library forms a product, and how a
weight lies in memory. cuBLAS sees to that by itself, and nothing here waits for the device or looks at a clock.
"""

import torch
from torch import Tensor

from .products import Affine, Gradient, Product

IN_PLACE = True  # whether a step adds its product to the igates where they stand: elsewhere they would be copied first

#: In full float32 cuBLAS takes a weight faster in the order of its product. Microseconds on an H100, as it lies and so:
#: N=32, H=128, G=1: 14 and 6; N=20, H=650, G=4: 26 and 15; N=64, H=1024, G=4: 28 and 32. With TF32 there is no gain.
WORTH_A_COPY = 8  # calls
LARGE = 2**21  # elements


def new_rows(like: Tensor, *shape: int) -> Tensor:
    """Allocate a tensor of like's dtype and device."""
    return like.new_empty(shape)


def affine(total: int, rows: int, w: Tensor, b: Tensor | None) -> Affine:
    """Return the function (x, out) -> x @ w.T + b, written to `out`."""
    w_t = w.t()
    if b is None:
        return lambda x, out: torch.mm(x, w_t, out=out)
    return lambda x, out: torch.addmm(b, x, w_t, out=out)


def by_tf32() -> bool:
    """Say whether products of float32 may be formed by TF32."""
    return bool(getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32")


def repeated(times: int, rows: int, w_t: Tensor) -> Product:
    """Make the product with w_t ready for `times` calls."""
    if times >= WORTH_A_COPY and w_t.dtype == torch.float32 and not by_tf32() and w_t.numel() <= LARGE:
        w_t = w_t.contiguous()
    return Product(w_t, torch.addmm, torch.mm)


def gradient(dy: Tensor) -> Gradient:
    """Return, for y = x @ w.T, the function (x, total) -> total + the gradient of w, which is dy.T @ x."""
    dy_t = dy.t()
    return lambda x, total: torch.mm(dy_t, x) if total is None else total.addmm_(dy_t, x)
