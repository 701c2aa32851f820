"""The layers and cells on an accelerator, against the CPU. Skipped where there is none: nothing here was run then."""

import gc

import pytest
import torch
from helpers import CELLS, FORMS, H_IN, KINDS, N, arguments, build, pack, pair
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map_only

import rnnkit
from rnnkit import graphs, paths, stack
from rnnkit.fast import cublas, loop

DEEP = {"num_layers": 2, "bidirectional": True}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")
devices = pytest.mark.parametrize("device", [pytest.param("cuda", marks=cuda), pytest.param("mps", marks=mps)])


@pytest.fixture(autouse=True)
def nothing_is_collected():
    """What the collector frees on a GPU while a graph is captured spoils the capture."""
    if not torch.cuda.is_available():
        yield
        return
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


def twins(kind, path):
    """A module that takes `path`, another of the same weights that takes its own, and arguments."""
    (module, x, hx), (eager, *_) = on_cuda(kind), on_cuda(kind)
    eager.load_state_dict(module.state_dict())
    module.path = path
    return module, eager, x, hx


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
    module, eager, x, hx = twins(kind, path)
    replay = torch.cuda.make_graphed_callables(module, (x, hx))
    x, hx = tree_map_only(torch.Tensor, lambda t: torch.randn_like(t).requires_grad_(), (x, hx))
    shown = []
    for call in (replay, eager):
        results = tree_leaves(call(x, hx))
        loss = sum(t.square().sum() for t in results)
        shown.append([*results, *torch.autograd.grad(loss, [x, *tree_leaves(hx), *call.parameters()])])
    torch.testing.assert_close(shown[0], shown[1], rtol=1e-5, atol=1e-5)


@cuda
@pytest.mark.parametrize("path", ["fast", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_are_captured_by_a_cuda_graph(kind, path):
    """Nobody asks the device where: other lengths are replayed by the same graph."""
    module, eager, x, hx = twins(kind, path)
    lengths, found = torch.full((N,), 7, device="cuda"), {}
    replay = graphs.capture(lambda: found.update(results=rows_that_end(module, x, hx, lengths)))
    lengths.copy_(torch.tensor([3, 0, 7]))
    replay()
    expected = rows_that_end(eager, x, hx, [3, 0, 7])
    torch.testing.assert_close(found["results"], expected, rtol=1e-5, atol=1e-5)


def rows_that_end(module, x, hx, lengths):
    """Results, and all gradients."""
    results = tree_leaves(module(x, hx, lengths=lengths))
    loss = sum(t.square().sum() for t in results)
    grads = torch.autograd.grad(loss, [x, *tree_leaves(hx), *module.parameters()])
    return [*(t.detach() for t in results), *grads]  # no graph of theirs is alive when others are captured


@cuda
@pytest.mark.parametrize("kind", ["tanh", "LSTM", "GRU"])
def test_a_fused_step_is_a_product_and_one_kernel(kind):
    module, x, hx = on_cuda(kind, num_layers=1, bidirectional=False)
    module.path = "fused"
    with torch.no_grad():
        module(x, hx)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            module(x, hx)
    kernels = [event for event in profile.key_averages() if event.key.startswith("triton_")]
    assert sum(event.count for event in kernels) == len(x), [event.key for event in kernels]


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
    shown = []
    for _ in range(2):
        with torch.no_grad():
            results = tree_leaves(module(x, hx))
        results = [t for t in results if isinstance(t, torch.Tensor) and t.is_floating_point()]
        shown.append([*results, *observed(module, x, hx)])
        monkeypatch.setattr(loop, "library", lambda tensor: cublas)
    torch.testing.assert_close(shown[1], shown[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_asks_for_data_where_there_are_none(kind):
    """Tensors on `meta` have no data: a value read on the host, as no CUDA graph allows, would fail on them too."""
    module = build(rnnkit, kind, device="meta", **DEEP)
    x = torch.empty(5, N, H_IN, dtype=torch.float64, device="meta", requires_grad=True)
    output, _ = module(x)
    output.sum().backward()
    assert output.shape[:2] == x.shape[:2]
    assert all(p.grad.device.type == "meta" for p in [x, *module.parameters()])


# A GPU that isn't there -----------------------------------------------------------------------------------------------
#
# A build of torch for CUDA knows tensors that have a device and no data, also where there is no GPU. Devices that are
# mixed raise there, and so does a value that is read: all that a call does but its numbers, and autograd's engine.

linked = pytest.mark.skipif(torch.version.cuda is None, reason="a build of torch without CUDA's parts")
NOWHERE = FakeTensorMode(allow_non_fake_inputs=True)
GPU_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: What a batch may have beside its rows.
RAGGED = ["lengths", "resets", "lengths resets", "resets reset_to", "lengths resets reset_to"]


def nowhere(value, dtype=torch.float32):
    """Return the same tensors on a GPU, numbers in that dtype. Those that say how rows are packed stay on the host."""

    def empty(t):
        return torch.empty_like(t, device="cuda", dtype=dtype if t.is_floating_point() else t.dtype)

    return tree_map_only(torch.Tensor, empty, value)


def moved_nowhere(module, dtype=torch.float32):
    for name, parameter in module.named_parameters():
        module._parameters[name] = nowhere(parameter, dtype)
    return module


def record_nowhere(kind, form, dtype, **options):
    """Return the record of a call there, once it has been checked here."""
    module = build(rnnkit, kind, dtype=torch.float32, **options).requires_grad_(False)
    x, hx = arguments(module, form)
    _, record = module.record(pack(module, x.detach(), form), tree_map_only(torch.Tensor, torch.Tensor.detach, hx))
    with NOWHERE:
        return nowhere(record._replace(batch_sizes=None), dtype)._replace(batch_sizes=record.batch_sizes)


def devices_of(values):
    return {t.device.type for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


@linked
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("path", ["readable", "fast", "fused"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiled_by_none")
def test_a_layer_on_a_gpu_mixes_no_devices_and_reads_no_values(kind, form, path, dtype):
    record = record_nowhere(kind, form, dtype, **DEEP)
    with NOWHERE, torch.no_grad():
        results = stack.run(record, paths.LAYERS[path])
    assert devices_of(results) == {"cuda"}


@linked
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("path", ["fast", "fused"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiled_by_none")
def test_rows_that_end_on_a_gpu_mix_no_devices_and_are_not_read(kind, path, dtype):
    record = record_nowhere(kind, "padded", dtype, **DEEP)
    with NOWHERE, torch.no_grad():
        results = stack.run(record._replace(lengths=nowhere(torch.tensor([2, 0, 3]))), paths.LAYERS[path])
    assert devices_of(results) == {"cuda"}


@linked
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_back_through_time_on_a_gpu_mixes_no_devices_and_reads_no_values(kind, form, dtype, reverse):
    record = record_nowhere(kind, form, dtype)
    with NOWHERE, torch.no_grad():
        direction = record.direction(0, record.input, reverse)
        tape, run = loop.new_tape(direction), loop.Loop(direction)
        output, state = run.forward(tape)
        grads = [torch.zeros_like(t) for t in (output, *state)]
        found = run.backward(output, tape, grads, [t is not None for t in direction.tensors])
    assert devices_of([output, *state, *found]) == {"cuda"}
    assert [g.shape for g in found if g is not None] == [t.shape for t in direction.tensors if t is not None]


@linked
@pytest.mark.parametrize("ragged", RAGGED)
@pytest.mark.parametrize("form", ["unbatched", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_resets_on_a_gpu_mix_no_devices_and_are_not_read(kind, form, ragged):
    module = build(rnnkit, kind, dtype=torch.float32, **DEEP).requires_grad_(False)
    x, hx = arguments(module, form)
    values = {
        "lengths": torch.full(x.shape[1:-1], 2),
        "resets": torch.zeros(x.shape[:-1], dtype=torch.bool),
        "reset_to": hx,
    }
    with NOWHERE, torch.no_grad():
        results = moved_nowhere(module)(
            nowhere(x), nowhere(hx), **{name: nowhere(values[name]) for name in ragged.split()}
        )
    assert devices_of(results) == {"cuda"}


@linked
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("form", ["unbatched", "padded"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_on_a_gpu_mixes_no_devices_and_reads_no_values(kind, form, dtype):
    cell = build(rnnkit, kind, cell=True, dtype=torch.float32).requires_grad_(False)
    x, hx = arguments(cell, form)
    with NOWHERE, torch.no_grad():
        moved_nowhere(cell, dtype)
        for given in (hx, None):
            assert devices_of(cell(nowhere(x, dtype), nowhere(given, dtype))) == {"cuda"}
