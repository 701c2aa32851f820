"""What a module of torch must bear: copies, files, processes, threads, hooks, subclasses, networks."""

import copy
import io
import multiprocessing
import pickle
import threading

import pytest
import torch
from helpers import (
    CELLS,
    H_IN,
    KINDS,
    H,
    L,
    N,
    arguments,
    as_list,
    assert_equal_tensors,
    assert_same,
    build,
    numbered,
    observe,
    outcome,
    pack,
    pair,
    randn,
)
from torch import nn

import rnnkit

pytestmark = pytest.mark.usefixtures("path")

DEEP = {"num_layers": 2, "bidirectional": True}
ALL = [(kind, False) for kind in KINDS] + [(kind, True) for kind in CELLS]
every = pytest.mark.parametrize(("kind", "cell"), ALL, ids=[kind + "Cell" * cell for kind, cell in ALL])


def both(kind, cell):
    return pair(kind, cell=cell, **({} if cell else DEEP))


# Copies and files ---------------------------------------------------------------------------------------------------


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_safe_file(module):
    """weights_only=True takes a whole module where its classes are declared safe."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.serialization.safe_globals([type(module), set]):
        return torch.load(file, weights_only=True)


@every
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_a_file, through_a_safe_file])
def test_a_copy_is_equal_and_apart(kind, cell, way):
    _, kit = both(kind, cell)
    kit.eval().register_buffer("seen", torch.tensor(3))
    kit.note = "kept"
    twin = way(kit)
    assert type(twin) is type(kit)
    assert (twin.note, twin.training, repr(twin)) == ("kept", False, repr(kit))
    assert_same(kit.state_dict(), twin.state_dict())
    expected = observe(kit)
    assert_same(expected, observe(twin))
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(2)
    assert_same(expected, observe(kit))
    assert not torch.equal(next(iter(observe(twin).values())), next(iter(expected.values())))


@every
def test_a_shallow_copy_shares_its_weights(kind, cell):
    _, kit = both(kind, cell)
    twin = copy.copy(kit)
    assert [*map(id, twin.parameters())] == [*map(id, kit.parameters())]
    assert_same(observe(kit), observe(twin))


@every
@pytest.mark.parametrize("weights_only", [True, False])
def test_a_state_dict_travels_by_file_both_ways(kind, cell, weights_only, path):
    native, kit = both(kind, cell)
    for source, target in ((native, kit), (kit, native)):
        with torch.no_grad():
            for weight in source.parameters():
                weight.add_(1)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=weights_only), strict=True)
        assert_same(observe(native), observe(kit), path=path)


@every
def test_a_state_dict_may_be_assigned(kind, cell, path):
    native, kit = both(kind, cell)
    weights = {name: weight * 2 for name, weight in native.state_dict().items()}
    for module in (native, kit):
        module.load_state_dict(weights, assign=True)
    assert [w.data_ptr() for w in kit.parameters()] == [w.data_ptr() for w in weights.values()]
    assert_same(observe(native), observe(kit), path=path)


@every
def test_a_state_dict_that_does_not_fit_is_refused_in_torchs_words(kind, cell):
    native, kit = both(kind, cell)
    weights = native.state_dict()
    first = next(iter(weights))
    for wrong in (
        {name: weight for name, weight in weights.items() if name != first},
        weights | {"unknown": torch.zeros(1)},
        weights | {first: torch.zeros(1, 1)},
        {},
    ):
        expected = outcome(native.load_state_dict, wrong)
        assert outcome(kit.load_state_dict, wrong) == expected != ("", "")


@every
def test_to_empty_and_reset(kind, cell):
    """The usual way of a large model: made on meta, given memory, drawn."""
    drawn = []
    for library in (nn, rnnkit):
        module = build(library, kind, cell=cell, device="meta", **({} if cell else DEEP)).to_empty(device="cpu")
        torch.manual_seed(2)
        module.reset_parameters()
        drawn.append(module.state_dict())
        observe(module)
    assert_same(*drawn)


@every
def test_casts_and_moves_are_torchs(kind, cell, path):
    native, kit = both(kind, cell)
    for cast in (
        lambda m: m.float(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(device="cpu", dtype=torch.float64),
        lambda m: m.requires_grad_(False),
        lambda m: m.requires_grad_(True),
        lambda m: m.apply(lambda inner: inner.eval()),
        lambda m: m.train(),
        lambda m: m.to(memory_format=torch.contiguous_format),
    ):
        assert cast(kit) is kit
        cast(native)
        assert [(w.dtype, w.requires_grad) for w in kit.parameters()] == [
            (w.dtype, w.requires_grad) for w in native.parameters()
        ]
        assert kit.training is native.training
        assert_same(native.state_dict(), kit.state_dict(), path=path)
    assert_same(observe(native), observe(kit), path=path)


@every
def test_zero_grad_clears(kind, cell):
    _, kit = both(kind, cell)
    as_list(kit(*arguments(kit)))[0].sum().backward()
    assert any(weight.grad is not None for weight in kit.parameters())
    kit.zero_grad()
    assert [name for name, weight in kit.named_parameters() if weight.grad is not None] == []


@every
def test_frozen_weights_get_no_gradient(kind, cell, path):
    results = []
    for module in both(kind, cell):
        for k, weight in enumerate(module.parameters()):
            weight.requires_grad_(k % 2 == 0)
        input, hx = arguments(module)
        sum(s.pow(2).sum() for s in as_list(module(input, hx))[:1]).backward()
        results.append({name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None})
        assert 0 < len(results[-1]) <= (1 + len(list(module.parameters()))) // 2
    assert_same(*results, path=path)


# Processes and threads ----------------------------------------------------------------------------------------------


def work(module, input, hx, results):
    """In another process: one thread, for a fork has none of its parent's; answers are numbers, not shared memory."""
    torch.set_num_threads(1)
    with torch.backends.mkldnn.flags(enabled=False):
        output = as_list(module(input, hx))[0]
        output.sum().backward()
    grads = [weight.grad.tolist() for weight in module.parameters()]
    results.put((output.tolist(), grads, [weight.is_shared() for weight in module.parameters()]))


def work_all(modules, given, results):
    for module, (input, *state) in zip(modules, given, strict=True):
        work(module, input, tuple(state) if len(state) > 1 else state[0], results)


def elsewhere(method, modules):
    """What `modules` answer in a process made by `method`."""
    context = multiprocessing.get_context(method)
    results = context.Queue()
    given = [tuple(t.detach() for t in (arguments(m)[0], *as_list(arguments(m)[1]))) for m in modules]
    process = context.Process(target=work_all, args=(modules, given, results))
    process.start()
    answers = [results.get(timeout=60) for _ in modules]
    process.join(timeout=60)
    assert process.exitcode == 0
    return answers


def here(module):
    output = as_list(module(*arguments(module)))[0]
    return output.tolist(), [grad.tolist() for grad in torch.autograd.grad(output.sum(), list(module.parameters()))]


@every
def test_fork(kind, cell):
    _, kit = both(kind, cell)
    ((output, grads, _),) = elsewhere("fork", [kit])
    assert (output, grads) == here(kit)


@pytest.mark.slow
def test_spawn(path):
    """One new interpreter for all the kinds: the modules go there by pickle, their weights in shared memory."""
    modules = nn.ModuleList([both(kind, cell)[1] for kind, cell in ALL]).share_memory()
    for module in modules:
        module.path = path  # the class's is not known there
    for module, (output, grads, shared) in zip(modules, elsewhere("spawn", modules), strict=True):
        for seen, expected in zip([output, *grads], [here(module)[0], *here(module)[1]], strict=True):
            torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))
        assert set(shared) == {True}


@every
def test_shared_memory(kind, cell):
    _, kit = both(kind, cell)
    before = observe(kit)
    assert kit.share_memory() is kit
    assert [name for name, weight in kit.named_parameters() if not weight.is_shared()] == []
    assert_same(before, observe(kit))


@every
def test_threads_may_call_one_module_at_once(kind, cell):
    _, kit = both(kind, cell)
    seeds, seen = range(8), {}
    expected = {seed: observe(kit, seed=seed) for seed in seeds}
    barrier = threading.Barrier(len(seeds))

    def call(seed):
        barrier.wait()
        for _ in range(5):
            seen[seed] = observe(kit, seed=seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in seeds:
        assert_same(expected[seed], seen[seed])


# Hooks --------------------------------------------------------------------------------------------------------------


@every
def test_hooks_of_every_kind_are_called_as_torchs(kind, cell):
    """The same calls, in the same order, with the same kinds of arguments."""
    traces = []
    for module in both(kind, cell):
        trace = []

        def note(name, trace=trace):
            return lambda called, *rest: trace.append((name, type(called).__name__, [shape(t) for t in rest]))

        module.register_forward_pre_hook(note("pre"))
        module.register_forward_pre_hook(note("pre with keywords"), with_kwargs=True)
        module.register_forward_hook(note("post"))
        module.register_forward_hook(note("post with keywords"), with_kwargs=True)
        module.register_forward_hook(note("always"), always_call=True)
        module.register_full_backward_pre_hook(note("backward pre"))
        module.register_full_backward_hook(note("backward"))
        module.register_state_dict_pre_hook(note("state_dict pre"))
        module.register_state_dict_post_hook(note("state_dict post"))
        module.register_load_state_dict_pre_hook(note("load pre"))
        module.register_load_state_dict_post_hook(note("load post"))
        input, hx = arguments(module)
        result = module(input, hx=hx)
        as_list(result)[0].sum().backward()
        module.load_state_dict(module.state_dict())
        assert outcome(module, torch.zeros(1, 1, 1, 1, 1))[0] == "ValueError"
        traces.append(trace)
    assert traces[1] == traces[0]
    assert {name for name, *_ in traces[0]} >= {"pre with keywords", "always", "backward pre", "backward", "load post"}


def shape(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {name: shape(v) for name, v in value.items()}
    return [shape(v) for v in value] if isinstance(value, (tuple, list)) else type(value).__name__


@every
def test_a_hook_may_change_what_goes_in_and_what_comes_out(kind, cell, path):
    results = []
    for module in both(kind, cell):
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
        module.register_forward_hook(lambda module, args, output: as_list(output)[0] + 1)
        module.register_full_backward_hook(
            lambda module, before, after: tuple(g if g is None else 3 * g for g in before)
        )
        input, hx = arguments(module)
        output = module(input, hx)
        (grad,) = torch.autograd.grad(output.sum(), input)
        results.append({"output": output, "grad": grad})
    assert_same(*results, path=path)


# Networks and subclasses --------------------------------------------------------------------------------------------


class Last(nn.Module):
    def forward(self, result):
        return result[0][-1]


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_sequential(kind, path):
    results = []
    for module in pair(kind, **DEEP):
        torch.manual_seed(0)
        width = 2 * (module.proj_size or H)
        model = nn.Sequential(nn.Linear(2, H_IN), module, Last(), nn.Linear(width, 1)).double()
        loss = model(randn(L, N, 2, seed=3)).pow(2).sum()
        loss.backward()
        results.append({name: weight.grad for name, weight in model.named_parameters()})
        assert [name for name, grad in results[-1].items() if grad is None] == []
    assert_same(*results, path=path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_may_extend_forward(kind, path):
    results = []
    for library in (nn, rnnkit):
        base = type(build(library, kind))

        class Residual(base):
            """Adds a gain, a weight of its own; calls the layer as it is."""

            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.gain = nn.Parameter(torch.full((1,), 2.0, dtype=torch.float64))

            def forward(self, input, hx=None):
                output, state = super().forward(input, hx)
                return output * self.gain, state

        torch.manual_seed(0)
        module = Residual(H_IN, H, **KINDS[kind][1], **DEEP, dtype=torch.float64)
        results.append(observe(module))
        assert "gain" in module.state_dict()
        assert [len(weights) for weights in module.all_weights] == [4 + (kind == "LSTM-proj")] * 4
        copy.deepcopy(module)
    assert_same(*results, path=path)


def test_a_subclass_may_check_more():
    """The checks are methods, as torch's: what one overrides is what is asked."""

    class Strict(rnnkit.GRU):
        def check_input(self, input, batch_sizes):
            super().check_input(input, batch_sizes)
            if not input.isfinite().all():
                raise ValueError("not finite")

    module = Strict(H_IN, H)
    module(torch.zeros(L, N, H_IN))
    with pytest.raises(ValueError, match="not finite"):
        module(torch.full((L, N, H_IN), float("nan")))


def test_a_subclass_of_a_cell():
    results = []
    for library in (nn, rnnkit):

        class Scaled(library.GRUCell):
            def forward(self, input, hx=None):
                return super().forward(2 * input, hx)

        torch.manual_seed(0)
        results.append(observe(Scaled(H_IN, H, dtype=torch.float64)))
    assert_same(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_no_grad_inference_mode_and_detached_weights(kind, path):
    for context in (torch.no_grad, torch.inference_mode):
        results = []
        for module in pair(kind, **DEEP):
            input, hx = arguments(module)
            with context():
                output, _ = module(pack(module, input, "padded"), hx)
            assert not output.requires_grad
            assert output.is_inference() is (context is torch.inference_mode)
            results.append({"output": output})
        assert_same(*results, path=path)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice_needs_retain_graph(kind):
    for module in pair(kind):
        output, _ = module(*arguments(module))
        output.sum().backward(retain_graph=True)
        twice = [2 * weight.grad for weight in module.parameters()]
        output.sum().backward()
        seen = numbered("grad", (weight.grad for weight in module.parameters()))
        assert_equal_tensors(seen, numbered("grad", twice), case=type(module).__module__)
        with pytest.raises(RuntimeError, match="second time"):
            output.sum().backward()


@every
def test_gradients_of_gradients(kind, cell):
    if kind == "relu":
        return
    _, kit = pair(kind, cell=cell)
    input, hx = arguments(kit, **({} if cell else {"steps": 2}))
    states = as_list(hx)

    def call(input, *states):
        result = kit(input, tuple(states) if len(states) > 1 else states[0])
        return tuple(t for part in as_list(result) for t in as_list(part))

    assert torch.autograd.gradcheck(call, (input, *states))
    assert torch.autograd.gradgradcheck(call, (input, *states))
