"""RNN, LSTM and GRU against torch.nn's: with oneDNN off the readable path is equal bit for bit, gradients too.

What is no matter of numbers alone is asked of both paths.
"""

import inspect
import itertools
import math
import warnings

import pytest
import torch
from changes import CHANGES
from helpers import (
    FORMS,
    H_IN,
    KINDS,
    L,
    N,
    arguments,
    as_list,
    assert_close,
    assert_equal_tensors,
    assert_same,
    build,
    named,
    numbered,
    observe,
    outcome,
    pack,
    pair,
    product,
    randn,
    tensors,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnkit
from rnnkit import paths
from rnnkit.fast import loop, products

pytestmark = pytest.mark.usefixtures("native_kernels")

LAYERS = ["RNN", "LSTM", "GRU"]
OPTIONS = product(num_layers=[1, 3], bias=[True, False], batch_first=[False, True], bidirectional=[False, True])
DEEP = {"num_layers": 2, "bidirectional": True}


# Construction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_equal_weights_and_leaves_the_generator_equal(kind, options):
    made = []
    for library in (nn, rnnkit):
        torch.manual_seed(5)
        module = build(library, kind, **options)
        after_construction = torch.get_rng_state()
        module.reset_parameters()
        made.append((module.state_dict(), after_construction, torch.get_rng_state()))
    (theirs, *their_states), (ours, *our_states) = made
    assert_same(theirs, ours)
    assert_equal_tensors(numbered("generator", our_states), numbered("generator", their_states))


@pytest.mark.parametrize("dropout", [0, 0.25])
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_attributes_are_torchs(kind, options, dropout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native, kit = pair(kind, dropout=dropout, **options)
    for name in (*nn.RNNBase.__constants__, "training", *(["nonlinearity"] if kind in ("tanh", "relu") else [])):
        assert (type(getattr(kit, name)), getattr(kit, name)) == (type(getattr(native, name)), getattr(native, name))
    assert kit.__constants__ == native.__constants__
    assert repr(kit) == repr(native)
    assert kit.extra_repr() == native.extra_repr()
    assert kit._all_weights == native._all_weights
    assert kit._flat_weights_names == native._flat_weights_names
    assert list(kit.state_dict()) == list(native.state_dict())
    assert [name for name, _ in kit.named_parameters()] == [name for name, _ in native.named_parameters()]
    assert {type(weight) for weight in kit.parameters()} == {nn.Parameter}
    shapes = [[tuple(weight.shape) for weight in weights] for weights in native.all_weights]
    assert [[tuple(weight.shape) for weight in weights] for weights in kit.all_weights] == shapes
    mine = {id(weight) for weight in kit.parameters()}
    assert {id(weight) for weights in kit.all_weights for weight in weights} == mine == set(map(id, kit._flat_weights))
    assert kit.flatten_parameters() is None


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_load_strictly_both_ways(kind, options):
    for source, target in itertools.permutations((nn, rnnkit)):
        torch.manual_seed(1)
        source, target = build(source, kind, **options), build(target, kind, **options)
        assert str(target.load_state_dict(source.state_dict(), strict=True)) == "<All keys matched successfully>"
        assert_same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("name", [*LAYERS, "RNNBase"])
def test_signatures_are_torchs(name):
    ours, theirs = getattr(rnnkit, name), getattr(nn, name)
    for method in ("__init__", "forward", "flatten_parameters", "reset_parameters", "extra_repr"):
        if name != "RNNBase" or method != "forward":
            found, expected = (
                [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
                for cls in (ours, theirs)
            )
            own = [(name, inspect.Parameter.KEYWORD_ONLY, None) for name in ("lengths", "resets", "reset_to")]
            assert found == expected + own * (method == "forward"), method


@pytest.mark.parametrize("name", [*LAYERS, "RNNBase"])
def test_every_public_name_of_torchs_class_is_there(name):
    public = {name for name in dir(getattr(nn, name)) if not name.startswith("_")}
    assert public <= set(dir(getattr(rnnkit, name)))


@pytest.mark.parametrize("kind", KINDS)
def test_positional_arguments_are_in_torchs_order(kind):
    name, own = KINDS[kind]
    positional = [3, 4, 2, *own.values(), False, True, 0.5, True]
    if kind == "LSTM-proj":
        positional = [3, 4, 2, False, True, 0.5, True, 2]
    for count in range(2, len(positional) + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert repr(getattr(rnnkit, name)(*positional[:count])) == repr(getattr(nn, name)(*positional[:count]))


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_on_one_layer_is_torchs_warning(name):
    seen = []
    for library in (nn, rnnkit):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(library, name)(3, 4, dropout=0.5)
        seen.append([(w.category, str(w.message)) for w in caught])
    assert len(seen[0]) == 1
    assert seen[1] == seen[0]
    assert caught[0].filename == __file__  # the line that made the module, where torch.nn points into itself


@pytest.mark.parametrize("kind", KINDS)
def test_meta_modules_compute_shapes(kind):
    for form in FORMS[:2]:
        shapes = []
        for library in (nn, rnnkit):
            module = build(library, kind, **DEEP, device="meta")
            assert {weight.device.type for weight in module.parameters()} == {"meta"}
            input, hx = arguments(build(library, kind, **DEEP), form)
            hx = [s.to("meta") for s in as_list(hx)]
            result = tensors(module(input.to("meta"), tuple(hx) if len(hx) > 1 else hx[0]))
            shapes.append({name: (t.shape, t.device, t.dtype, t.stride()) for name, t in result.items()})
        assert shapes[0] == shapes[1]


# Values and gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_torchs(kind, options, form, hx):
    native, kit = pair(kind, **options)
    expected = observe(native, form, hx)
    assert kind == "relu" or all(value.abs().max() > 0 for value in expected.values())  # a relu may be all dead
    assert_same(expected, observe(kit, form, hx))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dropout", [0.3, 1.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", product(num_layers=[3], bidirectional=[False, True]), ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_torchs_under_one_seed(kind, options, form, dropout, training, path):
    native, kit = pair(kind, dropout=dropout, **options)
    expected, seen = (observe(module.train(training), form) for module in (native, kit))
    assert_same(expected, seen, path=path)
    dry, _ = pair(kind, **options)
    assert torch.equal(observe(dry, form)["output"], expected["output"]) is not training


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "wanted", [names for n in (1, 2, 3) for names in itertools.combinations(("output", "h_n", "c_n"), n)], ids="-".join
)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_subset_of_the_outputs(kind, wanted, form, path):
    if wanted == ("c_n",) and "LSTM" not in kind:
        return
    native, kit = pair(kind, **DEEP)
    expected = observe(native, form, wanted=wanted)
    assert len(expected) >= 20
    assert_same(expected, observe(kit, form, wanted=wanted), path=path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precisions_are_torchs(kind, form, dtype, path):
    native, kit = pair(kind, dtype=dtype, **DEEP)
    assert_same(observe(native, form), observe(kit, form), path=path)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_complex_numbers_are_torchs(kind, form, dtype):
    """Within rounding, for complex kernels take whole vectors and single numbers by different formulas."""
    native, kit = pair(kind, dtype=dtype, **DEEP)
    refused = outcome(observe, native, form)
    assert outcome(observe, kit, form) == refused
    assert bool(refused[0]) == (kind == "relu")
    if kind != "relu":
        assert_close(observe(native, form), observe(kit, form), atol=200 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_torchs_dtypes(kind, form, onednn, dtype):
    native, kit = pair(kind, dtype=torch.float32, **DEEP)
    input, hx = arguments(native, form)

    def run(module):
        with torch.no_grad(), torch.autocast("cpu", dtype), torch.backends.mkldnn.flags(enabled=onednn):
            return tensors(module(pack(module, input, form), hx))

    if onednn and dtype is torch.float16 and "primitive descriptor" in outcome(run, native)[1]:
        pytest.skip("oneDNN has no float16 LSTM for this processor")
    results = expected, seen = run(native), run(kit)
    assert {name: (t.dtype, t.shape) for name, t in seen.items()} == {
        name: (t.dtype, t.shape) for name, t in expected.items()
    }
    ulp = torch.finfo(dtype).eps
    assert_close(*({name: t.float() for name, t in result.items()} for result in results), atol=8 * ulp)


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(kind, batch_first, form, path):
    """Inputs and states that are transposed, sliced with gaps, or expanded: same values, same gradients."""
    native, kit = pair(kind, batch_first=batch_first, **DEEP)
    whole, hx = arguments(native, form)
    views = {
        "gaps": lambda t: t.detach().repeat_interleave(2, -1)[..., ::2],
        "transposed": lambda t: t.detach().transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": lambda t: t.detach()[:1].expand(t.shape),
        "offset": lambda t: torch.cat([t.detach(), t.detach()])[1 : 1 + len(t)],
    }
    for name, view in views.items():
        results = []
        for module in (native, kit):
            leaves = [view(t).requires_grad_() for t in (whole, *as_list(hx))]
            state = tuple(leaves[1:]) if len(leaves) > 2 else leaves[1]
            outputs = tensors(module(leaves[0], state))
            grads = torch.autograd.grad(sum(t.pow(2).sum() for t in outputs.values()), [*leaves, *module.parameters()])
            results.append(outputs | numbered("grad", grads))
        assert name == "expanded" or not leaves[0].is_contiguous() or name == "offset"
        assert_same(*results, path=path)


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_none(kind, batch_first, hx, path):
    results = []
    for module in pair(kind, batch_first=batch_first, **DEEP):
        _, state = arguments(module)
        input = torch.zeros((0, L, H_IN) if batch_first else (L, 0, H_IN), dtype=torch.float64, requires_grad=True)
        state = [s.detach()[:, :0].requires_grad_() for s in as_list(state)]
        outputs = tensors(module(input, None if not hx else tuple(state) if len(state) > 1 else state[0]))
        leaves = [input, *module.parameters(), *(state if hx else [])]
        grads = torch.autograd.grad(sum(t.sum() for t in outputs.values()), leaves)
        results.append(outputs | numbered("grad", grads))
    assert_same(*results, path=path)


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_have_torchs_keywords(kind, path):
    native, kit = pair(kind, **DEEP)
    input, hx = arguments(native)
    expected = tensors(native(input=input, hx=hx))
    assert_same(expected, tensors(kit(hx=hx, input=input)), path=path)
    assert_same(expected, tensors(kit(input, hx=hx)), path=path)


def test_the_usual_line_reads_the_same():
    seen = []
    for library in (nn, rnnkit):
        torch.manual_seed(0)
        rnn = library.LSTM(10, 20, 2)
        input = torch.randn(5, 3, 10)
        h0 = torch.randn(2, 3, 20)
        c0 = torch.randn(2, 3, 20)
        output, (hn, cn) = rnn(input, (h0, c0))
        seen.append({"output": output, "h_n": hn, "c_n": cn})
    assert_same(*seen)
    assert [tuple(t.shape) for t in seen[0].values()] == [(5, 3, 20), (2, 3, 20), (2, 3, 20)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_have_torchs_types(kind, form, path):
    for result in [module(pack(module, *arguments(module, form)[:1], form)) for module in pair(kind, **DEEP)]:
        output, states = result
        assert type(result) is tuple
        assert type(output) is (PackedSequence if form in FORMS[2:] else torch.Tensor)
        assert type(states) is (tuple if "LSTM" in kind else torch.Tensor)


@pytest.mark.parametrize("form", ["padded", "unbatched"])
@pytest.mark.parametrize("wrap", [list, torch.stack, lambda hx: (*hx, "ignored")], ids=["list", "stacked", "three"])
def test_an_lstms_state_may_come_in_torchs_other_forms(wrap, form, path):
    native, kit = pair("LSTM", **DEEP)
    input, hx = arguments(native, form)
    expected = outcome(native, input, wrap(hx))
    assert outcome(kit, input, wrap(hx)) == expected
    if expected == ("", ""):
        assert_same(tensors(native(input, wrap(hx))), tensors(kit(input, wrap(hx))), path=path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_tensors_are_never_written(kind, form, path):
    _, kit = pair(kind, dropout=0.5, **DEEP)
    input, hx = arguments(kit, form)
    given = pack(kit, input.detach(), form)
    watched = [*(t for t in (given if form in FORMS[2:] else [given]) if t is not None), *as_list(hx)]
    watched += list(kit.parameters())
    copies, versions = [t.detach().clone() for t in watched], [t._version for t in watched]
    loss = sum(t.sum() for t in tensors(kit(given, hx)).values() if t.requires_grad)
    loss.backward()
    assert versions == [t._version for t in watched]
    assert_equal_tensors(numbered("given", watched), numbered("given", copies))


@pytest.mark.parametrize("options", product(num_layers=[1, 2], batch_first=[False, True]), ids=named)
@pytest.mark.parametrize("steps", [0, 1, L])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", KINDS)
def test_no_two_results_share_memory(kind, form, steps, options, path):
    """Nor with what went in: writing into one result changes no other."""
    _, kit = pair(kind, **options)
    input, hx = arguments(kit, form, steps=steps)
    with torch.no_grad():
        results = tensors(kit(input, hx))
    named = results | {"input": input} | numbered("hx", as_list(hx)) | dict(kit.named_parameters())
    owners = {}
    for name, tensor in named.items():
        if tensor.numel():  # what is empty lies nowhere
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    assert [names for names in owners.values() if len(names) > 1] == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("form", ["padded", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_runs_coincide(kind, form, optimizer, path):
    """Five steps with dropout, from one seed: equal losses and equal weights, bit for bit."""
    runs = []
    for library in (nn, rnnkit):
        torch.manual_seed(11)
        module = build(library, kind, dropout=0.3, **DEEP)
        steps, losses = optimizer(module.parameters(), lr=0.05), []
        for step in range(5):
            input, hx = arguments(module, form, seed=step)
            outputs = tensors(module(pack(module, input, form), hx))
            loss = sum(outputs[name].pow(2).mean() for name in ("output", "h_n", "c_n") if name in outputs)
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(loss.detach())
        runs.append({"losses": torch.stack(losses)} | module.state_dict())
    assert_same(*runs, path=path)
    assert len(set(runs[0]["losses"].tolist())) == 5


# Weights as they are now --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_weight_is_seen_by_the_next_forward(kind, change, path):
    native, kit = pair(kind, **DEEP)
    input, hx = arguments(native)
    before = kit(input, hx)[0]
    for module in (native, kit):
        change(module)
    torch.manual_seed(0)
    expected = observe(native)
    torch.manual_seed(0)
    assert_same(expected, observe(kit), path=path)
    assert list(kit.state_dict()) == list(native.state_dict())
    assert not torch.equal(before, expected["output"])


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_is_seen(kind, path):
    native, kit = pair(kind, **DEEP)
    weights = {name: 1.5 * weight.detach() for name, weight in native.named_parameters()}
    results = []
    for module in (native, kit):
        given = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        outputs = tensors(torch.func.functional_call(module, given, arguments(module)))
        grads = torch.autograd.grad(sum(t.pow(2).sum() for t in outputs.values()), list(given.values()))
        results.append(outputs | dict(zip([f"grad of {name}" for name in given], grads, strict=True)))
        torch.testing.assert_close(module(*arguments(module))[0], native(*arguments(module))[0])
    assert_same(*results, path=path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_weight_is_missed_by_name(kind, path):
    _, kit = pair(kind, **DEEP)
    given = arguments(kit)
    del kit.weight_hh_l1_reverse
    with pytest.raises(AttributeError, match="weight_hh_l1_reverse"):
        kit(*given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_in_two_places_is_one(kind, path):
    """Twice in one network: the gradients of both uses add up, as torch.nn's."""
    results = []
    for module in pair(kind, **DEEP):
        first, second = randn(L, N, H_IN, seed=1), randn(L, N, H_IN, seed=2)
        loss = module(first)[0].pow(2).sum() + module(second)[0].pow(2).sum()
        grads = torch.autograd.grad(loss, list(module.parameters()))
        results.append(numbered("grad", grads))
    assert_same(*results, path=path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_is_chosen_by_module_class_or_all(monkeypatch, kind, form):
    """The fast path runs where it is asked for, and says the same."""
    _, kit = pair(kind, **DEEP)
    ran = []
    for name, layer in paths.LAYERS.items():
        monkeypatch.setitem(paths.LAYERS, name, lambda each, name=name, layer=layer: ran.append(name) or layer(each))
    expected = observe(kit, form)
    for owner in (kit, type(kit), rnnkit.RNNBase):
        with monkeypatch.context() as context:
            context.setattr(owner, "path", "always fast", raising=False)
            assert_same(expected, observe(kit, form), path="always fast", case=owner.__class__.__name__)
        observe(kit, form)
    assert ran == ["readable"] * 2 + (["fast"] * 2 + ["readable"] * 2) * 3


def test_one_forward_serves_all_layers():
    assert {getattr(rnnkit, name).forward.__code__ for name in LAYERS} == {rnnkit.RNNBase.forward.__code__}


SETTINGS = [
    ("path", "nonsense", ValueError),
    ("path", "Fast", ValueError),
    ("path", None, ValueError),
    ("checkpoint_every", True, TypeError),
    ("checkpoint_every", False, TypeError),
    ("checkpoint_every", 2.5, TypeError),
    ("checkpoint_every", "4", TypeError),
    ("checkpoint_every", 0, ValueError),
    ("checkpoint_every", -1, ValueError),
]


@pytest.mark.parametrize(("setting", "value", "error"), SETTINGS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_makes_no_sense_is_refused_by_name(monkeypatch, kind, form, setting, value, error, path):
    """By either path, wherever it was set, and before anything is computed."""
    _, kit = pair(kind, **DEEP)
    input, hx = arguments(kit, form)
    for owner in (kit, type(kit), rnnkit.RNNBase):
        with monkeypatch.context() as context:
            context.setattr(owner, setting, value, raising=False)
            for name in paths.LAYERS:
                context.setitem(paths.LAYERS, name, None)
            with pytest.raises(error, match=f"^{setting} .*got:? {value!r}$"):
                kit(pack(kit, input, form), hx)


@pytest.mark.parametrize("every", [None, 1, 2, L, 10**9])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_every_so_many_steps_changes_nothing_but_memory(monkeypatch, kind, form, every, path):
    native, kit = pair(kind, **DEEP)
    monkeypatch.setattr(rnnkit.RNNBase, "checkpoint_every", every)
    assert_same(observe(native, form), observe(kit, form), path=path, case=f"every {every} steps")


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "checkpoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_kept_no_state_that_waits_is_written_over(monkeypatch, kind, graph, hx, path):
    """Without a graph, and up to a checkpoint, steps share memory: not with sequences that are over.

    Whatever the lengths, wherever time is cut.
    """
    native, kit = pair(kind, **DEEP)
    input, state = arguments(native, hx=hx)
    kit.checkpoint_every = L
    monkeypatch.setattr(loop, "WEIGHTS", 0)
    for lengths in itertools.combinations_with_replacement(range(L, 0, -1), N):
        packed = nn.utils.rnn.pack_padded_sequence(input.detach(), lengths)
        with torch.set_grad_enabled(graph):
            expected = tensors(native(packed, state))
            for every in (1, 2, 3, 10) if path == "always fast" else (1,):  # the readable path has no spans
                elements = every * len(packed.data) * len(kit.weight_ih_l0) / lengths[0]
                monkeypatch.setattr(loop, "ELEMENTS", math.ceil(elements))  # so that spans have `every` steps
                seen = tensors(kit(packed, state))
                assert_same(expected, seen, path=path, case=f"lengths {lengths} in spans of {every} steps")


# Flat weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_flat_weights_are_the_parameters_in_torchs_order(kind, options):
    native, kit = pair(kind, **options)
    for module in (native, kit):
        assert all(weight is own for weight, own in zip(module._flat_weights, module.parameters(), strict=True))
    names = ({id(weight): name for name, weight in module.named_parameters()} for module in (native, kit))
    expected, found = (
        [by[id(w)] for w in module._flat_weights] for by, module in zip(names, (native, kit), strict=True)
    )
    assert found == expected == native._flat_weights_names


def with_flat_weights(module, form):
    """What a module computes with weights that are results of a computation, and the gradients of what made them."""
    before = observe(module, form)
    parameters, sources = list(module.parameters()), []
    for k, weight in enumerate(parameters):
        sources.append(randn(*weight.shape, seed=50 + k).requires_grad_())
    given = [0.6 * torch.sin(source) for source in sources]
    module._flat_weights = given
    assert all(a is b for a, b in zip(module._flat_weights, given, strict=True))
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    input, state = arguments(module, form)
    outputs = tensors(module(pack(module, input, form), state))
    assert not torch.equal(outputs["output"], before["output"])
    loss = sum(y.sin().sum() for y in outputs.values() if y.is_floating_point())
    grads = torch.autograd.grad(loss, [*sources, *parameters], allow_unused=True)
    assert all(grad is None for grad in grads[len(sources) :])
    return outputs | numbered("grad of source", grads[: len(sources)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", product(num_layers=[1, 2], bias=[True, False], bidirectional=[False, True]), ids=named
)
@pytest.mark.parametrize("kind", KINDS)
def test_flat_weights_that_are_assigned_are_those_of_the_next_forward(kind, options, form):
    """As some libraries assign them: gradients reach what they were computed from, and no parameter."""
    native, kit = pair(kind, **options)
    expected = with_flat_weights(native, form)
    for kit.path in ("readable", "always fast"):
        found = with_flat_weights(kit, form)
        assert_same(expected, found, path=kit.path, case=f"{kind}, {named(options)}, {form}, path {kit.path!r}")
        kit._flat_weights = list(kit.parameters())  # for the next path to begin with


@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l1_reverse"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_replaced_after_flat_weights_were_assigned_brings_all_parameters_back(kind, name):
    native, kit = pair(kind, num_layers=2, bidirectional=True)
    other = nn.Parameter(randn(*getattr(kit, name).shape, seed=99))
    input, state = arguments(kit)
    for module in (native, kit):
        module._flat_weights = [0.6 * randn(*parameter.shape, seed=50) for parameter in module.parameters()]
        setattr(module, name, other)
    assert_close(tensors(native(input, state)), tensors(kit(input, state)), atol=1e-13)


# Threads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("dtype", "onednn"),
    [(torch.float64, False), (torch.float32, False), (torch.float32, True)],
    ids=["float64", "float32 by MKL", "float32 by oneDNN"],
)
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_compute_what_the_definition_says(monkeypatch, kind, form, dtype, onednn):
    """At sizes that are worth sharing out: all that is chosen by the number of threads is chosen for two."""
    steps, batch, asked = 4, 64, []
    if onednn and not products._available():
        pytest.skip("no oneDNN in this torch")

    def faster(use, threads, *shape):
        asked.append(threads)
        return onednn

    monkeypatch.setattr(products, "_onednn_is_faster", faster)  # which goes by measured times
    _, kit = pair(kind, input_size=64, hidden_size=256, bidirectional=True, dtype=dtype)
    with torch.no_grad():
        for weight in kit.parameters():
            weight.mul_(0.1)  # their sums are over hundreds
    input = randn(steps, batch, 64, seed=1, dtype=dtype).requires_grad_()
    lengths = [steps] * (batch // 2) + [steps // 2] * (batch - batch // 2)
    leaves = {"input": input} | dict(kit.named_parameters())

    def run(path):
        kit.path = path
        given = nn.utils.rnn.pack_padded_sequence(input, lengths) if form == "packed" else input
        assert rnnkit.explain(kit, given).path == path.split()[-1]
        results = tensors(kit(given))
        loss = sum(
            (results[name] * randn(*results[name].shape, seed=9, dtype=dtype)).sum()
            for name in ("output", "h_n", "c_n", "data")
            if name in results
        )
        grads = torch.autograd.grad(loss, list(leaves.values()))
        with torch.no_grad():
            quiet = {f"{name} without a graph": t for name, t in tensors(kit(given)).items()}
        return results | quiet | {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}

    with torch.backends.mkldnn.flags(enabled=True):
        found = run("always fast")
    assert_same(run("readable"), found, path="always fast", case="two threads")
    assert set(asked) == ({2} if dtype is torch.float32 else set())
