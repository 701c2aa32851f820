"""Products, by whichever of torch's two libraries is the faster for the size.

torch's products of float32 matrices go to MKL, which is fastest where the weight lies transposed in memory: a copy of
it, once for all steps, halves the time of a step at many sizes. On some processors MKL runs at half their speed all the
same. oneDNN, which torch carries too, runs at full speed there, but a call of it costs some ten microseconds. Which one
pays is measured, not looked up by the processor's name: once in a process, in a few milliseconds, at the first product
large enough to care. That fixes one threshold on the size, so within a process equal calls give equal bits.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH_MEASURING = 2**19  # multiplications in a product; below, no processor repays a call of oneDNN
WORTH_A_COPY = 16  # products with one weight, from which they repay laying it transposed
WORTH_PACKING = 4  # or packing it for oneDNN
MANY_ROWS = 2**10  # of all products with one weight, from which they repay spreading it
FEW_ROWS = 64  # rows of a product that forms a weight's gradient, below which oneDNN takes longer
LARGE = 2**18  # elements of a weight, above which it comes from memory rather than from a cache nearby
BLOCK = 32  # rows of such a weight that are transposed at a time, and stay in cache for as long
CLEARLY = 0.75  # oneDNN is to take at most this share of MKL's time, lest noise choose between equals
#: What torch keeps for itself of oneDNN: where one of these is gone, MKL forms all products.
OPERATORS = [
    ("mkldnn", "_linear_pointwise"),
    ("mkldnn", "_reorder_linear_weight"),
    ("aten", "mkldnn_linear_backward_weights"),
]


Room: TypeAlias = Callable[[int], Tensor | None]
Affine: TypeAlias = Callable[[Tensor, Room], Tensor]
Gradient: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


class Product(NamedTuple):
    """Products with one weight, for many calls. The functions have the form of torch.addmm and torch.mm:

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


def _pack(w: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight.default(w.contiguous(), rows)  # type: ignore[no-any-return]


def seconds(function: Callable[[], object]) -> float:
    """The least of twenty calls, after one to warm up."""
    function()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def _threshold(threads: int) -> float:
    """Multiplications from which oneDNN is faster than MKL with this number of threads; infinite if it never is."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not all(hasattr(getattr(torch.ops, library), name) for library, name in OPERATORS):
        return float("inf")
    with torch.no_grad():
        one, x, w = (torch.ones(n, k, dtype=torch.float32, device="cpu") for n, k in ((8, 8), (64, 256), (512, 256)))
        packed, w_t = _pack(w, len(x)), w.t().contiguous()
        call = seconds(lambda: _onednn(one, one)) - seconds(lambda: torch.mm(one, one))
        by_mkl, by_onednn = seconds(lambda: torch.mm(x, w_t)), seconds(lambda: _onednn(x, packed)) - call
        if by_onednn > CLEARLY * by_mkl:
            return float("inf")
        return call / (by_mkl - by_onednn) * len(x) * w.numel()


def by_onednn(rows: int, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether products of so many rows with weights of this shape go to oneDNN."""
    size = rows * shape[0] * shape[1]
    return (
        size > WORTH_MEASURING
        and rows > 1  # one waits for the weight from memory, by either library
        and dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and size > _threshold(torch.get_num_threads())
    )


def linear(x: Tensor, w: Tensor) -> Tensor:
    """x @ w.T, once with this weight."""
    return _onednn(x, w) if by_onednn(len(x), w.shape, w.dtype) else F.linear(x, w)


def spread(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor of like's kind, whose rows take an odd number of cache lines: what lies a large power of two
    apart, or a multiple of it, meets in few places of a cache, and drives each other out when MKL reads columns."""
    line = 64 // like.element_size()
    return like.new_empty(*shape[:-1], (-(-shape[-1] // line) | 1) * line)[..., : shape[-1]]


def for_many(rows: int, w: Tensor) -> Tensor:
    """w, as products with so many rows in total had best find it."""
    return spread(w, *w.shape).copy_(w) if rows >= MANY_ROWS else w


def affine(total: int, rows: int, w: Tensor, b: Tensor | None) -> Affine:
    """The function (x, room) -> x @ w.T + b for calls with so many rows in total, and at most so many in one. It is
    written to room(len(x)), or to memory of its own where there is none or that takes less time."""
    if by_onednn(rows, w.shape, w.dtype):
        return lambda x, _: _onednn(x, w, b)
    w_t = for_many(total, w).t()
    if b is None:
        return lambda x, room: torch.mm(x, w_t, out=room(len(x)))
    # MKL would have the bias written to every row first, and read again.
    return lambda x, room: torch.mm(x, w_t, out=room(len(x))).add_(b)


def transposed(w: Tensor) -> Tensor:
    """w.T, laid in memory for MKL to read again and again."""
    if w.numel() <= LARGE:
        return w.t().contiguous()
    w_t = spread(w, w.size(1), w.size(0))
    for part, block in zip(torch.split(w_t, BLOCK, 1), torch.split(w, BLOCK), strict=True):
        part.copy_(block.t())
    return w_t


def repeated(times: int, rows: int, w: Tensor) -> Product:
    """For so many products with w.T, of at most so many rows each."""
    if times >= WORTH_PACKING and by_onednn(rows, w.shape, w.dtype):
        return Product(_pack(w, rows), _onednn_addmm, _onednn_mm)
    w_t = w.t()
    # It gains less where it is transposed as it is. One or two rows wait for a large one, however it lies.
    worth = 2 * WORTH_A_COPY if w_t.is_contiguous() else WORTH_A_COPY
    if times >= worth and (rows > 2 or w.numel() <= LARGE):
        w_t = transposed(w)
    return Product(w_t, torch.addmm, torch.mm)


def exact(w: Tensor, b: Tensor | None = None) -> Product:
    """As `repeated`, and with b added, by ATen's operations in ATen's order. The factor is copied, to begin where new
    tensors do: MKL's last bits depend on where a factor begins, and on how the weight lies."""
    return Product(
        w,
        lambda a, x, w, out: torch.add(F.linear(x.clone(), w, b), a, out=out),
        lambda x, w, out: out.copy_(F.linear(x.clone(), w, b)),
    )


def gradient(dy: Tensor) -> Gradient:
    """For y = x @ w.T the function (x, total) -> total + the gradient of w, dy.T @ x."""
    copies: list[Tensor] = []  # oneDNN wants one of dy: it serves all calls

    def gradient(x: Tensor, total: Tensor | None) -> Tensor:
        # A quarter of the rows, for the copies have to pay, too; and for few they never do.
        if len(dy) < FEW_ROWS or not by_onednn(len(dy) // 4, (dy.size(1), x.size(1)), dy.dtype):
            return torch.mm(dy.t(), x) if total is None else total.addmm_(dy.t(), x)
        if not copies:
            copies.append(dy.to_mkldnn())
        grad = torch.ops.aten.mkldnn_linear_backward_weights.default(copies[0], x.to_mkldnn(), x, False)[0]
        return grad if total is None else total.add_(grad)

    return gradient
