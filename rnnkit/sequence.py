"""The forms in which a batch comes, to rows and back.

    unbatched  (L, H_in), its state (D*num_layers, H)
    padded     (L, N, H_in), or (N, L, H_in) with batch_first; its state (D*num_layers, N, H)
    packed     a PackedSequence; its state (D*num_layers, N, H) in the order of the sequences, not of the rows

The layers run rows in the order of time: (L, N, H_in), or packed ones (S, H_in).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Form(NamedTuple):
    """The form of a call's input, in which it gets its results."""

    batch_first: bool
    batched: bool = True
    packed: PackedSequence | None = None

    @classmethod
    def of(cls, input: Any, batch_first: bool) -> "Form":
        """Return the form of `input`: a tensor of two or three dimensions, or packed."""
        if isinstance(input, PackedSequence):
            return cls(batch_first, packed=input)
        return cls(batch_first, batched=input.dim() == 3)

    @property
    def batch_sizes(self) -> Tensor | None:
        """The number of rows of each step, if packed."""
        return None if self.packed is None else self.packed.batch_sizes

    @property
    def sorted_indices(self) -> Tensor | None:
        """For each row the sequence that it holds, if they are in another order."""
        return None if self.packed is None else self.packed.sorted_indices

    @property
    def unsorted_indices(self) -> Tensor | None:
        """For each sequence the row that holds it."""
        return None if self.packed is None else self.packed.unsorted_indices

    @property
    def batch_dim(self) -> int:
        """Where N stands in a padded batch."""
        return 0 if self.batch_first else 1

    def batch(self, input: Any) -> Tensor:
        """Return the input's data as a batch: (L, N, H_in) or (N, L, H_in), or packed rows (S, H_in)."""
        if self.packed is not None:
            return self.packed.data
        batch: Tensor = input if self.batched else input.unsqueeze(self.batch_dim)
        return batch

    def rows(self, batch: Tensor) -> Tensor:
        """Return a batch in the order of time: (L, N, H_in) or (S, H_in)."""
        return batch.transpose(0, 1) if self.batch_first and self.packed is None else batch

    def output(self, rows: Tensor) -> Any:
        """Return the output in the input's form: the reverse of `batch` and `rows`."""
        if self.packed is not None:
            return PackedSequence(rows, *self.packed[1:])
        output = rows
        if self.batch_first:  # in place without a gradient: a view of such a tensor refuses who writes on it with one
            # A trace is checked by one without gradients, which has to be the same.
            view = rows.requires_grad or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            output = rows.transpose(0, 1) if view else rows.transpose_(0, 1)
        return output if self.batched else output.squeeze(self.batch_dim)
