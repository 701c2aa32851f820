"""The fused path: a step is the equation, compiled, and so is its derivative. It equals the readable path."""

from itertools import product

import pytest
import torch
from cases import assert_near, leaves, make_stack
from helpers import KINDS, build
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
from rnnkit import EQUATIONS, Equation, recurrence
from rnnkit.fast import fused
from rnnkit.stack import Layer, Stack, layer, run

BATCH_SIZES = [4, 4, 3, 1, 1]
RESULTS = ["output", "h_n", "c_n"]


pytestmark = pytest.mark.usefixtures("compiled_by_none")  # but for the test at the end


def shown(stack: Stack, by: Layer, only: str | None = None) -> dict[str, Tensor]:
    """Results and, by a loss in which no two elements weigh alike, gradients of all leaves; of one result if `only`."""
    output, finals = run(stack, by)
    states = [torch.stack(states) for states in zip(*finals, strict=True)]
    results = dict(zip(RESULTS, (output, *states), strict=False))
    weighed = [
        (r * torch.arange(r.numel(), dtype=r.dtype).view_as(r).sin()).sum()
        for name, r in results.items()
        if only in (None, name)
    ]
    named = leaves(stack)
    grads = torch.autograd.grad(sum(weighed), list(named.values()), materialize_grads=True, allow_unused=True)
    return results | {f"grad of {name}": grad for name, grad in zip(named, grads, strict=True)}


@pytest.mark.parametrize("only", [None, *RESULTS])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_layer_is_the_readable_one(kind, layers, D, bias, packed, only):
    if only == "c_n" and "LSTM" not in kind:
        return
    case = {"kind": kind, "layers": layers, "D": D, "bias": bias, "packed": packed}
    expected = shown(make_stack(**case), layer(recurrence.unroll), only)
    assert_near(shown(make_stack(**case), layer(fused.unroll), only), expected, 1e-13, case)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_fused_gradients_are_the_readable_ones(kind):
    found = []
    for by in (recurrence.unroll, fused.unroll):
        stack = make_stack(kind)
        x = stack.input
        output, _ = run(stack, layer(by))
        (grad,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
        found.append({"second": torch.autograd.grad(grad.square().sum(), x)[0]})
    assert_near(found[1], found[0], 1e-13, kind)


def test_an_equation_of_your_own_is_fused(monkeypatch):
    """It needs no kernel."""

    def mgu(igates, hgates, state):
        (h,) = state
        f = torch.sigmoid((igates + hgates).chunk(2, -1)[0])
        n = torch.tanh(igates.chunk(2, -1)[1] + f * hgates.chunk(2, -1)[1])
        return (((1 - f) * h + f * n),), (f, n)

    monkeypatch.setitem(EQUATIONS, "MGU", Equation(mgu, ("f", "n"), ("h",)))
    module = rnnkit.RNNBase("MGU", 3, 4, dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = {}
    for path in ("readable", "fused"):
        module.path = path
        output, _ = module(x)
        results[path] = {"output": output, "grad": torch.autograd.grad(output.square().sum(), module.weight_hh_l0)[0]}
    assert rnnkit.explain(module, x).path == "fused"
    assert_near(results["fused"], results["readable"], 1e-14, "MGU")


def test_gradients_that_are_one_tensor_are_each_right(monkeypatch):
    """Autograd hands a sum's gradient to all that were added: here the gates, h and c have one between them."""

    def adds(igates, hgates, state):
        h, c = state
        total = igates + hgates + h + c
        return (total, total.sin()), (total,)

    monkeypatch.setitem(EQUATIONS, "ADDS", Equation(adds, ("a",), ("h", "c")))
    module = rnnkit.RNNBase("ADDS", 3, 4, dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = {}
    for path in ("readable", "fused"):
        module.path = path
        output, (_, c_n) = module(x)
        grads = torch.autograd.grad(output.square().sum() + c_n.sum(), list(module.parameters()))
        results[path] = {"output": output} | {f"grad {k}": grad for k, grad in enumerate(grads)}
    assert rnnkit.explain(module, x).path == "fused"
    assert_near(results["fused"], results["readable"], 1e-13, "ADDS")


def compiled_by(monkeypatch, backend):
    """Have `backend` get what the fused path compiles, in inductor's place."""
    monkeypatch.undo()  # of `compiled_by_none`
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **named: compile(function, backend=backend, **named))
    fused.compiled.cache_clear()


@pytest.mark.parametrize("kind", ["tanh", "relu", "LSTM", "GRU"])
def test_the_compiler_knows_how_wide_the_gates_are(kind, monkeypatch):
    """Of unknown sizes that fit each other it makes one kernel, of any others two."""
    graphs = []

    def backend(module, inputs):
        graphs.append([n.meta["example_value"] for n in module.graph.nodes if n.op == "placeholder"])
        return module.forward

    compiled_by(monkeypatch, backend)
    module = build(rnnkit, kind, dtype=torch.float32)
    module.path = "fused"
    module(torch.randn(6, 4, 3))[0].sum().backward()
    assert graphs
    for inputs in graphs:
        widths = [t.size(1) for t in inputs if isinstance(t, Tensor)]
        gates, h = max(widths, key=lambda width: width.node.hint), min(widths, key=lambda width: width.node.hint)
        assert statically_known_true(gates == len(module.equation.gates) * h), f"{kind}: {gates} and {h}"


@pytest.mark.slow
def test_no_use_of_the_fused_path_exhausts_the_compilations_of_another(monkeypatch):
    """Dtypes, projections and packed rows, compiled under one code, would together count against its limit."""
    compiled_by(monkeypatch, CompileCounter())
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for dtype, packed, proj_size in product((torch.float32, torch.float64, torch.bfloat16), (False, True), (0, 2)):
            module = rnnkit.LSTM(3, 4, dtype=dtype, proj_size=proj_size)
            module.path = "fused"
            x = torch.randn(6, 4, 3, dtype=dtype)
            output, _ = module(pack_padded_sequence(x, [6, 4, 4, 1]) if packed else x)
            (output.data if packed else output).sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_only_of_a_step_that_reads_h_there_is_a_gradient_of_it_besides_the_product(kind):
    stack = make_stack(kind)
    direction = stack.direction(0, stack.input, False)
    state = direction.state
    igates = torch.randn(state[0].size(0), direction.weights.w_hh.size(0), dtype=state[0].dtype)
    m = state[-1]
    *_, (direct, *_) = fused.compiled_for(direction)[1](igates, igates.clone(), state, (m, *state[1:]), m)
    assert (direct is not None) == (kind == "GRU")


def test_without_a_graph_nothing_is_kept(monkeypatch):
    kept = []
    monkeypatch.setattr(fused, "keep", lambda *anything: kept.append(anything))
    stack = make_stack("LSTM")
    with torch.no_grad():
        run(stack, layer(fused.unroll))
    assert not kept
    run(stack, layer(fused.unroll))
    assert kept


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_compiled_it_is_the_same(kind, monkeypatch):
    monkeypatch.undo()
    fused.compiled.cache_clear()
    module = build(rnnkit, kind)
    x = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = {}
    for path in ("always fast", "fused"):
        module.path = path
        output, _ = module(x)
        grads = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        results[path] = {"output": output} | {f"grad {k}": grad for k, grad in enumerate(grads)}
    assert_near(results["fused"], results["always fast"], 1e-13, kind)
