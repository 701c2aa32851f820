"""The fused path: a step is the equation, compiled, and so is its derivative. It equals the readable path."""

import pytest
import torch
from cases import assert_near, leaves, make_stack
from helpers import KINDS, build
from torch import Tensor

import rnnkit
from rnnkit import EQUATIONS, Equation, fast, recurrence
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
    equation = module.equation
    assert fast.fused.compiled(equation.step, equation.gates) is fused.compiled(equation.step, equation.gates)
