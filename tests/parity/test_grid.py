"""The whole parity grid on rnnkit, and the harness itself: it accuses nobody wrongly and lets nothing through."""

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import types
from collections import Counter

import pytest
import torch

import rnnkit
from parity.__main__ import main
from parity.contract import answers
from parity.contract.answers import contract, questions, reply
from parity.grid import cases, compare, engine, run, verdict
from parity.grid.cases import AXES, CELLS, CLASSES, DTYPES, KINDS, SPECIALS, Case, grid, parse, quick, select
from parity.grid.compare import Yardstick, allowance, judge, relative_error
from parity.grid.run import Precision, draw, observe, same_bits
from parity.grid.subject import load, setting
from parity.grid.verdict import Verdict
from parity.mutants import selftest
from parity.mutants.catalogue import LEVELS
from parity.mutants.module import Planted, implementation
from parity.mutants.selftest import PLANTED
from parity.mutants.spoiled import CONTROLS, SPOILED, Spoiled, spoilt

GRID = grid()
QUICK = quick(GRID)
FAST = load("rnnkit", {"path": "always fast"})
LAYER = Case("LSTM", "float64", False, 2, True, False, True, "", "padded", True)


@pytest.fixture(autouse=True)
def single_thread():
    """The cases are small, and one thread adds in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def different(cases, subject):
    results = (judge(case, subject) for case in cases)
    return [f"{result.case.name}: {result.worst}" for result in results if not result.verdict.passes]


# rnnkit ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_rnnkit_is_torch_nn_on_the_whole_grid(kind, dtype):
    assert different([case for case in GRID if (case.kind, case.dtype) == (kind, dtype)], FAST) == []


@pytest.mark.parametrize("subject", [rnnkit, FAST], ids=["rnnkit", "always fast"])
@pytest.mark.parametrize("name", CLASSES)
def test_rnnkit_keeps_the_contract(name, subject):
    said = contract(subject, classes=(name,))
    assert [answer for answer in said if answer.verdict is Verdict.DIFFERENT] == []


# Nobody is accused wrongly, nothing gets through ----------------------------------------------------------------------


def test_torch_nn_is_torch_nn_bit_for_bit():
    assert {judge(case, torch.nn).verdict for case in QUICK} == {Verdict.BITWISE}
    assert {answer.verdict for answer in contract(torch.nn)} == {Verdict.EQUAL}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_correct_implementation_is_within_rounding(name):
    assert different(QUICK, implementation(CONTROLS[name])) == []


def test_a_correct_implementation_keeps_the_contract():
    said = contract(implementation(Planted))
    assert [answer for answer in said if answer.verdict is Verdict.DIFFERENT] == []


@pytest.mark.parametrize("mutant", PLANTED, ids=lambda mutant: mutant.name)
def test_a_planted_mistake_is_found_in_each_class(mutant):
    trials = [selftest.try_mutant(mutant, name) for name in mutant.classes]
    assert [trial.class_name for trial in trials if not trial.good] == []


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda spoiled: spoiled.name)
def test_a_spoiled_harness_is_told_from_the_true_one(spoiled):
    """It overlooks what the true one finds (see above), or accuses a control."""
    trial = selftest.try_spoiled(spoiled)
    assert trial.good, trial


def test_the_selftest_does_not_shrink():
    """Whoever adds a mutant raises the numbers."""
    assert len(PLANTED) >= 253
    assert sum(len(mutant.classes) for mutant in PLANTED) >= 893
    assert len(SPOILED) >= 75
    assert tuple(dict.fromkeys(mutant.level for mutant in PLANTED)) == LEVELS
    assert len({spoiled.name for spoiled in SPOILED}) == len(SPOILED)


def test_no_mistake_is_written_twice():
    """Some have one name for diagnosis and differ in how far they go, but no two are the same change."""
    written = [(mutant.name, tuple(mutant.knobs.items())) for mutant in PLANTED]
    assert [row for row, count in Counter(written).items() if count > 1] == []


def test_each_axis_is_left_out_of_a_spoiled_grid():
    conditions = [spoiled.new for spoiled in SPOILED if spoiled.where == "grid.cases.grid"]
    assert [axis for axis in AXES if not any(f"case.{axis}" in condition for condition in conditions)] == []


def test_a_spoiled_harness_is_mended_again():
    before = [dict(vars(module)) for module in (compare, answers, engine, cases, run, verdict)]
    for spoiled in SPOILED:
        with spoilt(spoiled):
            pass
    assert [dict(vars(module)) for module in (compare, answers, engine, cases, run, verdict)] == before


def test_a_line_that_is_not_there_cannot_be_spoiled():
    gone = Spoiled("", "grid.cases.grid", "no such line", "", "")
    with pytest.raises(ValueError, match="stands 0 times"), spoilt(gone):
        pass


# The grid -------------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_full_product():
    plain = [case for case in GRID if not case.special and not case.is_cell]
    per_backend = 3 * 2 * 2 * 2 * 3 * 4 * 2  # layers, bias, batch_first, bidirectional, dropout, form, hx
    counts = Counter((case.kind, case.dtype, case.onednn) for case in plain)
    assert {count for (_, dtype, _), count in counts.items() if not dtype.startswith("complex")} == {per_backend}
    assert {count for (_, dtype, _), count in counts.items() if dtype.startswith("complex")} == {per_backend * 2 // 3}
    assert {(kind, dtype) for kind, dtype, _ in counts} == {
        (kind, dtype) for kind in KINDS for dtype in DTYPES if kind != "RNN-relu" or not dtype.startswith("complex")
    }
    assert len(GRID) > 20_000
    assert {case.special for case in GRID} == {"", *SPECIALS}


def test_names_are_unique():
    assert len({case.name for case in GRID}) == len(GRID)


def test_quick_shows_every_triple_of_axis_values():
    def triples(cases):
        values = ([(axis, getattr(case, axis)) for axis in AXES] for case in cases)
        return {triple for case_values in values for triple in itertools.combinations(case_values, 3)}

    plain = [case for case in GRID if not case.special and not case.is_cell]
    assert triples(plain) == triples(case for case in QUICK if not case.special and not case.is_cell)


def test_numbers_depend_on_the_case_and_the_seed_alone():
    again = draw(LAYER, 0)
    assert all(torch.equal(weight, again.weights[name]) for name, weight in draw(LAYER, 0).weights.items())
    assert not torch.equal(draw(LAYER, 0).weights["bias_ih_l0"], draw(LAYER, 1).weights["bias_ih_l0"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_weights_are_equal(kind):
    case = Case(kind, "float64", False, 3, True, False, True, "", "padded", True)
    drawn = torch.cat([weight.flatten() for weight in draw(case, 0).weights.values()])
    assert drawn.unique().numel() == drawn.numel()


def test_every_gradient_of_torch_nn_is_there_and_not_zero():
    for case in QUICK:
        if case.special in ("", "long", "wide", "second_call", "noncontiguous", "keywords"):
            dtype = getattr(torch, case.dtype)
            seen = observe(torch.nn, case, draw(case, 0), Precision(dtype, dtype))
            grads = {name: tensor for name, tensor in seen.tensors.items() if name.startswith("grad of")}
            parameters = len(draw(case, 0).weights) + 1 + len(draw(case, 0).hx)
            assert len(grads) == parameters
            if case.is_cell and not case.hx:  # h is zero then, and so is the gradient of what multiplies it
                assert not grads.pop("grad of weight_hh").any()
            assert all(grad is not None and grad.any() for grad in grads.values()), case.name


# Verdicts -------------------------------------------------------------------------------------------------------------


def yardstick(case):
    dtype = getattr(torch, case.dtype)
    drawn = draw(case, 0)
    theirs = observe(torch.nn, case, drawn, Precision(dtype, dtype))
    return Yardstick(case, drawn, torch.nn, theirs), theirs.tensors


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_gradient_a_thousandth_off_is_found_in_every_case(dtype):
    for case in QUICK:
        if case.dtype == dtype and case.special not in ("autocast", "empty_batch"):
            measure, tensors = yardstick(case)
            for name, grad in tensors.items():
                if name.startswith("grad of") and grad is not None and grad.any():
                    assert measure.compare(name, grad * 1.001).verdict is Verdict.DIFFERENT, (case.name, name)


def test_one_digit_in_the_last_place_is_within_rounding_and_not_bitwise():
    measure, tensors = yardstick(LAYER)
    grad = tensors["grad of weight_hh_l0"]
    nudged = torch.nextafter(grad, torch.full_like(grad, math.inf))
    assert not same_bits(grad, nudged)
    assert measure.compare("grad of weight_hh_l0", nudged).verdict is Verdict.ROUNDING


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_equal_means_equal_bits(dtype):
    tensor = torch.randn(3, 4, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    assert same_bits(tensor, tensor.clone())
    assert same_bits(tensor.t(), tensor.t().contiguous())
    assert not same_bits(tensor, tensor.t())
    assert not same_bits(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
    assert same_bits(torch.full((2,), math.nan, dtype=dtype), torch.full((2,), math.nan, dtype=dtype))
    assert not same_bits(tensor, tensor.to(torch.complex128))


def test_errors_are_relative_to_the_largest_element():
    true = torch.tensor([4.0, 0.0, -8.0], dtype=torch.float64)
    assert relative_error(torch.tensor([4.0, 0.8, -8.0]), true) == pytest.approx(0.1)
    assert relative_error(torch.tensor([4.0, math.nan, -8.0]), true) == math.inf
    assert relative_error(torch.zeros(3), torch.zeros(3, dtype=torch.float64)) == 0
    assert relative_error(torch.full((3,), 1e-30), torch.zeros(3, dtype=torch.float64)) == math.inf


def test_no_allowance_hides_a_hopeless_case():
    assert allowance(own=0.5, eps=2**-52, depth=6) < 2e-4
    assert allowance(own=0.0, eps=2**-23, depth=120) < 1e-5


def test_a_case_that_the_reference_does_not_run_is_an_error_even_if_the_subject_fails_alike():
    class Broken(torch.nn.GRUCell):
        def forward(self, *args, **kwargs):
            raise RuntimeError("Numpy is not available")

    case = next(case for case in GRID if case.kind == "GRUCell")
    both = types.SimpleNamespace(GRUCell=Broken)
    for subject, reference in ((both, both), (torch.nn, both), (both, torch.nn)):
        assert judge(case, subject, reference).verdict is Verdict.ERROR
    assert verdict.exit_code([judge(case, both, both)]) == 1


def test_torch_nn_runs_every_case():
    """So none is there for torch.nn's refusal, and an error of the reference is always an error of the run."""
    for case in QUICK:
        dtype = getattr(torch, case.dtype)
        assert observe(torch.nn, case, draw(case, 0), Precision(dtype, dtype)).error == "", case.name


@pytest.mark.parametrize("expression", ["GRUCell and float64", "contract"])
def test_the_harness_needs_no_numpy(expression):
    code = "import sys; sys.modules['numpy'] = None; from parity.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-W", "ignore", "-c", code, "--subject", "torch.nn", "-k", expression]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No difference" in done.stdout
    assert "error" not in done.stdout
    assert ("needs NumPy was not asked" in done.stdout) == (expression == "contract")


# The command line -----------------------------------------------------------------------------------------------------

ONE = "LSTM-float64-layers1-bias-unbatched-hx"


def test_no_difference_exits_with_0(capsys):
    assert main(["--subject", "torch.nn", "-k", ONE]) == 0
    assert ONE in capsys.readouterr().out


@pytest.fixture
def broken_subject(tmp_path, monkeypatch):
    """A subject whose LSTM returns c_n a little too large."""
    lines = [
        "from torch import nn",
        "from torch.nn import *",
        "class LSTM(nn.LSTM):",
        "    def forward(self, input, hx=None):",
        "        output, (h_n, c_n) = super().forward(input, hx)",
        "        return output, (h_n, c_n * 1.0001)",
    ]
    (tmp_path / "broken_subject.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "broken_subject"
    sys.modules.pop("broken_subject", None)


def test_a_difference_exits_with_1_and_tells_where_and_how_to_see_it_again(broken_subject, capsys):
    assert main(["--subject", broken_subject, "-k", "float64 and LSTM and layers1 and unbatched and not proj"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT LSTM: c_n" in out
    command = next(line for line in out.splitlines() if "python -m parity --subject broken_subject -k LSTM-" in line)
    assert main(command.split()[3:]) == 1
    assert "c_n" in capsys.readouterr().out


def test_several_processes_find_what_one_finds(broken_subject, tmp_path):
    expression = "float64 and layers1 and (LSTM or GRU)"
    for jobs in ("1", "2"):
        arguments = ["--subject", broken_subject, "-k", expression, "--jobs", jobs]
        assert main([*arguments, "--json", str(tmp_path / jobs)]) == 1
    one, two = (json.loads((tmp_path / jobs).read_text()) for jobs in ("1", "2"))
    assert one["cases"] == two["cases"]
    assert len(one["cases"]) >= 400


@pytest.mark.parametrize(
    "arguments",
    [
        ["--subject", "no.such.module"],
        ["--subject", "math"],
        ["-k", "LSTM and"],
        ["-k", "(LSTM"],
        ["-k", "LSTM GRU"],
        ["-k", "no_such_case"],
        ["--jobs", "0"],
        ["--unknown"],
        ["--ask", "Linear(3, 4)"],
        ["--set", "path"],
        ["--set", "no_such_attribute=1"],
        ["-k", "lstm (gru)"],
        ["-k", "()"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_json_tells_every_verdict(tmp_path, broken_subject):
    file = tmp_path / "report.json"
    main(["--subject", broken_subject, "-k", "LSTM-float64-layers1-bias-unbatched", "--json", str(file)])
    (single,) = json.loads(file.read_text())["cases"].values()
    expression = "float64 and layers1 and bias and unbatched"
    main(["--subject", broken_subject, "-k", expression, "--seed", "3", "--json", str(file)])
    report = json.loads(file.read_text())
    cases = report["cases"]
    assert report["subject"] == broken_subject
    assert report["seed"] == 3
    assert report["exit_code"] == 1
    assert report["environment"]["torch"] == torch.__version__
    counts = Counter(case["verdict"] for case in cases.values())
    assert report["counts"] == {name: counts[name] for name in ("bitwise", "rounding", "different", "error")}
    assert cases["GRU-float64-layers1-bias-unbatched"] == {"verdict": "bitwise", "values": "bitwise", "differences": []}
    assert single["verdict"] == "different"
    (c_n,) = [difference for difference in single["differences"] if difference["name"] == "c_n"]
    assert c_n["error"] > 100 * c_n["allowed"] > 0


@pytest.mark.parametrize("wrong", [None, "states", "control", "spoiled"])
def test_the_selftest_fails_if_a_fault_survives_a_control_is_accused_or_a_spoiled_harness_is_not_told(wrong, capsys):
    groups = {"states": "h0 ignored", "control": "a plain loop", "spoiled": "exit code always 0"}
    trials = [selftest.Trial(name, group, "GRU", group != wrong, 10, "h_n") for group, name in groups.items()]
    assert selftest.show(trials) == (wrong is not None)
    out = capsys.readouterr().out
    assert ("WRONG" in out) is (wrong is not None)
    assert wrong is None or f"WRONG  {wrong}: {groups[wrong]}" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_selftest_of_nothing_fails():
    assert selftest.show([]) == 1


@pytest.fixture
def settled_subject(tmp_path, monkeypatch):
    """A subject whose LSTM and GRU are off by what a class attribute says."""
    lines = [
        "import torch",
        "from torch.nn import *",
        "class Scaled:",
        "    scale = 1.0",
        "    def forward(self, input, hx=None):",
        "        output, states = super().forward(input, hx)",
        "        output = output._replace(data=output.data * self.scale) if isinstance(output, tuple) else output",
        "        return output if isinstance(output, tuple) else output * self.scale, states",
        "class LSTM(Scaled, torch.nn.LSTM): pass",
        "class GRU(Scaled, torch.nn.GRU): pass",
    ]
    (tmp_path / "settled_subject.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield "settled_subject"
    sys.modules.pop("settled_subject", None)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_setting_reaches_every_process(settled_subject, jobs, capsys):
    few = ["--subject", settled_subject, "--jobs", jobs, "-k", "float64 and layers1 and (LSTM or GRU or RNN)"]
    assert main(few) == 0
    assert main([*few, "--set", "scale=1.5"]) == 1
    out = capsys.readouterr().out
    assert "settled_subject, scale=1.5 against torch.nn" in out
    assert "DIFFERENT LSTM: output" in out
    assert "DIFFERENT RNN" not in out
    assert "--set scale=1.5 -k" in out


def test_a_class_with_a_setting_keeps_its_name_and_can_be_pickled(settled_subject):
    module = load(settled_subject, {"scale": 2})
    assert repr(module.LSTM(3, 4)) == "LSTM(3, 4)"
    assert module.RNN is torch.nn.RNN
    assert pickle.loads(pickle.dumps(module.GRU(3, 4))).scale == 2
    assert load(settled_subject).GRU.scale == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a=2", 2), ("a=None", None), ("a=readable", "readable"), ("a=always fast", "always fast"), ("a='x=y'", "x=y")],
)
def test_a_setting_is_a_literal_or_else_its_text(text, expected):
    assert setting(text) == ("a", expected)


def test_list_prints_the_names_and_runs_nothing(capsys):
    assert main(["--list", "--quick"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in QUICK]


def test_the_questions_of_the_contract_can_be_listed(capsys):
    assert main(["--list", "-k", "contract"]) == 0
    assert "GRUCell(3, 4) | x(2, 7)" in capsys.readouterr().out.splitlines()


def test_ask_prints_both_answers(broken_subject, capsys):
    assert main(["--subject", broken_subject, "--ask", "LSTM(3, 4) | x(5, 2, 7)"]) == 0
    assert "input.size(-1) must be equal to input_size" in capsys.readouterr().out


def test_the_report_is_at_most_100_wide(capsys):
    main(["--subject", "torch.nn", "-k", "layers1 and unbatched and bias"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [
        ("lstm", "lstm-float64", True),
        ("LSTM", "lstm-float64", True),
        ("gru", "lstm-float64", False),
        ("not gru", "lstm-float64", True),
        ("lstm and not proj", "lstm-proj-float64", False),
        ("gru or lstm and proj", "gru-float64", True),
        ("(gru or lstm) and proj", "gru-float64", False),
        ("not (gru or lstm)", "rnn-tanh", True),
        ("not not gru", "gru", True),
        ("packed", "lstm-packed_unsorted", True),
        ("unsorted", "lstm-packed_unsorted", True),
        ("bias", "lstm-nobias", False),
        ("batched", "lstm-unbatched", False),
        ("float", "lstm-bfloat16", False),
    ],
)
def test_an_expression_selects_by_the_beginnings_of_parts(expression, text, matches):
    assert parse(expression)(text) is matches


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "and",
        "lstm and",
        "or lstm",
        "not",
        "(lstm",
        "lstm)",
        "lstm gru",
        "()",
        "lstm (gru)",
        "(lstm) (gru)",
        "lstm and ()",
    ],
)
def test_an_expression_that_cannot_be_read_is_refused(expression):
    with pytest.raises(ValueError, match="-k: "):
        parse(expression)


def test_a_full_name_selects_that_case_alone():
    name = "LSTM-float64-layers1-bias-unbatched"
    assert sum(name.lower() in case.name.lower() for case in GRID) > 1
    assert [case.name for case in select(GRID, name)] == [name]


# The contract ---------------------------------------------------------------------------------------------------------


def test_torch_nn_refuses_hundreds_of_the_questions():
    replies = [reply(torch.nn, name, question).text for name, question in questions()]
    assert sum("raises" in text for text in replies) >= 600
    assert len(set(questions())) == len(list(questions()))


def test_excuses_are_few():
    assert sum("# excused" in question for _, question in questions()) <= 25
