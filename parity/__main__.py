"""`python -m parity`: the first word of the command line says what is done. Torch is loaded where it is needed."""

from __future__ import annotations

import importlib
import sys

#: The first word of a command line -> where its `main` is. Without one of these: `comparing`.
COMMANDS = {
    "check": ("checking", "main"),
    "replay": ("checking", "replay"),
    "compare": ("report.changes", "main"),
    "matrix": ("bench.matrix", "main"),
    "speed": ("bench", "measure"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    module, function = COMMANDS.get(argv[0] if argv else "", ("comparing", "main"))
    if argv and argv[0] == "check" and "torch" not in sys.modules:
        _say("checking: loading torch")  # seconds, on a busy machine
    return int(getattr(importlib.import_module(f".{module}", __package__), function)(argv[module != "comparing" :]))


def _say(what: str) -> None:
    """Write a line to stderr, which the next one writes over on a terminal."""
    sys.stderr.write(f"\r\x1b[K{what}" if sys.stderr.isatty() else f"{what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
