"""`python -m parity matrix`: what PyTorch can do with the modules of torch.nn and of a subject, side by side.

Each cell is the outcome of code that ran now (see capabilities): it works, it is wrong, or the name of the exception.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..grid import subject
from ..grid.cases import CLASSES
from ..grid.engine import device_name
from . import cut  # noqa: F401  # registers rows of its own
from .capabilities import CAPABILITIES, ON_GPU, OPTIONS, Capability, outcome

#: Outcomes that are no failure: `left as is` is what quantize_dynamic does with modules it does not know.
FINE = ("works", "left as is")
#: Cells that say nothing: a package that is missing, a capability that the class has no use for.
NOT_RUN = ("skipped", "-")
WIDTHS = (34, 40, 24)  # of the three columns


def main(argv: list[str] | None = None) -> int:
    """Return exit code 0: the subject fails in no cell. 1: it fails in one. 2: wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m parity matrix",
        description="What PyTorch can do with the six classes, of torch.nn and of the subject; each cell is run.",
    )
    parser.add_argument("-k", metavar="WORDS", default="", help="only capabilities whose name or group has these words")
    parser.add_argument("--list", action="store_true", help="print the names of the capabilities and stop")
    parser.add_argument("--quick", action="store_true", help="without the slow ones: inductor, files, processes")
    subject.add_arguments(parser)
    subject.add_device(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every cell to FILE, with messages and seconds")
    options = parser.parse_args(argv)

    rows = [*CAPABILITIES, *(() if options.device == "cpu" else ON_GPU)]
    rows = [row for row in rows if options.k.lower() in f"{row.group} {row.name}".lower()]
    rows = [row for row in rows if not (options.quick and row.slow)]
    if not rows:
        parser.error(f"no capability matches {options.k!r}; --list shows their names")
    if options.list:
        print("\n".join(f"{row.group}: {row.name}" for row in rows))
        return 0
    namespace = subject.chosen(parser, options)
    device = subject.usable(parser, options.device)
    name = subject.title(options)
    libraries = {"torch.nn": nn, name: namespace}

    print(f"What torch {torch.__version__} can do with the classes of torch.nn and of {name}. A class works")
    print("where it is not named; each cell ran now, and its numbers are those of a float64 loop.")
    if device != "cpu":
        print(f"Both run on {device_name(device)}, float32 without TF32.")
    start = time.monotonic()
    table: list[dict[str, Any]] = []
    print(line("", *libraries))
    for entry in entries(rows, libraries, device):
        if not table or table[-1]["group"] != entry["group"]:
            print(entry["group"])
        table.append(entry)
        print(line("  " + entry["capability"], *map(summary, entry["outcomes"].values())), flush=True)
    words = Counter(cell["outcome"] for entry in table for cell in entry["outcomes"][name].values())
    ran = sum(count for word, count in words.items() if word not in NOT_RUN)
    bad = sum(count for word, count in words.items() if word not in (*FINE, *NOT_RUN))
    skipped = f", {words['skipped']} were skipped" * bool(words["skipped"])
    print(f"\n{ran - bad} of the subject's {ran} cells work{skipped}. ({time.monotonic() - start:.0f} s)")
    if options.json:
        about = {"torch": torch.__version__, "device": device_name(device), "options": OPTIONS}
        options.json.write_text(json.dumps({**about, "rows": table}, indent=1))
    return int(bad > 0)


def entries(rows: list[Capability], libraries: dict[str, Any], device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Run each capability on each class of each library."""
    for row in rows:
        cells: dict[str, Any] = {}
        for library, namespace in libraries.items():
            cells[library] = {}
            for name in CLASSES:
                start = time.monotonic()
                word, message = outcome(row, namespace, name, device)
                seconds = round(time.monotonic() - start, 2)
                cells[library][name] = {"outcome": word, "message": message, "seconds": seconds}
        yield {"group": row.group, "capability": row.name, "outcomes": cells}


def summary(cells: dict[str, dict[str, Any]]) -> str:
    """Return one word where all classes agree; else the outcomes other than *works*, each with its classes."""
    classes: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if cell["outcome"] != "-":
            classes.setdefault(cell["outcome"], []).append(name)
    if len(classes) < 2:
        return next(iter(classes), "-")
    return "; ".join(f"{word}: {' '.join(names)}" for word, names in classes.items() if word != "works")


def line(*texts: str) -> str:
    """Return a row of the table, on as many lines as its longest text takes."""
    columns = [textwrap.wrap(text, width, subsequent_indent="  ") for text, width in zip(texts, WIDTHS, strict=False)]
    padded = [
        " ".join(part.ljust(width) for part, width in zip(parts, WIDTHS, strict=False)).rstrip()
        for parts in itertools.zip_longest(*columns, fillvalue="")
    ]
    return "\n".join(padded)


if __name__ == "__main__":
    sys.exit(main())
