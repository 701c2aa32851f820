"""The README is true: its equations are the code, its code runs, its commands are the gate's."""

import inspect
import re
from pathlib import Path

import pytest

from rnnkit import equations

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
STEPS = [equations.rnn_tanh, equations.rnn_relu, equations.lstm, equations.gru]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_the_readme_shows_the_equation_that_runs(step):
    assert any(inspect.getsource(step).strip() in block for block in BLOCKS)


def test_every_block_of_python_runs_in_the_order_of_the_page():
    namespace: dict = {}
    exec("from collections.abc import *; import torch; from torch import Tensor", namespace)
    namespace |= {"State": tuple, "Gates": tuple}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number} of Python", "exec"), namespace)


def test_the_gate_runs_the_readme_s_own_test_command():
    (command,) = (block.strip() for block in SHELL if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_the_readme_links_to_is_there():
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
