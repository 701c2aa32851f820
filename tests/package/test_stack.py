"""The records that all paths take, and layers on top of each other, as theorems: of values and of every gradient."""

import pytest
import torch
from cases import (
    assert_alive,
    assert_near,
    gradients,
    leaves,
    make_stack,
    results,
)
from helpers import KINDS

from rnnkit import EQUATIONS, paths
from rnnkit.stack import named, run

pytestmark = pytest.mark.usefixtures("compiled_by_none")
kinds = pytest.mark.parametrize("kind", KINDS)
ways = pytest.mark.parametrize("path", paths.LAYERS)
packings = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
ROUNDING = 1e-13


def assert_equal_functions(found, expected, tensors, case):
    assert_near(found, expected, ROUNDING, case)
    wanted = gradients(expected, tensors)
    assert_near(gradients(found, tensors), wanted, ROUNDING, case)
    assert_alive(wanted, case)


def by_hand(stack, path, dropout=0.0):
    """Each layer on what the one below it returned, its directions one by one, side by side."""
    above, found, D = stack.input, {}, 2 if stack.bidirectional else 1
    for k in range(0, len(stack.weights), D):
        above = torch.dropout(above, dropout, train=True) if k else above
        outputs = []
        for d in range(D):
            output, (state,) = paths.LAYERS[path]([stack.direction(k + d, above, reverse=d == 1)])
            outputs.append(output)
            found |= {f"{letter}_n[{k + d}]": s for letter, s in zip(stack.equation.state, state, strict=True)}
        above = torch.cat(outputs, -1)
    return {"output": above, **found}


@ways
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@packings
@kinds
def test_layers_are_one_after_the_other_and_directions_side_by_side(kind, packed, layers, D, path):
    stack = make_stack(kind, layers=layers, D=D, packed=packed, path="always fast")
    found, expected = results(stack, paths.LAYERS[path]), by_hand(stack, path)
    assert_equal_functions(found, expected, leaves(stack), (kind, packed, layers, D, path))


@ways
@packings
@kinds
def test_dropout_is_between_layers_only(kind, packed, path):
    """As if torch.dropout stood by hand on what each layer hands to the next, and nowhere else."""
    stack, runs = make_stack(kind, layers=3, D=2, packed=packed, dropout=0.5, path="always fast"), []
    for function in (lambda: results(stack, paths.LAYERS[path]), lambda: by_hand(stack, path, 0.5)):
        torch.manual_seed(3)
        runs.append(function())
    assert_near(*runs, ROUNDING, (kind, packed, path))
    found, expected = (gradients(run, leaves(stack)) for run in runs)
    assert_near(found, expected, ROUNDING, (kind, packed, path))
    dry = results(stack._replace(dropout=0.0), paths.LAYERS[path])
    assert not torch.equal(dry["output"], runs[0]["output"])


@ways
@packings
@kinds
def test_nothing_given_is_written(kind, packed, path):
    stack = make_stack(kind, layers=2, D=2, packed=packed, dropout=0.5, path="always fast")
    given = leaves(stack)
    copies, versions = {name: t.detach().clone() for name, t in given.items()}, [t._version for t in given.values()]
    gradients(results(stack, paths.LAYERS[path]), given)
    assert [t._version for t in given.values()] == versions
    assert_near(given, copies, 0.0, (kind, packed, path))


@packings
@kinds
def test_a_direction_counts_its_steps_and_their_rows(kind, packed):
    stack = make_stack(kind, packed=[4, 2, 1] if packed else False, L=3, N=4)
    direction = stack.direction(0, stack.input, False)
    assert direction.length == stack.length == 3
    assert direction.step_sizes == ([4, 2, 1] if packed else [4, 4, 4])
    assert sum(direction.step_sizes) == direction.input[..., 0].numel()


@pytest.mark.parametrize("bias", [True, False])
@kinds
def test_tensors_are_all_there_are_and_given_puts_others_in_their_places(kind, bias):
    stack = make_stack(kind, layers=2, D=2, bias=bias)
    there = {id(t) for t in stack.tensors if t is not None}
    assert there == {id(t) for t in leaves(stack).values()}
    for k in range(4):
        direction = stack.direction(k, stack.input, k % 2 == 1)
        others = [None if t is None else t + 1 for t in direction.tensors]
        given = direction.given(others)
        assert all(a is b for a, b in zip(given.tensors, others, strict=True))
        for field in ("equation", "batch_sizes", "reverse", "path", "checkpoint_every"):
            assert getattr(given, field) is getattr(direction, field)
        assert direction.weights is stack.weights[k]
        assert direction.state is stack.states[k]


def test_settings_go_from_a_stack_to_each_of_its_directions():
    seen, stack = [], make_stack("GRU", layers=2, D=2, packed=True, path="always fast", checkpoint_every=3)
    run(stack, lambda directions: seen.extend(directions) or paths.LAYERS["readable"](directions))
    assert [direction.reverse for direction in seen] == [False, True] * 2
    for direction in seen:
        assert (direction.path, direction.checkpoint_every) == ("always fast", 3)
        assert direction.batch_sizes is stack.batch_sizes


@ways
@pytest.mark.parametrize("mode", EQUATIONS)
def test_under_a_profiler_each_layer_goes_by_a_name(mode, path):
    kind = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(mode, mode)
    stack = make_stack(kind, layers=2, D=2, path="always fast")
    with torch.autograd.profiler.profile() as profile:
        results(stack, paths.LAYERS[path])
    names = [event.name for event in profile.function_events]
    for k in range(2):
        assert names.count(f"{EQUATIONS[mode].step.__name__}_l{k}") == 1


def test_without_a_profiler_a_layer_is_itself():
    assert torch.autograd.profiler._is_profiler_enabled is False
    assert named(len, EQUATIONS["GRU"], 0) is len
