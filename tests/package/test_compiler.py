"""What torch.compile and torch.export make of the layers, beside the cells of test_matrix."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from cases import leaves, make_stack, wanting
from helpers import CELLS, FORMS, H_IN, KINDS, N, arguments, assert_equal_tensors, build, pack, slow
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import rnnkit
from rnnkit import compiler, paths, stack, untraced
from rnnkit.equations import EQUATIONS
from rnnkit.fast import autograd, loop

DEEP = {"num_layers": 2, "bidirectional": True}
every_kind = pytest.mark.parametrize("kind", KINDS)
kinds = pytest.mark.parametrize("kind", ["tanh", "LSTM-proj", "GRU"])  # where a test takes long


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


def compiled(module, graphs=None, backend="aot_eager", **options):
    """What torch.compile makes of a module: in a graph of one piece, which is put to `graphs`.

    "eager" runs that graph as it stands, autograd and all. "aot_eager" traces its backward as well, by what operators
    say of their results, as inductor does, which takes a few times longer: it is for what those traces are about.
    """

    def collecting(gm, inputs):
        if graphs is not None:
            graphs.append(gm)
        return torch._dynamo.lookup_backend(backend)(gm, inputs)

    return torch.compile(module, backend=collecting, **{"fullgraph": True} | options)


#: By path: a tape, which the fast one alone has, is among the results that a trace of the backward must know.
BACKENDS = {"readable": "eager", "always fast": "aot_eager"}


def flat(result):
    """The tensors of a result."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def assert_same(found, expected, tolerance=1e-10, case=""):
    """To rounding, which the order of the sums in a gradient changes."""
    found, expected = ({f"tensor {k}": t for k, t in enumerate(tensors)} for tensors in (found, expected))
    assert_equal_tensors(found, expected, tolerance, case)


def example(module, form="padded", **options):
    x, hx = arguments(module, form, **options)
    return pack(module, x, form), hx


def packed(lengths):
    return pack_sequence([torch.randn(length, H_IN, dtype=torch.float64) for length in sorted(lengths, reverse=True)])


def gradients(run, module, *args):
    results = flat(run(*args))
    results = [y for y in results if y.requires_grad]
    loss = sum(((k + 1) * y * y).sum() for k, y in enumerate(results))
    inputs = [t for t in flat(args) if t.requires_grad]
    return [*results, *torch.autograd.grad(loss, [*inputs, *module.parameters()])]


# torch.compile ------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("form", FORMS)
def test_compiled_is_eager(kind, form, monkeypatch):
    """Of all forms both directions, and of padded batches two layers.

    What a batch of one or another order is beside a padded or a packed one, are torch's operations around the layers.
    """
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module = build(rnnkit, kind, bidirectional=True, num_layers=2 if form == "padded" else 1)
    args = example(module, form)
    run = compiled(module, backend="aot_eager" if form in ("padded", "packed") else "eager")
    expected = gradients(module, module, *args)
    found = gradients(run, module, *args)
    assert_same(found, expected)
    with torch.no_grad():
        assert_same(flat(run(*args)), flat(module(*args)))


WRITES = {
    "relu(output, inplace=True)": lambda x, output, states: torch.relu_(output),
    "output[2:] = 0": lambda x, output, states: output[2:].zero_(),
    "output += 1": lambda x, output, states: output.add_(1),
    "h_n *= 3": lambda x, output, states: states[0].mul_(3),
    "c_n += 1": lambda x, output, states: states[-1].add_(1),
    "input += 1": lambda x, output, states: x.add_(1) if not x.is_contiguous() else None,  # of which a copy is kept
}


@every_kind
@pytest.mark.parametrize("layers", [1, *slow([2])])
def test_a_graph_writes_on_what_may_be_written_on(kind, layers, monkeypatch):
    """Between forward and backward, in one graph, as a program that isn't compiled may: its gradients are the same."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module = build(rnnkit, kind, num_layers=layers)
    x, hx = example(module)
    for name, write in WRITES.items():

        def program(x, hx, write=write):
            x = (2 * x).transpose(0, 1).contiguous().transpose(0, 1)  # as of batch_first, whose steps don't lie on end
            output, state = module(x, hx)
            write(x, output, flat(state))
            return output, state

        expected = gradients(program, module, x, hx)
        assert_same(gradients(compiled(program), module, x, hx), expected, case=f"{kind}, {layers} layers, {name}")


@pytest.mark.parametrize(("kind", "backend"), [("LSTM", "aot_eager"), *slow([(kind, "inductor") for kind in KINDS])])
def test_what_a_compiled_layer_returns_may_be_written_on(kind, backend, monkeypatch):
    """By a program that isn't compiled, too. Inductor leaves out copies that a graph makes."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module = build(rnnkit, kind)
    x, hx = example(module)

    def written(layer):
        def program(x, hx):
            output, state = layer(x, hx)
            return output.mul_(2), state

        return program

    expected = gradients(written(module), module, x, hx)
    assert_same(
        gradients(written(compiled(module, backend=backend)), module, x, hx), expected, case=f"{kind}, {backend}"
    )


@pytest.mark.parametrize("form", ["packed", "unsorted"])
@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("kind", ["tanh", "LSTM-proj"])
def test_a_compiled_packed_result_has_all_its_fields(kind, hx, form):
    module = build(rnnkit, kind)
    x, state = arguments(module, form, hx=hx)
    x = pack(module, x, form)
    output, _ = torch.compile(module, backend="eager", fullgraph=hx or form == "unsorted")(x, state)
    expected, _ = module(x, state)
    assert isinstance(output, PackedSequence)
    assert len(output) == len(expected) == 4
    assert_same(flat(output), flat(expected), 1e-10, (kind, hx, form))


@kinds
def test_the_graph_holds_one_operator_for_each_direction_whatever_the_length(kind):
    nodes = []
    for steps in (5, 500):
        torch._dynamo.reset()
        graphs = []
        module = build(rnnkit, kind, **DEEP)
        compiled(module, graphs, "eager")(*arguments(module, steps=steps))
        assert sum("rnnkit.unroll" in str(node.target) for node in graphs[-1].graph.nodes) == 2 * 2
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
    run = compiled(module, graphs, BACKENDS[path], dynamic=True)
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
    run = compiled(module, graphs, BACKENDS[path])
    counts = []
    for lengths in ([5, 3, 2], [6, 4, 1], [9, 4, 3], [7, 7, 2], [12, 3, 3, 2], [10, 9, 8, 7, 6]):
        x = packed(lengths)
        assert_same(flat(run(x)), flat(module(x)))
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
    run = compiled(module, backend="aot_eager" if kind == "GRU" else "eager")
    assert not torch.equal(run(x)[0], run(x)[0])
    module.eval()
    assert_same(flat(run(x)), flat(module(x)))


def test_backward_goes_through_a_retained_graph_as_often_as_asked(path):
    module = build(rnnkit, "LSTM")
    weights = list(module.parameters())
    y = compiled(module)(arguments(module)[0])[0].sum()
    runs = [torch.autograd.grad(y, weights, retain_graph=retain) for retain in (True, True, False)]
    for again in runs[1:]:
        assert_same(again, runs[0], 0.0)
    assert_same(runs[0], torch.autograd.grad(module(arguments(module)[0])[0].sum(), weights))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, weights)


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["LSTM-proj", "GRU"])
def test_checkpoints_in_a_graph_change_no_value(kind, dtype, every, form, monkeypatch):
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module = build(rnnkit, kind, dtype=dtype, bidirectional=True)
    args = example(module, form)
    expected = gradients(module, module, *args)
    module.checkpoint_every = every
    run = compiled(module, backend="aot_eager" if every == 2 else "eager")
    assert_same(gradients(run, module, *args), expected, 1e-10 if dtype == torch.float64 else 2e-3)


class Operators(TorchDispatchMode):
    """The operator's calls: which tensors are there, which of these want a gradient, and how many results it had."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        if operator is torch.ops.rnnkit.unroll.default:
            self.calls.append((list(args[1]), len(results)))
        return results


def results_of_the_operator(direction):
    """How many tensors it returns, beside the output and the state."""
    with Operators() as seen:
        compiler.unroll(direction)
    ((_, count),) = seen.calls
    return count - 1 - len(direction.state)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@kinds
def test_the_operator_returns_a_tape_where_a_gradient_is_wanted_and_else_none(kind, packed):
    stack = make_stack(kind, packed=packed)
    direction = stack.direction(0, stack.input, False)
    tape = len(loop.new_tape(direction))
    assert tape == {"tanh": 0, "relu": 0, "LSTM": 3, "LSTM-proj": 4, "GRU": 2}[kind]
    kept = 1 + tape  # a copy of the output, on which the caller may write
    assert results_of_the_operator(direction) == kept
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            assert results_of_the_operator(direction) == 0
    for setting in ({"checkpoint_every": 2}, {"path": "readable"}):
        assert results_of_the_operator(direction._replace(**setting)) == 0, setting
    wanting(stack, ["b_hh_l0"])
    assert results_of_the_operator(direction) == kept
    wanting(stack, [])
    assert results_of_the_operator(direction) == 0


@kinds
def test_in_a_graph_without_a_gradient_wanted_there_is_no_tape(kind, monkeypatch):
    """Neither under no_grad nor of frozen weights, and after either a graph that trains has one, and trains."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module, graphs = build(rnnkit, kind), []
    x = arguments(module)[0].detach()
    run = compiled(module, graphs)
    results = []
    # In torch 2.11 a graph that was compiled for weights that learn serves frozen ones, too.
    compiles_anew = [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 12]
    frozen = [(False, torch.enable_grad)] if compiles_anew else []
    for wanted, context in ((True, torch.no_grad), (True, torch.enable_grad), *frozen):
        module.requires_grad_(wanted)
        with context():
            output, _ = run(x)
        (node,) = [n for n in graphs[-1].graph.nodes if "rnnkit.unroll" in str(n.target)]
        results.append(len(node.meta["example_value"]) - 1 - len(module.equation.state))
        assert any(node.args[1]) == output.requires_grad == (wanted and context is torch.enable_grad)
    stack = make_stack(kind)
    kept = 1 + len(loop.new_tape(stack.direction(0, stack.input, False)))  # with a copy of the output
    assert results == [0, kept, *(0 for _ in frozen)]
    module.requires_grad_(True)
    with torch.no_grad():
        quiet = flat(run(x))
    assert_same(quiet, [y.detach() for y in flat(run(x))])
    assert_same(gradients(run, module, x), gradients(module, module, x))


@pytest.mark.parametrize("kind", ["LSTM", "LSTM-proj", "GRU"])
def test_a_tape_lives_as_long_as_its_graph(kind, monkeypatch):
    """Nothing is kept on the side."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    made, new_tape = [], loop.new_tape

    def watched(direction):
        tape = new_tape(direction)
        made.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in tape)
        return tape

    module = build(rnnkit, kind)
    x = arguments(module)[0]
    run = compiled(module)
    run(x)[0].sum().backward()
    monkeypatch.setattr(compiler.fast, "new_tape", watched)
    y = run(x)[0]
    assert made
    assert not any(memory.expired() for memory in made)
    del y
    gc.collect()
    assert all(memory.expired() for memory in made)


@pytest.mark.parametrize("form", ["padded", "packed"])
@kinds
def test_two_graphs_may_live_at_once_and_go_back_in_any_order(kind, form, path):
    module = build(rnnkit, kind)
    run = compiled(module, backend=BACKENDS[path])
    examples = [example(module, form, seed=seed) for seed in (1, 2)]
    weights = list(module.parameters())

    def back(results, retain):
        return torch.autograd.grad(sum(y.square().sum() for y in flat(results)), weights, retain_graph=retain)

    def only_floats(results):
        return [y for y in flat(results) if y.requires_grad]

    expected = [back(only_floats(module(*args)), False) for args in examples]
    first, second = (only_floats(run(*args)) for args in examples)
    for results, wanted in ((first, 0), (second, 1), (first, 0)):
        assert_same(back(results, True), expected[wanted], 1e-9, (kind, form))
    assert_same(back(second, False), expected[1], 1e-9, (kind, form))
    assert_same(back(first, False), expected[0], 1e-9, (kind, form))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@kinds
def test_a_compiled_gradient_at_gates_of_exactly_0_is_the_eager_one(kind, dtype, path):
    """Of relu that is 0."""
    module = build(rnnkit, kind, dtype=dtype)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
    x = torch.zeros(5, N, H_IN, dtype=dtype, requires_grad=True)
    found, expected = (
        [*torch.autograd.grad(run(x)[0].sum(), [*module.parameters()])]
        for run in (compiled(module, backend="eager"), module)
    )
    assert_same(found, expected, 1e-6, (kind, dtype, path))
    if kind == "relu":
        assert not any(gradient.any() for gradient in found)


def test_frozen_weights_get_no_gradient_and_cost_none(monkeypatch):
    wanted, backward = [], loop.Loop.backward

    def watched(run, output, tape, grads, needed):
        wanted.append(list(needed))
        return backward(run, output, tape, grads, needed)

    monkeypatch.setattr(loop.Loop, "backward", watched)
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    module = build(rnnkit, "GRU").requires_grad_(False)
    module.bias_hh_l0.requires_grad_()
    compiled(module)(arguments(module, hx=False)[0].detach())[0].sum().backward()
    assert wanted == [[False, False, False, False, True, False, False]]  # input; w_ih, w_hh, b_ih, b_hh, w_hr; h
    assert module.bias_hh_l0.grad is not None
    assert module.weight_hh_l0.grad is None


@pytest.mark.slow
@kinds
def test_transforms_inside_a_graph_are_those_outside(kind):
    module = build(rnnkit, kind, num_layers=2 if kind == "tanh" else 1)
    params = {name: value.detach() for name, value in module.named_parameters()}
    xs = torch.randn(2, 2, N, H_IN, dtype=torch.float64)

    def run(params, x):
        return functional_call(module, params, (x,))[0]

    def all_of_it(xs):
        samples = vmap(grad(lambda p, x: run(p, x).square().sum()), in_dims=(None, 0))(params, xs)
        return (
            *samples.values(),
            vmap(lambda x: run(params, x))(xs),
            jvp(lambda x: run(params, x), (xs[0].clone(),), (xs[1],))[1],
        )

    run_in_graph = compiled(all_of_it, backend="aot_eager" if kind == "GRU" else "eager")
    assert_same(run_in_graph(xs), all_of_it(xs))


def test_an_ensemble_inside_a_graph():
    modules = [build(rnnkit, "GRU") for _ in range(3)]
    params, _ = stack_module_state(modules)
    x = arguments(modules[0])[0].detach()

    def ensemble(params, x):
        return vmap(lambda p: functional_call(modules[0], p, (x,))[0])(params)

    assert_same([compiled(ensemble)(params, x)], [torch.stack([module(x)[0] for module in modules])])


def test_what_a_graph_cannot_differentiate_it_refuses():
    module = build(rnnkit, "GRU")
    x = arguments(module)[0]
    run = compiled(module)
    (first,) = torch.autograd.grad(run(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()
    # From torch 2.14 on the compiler refuses such an input itself.
    refusals = NotImplementedError, torch._dynamo.exc.Unsupported
    with forward_ad.dual_level(), pytest.raises(refusals, match=r"jvp|dual tensor"):
        run(forward_ad.make_dual(x.detach(), torch.ones_like(x)))


@pytest.mark.parametrize("kind", ["tanh", "LSTM", "LSTM-proj", "GRU"])
def test_autocast_in_a_graph_is_autocast_outside(kind):
    module = build(rnnkit, kind, dtype=torch.float32, bidirectional=True)
    x, hx = arguments(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = flat(compiled(module)(x, hx)), flat(module(x, hx))
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
    run = compiled(module, backend="aot_eager" if form == "padded" else "eager")
    assert_same(flat(run(x, hx)), flat(module(x, hx)))
    states = hx if isinstance(hx, tuple) else (hx,)
    grads = torch.autograd.grad(sum(y.sum() for y in flat(run(x, hx))[1:]), states)
    assert all(torch.equal(g, torch.ones_like(g)) for g in grads)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM-proj"])
def test_the_operators_are_what_torch_asks_of_operators(kind, packed, path, every):
    stack = make_stack(kind, packed=packed)
    tensors = [*leaves(stack).values()]
    arguments = (
        tensors,
        [True] * len(tensors),
        [tensor is not None for tensor in stack.direction(0, stack.input, True).tensors],
        stack.batch_sizes,
        stack.equation.key,
        True,
        path,
        every,
        *[None] * 3,  # no autocast, no lengths, no resets
    )
    torch.library.opcheck(compiler._unroll, arguments)


# torch.export -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@kinds
@pytest.mark.parametrize(("form", "hx"), [("unbatched", False), ("padded", True)])
def test_an_exported_program_is_the_module_at_every_length(kind, form, hx):
    """Of both directions, and of padded batches two layers."""
    module = build(rnnkit, kind, bidirectional=True, num_layers=2 if form == "padded" else 1).eval()
    x, states = arguments(module, form, hx=hx, steps=5)
    length = torch.export.Dim("L", min=1)
    program = torch.export.export(module, (x, states), dynamic_shapes=({0: length}, tree_map(lambda _: None, states)))
    for steps in (1, 7, 50):
        x, states = arguments(module, form, hx=hx, seed=steps, steps=steps)
        with torch.no_grad():
            assert_same(flat(program.module()(x, states)), flat(module(x, states)))


@pytest.mark.slow
@kinds
def test_an_exported_graph_is_of_aten_and_scan_and_does_not_grow(kind):
    sizes = []
    for steps in (5, 200):
        torch._dynamo.reset()
        module = build(rnnkit, kind, bidirectional=True).eval()
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
    monkeypatch.setattr(compiler, "scan", None)
    module = build(rnnkit, "LSTM", **DEEP).eval()
    x = arguments(module)[0].detach()
    program = torch.export.export(module, (x,))
    assert_same(flat(program.module()(x)), flat(module(x)))


# What torch keeps for itself ----------------------------------------------------------------------------------------


def test_what_is_used_of_torchs_own_is_there():
    assert compiler.scan is not None
    assert callable(torch._C._are_functorch_transforms_active)
    assert torch.autograd.profiler._is_profiler_enabled is False
    assert hasattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy")
    assert paths.TELLING
    assert autograd.TELLING


@pytest.mark.slow
def test_without_them_modules_and_graphs_work(monkeypatch):
    monkeypatch.setattr(compiler, "transforming", lambda: True)
    module = build(rnnkit, "GRU")
    module.path = "always fast"
    x = arguments(module)[0]
    assert_same(flat(compiled(module)(x)), flat(module(x)))
    for owner in (paths, autograd):
        with monkeypatch.context() as context:
            context.setattr(owner, "TELLING", False)
            assert rnnkit.explain(module, x).path == "readable"
            assert_same(flat(module(x)), flat(compiled(module)(x)))
    assert rnnkit.explain(module, x).path == "fast"
    monkeypatch.setattr(torch.autograd, "profiler", SimpleNamespace())
    assert stack.named(len, EQUATIONS["GRU"], 0) is len


def test_without_dynamos_strategies_what_is_untraced_is_disabled(monkeypatch):
    dynamo = torch._C._dynamo
    monkeypatch.setattr(dynamo, "eval_frame", SimpleNamespace())
    disabled = untraced.untraced(lambda x: x + torch.compiler.is_compiling())
    monkeypatch.undo()
    assert torch.compile(lambda x: disabled(x) * 2, backend="eager")(torch.ones(1)) == 2


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

    assert_same(flat(compiled(loop)(x)), flat(loop(x)))


def test_modules_are_freed():
    module = build(rnnkit, "GRU")
    compiled(module)(*arguments(module))
    gone = weakref.ref(module)
    del module
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
