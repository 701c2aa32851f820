"""`rnnkit.graphed`, with a stand-in for capture: on a CPU a graph's replay is a call. Of CUDA graphs: test_devices."""

import pytest
import torch
from cases import assert_near
from helpers import KINDS, N, arguments, build, pack, randn

import rnnkit
from rnnkit import graphs

LENGTHS = [1, 3, 8, 13, 21]


@pytest.fixture(autouse=True)
def captured(monkeypatch):
    """Count captures."""
    functions = []

    def capture(function):
        function()
        functions.append(function)
        return function

    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "capture", capture)
    return functions


def shown(call, module, x, hx, graded=True):
    """Results, and gradients of the input, the states and the parameters."""
    states = hx if isinstance(hx, tuple) else (hx,)
    output, last = call(x, hx)
    results = [output, *(last if isinstance(last, tuple) else (last,))]
    if not graded:
        return {f"result {k}": r for k, r in enumerate(results)}
    loss = sum((r * torch.arange(r.numel(), dtype=r.dtype).view_as(r).sin()).sum() for r in results)
    grads = torch.autograd.grad(loss, [x, *states, *module.parameters()])
    return {f"result {k}": r for k, r in enumerate(results)} | {f"grad {k}": g for k, g in enumerate(grads)}


def made(kind, **options):
    module = build(rnnkit, kind, dtype=torch.float32, **options)
    module.path = "always fast"
    sample, _ = arguments(module)
    return module, rnnkit.graphed(module, sample, block=8)


@pytest.mark.parametrize("graded", [True, False], ids=["graph", "no graph"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"batch_first": True}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_blocks_are_the_layer_at_every_length(kind, options, graded, captured):
    module, call = made(kind, **options)
    count = len(captured)
    for steps in LENGTHS:
        x, hx = arguments(module, steps=steps, seed=steps)
        with torch.set_grad_enabled(graded):
            expected = shown(module, module, x, hx, graded)
            assert_near(shown(call, module, x, hx, graded), expected, 5e-6, (kind, options, steps))
    assert len(captured) == count


def test_two_calls_before_backward_have_a_tape_each():
    module, call = made("LSTM")
    x, _ = arguments(module, steps=11)
    z, _ = arguments(module, steps=11, seed=9)
    both = call(x)[0].square().sum() + call(z)[0].square().sum()
    alone = module(x)[0].square().sum() + module(z)[0].square().sum()
    found, expected = (torch.autograd.grad(loss, list(module.parameters())) for loss in (both, alone))
    assert_near(dict(enumerate(found)), dict(enumerate(expected)), 5e-6, "LSTM")


def test_a_step_of_an_optimizer_counts():
    module, call = made("GRU")
    x, _ = arguments(module, steps=9)
    before = call(x)[0]
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
    after = call(x)[0]
    assert not after.allclose(before)
    assert_near({"output": after}, {"output": module(x)[0]}, 5e-6, "GRU")


@pytest.mark.parametrize("form", ["packed", "unbatched"])
def test_what_the_graphs_dont_serve_runs_as_the_layer_does(form, captured):
    module, call = made("LSTM")
    count = len(captured)
    input, hx = arguments(module, form)
    given = pack(module, input, form)
    assert call(given, hx)[1][0].equal(module(given, hx)[1][0])
    wider = randn(5, N + 1, 3, seed=1, dtype=torch.float32)
    assert call(wider)[0].equal(module(wider)[0])
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach() * 2)
    x, _ = arguments(module)
    assert call(x)[0].equal(module(x)[0])
    assert len(captured) == count


def test_the_caller_may_write_on_the_output():
    module, call = made("LSTM")
    x, _ = arguments(module, steps=9)
    losses = [torch.relu_(f(x)[0]).sum() for f in (module, call)]
    expected, found = (torch.autograd.grad(loss, x)[0] for loss in losses)
    assert_near({"grad": found}, {"grad": expected}, 5e-6, "LSTM")


readable = rnnkit.GRU(3, 4)
readable.path = "readable"


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"rnn": torch.nn.GRU(3, 4)}, TypeError, "a layer of rnnkit, got: GRU"),
        ({"sample": None}, ValueError, "sample should be a batch"),
        ({"sample": torch.zeros(5, 3)}, ValueError, "sample should be a batch"),
        ({"sample": torch.zeros(5, 2, 3, device="meta")}, ValueError, "on a CUDA device"),
        ({"rnn": readable}, ValueError, "a layer with the path 'readable'"),
        ({"block": 0}, ValueError, "power of two, got: 0"),
        ({"block": 12}, ValueError, "power of two, got: 12"),
        ({"block": True}, ValueError, "power of two, got: True"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name_before_anything_is_captured(changed, error, words, captured):
    given = {"rnn": rnnkit.GRU(3, 4), "sample": torch.zeros(5, 2, 3), "block": 8} | changed
    with pytest.raises(error, match=words):
        rnnkit.graphed(**given)
    assert captured == []
