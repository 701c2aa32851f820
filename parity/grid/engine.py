"""Run many cases, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import torch

from .cases import Case
from .compare import Result, judge
from .run import load

CHUNK = 40


def results(cases: list[Case], subject: str, seed: int, jobs: int) -> Iterator[Result]:
    """The result of each case, in no particular order.

    One thread per process: the cases are far too small for more, and one thread adds in one order. Small jobs are
    not worth the start of a process (which imports torch).
    """
    chunks = [(cases[start : start + CHUNK], subject, seed) for start in range(0, len(cases), CHUNK)]
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


def _run(chunk: tuple[list[Case], str, int]) -> list[Result]:
    cases, subject, seed = chunk
    return [judge(case, load(subject), seed=seed) for case in cases]
