"""One direction by hand beside the readable path, and beside torch.nn: values and all gradients, in both dtypes."""

import pytest
import torch
from cases import (
    BATCH_SIZES,
    FAST,
    GRID,
    LAYER,
    PRODUCTS,
    READABLE,
    TOLERANCES,
    WAYS,
    WAYS64,
    assert_alive,
    assert_near,
    assert_same_function,
    changed,
    direction_results,
    go,
    gradients,
    leaves,
    make_stack,
    results,
    subsets,
    threads,
    wanting,
    with_leaves,
)
from helpers import KINDS, named
from torch import Tensor, nn

import rnnkit
from rnnkit.fast import Loop, loop, pair, products, unroll

kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
packings = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
directions = pytest.mark.parametrize("D", [1, 2])


# The readable path's numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS64, ids=named)
@pytest.mark.parametrize("options", GRID, ids=named)
def test_float64_has_the_readable_paths_outputs_to_the_bit_and_its_gradients_to_rounding(options, way, monkeypatch):
    go(monkeypatch, **way)
    assert_same_function(make_stack(**options), FAST, case=(options, way))


def in_pairs_or_not(grid):
    """Each case, and where both directions could be run at once, once more with them one by one."""
    return [
        options | {"paired": paired}
        for options in grid
        for paired in ([True, False] if options["D"] == 2 and not options["packed"] else [False])
    ]


@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("options", in_pairs_or_not(GRID), ids=named)
def test_float32_has_the_readable_paths_outputs_and_gradients_to_rounding(options, way, monkeypatch):
    *_, (_, paired) = options.items()
    go(monkeypatch, **way, paired=paired)
    stack = make_stack(**{k: v for k, v in options.items() if k != "paired"}, dtype=torch.float32)
    assert_same_function(stack, FAST, case=(options, way))


@pytest.mark.parametrize("N", [1, 3, 5])
@pytest.mark.parametrize("H", [1, 5, 7, 13, 20, 37])
@pytest.mark.parametrize("options", [options for options in LAYER if not options["packed"]], ids=named)
def test_float64_has_the_same_bits_wherever_a_row_begins(options, H, N):
    """Less than a register and more than one; rows begin at any place of one."""
    stack = make_stack(**options, N=N, H=H, L=7)
    assert_near(results(stack, FAST), results(stack, READABLE), 0.0, (options, H, N))


#: Sizes just above every threshold: L, N, H_in and for each kind H.
L_, N_, H_IN_ = 36, 32, 40
ABOVE = {"tanh": 520, "relu": 520, "LSTM": 264, "LSTM-proj": 444, "GRU": 304}


def large_stack(kind, dtype, packed, D):
    sizes = [N_ + 12 - 2 * t // 3 for t in range(L_)] if packed else False
    return make_stack(
        kind, D=D, dtype=dtype, packed=sizes, L=L_, N=N_ + 12 if packed else N_, H_in=H_IN_, H=ABOVE[kind]
    )


@dtypes
@kinds
@packings
def test_the_large_sizes_are_above_every_threshold(kind, packed, dtype):
    stack = large_stack(kind, dtype, packed, 1)
    direction = stack.direction(0, stack.input, False)
    run, weights = Loop(direction), direction.weights
    assert weights.w_hh.numel() > products.LARGE
    assert run.time.total > products.MANY_ROWS
    assert direction.length >= 2 * products.WORTH_A_COPY > products.WORTH_PACKING
    assert min(direction.step_sizes) * weights.w_hh.numel() > max(products.WORTH_MEASURING, pair.FEW)
    assert len(run._spans()) > 1
    assert run.time.total * weights.w_ih.size(0) > loop.ELEMENTS


@dtypes
@packings
@kinds
def test_above_every_threshold_it_is_the_readable_path_too(kind, packed, dtype):
    """Of float64 to the bit."""
    stack = large_stack(kind, dtype, packed, 2)
    tolerances = (0.0, 1e-13) if dtype == torch.float64 else (5e-6, 2e-5)
    assert_same_function(stack, FAST, tolerances=tolerances, case=(kind, packed, dtype))


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(torch.float64, "small"), (torch.float32, "small"), (torch.float32, "oneDNN")],
    ids=str,
)
@packings
@kinds
def test_two_threads_find_the_same(kind, packed, dtype, way, monkeypatch):
    """At a size of which torch gives each thread a part of an operation on one step."""
    go(monkeypatch, products=way)
    stack = make_stack(kind, dtype=dtype, packed=[260, 259, 3] if packed else False, L=2, N=260, H=130)
    assert 259 * 130 > 2**15  # torch's grain of an operation on each element
    tolerances = (0.0, 1e-13) if dtype == torch.float64 else (5e-6, 2e-5)
    with threads(2):
        assert_same_function(stack, FAST, tolerances=tolerances, case=(kind, packed, dtype, way))


def sizes_to_ask(packed):
    """L and N, with one of them changed at a time, and both as they were."""
    if packed:
        return [{"packed": sizes} for sizes in (BATCH_SIZES, [4, 4, 3, 1], [4, 4, 4, 1, 1], BATCH_SIZES)]
    return [{"L": L, "N": N} for L, N in ((5, 4), (5, 2), (5, 4), (20, 4), (5, 4), (20, 2))]


@pytest.mark.parametrize("way", PRODUCTS)
@dtypes
@packings
@kinds
def test_the_same_weights_are_asked_again_with_one_size_changed(kind, packed, dtype, way, monkeypatch):
    go(monkeypatch, products=way)
    weights = make_stack(kind, D=2, dtype=dtype).weights
    for sizes in sizes_to_ask(packed):
        stack = make_stack(kind, D=2, dtype=dtype, **sizes)._replace(weights=weights)
        assert_same_function(stack, FAST, case=(kind, dtype, way, sizes))


# torch.nn's rounding ------------------------------------------------------------------------------------------------

MODULES = {
    "tanh": lambda library, H_in, H: library.RNN(H_in, H),
    "relu": lambda library, H_in, H: library.RNN(H_in, H, nonlinearity="relu"),
    "GRU": lambda library, H_in, H: library.GRU(H_in, H),
    "LSTM": lambda library, H_in, H: library.LSTM(H_in, H),
    "projection": lambda library, H_in, H: library.LSTM(H_in, H, proj_size=H // 2),
    "two layers, both directions": lambda library, H_in, H: library.LSTM(H_in, H, 2, bidirectional=True),
}


def seen(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients, in float64 whatever they were computed in."""
    output, hx = module(x)
    outputs = {"output": output, **{f"state[{k}]": s for k, s in enumerate(hx if isinstance(hx, tuple) else (hx,))}}
    found = outputs | gradients(outputs, {"input": x} | dict(module.named_parameters()))
    return {name: tensor.detach().double() for name, tensor in found.items()}


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("size", [(5, 3, 10, 20), (20, 32, 64, 128), (6, 64, 128, 256)], ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_float32_is_within_twice_torch_nns_error_against_float64(kind, size, scale, monkeypatch):
    """By the root mean square: the largest error says little, it being another draw each time."""
    monkeypatch.setattr(rnnkit.RNNBase, "path", "always fast")
    L, N, H_in, H = size
    torch.manual_seed(4)
    theirs, x = MODULES[kind](nn, H_in, H), (torch.randn(L, N, H_in) * scale).requires_grad_()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.startswith("bias"):
                parameter.mul_(scale)  # with the small inputs: gates near zero, where tanh has to be right relatively
    ours = MODULES[kind](rnnkit, H_in, H)
    ours.load_state_dict(theirs.state_dict())
    assert rnnkit.explain(ours, x).path == "fast"
    fast, native = seen(ours, x), seen(theirs, x)
    exact = seen(theirs.double(), x.detach().double().requires_grad_())
    for name, e in exact.items():
        own, other = ((found[name] - e).square().mean().sqrt().item() for found in (fast, native))
        allowed = 2 * other + 2**-25 * e.abs().max().item()
        assert own <= allowed, f"{name}: root mean square error {own:.2e}, torch.nn's {other:.2e}"
        assert_near({name: fast[name]}, {name: e}, 2**-19, kind)


# Which gradients ----------------------------------------------------------------------------------------------------


@dtypes
@packings
@kinds
def test_every_subset_of_gradients_may_be_wanted(kind, packed, dtype):
    """Of one direction: each set of tensors that want one, the others frozen."""
    stack = make_stack(kind, packed=packed, dtype=dtype)
    expected = gradients(results(stack, READABLE), leaves(stack))
    for names in subsets(leaves(stack)):
        wanted = wanting(stack, names)
        found = gradients(results(stack, FAST), wanted)
        assert_near(found, {name: expected[name] for name in found}, TOLERANCES[dtype][1], (kind, packed, names))


def twins(names):
    """Of two directions: every set of tensors of the reverse one alone, and every set against its reverse twins."""
    forward = [name for name in names if name.endswith("_l0")]
    for some in subsets(forward):
        others = [f"{name}_reverse" for name in forward if name not in some]
        yield tuple(f"{name}_reverse" for name in some)
        yield (*some, *others)


@pytest.mark.parametrize(
    ("dtype", "packed", "paired"),
    [(dtype, packed, False) for dtype in TOLERANCES for packed in (False, True)] + [(torch.float32, False, True)],
    ids=str,
)
@kinds
def test_a_weight_may_be_frozen_and_its_twin_of_the_other_direction_not(kind, packed, dtype, paired, monkeypatch):
    go(monkeypatch, paired=paired)
    stack = make_stack(kind, D=2, packed=packed, dtype=dtype)
    expected = gradients(results(stack, READABLE), leaves(stack))
    for names in twins(leaves(stack)):
        wanted = wanting(stack, names)
        found = gradients(results(stack, FAST), wanted)
        assert_near(found, {name: expected[name] for name in found}, TOLERANCES[dtype][1], (kind, packed, names))


@dtypes
@kinds
def test_only_the_gradients_that_are_needed_are_formed(kind, dtype, monkeypatch):
    formed, totals = [], []
    gradient, affine = products.gradient, products.affine

    class Watched(loop.Totals):
        def __init__(self, *args):
            super().__init__(*args)
            totals.append(self)

    def watched_gradient(dy):
        product = gradient(dy)
        return lambda x, total: formed.append(x) or product(x, total)

    def watched_affine(*args):
        product = affine(*args)
        return lambda x, out: formed.append(x) or product(x, out)

    stack = make_stack(kind, dtype=dtype)
    weights = {"w_ih", "w_hh", "w_hr"}
    for names in subsets(leaves(stack)):
        wanted = wanting(stack, names)
        outputs = results(stack, FAST)
        with monkeypatch.context() as watching:
            watching.setattr(products, "gradient", watched_gradient)
            watching.setattr(products, "affine", watched_affine)
            watching.setattr(loop, "Totals", Watched)
            formed.clear()
            gradients(outputs, wanted)
        own, total = {name.removesuffix("_l0") for name in names}, totals.pop()
        assert len(formed) == len(own & {"input", *weights}), names
        assert {name for name in weights if getattr(total, name) is not None} == own & weights, names
        assert (total.da is not None) == bool(own & {"b_ih", "b_hh"}), names


@dtypes
@packings
@directions
@kinds
def test_an_output_left_out_counts_for_nothing(kind, D, packed, dtype):
    stack = make_stack(kind, D=D, packed=packed, dtype=dtype)
    ours, theirs = results(stack, FAST), results(stack, READABLE)
    for names in subsets(ours):
        fast, readable = (
            gradients({name: found[name] for name in names}, leaves(stack), retain_graph=True)
            for found in (ours, theirs)
        )
        assert_near(fast, readable, TOLERANCES[dtype][1], (kind, D, packed, names))


@dtypes
@packings
@directions
@kinds
def test_gradients_of_two_calls_can_be_added(kind, D, packed, dtype):
    """As autograd does in place where one tensor goes into both."""
    stack = make_stack(kind, D=D, packed=packed, dtype=dtype)
    once = results(stack, FAST)
    twice = once | {f"again, {name}": y for name, y in results(stack, FAST).items()}
    expected = results(stack, READABLE)
    expected |= {f"again, {name}": y for name, y in results(stack, READABLE).items()}
    found, wanted = gradients(twice, leaves(stack)), gradients(expected, leaves(stack))
    assert_near(found, wanted, TOLERANCES[dtype][1], (kind, D, packed))


@dtypes
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "one by one"])
@kinds
def test_a_gradient_at_a_gate_of_exactly_0_is_the_readable_paths(kind, paired, dtype, monkeypatch):
    """Of relu that is 0, as torch.nn has it."""
    go(monkeypatch, paired=paired)
    stack = changed(make_stack(kind, D=2, dtype=dtype), torch.zeros_like)
    fast, readable = (gradients(results(stack, layer), leaves(stack)) for layer in (FAST, READABLE))
    assert_near(fast, readable, TOLERANCES[dtype][1], (kind, dtype))
    if kind == "relu":
        assert not any(grad.any() for grad in fast.values())


@dtypes
def test_relus_gradient_is_0_where_a_part_of_the_sum_is_exactly_0(dtype):
    """A step whose pre-activations are 0, in the midst of others whose are not."""
    stack = make_stack("relu", bias=False, dtype=dtype)
    with torch.no_grad():
        stack.input[2] = 0
        stack.weights[0].w_hh.zero_()
    outputs = results(stack, FAST)
    assert not outputs["output"][2].any()
    found = gradients(outputs, leaves(stack))
    assert_near(found, gradients(results(stack, READABLE), leaves(stack)), TOLERANCES[dtype][1], dtype)
    assert not found["grad of input"][2].any()
    assert found["grad of input"][3].any()


def test_one_tensor_in_two_places_has_the_sum_of_two_gradients():
    found = []
    for by in (FAST, READABLE):
        stack = make_stack(D=2)
        first = stack.weights[0]._replace(b_hh=stack.weights[0].b_ih)
        stack = stack._replace(weights=[first, first], states=[stack.states[0]] * 2)
        unique = {name: t for name, t in leaves(stack).items() if not name.endswith("reverse") and name != "b_hh_l0"}
        outputs = results(stack, by)
        once = gradients(outputs, unique, retain_graph=True)
        graph = gradients(outputs, unique, create_graph=True)
        twice = gradients(graph, unique)
        found.append(once | {f"twice, {name}": grad for name, grad in twice.items()})
    assert_near(*found, 1e-12)


# How tensors lie in memory ------------------------------------------------------------------------------------------


def spread(tensor):
    """The same values, in every second place of each dimension."""
    result = tensor.new_zeros([2 * n for n in tensor.shape])[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return result.copy_(tensor)


@pytest.mark.parametrize("way", WAYS, ids=named)
@dtypes
@packings
@kinds
def test_strides_do_not_matter(kind, packed, dtype, way, monkeypatch):
    go(monkeypatch, **way)
    stack = make_stack(kind, D=2, packed=packed, dtype=dtype)
    other = changed(stack, spread)
    assert not any(t.is_contiguous() for t in leaves(other).values() if t.dim() > 1)
    ours, theirs = results(stack, FAST), results(other, FAST)
    of_outputs, of_gradients = max(TOLERANCES[dtype][0], 1e-14), TOLERANCES[dtype][1]
    assert_near(theirs, ours, of_outputs, (kind, packed, dtype, way))
    assert_near(gradients(theirs, leaves(other)), gradients(ours, leaves(stack)), of_gradients, (kind, packed, way))


@pytest.mark.parametrize("options", [o for o in GRID if not o["packed"]], ids=named)
@dtypes
def test_the_batch_may_come_first(options, dtype):
    stack = make_stack(**options, N=5, H=7, L=7, dtype=dtype)
    stack = stack._replace(input=stack.input.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_())
    assert not stack.input.is_contiguous()
    assert_same_function(stack, FAST, case=(options, dtype))


@dtypes
@directions
@kinds
def test_expanded_inputs_states_and_gradients_will_do(kind, D, dtype):
    stack = make_stack(kind, D=D, dtype=dtype)
    rows = [tuple(s[:1].detach().requires_grad_() for s in state) for state in stack.states]
    step = stack.input[:1, :1].detach().requires_grad_()
    states = [tuple(row.expand(4, -1) for row in state) for state in rows]
    stack = stack._replace(input=step.expand(5, 4, 3), states=states)
    of = [step, *(row for state in rows for row in state)]
    found, expected = (
        {str(k): g for k, g in enumerate(torch.autograd.grad(results(stack, by)["output"].sum(), of))}
        for by in (FAST, READABLE)
    )
    assert_near(found, expected, 100 * torch.finfo(dtype).eps, (kind, D))


@pytest.mark.parametrize("way", PRODUCTS)
@dtypes
@packings
@directions
@kinds
def test_arguments_are_not_written_and_results_share_no_memory(kind, D, packed, dtype, way, monkeypatch):
    go(monkeypatch, products=way, spans="many", paired=False)  # a pair's states are parts of one tensor
    stack = make_stack(kind, layers=2, D=D, packed=packed, dtype=dtype)
    tensors = leaves(stack)
    before = {name: (t.detach().clone(), t._version) for name, t in tensors.items()}
    outputs = results(stack, FAST)
    gs = [torch.ones_like(y) for y in outputs.values()]
    grads = torch.autograd.grad([*outputs.values()], [*tensors.values()], gs)
    with torch.no_grad():
        again = results(stack, FAST)
    assert_near(tensors, {name: value for name, (value, _) in before.items()}, 0.0, (kind, D, packed, way))
    assert [t._version for t in tensors.values()] == [version for _, version in before.values()]
    assert all((g == 1).all() for g in gs)
    owners = {}
    for name, tensor in [*tensors.items(), *outputs.items(), *((f"{n}, again", t) for n, t in again.items())]:
        other = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
        assert other == name, f"{name} shares memory with {other}"
    of_gradients = [grad.untyped_storage().data_ptr() for grad in grads]
    assert len(set(of_gradients)) == len(of_gradients)
    assert not set(of_gradients) & set(owners)


@dtypes
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_an_rnns_igates_become_its_output(kind, graded, dtype, monkeypatch):
    """Nothing else is needed on the way back, so nothing else is kept."""
    stack, igates, affine = make_stack(kind, dtype=dtype), [], products.affine

    def watched(*args):
        product = affine(*args)
        return lambda x, out: (igates.append(product(x, out)), igates[-1])[1]

    monkeypatch.setattr(products, "affine", watched)
    with torch.set_grad_enabled(graded):
        output = results(stack, FAST)["output"]
    assert loop.new_tape(stack.direction(0, stack.input, False)) == []
    assert [t.data_ptr() for t in igates] == [output.data_ptr()] * (dtype == torch.float32)


@dtypes
@pytest.mark.parametrize("way", WAYS, ids=named)
@packings
@kinds
def test_a_tape_is_allocated_as_long_as_all_rows_and_all_of_it_is_written(kind, packed, way, dtype, monkeypatch):
    """So the compiler can know its sizes before any step is taken."""
    go(monkeypatch, **way)
    stack = make_stack(kind, packed=packed, dtype=dtype)
    direction = stack.direction(0, stack.input, False)
    tape = loop.new_tape(direction)
    for tensor in tape:
        assert tensor.size(0) == sum(direction.step_sizes)
        tensor.fill_(torch.nan)
    with torch.no_grad():
        Loop(direction).forward(tape)
    assert not any(tensor.isnan().any() for tensor in tape)


# Rows without a step, and the rest ----------------------------------------------------------------------------------


@dtypes
@directions
@kinds
@pytest.mark.parametrize("sizes", [[2] * 12, BATCH_SIZES], ids=str)
def test_a_row_without_any_step_keeps_its_state(sizes, kind, D, dtype):
    stack = make_stack(kind, D=D, dtype=dtype, packed=sizes, N=max(sizes) + 3)
    assert_same_function(stack, FAST, case=(sizes, kind, D))
    fast = results(stack, FAST)
    for k, state in enumerate(stack.states):
        for letter, given in zip(stack.equation.state, state, strict=True):
            name = f"{letter}_n[{k}]"
            assert_near({name: fast[name][max(sizes) :]}, {name: given[max(sizes) :]}, 0.0, (sizes, kind, D))


@pytest.mark.parametrize("way", WAYS, ids=named)
@dtypes
@packings
@kinds
def test_equal_calls_give_equal_bits(kind, packed, dtype, way, monkeypatch):
    go(monkeypatch, **way)
    stack = make_stack(kind, layers=2, D=2, packed=packed, dtype=dtype)
    first, second = results(stack, FAST), results(stack, FAST)
    assert_near(first, second, 0.0, (kind, packed, dtype, way))
    assert_near(gradients(first, leaves(stack)), gradients(second, leaves(stack)), 0.0, (kind, packed, dtype, way))


@dtypes
def test_dropout_makes_the_readable_paths_draws(dtype):
    stack, runs = make_stack(layers=3, D=2, dropout=0.5, dtype=dtype), []
    for by in (FAST, READABLE):
        torch.manual_seed(5)
        runs.append(results(stack, by) | {"the next draw": torch.rand(1)})
    assert_near(*runs, TOLERANCES[dtype][0])
    assert not torch.equal(results(stack._replace(dropout=0.0), FAST)["output"], runs[0]["output"])


@dtypes
@packings
@kinds
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_loop_differentiates_what_it_computed(reverse, kind, packed, dtype):
    """Loop.backward by itself, of its own tape: without autograd around it."""
    stack = make_stack(kind, packed=packed, dtype=dtype)
    direction = stack.direction(0, stack.input, reverse)
    outputs, tensors = direction_results(direction, unroll), leaves(stack)
    expected = gradients(outputs, tensors)
    draws = torch.Generator().manual_seed(2)
    gs = [torch.randn(y.shape, generator=draws, dtype=torch.float64).to(dtype) for y in outputs.values()]
    with torch.no_grad():
        run, tape = Loop(direction), loop.new_tape(direction)
        output, state = run.forward(tape)
        assert_near(dict(zip(outputs, (output, *state), strict=True)), outputs, 0.0, (reverse, kind, packed))
        found = run.backward(output, tape, gs, [True] * len(direction.tensors))
    of = [g for g, t in zip(found, direction.tensors, strict=True) if t is not None]
    assert_near(dict(zip(expected, of, strict=True)), expected, 0.0, (reverse, kind, packed))
    assert_alive(expected)


def test_every_leaf_has_its_place_in_a_case():
    """What these tests stand on: with_leaves undoes leaves."""
    stack = make_stack("LSTM-proj", layers=2, D=2, packed=True)
    again = with_leaves(stack, leaves(stack))
    assert all(a is b for a, b in zip(again.tensors, stack.tensors, strict=True))
