"""The layers and cells on an accelerator, against the CPU. Skipped where there is none: nothing here was run then."""

import pytest
import torch
from helpers import CELLS, FORMS, H_IN, KINDS, N, arguments, build, pack
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map_only

import rnnkit

DEEP = {"num_layers": 2, "bidirectional": True}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")
devices = pytest.mark.parametrize("device", [pytest.param("cuda", marks=cuda), pytest.param("mps", marks=mps)])


def observed(module, x, hx):
    """Results, and gradients of the parameters."""
    results = module(x, hx)
    output = results[0].data if isinstance(results[0], PackedSequence) else results
    tensors = [t for t in tree_leaves((output, results)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    grads = torch.autograd.grad(sum((t * t).sum() for t in tensors), list(module.parameters()))
    return [t.detach().cpu() for t in (*tensors, *grads)]


def moved(value, device):
    return (
        value.to(device)
        if isinstance(value, PackedSequence)
        else tree_map_only(torch.Tensor, lambda t: t.to(device), value)
    )


@devices
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_that_of_the_cpu(kind, form, device):
    module = build(rnnkit, kind, dtype=torch.float32, **DEEP)
    x, hx = arguments(module, form)
    x = pack(module, x, form)
    expected = observed(module, x, hx)
    found = observed(module.to(device), moved(x, device), moved(hx, device))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@devices
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_that_of_the_cpu(kind, device):
    cell = build(rnnkit, kind, cell=True, dtype=torch.float32)
    x, hx = arguments(cell)
    expected = observed(cell, x, hx)
    torch.testing.assert_close(
        observed(cell.to(device), moved(x, device), moved(hx, device)), expected, rtol=1e-3, atol=1e-4
    )


@cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_step_is_captured_by_a_cuda_graph(kind):
    """No host synchronisation, nothing asked of the data: else capture fails."""
    module = build(rnnkit, kind, dtype=torch.float32, **DEEP).cuda()
    x = torch.randn(5, N, H_IN, device="cuda")
    replay = torch.cuda.make_graphed_callables(lambda x: module(x)[0], (x,))
    x.copy_(torch.randn_like(x))
    torch.testing.assert_close(replay(x), module(x)[0], rtol=1e-3, atol=1e-4)


@cuda
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_on_cuda(kind):
    module = build(rnnkit, kind, dtype=torch.float32).cuda()
    x = torch.randn(5, N, H_IN, device="cuda")
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x)[0], module(x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_asks_for_data_where_there_are_none(kind):
    """Tensors on `meta` have no data: a value read on the host, as no CUDA graph allows, would fail on them too."""
    module = build(rnnkit, kind, device="meta", **DEEP)
    x = torch.empty(5, N, H_IN, dtype=torch.float64, device="meta", requires_grad=True)
    output, _ = module(x)
    output.sum().backward()
    assert output.shape[:2] == x.shape[:2]
    assert all(p.grad.device.type == "meta" for p in [x, *module.parameters()])
