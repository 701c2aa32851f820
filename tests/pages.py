"""The pages and what is pasted on them: run again where that is cheap, and dated where it isn't.

    python tests/pages.py --check        is everything cheap as the pages say?
    python tests/pages.py                write it
    python tests/pages.py --dated WORDS  and what is dated, where the command has WORDS: with today's date, here

A block of `text` below one of `python` is what that block prints. A block of `console` begins with a command; what
follows is its output. A command with a comment, `$ command  # date, machine`, is dated: it takes long, and is not run.
`...` stands for what is left out. A link of code to a line of a file, `path#L12`, is to the line that has this code.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from parity.bench.speed import processor

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("examples/*/README.md"))]
PAGES = {str(file.relative_to(ROOT)): file.read_text() for file in FILES}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
POINTER = re.compile(r"\[`([^`]+)`\]\(([^)#]+)#L(\d+)\)")


class Block(NamedTuple):
    """A fenced block of a page, and where its inside stands there."""

    page: str
    language: str
    text: str
    start: int
    end: int


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(page, m[1], m[2], m.start(2), m.end(2)) for m in FENCE.finditer(PAGES[page])]


def sections() -> dict[str, list[Block]]:
    """Return the blocks by page and section, where a section has some Python: it is run as a whole, from its top."""
    found: dict[str, list[Block]] = {}
    for page, text in PAGES.items():
        prose = FENCE.sub(lambda m: " " * len(m[0]), text)
        headings = [(m.start(), m[1]) for m in re.finditer(r"^##? (.*)$", prose, re.M)]
        for block in blocks(page):
            title = [title for start, title in headings if start < block.start][-1]
            found.setdefault(f"{page}, {title}", []).append(block)
    return {name: of for name, of in found.items() if any(block.language == "python" for block in of)}


def run_section(name: str) -> Iterator[tuple[Block, str]]:
    """Run a section's Python block by block, as into a new interpreter; yield each pasted output, and the true one."""
    torch.manual_seed(0)
    names: dict = {"__name__": "__main__"}
    printed = ""
    for number, block in enumerate(sections()[name], 1):
        if block.language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.text, f"{name}, block {number}", "exec"), names)
            printed = out.getvalue()
        elif block.language == "text" and printed:
            yield block, printed
            printed = ""


def commands() -> dict[str, Block]:
    """Return the blocks that begin with a command, by it."""
    found = [block for page in PAGES for block in blocks(page) if block.language == "console"]
    return {block.text.split("\n")[0].removeprefix("$ "): block for block in found}


def cheap() -> list[str]:
    """Return the commands that have no date."""
    return [command for command in commands() if "  # " not in command]


def run_command(command: str) -> str:
    """Run a page's command by this Python in a folder that looks like the repository, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parts = command.partition("  # ")[0].split()
    parts[0] = sys.executable if parts[0].endswith("python") else parts[0]
    with tempfile.TemporaryDirectory() as folder:  # a picture that is drawn stays there
        for name in ("rnnkit", "parity", "examples"):
            (Path(folder) / name).symlink_to(ROOT / name)
        result = subprocess.run(parts, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=3600)
    if result.returncode not in (0, 1) or not result.stdout:  # 1: a harness that found a difference
        raise RuntimeError(f"{command}\n{result.stderr}")
    return result.stdout


def difference(pasted: str, printed: str) -> str:
    """Return what is wrong with a pasted output, or "". Numbers may be off a little: processors round differently."""
    pattern, position, wanted = "", 0, []
    for match in re.finditer(NUMBER.pattern + r"|\.\.\.", pasted):
        pattern += re.escape(pasted[position : match.start()])
        position = match.end()
        pattern += "(?s:.*?)" if match[0] == "..." else f"({NUMBER.pattern})"
        wanted += [] if match[0] == "..." else [match[0]]
    found = re.fullmatch(pattern + re.escape(pasted[position:]), printed)
    if not found:
        return f"the page has\n{pasted}\nand what is printed is\n{printed}"
    for want, have in zip(wanted, found.groups(), strict=True):
        a, b = (float(number.replace(",", "")) for number in (want, have))
        if abs(a - b) > 0.01 + 0.03 * abs(a):
            return f"{want} on the page, {have} printed"
    return ""


def line_of(page: str, code: str, target: str) -> int:
    """Return the number of the one line of the file `target`, as seen from `page`, that has `code`."""
    lines = (ROOT / page).parent.joinpath(target).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if code in line]
    if len(found) != 1:
        raise ValueError(f"{page}: {code!r} stands in {len(found)} lines of {target}")
    return found[0]


def outputs(dated: str | None) -> Iterator[tuple[Block, str]]:
    """Yield each pasted output with what it should be: the cheap ones, and the dated that have the words `dated`."""
    for name in sections():
        yield from run_section(name)
    for command, block in commands().items():
        bare, _, note = command.partition("  # ")
        if not note:
            yield block, f"$ {command}\n{run_command(command)}"
        elif dated is not None and dated in bare:
            here = f"{time.strftime('%Y-%m-%d')}, {processor()}, torch {torch.__version__}"
            yield block, f"$ {bare}  # {here}\n{run_command(bare)}"


def main() -> int:
    """Return 0, or with --check 1 where a page says something else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if something is not as a page says")
    parser.add_argument(
        "--dated", metavar="WORDS", help="print again what is dated, too, where the command has these words"
    )
    options = parser.parse_args()
    wrong, edits = 0, []
    for block, printed in outputs(options.dated):
        if difference(block.text, printed):
            wrong += 1
            print(f"{block.page}: {block.text.splitlines()[0]} ...: not what is printed")
            edits.append((block, printed))
    for page, text in PAGES.items():
        for found in POINTER.finditer(text):
            number = line_of(page, found[1], found[2])
            if number != int(found[3]):
                wrong += 1
                print(f"{page}: `{found[1]}` stands in line {number} of {found[2]}")
                edits.append((Block(page, "", found[3], found.start(3), found.end(3)), str(number)))
    if options.check:
        return int(wrong > 0)
    for block, printed in sorted(edits, key=lambda edit: -edit[0].start):
        PAGES[block.page] = PAGES[block.page][: block.start] + printed + PAGES[block.page][block.end :]
    for page in {block.page for block, _ in edits}:
        (ROOT / page).write_text(PAGES[page])
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    sys.exit(main())
