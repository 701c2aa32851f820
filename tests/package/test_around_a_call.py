"""What programs do around a call: before it, within it, and between it and its backward."""

import copy
import functools
import itertools
import pickle
import warnings

import pytest
import torch
from helpers import (
    H_IN,
    KINDS,
    H,
    N,
    arguments,
    as_list,
    assert_equal_tensors,
    build,
    numbered,
    outcome,
    pair,
    product,
    randn,
    tensors,
)
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit

PATHS = ("fast", "always fast", "readable")
FLOATS = (torch.float64, torch.float32)
STEPS = (3, 20)  # by default the readable path, and the fast one
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-4}


def batch(module, steps, form="padded", seed=5):
    """An input of that form in the module's dtype."""
    shape = (N, steps) if module.batch_first else (steps, N)
    x = randn(*shape, H_IN, seed=seed, dtype=module.weight_ih_l0.dtype)
    if form == "unbatched":
        return x.select(0 if module.batch_first else 1, 0)
    return pack_padded_sequence(x, [steps, 2, 1], module.batch_first) if form == "packed" else x


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_a_view_only_where_torch_nns_is_one(kind, path, native_loops):
    """So that what torch.nn lets a caller write on, without a gradient or detached in place, is his here, too."""
    for way in product(batch_first=(False, True), bidirectional=(False, True), num_layers=(1, 2), dtype=FLOATS):
        native, kit = pair(kind, **way)  # with a graph and batch_first a view is one that may be written on
        kit.path = path
        for form, steps, graph in itertools.product(("padded", "packed", "unbatched"), STEPS, (False, True)):
            with torch.set_grad_enabled(graph):
                views = [
                    {name: t._is_view() for name, t in tensors(m(batch(m, steps, form))).items()} for m in (native, kit)
                ]
            allowed = ["output"] if graph and way["batch_first"] else []
            more = [name for name, view in views[1].items() if view and not views[0][name] and name not in allowed]
            assert not more, (kind, path, way, form, steps, graph)  # torch.nn's LSTM has more: it transposes its output


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_without_a_graph_may_be_written_on_with_one(kind, batch_first, native_loops):
    _, kit = pair(kind, batch_first=batch_first)
    two = nn.Parameter(torch.full((1,), 2.0, dtype=torch.float64))
    for kit.path, steps in itertools.product(PATHS, STEPS):
        with torch.no_grad():
            output, _ = kit(batch(kit, steps))
        expected = 2 * output
        assert_equal_tensors({"output": output.mul_(two)}, {"output": expected}, 0.0, f"{kind}, {kit.path}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_records_nothing_whatever_is_enabled_within(kind, dtype, native_loops):
    for way in product(bidirectional=(False, True), batch_first=(False, True)):
        native, kit = pair(kind, dtype=dtype, **way)
        for kit.path, kit.checkpoint_every, steps in itertools.product(PATHS, (None, 2), STEPS):
            with torch.inference_mode(), torch.enable_grad():
                expected, found = (tensors(module(batch(module, steps))) for module in (native, kit))
            assert not any(t.requires_grad for t in found.values())
            assert_equal_tensors(found, expected, CLOSE[dtype], f"{kind}, {way}, {kit.path}, {steps} steps")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_first_buffer_may_be_filled_anew_before_backward(kind, dtype, native_loops):
    for way in product(bidirectional=(False, True)):
        native, kit = pair(kind, dtype=dtype, batch_first=True, **way)
        for kit.path, kit.checkpoint_every, steps in itertools.product(PATHS, (None, 2), STEPS):
            grads = []
            for module in (native, kit):
                buffer, loss = torch.zeros(N, steps, H_IN, dtype=dtype), torch.zeros((), dtype=dtype)
                for k in range(3):
                    buffer.copy_(batch(module, steps, seed=k))
                    loss = loss + module(buffer)[0].square().sum()
                grads.append(numbered("grad", torch.autograd.grad(loss, [*module.parameters()])))
            case = f"{kind}, {way}, {kit.path}, checkpoint_every={kit.checkpoint_every}, {steps} steps"
            most = max(t.abs().max().item() for t in grads[0].values())
            assert_equal_tensors(grads[1], grads[0], CLOSE[dtype] * max(1.0, most), case)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_a_program_sets_are_its_own(kind):
    """For one `for name, m in model.named_modules(): m.name = name`. Of these torch.nn's RNN itself reads mode."""
    for cell in (False, True):
        if kind == "LSTM-proj" and cell:
            continue
        module = build(rnnkit, kind, cell)
        x = randn(N, H_IN, seed=1) if cell else batch(module, 4)
        before = numbered("result", as_list(module(x)) if cell else [*tensors(module(x)).values()])
        module.name, module._states, module.kind = "encoder", None, 3
        if "LSTM" in kind or "GRU" in kind:
            module.mode = "train"
        after = numbered("result", as_list(module(x)) if cell else [*tensors(module(x)).values()])
        assert_equal_tensors(after, before, 0.0, f"{kind}, cell: {cell}")


@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_may_check_a_call_by_torch_nns_signature(kind, given):
    """(input, hidden, batch_sizes), of which hidden is always a state."""
    seen = []
    for library in (nn, rnnkit):
        base = type(build(library, kind))

        class Checked(base):
            def check_forward_args(self, input, hidden, batch_sizes):
                seen.append([tuple(t.shape) for t in as_list(hidden)])
                super().check_forward_args(input, hidden, batch_sizes)

        module = Checked(H_IN, H, **KINDS[kind][1])
        hx = tuple(torch.zeros(size) for size in ((1, N, module.proj_size or H), (1, N, H)))
        hx = hx if "LSTM" in kind else hx[0]
        module(torch.zeros(4, N, H_IN), hx if given else None)
        with pytest.raises(RuntimeError, match=r"input\.size\(-1\) must be equal to input_size"):
            module(torch.zeros(4, N, H_IN + 1))
    assert seen[0] == seen[2]


@pytest.mark.parametrize("form", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_subclass_overrides_is_asked_as_by_torch_nn(kind, given, form):
    seen = []
    for library in (nn, rnnkit):
        calls = []

        def noted(name, base, calls=calls):
            @functools.wraps(getattr(base, name))
            def method(self, *args):
                calls.append((name, len(args)))
                return getattr(base, name)(self, *args)

            return method

        base = type(build(library, kind))
        names = ["get_expected_hidden_size", "check_hidden_size", "permute_hidden"]
        names += ["get_expected_cell_size"] * ("LSTM" in kind)
        module = type(base.__name__, (base,), {name: noted(name, base) for name in names})(H_IN, H, **KINDS[kind][1])
        hx = arguments(module.double(), form)[1] if given else None
        module(batch(module, 4, form), hx)
        seen.append({*calls})
    if form == "packed" and "LSTM" in kind:  # which torch.nn has its kernel check
        seen = [{call for call in calls if call[0] == "permute_hidden"} for calls in seen]
    assert seen[1] == seen[0]


def test_a_subclass_may_expect_other_sizes():
    class Wide(rnnkit.GRU):
        def get_expected_hidden_size(self, input, batch_sizes):
            return (1, 2, 5)

    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 5\), got \[1, 3, 4\]"):
        Wide(H_IN, 4)(torch.zeros(2, 3, H_IN), torch.zeros(1, 3, 4))


HARM = {
    "NaN": lambda y: (y - y.detach()).norm(dim=-1).sqrt().sum(),  # the root's slope at zero is infinite
    "infinite": lambda y: (y * torch.inf).sum(),
    "overflow": lambda y: (y * 3e38).sum(),  # finite when it arrives, and infinite after some steps
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_stays_in_its_direction(kind, harm, native_loops):
    """In float32, where both directions of a small layer are run at once."""
    _, kit = pair(kind, dtype=torch.float32, bidirectional=True)
    x = batch(kit, 40)
    names = [name for name, _ in kit.named_parameters()]
    for kit.path, kit.checkpoint_every, hurt in itertools.product(("fast", "readable"), (None, 8), (0, 1)):

        def grads(losses, hurt=hurt):
            kit.zero_grad()
            ends = kit(x)[0].chunk(2, -1)
            sum(loss(end) for loss, end in zip(losses if hurt == 0 else losses[::-1], ends, strict=True)).backward()
            return {name: p.grad for name, p in kit.named_parameters()}

        found = grads((HARM[harm], torch.sum))
        alone = grads((lambda y: 0 * y.sum(), torch.sum))
        clean = [name for name in names if name.endswith("_reverse") == (hurt == 0)]
        case = f"{kind}, {harm} in direction {hurt}, {kit.path}, checkpoint_every={kit.checkpoint_every}"
        assert not all(found[name].isfinite().all() for name in names if name not in clean), case
        assert_equal_tensors({n: found[n] for n in clean}, {n: alone[n] for n in clean}, 1e-4, case)


class Counted(nn.Module):
    """A parametrization whose weight differs each time that it is computed."""

    times = 0

    def forward(self, weight):
        self.times += 1
        return weight * (1 + self.times)


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTM-proj"])
def test_a_parametrized_weight_is_computed_once_a_call(kind, cell):
    for name in dict(build(rnnkit, kind, cell).named_parameters()):
        module, counted = build(rnnkit, kind, cell), Counted()
        parametrize.register_parametrization(module, name, counted, unsafe=True)
        before = counted.times
        module(randn(N, H_IN, seed=1) if cell else randn(4, N, H_IN, seed=1))
        assert counted.times == before + 1, name


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_wanted_a_gradient_in_forward_has_one_whatever_is_frozen_since(kind, bidirectional, native_loops):
    """And what wanted none has none: between the two a GAN freezes one of its networks and thaws another."""
    native, kit = pair(kind, bidirectional=bidirectional)
    for kit.path, steps, then in itertools.product(PATHS, STEPS, (False, True)):
        grads = []
        for module in (native, kit):
            module.requires_grad_(not then).zero_grad()
            x = batch(module, steps).requires_grad_()
            output, _ = module(x)
            module.requires_grad_(then)
            (dx,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            dx.square().sum().backward()
            of_weights = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            grads.append({"dx": dx, "grad of dx": x.grad} | of_weights)
            module.requires_grad_(True)
        case = f"{kind}, {kit.path}, {steps} steps, {'thawed' if then else 'frozen'}"
        assert [*grads[0]] == [*grads[1]], case
        assert_equal_tensors(grads[1], grads[0], 1e-9, case)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_goes_by_what_forward_saw_whatever_data_are_exchanged_since(kind, bidirectional, native_loops):
    """`p.data = ...`, which autograd doesn't see, of every leaf: weights, input, states; also in a second backward."""
    native, kit = pair(kind, bidirectional=bidirectional)
    before = copy.deepcopy(native.state_dict())
    for kit.path, checkpoint_every, steps, again in itertools.product(PATHS, (None, 2), STEPS, (False, True)):
        kit.checkpoint_every, grads = checkpoint_every, []
        for module in (native, kit):
            module.load_state_dict(before)
            module.zero_grad()
            x, hx = arguments(module, steps=steps)
            x, states = x.requires_grad_(), [state.requires_grad_() for state in as_list(hx)]
            output, _ = module(x, hx)
            for leaf in (x, *states, *module.parameters()):
                leaf.data = torch.full_like(leaf, 7.0)
            (dx,) = torch.autograd.grad(output.square().sum(), x, create_graph=again, retain_graph=True)
            (dx.square().sum() if again else output.sum()).backward()
            leaves = {"x": x} | numbered("state", states) | dict(module.named_parameters())
            grads.append({"dx": dx} | {name: t.grad for name, t in leaves.items() if t.grad is not None})
        case = f"{kind}, {kit.path}, {steps} steps, checkpoints {checkpoint_every}, again {again}"
        assert_equal_tensors(grads[1], grads[0], 1e-9, case, relative=1e-9)


def refused(call):
    """How a call's exception begins, type first; nothing where it has none."""
    return " ".join(outcome(call)).strip()[:90]


SMALL_AND_LARGE = pytest.mark.parametrize("hidden", [H, 256])  # of small ones both directions run as a pair


@SMALL_AND_LARGE
@pytest.mark.parametrize("written", ["weight", "input", "state"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_who_writes_on_what_backward_needs_is_refused(kind, bidirectional, written, hidden, native_loops):
    for dtype, steps in itertools.product(FLOATS, STEPS):
        answers = []
        for module in pair(kind, bidirectional=bidirectional, dtype=dtype, hidden_size=hidden):
            x, hx = batch(module, steps), arguments(module)[1]
            hx = tuple(s.detach() for s in hx) if isinstance(hx, tuple) else hx.detach()
            output, _ = module(x, hx)
            with torch.no_grad():
                {"weight": module.weight_hh_l0, "input": x, "state": as_list(hx)[0]}[written].add_(1)
            answers.append(refused(output.sum().backward))
        assert answers[0], "torch.nn refuses"
        assert answers[1] == answers[0], f"{dtype}, {steps} steps"


@SMALL_AND_LARGE
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_inference_mode_is_refused_where_gradients_are_asked_for(kind, bidirectional, hidden):
    """Else it would never learn, and nobody would be told."""
    for dtype, steps in itertools.product(FLOATS, STEPS):
        with torch.inference_mode():
            module = build(rnnkit, kind, bidirectional=bidirectional, dtype=dtype, hidden_size=hidden)
        x = batch(module, steps)
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            module(x)
        with torch.no_grad():
            module(x)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_contiguous(kind, bidirectional, native_loops):
    """A program may lay them on end by `view`."""
    for dtype, steps, batch_first in itertools.product(FLOATS, STEPS, (False, True)):
        module = build(rnnkit, kind, bidirectional=bidirectional, dtype=dtype, batch_first=batch_first)
        output, _ = module(batch(module, steps))
        grads = torch.autograd.grad(output.sum(), list(module.parameters()))
        assert [tuple(g.shape) for g in grads if not g.is_contiguous()] == [], f"{dtype}, {steps} steps"


class Stops(torch.autograd.Function):
    """The same numbers, whose gradient goes no further."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.filterwarnings("ignore:Using backward.* with create_graph")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_where_no_gradient_arrives_none_is_passed_on(kind, create_graph, native_loops):
    for bidirectional, dtype, steps in itertools.product((False, True), FLOATS, STEPS):
        shown = []
        for module in pair(kind, bidirectional=bidirectional, dtype=dtype):
            output, _ = module(batch(module, steps))
            Stops.apply(output).sum().backward(create_graph=create_graph)
            shown.append([name for name, p in module.named_parameters() if p.grad is not None])
        assert shown[1] == shown[0] == []


def test_flat_weights_that_were_assigned_do_not_outlive_a_move():
    """torch.nn takes up the parameters again, which were moved."""
    native, kit = pair("GRU", dtype=torch.float32)
    for module in (native, kit):
        module._flat_weights = [2 * weight for weight in module._flat_weights]
        module.double()
    x = batch(kit, 4)
    assert_equal_tensors({"output": kit(x)[0]}, {"output": native(x)[0]}, 1e-12, "GRU")


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_has_its_parameters_for_flat_weights_whatever_was_assigned(copied):
    native, kit = pair("GRU")
    x, outputs = batch(kit, 4), []
    for module in (native, kit):
        module._flat_weights = [2 * weight.detach() for weight in module._flat_weights]
        outputs.append({"output": copied(module)(x)[0], "and of the first": module(x)[0]})
    assert_equal_tensors(outputs[1], outputs[0], 1e-12, "GRU")


@pytest.mark.parametrize("mode", ["LSTM", "RNN", None])
def test_an_rnns_mode_is_one_of_two(mode):
    native, kit = pair("tanh")
    native.mode = kit.mode = mode
    expected = outcome(native, batch(kit, 4))
    assert outcome(kit, batch(kit, 4)) == expected
    assert expected[0] == "AssertionError"


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTM-proj"])
def test_a_trace_warns_of_no_more_than_torch_nns(kind, cell):
    counts = []
    for library in (nn, rnnkit):
        module, x = build(library, kind, cell), randn(*(() if cell else (4,)), N, H_IN, seed=1)
        h = torch.zeros(*(() if cell else (1,)), N, H, dtype=torch.float64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.jit.trace(module, (x, (h, h) if kind == "LSTM" else h))
            torch.jit.trace(module, (x,))
        counts.append(sum(issubclass(w.category, torch.jit.TracerWarning) for w in caught))
    assert counts[1] <= counts[0]


#: Of G gates of H units: what a weight may be that somebody has put in its place.
OTHER_SIZES = {
    "weight_hh_l0": lambda rows: [(H, H), (rows + H, H), (rows, H + 1), (rows, H - 1)],
    "weight_ih_l0": lambda rows: [(H, H_IN), (2 * rows, H_IN), (rows, H_IN + 1)],
    "bias_ih_l0": lambda rows: [(1,), (1, rows), (2 * rows,), (rows + 1,), (H,)],
    "bias_hh_l0": lambda rows: [(1,), (1, rows), (2 * rows,), (rows + 1,), (H,)],
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTM-proj"])
def test_a_weight_of_another_size_is_broadcast_or_refused_as_by_torch_nn(kind, bidirectional, native_loops):
    for (name, shapes), dtype, steps, graph in itertools.product(OTHER_SIZES.items(), FLOATS, STEPS, (True, False)):
        rows = build(nn, kind).weight_hh_l0.size(0)
        for shape in shapes(rows):
            answers = []
            for module in pair(kind, bidirectional=bidirectional, dtype=dtype):
                setattr(module, name, nn.Parameter(randn(*shape, seed=3, dtype=dtype)))
                x = batch(module, steps)
                with torch.set_grad_enabled(graph):
                    said = outcome(lambda: module(x)[0].sum())  # noqa: B023
                    answers.append(said if any(said) else module(x)[0].detach())
            case = f"{name} {shape}, {dtype}, {steps} steps, {'with' if graph else 'without'} a graph"
            if isinstance(answers[0], torch.Tensor):
                assert isinstance(answers[1], torch.Tensor), f"{case}: {answers[1]}"
                assert_equal_tensors({"output": answers[1]}, {"output": answers[0]}, 2e3 * torch.finfo(dtype).eps, case)
            else:
                assert answers[1] == answers[0], case
