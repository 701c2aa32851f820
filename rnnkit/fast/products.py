"""Matrix products, by whichever of torch's two libraries is the faster for the size.

torch's products of float32 matrices go to MKL, which is fastest where the weight lies transposed in memory: a copy of
it, once for all steps, halves the time of a step at many sizes. oneDNN, which torch carries too, takes a packed weight:
on some processors it is twice as fast for large products, on some for none. Which one pays is measured, once in a
process for each size, in a few milliseconds. So within a process equal calls give equal bits; between processes they do
where torch.use_deterministic_algorithms is on: then nothing is measured, and MKL forms all products.
"""

import timeit
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH_MEASURING = 2**19  # multiplications in a product; below, no processor repays a call of oneDNN
MEASURED = 512  # rows of a product that is measured, at most: with more, both libraries take as much longer
WORTH_A_COPY = 16  # products with one weight, from which they repay laying it transposed
WORTH_PACKING = 4  # or packing it for oneDNN
MANY_ROWS = 2**10  # of all products with one weight, from which they repay a copy of it in odd lines
LARGE = 2**18  # elements of a weight, above which it comes from memory rather than from a cache nearby
BLOCK = 32  # rows of such a weight that are transposed at a time, and stay in cache for as long
CLEARLY = 0.95  # oneDNN is to take at most this share of MKL's time, lest noise choose between equals
#: What torch keeps for itself of oneDNN: where one of these is gone, MKL forms all products.
OPERATORS = [
    ("mkldnn", "_linear_pointwise"),
    ("mkldnn", "_reorder_linear_weight"),
    ("aten", "mkldnn_linear_backward_weights"),
]

IN_PLACE = False  # whether a step adds its product to the igates where they stand, rather than where a cache has room

Use: TypeAlias = Literal["alone", "added", "gradient"]  # x @ w.T, a + x @ w.T, dy.T @ x
Affine: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Gradient: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


class Product(NamedTuple):
    """A product with one weight, for many calls. The functions have the form of torch.addmm and torch.mm:

    addmm(a, x, w, out=)  a + x @ weight.T
    mm(x, w, out=)        x @ weight.T
    """

    w: Tensor  # the weight, as the functions want it
    addmm: Callable[..., Tensor]
    mm: Callable[..., Tensor]


def _onednn(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, w, b, "none", [], "")  # type: ignore[no-any-return]


def _onednn_addmm(a: Tensor, x: Tensor, w: Tensor, out: Tensor) -> Tensor:
    return torch.add(a, _onednn(x, w), out=out)


def _onednn_mm(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    return _onednn(x, w) if out is None else out.copy_(_onednn(x, w))


def _onednn_gradient(dy: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.mkldnn_linear_backward_weights.default(dy, x.to_mkldnn(), x, False)[0]  # type: ignore[no-any-return]


def _pack(w: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight.default(w.contiguous(), rows)  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _available() -> bool:
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and all(hasattr(getattr(torch.ops, library), name) for library, name in OPERATORS)


def seconds(function: Callable[[], object]) -> float:
    """Return the least time of several calls."""
    return min(timeit.repeat(function, number=1, repeat=8))


@lru_cache(maxsize=1024)
def _onednn_is_faster(use: Use, threads: int, rows: int, outputs: int, inputs: int) -> bool:
    """Say whether oneDNN takes clearly less time than MKL for `rows` rows and a weight (outputs, inputs), by trying."""
    with torch.no_grad():
        x, w = (torch.ones(n, inputs, dtype=torch.float32, device="cpu") for n in (rows, outputs))
        dy = new_rows(x, rows, 2 * outputs)[:, :outputs].fill_(1)  # columns of wider rows, as it often is
        a, w_t, packed = x.new_ones(rows, outputs), transposed(w), _pack(w, rows)
        mkl, onednn = {
            "alone": (lambda: torch.mm(x, w_t, out=a), lambda: _onednn(x, packed)),
            "added": (lambda: torch.addmm(a, x, w_t, out=a), lambda: _onednn_addmm(a, x, packed, out=a)),
            "gradient": (lambda: torch.mm(dy.t(), x), lambda: _onednn_gradient(dy.to_mkldnn(), x)),
        }[use]
        return seconds(onednn) < CLEARLY * seconds(mkl)


def by_onednn(use: Use, rows: int, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Say whether products of `rows` rows with a weight of this shape go to oneDNN."""
    return (
        rows * shape[0] * shape[1] > WORTH_MEASURING
        and rows > 1  # a single one waits for the weight from memory, by either library
        and dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and not torch.are_deterministic_algorithms_enabled()
        and _available()
        # A power of two of rows stands for all down to the one before, lest each size of batch be measured.
        and _onednn_is_faster(use, torch.get_num_threads(), min(1 << (rows - 1).bit_length(), MEASURED), *shape)
    )


def new_rows(like: Tensor, *shape: int) -> Tensor:
    """Allocate a tensor of like's dtype whose rows take an odd number of cache lines.

    What lies a large power of two apart, or a multiple of it, meets in few places of a cache, and drives each other out
    when MKL reads columns.
    """
    line = 64 // like.element_size()
    return like.new_empty(*shape[:-1], (-(-shape[-1] // line) | 1) * line)[..., : shape[-1]]


def transposed(w: Tensor) -> Tensor:
    """Return w.T, laid in memory for MKL to read again and again."""
    if w.numel() <= LARGE:
        return w.t().contiguous()
    w_t = new_rows(w, w.size(1), w.size(0))
    for part, block in zip(torch.split(w_t, BLOCK, 1), torch.split(w, BLOCK), strict=True):
        part.copy_(block.t())
    return w_t


def affine(total: int, rows: int, w: Tensor, b: Tensor | None) -> Affine:
    """Return the function (x, out) -> x @ w.T + b, for calls with `total` rows together and at most `rows` in one.

    It writes to `out` and returns that, or returns memory of its own where that takes less time.
    """
    if by_onednn("alone", rows, w.shape, w.dtype):
        packed = _pack(w, rows)
        return lambda x, out: _onednn(x, packed, b)
    w_t = (w if total < MANY_ROWS else new_rows(w, *w.shape).copy_(w)).t()
    if b is None:
        return lambda x, out: torch.mm(x, w_t, out=out)
    # MKL would have the bias written to every row first, and read again.
    return lambda x, out: torch.mm(x, w_t, out=out).add_(b)


def repeated(times: int, rows: int, w_t: Tensor) -> Product:
    """Make the product with w_t ready for `times` calls of at most `rows` rows each."""
    if times >= WORTH_PACKING and by_onednn("added", rows, w_t.shape[::-1], w_t.dtype):
        return Product(_pack(w_t.t(), rows), _onednn_addmm, _onednn_mm)
    # A weight that lies transposed already gains less. One or two rows wait for a large one, however it lies.
    worth = times >= 2 * WORTH_A_COPY or (times >= WORTH_A_COPY and not w_t.is_contiguous())
    if worth and (rows > 2 or w_t.numel() <= LARGE):
        w_t = transposed(w_t.t())
    return Product(w_t, torch.addmm, torch.mm)


def exact(w: Tensor, b: Tensor | None = None) -> Product:
    """Make the product with w.T, plus b, ready, by ATen's operations in ATen's order.

    The factor is copied, to begin where new tensors do: MKL's last bits depend on where a factor begins, and on how the
    weight lies.
    """
    return Product(
        w,
        lambda a, x, w, out: torch.add(F.linear(x.clone(), w, b), a, out=out),
        lambda x, w, out: out.copy_(F.linear(x.clone(), w, b)),
    )


def gradient(dy: Tensor) -> Gradient:
    """Return, for y = x @ w.T, the function (x, total) -> total + the gradient of w, which is dy.T @ x."""
    copies: list[Tensor] = []  # oneDNN wants one of dy: it serves all calls

    def gradient(x: Tensor, total: Tensor | None) -> Tensor:
        if not by_onednn("gradient", dy.size(0), (dy.size(1), x.size(1)), dy.dtype):
            return torch.mm(dy.t(), x) if total is None else total.addmm_(dy.t(), x)
        if not copies:
            copies.append(dy.to_mkldnn())
        grad = _onednn_gradient(copies[0], x)
        return grad if total is None else total.add_(grad)

    return gradient
