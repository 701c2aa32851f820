"""Each gate equation against the witness, its record, and equations that are not torch's."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import FORMS, H_IN, LENGTHS, H, N, arguments, assert_close, named, observe, pack, pair, product, randn
from torch import nn
from witness import GATES, sigmoid

import rnnkit
from rnnkit import EQUATIONS, Equation
from rnnkit.equations import gru, lstm

ROUNDING = 1e-14
OPTIONS = product(num_layers=[2], bidirectional=[False, True], bias=[True, False], batch_first=[False, True])


def preactivations(mode):
    """igates, hgates (N, G*H) and a state, each number different."""
    equation = EQUATIONS[mode]
    columns = len(equation.gates) * H
    state = tuple(randn(N, H, seed=3 + k) for k in range(len(equation.state)))
    return randn(N, columns, seed=1), randn(N, columns, seed=2), state


def expected_gates(mode, igates, hgates):
    """The witness's gates, of pre-activations."""
    count = len(GATES[mode])
    a, b = (np.split(t.numpy(), count, axis=-1) for t in (igates, hgates))
    if mode == "RNN_TANH":
        return [np.tanh(a[0] + b[0])]
    if mode == "RNN_RELU":
        return [np.maximum(a[0] + b[0], 0)]
    if mode == "LSTM":
        i, f, g, o = (x + y for x, y in zip(a, b, strict=True))
        return [sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)]
    r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
    return [r, z, np.tanh(a[2] + r * b[2])]


def expected_state(mode, gates, state):
    if mode == "LSTM":
        i, f, g, o = gates
        c = f * state[1] + i * g
        return [o * np.tanh(c), c]
    if mode == "GRU":
        _, z, n = gates
        return [(1 - z) * n + z * state[0]]
    return gates


def test_the_table_has_torchs_modes():
    modules = [nn.RNN(1, 1), nn.RNN(1, 1, nonlinearity="relu"), nn.LSTM(1, 1), nn.GRU(1, 1)]
    assert list(EQUATIONS) == [module.mode for module in modules]
    for module in modules:
        equation = EQUATIONS[module.mode]
        assert len(equation.gates) == len(module.weight_ih_l0)
        assert equation.gates == tuple(GATES[module.mode])
        assert equation.state == (("h", "c") if module.mode == "LSTM" else ("h",))


@pytest.mark.parametrize("mode", EQUATIONS)
def test_a_record_is_frozen(mode):
    with pytest.raises(dataclasses.FrozenInstanceError):
        EQUATIONS[mode].gates = ()


@pytest.mark.parametrize("mode", EQUATIONS)
def test_a_step_returns_the_state_and_the_gates_in_the_records_order(mode):
    igates, hgates, state = preactivations(mode)
    after, gates = EQUATIONS[mode].step(igates, hgates, state)
    wanted = expected_gates(mode, igates, hgates)
    for seen, expected in zip(
        (*gates, *after), (*wanted, *expected_state(mode, wanted, [s.numpy() for s in state])), strict=True
    ):
        np.testing.assert_allclose(seen.numpy(), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("mode", EQUATIONS)
def test_a_step_writes_nothing_of_its_arguments(mode):
    igates, hgates, state = preactivations(mode)
    copies = [t.clone() for t in (igates, hgates, *state)]
    EQUATIONS[mode].step(igates, hgates, state)
    assert all(torch.equal(t, copy) for t, copy in zip((igates, hgates, *state), copies, strict=True))


@pytest.mark.parametrize("mode", EQUATIONS)
def test_a_step_is_differentiable_twice(mode):
    igates, hgates, state = (
        t.requires_grad_() if isinstance(t, torch.Tensor) else tuple(s.requires_grad_() for s in t)
        for t in preactivations(mode)
    )

    def step(igates, hgates, *state):
        after, gates = EQUATIONS[mode].step(igates, hgates, state)
        return *after, *gates

    assert torch.autograd.gradcheck(step, (igates, hgates, *state))
    assert torch.autograd.gradgradcheck(step, (igates, hgates, *state))


# An equation of one's own: torch's in disguise, the rows of its weights in another order, must be torch's in all else.


def disguised_lstm(igates, hgates, state):
    order = [2, 3, 0, 1]  # the rows stand g o i f
    (h_c), gates = lstm(*(torch.cat([t.chunk(4, -1)[k] for k in order], -1) for t in (igates, hgates)), state)
    return h_c, tuple(gates[k] for k in order)


def disguised_gru(igates, hgates, state):
    order = [1, 2, 0]  # the rows stand n r z
    after, gates = gru(*(torch.cat([t.chunk(3, -1)[k] for k in order], -1) for t in (igates, hgates)), state)
    return after, (gates[2], gates[0], gates[1])


DISGUISES = {
    "LSTM": (Equation(disguised_lstm, ("g", "o", "i", "f"), ("h", "c")), "ifgo"),
    "GRU": (Equation(disguised_gru, ("n", "r", "z"), ("h",)), "rzn"),
}


def disguise(kind, dropout=0.0, **options):
    """nn's module, and the same under the disguised equation: its rows in the disguise's order."""
    equation, order = DISGUISES[kind]
    native, _ = pair(kind, dropout=dropout, **options)
    own = rnnkit.RNNBase(f"OWN_{kind}", H_IN, H, dropout=dropout, dtype=torch.float64, **options)
    with torch.no_grad():
        for (name, ours), theirs in zip(own.named_parameters(), native.parameters(), strict=True):
            blocks = dict(zip(order, theirs.chunk(len(order)), strict=True))
            ours.copy_(torch.cat([blocks[gate] for gate in equation.gates]))
            assert name in native.state_dict()
    return native, own


def unshuffled(kind, seen):
    """The gradients of weights, back in torch's order."""
    equation, order = DISGUISES[kind]
    back = {}
    for name, value in seen.items():
        if name.startswith(("grad of weight", "grad of bias")):
            blocks = dict(zip(equation.gates, value.chunk(len(order)), strict=True))
            value = torch.cat([blocks[gate] for gate in order])
        back[name] = value
    return back


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", DISGUISES)
def test_an_own_equation_gets_layers_directions_and_packing(monkeypatch, kind, options, form, hx):
    monkeypatch.setitem(EQUATIONS, f"OWN_{kind}", DISGUISES[kind][0])
    native, own = disguise(kind, **options)
    assert_close(observe(native, form, hx), unshuffled(kind, observe(own, form, hx)), atol=1e-13)


@pytest.mark.parametrize("kind", DISGUISES)
def test_an_own_equation_gets_dropout(monkeypatch, kind):
    monkeypatch.setitem(EQUATIONS, f"OWN_{kind}", DISGUISES[kind][0])
    native, own = disguise(kind, num_layers=3, dropout=0.5)
    assert_close(observe(native), unshuffled(kind, observe(own)), atol=1e-13)
    kept = observe(own.eval())
    assert not torch.equal(kept["output"], observe(own.train())["output"])


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("letters", [("h", "t"), ("h", "t", "u")], ids="".join)
@pytest.mark.parametrize("form", FORMS)
def test_an_own_equation_may_carry_what_it_likes(monkeypatch, letters, form, hx):
    """A recurrence that counts its own steps counts the length of each sequence."""

    def counting(igates, hgates, state):
        h = torch.tanh(igates + hgates)
        return (h, *(s + k for k, s in enumerate(state[1:], start=1))), (h,)

    monkeypatch.setitem(EQUATIONS, "COUNT", Equation(counting, ("a",), letters))
    own = rnnkit.RNNBase("COUNT", H_IN, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    input, _ = arguments(own, form)
    batch = () if form == "unbatched" else (N,)
    start = tuple(torch.full((4, *batch, H), 0.25, dtype=torch.float64) for _ in letters) if hx else None
    _, final = own(pack(own, input, form), start)
    lengths = {"unbatched": [5], "padded": [5] * N, "packed": sorted(LENGTHS, reverse=True), "unsorted": LENGTHS}[form]
    assert len(final) == len(letters)
    for k, counted in enumerate(final[1:], start=1):
        expected = torch.tensor(lengths, dtype=torch.float64)[:, None] * k + (0.25 if hx else 0)
        assert torch.equal(counted, expected.expand(4, len(lengths), H).reshape(counted.shape))
