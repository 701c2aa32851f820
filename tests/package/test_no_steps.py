"""Sequences of length 0, the one deliberate difference from torch.nn: nothing happens to the state."""

import pytest
import torch
from helpers import H_IN, KINDS, N, arguments, as_list, assert_equal_tensors, build
from torch import nn
from torch.func import vmap
from torch.nn.utils.rnn import PackedSequence

import rnnkit

kinds = pytest.mark.parametrize("kind", KINDS)
DEEP = {"num_layers": 2, "bidirectional": True}


@pytest.fixture(autouse=True, params=["readable", "always fast"])
def path(request, monkeypatch):
    monkeypatch.setattr(rnnkit.RNNBase, "path", request.param)


@kinds
@pytest.mark.parametrize("form", ["unbatched", "padded"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_output_is_empty_and_the_state_is_handed_through(kind, form, batch_first):
    module = build(rnnkit, kind, batch_first=batch_first, **DEEP)
    x, hx = arguments(module, form, steps=0)
    output, h_n = module(x, hx)
    assert output.shape == (*x.shape[:-1], 2 * (module.proj_size or module.hidden_size))
    assert output.dtype == x.dtype
    for given, found in zip(as_list(hx), as_list(h_n), strict=True):
        assert torch.equal(given, found)
        assert found.data_ptr() != given.data_ptr()
        cotangent = torch.randn_like(found)
        (grad,) = torch.autograd.grad(found, given, cotangent)
        assert torch.equal(grad, cotangent)


@kinds
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("form", ["unbatched", "padded", "packed"])
def test_the_state_that_is_handed_through_is_a_copy(kind, form, options, graph):
    """Of one layer and direction, too: what is written on one of them doesn't show on the other."""
    module = build(rnnkit, kind, **options)
    x, hx = arguments(module, "unbatched" if form == "unbatched" else "padded", steps=0)
    if form == "packed":
        x = PackedSequence(x.detach().flatten(0, 1), torch.zeros(0, dtype=torch.int64))
    with torch.set_grad_enabled(graph):
        _, h_n = module(x, hx)
    for given, found in zip(as_list(hx), as_list(h_n), strict=True):
        assert_equal_tensors({"state": found}, {"state": given}, 0.0, f"{kind}, {form}, {options}")
        assert found.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()


@kinds
def test_without_a_state_it_is_zeros(kind):
    module = build(rnnkit, kind)
    _, h_n = module(torch.zeros(0, N, H_IN, dtype=torch.float64))
    assert all(not state.any() and state.shape[:2] == (1, N) for state in as_list(h_n))


@kinds
def test_the_empty_output_has_empty_gradients(kind):
    module = build(rnnkit, kind, **DEEP)
    x, hx = arguments(module, steps=0)
    output, h_n = module(x, hx)
    loss = output.sum() + sum(state.sum() for state in as_list(h_n))
    grad, *states = torch.autograd.grad(loss, [x, *as_list(hx)])
    assert grad.shape == x.shape
    assert all(torch.equal(state, torch.ones_like(state)) for state in states)


@kinds
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_parameter_has_a_gradient_of_zeros(kind, bias, form):
    """All or none: whoever averages gradients over processes waits for each."""
    module = build(rnnkit, kind, bias=bias, **DEEP)
    x = torch.zeros(4 if form == "lengths" else 0, N, H_IN, dtype=torch.float64)
    if form == "packed":
        x = PackedSequence(x.flatten(0, 1), torch.zeros(0, dtype=torch.int64))
    output, h_n = module(x, **({"lengths": [0] * N} if form == "lengths" else {}))
    output = output.data if form == "packed" else output
    loss = output.sum() + sum(state.sum() for state in as_list(h_n))
    grads = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    missing = [name for (name, _), grad in zip(module.named_parameters(), grads, strict=True) if grad is None]
    assert missing == []
    assert not any(grad.any() for grad in grads)


@kinds
def test_no_rows_and_no_steps(kind):
    module = build(rnnkit, kind)
    output, h_n = module(torch.zeros(0, 0, H_IN, dtype=torch.float64))
    assert output.shape[:2] == (0, 0)
    assert all(state.size(1) == 0 for state in as_list(h_n))


@kinds
def test_a_sequence_cut_anywhere_is_the_whole(kind):
    module = build(rnnkit, kind, num_layers=2)
    x, hx = arguments(module)
    whole, final = module(x, hx)
    for cut in (0, len(x)):
        first, state = module(x[:cut], hx)
        second, state = module(x[cut:], state)
        assert torch.equal(torch.cat([first, second]), whole)
        assert all(map(torch.equal, as_list(state), as_list(final)))


def with_empty_rows(lengths, order):
    """A PackedSequence of sequences of which some have no step, and they themselves."""
    sequences = [torch.randn(length, H_IN, dtype=torch.float64) for length in lengths]
    steps = [[sequences[k][t] for k in order if t < lengths[k]] for t in range(max(lengths))]
    rows = torch.stack([row for step in steps for row in step]) if any(lengths) else torch.zeros(0, H_IN).double()
    order = torch.tensor(order)
    return PackedSequence(rows, torch.tensor([len(step) for step in steps]).long(), order, order.argsort()), sequences


@kinds
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize(("lengths", "order"), [([3, 0, 5, 0, 2], [2, 0, 4, 1, 3]), ([0, 0], [1, 0]), ([0, 4], [1, 0])])
def test_packed_rows_of_length_0_keep_their_state(kind, hx, lengths, order):
    module = build(rnnkit, kind, **DEEP)
    packed, sequences = with_empty_rows(lengths, order)
    _, states = arguments(module, hx=True)
    states = tuple(state[:, :1].repeat(1, len(lengths), 1) for state in as_list(states))
    given = (states if len(states) > 1 else states[0]) if hx else None
    output, h_n = module(packed, given)
    assert output.data.shape[0] == sum(lengths)
    for k, x in enumerate(sequences):
        alone = [state[:, k] for state in states] if hx else [torch.zeros_like(state[:, k]) for state in states]
        _, expected = module(x, tuple(alone) if len(alone) > 1 else alone[0])
        for found, wanted in zip(as_list(h_n), as_list(expected), strict=True):
            torch.testing.assert_close(found[:, k], wanted, rtol=0, atol=1e-14)


@kinds
def test_trailing_zeros_in_batch_sizes_change_nothing(kind):
    module = build(rnnkit, kind, **DEEP)
    rows = torch.randn(5, H_IN, dtype=torch.float64)
    expected = module(PackedSequence(rows, torch.tensor([3, 2])))
    found = module(PackedSequence(rows, torch.tensor([3, 2, 0, 0])))
    assert torch.equal(found[0].data, expected[0].data)
    assert all(map(torch.equal, as_list(found[1]), as_list(expected[1])))


@kinds
def test_vmap_over_no_steps(kind):
    module = build(rnnkit, kind)
    output, _ = vmap(module)(torch.zeros(4, 0, N, H_IN, dtype=torch.float64))
    assert output.shape[:3] == (4, 0, N)


@kinds
def test_torch_nn_refuses_them(kind):
    """Should it stop doing so, its answer is the one to give."""
    module = build(nn, kind)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        module(torch.zeros(0, N, H_IN, dtype=torch.float64))
