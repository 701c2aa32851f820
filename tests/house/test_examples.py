"""Each example, run as a user runs it: in a directory of its own, offline, with and without matplotlib."""

import ast
import csv
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rnnkit

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str, cwd: Path, path: tuple[Path, ...] = ()) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    return result.stdout


@pytest.fixture
def without_matplotlib(tmp_path: Path) -> Path:
    """A directory that, put first on the path, makes `import matplotlib` fail."""
    hidden = tmp_path / "hidden" / "matplotlib"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')\n")
    return hidden.parent


def airline() -> np.ndarray:
    with (EXAMPLES / "airline.csv").open() as file:
        return np.array([[float(number) for number in row[1:]] for row in list(csv.reader(file))[1:]])


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_asks_a_question_in_fewer_than_100_lines(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) < 100
    assert text.startswith('"""')
    assert "?" in text.split("\n\n")[0]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_use_the_public_face_only(name: str) -> None:
    """`import rnnkit` and what it lists in `__all__`; nothing of its files, nothing of parity."""
    nodes = list(ast.walk(ast.parse((EXAMPLES / name).read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module: node.names for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not [name for name in (*imported, *modules) if name.startswith(("rnnkit.", "parity"))]
    named = {alias.name for alias in modules.get("rnnkit", ())}
    named |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rnnkit"}
    assert named <= set(rnnkit.__all__)


@pytest.mark.slow
def test_swapping_the_module_leaves_the_loss_as_it_was(tmp_path: Path) -> None:
    text = run("swap_in.py", "--steps", "8", cwd=tmp_path)
    curves = np.array([[float(x) for x in row] for row in re.findall(r"^ +\d+ +(\S+) +(\S+) +(\S+) +█", text, re.M)])
    onednn, native, ours = curves.T
    assert len(curves) == 8
    assert ours[-1] < ours[0] - 0.5
    np.testing.assert_allclose(ours, native, rtol=1e-5)
    np.testing.assert_allclose(ours, onednn, rtol=1e-5)
    verdict = re.search(r"^rnnkit and nn: +(.*)$", text, re.M).group(1)
    assert verdict == "equal bit for bit at every step" or float(verdict.split()[-1]) < 1e-4
    assert "The statement " in text


def test_the_airline_series_is_the_published_one() -> None:
    series = airline()
    assert series.shape == (12, 12)
    assert series[0].tolist() == [112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118]
    assert series[-1].tolist() == [417, 391, 419, 461, 472, 535, 622, 606, 508, 461, 390, 432]
    assert series.sum() == 40363


@pytest.mark.slow
def test_the_gru_forecasts_better_than_the_year_before(tmp_path: Path, without_matplotlib: Path) -> None:
    text = run("forecast.py", "--steps", "10", cwd=tmp_path, path=(without_matplotlib,))
    rows = re.findall(r"^(19\d\d)-\d\d +(.*)$", text, re.M)
    assert len(rows) == 5
    series = airline()
    for first, cells in rows:
        at = int(first) - 1949
        error = series[at : at + 2] - series[at - 1]
        errors = [float(cell.rstrip("%")) for cell in cells.split()]
        relative = 100 * np.abs(error / series[at : at + 2]).mean()
        np.testing.assert_allclose(errors[:3], [np.abs(error).mean(), np.sqrt((error**2).mean()), relative], atol=0.051)
        assert (np.array(errors[6:]) < errors[:3]).all()
    assert "no picture: matplotlib is missing" in text
    assert not list(tmp_path.glob("*.png"))


def test_a_forecast_sees_nothing_of_the_years_it_is_about() -> None:
    specification = importlib.util.spec_from_file_location("forecast", EXAMPLES / "forecast.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    past = module.passengers[:10].clone()
    before = module.forecast(past, steps=2)
    module.passengers[10:] = 1.0
    assert before.shape == (2, 12)
    assert module.forecast(past, steps=2).equal(before)
    assert not module.forecast(past * past, steps=2).equal(before)


@pytest.mark.slow
def test_gates_open_and_close_when_they_should(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = run("watch_the_gates.py", "--picture", "seen.png", cwd=tmp_path)
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert all(float(off) < 1e-6 for off in re.findall(r"differ by (\S+)", text))
    lstm, gru = (panel.splitlines() for panel in text.split("\n\n")[:2])

    def gates(lines: list[str]) -> dict[str, np.ndarray]:
        return {line.split()[0]: np.array([float(value) for value in line.split()[1:]]) for line in lines[1:-1]}

    command, seen = np.array(lstm[0].split()[1:]), gates(lstm)
    write, ask = command == "write", command == "ask"
    assert len(command) == 12
    for letter, opened in (("i", write), ("f", ~write), ("o", ask)):
        assert (seen[letter][opened] > 0.8).all()
        assert (seen[letter][~opened] < 0.2).all()
    held = np.array([seen["x"][write][np.cumsum(write)[t] - 1] for t in range(12)])
    assert (np.sign(seen["c"]) == held).all()
    assert (np.abs(seen["h"])[~ask] < 0.2).all()

    command, seen = np.array(gru[0].split()[1:]), gates(gru)
    hold, flip, bit = command == "hold", command == "flip", []
    for word, x in zip(command, seen["x"], strict=True):
        bit.append(x if word == "write" else -bit[-1] if word == "flip" else bit[-1])
    assert (np.sign(seen["h"]) == bit).all()
    assert (seen["z"][hold] > 0.8).all()
    assert (seen["z"][~hold] < 0.2).all()
    assert seen["r"][flip].min() > seen["r"][command == "write"].max() + 0.3


def test_shapes_are_torchs_and_the_cell_in_a_loop_is_the_layer(tmp_path: Path) -> None:
    text = run("cells_and_layers.py", cwd=tmp_path)
    assert re.search(r"^  weight_ih_l1_reverse +\(11, 22\) +\(44, 22\) +\(44, 4\) +\(33, 22\)$", text, re.M)
    assert re.search(r"^  c_n +- +\(4, 3, 11\) +\(4, 3, 11\) +-$", text, re.M)
    assert re.search(r"^  weight_hh +\(11, 11\) +\(44, 11\) +\(33, 11\)$", text, re.M)
    differences = [float(value) for value in re.findall(r"(?:output|h_n|c_n) (\d\S+)", text.split("the cell,")[1])]
    assert len(differences) == 7
    assert max(differences) < 1e-15


LIGHT = EXAMPLES / "remember_the_light.py"


def light(old: str = "", new: str = "") -> dict[str, Any]:
    """What the example defines, with a mistake in place of what is right."""
    text = LIGHT.read_text()
    assert old in text
    names: dict[str, Any] = {"__name__": "light"}
    exec(compile(text.replace(old, new, 1) if old else text, str(LIGHT), "exec"), names)
    return names


def off(names: dict[str, Any], run: str) -> float:
    """How far the outputs are from those of torch.nn for every episode alone."""
    torch.manual_seed(0)
    native = torch.nn.LSTM(3, names["H"])
    ours = rnnkit.LSTM(3, names["H"])
    ours.load_state_dict(native.state_dict())
    episodes = names["walk"]()
    found = names[run](ours, episodes)
    worst = 0.0
    for n in range(found.size(1)):
        begins = [*episodes.first[:, n].nonzero().flatten().tolist(), len(found)]
        for a, b in itertools.pairwise(begins):
            worst = max(worst, (native(episodes.seen[a:b, n])[0] - found[a:b, n]).abs().max().item())
    return worst


@pytest.mark.parametrize("run", ["at_once", "step_by_step"])
def test_each_episode_is_run_as_if_it_were_alone(run: str) -> None:
    assert off(light(), run) < 1e-6


@pytest.mark.parametrize(
    ("mistake", "run", "old", "new"),
    [
        ("a step late", "at_once", "resets=episodes.first", "resets=episodes.first.roll(1, 0)"),
        ("a step late", "step_by_step", "episodes.first, strict", "episodes.first.roll(1, 0), strict"),
        ("done taken for first", "at_once", "resets=episodes.first", "resets=episodes.first.roll(-1, 0)"),
        ("done taken for first", "step_by_step", "episodes.first, strict", "episodes.first.roll(-1, 0), strict"),
        ("c is not reset", "step_by_step", "c * stays", "c"),
        ("c is not reset", "at_once", "resets=", "reset_to=(torch.zeros(1, N, H), torch.ones(1, N, H)), resets="),
    ],
)
def test_the_mistakes_of_other_libraries_would_be_seen(mistake: str, run: str, old: str, new: str) -> None:
    assert off(light(old, new), run) > 1e-3, mistake


@pytest.mark.slow
def test_an_agent_learns_to_remember_by_the_same_losses_either_way(tmp_path: Path) -> None:
    text = run("remember_the_light.py", "--updates", "60", cwd=tmp_path)
    rows = [line.split() for line in text.splitlines()[1:11]]
    assert all(row[2] == row[3] for row in rows)
    assert float(rows[0][1].rstrip("%")) < 70
    assert float(rows[-1][1].rstrip("%")) > 90
    assert float(re.search(r"^losses differ by (\S+) at most$", text, re.M).group(1)) < 1e-9
    assert re.search(r"^once with resets \d+\.\d\d s, step by step \d+\.\d\d s: ", text, re.M)


def test_every_cell_counts_and_says_its_size(tmp_path: Path) -> None:
    """Of 24 units that read one number: G gates with W and b, and what an equation has besides."""
    rows = [line.rsplit(maxsplit=3) for line in run("count.py", "--updates", "2", cwd=tmp_path).splitlines()[1:]]
    sizes = {name: int(size) for name, size, *_ in rows}
    full = {G: 24 * G * (1 + 24 + 2) for G in (2, 3, 4)}
    assert sizes == {
        "layer-normalised LSTM": 24 * 4 * (1 + 24) + 4 * 24 * 4 + 2 * 24,
        "peephole LSTM": full[4] + 3 * 24,
        "MGU": full[2],
        "minGRU": 24 * 2 * 2,
        "sLSTM": full[4],
        **dict.fromkeys(("GRU", "GRU, zoneout", "GRU, dropout"), full[3]),
        **dict.fromkeys(("LSTM", "LSTM, zoneout"), full[4]),
    }


def test_a_plot_has_a_band_for_each_letter_and_a_line_for_each_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    plot = importlib.import_module("plot").plot
    rnn, x = rnnkit.LSTM(3, 4), torch.randn(6, 2, 3)
    seen = rnnkit.trace(rnn, x).seen["l0"]
    axes = plot(seen, row=1)
    assert [text.get_text().split()[-1] for text in axes.get_yticklabels()] == ["i", "f", "g", "o", "c", "h"]
    gates, signed = (image.get_array() for image in axes.get_images())
    for k, letter in enumerate("ifgoch"):
        drawn, other = (gates, signed) if letter in "ifo" else (signed, gates)
        assert np.allclose(drawn[4 * k : 4 * k + 4], seen[letter][:, 1].detach().T)
        assert other.mask[4 * k : 4 * k + 4].all()
    one = rnnkit.trace(rnnkit.GRU(3, 1), x[:, 0]).seen["l0"]
    axes = plot(one, steps=list("abcabc"), watch={"z": "b"})
    framed = [text for text in axes.texts if text.get_bbox_patch() is not None]
    assert [text.get_position() for text in framed] == [(1, 1), (4, 1)]
    assert [text.get_text() for text in framed] == [f"{one['z'][t, 0]:.2f}" for t in (1, 4)]
    with pytest.raises(ValueError, match="steps should be 6 words, got: 2"):
        plot(one, steps=["a", "b"])
