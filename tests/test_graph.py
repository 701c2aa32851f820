"""What torch.compile and torch.export make of the layers, beside the cells of test_matrix."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from helpers import CELLS, FORMS, H_IN, KINDS, N, arguments, build, pack
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map

import rnnkit
from rnnkit import bptt, checks, graph, recurrence
from rnnkit.equations import EQUATIONS

DEEP = {"num_layers": 2, "bidirectional": True}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=["readable", "always fast"])
def path(request, monkeypatch):
    monkeypatch.setattr(rnnkit.RNNBase, "path", request.param)
    return request.param


@pytest.fixture(autouse=True)
def fresh():
    """No test finds what another compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module, graphs=None, **options):
    def backend(gm, inputs):
        if graphs is not None:
            graphs.append(gm)
        return torch._dynamo.lookup_backend("aot_eager")(gm, inputs)

    return torch.compile(module, backend=backend, **{"fullgraph": True} | options)


def leaves(result):
    """The tensors of a result."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def assert_same(found, expected):
    """To rounding, which the order of the sums in a gradient changes."""
    torch.testing.assert_close(list(found), list(expected), rtol=0, atol=1e-10)


def example(module, form="padded", **options):
    x, hx = arguments(module, form, **options)
    return pack(module, x, form), hx


def packed(lengths):
    return pack_sequence([torch.randn(length, H_IN, dtype=torch.float64) for length in sorted(lengths, reverse=True)])


def gradients(run, module, *args):
    results = leaves(run(*args))
    results = [y for y in results if y.requires_grad]
    loss = sum(((k + 1) * y * y).sum() for k, y in enumerate(results))
    inputs = [t for t in leaves(args) if t.requires_grad]
    return [*results, *torch.autograd.grad(loss, [*inputs, *module.parameters()])]


# torch.compile ------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("form", FORMS)
def test_compiled_is_eager(kind, form, monkeypatch):
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module = build(rnnkit, kind, **DEEP)
    args = example(module, form)
    run = compiled(module)
    expected = gradients(module, module, *args)
    found = gradients(run, module, *args)
    assert_same(found, expected)
    with torch.no_grad():
        assert_same(leaves(run(*args)), leaves(module(*args)))


@kinds
def test_the_graph_holds_one_operator_whatever_the_length(kind):
    nodes = []
    for steps in (5, 500):
        torch._dynamo.reset()
        graphs = []
        module = build(rnnkit, kind, **DEEP)
        compiled(module, graphs)(*arguments(module, steps=steps))
        assert sum("rnnkit.unroll" in str(node.target) for node in graphs[-1].graph.nodes) == 1
        nodes.append(len(graphs[-1].graph.nodes))
    assert nodes[0] == nodes[1] < 100


def test_with_dropout_there_is_one_operator_for_each_layer():
    graphs = []
    module = build(rnnkit, "GRU", num_layers=3, dropout=0.5)
    compiled(module, graphs)(*arguments(module))
    assert sum("rnnkit.unroll" in str(node.target) for node in graphs[-1].graph.nodes) == 3


@kinds
def test_another_length_or_batch_compiles_nothing(kind, path):
    graphs = []
    module = build(rnnkit, kind)
    run = compiled(module, graphs, dynamic=True)
    counts = []
    for steps, rows in ((5, 7), (9, 2), (50, 11), (2, 6)):
        x = torch.randn(steps, rows, H_IN, dtype=torch.float64, requires_grad=True)
        assert_same(gradients(run, module, x), gradients(module, module, x))
        counts.append(len(graphs))
    assert counts[0] == counts[-1]


def test_a_changing_length_becomes_dynamic_by_itself():
    graphs = []
    module = build(rnnkit, "GRU")
    run = compiled(module, graphs)
    counts = []
    for steps in (5, 7, 11, 13):
        run(torch.randn(steps, 6, H_IN, dtype=torch.float64))
        counts.append(len(graphs))
    assert counts[1] == counts[-1]


@kinds
def test_packed_batches_of_any_sizes_share_a_graph(kind, path):
    graphs = []
    module = build(rnnkit, kind)
    run = compiled(module, graphs)
    counts = []
    for lengths in ([5, 3, 2], [6, 4, 1], [9, 4, 3], [7, 7, 2], [12, 3, 3, 2], [10, 9, 8, 7, 6]):
        x = packed(lengths)
        assert_same(leaves(run(x)), leaves(module(x)))
        counts.append(len(graphs))
    assert counts[1] == counts[-1]


def test_wrong_batch_sizes_are_refused_inside_the_graph():
    module = build(rnnkit, "LSTM")
    x = torch.randn(6, H_IN, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="batch_sizes count 5 rows"):
        compiled(module)(PackedSequence(x, torch.tensor([3, 2])))


@kinds
def test_compiled_dropout_is_drawn_anew_and_only_in_training(kind):
    module = build(rnnkit, kind, num_layers=2, dropout=0.5)
    x = arguments(module)[0].detach()
    run = compiled(module)
    assert not torch.equal(run(x)[0], run(x)[0])
    module.eval()
    assert_same(leaves(run(x)), leaves(module(x)))


def test_backward_twice_through_a_retained_graph(path):
    module = build(rnnkit, "LSTM")
    y = compiled(module)(arguments(module)[0])[0].sum()
    first = torch.autograd.grad(y, list(module.parameters()), retain_graph=True)
    assert_same(torch.autograd.grad(y, list(module.parameters())), first)


def test_what_forward_recorded_lives_as_long_as_its_graph():
    module = build(rnnkit, "GRU")
    x = arguments(module)[0]
    run = compiled(module)
    run(x)[0].sum().backward()
    y = run(x)[0]
    assert len(graph.RECORDS) == 1
    del y
    gc.collect()
    assert not graph.RECORDS


def test_without_a_gradient_wanted_nothing_is_recorded():
    module = build(rnnkit, "GRU")
    x = arguments(module)[0]
    with torch.no_grad():
        y = compiled(module)(x)
    assert not graph.RECORDS
    assert not y[0].requires_grad


def test_a_record_that_is_lost_is_made_again(path):
    module = build(rnnkit, "LSTM", **DEEP)
    x, hx = arguments(module)
    run = compiled(module)
    expected = torch.autograd.grad(module(x, hx)[0].sum(), [x, *hx, *module.parameters()])
    y = leaves(run(x, hx))[0].sum()
    graph.RECORDS.clear()
    assert_same(torch.autograd.grad(y, [x, *hx, *module.parameters()]), expected)


def test_frozen_weights_get_no_gradient_and_cost_none(monkeypatch):
    wanted = []
    record = graph.Call.record
    monkeypatch.setattr(graph.Call, "record", lambda call: wanted.append(list(call.needed)) or record(call))
    module = build(rnnkit, "GRU").requires_grad_(False)
    module.bias_hh_l0.requires_grad_()
    compiled(module)(arguments(module, hx=False)[0].detach())[0].sum().backward()
    assert wanted == [[False] * 5 + [True]]
    assert module.bias_hh_l0.grad is not None
    assert module.weight_hh_l0.grad is None


@kinds
def test_transforms_inside_a_graph_are_those_outside(kind):
    module = build(rnnkit, kind, num_layers=2)
    params = {name: value.detach() for name, value in module.named_parameters()}
    xs = torch.randn(2, 3, N, H_IN, dtype=torch.float64)

    def run(params, x):
        return functional_call(module, params, (x,))[0]

    def all_of_it(xs):
        samples = vmap(grad(lambda p, x: run(p, x).square().sum()), in_dims=(None, 0))(params, xs)
        return (
            *samples.values(),
            vmap(lambda x: run(params, x))(xs),
            jvp(lambda x: run(params, x), (xs[0].clone(),), (xs[1],))[1],
        )

    assert_same(compiled(all_of_it)(xs), all_of_it(xs))


def test_an_ensemble_inside_a_graph():
    modules = [build(rnnkit, "GRU") for _ in range(3)]
    params, _ = stack_module_state(modules)
    x = arguments(modules[0])[0].detach()

    def ensemble(params, x):
        return vmap(lambda p: functional_call(modules[0], p, (x,))[0])(params)

    assert_same([compiled(ensemble)(params, x)], [torch.stack([module(x)[0] for module in modules])])


def test_what_a_graph_can_t_differentiate_it_refuses():
    module = build(rnnkit, "GRU")
    x = arguments(module)[0]
    run = compiled(module)
    (first,) = torch.autograd.grad(run(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        run(forward_ad.make_dual(x.detach(), torch.ones_like(x)))


@pytest.mark.parametrize("kind", ["tanh", "LSTM", "LSTM-proj", "GRU"])
def test_autocast_in_a_graph_is_autocast_outside(kind):
    module = build(rnnkit, kind, dtype=torch.float32, **DEEP)
    x, hx = arguments(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = leaves(compiled(module)(x, hx)), leaves(module(x, hx))
    assert [y.dtype for y in found] == [y.dtype for y in expected]
    assert_same(found, expected)
    torch.autograd.grad(sum(y.float().sum() for y in found), list(module.parameters()))


def test_a_graph_leaves_nothing_in_the_cache_of_autocast():
    """A weight cast inside the operator, where autograd is off, must not be found by who trains outside."""
    module = build(rnnkit, "GRU", dtype=torch.float32)
    x, _ = arguments(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            compiled(module)(x)
        output, _ = module(x)
    torch.autograd.grad(output.sum(), list(module.parameters()))


@kinds
@pytest.mark.parametrize("form", ["unbatched", "padded"])
def test_a_compiled_sequence_of_length_0(kind, form):
    module = build(rnnkit, kind, **DEEP)
    x, hx = arguments(module, form, steps=0)
    run = compiled(module)
    assert_same(leaves(run(x, hx)), leaves(module(x, hx)))
    states = hx if isinstance(hx, tuple) else (hx,)
    grads = torch.autograd.grad(sum(y.sum() for y in leaves(run(x, hx))[1:]), states)
    assert all(torch.equal(g, torch.ones_like(g)) for g in grads)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM-proj"])
def test_the_operators_are_what_torch_asks_of_operators(kind, packed, path):
    module = build(rnnkit, kind, bidirectional=True)
    weights = [w for listed in module.all_weights for w in listed]
    x, hx = example(module, "packed" if packed else "padded")
    hx = hx if isinstance(hx, tuple) else (hx,)
    states = [s for pair in zip(*hx, strict=True) for s in pair]
    batch_sizes, rows = (x.batch_sizes, x.data) if packed else (None, x)
    needed = [True] * (1 + len(states) + len(weights))
    call = (rows, states, weights, batch_sizes, needed, module.mode, True, path, None, None)
    # aot_dispatch_* draw their own comparison of tickets, which differ from call to call
    torch.library.opcheck(
        graph._stack, call, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


# torch.export -------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(("form", "hx"), [("unbatched", False), ("padded", True)])
def test_an_exported_program_is_the_module_at_every_length(kind, form, hx):
    module = build(rnnkit, kind, **DEEP).eval()
    x, states = arguments(module, form, hx=hx, steps=5)
    length = torch.export.Dim("L", min=1)
    program = torch.export.export(module, (x, states), dynamic_shapes=({0: length}, tree_map(lambda _: None, states)))
    for steps in (1, 7, 50):
        x, states = arguments(module, form, hx=hx, seed=steps, steps=steps)
        with torch.no_grad():
            assert_same(leaves(program.module()(x, states)), leaves(module(x, states)))


@kinds
def test_an_exported_graph_is_of_aten_and_scan_and_does_not_grow(kind):
    sizes = []
    for steps in (5, 200):
        torch._dynamo.reset()
        module = build(rnnkit, kind, **DEEP).eval()
        program = torch.export.export(
            module, (arguments(module, steps=steps)[0].detach(),), dynamic_shapes=({0: torch.export.Dim("L", min=1)},)
        )
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert "scan" in called
        assert all(name == "scan" or "getitem" in name or name.startswith(("aten.", "<built-in")) for name in called)
        sizes.append(len(program.graph.nodes))
    assert sizes[0] == sizes[1]


def test_an_exported_program_trains_nothing():
    module = build(rnnkit, "GRU")
    x = arguments(module)[0]
    program = torch.export.export(module, (x,)).module()
    assert not program(x)[0].requires_grad


def test_a_packed_input_is_not_exported():
    module = build(rnnkit, "GRU")

    class Packed(torch.nn.Module):
        def forward(self, data, sizes):
            return module(PackedSequence(data, sizes, torch.arange(3), torch.arange(3)))[0].data

    with pytest.raises(Exception, match="can't export a packed input") as raised:
        torch.export.export(Packed(), (torch.randn(6, H_IN, dtype=torch.float64), torch.tensor([3, 2, 1])))
    assert isinstance(raised.value, NotImplementedError)


def test_without_scan_an_export_is_for_one_length(monkeypatch):
    monkeypatch.setattr(graph, "scan", None)
    module = build(rnnkit, "LSTM", **DEEP).eval()
    x = arguments(module)[0].detach()
    program = torch.export.export(module, (x,))
    assert_same(leaves(program.module()(x)), leaves(module(x)))


# What torch keeps for itself ----------------------------------------------------------------------------------------


def test_what_is_used_of_torch_s_own_is_there():
    assert graph.scan is not None
    assert callable(torch._C._are_functorch_transforms_active)
    assert torch.autograd.profiler._is_profiler_enabled is False
    assert bptt.TELLING
    assert checks.TELLING


def test_without_them_modules_and_graphs_work(monkeypatch):
    monkeypatch.setattr(graph, "transforming", lambda: True)
    module = build(rnnkit, "GRU")
    x = arguments(module)[0]
    assert_same(leaves(compiled(module)(x)), leaves(module(x)))
    monkeypatch.setattr(bptt, "stack", None)
    for owner in (bptt, checks):
        with monkeypatch.context() as context:
            context.setattr(owner, "TELLING", False)
            assert_same(leaves(module(x)), leaves(compiled(module)(x)))
    monkeypatch.setattr(torch.autograd, "profiler", SimpleNamespace())
    assert recurrence.named(EQUATIONS["GRU"], 0, len) is len


# Cells --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_over_a_cell_compiles(kind):
    cell = build(rnnkit, kind, cell=True)
    x = torch.randn(4, N, H_IN, dtype=torch.float64)

    def loop(x):
        state = None
        for step in x:
            state = cell(step, state)
        return state

    assert_same(leaves(compiled(loop)(x)), leaves(loop(x)))


def test_modules_are_freed():
    module = build(rnnkit, "GRU")
    compiled(module)(*arguments(module))
    gone = weakref.ref(module)
    del module
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
