"""Both directions by one loop: when, and that nothing shows of it."""

import math

import pytest
import torch
from cases import (
    FAST,
    GRID,
    READABLE,
    TOLERANCES,
    assert_near,
    assert_same_function,
    direction_results,
    gradients,
    leaves,
    make_stack,
    results,
)
from helpers import KINDS, named

from rnnkit import recurrence
from rnnkit.fast import pair
from rnnkit.stack import layer

kinds = pytest.mark.parametrize("kind", KINDS)


def directions_of(stack, count=2):
    return [stack.direction(k, stack.input, reverse=k == 1) for k in range(count)]


def by_pairs(unroll):
    return lambda directions: pair.run(directions, unroll)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("options", [o for o in GRID if o["D"] == 2 and not o["packed"]], ids=named)
def test_a_pair_is_two_directions_whatever_unrolls_it(options, dtype):
    """By the readable path too: what makes a pair of them is plain torch."""
    stack = make_stack(**options, dtype=dtype)
    tolerances = (1e-14, 1e-13) if dtype == torch.float64 else TOLERANCES[dtype]
    assert_same_function(stack, by_pairs(recurrence.unroll), layer(recurrence.unroll), tolerances, options)


@kinds
def test_only_small_padded_layers_of_two_directions_in_float32_are_paired(kind):
    def paired(D=2, **options):
        return pair.pays(directions_of(make_stack(kind, D=D, **{"dtype": torch.float32} | options), D))

    assert paired()
    assert not paired(D=1)
    assert not paired(packed=True)
    assert not paired(dtype=torch.float64)


@kinds
def test_a_step_of_few_multiplications_is_paired_and_of_more_not(kind):
    per_row = make_stack(kind, D=2).weights[0].w_hh.numel()
    for N, expected in ((pair.FEW // per_row, True), (pair.FEW // per_row + 1, False)):
        stack = make_stack(kind, D=2, dtype=torch.float32, L=1, N=N)
        assert pair.pays(directions_of(stack)) == expected, N


@pytest.mark.parametrize("values", [[math.inf], [-math.inf], [math.nan], [math.inf, -math.inf]], ids=str)
@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_a_number_that_is_not_finite_is_seen_wherever_it_stands(size, values):
    large = torch.full((size,), torch.finfo(torch.float32).max / (2 * size))
    assert pair.finite([None, large, -large, large.new_empty(0)])
    for place in range(size):
        tensor = large.clone()
        for k, value in enumerate(values[:size]):
            tensor[(place + k) % size] = value
        assert not pair.finite([large, tensor]), f"{values} from {place} on"


@kinds
def test_a_pair_that_pays_is_run_by_one_loop_and_others_by_two(kind, monkeypatch):
    ran = []
    monkeypatch.setattr("rnnkit.fast.unroll", lambda direction: ran.append(direction) or recurrence.unroll(direction))
    for options, loops in ({"dtype": torch.float32}, 1), ({"dtype": torch.float64}, 2), ({"packed": True}, 2):
        ran.clear()
        results(make_stack(kind, D=2, **options), FAST)
        assert len(ran) == loops, options


@pytest.mark.parametrize("every", [1, 2, 3])
@kinds
def test_a_pair_may_have_checkpoints(kind, every):
    stack = make_stack(kind, D=2, layers=2, dtype=torch.float32)
    found, expected = results(stack._replace(checkpoint_every=every), FAST), results(stack, READABLE)
    assert_near(found, expected, 2e-6, (kind, every))
    assert_near(gradients(found, leaves(stack)), gradients(expected, leaves(stack)), 5e-6, (kind, every))


@kinds
def test_a_paired_direction_is_that_direction_alone(kind):
    """Neither sees the other's input or state: with the other one's numbers changed it gives the same."""
    stack = make_stack(kind, D=2, dtype=torch.float32)
    for k in range(2):
        weights, states = [*stack.weights], [*stack.states]
        weights[1 - k] = type(weights[0])(*(None if w is None else w + 1 for w in weights[1 - k]))
        states[1 - k] = tuple(s - 1 for s in states[1 - k])
        other = results(stack._replace(weights=weights, states=states), FAST)
        alone = direction_results(directions_of(stack)[k], recurrence.unroll)
        half = other["output"].chunk(2, -1)[k]
        assert_near({"output": half, "h_n": other[f"h_n[{k}]"]}, {n: alone[n] for n in ("output", "h_n")}, 2e-6, kind)


@pytest.mark.parametrize("gates", [1, 3, 4])
def test_blocks_are_each_gates_two_weights_and_zeros(gates):
    forward, reverse = torch.randn(gates * 2, 3), torch.randn(gates * 2, 3)
    both = pair.blocks((forward, reverse), gates).view(gates, 4, 6)
    zeros = torch.zeros(2, 3)
    for k in range(gates):
        rows = slice(2 * k, 2 * k + 2)
        expected = torch.cat((torch.cat((forward[rows], zeros), 1), torch.cat((zeros, reverse[rows]), 1)))
        assert_near({"block": both[k]}, {"block": expected}, 0.0, f"gate {k} of {gates}")
    x, y = torch.randn(3), torch.randn(3)
    product = both.flatten(0, 1) @ torch.cat((x, y))
    bias = pair.side_by_side(forward @ x, reverse @ y, gates)
    assert_near({"product": product}, {"product": bias}, 1e-6, gates)
    assert pair.side_by_side(None, None, gates) is None
