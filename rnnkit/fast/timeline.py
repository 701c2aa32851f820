"""When the rows of one direction take their steps, and where their parts lie.

Packed rows are the general case: of S rows, in the order of time, step t has the next sizes[t]. In a padded batch all
sizes are N. Sizes never grow with time.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Consecutive steps, and their rows."""

    first: int  # step
    sizes: Sequence[int]
    start: int  # row
    rows: int

    def of(self, tensor: Tensor, total: int) -> Tensor:
        """Return the span's rows of a tensor that has all `total` rows, or the first of one that all spans share."""
        size = tensor.size(0)
        return tensor if size <= self.rows else tensor.narrow(0, self.start if size == total else 0, self.rows)


class Timeline:
    """The steps of one direction, in the order in which it takes them: from the last to the first if `reverse`.

    sizes  the number of rows of each step, in the order of time
    N      rows of the state; those beyond a step's size have no step then
    """

    def __init__(self, sizes: Sequence[int], N: int, reverse: bool) -> None:
        self.sizes, self.N, self.reverse = sizes, N, reverse
        self.starts = [0, *accumulate(sizes)]
        self.total = self.starts[-1]
        self.padded = sizes[0] == sizes[-1] == N

    def ordered(self, steps: Sequence[Any], back: bool = False) -> Sequence[Any]:
        """Return what is in the order of time in this direction's order, or in that of the way back."""
        return steps[::-1] if self.reverse != back else steps

    def spans(self, steps: int) -> Sequence[Span]:
        """Cut time into spans of `steps` steps, in this direction's order."""
        spans = []
        for first in range(0, len(self.sizes), steps):
            sizes, start = self.sizes[first : first + steps], self.starts[first]
            spans.append(Span(first, sizes, start, self.starts[first + len(sizes)] - start))
        return self.ordered(spans)

    def stretches(
        self, span: Span, tensors: Sequence[Tensor], back: bool = False
    ) -> Iterator[tuple[int, list[Sequence[Tensor]]]]:
        """Yield the steps of `span` in this direction's order, or back: together those on end with equally many rows.

        yields the number of rows, and for each tensor the list of its steps' parts; of a tensor with fewer rows than
        the span, all steps share the first. Parts of one tensor are the same objects wherever it occurs: by that torch
        knows that it may work in place.
        """
        parts: dict[int, Sequence[Tensor]] = {}
        for rows in tensors:
            if id(rows) not in parts:
                parts[id(rows)] = self.ordered(self._parts(span, rows), back)
        listed = [parts[id(rows)] for rows in tensors]
        if self.padded:
            yield self.N, listed
            return
        start = 0
        for n, steps in groupby(self.ordered(span.sizes, back)):
            end = start + len(list(steps))
            yield n, [part[start:end] for part in listed]
            start = end

    def _parts(self, span: Span, rows: Tensor) -> Sequence[Tensor]:
        if rows.size(0) == span.rows:
            return rows.unsafe_split_with_sizes(span.sizes)
        if self.padded:
            return [rows] * len(span.sizes)
        shared = {n: rows[:n] for n in set(span.sizes)}
        return [shared[n] for n in span.sizes]

    def before(self, span: Span, first: Tensor, after: Tensor) -> Tensor:
        """Return the state before each step of `span`, as rows.

        first  the state before the step taken first (N, F)
        after  the state after every step (S, F)
        """
        if self.padded:
            away = span.start + (self.N if self.reverse else -self.N)
            if 0 <= away <= after.size(0) - span.rows:
                return after.narrow(0, away, span.rows)
            rows = span.of(after, self.total)
            return torch.cat((rows[self.N :], first) if self.reverse else (first, rows[: -self.N]))
        parts, t = [], span.first
        for n, steps in groupby(span.sizes):  # from t to last; all but one of them begin where a neighbour ends
            last = t + len(list(steps)) - 1
            inner = after.narrow(0, self.starts[t + 1 if self.reverse else t], (last - t) * n)
            previous = last + 1 if self.reverse else t - 1  # the step taken before these
            m = min(self.sizes[previous], n) if 0 <= previous < len(self.sizes) else 0
            outer = [after.narrow(0, self.starts[previous], m)] if m else []
            outer += [first[m:n]] if m < n else []  # of the rows whose first step this is
            parts += [inner, *outer] if self.reverse else [*outer, inner]
            t = last + 1
        return torch.cat(parts)
