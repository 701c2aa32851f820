"""What a recurrence is, as theorems about taking one direction over time: by every path, with every gradient."""

import pytest
import torch
from cases import UNROLLS, assert_alive, assert_near, direction_results, gradients, leaves, make_stack
from helpers import KINDS, product

from rnnkit import recurrence

L, N = 5, 3
LENGTHS = [5, 3, 3]
BATCH_SIZES = [3, 3, 3, 1, 1]
ROUNDING = 1e-13  # float64's over a sequence: products of other shapes may add in another order

kinds = pytest.mark.parametrize("kind", KINDS)
paths = pytest.mark.parametrize("path", UNROLLS)
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def case(kind, reverse=False, packed=False, **options):
    """A direction, all of whose tensors want a gradient, and these by name."""
    stack = make_stack(kind, packed=BATCH_SIZES if packed else False, L=L, N=N, H=4, path="always fast", **options)
    return stack.direction(0, stack.input, reverse), leaves(stack)


def assert_equal_functions(found, expected, tensors, case):
    """Equal values, and under one random loss equal gradients of every tensor."""
    assert_near(found, expected, ROUNDING, case)
    of_expected = gradients(expected, tensors)
    assert_near(gradients(found, tensors), of_expected, ROUNDING, case)
    assert_alive(of_expected, case)


def flat(output, state):
    return {"output": output, **dict(zip(("h_n", "c_n"), state, strict=False))}


def sequence(direction, n, length):
    """The direction over the first steps of row n alone."""
    state = tuple(s[n : n + 1] for s in direction.state)
    return direction._replace(input=direction.input[:length, n : n + 1], state=state)


@paths
@reverses
@kinds
def test_an_unroll_is_its_steps(kind, reverse, path):
    direction, tensors = case(kind, reverse)
    w_ih, w_hh, b_ih, b_hh, w_hr = direction.weights
    state, outputs = direction.state, []
    for x in direction.input.flip(0) if reverse else direction.input:
        state, _ = direction.equation.step(x @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh, state)
        if w_hr is not None:
            state = (state[0] @ w_hr.T, *state[1:])
        outputs.append(state[0])
    expected = flat(torch.stack(outputs[::-1] if reverse else outputs), state)
    assert_equal_functions(direction_results(direction, UNROLLS[path]), expected, tensors, (kind, reverse, path))


@paths
@kinds
def test_reverse_is_flip(kind, path):
    direction, tensors = case(kind, reverse=True)
    output, state = UNROLLS[path](direction._replace(input=direction.input.flip(0), reverse=False))
    found = direction_results(direction, UNROLLS[path])
    assert_equal_functions(found, flat(output.flip(0), state), tensors, (kind, path))


@paths
@reverses
@kinds
def test_packed_is_each_sequence_alone(kind, reverse, path):
    direction, tensors = case(kind, reverse)
    rows = torch.cat([step[:size] for step, size in zip(direction.input, BATCH_SIZES, strict=True)])
    packed = direction._replace(input=rows, batch_sizes=torch.tensor(BATCH_SIZES))
    alone = [UNROLLS[path](sequence(direction, n, length)) for n, length in enumerate(LENGTHS)]
    outputs = [alone[n][0][t, 0] for t, size in enumerate(BATCH_SIZES) for n in range(size)]
    state = [torch.cat(states) for states in zip(*(state for _, state in alone), strict=True)]
    found = direction_results(packed, UNROLLS[path])
    assert_equal_functions(found, flat(torch.stack(outputs), state), tensors, (kind, reverse, path))


@paths
@reverses
@kinds
def test_a_padded_batch_is_its_rows_alone(kind, reverse, path):
    direction, tensors = case(kind, reverse)
    alone = [UNROLLS[path](sequence(direction, n, L)) for n in range(N)]
    state = [torch.cat(states) for states in zip(*(state for _, state in alone), strict=True)]
    expected = flat(torch.cat([output for output, _ in alone], 1), state)
    assert_equal_functions(direction_results(direction, UNROLLS[path]), expected, tensors, (kind, reverse, path))


@paths
@reverses
@kinds
def test_packed_with_equal_lengths_is_padded(kind, reverse, path):
    direction, tensors = case(kind, reverse)
    packed = direction._replace(input=direction.input.flatten(0, 1), batch_sizes=torch.tensor([N] * L))
    output, state = UNROLLS[path](direction)
    found = direction_results(packed, UNROLLS[path])
    assert_equal_functions(found, flat(output.flatten(0, 1), state), tensors, (kind, reverse, path))


@paths
@reverses
@pytest.mark.parametrize("at", range(1, L))
@kinds
def test_split_in_time_and_carried_state_is_the_whole(kind, at, reverse, path):
    direction, tensors = case(kind, reverse)
    parts = [direction.input[:at], direction.input[at:]]
    outputs, state = [], direction.state
    for input in parts[::-1] if reverse else parts:
        output, state = UNROLLS[path](direction._replace(input=input, state=state))
        outputs.append(output)
    expected = flat(torch.cat(outputs[::-1] if reverse else outputs), state)
    found = direction_results(direction, UNROLLS[path])
    assert_equal_functions(found, expected, tensors, (kind, at, reverse, path))


@paths
@reverses
@kinds
def test_what_comes_later_is_not_known(kind, reverse, path):
    """The output of a step depends on no later input; in reverse on no earlier one."""
    direction, _ = case(kind, reverse)
    output, _ = UNROLLS[path](direction)
    for t in range(L):
        (grad,) = torch.autograd.grad(output[t].sum(), direction.input, retain_graph=True)
        seen = {step for step in range(L) if grad[step].any()}
        assert seen == set(range(t, L) if reverse else range(t + 1)), f"step {t}"


@paths
@reverses
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@kinds
def test_no_bias_is_a_bias_of_zero(kind, packed, reverse, path):
    direction, tensors = case(kind, reverse, packed, bias=False)
    zeros = torch.zeros(direction.weights.w_hh.size(0), dtype=torch.float64)
    weights = direction.weights._replace(b_ih=zeros, b_hh=zeros)
    expected = direction_results(direction._replace(weights=weights), UNROLLS[path])
    assert_equal_functions(direction_results(direction, UNROLLS[path]), expected, tensors, (kind, packed, path))


@paths
@pytest.mark.parametrize("options", product(packed=[False, True], reverse=[False, True]), ids=str)
@kinds
def test_all_paths_take_a_direction_alike(kind, options, path):
    direction, tensors = case(kind, **options)
    expected = direction_results(direction, recurrence.unroll)
    assert_equal_functions(direction_results(direction, UNROLLS[path]), expected, tensors, (kind, options, path))


@paths
@reverses
@kinds
def test_no_step_hands_the_state_through_where_a_path_takes_it(kind, reverse, path):
    if path == "fast":
        return  # it is never asked
    direction, _ = case(kind, reverse)
    output, state = UNROLLS[path](direction._replace(input=direction.input[:0]))
    assert output.shape == (0, N, direction.state[0].size(1))
    assert all(torch.equal(found, given) for found, given in zip(state, direction.state, strict=True))
