"""The pages are true: their equations are the code, their code runs, their commands are the gate's."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import rnnkit
from rnnkit import equations

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in [ROOT / "README.md", *ROOT.glob("*/README.md")]}
BLOCKS = {  # of Python, by the page and section they stand in
    f"{page}, {section.split(chr(10))[0].lstrip('# ')}": re.findall(
        r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE
    )
    for page, text in PAGES.items()
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE)
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
def test_a_section_of_a_page_runs_as_it_is_pasted(section):
    """Block by block into a new interpreter, so that each section imports what it names."""
    torch.manual_seed(0)
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS[section], 1):
        exec(compile(block, f"{section}, block {number}", "exec"), names)


def test_the_gate_runs_the_readme_s_own_test_command():
    (command,) = (block.strip() for block in SHELL if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_section_that_a_page_links_to_is_there(page):
    targets = re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page])
    for target in targets:
        path, _, section = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if section:
            headings = re.findall(r"^#+ (.*)$", there.resolve().read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert section in anchors, f"{page}: {target}, of {anchors}"


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 220
