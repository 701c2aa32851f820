"""Equations of one's own: each is its papers' formulas over time, and has everything that a layer has.

`loop` takes the formulas as they stand in `FORMULAS`, a second time and apart from the examples: a row at a time, a
gate's rows of the weights at a time, with products in place of torch.nn.functional.
"""

import copy
import importlib
import itertools
import pickle
import sys
from pathlib import Path

import pytest
import torch
from helpers import as_list, assert_equal_tensors, named, product, randn, weighed
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import rnnkit
from parity.grid.ragged import Ragged, alone
from rnnkit import EQUATIONS, Equation, Own, checks, paths

sys.path.append(str(Path(__file__).parents[2] / "examples"))  # where pickle finds the steps, too
own, wrappers = (importlib.import_module(name) for name in ("cells_of_ones_own", "zoneout"))
zoneout, recurrent_dropout = wrappers.zoneout, wrappers.recurrent_dropout

H_IN, H, L, N, LENGTHS = 3, 4, 5, 3, [3, 5, 1]
PROJECTED = ["layer-normalised LSTM", "peephole LSTM", "sLSTM"]  # the others read h unit by unit
RESETS = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool).t().contiguous()
GRID = product(num_layers=[1, 2], bias=[True, False], batch_first=[False, True], bidirectional=[False, True])
cells = pytest.mark.parametrize("cell", own.CELLS)


# The formulas, of one row -------------------------------------------------------------------------------------------


def normalised(v, gamma, beta):
    mean = v.mean()
    return (v - mean) / torch.sqrt(((v - mean) ** 2).mean() + 1e-5) * gamma + beta


def logistic(v):
    return 1 / (1 + torch.exp(-v))


def layer_norm_lstm(x, s, h, c, gamma_i, beta_i, gamma_h, beta_h, gamma_c, beta_c):
    a = normalised(torch.cat(x), gamma_i, beta_i) + normalised(torch.cat(s), gamma_h, beta_h)
    i, f, g, o = logistic(a[:H]), logistic(a[H : 2 * H]), torch.tanh(a[2 * H : 3 * H]), logistic(a[3 * H :])
    c = f * c + i * g
    return o * torch.tanh(normalised(c, gamma_c, beta_c)), c


def peephole_lstm(x, s, h, c, p_i, p_f, p_o):
    after = logistic(x[1] + s[1] + p_f * c) * c + logistic(x[0] + s[0] + p_i * c) * torch.tanh(x[2] + s[2])
    return logistic(x[3] + s[3] + p_o * after) * torch.tanh(after), after


def mgu(x, s, h):
    f = logistic(x[0] + s[0])
    return (h + f * (torch.tanh(x[1] + f * s[1]) - h),)


def min_gru(x, s, h):
    z = logistic(x[0])
    return (h + z * (x[1] - h),)


def slstm(x, s, h, c, n, m):
    f, largest = torch.log(logistic(x[1] + s[1])), torch.maximum(torch.log(logistic(x[1] + s[1])) + m, x[0] + s[0])
    i, f = torch.exp(x[0] + s[0] - largest), torch.exp(f + m - largest)
    c, n = f * c + i * torch.tanh(x[2] + s[2]), f * n + i
    return logistic(x[3] + s[3]) * c / n, c, n, largest


FORMULAS = dict(zip(own.CELLS, [layer_norm_lstm, peephole_lstm, mgu, min_gru, slstm], strict=True))


def loop(rnn, cell, input, states):
    """Return what `rnn` should of one row (L, H_in), with the states (layers, H) of that row, as ([output], states)."""
    weights, D, finals = dict(rnn.named_parameters()), 1 + rnn.bidirectional, []
    for k in range(rnn.num_layers):
        sides = []
        for d in range(D):
            at = f"_l{k}" + "_reverse" * d
            state = [s[k * D + d] for s in states]
            steps = [None] * len(input)
            for t in reversed(range(len(input))) if d else range(len(input)):
                x = [w @ input[t] for w in weights["weight_ih" + at].split(H)]
                if "bias_ih" + at in weights:
                    x = [a + b for a, b in zip(x, weights["bias_ih" + at].split(H), strict=True)]
                s = [w @ state[0] for w in weights["weight_hh" + at].split(H)] if "weight_hh" + at in weights else []
                if "bias_hh" + at in weights:
                    s = [a + b for a, b in zip(s, weights["bias_hh" + at].split(H), strict=True)]
                extras = {each.name: weights[each.name + at] for each in own.CELLS[cell].parameters}
                h, *others = FORMULAS[cell](x, s, *state, **extras)
                state = [weights["weight_hr" + at] @ h if rnn.proj_size else h, *others]
                steps[t] = state[0]
            sides.append(torch.stack(steps))
            finals.append(state)
        input = torch.cat(sides, 1)
    return input, [torch.stack(s) for s in zip(*finals, strict=True)]


# A layer of each ----------------------------------------------------------------------------------------------------


def build(cell, **options):
    """A layer whose parameters are all different numbers."""
    rnn = rnnkit.RNNBase(own.CELLS[cell], H_IN, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for k, parameter in enumerate(rnn.parameters()):
            parameter.copy_(0.6 * randn(*parameter.shape, seed=k))
    return rnn


def batch(rnn, rows=N):
    """An input (L, N, H_in), or (N, L, H_in), and states (layers, N, H); with n of an sLSTM above zero, as it is."""
    input = randn(*((rows, L) if rnn.batch_first else (L, rows)), H_IN, seed=100).requires_grad_()
    layers, letters = rnn.num_layers * (1 + rnn.bidirectional), rnn.equation.state
    sizes = [rnn.proj_size or H] + [H] * (len(letters) - 1)
    states = [randn(layers, rows, size, seed=101 + k) for k, size in enumerate(sizes)]
    states = [s.abs() + 1 if letter == "n" else s for letter, s in zip(letters, states, strict=True)]
    return input, [s.requires_grad_() for s in states]


def as_hx(states):
    return tuple(states) if len(states) > 1 else states[0]


def rows_alone(rnn, input, states, run, lengths=(L,) * N):
    """Return what `run(row, states)` gives of each row alone (L, H_in), laid side by side, zeros beyond its length."""
    rows = (input if rnn.batch_first else input.transpose(0, 1)).unbind(0)
    outputs, finals = [], []
    for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        output, final = run(row[:length], [s[:, n] for s in states])
        outputs.append(torch.cat([output, output.new_zeros(L - length, output.size(1))]))
        finals.append(as_list(final))
    output = torch.stack(outputs, 0 if rnn.batch_first else 1)
    return output, [torch.stack(s, 1) for s in zip(*finals, strict=True)]


def cases():
    for cell, options in itertools.product(own.CELLS, GRID):
        yield cell, options
        if cell in PROJECTED:
            yield cell, options | {"proj_size": 2}


CASES = [pytest.param(cell, options, id=f"{cell}-{named(options)}") for cell, options in cases()]
grid = pytest.mark.parametrize(("cell", "options"), CASES)


@grid
def test_a_layer_is_its_formulas_over_time(cell, options):
    rnn = build(cell, **options)
    input, states = batch(rnn)
    leaves = [input, *states, *rnn.parameters()]
    expected = weighed(rows_alone(rnn, input, states, lambda row, s: loop(rnn, cell, row, s)), leaves)
    assert_equal_tensors(weighed(rnn(input, as_hx(states)), leaves), expected, 1e-11, named(options))


@grid
def test_an_unbatched_layer_is_the_row_of_a_batch(cell, options):
    rnn = build(cell, **options)
    input, states = batch(rnn)
    leaves = [input, *states, *rnn.parameters()]
    expected = weighed(rows_alone(rnn, input, states, lambda row, s: rnn(row, as_hx(s))), leaves)
    assert_equal_tensors(weighed(rnn(input, as_hx(states)), leaves), expected, 1e-11, named(options))


@grid
def test_packed_rows_and_lengths_are_each_sequence_alone(cell, options, monkeypatch):
    rnn = build(cell, **options)
    input, states = batch(rnn)
    leaves, hx = [input, *states, *rnn.parameters()], as_hx(states)
    expected = weighed(rows_alone(rnn, input, states, lambda row, s: rnn(row, as_hx(s)), LENGTHS), leaves)
    packed = pack_padded_sequence(input, LENGTHS, rnn.batch_first, enforce_sorted=False)
    output, final = rnn(packed, hx)
    output, _ = pad_packed_sequence(output, rnn.batch_first)
    assert_equal_tensors(weighed((output, final), leaves), expected, 1e-11, f"packed, {named(options)}")
    assert_equal_tensors(weighed(rnn(input, hx, lengths=LENGTHS), leaves), expected, 1e-11, f"lengths {named(options)}")
    monkeypatch.setattr(paths, "packs", lambda stack: False)
    assert_equal_tensors(weighed(rnn(input, hx, lengths=LENGTHS), leaves), expected, 1e-11, f"masks, {named(options)}")


@grid
def test_resets_are_each_segment_alone(cell, options, monkeypatch):
    rnn = build(cell, **options)
    input, states = batch(rnn)
    reset_to = [(s.detach() + 0.25).requires_grad_() for s in states]
    leaves, resets = [input, *states, *reset_to, *rnn.parameters()], RESETS.t() if rnn.batch_first else RESETS
    sizes = [s.size(2) for s in states]
    segments = alone(rnn, input, as_hx(states), Ragged(None, resets, as_hx(reset_to)), sizes)
    expected = weighed(segments, leaves)
    for way in ("packed", "masks"):
        found = weighed(rnn(input, as_hx(states), resets=resets, reset_to=as_hx(reset_to)), leaves)
        assert_equal_tensors(found, expected, 1e-11, f"{way}, {named(options)}")
        monkeypatch.setattr(paths, "packs", lambda stack: False)


# Everything that a layer has ----------------------------------------------------------------------------------------


DEEP = {"num_layers": 2, "bidirectional": True}


@cells
def test_a_state_dict_a_copy_and_a_pickle_are_the_layer(cell):
    rnn = build(cell, **DEEP)
    input, states = batch(rnn)
    leaves = [input, *states]
    expected, other = weighed(rnn(input, as_hx(states)), leaves), rnnkit.RNNBase(own.CELLS[cell], H_IN, H, **DEEP)
    other.double().load_state_dict(rnn.state_dict())
    for again in (other, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert_equal_tensors(weighed(again(input, as_hx(states)), leaves), expected, 0.0, cell)
        assert repr(again) == repr(rnn) == f"RNNBase({own.CELLS[cell].name}, 3, 4, num_layers=2, bidirectional=True)"


@cells
def test_own_parameters_are_named_like_the_others_and_come_last(cell):
    rnn, equation = build(cell, **DEEP), own.CELLS[cell]
    per_direction = (4 if equation.recurrent else 2) + len(equation.parameters)
    assert [len(names) for names in rnn.all_weights] == [per_direction] * 4
    for each in equation.parameters:
        for at in ("l0", "l0_reverse", "l1", "l1_reverse"):
            assert rnn.get_parameter(f"{each.name}_{at}").shape == torch.Size(each.sizes(H=H, G=4, H_in=H_IN, H_out=H))
    assert ("weight_hh_l0" in rnn.state_dict()) == equation.recurrent


def test_own_parameters_are_drawn_as_their_record_says():
    torch.manual_seed(0)
    rnn = rnnkit.RNNBase(own.CELLS["layer-normalised LSTM"], H_IN, H, **DEEP)
    torch.manual_seed(0)
    plain = rnnkit.RNNBase(own.CELLS["peephole LSTM"], H_IN, H, **DEEP)
    for name, parameter in rnn.named_parameters():
        if name.startswith(("gamma", "beta")):
            assert parameter.eq(name.startswith("gamma")).all(), name
    assert torch.equal(rnn.weight_ih_l0, plain.weight_ih_l0)
    assert 0 < plain.p_i_l1_reverse.abs().max() <= H**-0.5


@cells
def test_trace_sees_gates_and_states_by_their_letters(cell):
    rnn, equation = build(cell, **DEEP), own.CELLS[cell]
    input, states = batch(rnn)
    output, hx, seen = rnnkit.trace(rnn, input, as_hx(states))
    assert_equal_tensors(
        weighed((output, hx), [input]), weighed(rnn(input, as_hx(states)), [input]), 0.0, f"trace of {cell}"
    )
    for steps in seen.values():
        assert set(steps) == {*equation.gates, *equation.state}
    if "c" in equation.state:
        assert torch.equal(seen["l1"]["c"][-1], hx[1][2])


@cells
def test_dropout_between_layers_is_torchs(cell):
    rnn = build(cell, num_layers=2, dropout=0.5)
    input, _ = batch(rnn)
    torch.manual_seed(0)
    output, _ = rnn(input)
    below, above = build(cell), build(cell)
    weights = rnn.state_dict()
    below.load_state_dict({name: value for name, value in weights.items() if name.endswith("l0")})
    above = rnnkit.RNNBase(own.CELLS[cell], H, H, dtype=torch.float64)
    above.load_state_dict({name[:-1] + "0": value for name, value in weights.items() if name.endswith("l1")})
    torch.manual_seed(0)
    expected, _ = above(nn.functional.dropout(below(input)[0], 0.5))
    assert torch.equal(output, expected)


@cells
def test_compiled_is_eager_with_its_gradients(cell):
    rnn = build(cell)
    torch._dynamo.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    for options in ({}, {"lengths": torch.tensor(LENGTHS)}, {"resets": RESETS}):
        input, states = batch(rnn)
        leaves = [input, *states, *rnn.parameters()]
        expected = weighed(rnn(input, as_hx(states), **options), leaves)
        assert_equal_tensors(weighed(compiled(input, as_hx(states), **options), leaves), expected, 1e-11, f"{options}")


@cells
def test_exported_is_eager_at_another_length(cell):
    rnn = build(cell).eval()
    input, _ = batch(rnn)
    program = torch.export.export(rnn, (input.detach(),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    longer = randn(9, N, H_IN, seed=7)
    with torch.no_grad():
        expected = dict(enumerate(tree_leaves(rnn(longer))))
        found = dict(enumerate(tree_leaves(program.module()(longer))))
    assert_equal_tensors(found, expected, 1e-11, cell)


@cells
def test_transforms_are_loops_over_members_and_samples(cell):
    rnn = build(cell)
    input, _ = batch(rnn)
    input, members = input.detach(), [dict(build(cell).named_parameters()) for _ in range(2)]
    members[1] = {name: value * 0.5 for name, value in members[1].items()}
    stacked = {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}
    ensemble, _ = vmap(lambda weights: functional_call(rnn, weights, (input,)))(stacked)
    expected = torch.stack([functional_call(rnn, member, (input,))[0] for member in members])
    assert_equal_tensors({"ensemble": ensemble}, {"ensemble": expected}, 1e-11, cell)

    def loss(weights, sample):
        output, _ = functional_call(rnn, weights, (sample.unsqueeze(1),))
        return output.square().sum()

    weights = {name: value.detach() for name, value in rnn.named_parameters()}
    per_sample = vmap(grad(loss), (None, 1))(weights, input)
    each = [grad(loss)(weights, sample) for sample in input.unbind(1)]
    expected = {name: torch.stack([g[name] for g in each]) for name in weights}
    assert_equal_tensors(per_sample, expected, 1e-11, cell)

    direction = randn(*input.shape, seed=9)
    _, tangent = jvp(lambda x: rnn(x)[0], (input,), (direction,))
    step = 1e-6
    estimate = (rnn(input + step * direction)[0] - rnn(input - step * direction)[0]) / (2 * step)
    assert_equal_tensors({"tangent": tangent}, {"tangent": estimate.detach()}, 1e-7, cell)


@cells
def test_second_derivatives_are_those_of_the_formulas(cell):
    rnn = build(cell)
    input, states = batch(rnn, rows=1)
    x = input[:2].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, *s: rnn(x, as_hx(s))[0], (x, *states))


@cells
def test_explain_says_why_the_readable_path_runs(cell):
    path, reason = rnnkit.explain(build(cell), torch.zeros(60, N, H_IN, dtype=torch.float64))
    assert path == "readable"
    assert "the equation has" in reason


# What draws random numbers ------------------------------------------------------------------------------------------

WRAPPED = {**own.CELLS, "LSTM": EQUATIONS["LSTM"], "GRU": EQUATIONS["GRU"]}
wrapped = pytest.mark.parametrize("cell", WRAPPED)


@wrapped
def test_zoneout_keeps_a_state_with_probability_p(cell):
    equation = WRAPPED[cell]
    all_of_it = zoneout(equation, **dict.fromkeys(equation.state, 1.0))
    none_of_it, half = zoneout(equation), zoneout(equation, h=0.5)
    torch.manual_seed(1)
    rnns = [rnnkit.RNNBase(each, H_IN, 64) for each in (equation, all_of_it, none_of_it, half)]
    for rnn in rnns:
        rnn.load_state_dict(rnns[0].state_dict())
    plain, all_of_it, none_of_it, half = rnns
    x, hx = torch.randn(1, 50, H_IN), [torch.rand(1, 50, 64) + 1 for _ in equation.state]
    after, before = as_list(plain(x, as_hx(hx))[1])[0], hx[0]
    assert torch.equal(as_list(none_of_it(x, as_hx(hx))[1])[0], after)
    assert torch.equal(as_list(all_of_it(x, as_hx(hx))[1])[0], before)
    taken = as_list(half(x, as_hx(hx))[1])[0]
    stayed = taken == before
    assert torch.equal(taken, torch.where(stayed, before, after))
    assert 0.46 < stayed.float().mean() < 0.54
    torch.testing.assert_close(as_list(half.eval()(x, as_hx(hx))[1])[0], (before + after) / 2)


@wrapped
def test_recurrent_dropout_is_off_outside_of_training_and_masks_each_step_anew(cell):
    equation = WRAPPED[cell]
    plain, dropped = (rnnkit.RNNBase(each, H_IN, H) for each in (equation, recurrent_dropout(equation, 0.5)))
    dropped.load_state_dict(plain.state_dict())
    x = torch.randn(6, N, H_IN)
    first, second = (dropped(x)[0] for _ in range(2))
    assert torch.equal(first, second) == (not equation.recurrent)
    assert torch.equal(dropped.eval()(x)[0], rnnkit.trace(plain, x).output)


@wrapped
def test_wrappers_of_wrappers_are_wrappers(cell):
    both = zoneout(recurrent_dropout(WRAPPED[cell], 0.5), h=0.5)
    rnn = rnnkit.RNNBase(both, H_IN, H, num_layers=2, dropout=0.3)
    output, _ = rnn(torch.randn(L, N, H_IN))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in rnn.parameters())


@pytest.mark.slow
@wrapped
def test_what_draws_random_numbers_compiles_with_gradients_of_its_own_masks(cell):
    """A backward that drew anew would be that of other masks. A number that is kept has no gradient for the input."""
    rnn = rnnkit.RNNBase(zoneout(WRAPPED[cell], h=0.5), H_IN, 8)
    torch._dynamo.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, H_IN, requires_grad=True)
    state = [torch.rand(1, 2, 8) + 1 for _ in rnn.equation.state]
    output, _ = compiled(x, as_hx(state))
    kept = output == state[0]
    assert 0 < kept.sum() < kept.numel()
    (dx,) = torch.autograd.grad((output * kept).sum(), x, retain_graph=True)
    assert not dx.any()
    (dx,) = torch.autograd.grad(output.sum(), x)
    assert dx.any()


# What is refused ----------------------------------------------------------------------------------------------------


def takes(igates, hgates, state, gamma):
    return (torch.tanh(igates + hgates) * gamma,), (igates,)


def writes(igates, hgates, state):
    return (state[0].add_(igates + hgates),), (igates,)


HELD, LINEAR = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)
ONE = {"gates": ("a",), "state": ("h",)}


def plain(function):
    return lambda igates, hgates, state: function(igates + hgates)


REFUSED = {
    "a tensor written on": (Equation(writes, **ONE), {}, "writes on what it is given"),
    "a tensor held that learns": (Equation(plain(lambda a: ((a * HELD,), (a,))), **ONE), {}, "wants a gradient"),
    "a module held that learns": (Equation(plain(lambda a: ((LINEAR(a),), (a,))), **ONE), {}, "wants a gradient"),
    "another dtype": (Equation(plain(lambda a: ((a.double(),), (a,))), **ONE), {}, "states .* got: .*float64"),
    "a state alone": (Equation(plain(lambda a: (a, (a,))), **ONE), {}, "states .* in a tuple, got: Tensor"),
    "a gate alone": (Equation(plain(lambda a: ((a,), a)), **ONE), {}, "gates .* in a tuple, got: Tensor"),
    "a gate of another shape": (Equation(plain(lambda a: ((a,), (a[:, :1],))), **ONE), {}, r"gates .* got: \(2, 1\)"),
    "a number for a state": (Equation(plain(lambda a: ((1.0,), (a,))), **ONE), {}, "states .* got: tuple"),
    "a keyword for a name": (Equation(takes, **ONE, parameters=(Own("class", "(H)"),)), {}, "no name in Python"),
    "an argument's name": (Equation(takes, **ONE, parameters=(Own("state", "(H)"),)), {}, "'state' .* it is taken"),
    "a parenthesis left open": (Equation(takes, **ONE, parameters=(Own("gamma", "(H"),)), {}, "shape of gamma"),
    "a side left out": (Equation(takes, **ONE, parameters=(Own("gamma", "(H,,H)"),)), {}, "shape of gamma"),
    "a negative side": (Equation(takes, **ONE, parameters=(Own("gamma", "(-1)"),)), {}, "shape of gamma"),
    "no shape": (Equation(takes, **ONE, parameters=(Own("gamma", None),)), {}, "shape of gamma"),
    "a gate too many": (Equation(mgu, ("f", "n"), ("h",)), {}, "raises"),
    "no parameter given": (Equation(takes, ("a",), ("h",)), {}, "raises TypeError"),
    "a state too few": (Equation(own.mgu, ("f", "n"), ("h", "c")), {}, r"raises ValueError"),
    "gates that are not there": (Equation(own.peephole_lstm, tuple("ifg"), ("h", "c")), {}, "raises"),
    "a projection of h that it reads": (own.CELLS["MGU"], {"proj_size": 2}, "an output of 2, raises RuntimeError"),
    "a name that is taken": (
        Equation(takes, ("a",), ("h",), (Own("weight_ih", "(H)"),)),
        {},
        "'weight_ih' can't be the name of a parameter",
    ),
    "a name that is none": (Equation(takes, ("a",), ("h",), (Own("a b", "(H)"),)), {}, "'a b' can't be the name"),
    "a letter that is none": (
        Equation(takes, ("a",), ("h",), (Own("gamma", "(K)"),)),
        {},
        "shape of gamma should be made of numbers and H, H_cell, H_in, H_out, G",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_equation_that_is_not_what_its_record_says_is_refused(case):
    equation, options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        rnnkit.RNNBase(equation, H_IN, H, **options)


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        ({"state": "h"}, TypeError, "state should be a tuple of names, got: 'h'"),
        ({"gates": ["a"]}, TypeError, "gates should be a tuple of names"),
        ({"gates": ()}, TypeError, "gates should be a tuple of names"),
        ({"gates": ("a", "a")}, ValueError, "a name stands twice among a, a"),
        ({"gates": ("c",), "state": ("h", "c")}, ValueError, "a name stands twice among c, c"),
        ({"parameters": Own("p", "(H)")}, TypeError, "parameters should be a tuple of Own"),
        ({"parameters": (("p", "(H)"),)}, TypeError, "parameters should be a tuple of Own"),
        ({"parameters": (Own("p", "(H)"), Own("p", "(H)"))}, ValueError, "a name stands twice among p, p"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(record, error, words):
    with pytest.raises(error, match=words):
        Equation(takes, **(ONE | record))


def test_what_is_no_mode_and_no_equation_is_refused_by_its_name():
    with pytest.raises(TypeError) as caught:
        rnnkit.RNNBase(own.mgu, H_IN, H)
    assert "or an Equation" in getattr(caught.value, "__notes__", ["or an Equation"])[0]

    def LSTM(igates, hgates, state):  # noqa: N802
        return own.peephole_lstm(igates, hgates, state, 0, 0, 0)

    with pytest.raises(ValueError, match=r"LSTM is the name of torch\.nn's own equation"):
        rnnkit.RNNBase(Equation(LSTM, tuple("ifgo"), ("h", "c")), H_IN, H)


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="errors have no notes before Python 3.11")
@cells
def test_states_that_are_not_the_equations_are_refused_with_what_it_carries(cell):
    rnn, one = build(cell), torch.zeros(1, N, H, dtype=torch.float64)
    states, input = len(rnn.equation.state), torch.zeros(L, N, H_IN, dtype=torch.float64)
    wanted = {1: "a tensor", 2: "(h_0, c_0), a pair of tensors"}.get(states, f"{states} tensors")
    for hx in [(one,) * (states + 1), (None,) * states, [], one if states > 1 else (one,)]:
        with pytest.raises((TypeError, RuntimeError, IndexError, AttributeError)) as caught:
            rnn(input, hx)
        assert not str(caught.value).startswith("lstm")
        assert any(f"hx should be {wanted}, got: " in note for note in caught.value.__notes__), hx


def test_an_equation_is_checked_in_whatever_mode_a_layer_is_made():
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            rnnkit.RNNBase(own.CELLS["sLSTM"], H_IN, H)
            with pytest.raises(ValueError, match="wants a gradient"):
                rnnkit.RNNBase(Equation(plain(lambda a: ((a * HELD,), (a,))), **ONE), H_IN, H)


def test_checking_an_equation_draws_no_random_number():
    def noisy(igates, hgates, state):
        return (torch.rand_like(hgates),), (igates,)

    before = torch.manual_seed(0).get_state()
    checks.check_equation(Equation(noisy, **ONE), {"H": 4, "H_out": 4, "G": 1}, ())
    assert torch.equal(torch.get_rng_state(), before)
    equation = zoneout(own.CELLS["sLSTM"], h=0.5)
    torch.manual_seed(0)
    rnn = rnnkit.RNNBase(equation, H_IN, H)
    torch.manual_seed(0)
    plain = rnnkit.RNNBase(own.CELLS["sLSTM"], H_IN, H)
    assert all(torch.equal(a, b) for a, b in zip(rnn.parameters(), plain.parameters(), strict=True))


def test_shapes_are_read_as_they_are_written():
    letters = {"H": 4, "H_in": 3, "G": 2}
    for shape, sizes in {"()": [], "(H)": [4], "(G*H, H_in)": [8, 3], "2*H": [8], "( 3 , H )": [3, 4]}.items():
        assert Own("p", shape).sizes(**letters) == sizes, shape
