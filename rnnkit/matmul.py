"""Products, by whichever of torch's two libraries is the faster for the size.

torch's products of float32 matrices go to MKL, which on some processors runs at half their speed. oneDNN, which torch
carries too, runs at full speed there, but a call of it costs some ten microseconds. Which one pays is measured, not
looked up by the processor's name: once in a process, in a few milliseconds, at the first product large enough to care.
That fixes one threshold on the size, so within a process equal calls give equal bits.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH_MEASURING = 2**19  # multiplications in a product; below, no processor repays a call of oneDNN
#: What torch keeps for itself of oneDNN: where one of these is gone, MKL forms all products.
OPERATORS = [
    ("mkldnn", "_linear_pointwise"),
    ("mkldnn", "_reorder_linear_weight"),
    ("aten", "mkldnn_linear_backward_weights"),
]


def _onednn(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, w, b, "none", [], "")  # type: ignore[no-any-return]


def _pack(w: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight.default(w.contiguous(), rows)  # type: ignore[no-any-return]


def seconds(function: Callable[[], object]) -> float:
    """The least of five calls, after one to warm up."""
    function()
    times = []
    for _ in range(5):
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
        packed = _pack(w, len(x))
        call = seconds(lambda: _onednn(one, one)) - seconds(lambda: F.linear(one, one))
        gain = seconds(lambda: F.linear(x, w)) - seconds(lambda: _onednn(x, packed)) + call
    return call / gain * len(x) * w.numel() if gain > 0 else float("inf")


def by_onednn(rows: int, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether products of so many rows with weights of this shape go to oneDNN."""
    size = rows * math.prod(shape)
    return (
        size > WORTH_MEASURING
        and dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and size > _threshold(torch.get_num_threads())
    )


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x @ w.T + b, once with this weight."""
    return _onednn(x, w, b) if by_onednn(len(x), w.shape, w.dtype) else F.linear(x, w, b)


def repeated(rows: int, w: Tensor, b: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """The function x -> x @ w.T + b, for many calls with at most so many rows: packs the weight where that pays."""
    if by_onednn(rows, w.shape, w.dtype):
        packed, linear = _pack(w, rows), torch.ops.mkldnn._linear_pointwise.default
        return lambda x: linear(x, packed, b, "none", [], "")
    w_t = w.t()
    return (lambda x: torch.mm(x, w_t)) if b is None else (lambda x: torch.addmm(b, x, w_t))


def outer(dy: Tensor) -> Callable[[Tensor], Tensor]:
    """The function x -> dy.T @ x, the gradient of w in y = x @ w.T. oneDNN wants a copy of dy: one serves all calls."""
    copies: list[Tensor] = []

    def product(x: Tensor) -> Tensor:
        if not by_onednn(len(dy) // 4, (dy.size(1), x.size(1)), dy.dtype):  # a quarter: copies have to pay, too
            return torch.mm(dy.t(), x)
        if not copies:
            copies.append(dy.to_mkldnn())
        return torch.ops.aten.mkldnn_linear_backward_weights.default(copies[0], x.to_mkldnn(), x, False)[0]  # type: ignore[no-any-return]

    return product
