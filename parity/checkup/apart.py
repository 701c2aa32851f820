"""A process of its own for somebody's module, which may hang, crash, exit or print without end."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Progress = Callable[[str], None]
TORCH, HARNESS = Path(torch.__file__).parent, Path(__file__).parents[1]


def apart(work: Callable[[Progress], dict[str, Any]], limit: float, show: Progress) -> dict[str, Any]:
    """Return what `work` returns, run in a process whose prints are thrown away; `show` is told what it is doing.

    Where the process ends without a result, or says nothing new for `limit` seconds, the result is {"ended": why}.
    Without fork (Windows), or where a GPU is in use by this process already, it runs here.
    """
    if not hasattr(os, "fork") or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return work(show)
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(read)
        _run(work, write)
    os.close(write)
    try:
        return _follow(read, child, limit, show)
    finally:
        os.close(read)


def _run(work: Callable[[Progress], dict[str, Any]], write: int) -> None:
    """Be the child: send a line of JSON for each step, the last one with the result."""

    def send(kind: str, what: Any) -> None:
        line = (json.dumps({kind: what}) + "\n").encode()
        while line:
            line = line[os.write(write, line) :]

    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # closed with the process
        send("result", work(lambda what: send("progress", what)))
    except BaseException as error:  # whatever it is, the process ends here
        send("result", {"ended": said(error)})
    finally:
        os._exit(0)


def said(error: BaseException) -> str:
    """Say what was raised and, where the harness's own code raised it, that this is no fault of the module."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not Path(frame.filename).is_relative_to(TORCH)]
    if not outside or not Path(outside[-1].filename).is_relative_to(HARNESS):
        return text
    where = f"{Path(outside[-1].filename).name}, line {outside[-1].lineno}"
    return f"the harness failed, not the module; please report it: {text} ({where})"


def _follow(read: int, child: int, limit: float, show: Progress) -> dict[str, Any]:
    """Be the parent: show progress, wait for the result, end what takes too long."""
    rest, doing, since = b"", "starting", time.monotonic()
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, since + limit - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"ended": f"it took more than {limit:g} s for one step ({doing}); --time-limit gives it more"}
        chunk = os.read(read, 1 << 16)
        if not chunk:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            how = f"with exit code {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
            return {"ended": f"its process ended {how} while it was being run ({doing})"}
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "result" in message:
                os.waitpid(child, 0)
                result: dict[str, Any] = message["result"]
                return result
            doing, since = message["progress"], time.monotonic()
            show(doing)


class Line:
    """A line on stderr that says what is being done, written over on a terminal, rarely repeated elsewhere."""

    def __init__(self, subject: str) -> None:
        self.subject, self.on_terminal, self.last = subject, sys.stderr.isatty(), -60.0

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        if self.on_terminal:
            sys.stderr.write(f"\r\x1b[K{self.subject}: {what}"[:120])
        elif now - self.last > 10:
            sys.stderr.write(f"checking {self.subject}: {what}\n")
            self.last = now
        sys.stderr.flush()

    def end(self) -> None:
        if self.on_terminal:
            sys.stderr.write("\r\x1b[K")
