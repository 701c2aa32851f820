"""When rows take their steps: spans, stretches and the state before a step, against a row-by-row account."""

import itertools

import pytest
import torch

from rnnkit.fast.timeline import Timeline
from rnnkit.recurrence import Carry

SIZES = {
    "padded": [3] * 7,
    "one step": [3],
    "one row": [1] * 5,
    "packed": [4, 4, 3, 1, 1],
    "longest alone": [5, 1, 1, 1],
    "each shorter": [5, 4, 3, 2, 1],
    "none of all rows": [2, 2, 2, 1],
}
N = 5  # rows of the state: as many as the largest, or more
timelines = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
cuts = pytest.mark.parametrize("cut", [1, 2, 3, 100])
backs = pytest.mark.parametrize("back", [False, True], ids=["there", "back"])


def made(sizes, reverse):
    rows = sizes[0] if sizes == [sizes[0]] * len(sizes) else N
    return Timeline(sizes, rows, reverse), rows


def numbered(sizes):
    """A tensor of all rows, each of which holds its step and its place in it."""
    return torch.tensor([[t, n] for t, size in enumerate(sizes) for n in range(size)])


def in_order(sizes, reverse):
    return [*range(len(sizes))][:: -1 if reverse else 1]


@cuts
@reverses
@timelines
def test_spans_are_time_cut_in_the_order_of_the_direction(sizes, reverse, cut):
    time, _ = made(sizes, reverse)
    spans = time.spans(cut)
    steps = [span.first + k for span in spans[:: -1 if reverse else 1] for k in range(len(span.sizes))]
    assert steps == [*range(len(sizes))]
    assert [span.first for span in spans] == sorted((span.first for span in spans), reverse=reverse)
    rows = numbered(sizes)
    for span in spans:
        assert span.rows == sum(span.sizes)
        own = span.of(rows, time.total)
        steps = range(span.first, span.first + len(span.sizes))
        assert own.tolist() == [[t, n] for t in steps for n in range(sizes[t])]
    assert sum(span.rows for span in spans) == time.total


@cuts
@reverses
@timelines
def test_what_spans_share_they_share_from_its_first_row_on(sizes, reverse, cut):
    time, _ = made(sizes, reverse)
    spans = time.spans(cut)
    most = max(span.rows for span in spans)
    shared = torch.arange(most + (most == time.total))[:most].unsqueeze(1)
    for span in spans:
        if most < time.total:
            assert span.of(shared, time.total).flatten().tolist() == [*range(span.rows)]


@backs
@cuts
@reverses
@timelines
def test_stretches_are_the_steps_in_order_and_those_on_end_together_have_equally_many_rows(sizes, reverse, cut, back):
    time, N = made(sizes, reverse)
    rows, shared, seen = numbered(sizes), torch.arange(N), []
    for span in time.spans(cut)[:: -1 if back else 1]:
        lengths = []
        for n, (steps, again, firsts) in time.stretches(span, [span.of(rows, time.total)] * 2 + [shared], back):
            lengths.append(n)
            for step, same, first in zip(steps, again, firsts, strict=True):
                assert step is same
                assert len(first) == n
                assert len(shared) >= span.rows or first.tolist() == [*range(n)]
                assert step[:, 1].tolist() == [*range(n)]
                seen += step[:1, 0].tolist()
        assert all(a != b for a, b in itertools.pairwise(lengths))
    assert seen == in_order(sizes, reverse != back)


@cuts
@reverses
@timelines
def test_the_state_before_a_step_is_that_after_the_one_taken_before_or_the_first(sizes, reverse, cut):
    time, N = made(sizes, reverse)
    after, first = numbered(sizes), torch.tensor([[-1, n] for n in range(N)])
    for span in time.spans(cut):
        expected = []
        for t in range(span.first, span.first + len(span.sizes)):
            before = t + 1 if reverse else t - 1
            there = 0 <= before < len(sizes)
            expected += [[before, n] if there and n < sizes[before] else [-1, n] for n in range(sizes[t])]
        assert time.before(span, first, after).tolist() == expected


@reverses
@timelines
def test_a_carried_state_is_each_rows_own(sizes, reverse):
    """Each row counts its steps; the rows without a step now wait with their count."""
    carry = Carry((torch.zeros(N, 1), torch.arange(N).unsqueeze(1)))
    steps, steps_taken = in_order(sizes, reverse), [0] * N
    for t in steps:
        counts, numbers = carry.resize(sizes[t])
        assert numbers.flatten().tolist() == [*range(sizes[t])]
        assert counts.flatten().tolist() == steps_taken[: sizes[t]]
        carry.state = counts + 1, numbers
        steps_taken[: sizes[t]] = [count + 1 for count in steps_taken[: sizes[t]]]
    counts, numbers = carry.whole()
    assert counts.flatten().tolist() == steps_taken
    assert numbers.flatten().tolist() == [*range(N)]
