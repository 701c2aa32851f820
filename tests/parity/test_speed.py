"""The benchmark measures what it says. Nothing here depends on how long anything takes."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parity.bench import speed
from parity.grid.subject import load


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", speed.KINDS, ids=lambda kind: kind.name)
def test_multiplications_are_those_of_the_readable_path(kind, training):
    size = L, N, H_in, H = 5, 3, 7, 8
    module, x = kind.build(load("rnnkit", {"path": "readable"}), H_in, H), torch.randn(L, N, H_in)
    with FlopCounterMode(display=False) as counter:
        (speed.training if training else speed.inference)(module, x)()
    # The first state is zero and asks for no gradient: a product less for each layer and direction on the way back.
    D, layers = 2 if kind.options.get("bidirectional") else 1, kind.options.get("num_layers", 1)
    first = D * layers * N * module.weight_hh_l0.numel() if training else 0
    assert counter.get_total_flops() == 2 * (kind.multiplications(*size, training) - first)


def test_all_figures_are_written(tmp_path, capsys):
    file = tmp_path / "speed.json"
    arguments = ["--subject", "torch.nn", "--sizes", "tiny", "--kinds", "RNN", "LSTM", "--seconds", "0.01"]
    assert speed.main([*arguments, "--json", str(file)]) == 0
    cells = json.loads(file.read_text())["cells"]
    assert [(cell["kind"], cell["mode"]) for cell in cells] == [
        (kind, mode) for kind in ("RNN", "LSTM") for mode in ("inference", "training")
    ]
    for cell in cells:
        assert cell["ratio"] == pytest.approx(cell["theirs"] / cell["ours"])
        assert 0 < cell["roofline"] < cell["ours"]
    printed = capsys.readouterr().out
    assert "| RNN | tiny |" in printed
    assert "torch.nn by oneDNN, training" in printed


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--seconds", "0"], ["--subject", "no_such_module"]])
def test_wrong_usage_is_refused(arguments):
    with pytest.raises(SystemExit) as exit:
        speed.main(arguments)
    assert exit.value.code == 2


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    speed.main(
        ["--subject", "torch.nn", "--sizes", "tiny", "--kinds", "RNN", "--seconds", "0.01", "--threads", "1", "2"]
    )
    assert torch.get_num_threads() == before
