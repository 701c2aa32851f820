"""`python -m parity`: exit codes, options, what is printed and written."""

import json
import os
import pickle
import subprocess
import sys
from collections import Counter

import pytest
import torch

from parity.__main__ import main
from parity.grid.cases import grid, quick, select
from parity.grid.subject import load, setting

GRID = grid()
QUICK = quick(GRID)
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


@pytest.mark.slow
def test_several_processes_find_what_one_finds(broken_subject, tmp_path):
    cells = "RNNCell or LSTMCell or GRUCell"  # many, which take little time each
    expression = f"{cells} or (float64 and layers1 and bias and unbatched and (LSTM or GRU))"
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


@pytest.mark.slow
@pytest.mark.parametrize("expression", ["GRUCell and float64", "contract"])
def test_the_harness_needs_no_numpy(expression):
    code = "import sys; sys.modules['numpy'] = None; from parity.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-W", "ignore", "-c", code, "--subject", "torch.nn", "-k", expression]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No difference" in done.stdout
    assert "error" not in done.stdout
    assert ("needs NumPy was not asked" in done.stdout) == (expression == "contract")


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


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_setting_reaches_every_process(settled_subject, jobs, capsys):
    """Of fewer than 400 cases there is one process, whatever is asked for."""
    few = "layers1 and unbatched and float64"
    expression = few if jobs == "1" else "layers1 and unbatched and (float64 or float32)"
    assert (len(select(GRID, expression)) >= 400) == (jobs == "2")
    subject = ["--subject", settled_subject, "--jobs", jobs]
    assert main([*subject, "-k", few]) == 0
    assert main([*subject, "-k", expression, "--set", "scale=1.5"]) == 1
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


def test_a_check_says_what_it_does_before_torch_is_loaded():
    code = "import sys; sys.modules['torch.nn'] = None; from parity.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "x.py:LSTM"], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[0] == "checking: loading torch"


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
    main(["--subject", "torch.nn", "--quick", "-k", "layers1 and unbatched and bias"])  # a few of every axis
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
