"""What a call is answered by: that what `explain` says is what is done, whoever looks on."""

import warnings

import pytest
import torch
from cases import make_stack, wanting
from helpers import KINDS, arguments, build
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rnnkit
from rnnkit import paths
from rnnkit.fast import DTYPES

kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Subclass(Tensor):
    pass


def nodes(result):
    """Names of the functions in a graph."""
    found, left = set(), [result.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [parent for parent, _ in node.next_functions]
    return {type(node).__name__ for node in found}


@pytest.mark.parametrize("path", ["fast", "always fast", "readable"])
@pytest.mark.parametrize("steps", [2, 50])
@kinds
def test_the_graph_is_of_the_path_that_is_explained(kind, steps, path):
    """By hand: one node for a direction. Else one for each operation of each step."""
    module = build(rnnkit, kind)
    module.path = path
    x, hx = arguments(module, steps=steps)
    graph = nodes(module(x, hx)[0])
    assert ("ThroughTimeBackward" in graph) == (rnnkit.explain(module, x, hx).path == "fast")


@dtypes
@kinds
def test_one_or_two_steps_are_torch_nns_to_the_bit(kind, dtype):
    """By the default: no choice of rnnkit's costs their bits."""
    native, module = build(nn, kind, dtype=dtype), build(rnnkit, kind, dtype=dtype)
    module.load_state_dict(native.state_dict())
    for steps in (1, 2):
        x, hx = arguments(module, steps=steps)
        assert rnnkit.explain(module, x, hx).path == "readable"
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(module(x, hx)[0], native(x, hx)[0])


def decided(stack):
    return paths.RULES.index(paths.rule(stack))


@pytest.mark.parametrize("k", range(len(paths.RULES)))
def test_the_first_rule_that_applies_decides(k, monkeypatch):
    """Whatever those behind it say; what stands before it doesn't apply."""
    rules = [rule._replace(applies=lambda _, yes=i >= k: yes) for i, rule in enumerate(paths.RULES)]
    monkeypatch.setattr(paths, "RULES", rules)
    stack = make_stack()
    assert decided(stack) == k
    assert paths.choose(stack).path == paths.RULES[k].path


def places(stack):
    """The stack with a tensor of another kind in each of its places in turn."""
    input, (state, *_), (weights, *_) = stack.input, stack.states, stack.weights
    yield "input", lambda f: stack._replace(input=f(input))
    for k in range(len(state)):
        yield f"state {k}", lambda f, k=k: stack._replace(states=[(*state[:k], f(state[k]), *state[k + 1 :])])
    for name, weight in weights._asdict().items():
        if weight is not None:
            yield name, lambda f, n=name, w=weight: stack._replace(weights=[weights._replace(**{n: f(w)})])


@pytest.mark.parametrize("path", ["fast", "always fast"])
@kinds
def test_one_tensor_that_is_not_plain_is_enough(kind, path):
    stack = make_stack(kind, L=50, path=path)
    assert paths.rule(stack).path == "fast"
    for name, replaced in places(stack):
        for change in (lambda t: t.detach().as_subclass(Subclass), lambda t: t.detach().to("meta")):
            assert paths.rule(replaced(change)).path == "readable", name
        if name != "input":
            assert paths.rule(replaced(lambda t: t.detach().float())).path == "readable", name


@pytest.mark.parametrize("path", ["fast", "always fast"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@kinds
def test_whoever_looks_into_the_operations_sees_the_readable_path(kind, path):
    stack, seen = make_stack(kind, L=50, path=path), []
    wanting(stack, [])  # a trace takes what it finds for constants

    def served():
        seen.append(paths.rule(stack).path)
        return seen[-1] == "fast"

    assert served()
    with torch.autocast("cpu"):
        served()
    with torch.autograd.forward_ad.dual_level():
        served()
    torch.func.vmap(lambda x: served() or x)(torch.zeros(2))
    torch.func.grad(lambda x: served() or x.sum())(torch.zeros(2))
    torch.jit.trace(lambda x: x * (1 + served()), torch.zeros(2), check_trace=False)
    with FlopCounterMode(display=False):
        served()
    assert seen == ["fast"] + ["readable"] * 6
    assert served()


def test_what_tells_of_tracers_and_transforms_is_there():
    assert paths.TELLING


def test_inside_a_compiled_function_a_call_is_explained_as_compiled():
    module = build(rnnkit, "GRU")
    x, _ = arguments(module)
    said = torch.compile(lambda x: rnnkit.explain(module, x), backend="eager")(x)
    assert said.path in ("compiled", "readable")
    assert torch.compile(lambda: paths.RULES[0].applies(None), backend="eager", fullgraph=True)()
    assert not paths.RULES[0].applies(None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@kinds
def test_the_choice_of_a_path_warns_of_nothing_in_a_trace(kind):
    """It asks no tensor that a trace follows for its size."""
    texts = {}
    for path in ("readable", "fast"):
        module = build(rnnkit, kind)
        module.path = path
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.jit.trace(module, arguments(module, hx=False, steps=50)[0], check_trace=False)
        texts[path] = [f"{w.filename.rpartition('/')[2]}: {w.message}" for w in caught]
    assert texts["fast"] == texts["readable"]
