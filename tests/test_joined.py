"""The path for a few small steps: it is the readable one to rounding, with fewer operations."""

import pytest
import torch
from test_bptt import GRID, Case, close, name

from rnnkit import joined, recurrence

SUMMED = [options for options in GRID if options["mode"] != "GRU"]
TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-6}


def stack(*arguments):
    return recurrence.stack(*arguments, joined.unroll)


def nodes(outputs):
    """Of the graph that made them."""
    found, left = set(), [y.grad_fn for y in outputs]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [parent for parent, _ in node.next_functions]
    return found


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("options", SUMMED, ids=name)
def test_it_is_the_readable_path_to_rounding(options, dtype):
    case = Case(**options, dtype=dtype)
    short, readable = case.run(stack), case.run(recurrence.stack)
    assert all(close(a, b, TOLERANCES[dtype]) for a, b in zip(short, readable, strict=True))
    for a, b in zip(case.gradients(short), case.gradients(readable), strict=True):
        assert b.abs().sum() > 0
        assert close(a, b, TOLERANCES[dtype])


@pytest.mark.parametrize("options", [options for options in SUMMED if options["layers"] == 1], ids=name)
def test_so_are_gradients_of_gradients(options):
    case = Case(**options)

    def second(stack):
        outputs = case.run(stack)
        first = torch.autograd.grad([y.pow(2).sum() for y in outputs], case.tensors, create_graph=True)
        return torch.autograd.grad([g.pow(2).sum() for g in first], case.tensors)

    for a, b in zip(second(stack), second(recurrence.stack), strict=True):
        assert b.abs().sum() > 0
        assert close(a, b, 1e-12)


@pytest.mark.parametrize("options", SUMMED, ids=name)
def test_a_step_has_two_nodes_less(options):
    """Neither a sum nor a weight to be transposed: once for the layer is enough."""
    case = Case(**options)
    steps = len(case.batch_sizes or case.input)
    layers, biases = options["layers"] * options["D"], options["bias"]
    fewer = len(nodes(case.run(recurrence.stack))) - len(nodes(case.run(stack)))
    assert fewer == layers * (2 * steps - 1 - biases)


def test_each_bias_has_a_gradient_of_its_own():
    case = Case("RNN_TANH")
    b_ih, b_hh = case.weights[0][2:4]
    of_b_ih, of_b_hh = torch.autograd.grad(case.run(stack)[0].sum(), (b_ih, b_hh))
    assert torch.equal(of_b_ih, of_b_hh)
    of_b_ih.zero_()
    assert of_b_hh.abs().sum() > 0
