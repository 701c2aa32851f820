"""The benchmark measures what it says. Nothing here depends on how long anything takes."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parity.bench import gpu, measure, speed, steps
from parity.grid.subject import load
from rnnkit import graphs
from rnnkit.fast import fused


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


@pytest.mark.parametrize(
    "arguments",
    [["--threads", "0"], ["--seconds", "0"], ["--subject", "no_such_module"], ["--dry", "--limit", "0"]],
)
def test_wrong_usage_is_refused(arguments):
    with pytest.raises(SystemExit) as exit:
        measure(arguments)
    assert exit.value.code == 2


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    speed.main(
        ["--subject", "torch.nn", "--sizes", "tiny", "--kinds", "RNN", "--seconds", "0.01", "--threads", "1", "2"]
    )
    assert torch.get_num_threads() == before


def test_what_runs_on_a_gpu_runs_dry(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)  # imports for seconds
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # a minute; that it compiles, others show
    fused.compiled.cache_clear()
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "capture", lambda function: function)
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    file, kinds = tmp_path / "speed.json", ["LSTM projection", "GRU 2 layers, both directions"]
    arguments = ["--dry", "--sizes", "small", "large", "--seconds", "0.005", "--sync", "--json", str(file)]
    arguments += ["--forms", *gpu.FORMS, "--dtypes", "float32", "tf32", "--kinds", *kinds, "--ways", *gpu.WAYS]
    assert measure(arguments) == 0
    assert tf32 == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    data, printed = json.loads(file.read_text()), capsys.readouterr()
    assert (len(data["cells"]), data["synchronises"], data["left_out"]) == (3 * 2 * 2 * 2 * 2, [], {})
    for cell in data["cells"]:
        late = ["compiled"] if cell["size"] == "small" else []
        late += ["blocks"] if cell["form"] == "padded" else []
        assert {"nn", "eager", "graphed", "nn-graphed", "bound", *late} == set(cell["seconds"]) - {"fused"}, cell[
            "errors"
        ]
        assert cell["ratios"]["nn/graphed"] == cell["seconds"]["nn"] / cell["seconds"]["graphed"]
    assert "tf32, packed: rnnkit beside torch.nn" in printed.out
    assert "| GRU 2 layers, both directions | large | training | standard |" in printed.out
    assert "nn/graphed where cuDNN is persistent, goal 0.5: geometric mean" in printed.out
    assert len(printed.err.splitlines()) == len(data["cells"])


DRY = ["--dry", "--kinds", "RNN", "--dtypes", "float32", "--seconds", "0.005"]


def test_a_way_that_fails_fails_alone(capsys, monkeypatch):
    def fails(*anything, **named):
        raise RuntimeError("not this one")

    monkeypatch.setattr(torch, "compile", fails)
    assert measure([*DRY, "--sizes", "tiny", "--ways", "eager", "compiled"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| RNN | tiny | training"))
    assert "RuntimeError" in row
    assert len(row.split(" | ")) == 4 + len(("nn", "eager", "compiled", "bound", "nn/eager", "bound/nn", "MB", "MB"))


def test_cells_without_time_are_left_out_and_named(capsys):
    arguments = ["--sizes", "tiny", "long", "--ways", "eager", "compiled", "--compiled-sizes", "long", "--limit", "4"]
    assert measure([*DRY, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "| RNN | tiny |" in printed
    assert "Cells left out for want of time: float32 padded long 2\n" in printed


def test_a_graph_is_captured_after_warm_ups_and_replayed():
    calls = []

    class Cuda(steps.Dry):
        class CUDAGraph:
            def replay(self):
                calls.append("replay")

    steps.Graphed(Cuda, lambda: calls.append("step"))()
    assert calls == ["step"] * (steps.WARM_UPS + 1) + ["replay"]


def test_a_capture_that_fails_says_why():
    class Refusing(steps.Dry):
        @staticmethod
        def graph(graph, pool):
            raise RuntimeError("not this one")

    with pytest.raises(RuntimeError, match="not this one"):
        steps.Graphed(Refusing, lambda: None)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", speed.KINDS, ids=lambda kind: kind.name)
def test_the_bound_has_the_products_of_all_steps(kind, training):
    def addmm(self, a, b, **named):
        return 2 * a[0] * a[1] * b[1]

    step = steps.products(kind, 7, 8, [3] * 5, training)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm}) as counter:
        step()
    assert counter.get_total_flops() == 2 * kind.multiplications(5, 3, 7, 8, training)


@pytest.mark.parametrize(
    ("name", "size", "mode", "dtype", "form", "algorithm"),
    [
        ("LSTM", "small", "training", "float32", "padded", "persistent"),
        ("LSTM", "medium", "inference", "float32", "padded", "standard"),
        ("RNN", "medium", "training", "float32", "padded", "persistent"),
        ("RNN", "wide", "inference", "float32", "padded", "standard"),
        ("LSTM", "small", "training", "float64", "padded", "standard"),
        ("LSTM", "small", "training", "float32", "packed", "standard"),
        ("LSTM projection", "small", "training", "float32", "padded", "standard"),
        ("LSTM", "wide", "training", "float16", "padded", "persistent"),
        ("GRU", "wide", "training", "float16", "padded", "standard"),
    ],
)
def test_the_algorithm_is_the_one_of_torchs_rule(name, size, mode, dtype, form, algorithm):
    kind = next(kind for kind in speed.KINDS if kind.name == name)
    assert gpu.algorithm(kind, size, mode, dtype, form) == algorithm


def test_ragged_rows_are_measured_in_three_ways(tmp_path, capsys):
    file = tmp_path / "ragged.json"
    arguments = ["--ragged", "--kinds", "GRU", "LSTM", "--lengths", "3", "7", "--seconds", "0.01", "--json", str(file)]
    assert measure(arguments) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["kind"], row["length"]) for row in rows] == [("GRU", 3), ("GRU", 7), ("LSTM", 3), ("LSTM", 7)]
    assert all(16 <= row["steps"] <= 16 * row["length"] for row in rows)
    assert "| LSTM | 7 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        measure([*arguments, "--subject", "torch.nn"])
    assert "the subject's GRU takes no lengths=" in capsys.readouterr().err
