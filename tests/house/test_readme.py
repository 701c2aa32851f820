"""The pages are true: their equations are the code, their code runs, their commands are the gate's."""

import inspect
import re

import pages
import pytest
from pages import PAGES, ROOT

import rnnkit
from rnnkit import equations

README = PAGES["README.md"]
SHELL = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
STEPS = [equations.rnn_tanh, equations.rnn_relu, equations.lstm, equations.gru]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_the_readme_shows_the_equation_that_runs(step):
    assert any(inspect.getsource(step).strip() in block.text for block in pages.blocks("README.md"))


@pytest.fixture
def equations_as_before():
    """The page enters a recurrence of its own."""
    before = dict(rnnkit.EQUATIONS)
    yield
    rnnkit.EQUATIONS.clear()
    rnnkit.EQUATIONS.update(before)


@pytest.mark.usefixtures("equations_as_before")
@pytest.mark.parametrize("section", pages.sections())
def test_a_section_of_a_page_runs_as_it_is_pasted(section):
    """Block by block into a new interpreter: each section imports what it names, and prints what the page says."""
    for block, printed in pages.run_section(section):
        assert not pages.difference(block.text, printed)


@pytest.mark.parametrize("command", pages.cheap())
def test_a_command_on_a_page_prints_what_is_pasted_below_it(command):
    if "watch_the_gates" in command or "forecast" in command:
        pytest.importorskip("matplotlib")
    assert not pages.difference(pages.commands()[command].text, f"$ {command}\n{pages.run_command(command)}")


def test_a_command_that_takes_long_says_when_and_where_it_was_run():
    notes = [command.partition("  # ")[2] for command in pages.commands() if command not in pages.cheap()]
    assert notes
    assert all(re.match(r"\d{4}-\d\d-\d\d, .*torch \d", note) for note in notes), notes


def test_a_difference_is_seen_and_last_digits_are_not():
    assert not pages.difference("a 0.501\n...\nb 7\n", "a 0.502\nx\ny\nb 7\n")
    assert pages.difference("a 0.5\n", "a 0.6\n")
    assert pages.difference("a 0.5\n", "b 0.5\n")
    assert pages.difference("a\n...\nb\n", "a\nx\nc\n")


def test_a_link_of_code_to_a_line_is_to_the_line_that_has_it():
    pointers = [(page, *found.groups()) for page, text in PAGES.items() for found in pages.POINTER.finditer(text)]
    assert pointers
    for page, code, target, number in pointers:
        assert pages.line_of(page, code, target) == int(number), f"{page}, {code}: python tests/pages.py mends it"


def test_the_gate_runs_the_readme_s_own_test_command():
    (command,) = (block.strip() for block in SHELL if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_section_that_a_page_links_to_is_there(page):
    targets = re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page])
    for target in targets:
        path, _, section = re.sub(r"#L\d+$", "", target).partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if section:
            headings = re.findall(r"^#+ (.*)$", there.resolve().read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert section in anchors, f"{page}: {target}, of {anchors}"


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 220
