"""The README is true: its equations are the code, its code runs, its commands are the gate's."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import rnnkit
from rnnkit import equations

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = {  # of Python, by the section they stand in
    section.split("\n")[0].lstrip("# "): re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    for section in re.split(r"^(?=## )", README, flags=re.MULTILINE)
    if "```python" in section
}
SHELL = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
STEPS = [equations.rnn_tanh, equations.rnn_relu, equations.lstm, equations.gru]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_the_readme_shows_the_equation_that_runs(step):
    assert any(inspect.getsource(step).strip() in block for blocks in BLOCKS.values() for block in blocks)


@pytest.fixture
def equations_as_before():
    """The page enters a recurrence of its own."""
    before = dict(rnnkit.EQUATIONS)
    yield
    rnnkit.EQUATIONS.clear()
    rnnkit.EQUATIONS.update(before)


@pytest.mark.usefixtures("equations_as_before")
@pytest.mark.parametrize("section", BLOCKS)
def test_a_section_of_the_readme_runs_as_it_is_pasted(section):
    """Block by block into a new interpreter, so that each section imports what it names."""
    torch.manual_seed(0)
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS[section], 1):
        exec(compile(block, f"README.md, {section!r}, block {number}", "exec"), names)


def test_the_gate_runs_the_readme_s_own_test_command():
    (command,) = (block.strip() for block in SHELL if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_the_readme_links_to_is_there():
    targets = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []
