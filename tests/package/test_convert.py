"""convert and to_native: the same model, the same numbers, the same parameters, with the other library's modules."""

import copy
import functools
import io
import types
import weakref
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
    assert {type(module).__module__.split(".")[0] for module in recurrent(turned).values()} == {
        target.__name__.split(".")[0]
    }
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
    assert [*map(id, turned.parameters())] == [*map(id, weights)]
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
    assert [*map(id, back.parameters())] == [*map(id, native.parameters())]
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
                assert [*map(id, model.parameters())] == [*map(id, before)]
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
    assert [*map(id, model.modules())] == [*map(id, modules)]
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
    assert None not in grads
    assert [id(w.grad) for w in turned.parameters()] == [*map(id, grads)]
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


# What is bound to the old module ------------------------------------------------------------------------------------


def changed(module):
    """The output of `module` and that of a fresh one with its weights, after the weights were replaced."""
    state = {name: randn(*weight.shape, seed=70 + k) for k, (name, weight) in enumerate(module.state_dict().items())}
    module.load_state_dict(state, assign=True)
    fresh = build(rnnkit, *kind_of(module))
    fresh.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state.items()})
    (input, state) = arguments(fresh)
    return as_list(module(input, state))[0], as_list(fresh(input, state))[0]


def kind_of(module):
    name = type(getattr(module, "_orig_mod", module)).__name__
    return {"RNN": "tanh"}.get(name.removesuffix("Cell"), name.removesuffix("Cell")), name.endswith("Cell")


@ways
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(("kind", "cell"), [key for key in ALL if key[0] not in ("relu", "LSTM-proj")])
def test_a_layer_compiled_in_place_runs_the_new_module(turn, source, target, kind, cell, inplace):
    """`compile()` keeps a function bound to the module, which would go on with the old weights."""
    module = build(source, kind, cell)
    module.compile(backend="eager")
    for turned in (turn(module, inplace=inplace), turn(nn.Sequential(module), inplace=inplace)[0]):
        assert turned._compiled_call_impl is None
        assert "_compiled_call_impl" not in vars(turned)
        seen, expected = changed(turned)
        assert torch.equal(seen, expected)
        assert turned.float()(*(as_float32(arguments(build(rnnkit, kind, cell)))))[0].dtype == torch.float32
    assert module._compiled_call_impl is not None


def as_float32(given):
    input, state = given
    states = tuple(s.float() for s in as_list(state))
    return input.float(), states if len(states) > 1 else states[0]


@ways
@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_that_torch_compile_wraps_stays_wrapped_and_runs_the_new_module(turn, source, target, inplace):
    wrapped = torch.compile(build(source, "GRU"), backend="eager")
    turned = turn(wrapped, inplace=inplace)
    assert type(turned) is type(wrapped)
    assert (turned is wrapped) == inplace
    assert type(turned._orig_mod) is target.GRU
    if inplace:  # torch's copies have none
        assert turned._torchdynamo_orig_callable.__self__ is turned._orig_mod
    seen, expected = changed(turned)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-14)
    model = turn(nn.Sequential(torch.compile(build(source, "GRU"), backend="eager")), inplace=inplace)
    seen, expected = changed(model[0])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-14)


def size_of(module, *args):
    return module.hidden_size, args


#: What may be bound to a module: how it is made of one, and how the module is found in it again.
BINDINGS = {
    "the module": (lambda m: m, lambda v: v),
    "a bound function": (lambda m: types.MethodType(size_of, m), lambda v: v.__self__),
    "a method of the class": (lambda m: m.extra_repr, lambda v: v.__self__),
    "a method of nn.Module": (lambda m: m.requires_grad_, lambda v: v.__self__),
    "a partial's argument": (lambda m: functools.partial(size_of, m), lambda v: v.args[0]),
    "a partial's keyword": (lambda m: functools.partial(size_of, module=m), lambda v: v.keywords["module"]),
    "a partial's function": (lambda m: functools.partial(m.extra_repr), lambda v: v.func.__self__),
    "a partial's attribute": (
        lambda m: functools.update_wrapper(functools.partial(size_of), m.forward),
        lambda v: v.__wrapped__.__self__,
    ),
    "a partial of a partial": (
        lambda m: functools.partial(functools.partial(size_of, m), 1),
        lambda v: v.args[0],
    ),
    "a partial's tuple": (lambda m: functools.partial(print, (1, m)), lambda v: v.args[0][1]),
    "a weak reference": (weakref.ref, lambda v: v()),
    "a weak method": (lambda m: weakref.WeakMethod(m.extra_repr), lambda v: v().__self__),
    "a tuple": (lambda m: (1, m), lambda v: v[1]),
    "a dictionary": (lambda m: {"key": m}, lambda v: v["key"]),
}


@ways
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("place", ["on itself", "on its parent", "on a sibling"])
@pytest.mark.parametrize("binding", BINDINGS)
def test_what_is_bound_to_the_old_module_is_bound_to_the_new(turn, source, target, binding, place, inplace):
    make, found_in = BINDINGS[binding]
    if binding == "a weak method" and not inplace:
        pytest.skip("has no copy")
    model = nn.ModuleList([build(source, "GRU"), build(source, "LSTM")])
    holder = {"on itself": 0, "on a sibling": 1}.get(place)
    value = make(model[0])  # kept alive here
    vars(model if holder is None else model[holder])["bound"] = value
    turned = turn(model, inplace=inplace)
    if binding.startswith("a weak") and not inplace:
        assert found_in(value) is model[0]
    where = turned if holder is None else turned[holder]
    assert found_in(where.bound) is turned[0], f"{binding} {place} is bound to {type(found_in(where.bound))}"
    assert type(turned[0]) is target.GRU


@ways
def test_a_method_of_the_old_class_becomes_the_new_classes(turn, source, target):
    """As a wrapper that was taken off again leaves it: an instance's forward that is the class's own."""
    module = build(source, "GRU")
    module.forward = module.forward
    turned = turn(module)
    assert turned.forward.__func__ is target.GRU.forward
    seen, expected = changed(turned)
    assert torch.equal(seen, expected)


def plus_one(self, *args):
    output, state = type(self).forward(self, *args)
    return output + 1, state


def as_accelerate_does(module):
    module._old_forward = module.forward
    patched = functools.partial(lambda module, *args: plus_one(module, *args), module)
    module.forward = functools.update_wrapper(patched, module._old_forward)


def as_method(module):
    module.forward = types.MethodType(plus_one, module)


@ways
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("patch", [as_method, as_accelerate_does])
def test_a_patched_forward_gets_the_new_module(turn, source, target, patch, inplace):
    model = nn.Sequential(build(source, "GRU"))
    patch(model[0])
    turned = turn(model, inplace=inplace)[0]
    seen, expected = changed(turned)
    assert torch.equal(seen, expected + 1)
    if patch is as_accelerate_does:
        assert turned._old_forward.__self__ is turned.forward.__wrapped__.__self__ is turned
        assert turned._old_forward.__func__ is target.GRU.forward


HOOKS = {
    "register_forward_pre_hook": {},
    "register_forward_hook": {"with_kwargs": True},
    "register_full_backward_pre_hook": {},
    "register_full_backward_hook": {},
    "register_state_dict_pre_hook": {},
    "register_state_dict_post_hook": {},
    "register_load_state_dict_pre_hook": {},
    "register_load_state_dict_post_hook": {},
}


def exercise(module):
    module(randn(L, N, H_IN, seed=1).requires_grad_())[0].sum().backward()
    module.load_state_dict(module.state_dict())


@ways
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("bound", ["method", "partial"])
@pytest.mark.parametrize("register", HOOKS)
def test_hooks_bound_to_the_old_module_are_bound_to_the_new(turn, source, target, register, bound, inplace):
    """And the modules that torch hands to a hook are the new one too."""
    called = []

    def record(self, *args, **_):
        called.append((self, [arg for arg in args if isinstance(arg, nn.Module)]))

    model = nn.Sequential(build(source, "GRU"))
    hook = types.MethodType(record, model[0]) if bound == "method" else functools.partial(record, model[0])
    if register == "register_state_dict_post_hook" and bound == "method":
        with pytest.raises(AttributeError):  # torch marks the hook by an attribute, which a method can't have
            model[0].register_state_dict_post_hook(hook)
        return
    handle = getattr(model[0], register)(hook, **HOOKS[register])
    turned = turn(model, inplace=inplace)
    exercise(turned[0])
    ((self, handed),) = called
    assert self is turned[0]
    assert set(map(id, handed)) == {id(turned[0])}, f"{register} hands over {handed}"
    if inplace:
        handle.remove()
        exercise(turned[0])
        assert len(called) == 1


def closure(module):
    return lambda *args: module(*args)


def closure_over_method(module):
    forward = module.forward
    return lambda *args: forward(*args)


def nested_closure(module):
    inner = closure(module)
    return lambda *args: inner(*args)


def default(module):
    return lambda input=None, module=module: module(input)


def keyword_default(module):
    return lambda *args, module=module: module(*args)


def wrapper(module):
    def function(*args):
        return args

    function.__wrapped__ = module.forward
    return function


def method(module):
    forward = module.forward
    return types.MethodType(lambda self, *args: forward(*args), module)


def partial(module):
    return functools.partial(lambda self, *args: module(*args), module)


HELD = [closure, closure_over_method, nested_closure, default, keyword_default, wrapper, method, partial]


@ways
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("make", HELD)
def test_a_forward_that_holds_the_old_module_is_refused_by_name(turn, source, target, make, inplace):
    """And nothing is changed."""
    inner = build(source, "GRU")
    model = nn.Sequential(build(source, "LSTM"), nn.Sequential(OrderedDict(inner=inner)))
    inner.forward = make(inner)
    before = {name: snapshot(module) for name, module in model.named_modules()}
    with pytest.raises(TypeError, match=r"can't convert 1\.inner \(GRU\): its own forward can't be bound"):
        turn(model, inplace=inplace)
    assert {name: snapshot(module) for name, module in model.named_modules()} == before


def snapshot(module):
    """What the attributes and hooks of a module are, by identity."""
    found = {key: id(value) for key, value in vars(module).items()}
    return found | {
        (key, k): id(v) for key, value in vars(module).items() if isinstance(value, dict) for k, v in value.items()
    }


@ways
def test_lists_and_closures_are_left_as_they_are(turn, source, target):
    """What they hold is the old module, with the same parameters."""
    module = build(source, "GRU")
    module.listed, module.function = [module], closure(module)
    turned = turn(module)
    assert turned.listed == [module]
    assert turned.function is module.function


@ways
def test_functions_that_hold_nothing_of_the_model_go_over(turn, source, target):
    other = nn.Linear(1, 1)

    def recursive(depth=3):
        return recursive(depth - 1) if depth else other

    def unset():
        return late

    module = build(source, "GRU")
    module.plain, module.recursive, module.unset = size_of, recursive, unset
    module.itself = [other]
    module.itself.append(module.itself)
    module.gone = weakref.ref(nn.Linear(1, 1))
    vars(module)["proxy"] = weakref.proxy(nn.Linear(1, 1))  # not by setattr, which looks at it
    vars(module)["proxies"] = (module.proxy,)
    kept = {key: vars(module)[key] for key in ("plain", "recursive", "unset", "itself", "gone", "proxy", "proxies")}
    turned = turn(module)
    assert [key for key, value in kept.items() if vars(turned)[key] is not value] == []
    late = None  # so that `unset` has a cell, empty until here


@ways
@pytest.mark.parametrize(("kind", "cell"), ALL)
def test_what_is_added_to_the_new_module_does_not_appear_in_the_old(turn, source, target, kind, cell):
    """The two share parameters, not the registries that list them."""
    old = build(source, kind, cell)
    old.register_buffer("own", torch.zeros(1), persistent=False)
    new = turn(old)
    for one, other, suffix in ((new, old, "new"), (old, new, "old")):
        one.register_parameter("weight_" + suffix, nn.Parameter(torch.zeros(1)))
        one.register_buffer("buffer_" + suffix, torch.zeros(1))
        one.register_buffer("hidden_" + suffix, torch.zeros(1), persistent=False)
        one.add_module("module_" + suffix, nn.Linear(1, 1))
        for name in ("weight_", "buffer_", "hidden_", "module_"):
            assert not hasattr(other, name + suffix), f"{name + suffix} appears in the other module"
        assert "hidden_" + suffix not in other._non_persistent_buffers_set
    del new.own
    assert "own" in old._non_persistent_buffers_set


@ways
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("reparametrise", ["weight_norm", "spectral_norm", "prune"])
def test_a_reparametrisation_can_still_be_removed(turn, source, target, reparametrise):
    module = build(source, "GRU")
    if reparametrise == "prune":
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    else:
        getattr(nn.utils, reparametrise)(module, "weight_hh_l0")
    module.eval()
    before = module(randn(L, N, H_IN, seed=1))[0]
    turned = turn(module)
    removed = prune.remove if reparametrise == "prune" else getattr(nn.utils, f"remove_{reparametrise}")
    removed(turned, "weight_hh_l0")
    assert sorted(turned.state_dict()) == sorted(build(target, "GRU").state_dict())
    torch.testing.assert_close(turned(randn(L, N, H_IN, seed=1))[0], before, rtol=0, atol=1e-15)


@ways
@pytest.mark.parametrize("inplace", [True, False])
def test_a_module_at_several_places_is_replaced_by_one_at_any_depth(turn, source, target, inplace):
    shared = build(source, "GRU")
    deep = shared
    for _ in range(40):
        deep = nn.Sequential(deep)
    model = nn.ModuleDict({"one": shared, "two": shared, "deep": deep, "three": nn.ModuleList([shared, shared])})
    vars(model)["plain"] = (shared,)
    turned = turn(model, inplace=inplace)
    deep = turned["deep"]
    for _ in range(40):
        deep = deep[0]
    assert type(deep) is target.GRU
    found = [turned["one"], turned["two"], *turned["three"], turned.plain[0]]
    assert set(map(id, found)) == {id(deep)}
    assert (model["one"] is shared) != inplace
    assert (deep.weight_hh_l0 is shared.weight_hh_l0) == inplace


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
@pytest.mark.parametrize(
    ("junk", "said"),
    [
        (None, "NoneType"),
        (3, "int"),
        ([nn.GRU(1, 1)], "list"),
        (nn.GRU, "the class GRU"),
        ("model.pt", "str"),
        (OrderedDict(weight=torch.zeros(1)), "OrderedDict"),
        (torch.zeros(1), "Tensor"),
    ],
    ids=repr,
)
def test_what_is_no_module_is_refused_by_the_name_of_the_argument(turn, source, target, junk, said):
    with pytest.raises(TypeError, match=rf"^model should be a torch\.nn\.Module, got: {said}$"):
        turn(junk)


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
