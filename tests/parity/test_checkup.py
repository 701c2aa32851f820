"""A checkup from the outside: verdicts, exit codes, reports, the smallest case, arrays."""

import contextlib
import functools
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from subjects import correct, gradients, grus, lstms, memory, stacks, strangers
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import parity
from parity import testing
from parity.__main__ import main
from parity.checkup import locate, shrink
from parity.checkup.arrays import check_arrays
from parity.checkup.diagnose import Doctor
from parity.checkup.examine import check
from parity.checkup.probes import BASE, Probe
from parity.checkup.subjects import adapt
from parity.grid.run import Sizes
from parity.grid.verdict import Verdict
from parity.mutants.catalogue import CATALOGUE
from parity.mutants.definition import Example
from parity.mutants.orders import Order
from parity.mutants.variants import Variant
from parity.report import pages


@functools.cache
def checked(cls):
    """A checkup takes seconds: several tests look at one."""
    return check(cls, raises=False)


@pytest.fixture(scope="module")
def direction_major():
    return checked(stacks.DirectionMajorLSTM)


@pytest.fixture(scope="module")
def right():
    return check(stacks.StackGRU, raises=False)


def test_an_assertion_says_what_it_is_where_it_is_the_convention_and_what_to_do():
    with pytest.raises(AssertionError) as caught:
        check(lstms.TensorFlow)
    message = str(caught.value)
    assert "TensorFlow is not torch.nn.LSTM: gates in the order i g f o; forget gate + 1." in message
    assert "TF1 BasicLSTMCell" in message
    assert "to do: permute rows [0:H], [2H:3H], [H:2H], [3H:4H]" in message
    assert "layer 0, forward, step 0, batch row 0, unit 0, gate f" in message
    assert "rnn = nn.LSTM(1, 1)" in message


def test_a_right_module_passes(right):
    assert right.same
    assert right.exit_code == 0
    assert right.verdict == "StackGRU is torch.nn.GRU in what it offers, within rounding"
    assert {row.verdict for row in right.rows} <= {Verdict.BITWISE, Verdict.ROUNDING, Verdict.OTHER_MASKS}
    assert right.seconds < 60
    assert right.growth.kind in ("none", "rounding")  # the processor decides which


def test_torch_is_itself_bit_for_bit():
    result = check(nn.GRUCell)
    assert result.verdict == "GRUCell is torch.nn.GRUCell, bit for bit"


@pytest.mark.slow
def test_another_default_is_the_only_thing_said_of_a_module_that_is_right_otherwise():
    class BatchFirst(nn.GRU):
        def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=True, **options):
            super().__init__(input_size, hidden_size, num_layers, bias, batch_first, **options)

    result = check(BatchFirst, "GRU", raises=False)
    assert result.diagnosis.names == ["batch_first is True where nothing is said"]
    assert {row.verdict for row in result.rows} == {Verdict.BITWISE}
    assert not result.same


def test_a_function_is_asked_for_the_one_nonlinearity_it_has():
    def rnn(input, state, weights):
        h, output = state[0], []
        for x in input:
            igates = nn.functional.linear(x, weights["weight_ih_l0"], weights.get("bias_ih_l0"))
            h = torch.tanh(igates + nn.functional.linear(h, weights["weight_hh_l0"], weights.get("bias_hh_l0")))
            output.append(h)
        return torch.stack(output), h[None]

    result = check(rnn, "RNN", raises=False)
    assert result.same
    assert "relu" in result.diagnosis.not_offered


@pytest.mark.slow
def test_one_layer_draws_no_mask_so_none_excuses_it():
    class Loud(nn.GRU):
        def forward(self, input, hx=None):
            output, h_n = super().forward(input, hx)
            return (output * 1.5 if isinstance(output, torch.Tensor) else output), h_n

    result = check(Loud, "GRU", raises=False)
    masked = [row for row in result.rows if row.case.dropout == "dropout_train" and row.case.layers == 1]
    assert masked
    assert not any(row.verdict is Verdict.OTHER_MASKS for row in masked)


def test_every_pair_of_options_is_covered(right):
    pairs = {(row.case.layers, row.case.bidirectional) for row in right.rows}
    assert pairs == {(layers, both) for layers in (1, 2, 3) for both in (True, False)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ulps_count_the_numbers_between(dtype):
    one = torch.tensor([1.0, 1.0, -1.0, 0.0, 1.0], dtype=dtype)
    up = torch.tensor([2.0, 2.0, -2.0, 2.0, 2.0], dtype=dtype)
    counts = locate.ulps(one, torch.nextafter(one, up))
    assert counts[1] == 5
    assert locate.ulps(one, one)[0] == 5
    assert locate.ulps(one, up)[-1] == 5
    zero = torch.zeros(1, dtype=dtype)
    assert locate.ulps(zero, -zero)[0] == 1


def test_drift_is_told_from_a_bug():
    eps = torch.finfo(torch.float32).eps
    drift = locate.Growth(tuple(eps * 1.1**k for k in range(40)), eps)
    bug = locate.Growth((0.0, 0.0, 0.1, 0.1, 0.1), eps)
    assert drift.kind == "rounding"
    assert drift.slope == pytest.approx(math.log10(1.1))
    assert "wrong from step 2 on" in str(bug)
    assert str(locate.Growth((0.0, 0.0), eps)) == "no error at any step"


class LateLSTM(memory.TidyLSTM):
    """Goes wrong in batch row 1 at step 2."""

    def forward(self, x, hx=None):
        h, c = hx
        h, c, outputs = h[0], c[0], []
        for t, x_t in enumerate(x):
            h, c = self.step(x_t, h, c)
            if t == 2:
                h = h * torch.where(torch.arange(len(h)) == 1, 2.0, 1.0)[:, None]
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


def test_the_first_difference_is_located():
    result = check(LateLSTM, raises=False)
    place = result.location
    assert (place.layer, place.direction, place.step, place.row, place.unit) == (0, "forward", 2, 1, 0)
    assert place.subject == pytest.approx(2 * place.torch)
    assert result.diagnosis.names == []
    assert "no known variant fits" in str(result)
    assert "wrong from step 2 on" in str(result.growth)


def test_the_direction_and_layer_are_located(direction_major):
    assert (direction_major.location.layer, direction_major.location.direction) == (0, "reverse")
    assert direction_major.location.step is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "cls",
    [
        lstms.Bare,
        grus.Opposite,
        gradients.ConstantForget,
        stacks.PaddingGRU,
        stacks.DirectionMajorLSTM,
        stacks.NoDropoutGRU,
    ],
)
def test_the_script_runs_with_torch_alone_and_shows_the_difference(cls):
    result = checked(cls)
    assert "parity" not in result.script
    printed = io.StringIO()
    before = torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(result.script, "script", "exec"), {})
    finally:
        torch.set_default_dtype(before)
    theirs, ours = (re.findall(r"-?\d+\.\d*(?:e-?\d+)?", text) for text in printed.getvalue().split("tensor(")[1:])
    assert len(theirs) == len(ours) > 0
    assert max(abs(float(a) - float(b)) for a, b in zip(theirs, ours, strict=True)) > 1e-6


@pytest.mark.slow
def test_numbers_that_overflow_have_a_script_too():
    result = check(strangers.OverflowingLSTM, raises=False)
    assert result.smallest.case.special == "huge"
    assert "torch.nan" in result.script
    shown = subprocess.run([sys.executable, "-c", result.script], capture_output=True, text=True, check=True).stdout
    assert "nan" not in shown.splitlines()[0]


def test_the_smallest_case_is_small():
    result = checked(lstms.Bare)
    assert {name: result.smallest.drawn.arguments[name] for name in ("input_size", "hidden_size", "num_layers")} == {
        "input_size": 1,
        "hidden_size": 1,
        "num_layers": 1,
    }
    assert result.smallest.drawn.input.shape == (1, 1, 1)
    assert len(result.script.splitlines()) <= 16


def test_a_saved_case_is_replayed(tmp_path, capsys):
    file = tmp_path / "smallest.json"
    assert main(["check", "subjects.lstms:Bare", "--replay", str(file)]) == 1
    case, drawn = shrink.restore(file)[1:]
    assert drawn.input.shape == (1, 1, 1)
    assert case.kind == "LSTM"
    capsys.readouterr()
    assert main(["replay", str(file)]) == 1
    assert "subjects.lstms:Bare differs in output" in capsys.readouterr().out
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "target": "subjects.correct:KernelLSTM"}))
    assert main(["replay", str(file)]) == 0


SCALED = """import torch
from . import SIGN


class Cell(torch.nn.Module):
    def __init__(self, more, input_size, hidden_size):
        super().__init__()
        self.more = more
        self.inner = torch.nn.GRUCell(input_size, hidden_size)

    def forward(self, x, hx=None):
        return self.inner(SIGN * self.more * x, hx)
"""


def test_a_case_saved_in_one_folder_is_replayed_in_another(tmp_path, capsys, monkeypatch):
    (tmp_path / "there" / "package").mkdir(parents=True)
    (tmp_path / "there" / "package" / "__init__.py").write_text("SIGN = -1\n")
    (tmp_path / "there" / "package" / "rnn.py").write_text(SCALED)
    monkeypatch.chdir(tmp_path / "there")
    file = tmp_path / "smallest.json"
    assert main(["check", "package.rnn:Cell", "--as", "GRUCell", "--init", "more=2", "--replay", str(file)]) == 1
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["replay", str(file)]) == 1
    assert "package.rnn:Cell differs in h_1" in capsys.readouterr().out


FORWARD = """import os, sys, time, torch


class LSTM(torch.nn.LSTM):
    def forward(self, x, hx=None):
        {}
"""


@pytest.mark.slow
def test_a_replay_is_run_in_a_process_of_its_own(tmp_path, capsys):
    subject, file = tmp_path / "bad.py", tmp_path / "smallest.json"
    subject.write_text(FORWARD.format("return super().forward(-x, hx)"))
    assert main(["check", f"{subject}:LSTM", "--replay", str(file)]) == 1
    hangs = "print('x' * 100000) or time.sleep(60)"
    for ending, said in (("os._exit(0)", "exit code 0"), ("sys.exit(0)", "SystemExit"), (hangs, "more than 1 s")):
        subject.write_text(FORWARD.format(ending))
        capsys.readouterr()
        assert main(["replay", str(file), "--time-limit", "1"]) == 2
        assert said in capsys.readouterr().out
    for text in ("{", "[]"):
        file.write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main(["replay", str(file)])
        assert "is no case that check --replay has written" in capsys.readouterr().err


def test_exit_codes(capsys):
    assert main(["check", "subjects.correct:ScriptedLSTMCell"]) == 0
    assert main(["check", "subjects.grus:MatmulRNN"]) == 1
    for wrong in (["check", "subjects.nothing:X"], ["check", "subjects.lstms:Missing"], ["check", "subjects.lstms"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
    assert "expected PKG.MOD:NAME" in capsys.readouterr().err


def test_a_name_that_says_nothing_is_asked_for():
    with pytest.raises(ValueError, match="an LSTM, a GRU or an RNN"):
        check(nn.Linear)


# Reports


def test_json_is_complete(direction_major):
    data = json.loads(pages.as_json(direction_major))
    assert data["same"] is False
    assert data["findings"][0]["what"] == "h_n is direction-major"
    assert data["environment"]["torch"] == torch.__version__
    assert len(data["cases"]) == len(direction_major.rows)
    assert sum(data["counts"].values()) == len(direction_major.rows)


def test_junit_counts_its_cases(direction_major):
    suite = ElementTree.fromstring(pages.as_junit(direction_major))
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.get("tests")) == len(direction_major.rows) + 1
    failing = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert len(failing) == int(suite.get("failures"))
    assert failing[1:] == [row.case.name for row in direction_major.rows if not row.verdict.passes]


def test_markdown_has_the_verdict_and_the_script(direction_major):
    text = pages.as_markdown(direction_major)
    assert "**h_n is direction-major**" in text
    assert "```python\nimport torch" in text


def test_html_needs_nothing_from_elsewhere(direction_major):
    page = pages.as_html(direction_major)
    assert "http" not in page
    assert "src=" not in page

    class Balance(HTMLParser):
        """Every tag that is opened is closed."""

        stack: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br", "line", "circle", "rect", "polyline", "i"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("i", "line", "circle", "rect", "polyline"):
                assert self.stack.pop() == tag

    Balance().feed(page)
    assert Balance.stack == []


# Arrays


def numbers(variant: Variant, dtype: torch.dtype = torch.float64, layers: int = 1) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    module = nn.LSTM(3, 4, layers)
    weights = {name: randn(*weight.shape) for name, weight in module.named_parameters()}
    x, hx = randn(5, 2, 3), (randn(layers, 2, 4), randn(layers, 2, 4))
    wide = Example("LSTM", {n: w.double() for n, w in weights.items()}, x.double(), tuple(h.double() for h in hx))
    shown = {name: result.to(dtype) for name, result in variant.run(wide).items()}
    everything = weights | {"input": x, "h_0": hx[0], "c_0": hx[1]} | shown
    return {name: t.numpy() for name, t in everything.items()}


FORGET = next(deviation for deviation in CATALOGUE if deviation.name == "forget gate + 1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_from_elsewhere_are_named(dtype):
    result = check_arrays(numbers(Variant(Order("igfo"), (FORGET,)), dtype), raises=False)
    assert result.diagnosis.names == ["gates in the order i g f o", "forget gate + 1"]
    assert "Haiku" in result.diagnosis.findings[0].where
    assert check_arrays(numbers(Variant(Order("ifgo")), dtype)).same


def test_arrays_of_two_layers():
    mistake = next(deviation for deviation in CATALOGUE if deviation.name == "the layers of h_n are in reverse order")
    result = check_arrays(numbers(Variant(Order("ifgo"), (mistake,)), layers=2), raises=False)
    assert result.diagnosis.names == ["the layers of h_n are in reverse order"]


def test_arrays_that_nothing_explains():
    arrays = numbers(Variant(Order("ifgo")))
    arrays["output"] = arrays["output"] * 1.01
    with pytest.raises(AssertionError, match="no known variant fits"):
        check_arrays(arrays)
    with pytest.raises(ValueError, match="arrays need weights, input"):
        check_arrays({"input": arrays["input"]})


def problem_of(arrays: dict[str, np.ndarray], lengths: tuple[int, ...] | None = None) -> Example:
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(("weight", "bias"))}
    input = tensors["input"]
    if lengths is not None:
        input = pack_padded_sequence(input, list(lengths), enforce_sorted=False)
    return Example("LSTM", weights, input, (tensors["h_0"], tensors["c_0"]))


def named(name: str) -> Variant:
    return Variant(Order("ifgo"), tuple(deviation for deviation in CATALOGUE if deviation.name == name)[:1])


def test_arrays_that_cannot_tell_are_not_given_a_name():
    """Where both biases are the same numbers, nobody knows which one is missing."""
    arrays = numbers(named("bias_ih is missing"))
    arrays["bias_hh_l0"] = arrays["bias_ih_l0"]
    shown = named("bias_ih is missing").run(problem_of(arrays))
    result = check_arrays(arrays | {name: tensor.numpy() for name, tensor in shown.items()}, raises=False)
    assert result.diagnosis.names == []
    assert "bias_ih is missing fits, but also bias_hh is missing: these numbers cannot tell" in str(result)


@pytest.mark.parametrize("names", [[], ["the final state is taken at the padding"]])
def test_ragged_arrays(names):
    arrays, lengths = numbers(Variant(Order("ifgo"))), (5, 3)
    variant = named(names[0]) if names else Variant(Order("ifgo"))
    states = {name: t.numpy() for name, t in variant.run(problem_of(arrays, lengths)).items() if name != "output"}
    del arrays["output"]
    result = check_arrays(arrays | states | {"lengths": np.array(lengths)}, raises=False)
    assert result.diagnosis.names == names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "options", "expected"),
    [
        ("LSTM", {}, []),
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}, ["hard sigmoid, clip(x / 6 + 0.5, 0, 1)"]),
        ("GRU", {}, ["gates in the order z r n"]),
        ("GRU", {"reset_after": False}, ["gates in the order z r n", "reset before the product"]),
        ("SimpleRNN", {}, []),
    ],
)
def test_keras_by_its_numbers(layer, options, expected, monkeypatch):
    """Keras's weights under torch.nn's names, kernels turned and nothing else; its output; and the names of both."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    kind, generator = layer.removeprefix("Simple"), torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 3, generator=generator)
    module = getattr(keras.layers, layer)(6, return_sequences=True, **options)
    module(x)
    random = [torch.randn(weight.shape, generator=generator) for weight in module.get_weights()]
    module.set_weights([weight.numpy() for weight in random])
    kernel, recurrent, bias = (torch.as_tensor(weight) for weight in random)
    b_ih, b_hh = bias if bias.dim() == 2 else (bias, 0 * bias)
    weights = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh}
    states = {name: torch.zeros(1, 4, 6) for name in ("h_0", "c_0")[: 1 + (kind == "LSTM")]}
    output = torch.as_tensor(np.asarray(module(x).detach().cpu()))
    arrays = {**weights, **states, "input": x, "output": output}
    checkup = check_arrays(arrays, kind, batch_first=True, raises=False)
    assert checkup.diagnosis.names == expected, str(checkup)


def test_arrays_from_a_file(tmp_path):
    file = tmp_path / "numbers.npz"
    np.savez(file, **numbers(Variant(Order("iofg"))))
    assert main(["check", str(file), "--as", "LSTM"]) == 1
    np.savez(file, **numbers(Variant(Order("ifgo"))))
    assert main(["check", str(file)]) == 0


@pytest.mark.slow
def test_other_masks_are_not_a_mistake_and_are_said():
    """Dropout one row at a time draws other masks from the same generator."""

    class RowwiseLSTM(stacks.StackLSTM):
        def between(self, x, layer):
            if layer == self.num_layers - 1:
                return x
            return torch.stack([nn.functional.dropout(row, self.dropout, self.training) for row in x.unbind(1)], 1)

    result = check(RowwiseLSTM, raises=False)
    assert result.same, str(result)
    assert result.counts[Verdict.OTHER_MASKS] > 0


def test_a_problem_of_given_sizes():
    doctor = Doctor(adapt(correct.TheLSTM))
    case, _ = doctor.draw(Probe("", (), {"layers": 2, "bidirectional": True, "form": "packed"}), 0)
    drawn = shrink.drawn_anew(case, Sizes(1, 2, 0, 2, (2, 1)))
    seen = doctor.run(case, drawn)
    assert not seen.error
    assert seen.tensors["h_n"].shape == (4, 2, 2)
    assert seen.tensors["output"].shape == (3, 4)
    assert doctor.run(*doctor.draw(BASE, 0)).error == ""


def test_a_batch_is_limited_together_with_its_lengths():
    sizes = Sizes(5, 4, 3, 3, (5, 3, 2))
    assert sizes.limited("batch", 2) == Sizes(5, 4, 3, 2, (5, 3))
    assert sizes.limited("lengths", 3) == Sizes(5, 4, 3, 3, (3, 3, 2))
    assert sizes.limited("hidden", 9) == sizes


# In tests of one's own, and from one run to the next


@pytest.mark.slow
def test_an_unknown_gradient_is_told_by_its_lag():
    class FadingLSTM(gradients.LoopLSTM):
        """Half of what flows back through h is lost at each step."""

        def carry(self, h, c):
            return 0.5 * h + 0.5 * h.detach(), c

    result = check(FadingLSTM, raises=False)
    assert result.diagnosis.names == []
    assert "from the last output back to the input it is right for 1 steps" in str(result)


class TestMine(testing.ParityTests):
    subject = correct.TheGRUCell


def test_the_base_class_fails_where_the_module_is_wrong():
    class Mine(testing.ParityTests):
        subject = grus.ResetFirstGRUCell

    with pytest.raises(AssertionError, match="reset before the product"):
        Mine().test_no_mistake_is_found()
    with pytest.raises(AssertionError, match="different"):
        Mine().test_every_case_that_is_offered_agrees()


def test_the_package_offers_check():
    assert parity.check is check
    assert parity.check_arrays is check_arrays


def test_changes_between_two_runs(tmp_path, capsys):
    files = []
    for cls in (correct.TheGRUCell, grus.ResetFirstGRUCell):
        files.append(tmp_path / f"{cls.__name__}.json")
        files[-1].write_text(pages.as_json(check(cls, raises=False)))
    old, new = map(str, files)
    assert main(["compare", old, old]) == 0
    assert capsys.readouterr().out == "Nothing changed.\n"
    assert main(["compare", old, new]) == 1
    text = capsys.readouterr().out
    assert text.startswith("Worse. ")
    assert "ResetFirstGRUCell is not torch.nn.GRUCell" in text.splitlines()[2]
    assert "appeared: reset before the product" in text
    assert "within rounding -> different" in text
    assert main(["compare", new, old]) == 0
    assert capsys.readouterr().out.startswith("Better. ")
    unread = tmp_path / "unread.json"
    unread.write_text(pages.as_json(check(lambda i, h: 1 / 0, "GRUCell", raises=False)))
    assert main(["compare", old, str(unread)]) == 1
    assert capsys.readouterr().out.startswith("Worse. ")
    with pytest.raises(SystemExit) as stopped:
        main(["compare", old, str(tmp_path / "missing.json")])
    assert stopped.value.code == 2
