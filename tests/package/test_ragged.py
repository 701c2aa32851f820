"""`lengths=` is pack, run, pad back, and `resets=` is every segment alone: against torch.nn, over a full product.

Each call runs packed, by the readable path and the fast one; by masks, as in a graph; and with rows that are shut once
they are through, as on a GPU: by the fast path and by the fused one.
"""

import pytest
import torch
from helpers import (
    H_IN,
    KINDS,
    H,
    L,
    N,
    arguments,
    as_list,
    assert_equal_tensors,
    assert_same,
    build,
    named,
    outcome,
    pair,
    product,
    randn,
    slow,
    weighed,
)
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import rnnkit
from parity.grid.ragged import Ragged, packed
from parity.grid.ragged import alone as by_segments
from rnnkit import paths, recurrence
from rnnkit.fast import fused

GRID = product(
    num_layers=[1, 2], bias=[True, False], batch_first=[False, True], bidirectional=[False, True], hx=[True, False]
)
DEEP = {"num_layers": 2, "bidirectional": True}
LENGTHS = torch.tensor([3, 5, 1])
#: Rows that begin anew at once, in the middle, twice running, at the last step, or never. (L, N)
RESETS = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool).t().contiguous()
#: Where nobody reads lengths, by path.
SHUT = {"readable": "masked", "always fast": "shut, fast", "fused": "shut, fused"}
RAGGED = {"lengths": LENGTHS, "resets": RESETS}
kinds = pytest.mark.parametrize("kind", KINDS)
few = pytest.mark.parametrize("kind", ["LSTM-proj", "GRU"])  # where a test takes long
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
mostly_in_float64 = pytest.mark.parametrize("dtype", [torch.float64, *slow([torch.float32])])


def alone(module, input, hx, lengths, resets, reset_to):
    """What torch.nn gives for every segment of every row alone, put together. `resets` are (L, N)."""
    resets = resets.t() if module.batch_first else resets
    sizes = [module.proj_size or H, H][: 1 + (module.mode == "LSTM")]
    return by_segments(module, input, hx, Ragged(lengths, resets, reset_to), sizes)


def observe(module, run, *leaves):
    """The results of a run, and the gradients of a random weighting of them all."""
    wanted = [leaf for leaf in [*tree_leaves(leaves), *module.parameters()] if leaf is not None]
    return weighed(run(), wanted)


def ways(monkeypatch):
    """Each way that a call may run: its name; what it finds is bit for bit what torch.nn's packing gives."""
    with torch.backends.mkldnn.flags(enabled=False), monkeypatch.context() as patch:
        for path in ("readable", "always fast"):
            patch.setattr(rnnkit.RNNBase, "path", path)
            yield path
        patch.setattr(paths, "packs", lambda stack: False)
        patch.setattr(torch, "compile", lambda function, **_: function)  # a minute; that it compiles, others show
        fused.compiled.cache_clear()
        for path, way in SHUT.items():
            patch.setattr(rnnkit.RNNBase, "path", path)
            yield way
    fused.compiled.cache_clear()


def case(kind, dtype, hx=True, **options):
    native, kit = pair(kind, dtype=dtype, **options)
    input, state = arguments(kit, hx=hx)
    return native, kit, input, state


# Lengths ------------------------------------------------------------------------------------------------------------


@kinds
@mostly_in_float64
def test_lengths_are_packing(kind, dtype, monkeypatch):
    eps = torch.finfo(dtype).eps
    for options in GRID:
        native, kit, input, hx = case(kind, dtype, **options)
        with torch.backends.mkldnn.flags(enabled=False):
            expected = observe(native, lambda: packed(native, input, hx, LENGTHS), input, hx)  # noqa: B023
        for way in ways(monkeypatch):
            found = observe(kit, lambda: kit(input, hx, lengths=LENGTHS), input, hx)  # noqa: B023
            assert_equal_tensors(found, expected, 0.0 if way == "readable" else 2e3 * eps, f"{named(options)}, {way}")


@pytest.mark.parametrize(
    "lengths", [[3, 5, 1], (3, 5, 1), LENGTHS.to(torch.int32), LENGTHS.to(torch.uint8)], ids=["list", "tuple", "i", "u"]
)
def test_lengths_may_be_a_list_or_of_any_integers(lengths, monkeypatch):
    _, kit, input, hx = case("LSTM", torch.float64, **DEEP)
    expected = kit(input, hx, lengths=LENGTHS)
    for way in ways(monkeypatch):
        found = kit(input, hx, lengths=lengths)
        assert_close(found, expected, way)


def assert_close(found, expected, case=""):
    numbered = [{f"{k}": t.detach() for k, t in enumerate(tree_leaves(each))} for each in (expected, found)]
    assert_same(*numbered, "fast", case)


@kinds
@pytest.mark.parametrize("lengths", [[0, 5, 0], [0, 0, 0]], ids=str)
def test_a_row_of_length_0_keeps_its_state(kind, lengths, monkeypatch):
    native, kit, input, hx = case(kind, torch.float64, **DEEP)
    for _ in ways(monkeypatch):
        for resets in (None, RESETS):
            output, state = kit(input, hx, lengths=lengths, resets=resets)
            for n, length in enumerate(lengths):
                assert not output[length:, n].any()
                if not length:
                    assert all(y[:, n].equal(s[:, n]) for y, s in zip(as_list(state), as_list(hx), strict=True))
            output.sum().backward()  # though there is nothing to go back through
            assert not input.grad[:, 0].any()
    assert output.shape == native(input, hx)[0].shape


@kinds
def test_sizes_of_0(kind, monkeypatch):
    module = build(rnnkit, kind, **DEEP)
    for _ in ways(monkeypatch):
        for steps, rows in ((0, 2), (4, 0)):
            input = randn(steps, rows, H_IN, seed=1)
            resets = torch.zeros(steps, rows, dtype=torch.bool)
            expected = module(input)
            assert_close(module(input, lengths=[0] * rows, resets=resets), expected)


@kinds
def test_an_unbatched_input_has_one_length(kind, monkeypatch):
    _, kit = pair(kind, **DEEP)
    input, hx = arguments(kit, "unbatched")
    expected, state = kit(input[:3], hx)
    expected = torch.cat((expected, torch.zeros(2, expected.size(1)).double())), state
    for way in ways(monkeypatch):
        assert_close(kit(input, hx, lengths=torch.tensor(3)), expected, way)
        assert_close(kit(input, hx, lengths=3), expected, way)


@kinds
def test_what_padding_holds_reaches_nothing(kind, monkeypatch):
    _, kit, input, hx = case(kind, torch.float64, **DEEP)
    poisoned = input.detach().clone()
    poisoned[torch.arange(L)[:, None] >= LENGTHS] = float("nan")
    poisoned.requires_grad_()
    for way in ways(monkeypatch):
        expected = observe(kit, lambda: kit(input, hx, lengths=LENGTHS), input, hx)
        assert_same(expected, observe(kit, lambda: kit(poisoned, hx, lengths=LENGTHS), poisoned, hx), "fast", way)


@kinds
def test_lengths_may_be_written_on_after_a_call(kind, monkeypatch):
    _, kit, input, hx = case(kind, torch.float64, **DEEP)

    def gradients(written):
        lengths = LENGTHS.clone()
        output, _ = kit(input, hx, lengths=lengths)
        if written:
            lengths.fill_(1)
        grads = torch.autograd.grad(output.square().sum(), [input, *kit.parameters()], create_graph=True)
        return [*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), [input, *kit.parameters()])]

    for way in ways(monkeypatch):
        assert_close(gradients(written=True), gradients(written=False), way)


@kinds
@pytest.mark.parametrize("harm", [float("nan"), float("inf")])
def test_a_row_without_steps_spoils_no_other(kind, harm, monkeypatch):
    _, kit, input, hx = case(kind, torch.float64, **DEEP)
    with torch.no_grad():
        for state in as_list(hx):
            state[:, 1] = harm
    for way in ways(monkeypatch):
        found = observe(kit, lambda: kit(input, hx, lengths=[3, 0, 2])[0], input)
        assert all(t.isfinite().all() for t in found.values()), way
        _, states = kit(input, hx, lengths=[3, 0, 2])
        for state, given in zip(as_list(states), as_list(hx), strict=True):
            torch.testing.assert_close(state[:, 1], given[:, 1], equal_nan=True, rtol=0, atol=0)


@kinds
def test_lengths_that_nobody_reads_end_with_the_input(kind, monkeypatch):
    """On a GPU an index beyond it would leave the device unusable."""
    _, kit, input, hx = case(kind, torch.float64, **DEEP)
    expected = kit(input, hx, lengths=[5, 0, 2])
    for way in ways(monkeypatch):
        if way in SHUT.values():
            assert_close(kit(input, hx, lengths=torch.tensor([9, -3, 2])), expected, way)


@kinds
def test_a_row_that_is_through_does_not_grow_on(kind, monkeypatch):
    """Such weights would carry it beyond all numbers, and an infinity times a gradient of 0 is a NaN."""
    _, kit, *_ = case(kind, torch.float32)
    input, lengths = torch.ones(100, N, H_IN, requires_grad=True), torch.tensor([2, 3, 1])
    with torch.no_grad():
        for weight in kit.parameters():
            weight.fill_(2)
    found = {way: observe(kit, lambda: kit(input, lengths=lengths), input) for way in ways(monkeypatch)}
    assert all(t.isfinite().all() for t in found["readable"].values())
    for way in found:
        assert_same(found["readable"], found[way], "fast", way)


def test_dropout_stands_where_packing_has_it(monkeypatch):
    native, kit, input, hx = case("GRU", torch.float64, num_layers=2, dropout=0.5)
    torch.manual_seed(1)
    expected = packed(native, input, hx, LENGTHS)
    for way in ways(monkeypatch):
        torch.manual_seed(1)
        found = kit(input, hx, lengths=LENGTHS)
        if way not in SHUT.values():  # whose masks are drawn for padding, too
            assert_close(found, expected, way)
        torch.manual_seed(2)
        assert (kit(input, hx, lengths=LENGTHS)[0] != found[0]).any()
        kit.eval()
        assert_close(kit(input, hx, lengths=LENGTHS), packed(native.eval(), input, hx, LENGTHS), way)
        kit.train()


@pytest.mark.parametrize("every", [1, 2, 7])
def test_checkpoints_change_no_value(every, monkeypatch):
    _, kit, input, hx = case("LSTM", torch.float64, **DEEP)
    expected = observe(kit, lambda: kit(input, hx, **RAGGED), input, hx)
    for way in ways(monkeypatch):
        kit.checkpoint_every = every
        assert_same(expected, observe(kit, lambda: kit(input, hx, **RAGGED), input, hx), "fast", way)


# Resets -------------------------------------------------------------------------------------------------------------


@kinds
@mostly_in_float64
def test_resets_are_every_segment_alone(kind, dtype, monkeypatch):
    """With lengths in one half of the cases and reset_to in another, so that each meets every value of each axis."""
    for options in GRID:
        native, kit, input, hx = case(kind, dtype, **options)
        deep, both, given, biased, turned = (
            kit.num_layers > 1,
            kit.bidirectional,
            hx is not None,
            kit.bias,
            kit.batch_first,
        )
        lengths = LENGTHS if deep ^ both ^ given else None
        reset_to = arguments(kit, seed=5)[1] if biased ^ turned ^ given else None
        expected = observe(native, lambda: alone(native, input, hx, lengths, RESETS, reset_to), input, hx, reset_to)  # noqa: B023
        resets = RESETS.t() if kit.batch_first else RESETS
        for way in ways(monkeypatch):
            given = {"lengths": lengths, "resets": resets, "reset_to": reset_to}
            found = observe(kit, lambda: kit(input, hx, **given), input, hx, reset_to)  # noqa: B023
            assert_same(expected, found, "fast", f"{named(options)}, {way}")


@kinds
def test_resets_are_a_loop_of_cells(kind, monkeypatch):
    if kind == "LSTM-proj":
        pytest.skip("no cell projects")
    _, kit, input, hx = case(kind, torch.float64)
    cell = build(rnnkit, kind, cell=True)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in kit.state_dict().items()})
    state, outputs = [s[0] for s in as_list(hx)], []
    for x, reset in zip(input, RESETS, strict=True):
        state = [s * ~reset.unsqueeze(1) for s in state]
        state = as_list(cell(x, tuple(state) if len(state) > 1 else state[0]))
        outputs.append(state[0])
    expected = torch.stack(outputs), [s.unsqueeze(0) for s in state]
    for way in ways(monkeypatch):
        assert_close(kit(input, hx, resets=RESETS), expected, way)


@kinds
def test_an_unbatched_input_has_resets(kind, monkeypatch):
    native, kit = pair(kind, **DEEP)
    input, hx = arguments(kit, "unbatched")
    batched = [s.unsqueeze(1) for s in as_list(hx)]
    batched = tuple(batched) if len(batched) > 1 else batched[0]
    output, state = alone(native, input.unsqueeze(1), batched, None, RESETS[:, :1], None)
    expected = output.squeeze(1), [s.squeeze(1) for s in as_list(state)]
    for way in ways(monkeypatch):
        assert_close(kit(input, hx, resets=RESETS[:, 0]), expected, way)
        expected_to = kit(input.unsqueeze(1), batched, resets=RESETS[:, :1], reset_to=batched)
        found = kit(input, hx, resets=RESETS[:, 0], reset_to=hx)
        assert_close(found, [t.squeeze(1) for t in tree_leaves(expected_to)], way)


@kinds
def test_no_gradient_crosses_a_reset(kind, monkeypatch):
    _, kit, input, hx = case(kind, torch.float64, num_layers=2)
    for _ in ways(monkeypatch):
        output, _ = kit(input, hx, resets=RESETS)
        (found,) = torch.autograd.grad(output[3:, 0].sum(), input)
        assert found[3:, 0].any()
        assert not found[:3].any()
        assert not found[:, 1:].any()


@few
def test_gradients_of_gradients(kind, monkeypatch):
    _, kit, input, hx = case(kind, torch.float64, bias=False)
    for _ in ways(monkeypatch):

        def function(input, *hx):
            output, state = kit(input, hx if len(hx) > 1 else hx[0], **RAGGED)
            return output, *as_list(state)

        assert torch.autograd.gradgradcheck(function, (input, *as_list(hx)), fast_mode=True)


# Transforms, graphs -------------------------------------------------------------------------------------------------


def batches(module, count=3):
    """Inputs, lengths and resets of several batches, for a transform to take."""
    input = randn(count, L, N, H_IN, seed=3)
    lengths = torch.tensor([[3, 5, 1], [0, 2, 5], [4, 4, 4]])
    return input, lengths, torch.stack([RESETS, ~RESETS, RESETS.roll(1, 0)])


@kinds
def test_vmap_over_inputs_lengths_and_resets(kind):
    module = build(rnnkit, kind, **DEEP)
    args = batches(module)
    found = vmap(lambda x, lengths, resets: module(x, lengths=lengths, resets=resets))(*args)
    each = [module(x, lengths=lengths, resets=resets) for x, lengths, resets in zip(*args, strict=True)]
    assert_close(found, [torch.stack(t) for t in zip(*map(tree_leaves, each), strict=True)])
    found = vmap(lambda x: module(x, **RAGGED))(args[0])
    each = [module(x, **RAGGED) for x in args[0]]
    assert_close(found, [torch.stack(t) for t in zip(*map(tree_leaves, each), strict=True)])


@kinds
def test_forward_mode_is_the_transpose_of_backward(kind):
    _, kit, input, hx = case(kind, torch.float64, **DEEP)
    tangent = randn(*input.shape, seed=9)
    output, along = jvp(lambda x: kit(x, hx, **RAGGED)[0], (input.detach(),), (tangent,))
    cotangent = randn(*output.shape, seed=10)
    (back,) = torch.autograd.grad(kit(input, hx, **RAGGED)[0], input, cotangent)
    torch.testing.assert_close((along * cotangent).sum(), (tangent * back).sum())


@kinds
def test_per_sample_gradients(kind):
    module = build(rnnkit, kind, batch_first=True, **DEEP)
    weights, input = dict(module.named_parameters()), randn(N, L, H_IN, seed=1)

    def loss(weights, x, length, resets):
        return functional_call(module, weights, (x,), {"lengths": length, "resets": resets})[0].pow(2).sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, input, LENGTHS, RESETS.t())
    for n in range(N):
        expected = torch.autograd.grad(loss(weights, input[n], LENGTHS[n], RESETS[:, n]), [*weights.values()])
        assert_close([g[n] for g in found.values()], expected)


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "path"), [("LSTM-proj", "readable"), ("GRU", "always fast")])
def test_compiled_is_eager(kind, path, fresh, monkeypatch):
    monkeypatch.setattr(rnnkit.RNNBase, "path", path)
    module = build(rnnkit, kind, bidirectional=True)
    input, hx = arguments(module)
    reset_to = arguments(module, seed=5)[1]
    run = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    frames = []
    for lengths, resets in ((LENGTHS, RESETS), (LENGTHS.flip(0), ~RESETS)):
        given = {"lengths": lengths, "resets": resets, "reset_to": reset_to}
        expected = observe(module, lambda: module(input, hx, **given), input, hx, reset_to)  # noqa: B023
        found = observe(module, lambda: run(input, hx, **given), input, hx, reset_to)  # noqa: B023
        assert_same(expected, found, "fast")
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert frames[1] == frames[0], "other lengths and resets need no other graph"
    with torch.no_grad():
        assert_close(run(input, hx, **RAGGED), module(input, hx, **RAGGED))


def test_a_graph_refuses_lengths_beyond_the_input(fresh):
    module = build(rnnkit, "GRU")
    run = torch.compile(module, backend="aot_eager", fullgraph=True)
    with pytest.raises(ValueError, match="lengths: expected values from 0 to L = 5, got 6"):
        run(randn(L, N, H_IN, seed=1), lengths=torch.tensor([1, 6, 2]))


@few
def test_autocast_in_a_graph_has_the_dtypes_that_it_says(kind, fresh):
    module = build(rnnkit, kind, dtype=torch.float32)
    input = randn(L, N, H_IN, seed=1, dtype=torch.float32)
    run = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = tree_leaves(run(input, **RAGGED)), tree_leaves(module(input, **RAGGED))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=0.02, rtol=0.02)


@pytest.mark.slow
@few
def test_an_exported_program_takes_any_length_and_batch(kind, fresh):
    module = build(rnnkit, kind, bidirectional=True).requires_grad_(False)
    steps, rows = torch.export.Dim("steps", min=2, max=100), torch.export.Dim("rows", min=2, max=100)
    shapes = {"input": {0: steps, 1: rows}, "lengths": {0: rows}, "resets": {0: steps, 1: rows}}
    program = torch.export.export(module, (randn(L, N, H_IN, seed=1),), RAGGED, dynamic_shapes=shapes).module()
    for steps, lengths in ((5, [3, 5, 1]), (9, [9, 0, 4, 4]), (3, [1, 2])):
        input, resets = randn(steps, len(lengths), H_IN, seed=2), randn(steps, len(lengths), seed=3) > 0.5
        given = {"lengths": torch.tensor(lengths), "resets": resets}
        assert_close(program(input, **given), module(input, **given))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*axis name")
def test_onnx_takes_any_length_and_batch(tmp_path, fresh):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, (steps, rows) = build(rnnkit, "GRU", bidirectional=True, dtype=torch.float32), map(torch.export.Dim, "LN")
    module.requires_grad_(False)
    shapes = {"input": {0: steps, 1: rows}, "lengths": {0: rows}, "resets": {0: steps, 1: rows}}
    input, file = randn(L, N, H_IN, seed=1, dtype=torch.float32), tmp_path / "ragged.onnx"
    torch.onnx.export(module, (input,), kwargs=RAGGED, dynamo=True, dynamic_shapes=shapes, verbose=False).save(file)
    session = runtime.InferenceSession(file)
    for steps, lengths in ((5, [3, 5, 1]), (9, [9, 0, 4, 4])):
        input = randn(steps, len(lengths), H_IN, seed=2, dtype=torch.float32)
        given = {"lengths": torch.tensor(lengths), "resets": randn(steps, len(lengths), seed=3) > 0.5}
        found = session.run(None, {"input": input.numpy(), **{name: t.numpy() for name, t in given.items()}})
        assert_close([torch.from_numpy(y) for y in found], module(input, **given))


@pytest.mark.parametrize("path", ["fast"])
def test_the_operators_are_what_torch_asks_of_operators(path):
    draws = [randn(*shape, seed=k).requires_grad_() for k, shape in enumerate([(5, 3, 2), (12, 2), (12, 4), (3, 4)])]
    input, w_ih, w_hh, h = draws
    there = [True, True, True, False, False, False, True, True]
    args = (
        [input, w_ih, w_hh, h, h.detach()],
        [True] * 4 + [False],
        there,
        None,
        rnnkit.EQUATIONS["GRU"].key,
        False,
        path,
        None,
        None,
    )
    torch.library.opcheck(torch.ops.rnnkit.unroll.default, (*args, LENGTHS, RESETS))


def test_on_a_device_nobody_asks_what_lengths_and_resets_hold():
    """On `meta` there is nothing to be asked for."""
    for kind in ("GRU", "LSTM-proj"):
        module = build(rnnkit, kind, **DEEP).to("meta")
        module.path = "always fast"
        input = torch.zeros(3, N, H_IN, dtype=torch.float64, device="meta")
        lengths, resets = torch.zeros(N, dtype=torch.int64, device="meta"), torch.zeros(3, N, device="meta").bool()
        output, _ = module(input, lengths=lengths, resets=resets)
        assert output.shape == module(input)[0].shape
        said = rnnkit.explain(module, input, lengths=lengths, resets=resets)
        assert str(said) == "readable: resets live on a device, for which nobody waits"
        assert str(rnnkit.explain(module, input, lengths=lengths)) == "fast: 3 steps"
        assert "packed" in rnnkit.explain(module, input, lengths=[3, 2, 1]).reason


def test_a_trace_computes_with_lengths_and_resets():
    module = build(rnnkit, "LSTM", **DEEP).requires_grad_(False)
    input = randn(L, N, H_IN, seed=1)
    traced = torch.jit.trace(lambda x, lengths, resets: module(x, lengths=lengths, resets=resets)[0],
                             (input, torch.full((N,), L), RESETS), check_trace=False)  # fmt: skip
    assert_close(traced(input, LENGTHS, ~RESETS), module(input, lengths=LENGTHS, resets=~RESETS)[0])


@kinds
def test_a_trace_ends_and_begins_anew_where_its_rows_do(kind):
    native, kit, input, hx = case(kind, torch.float64, **DEEP)
    output, state, seen = rnnkit.trace(native, input, hx, **RAGGED)
    assert_close((output, state), kit(input, hx, **RAGGED))
    row = [s[:, 2:] for s in as_list(hx)]
    *_, alone = rnnkit.trace(native, input[:1, 2:], tuple(row) if len(row) > 1 else row[0])
    for name, letters in seen.items():
        for letter, found in letters.items():
            assert not found[torch.arange(L)[:, None] >= LENGTHS].any()
            assert found[0].any()
            assert_close(found[0, 2], alone[name][letter][0, 0], f"{name} {letter}")


# What is refused, what is said --------------------------------------------------------------------------------------

X = torch.zeros(L, N, H_IN, dtype=torch.float64)
STATE = torch.zeros(1, N, H, dtype=torch.float64)
FLAGS = torch.zeros(L, N, dtype=torch.bool)

REFUSED = {
    "negative": ({"lengths": [1, -2, 3]}, ValueError, "lengths: expected values from 0 to L = 5, got -2"),
    "above L": ({"lengths": torch.tensor([1, 2, 6])}, ValueError, "lengths: expected values from 0 to L = 5, got 6"),
    "shape": ({"lengths": [1, 2]}, ValueError, "lengths: expected the shape (N,) = (3,), got (2,)"),
    "rank": ({"lengths": torch.ones(N, 1).long()}, ValueError, "lengths: expected the shape (N,) = (3,), got (3, 1)"),
    "number": ({"lengths": 3}, ValueError, "lengths: expected the shape (N,) = (3,), got ()"),
    "float": ({"lengths": torch.ones(N)}, TypeError, "lengths: expected integers, got torch.float32 of shape (3,)"),
    "floats": ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "lengths: expected integers, got torch.float32 of shape (3,)"),
    "bool": ({"lengths": FLAGS[0]}, TypeError, "lengths: expected integers, got torch.bool of shape (3,)"),
    "word": ({"lengths": "123"}, TypeError, "lengths: expected a tensor or a list of integers, got str"),
    "resets dtype": (
        {"resets": FLAGS.long()},
        TypeError,
        "resets: expected torch.bool, got torch.int64 of shape (5, 3)",
    ),
    "resets shape": ({"resets": FLAGS.t()}, ValueError, "resets: expected the shape (L, N) = (5, 3), got (3, 5)"),
    "resets list": ({"resets": [[True]]}, TypeError, "resets: expected a tensor of booleans, got list"),
    "no resets": ({"reset_to": STATE}, ValueError, "reset_to: expected resets beside it, which say where, got none"),
    "reset_to shape": (
        {"resets": FLAGS, "reset_to": STATE[:, :2]},
        ValueError,
        "reset_to: expected the shape of hx, (1, 3, 4), got (1, 2, 4)",
    ),
    "reset_to dtype": (
        {"resets": FLAGS, "reset_to": STATE.float()},
        TypeError,
        "reset_to: expected the input's dtype, torch.float64, got torch.float32",
    ),
    "reset_to pair": (
        {"resets": FLAGS, "reset_to": (STATE, STATE)},
        TypeError,
        "reset_to: expected a tensor, as hx, got tuple",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_before_anything_is_computed(name, monkeypatch):
    module = build(rnnkit, "GRU")
    given, error, message = REFUSED[name]
    monkeypatch.setattr(paths, "run", None)
    monkeypatch.setattr(recurrence, "stepper", None)
    kind, text = outcome(module, X, **given)
    assert kind == error.__name__
    assert text.startswith(message)


def test_a_lstm_is_reset_to_a_pair():
    module = build(rnnkit, "LSTM")
    for reset_to in (STATE, (STATE,)):
        assert outcome(module, X, resets=FLAGS, reset_to=reset_to) == (
            "TypeError", f"reset_to: expected a tuple of 2 tensors, as hx, got {type(reset_to).__name__}"
        )  # fmt: skip
    module(X, resets=FLAGS, reset_to=[STATE, STATE])


def test_batch_first_turns_the_shape_of_resets():
    module = build(rnnkit, "GRU", batch_first=True)
    given = outcome(module, X.transpose(0, 1), resets=FLAGS)
    assert given == ("ValueError", "resets: expected the shape (N, L) = (3, 5), got (5, 3)")
    given = outcome(module, X[:, 0], resets=FLAGS)
    assert given == ("ValueError", "resets: expected the shape (L,) = (5,), got (5, 3)")


@pytest.mark.parametrize("given", [{"lengths": LENGTHS}, {"resets": RESETS}], ids=["lengths", "resets"])
def test_a_packed_input_has_neither(given):
    module = build(rnnkit, "GRU")
    rows = pack_padded_sequence(X, LENGTHS, enforce_sorted=False)
    (name,) = given
    message = f"{name}: expected a padded input beside it, (L, N, H_in), got a PackedSequence"
    assert outcome(module, rows, **given) == ("ValueError", message)


def test_explain_says_that_rows_are_packed():
    module, input = rnnkit.GRU(H_IN, H), torch.zeros(50, N, H_IN)
    assert str(rnnkit.explain(module, input, lengths=[40, 20, 1])) == "fast: 40 steps, packed by lengths and resets"
    assert str(rnnkit.explain(module, input, lengths=[2, 2, 1])) == (
        "readable: 2 steps don't pay, packed by lengths and resets"
    )
    resets = torch.ones(50, N, dtype=torch.bool)
    assert rnnkit.explain(module, input, resets=resets).reason.startswith("1 steps don't pay")
    with pytest.raises(ValueError, match="lengths"):
        rnnkit.explain(module, input, lengths=[51, 1, 1])


def test_without_them_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(rnnkit.RNNBase, "_ragged", None)
    for kind in KINDS:
        native, kit, input, hx = case(kind, torch.float64)
        assert_close(kit(input, hx), native(input, hx))


def test_a_model_of_layers_keeps_torchs_forward():
    """Positional arguments are torch.nn's: nothing new can be given without its name."""
    with pytest.raises(TypeError, match="positional"):
        rnnkit.GRU(H_IN, H)(X.float(), None, LENGTHS)
    assert isinstance(nn.GRU(H_IN, H)(X.float(), None), tuple)


@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_batch_without_any_step_is_eager(kind, graph, fresh):
    module = build(rnnkit, kind)
    x, hx = arguments(module)
    compiled = torch.compile(lambda x, hx: module(x, hx, lengths=[0] * N), backend="eager", fullgraph=True)
    with torch.set_grad_enabled(graph):
        found, expected = compiled(x, hx), module(x, hx, lengths=[0] * N)
    shown = [{f"result {k}": t for k, t in enumerate(tree_leaves(results))} for results in (found, expected)]
    assert_equal_tensors(*shown)


@pytest.mark.parametrize("lengths", [[None, 2, 1], ["1", "2", "1"], [2**70, 1, 1], [[1], [2, 3], 1]], ids=str)
def test_lists_that_are_no_integers_are_refused_by_name(lengths):
    module = build(rnnkit, "GRU")
    with pytest.raises(TypeError, match="lengths: expected a tensor or a list of integers, got "):
        module(arguments(module)[0], lengths=lengths)
