"""What PyTorch can do with a recurrent module, one check for each capability.

A check passes where every number agrees with a float64 loop over the steps (`Planted`), and every derivative with
plain reverse-mode differentiation of that loop; no transform is compared with itself.

A check is given a `Bench` and answers in one of four ways: with what it found and what is true, a pair whose tensors
must agree; with a way to run, whose outputs and gradients must be the loop's; with a remark; or with nothing, having
compared by itself. What is lacking it says by an exception.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from ..grid.cases import CLASSES
from ..grid.run import tf32
from ..grid.subject import Settings, load
from ..mutants.module import Planted, implementation

LOOP = implementation(Planted)
H_IN, H, N, L = 3, 4, 2, 5
functional: Any = torch.autograd.functional  # has no annotations
#: The configurations that a cell of the table stands for.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "RNN": [{}, {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"}],
    "LSTM": [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": False}],
    "GRU": [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}],
    "RNNCell": [{}, {"bias": False, "nonlinearity": "relu"}],
    "LSTMCell": [{}, {"bias": False}],
    "GRUCell": [{}, {"bias": False}],
}


class WrongError(AssertionError):
    """The code ran, and its numbers are not those of the loop."""


def close(actual: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Raise WrongError unless the tensors of both agree."""
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    if len(actual) != len(expected):
        raise WrongError(f"{len(actual)} results for {len(expected)}")
    for found, wanted in zip(actual, expected, strict=True):
        if found is None or wanted is None:
            if found is not wanted:
                raise WrongError(f"{found} for {wanted}")
            continue
        if found.shape != wanted.shape:
            raise WrongError(f"shape {tuple(found.shape)} for {tuple(wanted.shape)}")
        if not torch.allclose(found.detach().double(), wanted.detach().double(), rtol, atol):
            raise WrongError(f"off by {(found.detach().double() - wanted.detach().double()).abs().max():.1e}")


class Bench:
    """A module of one class in one configuration, and the float64 loop with the same weights."""

    def __init__(
        self, library: Any, name: str, options: dict[str, Any], dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        self.library, self.name, self.options, self.dtype, self.device = library, name, options, dtype, device
        self.loop = getattr(LOOP, name)(H_IN, H, **options).double().to(device)
        self.module = self.make()
        self.module.load_state_dict(self.loop.state_dict())
        self.is_cell = name.endswith("Cell")
        self.batch_first = options.get("batch_first", False)
        # What most checks take: an input, another (a direction), a state. Drawn here, so in no transform.
        self.x, self.v, self.hx = self.input(), self.input(), self.state()

    def make(self, **more: Any) -> Any:
        place = {} if self.device == "cpu" else {"device": self.device}
        return getattr(self.library, self.name)(H_IN, H, **place | self.options | more, dtype=self.dtype)

    def variant(self, dtype: torch.dtype | None = None, **more: Any) -> Bench:
        return Bench(self.library, self.name, self.options | more, dtype or self.dtype, self.device)

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def input(self, *lead: int, steps: int = L, rows: int = N) -> Tensor:
        shape = (rows,) if self.is_cell else (rows, steps) if self.batch_first else (steps, rows)
        return torch.randn(*lead, *shape, H_IN, dtype=self.dtype).to(self.device)

    def state(self, *lead: int, rows: int = N) -> Any:
        slots = () if self.is_cell else (self.loop.num_layers * (2 if self.loop.bidirectional else 1),)
        sizes = [self.options.get("proj_size", H)] + [H] * self.name.startswith("LSTM")
        states = tuple(torch.randn(*lead, *slots, rows, size, dtype=self.dtype).to(self.device) for size in sizes)
        return states if len(states) > 1 else states[0]

    def run(self, x: Any, hx: Any = None, params: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return every tensor that the module returns: output and h_n, or h of a cell, and c where there is one."""
        result = self.module(x, hx) if params is None else torch.func.functional_call(self.module, params, (x, hx))
        return tuple(flat(result))

    def truth(self, x: Any, hx: Any = None, params: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return the same of the loop, in float64."""
        x = PackedSequence(x.data.double(), *x[1:]) if isinstance(x, PackedSequence) else x.double()
        hx = hx if hx is None else hx.double() if isinstance(hx, Tensor) else tuple(h.double() for h in hx)
        forward = Forward(self.loop)
        if params is None:
            return tuple(flat(forward(x, hx)))
        named = {f"loop.{name}": value.double() for name, value in params.items()}
        return tuple(flat(torch.func.functional_call(forward, named, (x, hx))))

    def loss(self, *args: Any) -> Tensor:
        return scalar(self.run(*args))

    def true_loss(self, *args: Any) -> Tensor:
        return scalar(self.truth(*args))

    def true_grads(self, x: Tensor, hx: Any = None, params: dict[str, Tensor] | None = None) -> list[Tensor]:
        """Return the loop's gradients of the input and of each parameter, by plain reverse mode."""
        x = x.detach().double().requires_grad_()
        params = {k: v.detach().double().requires_grad_() for k, v in (params or self.params).items()}
        return list(torch.autograd.grad(self.true_loss(x, hx, params), [x, *params.values()]))

    def grads(self, run: Callable[..., Any], x: Tensor, *args: Any) -> list[Tensor]:
        """Return the gradients of the input and of each parameter of `run`."""
        x = x.detach().requires_grad_()
        return list(torch.autograd.grad(scalar(flat(run(x, *args))), [x, *self.module.parameters()]))


class Forward(nn.Module):
    """The loop without its question to torch.nn, which functional_call would not reach."""

    def __init__(self, loop: Any) -> None:
        super().__init__()
        self.loop = loop

    def forward(self, x: Any, hx: Any) -> Any:
        loop: Any = self.loop
        return loop.run(x, hx)


def flat(result: Any) -> list[Tensor]:
    """Return the tensors of a result, of a PackedSequence only its rows."""
    if isinstance(result, PackedSequence):
        return [result.data]
    return [t for part in result for t in flat(part)] if isinstance(result, (tuple, list)) else [result]


def scalar(outputs: Sequence[Tensor]) -> Tensor:
    """Return a loss that no output is missing from, each with a weight of its own."""
    nothing = torch.zeros((), device=outputs[0].device)
    return sum(((k + 1) * (out * out).sum() + out.sum() for k, out in enumerate(outputs)), nothing)


def each(benchmark: Callable[[Any], Any], *batched: Any) -> tuple[Tensor, ...]:
    """Say what vmap should give: the calls one by one, stacked."""
    calls = []
    for k in range(len(tree_leaves(batched)[0])):
        calls.append(benchmark(*(tree_map(lambda t, k=k: t[k], b) for b in batched)))
    return tuple(map(torch.stack, zip(*calls, strict=True)))


Run = Callable[..., Any]
Answer = tuple[Any, Any] | Run | str | None
Check = Callable[[Bench], Answer]


@dataclass(frozen=True)
class Capability:
    """One row of the table."""

    name: str
    group: str
    check: Check
    cells: bool = True
    slow: bool = False
    needs: str = ""  # a package, without which the row is skipped
    apart: bool = False  # run in two processes, all classes at once
    cpu_only: bool = False

    def remark(self, b: Bench) -> str:
        """Check a module, and compare what the check answers with the loop."""
        answer = self.check(b)
        if isinstance(answer, tuple):
            close(*answer)
        elif callable(answer):
            x = b.x.clone().requires_grad_()
            y = flat(answer(x, b.hx))
            close(y, b.truth(b.x, b.hx))
            close(torch.autograd.grad(scalar(y), [x, *b.module.parameters()]), b.true_grads(b.x, b.hx))
        return answer if isinstance(answer, str) else ""


CAPABILITIES: list[Capability] = []
#: What can be asked on a GPU alone, or is of interest there alone.
ON_GPU: list[Capability] = []


def capability(name: str, group: str, **options: Any) -> Callable[[Check], None]:
    """Register a check, written as a lambda where it is one expression."""
    rows = ON_GPU if group == "on a GPU" else CAPABILITIES
    return lambda check: rows.append(Capability(name, group, check, **options))


# Autograd -----------------------------------------------------------------------------------------------------------

capability("backward", "autograd")(lambda b: b.run)
capability("backward in eval mode", "autograd")(lambda b: b.module.eval())


def second(run: Run, x: Tensor) -> Any:
    """Differentiate the square of the first derivative by x."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(scalar(run(x)), x, create_graph=True)
    return torch.autograd.grad((first**2).sum(), x)


capability("double backward", "autograd")(lambda b: (second(b.run, b.x), second(b.truth, b.x.double())))


@capability("gradcheck, gradgradcheck", "autograd")
def _(b: Bench) -> None:
    b = b.variant(torch.float64)
    x = b.input(steps=3).requires_grad_()
    close(b.grads(b.run, x, b.hx), b.true_grads(x, b.hx))  # gradcheck itself compares a module with itself
    names, values = zip(*b.params.items(), strict=True)
    values = tuple(value.requires_grad_() for value in values)

    def run(x: Tensor, *values: Tensor) -> Any:
        return b.run(x, b.hx, dict(zip(names, values, strict=True)))

    torch.autograd.gradcheck(run, (x, *values))
    torch.autograd.gradgradcheck(run, (x, *values), fast_mode=True)


def true_jvp(b: Bench) -> Any:
    """Differentiate the loop along `b.v`, by double backward."""
    return functional.jvp(b.truth, b.x.double(), b.v.double())[1]


capability("jvp (forward mode)", "autograd")(lambda b: (torch.func.jvp(b.run, (b.x,), (b.v,))[1], true_jvp(b)))
capability("jacfwd", "autograd")(lambda b: (torch.func.jacfwd(b.run)(b.x), functional.jacobian(b.truth, b.x.double())))
capability("linearize", "autograd")(lambda b: (torch.func.linearize(b.run, b.x)[1](b.v), true_jvp(b)))


@capability("hessian, forward over reverse", "autograd")
def _(b: Bench) -> Answer:
    x = b.input(steps=3)
    return torch.func.hessian(b.loss)(x), functional.hessian(b.true_loss, x.double())


@capability("torch.autograd.functional", "autograd")
def _(b: Bench) -> Answer:
    x, v = b.input(steps=3), b.input(steps=3)
    found = functional.hessian(b.loss, x), functional.vhp(b.loss, x, v)[1]
    x, v = x.double(), v.double()
    return found, (functional.hessian(b.true_loss, x), functional.vhp(b.true_loss, x, v)[1])


@capability("batched gradients", "autograd")
def _(b: Bench) -> Answer:
    x, z = b.x.clone().requires_grad_(), b.x.double().requires_grad_()
    y = b.run(x)[0]
    vectors = torch.randn(3, *y.shape).to(b.device)
    expected = [torch.autograd.grad(b.truth(z)[0], z, v.double())[0] for v in vectors]
    return torch.autograd.grad(y, x, vectors, is_grads_batched=True), torch.stack(expected)


@capability("saved-tensor hooks", "autograd")
def _(b: Bench) -> Answer:
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = b.grads(b.run, b.x)
    if not packed:
        raise WrongError("nothing was packed")
    return found, b.true_grads(b.x)


capability("checkpoint", "autograd")(lambda b: functools.partial(checkpoint, b.run, use_reentrant=False))


# torch.func ---------------------------------------------------------------------------------------------------------


@capability("vmap over inputs", "torch.func")
def _(b: Bench) -> None:
    xs = b.input(3)
    close(torch.vmap(b.run)(xs), each(b.truth, xs))
    moved = torch.vmap(b.run, in_dims=1, out_dims=2)(xs.movedim(0, 1))
    close([t.movedim(2, 0) for t in moved], each(b.truth, xs))


@capability("vmap over states", "torch.func")
def _(b: Bench) -> Answer:
    states = b.state(3)
    return torch.vmap(b.run, in_dims=(None, 0))(b.x, states), each(lambda hx: b.truth(b.x, hx), states)


@capability("ensemble: vmap over parameters", "torch.func")
def _(b: Bench) -> Answer:
    params, _ = torch.func.stack_module_state([b.make() for _ in range(3)])
    params = {name: value.detach() for name, value in params.items()}
    return torch.vmap(lambda p: b.run(b.x, None, p))(params), each(lambda p: b.truth(b.x, None, p), params)


@capability("per-sample gradients", "torch.func")
def _(b: Bench) -> None:
    xs, params = b.input(3), b.params
    found = torch.vmap(torch.func.grad(lambda p, x: b.loss(x, None, p)), in_dims=(None, 0))(params, xs)
    for k, x in enumerate(xs):
        close([grad[k] for grad in found.values()], b.true_grads(x, None, params)[1:])


@capability("vmap with dropout, randomness=", "torch.func", cells=False)
def _(b: Bench) -> None:
    b = b.variant(num_layers=2, dropout=0.5)
    xs = b.input().expand(4, *b.input().shape)
    same = torch.vmap(b.run, randomness="same")(xs)[0]
    different = torch.vmap(b.run, randomness="different")(xs)[0]
    close(same, same[:1].expand_as(same), rtol=0, atol=1e-6)
    if torch.allclose(different[0], different[1]):
        raise WrongError("one mask for all")


@capability("vmap over packed rows", "torch.func", cells=False)
def _(b: Bench) -> Answer:
    rows, sizes = torch.randn(3, 7, H_IN).to(b.device), torch.tensor([3, 2, 2])

    def rewrapped(function: Run) -> Run:
        return lambda data: function(PackedSequence(data, sizes))

    return torch.vmap(rewrapped(b.run))(rows), each(rewrapped(b.truth), rows)


# torch.compile ------------------------------------------------------------------------------------------------------


def compiled(b: Bench, backend: Any = "aot_eager", run: Run | None = None, **options: Any) -> Run:
    """Compile the module, or a way to run it, in one piece, with nothing left of what was compiled before."""
    torch._dynamo.reset()
    return torch.compile(run or b.module, backend=backend, fullgraph=True, **options)


@capability("inference, fullgraph", "torch.compile")
def _(b: Bench) -> None:
    module = compiled(b)
    with torch.no_grad():
        close(flat(module(b.x, b.hx)), b.truth(b.x, b.hx))
        close(flat(module(b.x)), b.truth(b.x))


capability("training, fullgraph", "torch.compile")(compiled)


@capability("any length and batch, one graph", "torch.compile", cells=False)
def _(b: Bench) -> None:
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    module, made = compiled(b, counting, dynamic=True), []
    for steps, rows in ((5, 6), (7, 2), (100, 8)):  # sizes equal at first the compiler takes to be equal for good
        x = b.input(steps=steps, rows=rows)
        close(b.grads(module, x), b.true_grads(x), rtol=1e-3)
        made.append(len(graphs))
    if made[-1] > made[0]:
        raise WrongError(f"graphs made after each length: {made}")
    if len(graphs[-1].graph.nodes) > 120:
        raise WrongError(f"a graph of {len(graphs[-1].graph.nodes)} nodes")


@capability("dropout", "torch.compile", cells=False)
def _(b: Bench) -> Answer:
    b = b.variant(num_layers=2, dropout=1.0)  # nothing comes through: each upper layer is fed zeros
    return flat(compiled(b)(b.x)), b.truth(b.x)


@capability("packed", "torch.compile", cells=False)
def _(b: Bench) -> Answer:
    indices = torch.tensor([0, 1, 2], device=b.device)
    given = PackedSequence(torch.randn(7, H_IN).to(b.device), torch.tensor([3, 2, 2]), indices, indices)
    return flat(compiled(b)(given)), b.truth(given)


capability("inductor", "torch.compile", slow=True)(lambda b: compiled(b, "inductor"))


# torch.export -------------------------------------------------------------------------------------------------------


def dimensions(b: Bench) -> tuple[Any, ...]:
    length, batch = torch.export.Dim("L", min=1), torch.export.Dim("N", min=1)
    x = {0: batch} if b.is_cell else {0: batch, 1: length} if b.batch_first else {0: length, 1: batch}
    hx: Any = {0 if b.is_cell else 1: batch}
    return x, (hx, hx) if b.name.startswith("LSTM") else hx


def exported(b: Bench, **options: Any) -> Any:
    torch._dynamo.reset()
    b.module.eval()
    return torch.export.export(b.module, (b.x, b.hx), dynamic_shapes=dimensions(b), **options)


def check_program(b: Bench, run: Callable[[list[Any]], list[Any]]) -> None:
    """Have `run` take calls of other lengths and batches than the program was made with."""
    calls = [(b.input(steps=t, rows=n), b.state(rows=n)) for t, n in ((1, 1), (7, 3), (500, 2))]
    with torch.no_grad():
        for call, result in zip(calls, run(calls), strict=True):
            close(flat(result), b.truth(*call), rtol=1e-3, atol=1e-4)


def one_by_one(program: Run) -> Callable[[list[Any]], list[Any]]:
    """Return the function that runs a program on each of the calls."""
    return lambda calls: [program(*call) for call in calls]


capability("any length and batch", "torch.export")(lambda b: check_program(b, one_by_one(exported(b).module())))
capability("strict", "torch.export")(lambda b: check_program(b, one_by_one(exported(b, strict=True).module())))


LOAD = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    torch.save([program(*call) for call in torch.load(sys.argv[2])], sys.argv[3])
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@capability("saved, run without the subject", "torch.export", slow=True)
def _(b: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("program.pt2", "calls.pt", "results.pt")]
        torch.export.save(exported(b), paths[0])

        def elsewhere(calls: list[Any]) -> Any:
            torch.save(calls, paths[1])
            command = [sys.executable, "-W", "ignore", "-c", LOAD, *paths]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            if b.library.__name__.split(".")[0] in set(done.stdout.split()) - {"torch"}:
                raise WrongError("the artefact imports the subject")
            return torch.load(paths[2])

        check_program(b, elsewhere)


def in_onnxruntime(b: Bench, **arguments: Any) -> Run:
    """Export the module to ONNX, and return the function that runs it on the tensors of a call."""
    import onnxruntime

    torch._dynamo.reset()
    program = torch.onnx.export(b.module.eval(), **arguments, dynamo=True, verbose=False)
    assert program is not None
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*call: Any) -> list[Tensor]:
        values = [tensor.numpy() for tensor in flat(call)]
        return [torch.from_numpy(y) for y in session.run(None, dict(zip(names, values, strict=True)))]

    return run


@capability("ONNX, run by onnxruntime", "torch.export", needs="onnxruntime", slow=True, cpu_only=True)
def _(b: Bench) -> None:
    check_program(b, one_by_one(in_onnxruntime(b, args=(b.x, b.hx), dynamic_shapes=dimensions(b))))


# No steps at all ----------------------------------------------------------------------------------------------------


def check_no_steps(b: Bench, x: Any, rows: int) -> None:
    """Require an empty output, and the state handed through with its gradient."""
    hx = tree_map(lambda t: t.requires_grad_(), b.state(rows=rows))
    output, *h_n = b.run(x, hx)
    if output.numel():
        raise WrongError("an output of no steps")
    close(h_n, flat(hx), rtol=0, atol=0)
    grads = torch.autograd.grad(scalar([output, *h_n]), flat(hx))
    close(grads, [(k + 2) * 2 * h + 1 for k, h in enumerate(flat(hx))])


@capability("length 0", "no steps", cells=False)
def _(b: Bench) -> None:
    check_no_steps(b, b.input(steps=0), N)
    if b.run(b.input(steps=0))[0].size(-1) != b.truth(b.input())[0].size(-1):
        raise WrongError("the empty output has another width")


@capability("packed, rows of length 0", "no steps", cells=False)
def _(b: Bench) -> None:
    sizes, order = torch.tensor([2, 1]), torch.tensor([1, 3, 0, 2], device=b.device)  # rows 0 and 2 of 4: no step
    x, hx = torch.randn(3, H_IN).to(b.device), b.state(rows=4)
    output, *h_n = b.run(PackedSequence(x, sizes, order, order.argsort()), hx)
    given = [h[:, order] for h in flat(hx)]
    alive = tuple(h[:, :2] for h in given)
    expected, *states = b.truth(PackedSequence(x, sizes), alive if len(alive) > 1 else alive[0])
    close(output, expected)
    close(h_n, [torch.cat([s, h[:, 2:]], 1)[:, order.argsort()] for s, h in zip(states, given, strict=True)])


@capability("packed, all rows of length 0", "no steps", cells=False)
def _(b: Bench) -> None:
    nothing, order = torch.zeros(0, dtype=torch.int64), torch.arange(3, device=b.device)
    check_no_steps(b, PackedSequence(torch.zeros(0, H_IN, device=b.device), nothing, order, order), 3)


# Many processes -----------------------------------------------------------------------------------------------------


def check_halves(b: Bench, wrap: Callable[[nn.Module], Any], whole: Callable[[Any], Tensor]) -> None:
    """Run half of the batch in each of two processes; loss and gradients must be those of all of it in one."""
    import torch.distributed as dist

    x, hx, half = b.input(rows=4), b.state(rows=4), slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    mine = x[half] if b.is_cell or b.batch_first else x[:, half]
    states = tuple(h[half] if b.is_cell else h[:, half] for h in flat(hx))
    params = b.params
    model = wrap(b.module)
    loss = scalar(flat(model(mine, states if len(states) > 1 else states[0])))
    loss.backward()  # type: ignore[no-untyped-call]
    dist.all_reduce(total := loss.detach().clone())
    close(total, b.true_loss(x, hx), rtol=1e-3)
    found = dict(b.module.named_parameters())
    grads = [2 * whole(found[name].grad) for name in params]  # what comes back is the mean over the processes
    close(grads, b.true_grads(x, hx, params)[1:], rtol=1e-3, atol=1e-4)


capability("DistributedDataParallel", "processes", apart=True, slow=True, cpu_only=True)(
    lambda b: check_halves(b, nn.parallel.DistributedDataParallel, lambda grad: grad)
)


@capability("FSDP2 fully_shard", "processes", apart=True, slow=True, cpu_only=True)
def _(b: Bench) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    check_halves(b, lambda module: fully_shard(module, mesh=mesh), lambda grad: grad.full_tensor())


@functools.cache
def two_processes(library: Any) -> dict[str, dict[str, list[str]]]:
    """Return outcomes by capability and class, of code that ran in two processes joined by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (library.__name__, getattr(library, "settings", {}), folder)
        spawn(_process, arguments, nprocs=2)  # type: ignore[no-untyped-call]
        outcomes: dict[str, dict[str, list[str]]] = json.loads(Path(folder, "outcomes.json").read_text())
        return outcomes


def _process(rank: int, subject: str, settings: Settings, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    with quiet():
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    library = load(subject, settings)
    rows = [replace(row, apart=False) for row in CAPABILITIES if row.apart]
    found = {row.name: {name: outcome(row, library, name) for name in CLASSES} for row in rows}
    if rank == 0:
        Path(folder, "outcomes.json").write_text(json.dumps(found))
    dist.barrier()  # none leaves while another is still busy
    os._exit(0)  # at once: taking gloo's threads apart has been seen to hang or abort, about once in thirty times


@capability("DataParallel's replicate", "processes")
def _(b: Bench) -> Answer:
    # What torch.nn.parallel.replicate does for each device: a shallow copy, and tensors in place of its parameters.
    replica = b.module._replicate_for_data_parallel()
    copies = {name: (value * 1).requires_grad_() for name, value in b.params.items()}
    for name in b.module._parameters:
        if name in copies:
            setattr(replica, name, copies[name])
        else:
            replica._parameters[name] = None
    return torch.autograd.grad(scalar(flat(replica(b.x))), list(copies.values())), b.true_grads(b.x)[1:]


# Surroundings -------------------------------------------------------------------------------------------------------


@capability("autocast, bfloat16", "surroundings")
def _(b: Bench) -> None:
    with torch.autocast(torch.device(b.device).type, dtype=torch.bfloat16):
        y = b.run(b.x)
    close(y, b.truth(b.x), rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(scalar(y).float(), list(b.module.parameters()))
    close(grads, b.true_grads(b.x)[1:], rtol=0.2, atol=0.5)


def check_shapes(b: Bench, found: list[Tensor], right: Callable[[Tensor], bool]) -> None:
    """Compare the shapes of tensors that have no numbers."""
    if not all(map(right, found)) or [y.shape for y in found] != [y.shape for y in b.truth(b.x)]:
        raise WrongError("shapes")


@capability("meta device", "surroundings")
def _(b: Bench) -> None:
    check_shapes(b, flat(b.make(device="meta")(b.x.to("meta"))), lambda y: y.device.type == "meta")


@capability("FakeTensorMode", "surroundings")
def _(b: Bench) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    shape = b.x.shape
    with FakeTensorMode():
        found = flat(b.make()(torch.empty(shape, device=b.device)))
    check_shapes(b, found, lambda y: isinstance(y, FakeTensor))


@capability("dispatch mode sees operators", "surroundings")
def _(b: Bench) -> Answer:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **kwargs or {})

    x = b.x
    with Mode():  # type: ignore[no-untyped-call]
        y = b.run(x)
    if not any("mm" in name or "linear" in name for name in seen):
        raise WrongError("no product seen")
    return y, b.truth(x)


@capability("FlopCounterMode", "surroundings")
def _(b: Bench) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    rows = b.x.numel() // H_IN  # a multiplication and an addition for each weight of a product and each row of it
    expected = sum(2 * rows * p.numel() for name, p in b.module.named_parameters() if "weight" in name)
    with FlopCounterMode(display=False) as counter:
        b.run(b.x)
    if counter.get_total_flops() != expected:
        raise WrongError(f"{counter.get_total_flops()} for {expected}")


@capability("profiler, each layer by its name", "surroundings", cells=False)
def _(b: Bench) -> None:
    from torch.profiler import profile

    with profile() as profiled:
        b.run(b.x)
    names = {event.key for event in profiled.key_averages()}
    for layer in range(b.module.num_layers):
        if not any(name.endswith(f"l{layer}") for name in names):
            raise WrongError(f"layer {layer} has no name")


@capability("parametrize", "surroundings")
def _(b: Bench) -> Answer:
    from torch.nn.utils import parametrize

    class Half(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w / 2

    name = "weight_hh" if b.is_cell else "weight_hh_l0"
    params = b.params
    parametrize.register_parametrization(b.module, name, Half())
    return b.run(b.x), b.truth(b.x, None, params | {name: params[name] / 2})


@capability("share_memory", "surroundings")
def _(b: Bench) -> Answer:
    shared: nn.Module = b.module.share_memory()
    if not all(p.is_shared() for p in shared.parameters()):  # type: ignore[no-untyped-call]
        raise WrongError("not shared")
    return shared


@capability("deterministic algorithms", "surroundings")
def _(b: Bench) -> Answer:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        once, again = b.grads(b.run, b.x), b.grads(b.run, b.x)
    finally:
        torch.use_deterministic_algorithms(before)
    close(once, again, rtol=0, atol=0)
    return once, b.true_grads(b.x)


@capability("deepcopy, pickle", "surroundings")
def _(b: Bench) -> Answer:
    copies = copy.deepcopy(b.module), pickle.loads(pickle.dumps(b.module))
    return [flat(module(b.x)) for module in copies], [b.truth(b.x)] * 2


@capability("jit.trace, length of the example", "surroundings")
def _(b: Bench) -> Answer:
    traced = torch.jit.trace(b.module, (b.input(), b.state()))  # type: ignore[no-untyped-call]
    return flat(traced(b.x, b.hx)), b.truth(b.x, b.hx)


@capability("quantize_dynamic", "surroundings", cpu_only=True)
def _(b: Bench) -> Answer:
    if "bias" in b.options:  # torch.ao takes no module without biases
        return None
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(b.module))[0]  # type: ignore[no-untyped-call]
    close(flat(quantized(b.x)), b.truth(b.x), rtol=0.1, atol=0.1)
    return "left as is" if type(quantized) is type(b.module) else None


# On a GPU, beside all that -------------------------------------------------------------------------------------------


@capability("hx that is not contiguous", "on a GPU")
def _(b: Bench) -> Answer:
    return lambda x, hx: b.run(x, tree_map(lambda h: h.mT.contiguous().mT, hx))


@capability("dropout between layers alone, at its rate", "on a GPU", cells=False)
def _(b: Bench) -> None:
    module, p = getattr(b.library, b.name)(H_IN, 500, num_layers=2, dropout=0.4, device=b.device), 0.4
    output, states, *_ = flat(module(torch.randn(1, 1, H_IN).to(b.device)))
    output.sum().backward()  # type: ignore[no-untyped-call]
    # One vector passed: the gradient of the upper layer's weights is the outer product of the gates' and of what came
    # through. `states` has what the lower layer made.
    gates, product, made = module.bias_ih_l1.grad, module.weight_ih_l1.grad, states[0, 0]
    gate = gates.abs().argmax()
    came = product[gate] / gates[gate]
    kept = came != 0
    if not output.all() or not made.all() or abs(kept.double().mean() - (1 - p)) > 0.12:  # over five deviations
        raise WrongError(f"{kept.double().mean():.0%} come through")
    close(came[kept], made[kept] / (1 - p), rtol=1e-3)


@capability("autocast, float16, with a GradScaler", "on a GPU")
def _(b: Bench) -> None:
    kind, parameters = torch.device(b.device).type, list(b.module.parameters())
    scaler, optimizer = torch.amp.GradScaler(kind, init_scale=16.0), torch.optim.SGD(parameters, lr=0.1)
    with torch.autocast(kind, dtype=torch.float16):
        y = b.run(b.x)
    close(y, b.truth(b.x), rtol=0.01, atol=0.01)
    scaler.scale(scalar(y)).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    grads = [p.grad for p in parameters]
    close(grads, b.true_grads(b.x)[1:], rtol=0.05, atol=0.1)
    expected = [p - 0.1 * grad for p, grad in zip(parameters, grads, strict=True)]
    scaler.step(optimizer)
    scaler.update()
    close(parameters, expected)


@capability("70,000 steps, training", "on a GPU", cells=False, slow=True)
def _(b: Bench) -> None:
    twin = getattr(nn, b.name)(2, 2).double()  # torch.nn's, on the CPU: the loop takes long
    module = getattr(b.library, b.name)(2, 2, device=b.device)
    module.load_state_dict(twin.state_dict())
    x = torch.randn(70_000, 1, 2)
    made = flat(module(x.to(b.device))), flat(twin(x.double()))
    close([y.cpu() for y in made[0]], made[1], rtol=1e-3, atol=1e-4)
    for y in made:
        scalar(y).backward()  # type: ignore[no-untyped-call]
    for found, wanted in zip(module.parameters(), twin.parameters(), strict=True):
        close(found.grad.cpu() / wanted.grad.abs().max(), wanted.grad / wanted.grad.abs().max(), atol=1e-3)


@capability("make_graphed_callables", "on a GPU")
def _(b: Bench) -> Answer:
    graphed: Run = torch.cuda.make_graphed_callables(b.module, (b.input().requires_grad_(), b.state()))
    b.grads(graphed, b.input(), b.state())  # a replay, so that what follows is another with other numbers
    return graphed


@capability('torch.compile, mode="reduce-overhead"', "on a GPU", slow=True)
def _(b: Bench) -> Answer:
    from torch._dynamo.utils import counters

    counters.clear()
    module = compiled(b, "inductor", mode="reduce-overhead")
    for x in (b.input(), b.input(), b.input()):  # to warm up, to record, to replay
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        close(b.grads(module, x, b.hx), b.true_grads(x, b.hx))
    if counters["inductor"]["cudagraph_skips"]:
        raise WrongError("right, and no graph was captured")
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    return module


# Outcomes ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, prints and log lines: what a call has to say is its result."""
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def outcome(row: Capability, library: Any, name: str, device: str = "cpu") -> Sequence[str]:
    """Say what became of one cell of the table, in a word, and the message of what went wrong."""
    if (name.endswith("Cell") and not row.cells) or (row.cpu_only and device != "cpu"):
        return "-", ""
    if row.needs and importlib.util.find_spec(row.needs) is None:
        return "skipped", f"{row.needs} is not installed"
    if row.apart:
        return two_processes(library)[row.name][name]
    remark = ""
    for options in OPTIONS[name][-1 if row.slow else 0 :]:  # of the slow ones the harder configuration will do
        try:
            with quiet(), contextlib.nullcontext() if device == "cpu" else tf32(False):
                remark = row.remark(Bench(library, name, options, device=device)) or remark
        except WrongError as error:
            return "wrong", f"{options}: {error}"
        except Exception as error:
            return type(error).__name__, f"{options}: {error}"
    return remark or "works", ""
