"""What autograd sees of the fast path: one function of all its tensors, however often and for whatever it is asked."""

import functools
import gc

import numpy as np
import pytest
import torch
from cases import (
    BATCH_SIZES,
    FAST,
    GRID,
    READABLE,
    TOLERANCES,
    assert_alive,
    assert_near,
    go,
    gradients,
    leaves,
    make_stack,
    results,
    wanting,
    with_leaves,
)
from helpers import KINDS, named
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter

from rnnkit import fast, paths
from rnnkit.fast import autograd, plain
from rnnkit.stack import Direction

kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
packings = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


# Checkpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spans", ["one", "many"])
@dtypes
@pytest.mark.parametrize("options", [o for o in GRID if o["layers"] == 1], ids=named)
def test_checkpointing_changes_no_value(options, dtype, spans, monkeypatch):
    """Whatever the length of the segments, and whether they are cut once more for their products."""
    stack = make_stack(**options, dtype=dtype)
    of_outputs, of_gradients = max(TOLERANCES[dtype][0], 1e-14), TOLERANCES[dtype][1]
    outputs = results(stack, READABLE)
    expected = gradients(outputs, leaves(stack))
    for every in (1, 2, 3, 4, 100):
        go(monkeypatch, spans=spans, paired=every % 2 == 0)
        found, case = results(stack._replace(checkpoint_every=every), FAST), (options, dtype, every)
        assert_near(found, outputs, of_outputs, case)
        assert_near(gradients(found, leaves(stack)), expected, of_gradients, case)
        monkeypatch.undo()


@pytest.mark.parametrize("products", ["small", "large", "oneDNN"])
@pytest.mark.parametrize("every", [3, 8])
@dtypes
@packings
@kinds
def test_checkpoints_of_a_deep_stack_change_no_gradient(kind, packed, dtype, every, products, monkeypatch):
    go(monkeypatch, products=products)
    stack = make_stack(
        kind, layers=2, D=2, packed=[5] * 6 + [4] * 5 + [1] * 9 if packed else False, L=20, N=5, dtype=dtype
    )
    found, expected = results(stack._replace(checkpoint_every=every), FAST), results(stack, READABLE)
    of_outputs, of_gradients = max(TOLERANCES[dtype][0], 1e-13), 2 * TOLERANCES[dtype][1]
    assert_near(found, expected, of_outputs, (kind, packed, every))
    assert_near(
        gradients(found, leaves(stack)), gradients(expected, leaves(stack)), of_gradients, (kind, packed, every)
    )


@pytest.mark.parametrize("every", [1, 2, 3, 5, 9])
@packings
@pytest.mark.parametrize("reverse", [False, True])
def test_segments_are_the_direction_cut(reverse, packed, every):
    stack = make_stack(packed=packed, checkpoint_every=every)
    direction = stack.direction(0, stack.input, reverse)
    cut = autograd.segments(direction)
    assert [segment.length for segment in cut][:: -1 if reverse else 1][:-1] == [every] * (len(cut) - 1)
    in_time = cut[::-1] if reverse else cut
    assert torch.equal(torch.cat([segment.input for segment in in_time]), direction.input)
    assert [n for segment in in_time for n in segment.step_sizes] == direction.step_sizes
    for segment in cut:
        assert segment._replace(input=None, batch_sizes=None) == direction._replace(input=None, batch_sizes=None)


def saved_bytes(stack):
    """What a graph keeps in memory of its own: neither the arguments nor the output, which are there anyway."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = results(stack, FAST)["output"]
    for tensor in (*leaves(stack).values(), output):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@dtypes
@packings
@pytest.mark.parametrize("kind", ["LSTM", "LSTM-proj", "GRU"])
def test_checkpointing_keeps_one_state_every_so_many_steps(kind, packed, dtype):
    L, N, H = 64, 4, 6
    stack = make_stack(kind, L=L, N=N, H=H, packed=[N] * L if packed else False, dtype=dtype)
    state = sum(s.nbytes for s in stack.states[0])
    assert saved_bytes(stack) >= 4 * L * N * H * dtype.itemsize
    for every in (4, 8, 16):
        kept = saved_bytes(stack._replace(checkpoint_every=every))
        assert kept == (L // every - 1) * state  # the first is an argument


@dtypes
@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_an_rnn_keeps_nothing_but_its_output(kind, dtype):
    stack = make_stack(kind, L=64, dtype=dtype)
    assert saved_bytes(stack) == saved_bytes(stack._replace(checkpoint_every=4)) == 0


def test_nothing_is_kept_where_nothing_wants_a_gradient():
    stack = make_stack()
    with torch.no_grad():
        assert saved_bytes(stack) == 0
        assert not any(y.requires_grad for y in results(stack, FAST).values())
    wanting(stack, [])
    assert saved_bytes(stack) == 0
    assert not any(y.requires_grad for y in results(stack, FAST).values())


# Gradients of gradients ---------------------------------------------------------------------------------------------


def second(stack, layer, wanted):
    """First gradients with a graph, and the second ones of all first ones together."""
    outputs = [y for y in results(stack, layer).values() if y.requires_grad]
    first = torch.autograd.grad([y.sin().sum() for y in outputs], [*wanted.values()], create_graph=True)
    later = torch.autograd.grad(
        sum((g**2).sum() for g in first), [*wanted.values()], allow_unused=True, materialize_grads=True
    )
    return {
        f"{order} by {name}": grad
        for order, grads in (("first", first), ("second", later))
        for name, grad in zip(wanted, grads, strict=True)
    }


WANTED = {
    "all": lambda name: True,
    "weights only": lambda name: name[0] in "wb",
    "input only": lambda name: name == "input",
    "states only": lambda name: name[0] in "hc",
    "all but the input": lambda name: name != "input",
    "recurrent weights": lambda name: name.startswith("w_hh"),
    "biases": lambda name: name[0] == "b",
    "reverse only": lambda name: name.endswith("reverse"),
}


@pytest.mark.parametrize(
    ("dtype", "packed", "paired"),
    [(dtype, packed, False) for dtype in TOLERANCES for packed in (False, True)] + [(torch.float32, False, True)],
    ids=str,
)
@pytest.mark.parametrize("wanted", WANTED)
@kinds
def test_gradients_of_gradients_are_the_readable_paths(kind, packed, dtype, wanted, paired, monkeypatch):
    """Whether the input wants one or, as in ordinary training, the weights alone."""
    go(monkeypatch, paired=paired)
    stack = make_stack(kind, D=2, packed=packed, dtype=dtype)
    chosen = wanting(stack, filter(WANTED[wanted], leaves(stack)))
    fast, readable = (second(stack, layer, chosen) for layer in (FAST, READABLE))
    assert_alive(readable)
    assert_near(fast, readable, 1e-12 if dtype == torch.float64 else 5e-5, (kind, packed, dtype, wanted))


@pytest.mark.parametrize("every", [1, 2])
@packings
@kinds
def test_gradients_of_gradients_go_through_checkpoints(kind, packed, every):
    stack = make_stack(kind, D=2, packed=packed)
    chosen = wanting(stack, filter(WANTED["weights only"], leaves(stack)))
    found = second(stack._replace(checkpoint_every=every), FAST, chosen)
    assert_near(found, second(stack, READABLE, chosen), 1e-12, (kind, packed, every))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "relu"])
@packings
def test_gradients_are_the_differences_of_values(kind, packed):
    stack = make_stack(kind, D=2, packed=packed, H=3)

    def run(*tensors):
        return tuple(results(with_leaves(stack, dict(zip(leaves(stack), tensors, strict=True))), FAST).values())

    assert torch.autograd.gradcheck(run, [*leaves(stack).values()], fast_mode=True)
    assert torch.autograd.gradgradcheck(run, [*leaves(stack).values()], fast_mode=True)


@dtypes
@packings
@kinds
def test_gradients_can_be_asked_for_in_batches(kind, packed, dtype):
    stack = make_stack(kind, D=2, packed=packed, dtype=dtype)
    output, tensors = results(stack, FAST)["output"], leaves(stack)
    rows = torch.eye(output.numel(), dtype=dtype)[:3].view(3, *output.shape)
    ask = functools.partial(torch.autograd.grad, output, [*tensors.values()], retain_graph=True)
    single = zip(*(ask(row) for row in rows), strict=True)
    batched = dict(zip(tensors, ask(rows, is_grads_batched=True), strict=True))
    assert_near(
        batched, dict(zip(tensors, map(torch.stack, single), strict=True)), TOLERANCES[dtype][1], (kind, packed)
    )


# The graph ----------------------------------------------------------------------------------------------------------


@dtypes
def test_backward_computes_in_the_dtype_of_forward_whatever_autocast_says(dtype):
    stack = make_stack(dtype=dtype)
    outputs = results(stack, FAST)
    plain = gradients(outputs, leaves(stack), retain_graph=True)
    with torch.autocast("cpu"):
        assert_near(gradients(outputs, leaves(stack), retain_graph=True), plain, 0.0)
        assert_near(gradients(outputs, leaves(stack), create_graph=True), plain, TOLERANCES[dtype][1])


@pytest.mark.parametrize("every", [None, 2])
@dtypes
@packings
@kinds
def test_backward_goes_through_a_retained_graph_as_often_as_asked_and_else_once(kind, packed, dtype, every):
    stack = make_stack(kind, D=2, packed=packed, dtype=dtype, checkpoint_every=every)
    outputs = results(stack, FAST)
    runs = [gradients(outputs, leaves(stack), retain_graph=retain) for retain in (True, True, False)]
    for again in runs[1:]:
        assert_near(again, runs[0], 0.0, (kind, packed, every))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(outputs, leaves(stack))


@dtypes
@packings
@kinds
def test_two_graphs_may_live_at_once(kind, packed, dtype):
    """Neither writes on what the other keeps."""
    stacks = [make_stack(kind, D=2, packed=packed, dtype=dtype, seed=seed) for seed in (1, 2)]
    both = [results(stack, FAST) for stack in stacks]
    for stack, outputs in [*zip(stacks, both, strict=True)][::-1]:
        alone = results(stack, FAST)
        assert_near(outputs, alone, 0.0, (kind, packed))
        assert_near(gradients(outputs, leaves(stack)), gradients(alone, leaves(stack)), 0.0, (kind, packed))


@dtypes
@pytest.mark.parametrize("every", [None, 2])
@kinds
def test_changing_a_saved_tensor_in_place_is_noticed(kind, every, dtype):
    for name in leaves(make_stack(kind)):
        stack = make_stack(kind, dtype=dtype, checkpoint_every=every)
        outputs = results(stack, FAST)
        with torch.no_grad():
            leaves(stack)[name].mul_(2)
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
            gradients(outputs, leaves(stack))


@pytest.mark.parametrize("every", [None, 2])
@dtypes
@packings
@pytest.mark.parametrize("D", [1, 2])
@kinds
def test_what_a_caller_writes_on_an_output_is_his(kind, D, packed, dtype, every):
    """Backward doesn't read it."""
    settings = {"path": "always fast", "checkpoint_every": every}
    stack = make_stack(kind, layers=2, D=D, packed=packed, dtype=dtype, **settings)
    grads = []
    for scale in (1, 2):
        output, _ = paths.run(stack)
        outputs = {"output": output.mul_(scale) if scale != 1 else output * 1}
        grads.append({name: grad / scale for name, grad in gradients(outputs, leaves(stack)).items()})
    assert_near(*grads, 0.0, (kind, D, packed, dtype, every))


@pytest.mark.parametrize("every", [None, 2])
@dtypes
@kinds
def test_hooks_on_saved_tensors_see_all_of_them(kind, dtype, every):
    stack = make_stack(kind, dtype=dtype, checkpoint_every=every)
    expected = gradients(results(stack, FAST), leaves(stack))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: np.array(t.numpy(force=True)), torch.from_numpy):
        outputs = results(stack, FAST)
    assert_near(gradients(outputs, leaves(stack)), expected, 0.0, (kind, every))


@packings
@kinds
def test_a_tape_goes_with_its_graph(kind, packed, monkeypatch):
    """Nothing is kept on the side."""
    made, new_tape = [], autograd.new_tape

    def watched(direction):
        tape = new_tape(direction)
        made.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in tape)
        return tape

    monkeypatch.setattr(autograd, "new_tape", watched)
    stack = make_stack(kind, D=2, packed=packed)
    outputs = results(stack, FAST)
    assert not any(memory.expired() for memory in made)
    assert bool(made) == (kind not in ("tanh", "relu"))
    del outputs
    gc.collect()
    assert all(memory.expired() for memory in made)


@dtypes
@packings
def test_results_under_no_grad_and_inference_mode_can_be_trained_on(packed, dtype):
    for quiet in (torch.no_grad, torch.inference_mode):
        stack = make_stack(packed=packed, dtype=dtype)
        with quiet():
            before = results(stack, FAST)
        state = tuple(before[name].clone() for name in ("h_n[0]", "c_n[0]"))
        outputs = results(stack._replace(states=[state]), FAST)
        (grad,) = torch.autograd.grad(outputs["output"].sum(), [stack.input])
        assert_alive({"grad of input": grad})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@dtypes
@kinds
def test_without_a_graph_there_is_none_and_the_numbers_are_the_same(kind, dtype, mode):
    stack = make_stack(kind, D=2, dtype=dtype)
    graded = results(stack, FAST)
    with mode():
        quiet = results(stack, FAST)
    assert all(y.requires_grad and y.grad_fn is not None for y in graded.values())
    assert all(not y.requires_grad and y.grad_fn is None for y in quiet.values())
    assert_near({name: y.clone() for name, y in quiet.items()}, graded, 0.0, (kind, dtype))


# Plain tensors ------------------------------------------------------------------------------------------------------


class Subclass(Tensor):
    pass


def in_vmap(tensor):
    """A tensor as functorch wraps it, leaked from a transform."""
    leaked = []
    torch.func.vmap(lambda t: leaked.append(t) or t)(tensor)
    return leaked[0]


TENSORS = {
    "nothing": (lambda: None, True),
    "a tensor": (lambda: torch.zeros(2, 2), True),
    "a parameter": (lambda: Parameter(torch.zeros(2, 2)), True),
    "a view": (lambda: torch.zeros(3, 2).t(), True),
    "an expanded one": (lambda: torch.zeros(1, 2).expand(2, 2), True),
    "a subclass": (lambda: torch.zeros(2, 2).as_subclass(Subclass), False),
    "another dtype": (lambda: torch.zeros(2, 2, dtype=torch.float64), False),
    "another device": (lambda: torch.zeros(2, 2, device="meta"), False),
    "a sparse one": (lambda: torch.zeros(2, 2).to_sparse(), False),
    "one of oneDNN": (lambda: torch.zeros(2, 2).to_mkldnn(), False),
    "one of functorch": (lambda: in_vmap(torch.zeros(2, 2)), False),
}


@pytest.mark.parametrize("what", TENSORS)
def test_plain_is_what_kernels_take(what):
    make, expected = TENSORS[what]
    assert plain([torch.zeros(1), make()], torch.zeros(1)) is expected


def test_where_torch_doesnt_tell_no_tensor_is_plain(monkeypatch):
    assert autograd.TELLING
    monkeypatch.setattr(autograd, "TELLING", False)
    assert not plain([torch.zeros(1)], torch.zeros(1))
    assert plain([None], torch.zeros(1))


@dtypes
@kinds
def test_a_gradient_that_is_not_plain_is_taken_by_the_readable_path(kind, dtype):
    """What arrives may be of another class than what was sent."""
    stack = make_stack(kind, D=2, dtype=dtype)
    outputs, tensors = results(stack, FAST), leaves(stack)
    gs = [torch.ones_like(y).as_subclass(Subclass) for y in outputs.values()]
    found = torch.autograd.grad([*outputs.values()], [*tensors.values()], gs)
    loss = sum(y.sum() for y in results(stack, READABLE).values())
    expected = dict(zip(tensors, torch.autograd.grad(loss, [*tensors.values()]), strict=True))
    found = {name: grad.as_subclass(Tensor) for name, grad in zip(tensors, found, strict=True)}
    assert_near(found, expected, TOLERANCES[dtype][1], (kind, dtype))


def test_a_direction_is_unrolled_as_it_is_given():
    """`given` puts tensors back in the places of `tensors`."""
    stack = make_stack("LSTM-proj", packed=BATCH_SIZES)
    direction: Direction = stack.direction(0, stack.input, True)
    again = direction.given(direction.tensors)
    assert again == direction
    assert fast.unroll(again)[0].equal(fast.unroll(direction)[0])
