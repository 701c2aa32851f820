"""What students are shown is what runs: pictures are drawn from the code, the page's arithmetic is rnnkit's."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rnnkit

ROOT = Path(__file__).resolve().parents[2]
STUDENTS = ROOT / "examples" / "students"
NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")


def run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(STUDENTS / name), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("pictures")
    run("pictures.py", "--folder", str(folder))
    return folder


@pytest.mark.parametrize("name", sorted(path.name for path in STUDENTS.glob("*.svg")))
def test_a_picture_is_what_the_script_draws(name: str, drawn: Path) -> None:
    """The same shapes and words; a number may differ by what a processor's rounding does to a trained network."""
    committed, again = ((folder / name).read_text() for folder in (STUDENTS, drawn))
    assert NUMBER.sub("#", committed) == NUMBER.sub("#", again)
    numbers = [np.array([float(number) for number in NUMBER.findall(text)]) for text in (committed, again)]
    np.testing.assert_allclose(*numbers, atol=1.0)


def test_every_picture_that_the_script_draws_is_here(drawn: Path) -> None:
    assert {path.name for path in drawn.glob("*.svg")} == {path.name for path in STUDENTS.glob("*.svg")}


@pytest.mark.parametrize("name", sorted(path.name for path in STUDENTS.glob("*.svg")))
def test_a_picture_can_be_read_in_the_dark(name: str) -> None:
    """Every colour that it uses has another in the dark."""
    text = (STUDENTS / name).read_text()
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text.partition("</defs>")[2]))
    assert used
    assert used <= set(re.findall(r'\[style\*="(?:fill|stroke): (#[0-9a-f]{6})"\]', text))


# The page that works the formulas out by itself -----------------------------------------------------------------------

UNIT = (STUDENTS / "one_unit.html").read_text()


def script(name: str) -> str:
    return re.search(rf'<script[^>]* id="{name}">\n(.*?)</script>', UNIT, flags=re.DOTALL).group(1)


@pytest.mark.parametrize("check", json.loads(script("checks")), ids=lambda check: f"{check['mode']} {check['x'][0]}")
def test_the_numbers_in_the_page_are_rnnkits(check: dict) -> None:
    layer = getattr(rnnkit, check["mode"])(1, 1, dtype=torch.float64)
    for name, parameter in zip(("w_ih", "w_hh", "b_ih", "b_hh"), layer.parameters(), strict=True):
        parameter.data.copy_(torch.tensor(check["weights"][name], dtype=torch.float64).view_as(parameter))
    seen = rnnkit.trace(layer, torch.tensor(check["x"], dtype=torch.float64).unsqueeze(-1)).seen["l0"]
    assert seen.keys() == check["seen"].keys()
    for letter, values in seen.items():
        np.testing.assert_allclose(check["seen"][letter], values.detach().flatten(), rtol=0, atol=1e-11)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_page_s_own_arithmetic_comes_to_these_numbers() -> None:
    """And would not, were a formula wrong: the reset before the product, or a gate taken for another."""

    def furthest(arithmetic: str) -> float:
        program = f"{arithmetic}\nconsole.log(furthest({script('checks')}))"
        found = subprocess.run(["node", "-"], input=program, capture_output=True, encoding="utf-8", check=True)
        return float(found.stdout)

    arithmetic = script("arithmetic")
    assert furthest(arithmetic) < 1e-11
    for right, wrong in (
        ("n_i + r * n_h", "n_i + n_h"),
        ("f * c_before + i * g", "i * c_before + f * g"),
        ("(h_before - n) * z + n", "(n - h_before) * z + h_before"),
    ):
        assert right in arithmetic
        assert furthest(arithmetic.replace(right, wrong)) > 0.01


def test_the_page_needs_nothing_from_elsewhere() -> None:
    assert not re.findall(r"(?:src|href)=|https?:|@import|url\(|fetch\(", UNIT)
