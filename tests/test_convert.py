"""convert and to_native: the same model, the same numbers, the same parameters, with the other library's modules."""

import copy
import io
from collections import OrderedDict

import pytest
import torch
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
    assert_same,
    build,
    named,
    observe,
    pair,
    product,
    randn,
)
from torch import nn
from torch.nn.utils import parametrize, prune

import rnnkit
from rnnkit import convert, to_native

pytestmark = pytest.mark.usefixtures("native_kernels")

OPTIONS = product(num_layers=[2], bias=[True, False], batch_first=[False, True], bidirectional=[False, True])
ALL = [(kind, False) for kind in KINDS] + [(kind, True) for kind in CELLS]
WAYS = [(convert, nn, rnnkit), (to_native, rnnkit, nn)]
ways = pytest.mark.parametrize(("turn", "source", "target"), WAYS, ids=["convert", "to_native"])


class Tagger(nn.Module):
    """A model as people write them: recurrent modules in attributes, lists, dicts and deeper modules."""

    def __init__(self, library):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(7, 6)
        self.encoder = library.LSTM(6, H, num_layers=2, bidirectional=True, dropout=0.5, batch_first=True)
        self.stack = nn.ModuleList([library.GRU(2 * H, H, batch_first=True), library.RNN(H, H, nonlinearity="relu")])
        self.heads = nn.ModuleDict({"cell": library.LSTMCell(H, H), "other": library.GRUCell(H, H)})
        self.nested = nn.Sequential(OrderedDict(inner=nn.Sequential(library.RNNCell(H, H), nn.Linear(H, 2))))
        self.double()

    def forward(self, words):
        x, _ = self.encoder(self.embed(words))
        x, _ = self.stack[0](x)
        x, h = self.stack[1](x)
        h, c = self.heads["cell"](h[0])
        return self.nested(self.heads["other"](c, h)), x


def recurrent(model):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase, rnnkit.RNNBase, rnnkit.RNNCellBase))
    }


def run(model):
    """Outputs and gradients of a whole model, under one seed."""
    torch.manual_seed(4)
    outputs = model(torch.arange(6).reshape(2, 3))
    grads = torch.autograd.grad(sum(t.pow(2).sum() for t in outputs), list(model.parameters()))
    return {f"output {k}": t.detach() for k, t in enumerate(outputs)} | {f"grad {k}": g for k, g in enumerate(grads)}


@ways
@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_keeps_its_numbers_and_its_face(turn, source, target, inplace):
    model = Tagger(source)
    before, keys, text = run(model), list(model.state_dict()), repr(model)
    turned = turn(model, inplace=inplace)
    assert len(recurrent(turned)) == 6
    assert all(type(module) is getattr(target, type(module).__name__) for module in recurrent(turned).values())
    assert_same(before, run(turned))
    assert list(turned.state_dict()) == keys
    assert repr(turned) == text
    assert (turned is model) == inplace


@ways
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_may_be_the_model(turn, source, target, kind, options, form):
    assert_turns(turn, target, pair(kind, **options)[0 if source is nn else 1], form)


@ways
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_may_be_the_model(turn, source, target, kind, bias, form):
    assert_turns(turn, target, pair(kind, cell=True, bias=bias)[0 if source is nn else 1], form)


def assert_turns(turn, target, module, form):
    weights, before, text = list(module.parameters()), observe(module, form), repr(module)
    turned = turn(module)
    assert type(turned) is getattr(target, type(module).__name__)
    assert all(a is b for a, b in zip(turned.parameters(), weights, strict=True))
    assert repr(turned) == text
    assert_same(before, observe(turned, form))


@pytest.mark.parametrize(("kind", "cell"), ALL)
def test_there_and_back_is_the_same(kind, cell):
    native = pair(kind, cell=cell)[0].eval()
    native.note = "kept"
    back = to_native(convert(native))
    assert type(back) is type(native)
    assert sorted(vars(back)) == sorted(vars(native))
    assert (back.note, back.training) == ("kept", False)
    assert all(a is b for a, b in zip(back.parameters(), native.parameters(), strict=True))
    for name in native.__constants__:
        assert getattr(back, name) == getattr(native, name)
    assert_same(observe(native), observe(back))
    assert_same(observe(native), observe(pickled(back)))


def pickled(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@ways
def test_in_place_an_optimizer_goes_on(turn, source, target):
    """Half of a training run on either side of the conversion is the whole run."""
    runs = []
    for turns in (False, True):
        model = Tagger(source)
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
        for step in range(6):
            if turns and step == 3:
                before = list(model.parameters())
                model = turn(model)
                assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
            optimizer.zero_grad()
            loss = sum(t.pow(2).sum() for t in model(torch.arange(6).reshape(2, 3)))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        runs.append({"losses": torch.stack(losses)} | model.state_dict())
    assert_same(*runs)


@ways
def test_a_copy_leaves_the_model_alone(turn, source, target):
    model = Tagger(source)
    before, modules = run(model), list(model.modules())
    turned = turn(model, inplace=False)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert not {t.data_ptr() for t in turned.parameters()} & {t.data_ptr() for t in model.parameters()}
    with torch.no_grad():
        for weight in turned.parameters():
            weight.zero_()
    assert_same(before, run(model))


@ways
def test_a_module_in_two_places_stays_one(turn, source, target):
    shared = build(source, "GRU")
    model = nn.ModuleDict({"one": shared, "two": nn.Sequential(shared), "three": nn.ModuleList([shared])})
    turn(model)
    assert model["one"] is model["two"][0] is model["three"][0]
    assert type(model["one"]) is target.GRU


@ways
def test_tied_weights_stay_tied(turn, source, target):
    model = nn.ModuleList([build(source, "GRU"), build(source, "GRU")])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    for inplace in (False, True):
        turned = turn(model, inplace=inplace)
        assert turned[1].weight_hh_l0 is turned[0].weight_hh_l0
        assert torch.equal(turned[1](randn(L, N, H_IN, seed=1))[0], model[1](randn(L, N, H_IN, seed=1))[0])


@ways
def test_a_recurrent_module_inside_another_is_converted_too(turn, source, target):
    outer = build(source, "LSTM")
    outer.inner = build(source, "GRU")
    turned = turn(nn.Sequential(outer))[0]
    assert type(turned) is target.LSTM
    assert type(turned.inner) is target.GRU
    assert type(turn(outer).inner) is target.GRU


@ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mode_dtype_device_and_requires_grad_go_over(turn, source, target, training, dtype):
    for device in ("cpu", "meta"):
        module = build(source, "LSTM", num_layers=2, dropout=0.5).train(training).to(device, dtype)
        module.weight_hh_l0.requires_grad_(False)
        turned = turn(module)
        assert turned.training is training
        assert {(w.device.type, w.dtype) for w in turned.parameters()} == {(device, dtype)}
        assert [w.requires_grad for w in turned.parameters()] == [w.requires_grad for w in module.parameters()]
        assert turned.to(torch.float64).weight_hh_l1.dtype == torch.float64


@ways
def test_gradients_and_buffers_go_over(turn, source, target):
    module = pair("GRU")[0 if source is nn else 1]
    module.register_buffer("seen", torch.tensor(3))
    module(randn(L, N, H_IN, seed=1))[0].sum().backward()
    grads = [w.grad for w in module.parameters()]
    turned = turn(module)
    assert all(w.grad is grad is not None for w, grad in zip(turned.parameters(), grads, strict=True))
    assert turned.seen == 3
    assert "seen" in turned.state_dict()


@ways
def test_hooks_go_over(turn, source, target):
    module, calls = build(source, "GRU"), []
    module.register_forward_pre_hook(lambda module, args: calls.append(("pre", type(module))))
    module.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(("post", type(module))), with_kwargs=True
    )
    module.register_full_backward_hook(lambda module, *grads: calls.append(("backward", type(module))))
    module.register_state_dict_post_hook(lambda module, *rest: calls.append(("state_dict", type(module))))
    module.register_load_state_dict_pre_hook(lambda module, *rest: calls.append(("load", type(module))))
    model = nn.Sequential(module)
    del module
    turn(model)
    turned = model[0]
    turned(randn(L, N, H_IN, seed=1).requires_grad_())[0].sum().backward()
    turned.load_state_dict(turned.state_dict())
    kind = target.GRU
    assert calls == [(name, kind) for name in ("pre", "post", "backward", "state_dict", "load")]


@ways
def test_a_hooks_handle_still_removes_it(turn, source, target):
    model, calls = nn.Sequential(build(source, "GRU")), []
    handles = [
        model[0].register_forward_hook(lambda *_: calls.append("forward")),
        model[0].register_forward_pre_hook(lambda *_: calls.append("pre")),
    ]
    turn(model)
    model(randn(L, N, H_IN, seed=1))
    assert calls == ["pre", "forward"]
    for handle in handles:
        handle.remove()
    model(randn(L, N, H_IN, seed=1))
    assert calls == ["pre", "forward"]


@ways
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("reparametrise", ["weight_norm", "spectral_norm", "prune"])
def test_weights_reparametrised_by_hooks_go_over(turn, source, target, reparametrise):
    module = pair("LSTM")[0 if source is nn else 1]
    torch.manual_seed(0)
    if reparametrise == "prune":
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    else:
        getattr(nn.utils, reparametrise)(module, "weight_hh_l0")
    module.eval()
    before = observe(module)
    turned = turn(module)
    assert_same(before, observe(turned))
    with torch.no_grad():
        next(iter(turned.parameters())).mul_(2)
    assert not torch.equal(before["output"], observe(turned)["output"])


# What can't be converted --------------------------------------------------------------------------------------------


def subclass(library):
    class Peephole(library.LSTM):
        def forward(self, input, hx=None):
            output, state = super().forward(input, hx)
            return output + 1, state

    return Peephole(H_IN, H, dtype=torch.float64)


def parametrized(library):
    module = build(library, "LSTM")
    parametrize.register_parametrization(module, "weight_hh_l0", nn.Identity())
    return module


def untouched(model, modules):
    return all(a is b for a, b in zip(model.modules(), modules, strict=True))


@ways
@pytest.mark.parametrize("make", [subclass, parametrized])
@pytest.mark.parametrize("inplace", [True, False])
def test_subclasses_are_refused_by_name_and_the_model_is_left_as_it_was(turn, source, target, make, inplace):
    model = nn.ModuleDict(
        {"good": build(source, "GRU"), "deep": nn.Sequential(nn.Tanh(), make(source)), "bad": make(source)}
    )
    modules = list(model.modules())
    with pytest.raises(TypeError, match=r"deep\.1 .*bad ") as refusal:
        turn(model, inplace=inplace)
    assert type(model["bad"]).__name__ in str(refusal.value)
    assert "good" not in str(refusal.value)
    assert untouched(model, modules)
    with pytest.raises(TypeError, match="the model itself"):
        turn(model["bad"], inplace=inplace)


@ways
@pytest.mark.parametrize("base", ["RNNBase", "RNNCellBase"])
def test_a_recurrent_class_of_ones_own_is_refused_too(turn, source, target, base):
    own = type("Own", (getattr(source, base),), {})
    made = own("LSTM", H_IN, H) if base == "RNNBase" else own(H_IN, H, True, 1)
    model = nn.Sequential(build(source, "GRU"), made)
    modules = list(model.modules())
    with pytest.raises(TypeError, match=r"1 \(Own\)"):
        turn(model)
    assert untouched(model, modules)
    assert turn(model, subclasses="keep")[1] is made
    with pytest.raises(TypeError, match=r"1 \(Own\)"):
        turn(model, subclasses="convert")


@ways
@pytest.mark.parametrize("make", [subclass, parametrized])
def test_subclasses_are_kept_when_asked(turn, source, target, make):
    kept = make(source)
    model = nn.ModuleDict({"good": build(source, "GRU"), "kept": kept})
    turn(model, subclasses="keep")
    assert model["kept"] is kept
    assert type(model["good"]) is target.GRU


@ways
def test_subclasses_are_converted_when_asked(turn, source, target):
    made = subclass(source)
    expected = made(randn(L, N, H_IN, seed=1))[0] - 1  # less what the subclass added
    turned = turn(nn.Sequential(made), subclasses="convert")
    assert type(turned[0]) is target.LSTM
    torch.testing.assert_close(turned(randn(L, N, H_IN, seed=1))[0], expected, rtol=0, atol=1e-14)


@ways
def test_a_parametrized_weight_is_not_lost_in_silence(turn, source, target):
    """Its class is a subclass that holds the weight: as the plain class the module would have none."""
    model = nn.Sequential(parametrized(source))
    with pytest.raises(TypeError, match=r"0 \(ParametrizedLSTM\)"):
        turn(model, subclasses="convert")
    assert type(model[0]).__name__ == "ParametrizedLSTM"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("subclasses", ["refuse", "keep", "convert"])
def test_scripted_modules_are_refused(subclasses):
    model = nn.ModuleDict({"good": build(nn, "GRU"), "scripted": torch.jit.script(build(nn, "LSTM"))})
    modules = list(model.modules())
    with pytest.raises(TypeError, match="scripted"):
        convert(model, subclasses=subclasses)
    assert untouched(model, modules)


@ways
def test_an_unknown_choice_is_refused(turn, source, target):
    with pytest.raises(ValueError, match="refuse"):
        turn(nn.Sequential(), subclasses="all")


@ways
def test_a_model_with_nothing_to_convert_is_returned(turn, source, target):
    model = nn.Sequential(build(target, "GRU"), nn.Linear(1, 1))
    modules = list(model.modules())
    assert turn(model) is model
    assert untouched(model, modules)
    twin = turn(model, inplace=False)
    assert twin is not model
    assert type(twin[0]) is target.GRU


@ways
def test_a_turned_module_copies_pickles_and_casts(turn, source, target):
    for kind, cell in ALL:
        turned = turn(pair(kind, cell=cell)[0 if source is nn else 1])
        expected = observe(turned)
        for twin in (copy.deepcopy(turned), pickled(turned), turned.float().double()):
            if twin is not turned:
                assert_same(expected, observe(twin))
            assert len(as_list(twin(*arguments(twin)))) >= 1
