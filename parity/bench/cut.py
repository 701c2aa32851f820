"""What PyTorch can do with `lengths=` and `resets=`, which torch.nn's layers don't take: more rows of the table.

The truth is the float64 loop, run on each segment of each row alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..grid.ragged import Ragged, alone
from .capabilities import (
    Answer,
    Bench,
    H,
    Run,
    capability,
    close,
    compiled,
    each,
    flat,
    functional,
    in_onnxruntime,
    scalar,
    second,
)

GROUP = "lengths and resets"


def lengths_and_resets(b: Bench, steps: int = 5, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Return lengths from 1 to `steps`, and resets at about a third of the steps."""
    lengths = torch.randint(1, steps + 1, (rows,))
    resets = torch.rand((rows, steps) if b.batch_first else (steps, rows)) < 0.3
    return lengths.to(b.device), resets.to(b.device)


def run(b: Bench) -> Run:
    """Return the call (x, lengths, resets) of the subject, which gives all tensors of its result."""
    return lambda x, lengths, resets: tuple(flat(b.module(x, lengths=lengths, resets=resets)))


def truth(b: Bench) -> Run:
    """Return the same of the loop."""
    sizes = [b.options.get("proj_size", H), H][: 1 + (b.name == "LSTM")]
    return lambda x, lengths, resets: tuple(flat(alone(b.loop, x.double(), None, Ragged(lengths, resets, None), sizes)))


def true_grads(b: Bench, x: Tensor, *cut: Tensor) -> tuple[Tensor, ...]:
    """Return the loop's gradients of the input and of each parameter."""
    x = x.detach().double().requires_grad_()
    return torch.autograd.grad(scalar(truth(b)(x, *cut)), [x, *b.loop.parameters()])


@capability("backward", GROUP, cells=False)
def _(b: Bench) -> None:
    cut = lengths_and_resets(b)
    close(run(b)(b.x, *cut), truth(b)(b.x, *cut))
    close(b.grads(run(b), b.x, *cut), true_grads(b, b.x, *cut))


@capability("double backward", GROUP, cells=False)
def _(b: Bench) -> Answer:
    cut = lengths_and_resets(b)
    return second(lambda x: run(b)(x, *cut), b.x), second(lambda x: truth(b)(x, *cut), b.x.double())


@capability("jvp (forward mode)", GROUP, cells=False)
def _(b: Bench) -> Answer:
    cut = lengths_and_resets(b)
    found = torch.func.jvp(lambda x: run(b)(x, *cut), (b.x,), (b.v,))[1]
    return found, functional.jvp(lambda x: truth(b)(x, *cut), b.x.double(), b.v.double())[1]


@capability("vmap over inputs, lengths, resets", GROUP, cells=False)
def _(b: Bench) -> Answer:
    calls = [(b.input(), *lengths_and_resets(b)) for _ in range(3)]
    batched = tuple(map(torch.stack, zip(*calls, strict=True)))
    return torch.vmap(run(b))(*batched), each(truth(b), *batched)


@capability("per-sample gradients", GROUP, cells=False)
def _(b: Bench) -> None:
    calls = [(b.input(), *lengths_and_resets(b)) for _ in range(3)]

    def loss(params: dict[str, Tensor], x: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
        options = {"lengths": lengths, "resets": resets}
        return scalar(flat(torch.func.functional_call(b.module, params, (x,), options)))

    batched = tuple(map(torch.stack, zip(*calls, strict=True)))
    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(b.params, *batched)
    for k, call in enumerate(calls):
        close([grad[k] for grad in found.values()], true_grads(b, *call)[1:])


@capability("torch.compile, training, fullgraph", GROUP, cells=False)
def _(b: Bench) -> None:
    module = compiled(b, run=run(b))
    for steps, rows in ((5, 2), (7, 3)):
        x, cut = b.input(steps=steps, rows=rows), lengths_and_resets(b, steps, rows)
        close(module(x, *cut), truth(b)(x, *cut))
        close(b.grads(module, x, *cut), true_grads(b, x, *cut))


def export_arguments(b: Bench) -> dict[str, Any]:
    """Return what torch.export and torch.onnx.export are given: lengths and resets are inputs, all sizes are free."""
    lengths, resets = lengths_and_resets(b)
    steps, rows = torch.export.Dim("L", min=1), torch.export.Dim("N", min=1)
    shape = {0: rows, 1: steps} if b.batch_first else {0: steps, 1: rows}
    named = {"lengths": lengths, "resets": resets}
    dynamic = {"input": shape, "lengths": {0: rows}, "resets": shape}
    return {"args": (b.x,), "kwargs": named, "dynamic_shapes": dynamic}


def check_program(b: Bench, program: Run) -> None:
    """Run a program on other lengths and batches than it was made with."""
    with torch.no_grad():
        for steps, rows in ((1, 1), (7, 3), (40, 2)):
            x, cut = b.input(steps=steps, rows=rows), lengths_and_resets(b, steps, rows)
            close(program(x, *cut), truth(b)(x, *cut), rtol=1e-3, atol=1e-4)


@capability("torch.export, any length and batch", GROUP, cells=False)
def _(b: Bench) -> None:
    torch._dynamo.reset()
    program = torch.export.export(b.module.eval(), **export_arguments(b)).module()
    check_program(b, lambda x, lengths, resets: flat(program(x, lengths=lengths, resets=resets)))


@capability("ONNX, run by onnxruntime", GROUP, cells=False, needs="onnxruntime", slow=True, cpu_only=True)
def _(b: Bench) -> None:
    check_program(b, in_onnxruntime(b, **export_arguments(b)))
