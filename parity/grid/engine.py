"""Run many cases, in this process or in several."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Iterator
from typing import Any

import torch

from .cases import Case
from .compare import Result, judge
from .subject import Settings, load

CHUNK = 40


def results(
    cases: list[Case], subject: str, seed: int, jobs: int, settings: Settings | None = None
) -> Iterator[Result]:
    """Yield the result of each case, in no particular order.

    One thread per process: the cases are far too small for more, and one thread adds in one order. Small jobs are
    not worth the start of a process (which imports torch).
    """
    chunks = [(cases[start : start + CHUNK], subject, settings, seed) for start in range(0, len(cases), CHUNK)]
    if jobs == 1 or len(cases) < 400:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for chunk in chunks:
                yield from _run(chunk)
        finally:
            torch.set_num_threads(threads)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        for chunk_results in pool.imap_unordered(_run, chunks):
            yield from chunk_results


def _run(chunk: tuple[list[Case], str, Settings | None, int]) -> list[Result]:
    cases, subject, settings, seed = chunk
    return [judge(case, load(subject, settings), seed=seed) for case in cases]


def device_name(device: str) -> str:
    """Return what a person calls a device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def environment(device: str = "cpu") -> dict[str, Any]:
    """Say what a run's numbers depend on beside the code."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        **({} if device == "cpu" else {"device": device_name(device)}),
    }
