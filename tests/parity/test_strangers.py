"""Other people's modules: none that is right is accused, and what can't be read is said to be so."""

import functools
import json
import os
import sys
import time

import numpy as np
import pytest
import torch
from subjects import reached, stacks, starts, strangers
from torch import nn

from parity.__main__ import main
from parity.checkup.apart import apart
from parity.checkup.arrays import check_arrays
from parity.checkup.diagnose import Doctor
from parity.checkup.examine import check
from parity.checkup.habits import habits
from parity.checkup.search import fit
from parity.checkup.subjects import IncomparableError, adapt, known_name, load
from parity.checkup.weights import UnreadableError, gate_letters, merges, readings
from parity.grid.verdict import Verdict
from parity.mutants.catalogue import FAMILIES
from parity.mutants.definition import Example
from parity.mutants.variants import Variant, plain
from parity.testing import ParityTests

EXPECTED = [*strangers.EXPECTED, *reached.EXPECTED]


def diagnose(cls, as_=None):
    return Doctor(adapt(cls, as_)).diagnose()


@pytest.mark.parametrize(("cls", "as_"), [(cls, as_) for cls, as_, verdict, _ in EXPECTED if verdict == "same"])
def test_a_right_module_is_not_accused_however_it_keeps_its_weights(cls, as_):
    diagnosis = diagnose(cls, as_)
    assert diagnosis.same, str(diagnosis)
    assert "one layer" in diagnosis.passed


@pytest.mark.parametrize(("cls", "as_", "words"), [(cls, as_, words) for cls, as_, verdict, words in EXPECTED if words])
def test_a_wrong_module_is_named(cls, as_, words):
    doctor = Doctor(adapt(cls, as_))
    doctor.diagnose()
    found = [finding.what for finding in (*doctor.diagnosis.findings, *habits(doctor))]
    assert any(words in name for name in found), found
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "as_"), [(cls, as_) for cls, as_, verdict, _ in reached.EXPECTED if verdict == "same"])
def test_a_right_module_passes_all_cases_however_it_is_reached(cls, as_):
    result = check(cls, as_, raises=False)
    assert result.exit_code == 0, str(result)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "probe"), [(starts.LayersGRU, "two layers"), (starts.CarriedLSTM, "two directions")])
def test_a_difference_under_a_reading_that_may_be_wrong_is_neither_torchs_nor_an_accusation(cls, probe):
    result = check(cls, raises=False)
    assert (result.outcome, result.exit_code) == ("unread", 2)
    assert f"in {probe}" in result.headline
    assert "either its parameters are read wrongly there or it is not torch.nn's" in result.verdict
    assert "def weights" in result.template
    assert any(row.verdict.passes for row in result.rows)


@pytest.mark.slow
def test_a_difference_under_a_reading_that_was_right_before_is_a_difference():
    result = check(starts.OnesLSTM, raises=False)
    assert [one.probe for one in result.diagnosis.unexplained] == ["no hx"]
    assert (result.outcome, result.exit_code) == ("different", 1)
    assert check(starts.TwoWayLSTM, raises=False).same


class WritingGRU(nn.GRU):
    """Writes on the state that it is given."""

    def forward(self, x, hx=None):
        output, h_n = super().forward(x, hx)
        if hx is not None:
            hx.copy_(h_n)
        return output, h_n


class StatelessGRU(nn.GRU):
    def forward(self, x, lengths=None):
        return super().forward(x if lengths is None else x[: int(max(lengths))])


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (WritingGRU, "with a state it raises: RuntimeError: a leaf Variable"),
        (StatelessGRU, "forward takes no state"),
    ],
)
def test_why_no_state_is_given_is_said_as_it_is(cls, said):
    diagnosis = diagnose(cls, "GRU")
    assert diagnosis.left_out["hx"].startswith(said)
    assert diagnosis.names == ["h_0 is written to"] * (cls is WritingGRU)


class ByNameGRU(nn.GRU):
    def forward(self, x, *, hidden=None):
        return super().forward(x, hidden)


class ThirdGRU(nn.GRU):
    def forward(self, x, lengths=None, initial_state=None):
        return super().forward(x if lengths is None else x[: int(max(lengths))], initial_state)


class AfterUnusedGRU(nn.GRU):
    def forward(self, x, mask=None, h0=None):
        return super().forward(x, h0)


class PairByNameLSTM(nn.LSTM):
    def forward(self, x, *, c0=None, h0=None):
        return super().forward(x, None if h0 is None else (h0, self.cell_of(c0)))

    def cell_of(self, c0):
        return c0


class CellIgnoredLSTM(PairByNameLSTM):
    def cell_of(self, c0):
        return 0 * c0


class ThirdIgnoredGRU(nn.GRU):
    def forward(self, x, mask=None, state=None):
        return super().forward(x)


class HiddenThenCellLSTM(nn.LSTM):
    def forward(self, x, hidden=None, *, cell=None):
        return super().forward(x, None if hidden is None else (hidden, cell))


@pytest.mark.parametrize(
    ("cls", "reasons"),
    [
        (ByNameGRU, ["forward takes its state as hidden, not second"]),
        (ThirdGRU, ["forward takes its state as initial_state, not second"]),
        (AfterUnusedGRU, ["forward takes its state as h0, not second"]),
        (PairByNameLSTM, ["forward takes its states as h0 and c0, not as one pair"]),
        (HiddenThenCellLSTM, ["forward takes its states as hidden and cell, not as one pair"]),
        (CellIgnoredLSTM, ["c_0 is ignored", "forward takes its states as h0 and c0, not as one pair"]),
        (ThirdIgnoredGRU, ["h_0 is ignored", "forward takes its state as state, not second"]),
    ],
)
def test_a_state_that_is_not_second_is_passed_by_its_name(cls, reasons):
    diagnosis = diagnose(cls)
    assert diagnosis.reasons == reasons
    assert "hx" not in diagnosis.left_out
    assert diagnosis.interface_alone is (len(reasons) == 1)


class DictStateGRU(nn.GRU):
    """Right; takes its state as a dictionary."""

    def forward(self, x, mask=None, state=None):
        return super().forward(x, state and state["h"])


class SecondDictStateGRU(DictStateGRU):
    def forward(self, x, state=None):
        return super().forward(x, None, state)


class BatchFirstDictStateGRU(DictStateGRU):
    def forward(self, x, mask=None, state=None):
        output, h_n = super().forward(x.transpose(0, 1), mask, state)
        return output.transpose(0, 1), h_n


@pytest.mark.parametrize("cls", [DictStateGRU, SecondDictStateGRU, BatchFirstDictStateGRU])
def test_what_offers_a_state_that_could_not_be_passed_is_not_passed(cls):
    result = check(cls, raises=False)
    assert (result.exit_code, result.diagnosis.accused) == (2, False)
    assert result.headline == f"{cls.__name__} could not be compared with torch.nn.GRU in hx"
    assert "with state given it raises: " in result.verdict
    assert result.rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (stacks.EvalDropoutLSTM, "dropout in eval mode"),
        (starts.KeptStateGRU, "the state is kept from one call to the next"),
        (starts.RandomLSTM, "its initial state is drawn at random"),
    ],
)
def test_one_mistake_is_not_found_again_under_other_names(cls, name):
    diagnosis = check(cls, raises=False).diagnosis
    assert diagnosis.names == [name]
    assert diagnosis.others == []


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("detaches", [False, True])
def test_gradients_are_compared_through_an_output_that_is_returned_alone(last, detaches):
    class Encoder(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(input_size, hidden_size), nn.Linear(hidden_size, 3)

        def forward(self, x, hx=None):
            h, c = (x.new_zeros(x.size(1), self.cell.hidden_size),) * 2 if hx is None else (hx[0][0], hx[1][0])
            ys = []
            for v in x:
                h, c = self.cell(v, (h.detach() if detaches else h, c))
                ys.append(h)
            return self.head(ys[-1]) if last else torch.stack(ys)

    result = check(Encoder, "LSTM", raises=False)
    assert "hx" not in result.diagnosis.not_offered
    assert "gradients" not in result.diagnosis.not_run
    assert result.diagnosis.interface_alone is not detaches
    assert ("h is detached in the gates" in result.verdict) is detaches, result.verdict


# Reading


def shapes(**own):
    return {name: tuple(shape) for name, shape in own.items()}


def of_torch(kind, layers=1, bidirectional=False):
    module = getattr(nn, kind)(5, 7, layers, bidirectional=bidirectional)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def lines(own, kind, **options):
    return list(readings(own, of_torch(kind, **options), kind)[0].lines())


def test_the_letters_of_the_documentation_are_gates():
    own = {f"{w}_{s}{g}": (7, *([5] if s == "i" else [7])[: w == "W"]) for g in "ifgo" for w in "Wb" for s in "ih"}
    read = lines(own, "LSTM")
    assert "W_hg = weight_hh[gate g]" in read
    assert "b_hf = bias_hh[gate f]" in read
    assert gate_letters(["W_ii", "W_if", "W_ig", "W_io"], "ifgo") == list("ifgo")


def test_gates_may_be_a_dimension_and_biases_columns():
    own = shapes(wx=(3, 7, 5), wh=(3, 7, 7), bx=(21, 1), bh=(21, 1))
    assert lines(own, "GRU") == ["wx = weight_ih", "wh = weight_hh", "bx = bias_ih", "bh = bias_hh"]
    assert merges((21, 5), [3, 7, 5], (0, 1, 2))
    assert not merges((21, 6), [3, 7, 5], (0, 1, 2))


def test_layers_in_lists_and_directions_by_name():
    own = shapes(**{"W.0": (28, 5), "W.1": (28, 7), "U.0": (28, 7), "U.1": (28, 7), "b.0": (28,), "b.1": (28,)})
    assert lines(own, "LSTM", layers=2)[1] == "W.1 = weight_ih_l1"
    both = shapes(**{"bw.x": (7, 5), "bw.h": (7, 7), "fw.x": (7, 5), "fw.h": (7, 7)})
    assert lines(both, "RNN", bidirectional=True)[0] == "bw.x = weight_ih_l0_reverse"


def test_a_number_within_a_layer_is_not_the_layers_number():
    """Above the first layer both matrices of a gate are of one shape: the layer below tells them apart."""
    own = {
        f"layers.{layer}.{gate}.{k}.weight": (7, 5 if layer == k == 0 else 7)
        for layer in (0, 1) for gate in ("reset", "update", "new") for k in (0, 1)
    }  # fmt: skip
    read = lines(own, "GRU", layers=2)
    assert "layers.1.reset.0.weight = weight_ih_l1[gate r]" in read
    assert "layers.1.new.1.weight = weight_hh_l1[gate n]" in read


def test_a_module_is_asked_for_its_layers():
    module = nn.ModuleList()
    net = nn.LSTM(5, 7, 2)

    class Turned(nn.Module):
        """Its upper layer's cell is called first."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LSTMCell(7, 7), nn.LSTMCell(5, 7)

        def forward(self, x):
            zeros = [x.new_zeros(x.size(1), 7) for _ in range(4)]
            lower, upper = tuple(zeros[:2]), tuple(zeros[2:])
            for v in x:
                lower = self.second(v, lower)
                upper = self.first(lower[0], upper)
            return upper[0], (torch.stack([lower[0], upper[0]]), torch.stack([lower[1], upper[1]]))

    turned = Turned().double()
    own = {name: tuple(p.shape) for name, p in turned.named_parameters()}
    layout = readings(own, {n: tuple(p.shape) for n, p in net.named_parameters()}, "LSTM", turned)[0]
    assert layout.how == "by asking the module"
    assert "first.weight_ih = weight_ih_l1" in list(layout.lines())
    assert len(module) == 0


def test_what_no_reading_fits_cannot_be_read():
    with pytest.raises(UnreadableError, match="not to be found in w"):
        readings(shapes(w=(3, 11)), of_torch("LSTM"), "LSTM")


class OneVectorLSTM(nn.Module):
    """One long vector for each layer: no shape says what is what."""

    def __init__(self, input_size, hidden_size, num_layers=1):
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        for layer in range(num_layers):
            below = hidden_size if layer else input_size
            vector = torch.randn(4 * hidden_size * (below + hidden_size + 1))
            self.register_parameter(f"flat{layer}", nn.Parameter(vector))

    def forward(self, x, hx=None):
        H = self.hidden_size
        zeros = x.new_zeros(self.num_layers, x.size(1), H)
        hx, ends = (zeros, zeros) if hx is None else hx, []
        for layer in range(self.num_layers):
            below, outputs = x.size(-1), []
            w, u, b = getattr(self, f"flat{layer}").split([4 * H * below, 4 * H * H, 4 * H])
            h, c = hx[0][layer], hx[1][layer]
            for v in x:
                i, f, g, o = (v @ w.view(4 * H, below).T + h @ u.view(4 * H, H).T + b).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            x = torch.stack(outputs)
            ends.append((h, c))
        return x, tuple(map(torch.stack, zip(*ends, strict=True)))


@pytest.mark.slow
def test_a_map_to_fill_in_is_written_and_once_filled_in_says_it_all(tmp_path, capsys):
    target, file = f"{__file__}:OneVectorLSTM", tmp_path / "maps.py"
    assert main(["check", target]) == 2
    assert "--write-map maps.py" in capsys.readouterr().out
    assert main(["check", target, "--write-map", str(file)]) == 0
    assert f"--map {file}:weights" in capsys.readouterr().out
    assert main(["check", target, "--map", f"{file}:weights"]) == 2
    assert "it leaves 'flat0' open" in capsys.readouterr().out
    text = file.read_text()
    for layer in (0, 1):
        names = (f"weight_ih_l{layer}", f"weight_hh_l{layer}")
        whole = ", ".join(f"w['{name}'].flatten()" for name in names)
        bias = f"w['bias_ih_l{layer}'] + w['bias_hh_l{layer}']"
        text = text.replace(f'"flat{layer}": ...', f'"flat{layer}": torch.cat([{whole}, {bias}])')
    file.write_text(text)
    assert main(["check", target, "--map", f"{file}:weights"]) == 0
    assert "no layers" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["check", target, "--write-map", str(file)])
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        (lambda w: [], "it returns a list"),
        (lambda w: {}, "it says nothing of flat0"),
        (lambda w: {"flat0": w["weight_ih_l0"], "flat1": None}, "there is no flat1"),
        (lambda w: {"flat0": w["weight_ih_l0"]}, "of shape [20, 6], it is [240]"),
        (lambda w: {"flat0": w["weights"]}, "KeyError: 'weights'"),
    ],
)
def test_a_wrong_map_gets_a_sentence(weight_map, said):
    result = check(OneVectorLSTM, weight_map=weight_map, raises=False)
    assert result.outcome == "unread"
    assert said in result.verdict


def test_a_map_of_one_layer_leaves_two_layers_aside():
    def weights(w):
        return {"flat0": torch.cat([w["weight_ih_l0"].flatten(), w["weight_hh_l0"].flatten(),
                                    w["bias_ih_l0"] + w["bias_hh_l0"]])}  # fmt: skip

    diagnosis = Doctor(adapt(OneVectorLSTM, weight_map=weights)).diagnose()
    assert diagnosis.same
    assert "says nothing of flat1" in diagnosis.not_run["two layers"]


def test_a_module_without_biases_is_torchs_without_biases():
    class Bare(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.cell = nn.RNNCell(input_size, hidden_size, bias=False)

        def forward(self, x, h=None):
            return self.cell(x, h)

    diagnosis = diagnose(Bare, "RNNCell")
    assert diagnosis.same, str(diagnosis)
    assert diagnosis.not_offered["bias"] == "it has no biases"


def test_a_gru_of_one_bias_is_compared_with_torchs_of_b_hn_zero():
    class One(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size, bias=False)

        def forward(self, x, h):
            (a, b, c), (d, e, f) = self.x(x).chunk(3, -1), self.h(h).chunk(3, -1)
            r, z = torch.sigmoid(a + d), torch.sigmoid(b + e)
            return (1 - z) * torch.tanh(c + r * f) + z * h

    subject = adapt(One, "GRUCell")
    diagnosis = Doctor(subject).diagnose()
    assert diagnosis.same, str(diagnosis)
    assert any("one bias" in line for line in subject.notes)


class EquinoxGRUCell(nn.Module):
    """Right: one bias for the input, and one of the candidate for the state."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.randn(3 * hidden_size, hidden_size))
        self.bias_n, self.bias = nn.Parameter(torch.randn(hidden_size)), nn.Parameter(torch.randn(3 * hidden_size))

    def forward(self, x, h):
        (a, b, c), (d, e, f) = (x @ self.weight_ih.T + self.bias).chunk(3, -1), (h @ self.weight_hh.T).chunk(3, -1)
        r, z = torch.sigmoid(a + d), torch.sigmoid(b + e)
        return (1 - z) * torch.tanh(c + r * (f + self.bias_n)) + z * h


def test_a_bias_of_one_gate_beside_one_of_all_is_the_states():
    subject = adapt(EquinoxGRUCell)
    diagnosis = Doctor(subject).diagnose()
    assert diagnosis.same, str(diagnosis)
    assert "bias = bias_ih + bias_hh (of n bias_ih alone)" in subject.notes
    assert "bias_n = bias_hh[gate n]" in subject.notes


@pytest.mark.slow
def test_a_bias_that_may_be_misread_accuses_nobody():
    class Crossed(nn.Module):
        """Its small bias is of another gate than its name says."""

        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.x, self.h = (nn.Linear(size, 4 * hidden_size, bias=False) for size in (input_size, hidden_size))
            self.bias, self.bias_f = nn.Parameter(torch.randn(4 * hidden_size)), nn.Parameter(torch.randn(hidden_size))

        def forward(self, x, hx):
            h, c = hx
            i, f, g, o = (self.x(x) + self.h(h) + self.bias).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return (o + self.bias_f).sigmoid() * c.tanh(), c

    assert "say how they are made of torch.nn's" in diagnose(Crossed, "LSTMCell").unread


# What could not be compared


class DictGRU(nn.GRU):
    def forward(self, x, hx=None):
        output, h = super().forward(x, hx)
        return {"output": output, "h": h}


class ManyGRU(nn.GRU):
    def forward(self, x):
        output, h = super().forward(x)
        return [output, h, h, torch.Size([1])]


class RaisingGRU(nn.GRU):
    def forward(self, x):
        raise ValueError("no batch today")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (DictGRU, "it returns a dict with the keys output, h. torch.nn's return output, (h_n, c_n)"),
        (ManyGRU, "it returns a list of 4 (a tensor of shape ["),
        (RaisingGRU, "without a state: ValueError: no batch today"),
    ],
)
def test_what_the_first_call_does_otherwise_is_said(cls, said):
    result = check(cls, "GRU", raises=False)
    assert result.exit_code == 2
    assert said in result.verdict


def test_an_instance_is_refused_and_a_factory_is_taken():
    with pytest.raises(IncomparableError, match="an instance of LSTM"):
        adapt(nn.LSTM(3, 4))
    assert diagnose(lambda i, h: nn.LSTMCell(i, h), "LSTMCell").same


def test_a_partial_is_asked_for_what_it_does_by_default():
    """What it gives to **kwargs stands in no signature."""
    diagnosis = diagnose(functools.partial(nn.LSTM, num_layers=2), "LSTM")
    assert diagnosis.same
    assert "two layers" in diagnosis.passed
    result = check(functools.partial(nn.GRUCell, bias=False), "GRUCell", raises=False)
    assert result.verdict.endswith("the interface differs: bias is False where nothing is said")


def test_more_arguments_are_asked_for_and_given():
    class Wordy(nn.GRUCell):
        def __init__(self, vocab_size, input_size, hidden_size):
            super().__init__(input_size, hidden_size)

    result = check(Wordy, "GRUCell", raises=False)
    assert (result.outcome, result.exit_code) == ("unread", 2)
    assert "--init 'vocab_size=...'" in result.verdict
    assert Doctor(adapt(Wordy, "GRUCell", init={"vocab_size": 3})).diagnose().same


class LayeredLSTM(nn.LSTM):
    """Has no default where torch.nn has one."""

    def __init__(self, input_size, hidden_size, num_layers, bias):
        super().__init__(input_size, hidden_size, num_layers, bias)


def test_a_required_option_of_torchs_has_torchs_default():
    result = check(LayeredLSTM, raises=False)
    assert result.exit_code == 0
    assert {"two layers", "no bias"} <= set(result.diagnosis.passed)


@pytest.mark.slow
def test_what_init_fixes_is_not_offered_otherwise():
    result = check(LayeredLSTM, init={"num_layers": 1}, raises=False)
    assert result.exit_code == 0
    assert result.diagnosis.not_offered["two layers"] == "num_layers is fixed by --init (init=)"
    result = check(nn.GRU, init={"bias": False}, raises=False)
    assert result.exit_code == 0
    assert {(row.case.bias, row.verdict) for row in result.rows} == {(False, Verdict.BITWISE)}
    result = check(nn.GRU, init={"batch_first": True}, raises=False)
    assert result.diagnosis.names == ["input is always taken as (N, L, H_in)"]
    assert result.diagnosis.interface_alone
    result = check(nn.GRU, init={"bidirectional": True}, raises=False)
    assert result.verdict.endswith("not offered: bidirectional is fixed by --init (init=)")


def test_what_could_not_be_compared_fails_a_test_of_ones_own():
    class Raising(nn.LSTM):
        def __init__(self, input_size, hidden_size):
            raise RuntimeError("no licence")

    class Mine(ParityTests):
        subject = Raising

    with pytest.raises(AssertionError, match="its constructor raises RuntimeError: no licence"):
        Mine().test_no_mistake_is_found()
    with pytest.raises(AssertionError, match="could not be compared"):
        Mine().test_every_case_that_is_offered_agrees()


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda progress: os._exit(3), "ended with exit code 3"),
        (lambda progress: os.kill(os.getpid(), 9), "ended by SIGKILL"),
        (lambda progress: time.sleep(60), "more than 0.5 s for one step (starting)"),
        (lambda progress: sys.exit(0), "SystemExit"),
    ],
)
def test_a_process_that_ends_or_hangs_is_no_verdict(work, said):
    assert said in apart(work, 0.5, lambda what: None)["ended"]


def test_an_error_of_the_harness_is_not_laid_at_the_modules_door(monkeypatch):
    def fail(*args):
        raise KeyError("h_1")

    assert apart(fail, 60, print)["ended"] == "KeyError: 'h_1'"
    monkeypatch.setattr("parity.checkup.examine.habits", {}.__getitem__)
    ended = apart(lambda progress: check(nn.GRU), 60, print)["ended"]
    assert ended.startswith("the harness failed, not the module; please report it: KeyError")
    assert "(examine.py, line " in ended


def test_what_a_subject_prints_is_thrown_away(capfd):
    told = []

    def work(progress):
        print("flood" * 10000)
        progress("half of it")
        return {"exit": 0}

    assert apart(work, 20, told.append) == {"exit": 0}
    assert told == ["half of it"]
    assert "flood" not in capfd.readouterr().out


def test_sys_exit_in_a_forward_is_no_success(capsys, tmp_path):
    (tmp_path / "leaving.py").write_text(
        "import sys, torch\nclass LSTM(torch.nn.LSTM):\n    def forward(self, x, hx=None):\n        sys.exit(0)\n"
    )
    file = tmp_path / "report.json"
    assert main(["check", f"{tmp_path}/leaving.py:LSTM", "--json", str(file)]) == 2
    assert "it calls sys.exit(0)" in capsys.readouterr().out
    assert json.loads(file.read_text())["outcome"] == "unread"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.py:LSTM"], "none.py: there is no such file"),
        (["torch.nn:LSTN"], "did you mean LSTM"),
        (["torch.nn:LSTM", "--as", "lstn"], "only RNN, LSTM, GRU"),
        (["torch.nn:LSTM", "--json", "no/folder/x.json"], "there is no folder"),
        (["torch.nn:LSTM", "--init", "a b"], "expected NAME=VALUE"),
        ([__file__], "expected"),
        (["{folder}/leaves.py:LSTM"], "importing leaves: it calls sys.exit(0)"),
        (["{folder}/open.py:LSTM"], "open.py, line 1: '(' was never closed"),
    ],
)
def test_wrong_usage_is_one_line(arguments, said, capsys, tmp_path):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "open.py").write_text("class LSTM(\n")
    with pytest.raises(SystemExit) as stopped:
        main(["check", *(text.replace("{folder}", str(tmp_path)) for text in arguments)])
    assert stopped.value.code == 2
    last = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking")]
    assert len(last) == 1
    assert said in last[0]


def test_a_name_of_torchs_is_known_in_any_case():
    assert known_name("grucell") == "GRUCell"
    with pytest.raises(ValueError, match="expected"):
        load("nothing")


# Constants


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_constant_is_read_off_one_step(family):
    k = {
        "the cell is clipped to {k}": 0.3,
        "h is clipped to {k}": 0.2,
        "forget gate + {k}": 2.0,
        "what goes into the gates is clipped to {k}": 2.0,
    }.get(family.name, 0.125)
    kind = "LSTM"
    planted = Variant(plain(kind).order, (family.member(k),))
    generator = torch.Generator().manual_seed(3)

    def problem(steps):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weights = {name: randn(*parameter.shape) for name, parameter in nn.LSTM(3, 4).named_parameters()}
        return Example(kind, weights, randn(steps, 2, 3), (randn(1, 2, 4), randn(1, 2, 4)))

    first, one = problem(5), problem(1)
    found = fit([first], [planted.run(first)], plain(kind), (one, planted.run(one)))
    assert found is not None
    assert found.name in (planted.name, family.member(k).name)


# Arrays


def arrays():
    generator = torch.Generator().manual_seed(0)
    module = nn.LSTM(3, 4)
    x, hx = torch.randn(5, 2, 3, generator=generator), tuple(torch.randn(1, 2, 4, generator=generator) for _ in "hc")
    with torch.no_grad():
        output, (h, c) = module(x, hx)
    named = {"input": x, "h_0": hx[0], "c_0": hx[1], "output": output, "h_n": h, "c_n": c}
    return {name: t.numpy() for name, t in (named | dict(module.state_dict())).items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a | {"weights_ih_l0": a.pop("weight_ih_l0")}, "weights_ih_l0: torch.nn.LSTM has no such array"),
        (lambda a: {n: t for n, t in a.items() if n != "input"}, "input is missing"),
        (lambda a: a | {"h_0": a["h_0"][0]}, r"h_0 has shape \[2, 4\]: with the other arrays it should be \[1, 2, 4\]"),
        (lambda a: a | {"input": np.full((5, 2, 3), np.nan)}, "input has a NaN"),
        (lambda a: a | {"input": a["input"].astype(int)}, "input has numbers of int64"),
    ],
)
def test_wrong_arrays_get_a_sentence(change, said):
    with pytest.raises(ValueError, match=said):
        check_arrays(change(arrays()))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_a_file_that_has_no_arrays_gets_a_sentence(content, tmp_path, capsys):
    file = tmp_path / "numbers.npz"
    file.write_bytes(content)
    for name, said in ((file, "as numpy.savez writes it"), (tmp_path / "none.npz", "there is no such file")):
        with pytest.raises(SystemExit, match="2"):
            main(["check", str(name)])
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_arrays_say_which_of_them_differs_first():
    wrong = arrays()
    wrong["output"][3:] += 0.1
    result = check_arrays(wrong, raises=False)
    assert result.outcome == "different"
    assert any(note.startswith("output differs first at step 3") for note in result.notes)
    assert "h_n is torch.nn's" in result.notes
    assert result.seconds < 60


def test_what_has_no_parameters_gets_a_sentence():
    class FrozenGRU(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.register_buffer("weight_ih", torch.randn(3 * hidden_size, input_size))

    class AtFirstCallGRU(nn.Module):
        def __init__(self, input_size, hidden_size):
            super().__init__()

    assert "its weights are buffers" in check(FrozenGRU, raises=False).verdict
    assert "if it makes them at its first call" in check(AtFirstCallGRU, raises=False).verdict
    made = {}
    exec(adapt(FrozenGRU).reader.template(), made)
    assert made["weights"]({}) == {}
