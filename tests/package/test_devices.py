"""The layers and cells on an accelerator, against the CPU. Skipped where there is none: nothing here was run then."""

import gc

import pytest
import torch
from helpers import CELLS, FORMS, H_IN, KINDS, N, arguments, build, pack, pair
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map_only

import rnnkit
from rnnkit.fast import cublas, loop

DEEP = {"num_layers": 2, "bidirectional": True}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")
devices = pytest.mark.parametrize("device", [pytest.param("cuda", marks=cuda), pytest.param("mps", marks=mps)])


@pytest.fixture(autouse=True)
def nothing_is_collected():
    """What the collector frees on a GPU while a graph is captured spoils the capture."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


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


def on_cuda(kind, **options):
    module = build(rnnkit, kind, dtype=torch.float32, **(DEEP | options)).cuda()
    x, hx = moved(arguments(module, steps=7), "cuda")
    return module, x.detach().requires_grad_(), tree_map_only(torch.Tensor, lambda t: t.detach().requires_grad_(), hx)


def assert_same_run(found, expected, x, hx, module, tolerance=1e-5):
    """Two calls of the same arguments give the same results and gradients."""
    shown = []
    for call in (found, expected):
        results = tree_leaves(call(x, hx))
        loss = sum((t.square()).sum() for t in results)
        shown.append([*results, *torch.autograd.grad(loss, [x, *tree_leaves(hx), *module.parameters()])])
    torch.testing.assert_close(shown[0], shown[1], rtol=tolerance, atol=tolerance)


@cuda
@pytest.mark.parametrize("path", ["fast", "readable", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_captured_by_a_cuda_graph_forward_and_back(kind, path):
    """No host synchronisation, nothing asked of the data: else capture fails."""
    module, x, hx = on_cuda(kind)
    eager, _, _ = on_cuda(kind)
    eager.load_state_dict(module.state_dict())
    module.path = path
    replay = torch.cuda.make_graphed_callables(module, (x, hx))
    x, hx = tree_map_only(torch.Tensor, lambda t: torch.randn_like(t).requires_grad_(), (x, hx))
    shown = []
    for call in (replay, eager):
        results = tree_leaves(call(x, hx))
        loss = sum(t.square().sum() for t in results)
        shown.append([*results, *torch.autograd.grad(loss, [x, *tree_leaves(hx), *call.parameters()])])
    torch.testing.assert_close(shown[0], shown[1], rtol=1e-5, atol=1e-5)


@cuda
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_captured_by_a_cuda_graph(kind):
    cell = build(rnnkit, kind, cell=True, dtype=torch.float32).cuda()
    x, hx = moved(arguments(cell), "cuda")
    expected = observed(cell, x, hx)
    replay = torch.cuda.make_graphed_callables(
        cell, tree_map_only(torch.Tensor, lambda t: t.detach().requires_grad_(), (x, hx))
    )
    torch.testing.assert_close(observed(replay, x, hx), expected, rtol=1e-5, atol=1e-5)


@cuda
@pytest.mark.parametrize("steps", [1, 13, 32, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_replayed_for_every_length(kind, steps):
    module, x, hx = on_cuda(kind)
    call = rnnkit.graphed(module, x, block=16)
    x = torch.randn(steps, *x.shape[1:], device="cuda", requires_grad=True)
    assert_same_run(call, module, x, hx, module)


@cuda
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind, form):
    module = build(rnnkit, kind, dtype=torch.float32, **DEEP)
    x, hx = tree_map_only(torch.Tensor, torch.Tensor.detach, arguments(module, form))
    x, hx = moved(pack(module, x, form), "cuda"), moved(hx, "cuda")  # leaves there: no gradient is copied back
    module.cuda()
    module(x, hx)  # libraries set themselves up at a first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [t for t in tree_leaves(module(x, hx)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        sum(t.sum() for t in results).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_torch_nns_with_a_scaler(kind, dtype):
    """cuDNN runs in float16 under autocast, whatever its dtype."""
    torch.manual_seed(0)
    native, kit = pair(kind, dtype=torch.float32)
    shown = []
    x = torch.randn(7, N, H_IN, device="cuda")
    for module in (native.cuda(), kit.cuda()):
        scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        with torch.autocast("cuda", dtype):
            results = tree_leaves(module(x))
            loss = sum(t.float().square().mean() for t in results)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        shown.append([*results, *module.parameters()])
    torch.testing.assert_close(shown[1], shown[0], rtol=1e-2, atol=2e-3)


@cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_takes_no_more_memory_than_cudnns_and_its_igates(kind):
    """Three times as much is allowed, lest an allocator's blocks decide; it is measured by `parity speed`."""
    peaks = []
    for library in (torch.nn, rnnkit):
        module = build(library, kind, dtype=torch.float32, hidden_size=256, input_size=256).cuda()
        x = torch.randn(200, 32, 256, device="cuda")
        module(x)[0].sum().backward()
        module.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(x)[0].sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 3 * peaks[0], peaks


@cuda
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_on_cuda(kind, mode):
    module, x, hx = on_cuda(kind)
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    for _ in range(3):  # the first calls warm up, and record
        torch.compiler.cudagraph_mark_step_begin()
        assert_same_run(lambda x, hx: tree_map_only(torch.Tensor, torch.clone, compiled(x, hx)), module, x, hx, module)


@pytest.mark.parametrize("path", ["always fast", "readable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_calls_serve_where_there_is_no_cpu(kind, dtype, path):
    """Tensors on `meta` take the products of a GPU, as a CPU's can't be formed there."""
    module = build(rnnkit, kind, device="meta", dtype=dtype, **DEEP)
    module.path = path
    x = torch.empty(5, N, H_IN, dtype=dtype, device="meta", requires_grad=True)
    assert rnnkit.explain(module, x).path == path.split()[-1]
    output, _ = module(x)
    output.sum().backward()
    assert all(p.grad.device.type == "meta" and p.grad.shape == p.shape for p in [x, *module.parameters()])


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_products_of_a_gpu_are_those_of_a_cpu(kind, form, monkeypatch):
    module = build(rnnkit, kind, dtype=torch.float32, **DEEP)
    module.path = "always fast"
    x, hx = arguments(module, form)
    x = pack(module, x, form)
    expected = observed(module, x, hx)
    monkeypatch.setattr(loop, "library", lambda tensor: cublas)
    torch.testing.assert_close(observed(module, x, hx), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_asks_for_data_where_there_are_none(kind):
    """Tensors on `meta` have no data: a value read on the host, as no CUDA graph allows, would fail on them too."""
    module = build(rnnkit, kind, device="meta", **DEEP)
    x = torch.empty(5, N, H_IN, dtype=torch.float64, device="meta", requires_grad=True)
    output, _ = module(x)
    output.sum().backward()
    assert output.shape[:2] == x.shape[:2]
    assert all(p.grad.device.type == "meta" for p in [x, *module.parameters()])
