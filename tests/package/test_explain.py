"""`explain` says which path a call takes and why, for every rule there is, and runs nothing."""

import math
from functools import partial

import pytest
import torch
from helpers import CELLS, FORMS, H_IN, KINDS, H, L, N, arguments, build, outcome, pack, pair
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkit
from rnnkit import explain, paths
from rnnkit.fast import KERNELS

DEEP = {"num_layers": 2, "bidirectional": True}


def mgu(igates, hgates, state):
    (h,) = state
    f, n = torch.sigmoid(igates + hgates).chunk(2, -1)
    return (h + f * (n - h),), (f, n)


def layer(mode="GRU", **options):
    return rnnkit.RNNBase(mode, H_IN, H, **options)


def sequence(steps=50, **options):
    return torch.zeros(steps, N, H_IN, **options)


def set_to(path, steps):
    module = layer()
    module.path = path
    return explain(module, sequence(steps))


def under(context, **options):
    with context:
        return explain(layer(), sequence(**options))


def within(transform):
    """What `explain` says inside of a function that is transformed."""
    module, said = layer().requires_grad_(False), []

    def function(input):
        said.append(explain(module, input))
        return module(input)[0]

    transform(function)(sequence())
    return said[0]


def traced(function):
    return lambda input: torch.jit.trace(function, input, check_trace=False)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return operator(*args, **(kwargs or {}))


def jvp(function):
    def transformed(input):
        with forward_ad.dual_level():
            return function(forward_ad.make_dual(input, torch.ones_like(input)))

    return transformed


def compiled(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return explain(layer(), sequence())


def own(monkeypatch):
    monkeypatch.setitem(rnnkit.EQUATIONS, "MGU", rnnkit.Equation(mgu, gates=("f", "n"), state=("h",)))
    return explain(layer("MGU"), sequence())


def with_parameters():
    """Of which no kernel knows."""

    def step(igates, hgates, state, gain):
        return (torch.tanh(igates + hgates) * gain,), (igates,)

    own = rnnkit.Equation(step, ("h",), ("h",), (rnnkit.Own("gain", "(H)"),))
    return explain(rnnkit.RNNBase(own, 3, 4), sequence())


def not_telling(monkeypatch):
    monkeypatch.setattr(paths, "TELLING", False)
    return explain(layer(), sequence())


class Own(torch.Tensor):
    pass


def of_a_subclass():
    return explain(layer(), sequence().as_subclass(Own))


def of_one_dimension():
    """Which an LSTM's kernel refuses, in torch.nn too, and no check before it."""
    return explain(rnnkit.LSTM(50, 4), PackedSequence(torch.zeros(50), torch.ones(50, dtype=torch.int64)))


def elsewhere():
    return explain(layer(), sequence(), resets=torch.zeros(50, N, dtype=torch.bool, device="meta"))


def forgetful():
    module = layer()
    module.checkpoint_every = 5
    return explain(module, sequence(), lengths=torch.zeros(N, dtype=torch.int64, device="meta"))


def broadcast():
    module = layer()
    module.bias_ih_l0 = nn.Parameter(torch.zeros(1))
    return explain(module, sequence())


SAID = {
    "compiled: torch.compile or torch.export traces it": compiled,
    "readable: the attribute `path` is 'readable'": lambda _: set_to("readable", 50),
    "readable: the equation has no kernel": own,
    "readable: the equation has parameters of its own, draws random numbers, or is not recurrent": lambda _: (
        with_parameters()
    ),
    "readable: torch.bfloat16 has no kernels on cpu": lambda _: explain(layer().bfloat16(), sequence().bfloat16()),
    "readable: 2 steps don't pay": lambda _: explain(layer(), sequence(2)),
    "readable: 0 steps don't pay": lambda _: explain(layer(), sequence(0)),
    "readable: the input is empty": lambda _: explain(layer(), sequence()[:, :0]),
    "readable: the packed rows have one dimension, which torch refuses": lambda _: of_one_dimension(),
    "readable: only an LSTM's kernel projects": lambda _: explain(layer(proj_size=2), sequence()),
    "readable: this torch doesn't tell which transforms are active": not_telling,
    "readable: torch.jit.trace is active": lambda _: within(traced),
    "readable: a functorch transform is active": lambda _: within(partial(torch.func.vmap, in_dims=1)),
    "readable: forward-mode differentiation is active": lambda _: within(jvp),
    "readable: a dispatch mode is active": lambda _: under(Mode()),
    "readable: autocast is on": lambda _: under(torch.autocast("cpu", torch.bfloat16)),
    "readable: input, state and weights are not all plain tensors of one dtype and device": lambda _: of_a_subclass(),
    "readable: a weight or bias has another size than torch.nn gives it": lambda _: broadcast(),
    "readable: resets live on a device, for which nobody waits": lambda _: elsewhere(),
    "readable: lengths live on a device, with an equation without kernel, or states that are forgotten": lambda _: (
        forgetful()
    ),
    "fused: the attribute `path` is 'fused'": lambda _: set_to("fused", 1),
    "fast: 50 steps": lambda _: explain(layer(), sequence()),
    "fast: 2 steps": lambda _: set_to("always fast", 2),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("said", SAID)
def test_a_call_is_explained_in_these_words(said, monkeypatch):
    choice = SAID[said](monkeypatch)
    assert str(choice) == said
    path, reason = choice
    assert (path, reason) == tuple(said.split(": ", 1))


def test_every_rule_has_its_words_here():
    patterns = {
        f"{rule.path}: {rule.reason}".format(steps=50, dtype=torch.bfloat16, device="cpu") for rule in paths.RULES
    }
    assert {text.replace(" 2 steps", " 50 steps").replace(" 0 steps", " 50 steps") for text in SAID} == patterns


@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_is_fast_from_as_many_steps_on_as_its_kernel_says(kind, dtype, graph):
    module = build(rnnkit, kind, dtype=dtype)
    first = KERNELS[module.equation.step].pays_from[dtype][graph]
    with torch.set_grad_enabled(graph):
        if first < math.inf:
            assert str(explain(module, sequence(first, dtype=dtype))) == f"fast: {first} steps"
        few = 1000 if first == math.inf else first - 1
        assert str(explain(module, sequence(few, dtype=dtype))) == f"readable: {few} steps don't pay"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", [1, L, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wanted", ["fast", "always fast", "readable"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_that_is_explained_is_the_path_that_runs(monkeypatch, kind, form, wanted, dtype, steps, training):
    """And to explain it runs none, calls no hook, draws no random number."""
    if form in ("packed", "unsorted") and steps != L:
        return  # whose lengths are given
    module = build(rnnkit, kind, dtype=dtype, dropout=0.5, **DEEP)
    module.path = wanted
    input, hx = arguments(module, form, steps=steps)
    ran, generator = [], torch.get_rng_state()
    module.register_forward_pre_hook(lambda *_: ran.append("hook"))
    for name, run in paths.LAYERS.items():
        monkeypatch.setitem(paths.LAYERS, name, lambda each, name=name, run=run: ran.append(name) or run(each))
    with torch.set_grad_enabled(training):
        choice = explain(module, pack(module, input, form), hx)
        assert ran == []
        assert torch.equal(generator, torch.get_rng_state())
        module(pack(module, input, form), hx)
    assert ran == ["hook", choice.path, choice.path]


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_takes_one_step(kind, form):
    cell = build(rnnkit, kind, cell=True)
    assert str(explain(cell, *arguments(cell, form))) == "readable: a cell takes one step"


@pytest.mark.parametrize(
    "module",
    [nn.RNN(2, 3), nn.LSTM(2, 3), nn.GRU(2, 3), nn.RNNCell(2, 3), nn.LSTMCell(2, 3), nn.GRUCell(2, 3), nn.Linear(2, 3)],
    ids=lambda module: type(module).__name__,
)
def test_a_module_of_torch_nn_is_refused_by_name(module):
    with pytest.raises(TypeError, match=f"a layer or a cell of rnnkit, got: {type(module).__name__}$"):
        explain(module, torch.zeros(4, 2))


@pytest.mark.parametrize("thing", [None, 3, rnnkit.GRU, "GRU"], ids=["None", "3", "class", "string"])
def test_what_is_no_module_is_refused_by_name(thing):
    with pytest.raises(TypeError, match=f"a layer or a cell of rnnkit, got: {type(thing).__name__}$"):
        explain(thing, torch.zeros(4, 2))


WRONG = [
    (None, None),
    (torch.zeros(()), None),
    (torch.zeros(L, N, H_IN + 1), None),
    (torch.zeros(1, L, N, H_IN), None),
    (torch.zeros(L, N, H_IN).long(), None),
    (torch.zeros(L, N, H_IN), torch.zeros(1, N, H)),
    (torch.zeros(L, N, H_IN), torch.zeros(1, N + 1, H)),
    (torch.zeros(L, N, H_IN), (torch.zeros(1, N, H + 1), torch.zeros(1, N, H))),
    (torch.zeros(L, H_IN), torch.zeros(1, 1, H)),
    (torch.zeros(N, H_IN + 1), None),
    (torch.zeros(N, H_IN), torch.zeros(N, H + 1)),
    (torch.zeros(N, H_IN), (torch.zeros(N + 1, H), torch.zeros(N, H))),
    ("input", None),
]


@pytest.mark.parametrize("wrong", range(len(WRONG)))
@pytest.mark.parametrize(
    ("kind", "cell"), [(kind, cell) for cell in (False, True) for kind in (CELLS if cell else KINDS)]
)
def test_what_a_call_refuses_is_refused_alike(kind, cell, wrong):
    """In the same words; what it takes is explained."""
    _, module = pair(kind, cell=cell, dtype=torch.float32)
    assert outcome(explain, module, *WRONG[wrong]) == outcome(module, *WRONG[wrong])


@pytest.mark.parametrize("given", [{"lengths": [1, 2]}, {"resets": torch.zeros(1, 2, dtype=torch.bool)}], ids=str)
def test_a_cell_is_refused_what_its_call_refuses_by_keyword(given):
    cell, x = build(rnnkit, "GRU", cell=True), torch.zeros(2, 3, dtype=torch.float64)
    for ask in (cell, partial(explain, cell)):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(given))}'"):
            ask(x, **given)
