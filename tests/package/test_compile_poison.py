"""Nothing of the eager paths is ever traced, from whatever frame torch.compile enters: a call that is refused leaves
the compiled module, and torch, as they were.

What is traced here and shouldn't be can break torch for its process: each case runs in a child of its own, which
`python tests/package/test_compile_poison.py KIND ...` forks, a process for all cases of these kinds."""

import copy
import gc
import itertools
import json
import os
import subprocess
import sys
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import KINDS, as_list, build, named, product, randn, slow, tensors
from torch import nn

import rnnkit

STEPS, N = 20, 2  # as many as the fast path takes of any kind

REFUSED = {
    "input size": lambda x, hx: (torch.cat((x, x), -1), None),
    "hx size": lambda x, hx: (x, mapped(hx, lambda s: torch.cat((s, s), -1))),
    "dtype": lambda x, hx: (x.double(), None),
    "rank": lambda x, hx: (x[None, None], None),
}
MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class Between(nn.Module):
    """A layer with something before it and something after it; and with graph breaks, if it is to have them."""

    def __init__(self, layer, breaks=False):
        super().__init__()
        self.layer, self.breaks = layer, breaks

    def forward(self, x, hx=None):
        x = x + 1
        if self.breaks:
            torch._dynamo.graph_break()
        result = self.layer(x, hx)
        if self.breaks:
            torch._dynamo.graph_break()
        return mapped(result, lambda y: y * 2)


def in_place(module, backend):
    module.compile(backend=backend)
    return module


def of_function(module, backend):
    return torch.compile(lambda *args: module(*args), backend=backend)


def unfollowed(module, backend):
    """Compiled, but that its forward's own frame is not."""
    module.forward = torch.compiler.disable(module.forward, recursive=False)
    return torch.compile(module, backend=backend)


def refused_before(module, backend):
    """torch's limit of recompilations, reached: its frames are left alone from then on."""
    torch._dynamo.config.recompile_limit = 1
    compiled = torch.compile(module, backend=backend, dynamic=False)
    for rows in (7, 8, 9):
        compiled(*example(module, rows))
    return compiled


WAYS = {
    "compile": lambda module, backend: torch.compile(module, backend=backend),
    "in place": in_place,
    "function": of_function,
    "model": lambda module, backend: torch.compile(Between(module), backend=backend),
}
OTHER_WAYS = {
    "breaks": lambda module, backend: torch.compile(Between(module, breaks=True), backend=backend),
    "unfollowed": unfollowed,
    "at the limit": refused_before,
    "hooked": lambda module, backend: torch.compile(hooked(module), backend=backend),
}
PAIRS = ("model", "breaks")  # ways by which more is computed than the module


def hooked(module):
    module.register_forward_pre_hook(lambda module, args: torch._dynamo.graph_break())
    module.register_forward_hook(lambda module, args, result: torch._dynamo.graph_break())
    return module


def mapped(result, function):
    return function(result) if isinstance(result, torch.Tensor) else tuple(mapped(r, function) for r in result)


def example(module, rows=N):
    cell = isinstance(module, rnnkit.RNNCellBase)
    shape = (rows,) if cell else (1, rows)
    state = randn(*shape, module.hidden_size, seed=2, dtype=torch.float32)
    x = randn(*(() if cell else (STEPS,)), rows, module.input_size, seed=1, dtype=torch.float32)
    pair = isinstance(module, (rnnkit.LSTM, rnnkit.LSTMCell))
    return x, (state, state + 1) if pair else state


def flat(result):
    return list(tensors(result).values())


def observed(run, x, hx):
    """Results, and gradients of all that wants one."""
    x, hx = x.clone().requires_grad_(), mapped(hx, lambda s: s.clone().requires_grad_())
    ys = flat(run(x, hx))
    sum((y * y).sum() for y in ys).backward()
    return [*ys, *(leaf.grad for leaf in (x, *as_list(hx)))]


def error(run, *args):
    try:
        run(*args)
    except Exception as e:
        return type(e), str(e)
    return None


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def same(compiled, module, eager, twin, mode="grad"):
    """`compiled`, which runs `module`, computes what `eager`, which runs `twin`, does, and learns the same."""
    x, hx = example(module)
    if mode != "grad":
        with MODES[mode]():
            close(flat(compiled(x, hx)), flat(eager(x, hx)))
    learns_the_same(lambda: observed(compiled, x, hx), module, lambda: observed(eager, x, hx), twin)


def learns_the_same(run, module, run_twin, twin):
    module.zero_grad()
    twin.zero_grad()
    close(run(), run_twin())
    found, expected = ([w.grad for w in m.parameters()] for m in (module, twin))
    assert all(grad is not None for grad in found)
    close(found, expected)
    assert torch.empty(3).shape == (3,)  # which torch is unable to make, once poisoned


def made(kind):
    """A module and its twin."""
    torch.manual_seed(0)
    module = build(rnnkit, kind.removesuffix(" cell"), cell=kind.endswith("cell"), dtype=torch.float32)
    return module, copy.deepcopy(module)


def case(kind, refused, mode, way, backend):
    """A refused call in that grad mode, then good ones."""
    module, twin = made(kind)
    graphs = []

    def counting(gm, inputs):
        graphs.append(gm)
        return torch._dynamo.lookup_backend(backend)(gm, inputs)

    eager = Between(twin) if way in PAIRS else twin
    compiled = (WAYS | OTHER_WAYS)[way](module, counting)
    wrong = REFUSED[refused](*example(module))
    with MODES[mode]():
        expected = error(eager, *wrong)
        assert expected is not None
        assert error(compiled, *wrong) == expected
    same(compiled, module, eager, twin, mode)
    if way in WAYS and not kind.endswith("cell"):  # not only right, but compiled
        assert any("rnnkit.unroll" in str(node.target) for gm in graphs for node in gm.graph.nodes)


def whole_step(kind, forward, autograd, backend):
    """A training step is compiled, with its call of backward in it: no frame of the backward is traced, either."""
    module, twin = made(kind)
    if forward == "eager":
        module.forward = torch.compiler.disable(module.forward)

    def step(x, hx):
        ys = flat(module(x, hx))
        sum((y * y).sum() for y in ys).backward()
        return [*ys, x.grad, *(s.grad for s in as_list(hx))]

    torch._dynamo.config.compiled_autograd = autograd == "compiled"

    def run():
        return torch.compile(step, backend=backend)(x.requires_grad_(), mapped(hx, torch.Tensor.requires_grad_))

    x, hx = example(module)
    learns_the_same(run, module, lambda: observed(twin, *example(twin)), twin)


def put_in_place(kind, backend):
    """rnnkit's class in place of torch.nn's, as some programs' tests have it."""
    name = KINDS[kind][0]
    setattr(nn, name, getattr(rnnkit, name))
    module, twin = made(kind)
    compiled = torch.compile(module, backend=backend)
    wrong = REFUSED["input size"](*example(module))
    assert error(compiled, *wrong) == error(twin, *wrong)
    same(compiled, module, twin, twin)


def whole_graphs(kind):
    """A graph of the whole, and an export, after a refused call."""
    module, twin = made(kind)
    wrong = REFUSED["input size"](*example(module))
    assert error(torch.compile(module, backend="eager"), *wrong) == error(twin, *wrong)
    whole = torch.compile(module, backend="eager", fullgraph=True)
    assert error(whole, *wrong) is not None
    same(whole, module, twin, twin)
    x, hx = example(module)
    for strict in (False, True):
        assert error(lambda *args: torch.export.export(module, args, strict=strict), *wrong) is not None  # noqa: B023
        program = torch.export.export(module, (x, hx), strict=strict)
        close(flat(program.module()(x, hx)), flat(twin(x, hx)))
    torch._dynamo.reset()
    assert error(torch.compile(module, backend="eager"), *wrong) == error(twin, *wrong)


def old_torch(kind, backend):
    """Up to torch 2.11 the compiler takes is_exporting to be True, always: a compiled module learns there, too."""
    tracker = torch._dynamo.variables.base.VariableTracker
    build_now = tracker.build

    def build_then(tx, value, *args, **kwargs):
        asking = sys._getframe(1)
        if asking.f_code.co_name == "handle_tracing_state_functions":
            value = value or asking.f_locals["self"].value is torch.compiler.is_exporting
        return build_now(tx, value, *args, **kwargs)

    tracker.build = staticmethod(build_then)
    assert torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")(torch.zeros(())) == 1
    module, twin = made(kind)
    same(torch.compile(module, backend=backend), module, twin, twin)


LAYERS = ["tanh", "LSTM", "GRU"]
CELLS = [f"{kind} cell" for kind in LAYERS]
BACKENDS = ["eager", "aot_eager"]


def covering(every, **rotating):
    """Each of these with the next of each rotating axis; with all of them, which take long to compile, if
    ALL_POISONS=1 asks for it."""
    if os.environ.get("ALL_POISONS"):
        return [options | more for options in every for more in product(**rotating)]
    steps = itertools.count()
    axes = {name: list(values) for name, values in rotating.items()}
    return [
        options | {name: values[(k + k // 6) % len(values)] for name, values in axes.items()}
        for options, k in zip(every, steps, strict=False)
    ]


ROTATING = {"mode": MODES, "backend": BACKENDS}
CASES = [
    *[(case, c) for c in covering(product(refused=REFUSED, way=WAYS), kind=LAYERS, **ROTATING)],
    *[(case, c) for c in covering(product(way=WAYS), kind=CELLS, refused=REFUSED, **ROTATING)],
    *[(case, c) for c in covering(product(way=OTHER_WAYS, refused=["rank"]), kind=LAYERS, **ROTATING)],
    *[(case, c) for c in covering(product(kind=["LSTM cell"], way=OTHER_WAYS, refused=["rank"]), **ROTATING)],
    *[
        (whole_step, c)
        for c in covering(
            product(forward=["traced", "eager"], autograd=["eager", "compiled"], backend=["aot_eager"]),
            kind=[*LAYERS, "LSTM cell"],
        )
    ],
    *[(put_in_place, {"kind": kind, "backend": "aot_eager"}) for kind in LAYERS],
    *[(whole_graphs, {"kind": kind}) for kind in LAYERS],
    *[(old_torch, {"kind": kind, "backend": "aot_eager"}) for kind in LAYERS],
]
NAMES = [f"{function.__name__}-{named(options)}" for function, options in CASES]


def complaint(function, options):
    """What is wrong with a case, or nothing."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(**options)
        return "".join(f"{w.message}\n" for w in caught if "does not know how to trace" in str(w.message))
    except BaseException:
        return traceback.format_exc()


def main(kinds):
    """A line of JSON for each case of these kinds: its name, and what is wrong."""
    torch.set_num_threads(1)
    # What torch does once, no child is to do. Autograd, once its threads run, has no backward in a child.
    for kind, backend in itertools.product(kinds, BACKENDS):
        with torch.no_grad():
            torch.compile(made(kind)[0], backend=backend)(*example(made(kind)[0]))
    torch._dynamo.reset()
    gc.freeze()  # what there is by now, no child is to go over
    for (function, options), name in zip(CASES, NAMES, strict=True):
        if options["kind"] not in kinds:
            continue
        sys.stdout.flush()
        child = os.fork()
        if not child:
            # A fork has no pool of threads. Autograd's threads, which make one, may race for it and abort.
            torch.set_num_threads(1)
            print(json.dumps([name, complaint(function, options)]), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps([name, f"ended by {status}"]))


def complaints(kinds):
    """What is wrong with each case of these kinds, by its name."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, __file__, *kinds], capture_output=True, text=True, env=environment, cwd=Path(__file__).parent
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith('["')]
    assert lines, found.stderr
    return dict(json.loads(line) for line in lines)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("kinds", [["LSTM"], *slow([["tanh"], ["GRU"], CELLS])], ids=["LSTM", "tanh", "GRU", "cells"])
def test_a_refused_call_leaves_no_trace(kinds):
    """In any of the cases: a test for all of a kind, so that no two workers run the same ones."""
    found = complaints(kinds)
    assert [*found] == [name for name, (_, options) in zip(NAMES, CASES, strict=True) if options["kind"] in kinds]
    wrong = {name: complaint for name, complaint in found.items() if complaint}
    assert not wrong, "\n\n".join(f"{name}\n{complaint}" for name, complaint in wrong.items())


if __name__ == "__main__":
    main(sys.argv[1:])
