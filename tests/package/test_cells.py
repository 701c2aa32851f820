"""RNNCell, LSTMCell and GRUCell against torch.nn's, and against the layers."""

import inspect

import pytest
import torch
from changes import OF_ANY, Doubled
from helpers import (
    CELLS,
    FORMS,
    H_IN,
    KINDS,
    H,
    L,
    N,
    arguments,
    as_list,
    assert_close,
    assert_equal_tensors,
    assert_same,
    build,
    numbered,
    observe,
    outcome,
    pair,
    randn,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnkit

pytestmark = pytest.mark.usefixtures("native_kernels")

CLASSES = ["RNNCell", "LSTMCell", "GRUCell"]
ROUNDING = 1e-13


def copy_layer(cell, layer):
    """The weights of a layer's first direction, into a cell."""
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_the_cells_loop_is_the_layer(kind, bias):
    _, layer = pair(kind, bias=bias)
    cell = build(rnnkit, kind, cell=True, bias=bias)
    copy_layer(cell, layer)
    input, hx = arguments(layer)
    output, final = layer(input, hx)

    state = [s[0] for s in as_list(hx)]
    outputs = []
    for x in input:
        state = as_list(cell(x, tuple(state) if len(state) > 1 else state[0]))
        outputs.append(state[0])

    leaves = [input, *as_list(hx)]
    for seen, expected, weights in (
        (torch.stack(outputs), output, cell.parameters()),
        *((s, f[0], cell.parameters()) for s, f in zip(state, as_list(final), strict=True)),
    ):
        torch.testing.assert_close(seen, expected, rtol=0, atol=ROUNDING)
        cotangent = randn(*seen.shape, seed=5)
        ours = torch.autograd.grad((seen * cotangent).sum(), [*leaves, *weights], retain_graph=True)
        theirs = torch.autograd.grad((expected * cotangent).sum(), [*leaves, *layer.parameters()], retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)
            assert kind == "relu" or a.abs().max() > 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_one_seed_gives_equal_weights_and_leaves_the_generator_equal(kind, bias):
    made = []
    for library in (nn, rnnkit):
        torch.manual_seed(5)
        module = build(library, kind, cell=True, bias=bias)
        module.reset_parameters()
        made.append(module.state_dict() | {"generator": torch.get_rng_state()})
    assert_same(*made)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_attributes_are_torchs(kind, bias):
    native, kit = pair(kind, cell=True, bias=bias)
    for name in (*native.__constants__, "training"):
        assert (type(getattr(kit, name)), getattr(kit, name)) == (type(getattr(native, name)), getattr(native, name))
    assert kit.__constants__ == native.__constants__
    assert repr(kit) == repr(native)
    assert kit._parameters.keys() == native._parameters.keys()
    assert list(kit.state_dict()) == list(native.state_dict())
    assert (kit.bias_ih is None, kit.bias_hh is None) == (not bias, not bias)
    assert str(native.load_state_dict(kit.state_dict(), strict=True)) == "<All keys matched successfully>"


@pytest.mark.parametrize("name", [*CLASSES, "RNNCellBase"])
def test_signatures_and_public_names_are_torchs(name):
    ours, theirs = getattr(rnnkit, name), getattr(nn, name)
    for method in ("__init__", "reset_parameters", "extra_repr", *(["forward"] if name in CLASSES else [])):
        parameters = [inspect.signature(getattr(cls, method)).parameters.values() for cls in (ours, theirs)]
        assert [(p.name, p.kind, p.default) for p in parameters[0]] == [
            (p.name, p.kind, p.default) for p in parameters[1]
        ], method
    assert {name for name in dir(theirs) if not name.startswith("_")} <= set(dir(ours))


@pytest.mark.parametrize("kind", CELLS)
def test_positional_arguments_are_in_torchs_order(kind):
    positional = [3, 4, False, *KINDS[kind][1].values(), "cpu", torch.float64]
    for count in range(2, len(positional) + 1):
        made = [getattr(library, KINDS[kind][0] + "Cell")(*positional[:count]) for library in (nn, rnnkit)]
        assert repr(made[0]) == repr(made[1])
        assert made[0].weight_ih.dtype == made[1].weight_ih.dtype


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_outputs_and_gradients_are_torchs(kind, form, bias, hx):
    native, kit = pair(kind, cell=True, bias=bias)
    expected = observe(native, form, hx)
    assert kind == "relu" or not hx or all(value.abs().max() > 0 for value in expected.values())
    seen = observe(kit, form, hx)
    if kind == "GRU" and form == "unbatched" and not hx:  # torch.nn's own operator has -0 for 0 in these gradients
        expected, seen = ({name: value + 0.0 for name, value in each.items()} for each in (expected, seen))
    assert_same(expected, seen)


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("input_size", [1, H_IN])
@pytest.mark.parametrize("kind", CELLS)
def test_a_single_unit_keeps_its_dimension(kind, input_size, form, hx):
    """A hidden_size of 1, or an input_size of 1, is a dimension like any other: none is squeezed away."""
    native, kit = pair(kind, cell=True, input_size=input_size, hidden_size=1)
    assert_same(observe(native, form, hx), observe(kit, form, hx))
    assert as_list(kit(*arguments(kit, form, hx)))[0].shape == ((1,) if form == "unbatched" else (N, 1))


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradients_of_either_output_of_an_lstm(wanted):
    results = []
    for module in pair("LSTM", cell=True):
        input, hx = arguments(module)
        loss = module(input, hx)[wanted].pow(2).sum()
        grads = torch.autograd.grad(loss, [input, *hx, *module.parameters()])
        results.append(numbered("grad", grads))
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_every_dtype_is_torchs(kind, form, dtype):
    native, kit = pair(kind, cell=True, dtype=dtype)
    refused = outcome(observe, native, form)
    assert outcome(observe, kit, form) == refused
    assert bool(refused[0]) == (kind == "relu" and dtype.is_complex)
    if dtype.is_complex and not refused[0]:
        assert_close(observe(native, form), observe(kit, form), atol=50 * torch.finfo(dtype).eps)
    elif not refused[0]:
        assert_same(observe(native, form), observe(kit, form))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_autocast_gives_torchs_dtypes(kind, form, dtype):
    results = []
    for module in pair(kind, cell=True, dtype=torch.float32):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            results.append(tensors_of(module(*arguments(module, form))))
    assert_same(*results)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_under_autocast_the_zeros_of_no_state_have_the_inputs_dtype(kind, form, dtype, autocast):
    """Whatever the weights have: it decides the dtype of what comes out, and whether it runs at all."""
    for given in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        native, kit = pair(kind, cell=True, dtype=dtype)
        input = arguments(native, form)[0].detach().to(given)
        with torch.no_grad(), torch.autocast("cpu", autocast):
            refused = outcome(native, input)
            assert outcome(kit, input) == refused, f"input in {given}"
            if not refused[0]:
                assert_same(tensors_of(native(input)), tensors_of(kit(input)), case=f"input in {given}")


def tensors_of(result):
    return {f"state[{k}]": s for k, s in enumerate(as_list(result))}


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_strides_do_not_matter(kind, form):
    native, kit = pair(kind, cell=True)
    given = [arguments(native, form)[0], *as_list(arguments(native, form)[1])]
    for view in (
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
        lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
        lambda t: t[:1].expand(t.shape),
    ):
        results = []
        for module in (native, kit):
            leaves = [view(t.detach()).requires_grad_() for t in given]
            states = tensors_of(module(leaves[0], tuple(leaves[1:]) if len(leaves) > 2 else leaves[1]))
            grads = torch.autograd.grad(sum(s.pow(2).sum() for s in states.values()), [*leaves, *module.parameters()])
            results.append(states | numbered("grad", grads))
        assert_same(*results)


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_batch_of_none(kind, hx):
    results = []
    for module in pair(kind, cell=True):
        input, state = arguments(module)
        state = tuple(s[:0] for s in as_list(state))
        results.append(tensors_of(module(input[:0], None if not hx else state if len(state) > 1 else state[0])))
        assert results[-1]["state[0]"].shape == (0, H)
    assert_same(*results)


@pytest.mark.parametrize("kind", CELLS)
def test_meta_cells_compute_shapes(kind):
    shapes = []
    for library in (nn, rnnkit):
        module = build(library, kind, cell=True, device="meta")
        shapes.append(
            {
                k: (s.shape, s.device, s.dtype)
                for k, s in tensors_of(module(torch.zeros(N, 3, device="meta", dtype=torch.float64))).items()
            }
        )
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", CELLS)
def test_arguments_have_torchs_keywords_and_types(kind):
    native, kit = pair(kind, cell=True)
    input, hx = arguments(native)
    expected = native(input=input, hx=hx)
    assert type(kit(hx=hx, input=input)) is type(expected)
    assert_same(tensors_of(expected), tensors_of(kit(hx=hx, input=input)))


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("wrap", [list, torch.stack, lambda hx: (*hx, hx[0])], ids=["list", "stacked", "three"])
def test_an_lstms_state_may_come_in_torchs_other_forms(wrap, form):
    native, kit = pair("LSTM", cell=True)
    input, hx = arguments(native, form)
    expected = outcome(native, input, wrap(hx))
    assert outcome(kit, input, wrap(hx)) == expected
    if not expected[0]:
        assert_same(tensors_of(native(input, wrap(hx))), tensors_of(kit(input, wrap(hx))))


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_nothing_given_is_written_and_no_two_results_share_memory(kind, form):
    _, kit = pair(kind, cell=True)
    input, hx = arguments(kit, form)
    watched = [input, *as_list(hx), *kit.parameters()]
    copies, versions = [t.detach().clone() for t in watched], [t._version for t in watched]
    results = as_list(kit(input, hx))
    sum(s.sum() for s in results).backward()
    assert versions == [t._version for t in watched]
    assert_equal_tensors(numbered("given", watched), numbered("given", copies))
    storages = [t.untyped_storage().data_ptr() for t in (*results, *watched)]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("kind", CELLS)
def test_training_runs_coincide(kind):
    runs = []
    for library in (nn, rnnkit):
        torch.manual_seed(11)
        module = build(library, kind, cell=True)
        optimizer, losses = torch.optim.Adam(module.parameters(), lr=0.05), []
        for step in range(5):
            state, loss = None, 0.0
            for x in randn(L, N, 3, seed=step):
                state = module(x, state)
                loss = loss + sum(s.pow(2).sum() for s in as_list(state))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        runs.append({"losses": torch.stack(losses)} | module.state_dict())
    assert_same(*runs)


# Weights as they are now --------------------------------------------------------------------------------------------


def cell_weight_norm(module):
    nn.utils.weight_norm(module, "weight_hh")
    with torch.no_grad():
        module.weight_hh_g.mul_(2)


def cell_spectral_norm(module):
    torch.manual_seed(0)
    nn.utils.spectral_norm(module, "weight_hh")


def cell_pruned(module):
    prune.l1_unstructured(module, "weight_ih", amount=0.5)


def cell_orthogonal(module):
    torch.manual_seed(0)
    parametrizations.orthogonal(module, "weight_hh")


def cell_parametrized(module):
    parametrize.register_parametrization(module, "bias_hh", Doubled())


def cell_tied(module):
    module.bias_hh = module.bias_ih


OWN = [cell_weight_norm, cell_spectral_norm, cell_pruned, cell_orthogonal, cell_parametrized, cell_tied]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", OF_ANY + OWN, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", CELLS)
def test_a_changed_weight_is_seen_by_the_next_forward(kind, change):
    native, kit = pair(kind, cell=True)
    before = as_list(kit(*arguments(kit)))[0]
    for module in (native, kit):
        change(module)
    expected = observe(native)
    assert_same(expected, observe(kit))
    assert not torch.equal(before, next(iter(expected.values())))


@pytest.mark.parametrize("kind", CELLS)
def test_functional_call_is_seen(kind):
    results = []
    for module in pair(kind, cell=True):
        given = {name: 1.5 * weight.detach() for name, weight in module.named_parameters()}
        results.append(tensors_of(torch.func.functional_call(module, given, arguments(module))))
    assert_same(*results)


def test_an_unknown_nonlinearity_is_refused_at_the_call():
    for nonlinearity in ("sigmoid", None, "TANH", "lstm"):
        made = [library.RNNCell(3, 4, nonlinearity=nonlinearity) for library in (nn, rnnkit)]
        assert repr(made[0]) == repr(made[1])
        expected, seen = (outcome(module, torch.zeros(N, 3)) for module in made)
        assert seen == expected != ("", "")
