"""The reason that is given is the right one, and it comes first: the numbers before the shapes."""

import pytest
import torch
import torch.nn.functional as F
from subjects import strangers
from torch import nn

from parity.checkup.diagnose import Doctor
from parity.checkup.examine import check
from parity.checkup.subjects import adapt


class CellLSTM(nn.LSTMCell):
    """Right; a derived class changes the equations."""

    def forward(self, x, hx):
        h, c = hx
        i, f, g, o = (x @ self.weight_ih.t() + self.bias_ih + h @ self.weight_hh.t() + self.bias_hh).chunk(4, 1)
        return self.step(i, f, g, o, c)

    def step(self, i, f, g, o, c):
        c = self.cell(i.sigmoid(), f.sigmoid(), g.tanh(), c)
        return self.emit(o.sigmoid(), c), c

    def cell(self, i, f, g, c):
        return f * c + i * g

    def emit(self, o, c):
        return o * torch.tanh(c)


def reasons(cls, as_=None):
    """Return what diagnosis names; nothing may be left without a name."""
    diagnosis = Doctor(adapt(cls, as_)).diagnose()
    assert not diagnosis.unread, diagnosis.unread
    assert not diagnosis.others, str(diagnosis)
    return diagnosis.names


# The cell is normalised -----------------------------------------------------------------------------------------------


def before_tanh(normalisation):
    """Make a class whose h is o * tanh(normalisation(c))."""

    class NormedLSTMCell(CellLSTM):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.ln = normalisation(hidden_size)

        def emit(self, o, c):
            return o * torch.tanh(self.ln(c))

    return NormedLSTMCell


class CarriedNormLSTMCell(before_tanh(nn.LayerNorm)):
    def cell(self, i, f, g, c):
        return self.ln(f * c + i * g)

    def emit(self, o, c):
        return o * torch.tanh(c)


class PlainNormLSTMCell(CellLSTM):
    def emit(self, o, c):
        return o * torch.tanh(F.layer_norm(c, c.shape[-1:]))


LAYER = "layer normalisation of the cell before its tanh"


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (before_tanh(nn.LayerNorm), LAYER),
        (before_tanh(lambda units: nn.LayerNorm(units, elementwise_affine=False)), LAYER),
        (before_tanh(lambda units: nn.GroupNorm(1, units)), LAYER),
        (before_tanh(nn.RMSNorm), "RMS normalisation of the cell before its tanh"),
        (PlainNormLSTMCell, LAYER),
        (CarriedNormLSTMCell, "layer normalisation of the cell"),
    ],
    ids=["layer", "no affine", "group", "rms", "function", "carried"],
)
def test_a_normalised_cell_is_no_peephole(cls, name):
    assert reasons(cls) == [name]


def learned(change, value):
    """Make a class whose h is o * tanh(change(c, parameter)); with the parameter at `value` it is torch.nn's."""

    class LearnedLSTMCell(CellLSTM):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.own = nn.Parameter(torch.full((hidden_size,), value))

        def emit(self, o, c):
            return o * torch.tanh(change(c, self.own))

    return LearnedLSTMCell


@pytest.mark.parametrize("cls", [learned(torch.mul, 1.0), learned(torch.add, 0.0)], ids=["scale", "bias"])
def test_a_learned_scale_or_bias_of_the_cell_is_no_peephole(cls):
    assert reasons(cls) == ["it has parameters that torch.nn has not: own"]


class ForgetBiasLSTMCell(learned(torch.add, 1.0)):
    def step(self, i, f, g, o, c):
        c = (f + self.own).sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * torch.tanh(c), c


def test_a_learned_bias_of_the_forget_gate_is_no_peephole():
    assert reasons(ForgetBiasLSTMCell) == ["it has parameters that torch.nn has not: own"]


def peepholes(full, gates):
    """Make a class whose gates see the cell, each through a vector or through a matrix."""

    class PeepholeLSTMCell(CellLSTM):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            shape = (hidden_size, hidden_size) if full else (hidden_size,)
            for gate in gates:
                self.register_parameter(f"w_c{gate}", nn.Parameter(0.3 * torch.randn(shape)))

        def seen(self, gate, c):
            own = getattr(self, f"w_c{gate}", None)
            return 0 if own is None else c @ own.t() if full else c * own

        def step(self, i, f, g, o, c):
            new = (f + self.seen("f", c)).sigmoid() * c + (i + self.seen("i", c)).sigmoid() * g.tanh()
            return (o + self.seen("o", new)).sigmoid() * new.tanh(), new

    return PeepholeLSTMCell


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("gates", ["ifo", "if", "o"])
def test_a_peephole_is_one(full, gates):
    names = ", ".join(f"w_c{gate}" for gate in gates)
    assert reasons(peepholes(full, gates)) == [f"peephole connections: the gates see the cell through {names}"]


# The equation of the cell ---------------------------------------------------------------------------------------------


def equation(cell=CellLSTM.cell, emit=CellLSTM.emit):
    return type("OtherLSTMCell", (CellLSTM,), {"cell": cell, "emit": emit})


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (
            equation(lambda self, i, f, g, c: f * (c + i * g)),
            "the forget gate multiplies the new candidate as well, c = f * (c + i * g)",
        ),
        (
            equation(lambda self, i, f, g, c: i * (f * c + g)),
            "the input gate multiplies the old cell as well, c = i * (f * c + g)",
        ),
        (
            equation(lambda self, i, f, g, c: c + f * i * g),
            "the forget gate multiplies the candidate in place of the old cell, c = c + f * i * g",
        ),
        (equation(lambda self, i, f, g, c: torch.tanh(f * c + i * g)), "tanh on the new c, before it is carried on"),
        (
            equation(emit=lambda self, o, c: torch.tanh(o * c)),
            "the output gate stands inside the tanh, h = tanh(o * c)",
        ),
        (equation(lambda self, i, f, g, c: c + i * g), "the forget gate is missing"),
        (equation(lambda self, i, f, g, c: c + g), "input gate and forget gate are missing, c = c + g"),
    ],
    ids=["f of all", "i of all", "f of g", "tanh of c", "o inside", "no f", "no i, no f"],
)
def test_an_equation_of_the_cell_is_named(cls, name):
    assert reasons(cls) == [name]


class LayerOfStep(nn.Module):
    """States have no dimension of layers, as in tutorials."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.x2h, self.h2h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x, state=None):
        h, c = (x.new_zeros(x.size(1), self.hidden_size),) * 2 if state is None else state
        output = []
        for row in x:
            h, c = self.step(*(self.x2h(row) + self.h2h(h)).chunk(4, 1), c)
            output.append(h)
        return torch.stack(output), (h, c)


class ForgetAllLSTM(LayerOfStep):
    def step(self, i, f, g, o, c):
        c = f.sigmoid() * (c + i.sigmoid() * g.tanh())
        return o.sigmoid() * c.tanh(), c


class CosineLSTM(LayerOfStep):
    def step(self, i, f, g, o, c):
        c = f.sigmoid() * c + i.sigmoid() * torch.cos(g)
        return o.sigmoid() * c.tanh(), c


def test_wrong_numbers_come_before_another_shape():
    result = check(ForgetAllLSTM, raises=False)
    assert result.verdict == (
        "ForgetAllLSTM is not torch.nn.LSTM: the forget gate multiplies the new candidate as well, "
        "c = f * (c + i * g); states have no dimension of layers"
    )
    assert str(result).index("1. the forget gate") < str(result).index("2. states have no")
    assert any(not row.verdict.passes for row in result.rows)


def test_wrong_numbers_without_a_name_come_before_another_shape():
    result = check(CosineLSTM, raises=False)
    assert result.verdict == (
        "CosineLSTM is not torch.nn.LSTM: its numbers differ in one layer, and no known variant fits; "
        "states have no dimension of layers"
    )
    assert str(result).index("? one layer: differs") < str(result).index("1. states have no")
    assert any(not row.verdict.passes for row in result.rows), "it is run in the cases that it offers"
    assert "two layers" in result.diagnosis.not_offered


# Directions -----------------------------------------------------------------------------------------------------------


class BothGRU(nn.Module):
    """Right; always in two directions."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.fwd, self.bwd = nn.GRUCell(input_size, hidden_size), nn.GRUCell(input_size, hidden_size)

    def turned(self, output):
        return output[::-1]

    def forward(self, x):
        h = k = x.new_zeros(x.size(1), self.fwd.hidden_size)
        there, back = [], []
        for row, late in zip(x, x.flip(0), strict=True):
            h, k = self.fwd(row, h), self.bwd(late, k)
            there.append(h)
            back.append(k)
        return torch.cat([torch.stack(there), torch.stack(self.turned(back))], -1), torch.stack([h, k])


class UnturnedGRU(BothGRU):
    def turned(self, output):
        return output


class WrappedLSTM(nn.Module):
    """Right; always in two directions, by torch.nn itself."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.rnn = nn.LSTM(input_size, hidden_size, bidirectional=True)

    def forward(self, x, hx=None):
        return self.rnn(x, hx)


def test_what_always_has_two_directions_is_compared_with_two_directions():
    result = check(BothGRU, raises=False)
    assert result.verdict == "BothGRU is torch.nn.GRU(bidirectional=True) in what it offers, within rounding"
    assert result.exit_code == 0
    assert result.diagnosis.not_offered["one direction"] == "it always has two"
    assert {row.case.bidirectional for row in result.rows} == {True}


def test_what_wraps_torchs_two_directions_is_right():
    assert reasons(WrappedLSTM) == []


def test_what_always_has_two_directions_may_be_wrong_in_one():
    result = check(UnturnedGRU, raises=False)
    assert result.verdict == "UnturnedGRU is not torch.nn.GRU(bidirectional=True): reverse output is not flipped back"


class DeepBothGRU(nn.Module):
    """Right; always in two directions, its parameters named by neither layer nor direction."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        sizes = [input_size, *[2 * hidden_size] * (num_layers - 1)]
        self.a, self.z = (nn.ModuleList(nn.GRU(size, hidden_size) for size in sizes) for _ in "az")

    def place(self, layer, direction):
        return 2 * layer + direction

    def forward(self, x, hx=None):
        h_n = [None] * 2 * len(self.a)
        for layer, pair in enumerate(zip(self.a, self.z, strict=True)):
            places = [self.place(layer, direction) for direction in (0, 1)]
            begins = [None if hx is None else hx[place : place + 1] for place in places]
            ahead, h_n[places[0]] = pair[0](x, begins[0])
            back, h_n[places[1]] = pair[1](x.flip(0), begins[1])
            x = torch.cat([ahead, back.flip(0)], -1)
        return x, torch.cat(h_n)


class DirectionMajorGRU(DeepBothGRU):
    def place(self, layer, direction):
        return direction * len(self.a) + layer


def test_layers_of_two_directions_are_told_apart_by_their_states():
    result = check(DeepBothGRU, raises=False)
    assert (result.exit_code, result.diagnosis.left_out.keys() & {"two layers", "three layers"}) == (0, set())


def test_states_in_the_order_of_directions_are_named():
    assert reasons(DirectionMajorGRU) == ["h_n is direction-major", "h_0 is read direction-major"]


class TwoLayersInOneTensorLSTM(nn.Module):
    """Right; from two layers on, their weights lie in one tensor."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        self.H, self.n = hidden_size, num_layers
        self.first = nn.LSTM(input_size, hidden_size)
        self.above = nn.Parameter(torch.randn(num_layers - 1, 4 * hidden_size, 2 * hidden_size + 2))

    def forward(self, x, hx=None):
        if hx is None:
            hx = (x.new_zeros(self.n, x.size(1), self.H),) * 2
        h, c = hx
        x, ends = self.first(x, (h[:1], c[:1]))
        ends = [ends]
        for k, w in enumerate(self.above, 1):
            w_ih, w_hh, b_ih, b_hh = w.split([self.H, self.H, 1, 1], 1)
            weights = [w_ih.contiguous(), w_hh.contiguous(), b_ih[:, 0].contiguous(), b_hh[:, 0].contiguous()]
            x, *end = torch.lstm(x, (h[k : k + 1], c[k : k + 1]), weights, True, 1, 0.0, False, False, False)
            ends.append(end)
        h, c = zip(*ends, strict=True)
        return x, (torch.cat(h), torch.cat(c))


def test_layers_whose_parameters_cannot_be_read_are_not_passed():
    """One layer is torch.nn's; the others, which it offers, nobody has compared."""
    result = check(TwoLayersInOneTensorLSTM, raises=False)
    assert result.exit_code == 2
    assert result.headline == (
        "TwoLayersInOneTensorLSTM could not be compared with torch.nn.LSTM in two layers and three layers"
    )
    assert "its parameters could not be read" in result.verdict
    assert all(row.verdict.passes for row in result.rows)
    assert result.rows, "one layer is compared"


class StepwiseGRU(nn.Module):
    """Right; a loop of torch.nn's cell."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)

    def before(self, t, h):
        return h

    def taken(self, t, x):
        return x

    def step(self, x, h):
        return self.cell(x, h)

    def shown(self, t, h):
        return h

    def forward(self, x, hx=None):
        h = x.new_zeros(x.size(1), self.cell.hidden_size) if hx is None else hx[0]
        output = []
        for t, row in enumerate(x):
            h = self.step(self.taken(t, row), self.before(t, h))
            output.append(self.shown(t, h))
        return torch.stack(output), h[None]


@pytest.mark.parametrize(("every", "first"), [(1, 0), (3, 0), (3, 2), (4, 1), (20, 0), (20, 7), (30, 29)])
def test_how_often_gradients_are_cut_is_told_wherever_the_first_cut_is(every, first):
    class CutGRU(StepwiseGRU):
        def before(self, t, h):
            return h.detach() if t and t % every == first else h

    what = "the state is detached between steps" if every == 1 else f"gradients are cut every {every} steps: the state"
    result = check(CutGRU, raises=False)
    assert result.diagnosis.reasons[0].startswith(what), result.verdict


@pytest.mark.parametrize(
    ("method", "change", "name"),
    [
        ("taken", lambda self, t, x: x if t < 50 else 0 * x, "wrong from step 50 on"),
        ("before", lambda self, t, h: h if t % 25 or t == 0 else 0 * h, "wrong from step 25 on"),
        ("before", lambda self, t, h: h if t < 200 else h.relu(), "wrong from step 200 on"),
        ("taken", lambda self, t, x: x if t < 50 else x.detach(), "the input is detached from step 50 on"),
        ("shown", lambda self, t, h: h if t < 50 else h.detach(), "the output is detached from step 50 on"),
        ("before", lambda self, t, h: h if t != 50 else h.detach(), "gradients are cut at step 50: the state is "),
        ("before", lambda self, t, h: h if t not in (7, 20, 50) else h.detach(), "gradients are cut at step 7 and 20"),
        ("before", lambda self, t, h: h if t < 60 else h.detach(), "gradients are cut at each step from step 60 on: "),
        ("before", lambda self, t, h: h if t != 9 else (h + h.detach()) / 2, "gradients of a long sequence are wrong"),
    ],
)
def test_what_goes_wrong_late_in_time_is_told_with_its_step(method, change, name):
    cls = type("LateGRU", (StepwiseGRU,), {method: change})
    result = check(cls, raises=False)
    assert result.diagnosis.reasons[0].startswith(name), result.verdict
    assert len(result.diagnosis.reasons) == 1, result.verdict
    assert "{" not in str(result.diagnosis)


class MaskZeroGRU(StepwiseGRU):
    """Keras' mask_zero: the state is held where the input is all zero."""

    def step(self, x, h):
        return torch.where((x != 0).any(-1, keepdim=True), self.cell(x, h), h)


class PadZeroGRU(nn.Module):
    """Takes zeros at the end for padding."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.rnn = nn.GRU(input_size, hidden_size)

    def forward(self, x, hx=None):
        lengths = [int(row.any(-1).nonzero().max()) + 1 if row.any() else 1 for row in x.unbind(1)]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, h_n = self.rnn(packed, hx)
        return nn.utils.rnn.pad_packed_sequence(output, total_length=len(x))[0], h_n


class NoZerosLSTMCell(nn.LSTMCell):
    """Fills in a number where the input is all zero."""

    def forward(self, x, hx=None):
        return super().forward(torch.where((x != 0).any(-1, keepdim=True), x, 0.1), hx)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (MaskZeroGRU, "steps whose input is all zero are skipped"),
        (PadZeroGRU, "steps at the end whose input is all zero are skipped"),
        (NoZerosLSTMCell, "steps whose input is all zero are computed otherwise"),
    ],
)
def test_zeros_that_are_taken_for_padding_are_told(cls, name):
    assert check(cls, raises=False).diagnosis.names == [name]


class SingleGRU(nn.Module):
    """Computes in float32 whatever comes."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.rnn = nn.GRU(input_size, hidden_size)

    def forward(self, x, hx=None):
        weights = {name: weight.float() for name, weight in self.rnn.named_parameters()}
        arguments = (x.float(),) if hx is None else (x.float(), hx.float())
        output, h_n = torch.func.functional_call(self.rnn, weights, arguments)
        return output.to(x.dtype), h_n.to(x.dtype)


class SkipGRU(nn.Module):
    """Adds a layer's input to its output, in each layer but the first."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        self.layers = nn.ModuleList(nn.GRU(size, hidden_size) for size in sizes)

    def forward(self, x, hx=None):
        ends = []
        for k, layer in enumerate(self.layers):
            y, h_n = layer(x, None if hx is None else hx[k : k + 1])
            x = x + y if k else y
            ends.append(h_n)
        return x, torch.cat(ends)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (SingleGRU, "something passes through float32, or a small constant is added"),
        (SkipGRU, "a residual connection adds a layer's input to its output"),
    ],
)
def test_one_mistake_gets_no_second_name(cls, name):
    assert check(cls, raises=False).diagnosis.names == [name]


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.99), (0.05, 1.0), (0.0, 0.9)])
def test_a_bound_on_a_gate_is_not_taken_for_a_matter_of_sizes(low, high):
    class BoundGRU(StepwiseGRU):
        def step(self, x, h):
            igates = F.linear(x, self.cell.weight_ih, self.cell.bias_ih)
            hgates = F.linear(h, self.cell.weight_hh, self.cell.bias_hh)
            (r_i, z_i, n_i), (r_h, z_h, n_h) = igates.chunk(3, 1), hgates.chunk(3, 1)
            z = torch.sigmoid(z_i + z_h).clamp(low, high)
            n = torch.tanh(n_i + torch.sigmoid(r_i + r_h) * n_h)
            return (1 - z) * n + z * h

    result = check(BoundGRU, raises=False)
    assert result.exit_code == 1
    assert not any("size" in name or "rows" in name for name in result.diagnosis.names), result.verdict
    assert "no known variant fits" in result.verdict


class BackwardsGRU(nn.Module):
    """Keras' go_backwards, the output turned back."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.rnn = nn.GRU(input_size, hidden_size)

    def forward(self, x, hx=None):
        output, h_n = self.rnn(x.flip(0), hx)
        return output.flip(0), h_n


class LeftBackwardsLSTM(nn.Module):
    """Keras' go_backwards, the output left in the order in which it was computed."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.rnn = nn.LSTM(input_size, hidden_size)

    def forward(self, x, hx=None):
        return self.rnn(x.flip(0), hx)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (BackwardsGRU, "it runs over time from the end"),
        (LeftBackwardsLSTM, "it runs over time from the end, and its output is left in that order"),
    ],
)
def test_what_runs_from_the_end_is_told_so(cls, name):
    assert reasons(cls) == [name]


class CarryFirstGRUCell(nn.GRUCell):
    """Flax's order: a cell takes the carry first, and returns it first."""

    def forward(self, carry, x):
        carry = super().forward(x, carry)
        return carry, carry


class CarryFirstLSTMCell(nn.LSTMCell):
    def forward(self, carry, x):
        carry = super().forward(x, carry)
        return carry, carry[0]


class StateFirstLSTMCell(nn.LSTMCell):
    def forward(self, h, c, x):
        return super().forward(x, (h, c))


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (CarryFirstGRUCell, ["a cell returns output and state", "the state is taken before the input"]),
        (CarryFirstLSTMCell, ["a cell returns state and output", "the state is taken before the input"]),
        (StateFirstLSTMCell, ["the state is taken before the input", "h_0 and c_0 are taken side by side"]),
    ],
)
def test_a_cell_that_takes_its_state_first_is_told_so(cls, names):
    result = check(cls, raises=False)
    assert (result.diagnosis.names, result.exit_code) == (names, 1)
    assert all(row.verdict.passes for row in result.rows)


class SpareGRU(nn.Module):
    """Right; a Linear that nothing reads, as wide as the recurrent one, comes before it."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.x2h = nn.Linear(input_size, 3 * hidden_size)
        self.spare = nn.Linear(hidden_size, 3 * hidden_size)
        self.h2h = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x, hx=None):
        h = x.new_zeros(x.size(1), self.h2h.in_features) if hx is None else hx[0]
        outputs = []
        for x_t in x:
            (r, z, n), (r_h, z_h, n_h) = self.x2h(x_t).chunk(3, 1), self.h2h(h).chunk(3, 1)
            n, z = torch.tanh(n + torch.sigmoid(r + r_h) * n_h), torch.sigmoid(z + z_h)
            h = n + z * (h - n)
            outputs.append(h)
        return torch.stack(outputs), h[None]


class Wrapping(nn.Module):
    """Hands everything to a module inside."""

    def forward(self, x, hx=None):
        return self.core(x, hx)


class FirstSpareRNN(Wrapping):
    """Right; all that nothing reads comes first."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.spare = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.other_spare = nn.Parameter(torch.randn(hidden_size))
        self.core = nn.RNN(input_size, hidden_size)


def both_biases_in_one(*sizes):
    """Return an LSTM, right, whose biases are one parameter of this shape; None stands for 8*H."""

    class OneBiasLSTM(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4 * hidden_size, input_size))
            self.r = nn.Parameter(torch.randn(4 * hidden_size, hidden_size))
            self.b = nn.Parameter(torch.randn([8 * hidden_size if size is None else size for size in sizes]))

        def forward(self, x, hx=None):
            hx = (x.new_zeros(1, x.size(1), self.r.size(1)),) * 2 if hx is None else hx
            weights = [self.w, self.r, *self.b.flatten().chunk(2)]
            output, *hx = torch.lstm(x, hx, weights, True, 1, 0.0, False, False, False)
            return output, tuple(hx)

    return OneBiasLSTM


@pytest.mark.parametrize(
    "cls",
    [SpareGRU, FirstSpareRNN, both_biases_in_one(None), both_biases_in_one(1, None)],
    ids=lambda cls: cls.__name__,
)
def test_what_nothing_reads_and_biases_end_to_end_are_no_mistake(cls):
    assert reasons(cls) == []


@pytest.mark.parametrize(
    "cls", [SpareGRU, strangers.StackedConcatLSTM, strangers.ListsGRU], ids=lambda cls: cls.__name__
)
def test_the_full_grid_accuses_nothing_that_is_right(cls):
    """Of other names of arguments, that is, or of its own dtypes under autocast."""
    result = check(cls, grid="full", raises=False)
    assert result.exit_code == 0, result.verdict
    assert {"bfloat16", "float16"} <= {row.case.dtype for row in result.rows}


class SwallowingLSTM(Wrapping):
    """Right in one layer; what else is asked of its constructor is dropped."""

    def __init__(self, input_size, hidden_size, **unused):
        super().__init__()
        self.core = nn.LSTM(input_size, hidden_size)


def test_what_a_constructor_drops_is_not_offered():
    result = check(SwallowingLSTM, raises=False)
    assert (result.exit_code, result.diagnosis.names) == (0, [])
    assert {"two layers", "two directions", "batch_first", "no bias"} <= set(result.diagnosis.not_offered)


def bound(parametrize, **named):
    """Return an RNN whose recurrent weight one of torch's parametrizations makes."""

    class BoundRNN(nn.RNN):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            parametrize(self, "weight_hh_l0", **named)

    return BoundRNN


class Clamped(nn.Module):
    def forward(self, weight):
        return weight.clamp(-0.5, 0.5)


@pytest.mark.parametrize(
    ("cls", "limited"),
    [
        (bound(nn.utils.parametrizations.weight_norm), False),
        (bound(nn.utils.parametrizations.orthogonal), True),
        (bound(nn.utils.parametrizations.spectral_norm), True),
        (bound(nn.utils.parametrize.register_parametrization, parametrization=Clamped()), True),
    ],
    ids=["weight_norm", "orthogonal", "spectral_norm", "clamped"],
)
def test_a_weight_that_cannot_be_any_is_told_in_the_headline(cls, limited):
    result = check(cls, raises=False)
    assert result.exit_code == 0
    assert ("a parametrization limits weight_hh_l0" in result.headline) == limited, result.headline


class StacksApartGRU(nn.Module):
    """Wrong from two layers of two directions on: no layer sees the other direction of the one below it."""

    def __init__(self, input_size, hidden_size, num_layers=1, bidirectional=False):
        super().__init__()
        self.stacks = nn.ModuleList(nn.GRU(input_size, hidden_size, num_layers) for _ in range(1 + bidirectional))

    def forward(self, x, hx=None):
        hx = [None] * 2 if hx is None else hx.unflatten(0, (-1, len(self.stacks))).unbind(1)
        ahead, *back = self.stacks
        output, h_n = ahead(x, hx[0])
        if not back:
            return output, h_n
        other, h_back = back[0](x.flip(0), hx[1])
        return torch.cat((output, other.flip(0)), 2), torch.stack((h_n, h_back), 1).flatten(0, 1)


class OneLayerLSTM(Wrapping):
    """Wrong: it is one layer in one direction, whatever is asked."""

    def __init__(self, input_size, hidden_size, num_layers=1, bidirectional=False):
        super().__init__()
        self.core = nn.LSTM(input_size, hidden_size)


def test_directions_that_never_meet_are_told_so():
    result = check(StacksApartGRU, raises=False)
    assert result.diagnosis.names == ["the two directions are stacks apart, joined at the end"]
    assert result.exit_code == 1
    assert "Error" not in result.headline


def test_options_that_make_no_parameters_are_ignored():
    assert reasons(OneLayerLSTM) == ["num_layers is ignored", "bidirectional is ignored"]


class OneTensorLSTM(nn.LSTM):
    """Its states are one tensor."""

    def forward(self, x, hx=None):
        output, states = super().forward(x, None if hx is None else tuple(hx.unbind(0)))
        return output, torch.stack(states)


class OneFlatTensorLSTM(OneTensorLSTM):
    """They have no dimension of layers, either."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)

    def forward(self, x, hx=None):
        output, states = super().forward(x, None if hx is None else hx.unsqueeze(1))
        return output, states.squeeze(1)


class AllStatesLSTM(nn.LSTM):
    """It returns as many states as there are steps."""

    def forward(self, x, hx=None):
        output, (h_n, _) = super().forward(x, hx)
        return output, output + 0 * h_n


ONE_TENSOR = ["h_n and c_n are returned in one tensor", "h_0 and c_0 are taken in one tensor"]


def test_states_in_one_tensor_are_named():
    assert reasons(OneTensorLSTM) == ONE_TENSOR
    assert reasons(OneFlatTensorLSTM) == [*ONE_TENSOR, "states have no dimension of layers"]


def test_more_states_than_two_are_no_convention():
    result = check(AllStatesLSTM, raises=False)
    assert result.exit_code == 2
    assert "it returns a tuple of 2" in result.verdict


class StepLSTM(nn.Module):
    """A cell, right; its name doesn't say so."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x, h, c):
        return self.cell(x, (h, c))


class SquareRNN(Wrapping):
    """One size stands for both."""

    def __init__(self, d_model):
        super().__init__()
        self.core = nn.RNN(d_model, d_model)


class PackingGRU(nn.GRU):
    """Lengths come second, and have to be there."""

    def forward(self, x, lengths):
        return super().forward(nn.utils.rnn.pack_padded_sequence(x, lengths))


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (StepLSTM, "Is it a cell? Then say --as LSTMCell"),
        (SquareRNN, "its constructor takes one argument, d_model"),
        (PackingGRU, "a derived class with forward(self, input, hx=None) that returns this can be compared"),
    ],
)
def test_what_cannot_be_compared_says_what_to_do(cls, said):
    result = check(cls, raises=False)
    assert result.exit_code == 2
    assert said in result.verdict


class MisnamedLSTM(nn.Module):
    """Its gates have names; that of the input gate drives the forget gate, and that of the forget gate the input's."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        names = ("input", "forget", "cell", "output")
        self.w = nn.ModuleDict({name: nn.Linear(input_size, hidden_size) for name in names})
        self.u = nn.ModuleDict({name: nn.Linear(hidden_size, hidden_size) for name in names})

    def forward(self, x, hx=None):
        h, c = (x.new_zeros(2, x.size(1), self.u["cell"].in_features) if hx is None else torch.cat(hx)).unbind()
        outputs = []
        for x_t in x:
            i, f, g, o = (self.w[name](x_t) + self.u[name](h) for name in ("forget", "input", "cell", "output"))
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


def test_gates_that_bear_each_others_names_are_told_by_them():
    (finding,) = Doctor(adapt(MisnamedLSTM)).diagnose().findings
    assert "what is named for i acts as f, what is named for f acts as i" in finding.fix
    assert "permute" not in finding.fix


class MeanGRU(nn.GRU):
    """Its h_n is the mean of the output."""

    def forward(self, x, hx=None):
        output, h_n = super().forward(x, hx)
        return output, output.mean(0, keepdim=True).expand_as(h_n)


def test_what_has_no_name_says_which_results_differ():
    result = check(MeanGRU, raises=False)
    assert "those of h_n alone" in result.headline


class WritingGRU(nn.GRU):
    """It writes on its input, unless autograd would see it."""

    def forward(self, x, hx=None):
        if not getattr(x, "requires_grad", False) and isinstance(x, torch.Tensor) and x.numel():
            x[0] = 2 * x[0]
        return super().forward(x, hx)


class FrozenRNN(nn.RNN):
    """Wrong for an input that wants no gradient."""

    def forward(self, x, hx=None):
        output, h_n = super().forward(x, hx)
        wanted = (x if isinstance(x, torch.Tensor) else x.data).requires_grad
        return output if wanted or not isinstance(x, torch.Tensor) else 2 * output, h_n


@pytest.mark.parametrize(("cls", "what"), [(WritingGRU, "it writes on what it is given"), (FrozenRNN, "wrong")])
def test_what_is_wrong_without_a_gradient_of_the_input_is_told_so(cls, what):
    result = check(cls, raises=False)
    assert f"{what} where the input wants no gradient" in result.diagnosis.names


class PaddedBackGRU(nn.Module):
    """Wrong where rows are packed: its reverse direction begins in the padding. It has one layer."""

    def __init__(self, input_size, hidden_size, bidirectional=False):
        super().__init__()
        self.core = nn.GRU(input_size, hidden_size, bidirectional=bidirectional)

    def forward(self, x, hx=None):
        if not isinstance(x, nn.utils.rnn.PackedSequence) or not self.core.bidirectional:
            return self.core(x, hx)
        padded, lengths = nn.utils.rnn.pad_packed_sequence(x)
        output, h_n = self.core(padded, hx)
        ahead = output[lengths - 1, torch.arange(len(lengths)), : self.core.hidden_size]
        packed = nn.utils.rnn.pack_padded_sequence(output, lengths, enforce_sorted=x.sorted_indices is None)
        return packed, torch.stack((ahead, h_n[1]))


def test_two_directions_of_one_layer_are_compared_packed():
    result = check(PaddedBackGRU, raises=False)
    assert result.exit_code == 1
    assert "differ in packed, two directions" in result.headline
