"""Every cell of `python -m parity matrix`, that the table can't get worse unseen; and that its checks can fail."""

import json
import types

import pytest
import torch
from helpers import slow
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnkit
from parity.bench import capabilities, matrix
from parity.bench.capabilities import CAPABILITIES, OPTIONS, Bench, Capability, WrongError, close, outcome
from parity.grid.cases import CLASSES

#: Cells that say something else than *works*.
REMARKS = {"quantize_dynamic": "left as is"}

CELLS = [(row, name) for row in CAPABILITIES for name in CLASSES if row.cells or not name.endswith("Cell")]
#: Of rows that take long the quick run has one class; of those that take longest, none.
LONG = ("torch.compile", "torch.export", "processes")
SLOW = [
    (row, name)
    for row, name in CELLS
    if row.slow
    or row.name == "DistributedDataParallel"
    or ((row.group in LONG or row.name in ("linearize", "gradcheck, gradgradcheck")) and name != "GRU")
]


def called(value):
    return value.name.replace(" ", "_") if isinstance(value, Capability) else value


@pytest.mark.parametrize(("row", "name"), [*(cell for cell in CELLS if cell not in SLOW), *slow(SLOW)], ids=called)
def test_the_cell_works(row, name):
    word, message = outcome(row, rnnkit, name)
    if word == "skipped":
        pytest.skip(message)
    assert word == REMARKS.get(row.name, "works"), message


def sabotaged(spoil):
    """rnnkit's classes, whose every output goes through `spoil`."""

    def spoiled(cls):
        def forward(self, input, hx=None):
            result = cls.forward(self, input, hx)
            output, *states = (result,) if isinstance(result, torch.Tensor) else result
            packed = isinstance(output, PackedSequence)
            output = output._replace(data=spoil(output.data)) if packed else spoil(output)
            return (output, *states) if states else output

        return type(cls.__name__, (cls,), {"forward": forward})

    return types.SimpleNamespace(__name__="sabotaged", **{name: spoiled(getattr(rnnkit, name)) for name in CLASSES})


NUMERIC = [
    row
    for row in CAPABILITIES
    if row.group in ("autograd", "torch.func") and row.name not in ("vmap with dropout, randomness=",)
]


@pytest.mark.parametrize("row", NUMERIC, ids=called)
def test_a_module_that_is_off_by_one_percent_does_not_pass(row):
    word, _ = outcome(row, sabotaged(lambda y: 1.01 * y), "GRU")
    assert word == "wrong"


@pytest.mark.parametrize("row", NUMERIC, ids=called)
def test_a_module_that_is_cut_off_from_autograd_does_not_pass(row):
    word, _ = outcome(row, sabotaged(lambda y: y.detach()), "LSTM")
    values_only = row.name.startswith(("vmap over", "ensemble"))
    assert (word == "works") == values_only


def test_close_sees_a_difference_a_missing_tensor_and_another_shape():
    x = torch.ones(3)
    close([x, None], [x.double(), None])
    for wrong in ([x + 1e-3, None], [x, x], [x[:2], None], [x], [x.fill_(float("nan")), None]):
        with pytest.raises(WrongError):
            close(wrong, [torch.ones(3).double(), None])


def test_the_loop_is_torch_nn():
    for name in CLASSES:
        for options in OPTIONS[name]:
            b = Bench(nn, name, options, torch.float64)
            x, hx = b.input(), b.state()
            close(b.run(x, hx), b.truth(x, hx), rtol=1e-12, atol=1e-12)
            close(b.run(x), b.truth(x), rtol=1e-12, atol=1e-12)


def test_a_summary_names_the_classes_that_fail():
    cells = {name: {"outcome": "works"} for name in CLASSES}
    assert matrix.summary(cells) == "works"
    cells["GRU"] = {"outcome": "wrong"}
    cells["RNN"] = cells["RNNCell"] = {"outcome": "RuntimeError"}
    assert matrix.summary(cells) == "RuntimeError: RNN RNNCell; wrong: GRU"


def test_the_command_prints_the_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "matrix.json"
    assert matrix.main(["-k", "torch.func vmap over inputs", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "RuntimeError: RNN LSTM GRU LSTMCell" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())
    (row,) = json.loads(file.read_text())["rows"]
    assert row["outcomes"]["rnnkit"]["LSTM"]["outcome"] == "works"
    assert row["outcomes"]["torch.nn"]["LSTM"]["message"]


def test_cells_that_were_skipped_are_counted_apart(monkeypatch, capsys):
    row = Capability("nothing", "absent", lambda b: None, needs="no_such_package")
    monkeypatch.setattr(matrix, "CAPABILITIES", [row, *CAPABILITIES[:1]])
    assert matrix.main(["--subject", "torch.nn"]) == 0
    assert "6 of the subject's 6 cells work, 6 were skipped." in capsys.readouterr().out


def test_the_exit_code_tells_of_a_cell_that_fails(capsys):
    assert matrix.main(["-k", "vmap over inputs", "--subject", "torch.nn"]) == 1
    capsys.readouterr()


@pytest.mark.parametrize("arguments", [["-k", "no such thing"], ["--subject", "no_such_module"]])
def test_wrong_usage_is_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        matrix.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_no_row_is_lost():
    groups = [row.group for row in CAPABILITIES]
    assert {group: groups.count(group) for group in dict.fromkeys(groups)} == {
        "autograd": 12,
        "torch.func": 6,
        "torch.compile": 6,
        "torch.export": 4,
        "no steps": 3,
        "processes": 3,
        "surroundings": 12,
        "lengths and resets": 8,
    }
    assert capabilities.CAPABILITIES is CAPABILITIES
