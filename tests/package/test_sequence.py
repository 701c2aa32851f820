"""The forms in which a batch comes: to rows in the order of time, and back, without a copy."""

import pytest
import torch
from helpers import FORMS, H_IN, LENGTHS, L, N, assert_equal_tensors, numbered, randn
from torch.nn.utils.rnn import pack_padded_sequence

from rnnkit.sequence import Form

forms = pytest.mark.parametrize("form", FORMS)
batch_first = pytest.mark.parametrize("batch_first", [False, True])


def sequences(form, batch_first):
    """(L, N, H_in) random numbers, and the input that has them in that form; N is 1 if unbatched."""
    steps = randn(L, 1 if form == "unbatched" else N, H_IN, seed=1)
    if form == "unbatched":
        return steps, steps[:, 0]
    given = steps.transpose(0, 1).contiguous() if batch_first else steps
    if form == "padded":
        return steps, given
    lengths = sorted(LENGTHS, reverse=True) if form == "packed" else LENGTHS
    return steps, pack_padded_sequence(given, lengths, batch_first, enforce_sorted=form == "packed")


@batch_first
@forms
def test_rows_are_in_the_order_of_time(form, batch_first):
    steps, input = sequences(form, batch_first)
    found = Form.of(input, batch_first)
    rows = found.rows(found.batch(input))
    assert found.batched is (form != "unbatched")
    if found.packed is None:
        assert_equal_tensors({"rows": rows}, {"rows": steps})
        return
    order = sorted(range(N), key=lambda n: -LENGTHS[n]) if form == "unsorted" else range(N)
    lengths = LENGTHS if form == "unsorted" else sorted(LENGTHS, reverse=True)
    expected = torch.stack([steps[t, n] for t in range(L) for n in order if lengths[n] > t])
    assert_equal_tensors({"rows": rows}, {"rows": expected})


@batch_first
@forms
def test_there_and_back_is_the_input_itself(form, batch_first):
    """The same numbers, strides and memory; a packed one with the same sizes and indices."""
    _, input = sequences(form, batch_first)
    found = Form.of(input, batch_first)
    back = found.output(found.rows(found.batch(input)))
    assert type(back) is type(input)
    given, seen = ([t for t in each if t is not None] if found.packed else [each] for each in (input, back))
    assert_equal_tensors(numbered("part", seen), numbered("part", given))
    assert [(t.data_ptr(), t.stride()) for t in seen] == [(t.data_ptr(), t.stride()) for t in given]


@batch_first
@forms
def test_an_output_may_be_wider_than_the_input(form, batch_first):
    _, input = sequences(form, batch_first)
    found = Form.of(input, batch_first)
    rows = found.rows(found.batch(input))
    output = found.output(torch.cat((rows, rows), -1))
    whole, given = (output.data, input.data) if found.packed else (output, input)
    assert_equal_tensors({"output": whole}, {"output": torch.cat((given, given), -1)})


@batch_first
@forms
def test_the_batch_has_its_n_where_batch_dim_says(form, batch_first):
    _, input = sequences(form, batch_first)
    found = Form.of(input, batch_first)
    if found.packed is None:
        assert found.batch(input).size(found.batch_dim) == (1 if form == "unbatched" else N)
        assert (found.batch_sizes, found.sorted_indices, found.unsorted_indices) == (None, None, None)
    else:
        assert found.batch_sizes is input.batch_sizes
        assert found.sorted_indices is input.sorted_indices
        assert found.unsorted_indices is input.unsorted_indices
