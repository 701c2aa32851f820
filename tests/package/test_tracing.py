"""A trace: the results of the call, and every step's gates and states, which satisfy the equations."""

import pytest
import torch
from helpers import CELLS, FORMS, KINDS, LENGTHS, arguments, assert_equal_tensors, pack, product
from helpers import pair as make_pair
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import rnnkit

GRID = product(num_layers=[1, 2], bidirectional=[False, True], batch_first=[False, True], bias=[True, False])


def named(results):
    return {f"result {k}": t for k, t in enumerate(tree_leaves(results)) if isinstance(t, Tensor)}


def by_hand(module, suffix: str, x: Tensor, before: tuple[Tensor, ...], d: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gates of one step by the formulas of torch.nn's documentation, from an input and the state before it."""

    def at(name):
        return getattr(module, name + suffix, None) if module.bias or "weight" in name else None

    igates = nn.functional.linear(x, at("weight_ih"), at("bias_ih"))
    hgates = nn.functional.linear(before[0], at("weight_hh"), at("bias_hh"))
    if module.mode == "LSTM":
        i, f, g, o = (igates + hgates).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * before[1] + i * g
        h = o * c.tanh()
        return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h if "weight_hr" not in d else h @ d["weight_hr"].t()}
    if module.mode == "GRU":
        (r_i, z_i, n_i), (r_h, z_h, n_h) = igates.chunk(3, -1), hgates.chunk(3, -1)
        r, z = (r_i + r_h).sigmoid(), (z_i + z_h).sigmoid()
        n = (n_i + r * n_h).tanh()
        return {"r": r, "z": z, "n": n, "h": (1 - z) * n + z * before[0]}
    a = igates + hgates
    return {"h": a.tanh() if module.mode == "RNN_TANH" else a.relu()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", GRID, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_calls_and_what_is_seen_satisfies_the_equations(kind, options, form, native_kernels):
    native, kit = make_pair(kind, **options)
    x, hx = arguments(kit, form)
    given = pack(kit, x, form)
    expected = named(native(given, hx))
    of_native, of_kit = rnnkit.trace(native, given, hx), rnnkit.trace(kit, given, hx)
    for trace in (of_native, of_kit):
        assert_equal_tensors(named((trace.output, trace.hx)), expected, case=str((kind, options, form)))
    for name, parts in of_kit.seen.items():
        assert_equal_tensors(of_native.seen[name], parts, case=str((kind, options, form, name)))
    check_equations(kit, form, options["batch_first"], x, hx, of_kit)


def check_equations(kit, form, batch_first, x, hx, trace):
    """Take every step by hand from what was seen of the step before, and of the layer below."""
    D = 2 if kit.bidirectional else 1
    below = x.transpose(0, 1) if batch_first and form != "unbatched" else x
    states = hx if isinstance(hx, tuple) else (hx,)
    lengths = LENGTHS if form == "unsorted" else sorted(LENGTHS, reverse=True)
    rows = [below.size(0)] if form == "unbatched" else [len(below)] * below.size(1) if form == "padded" else lengths
    letters = ("h", "c")[: len(states)]
    for k in range(kit.num_layers):
        handed_on = []
        for d, suffix in enumerate((f"_l{k}", f"_l{k}_reverse")[:D]):
            seen = trace.seen[suffix[1:]]
            projection = {"weight_hr": getattr(kit, "weight_hr" + suffix)} if kit.proj_size else {}
            for n, length in enumerate(rows):

                def of(t, n=n):
                    return t if form == "unbatched" else t[..., n, :]

                order = range(length - 1, -1, -1) if d else range(length)
                before = tuple(of(s[k * D + d]) for s in states)
                for t in order:
                    expected = by_hand(kit, suffix, of(below[t]), before, projection)
                    found = {letter: of(seen[letter][t]) for letter in expected}
                    assert set(seen) == set(expected)
                    for letter in expected:
                        torch.testing.assert_close(found[letter], expected[letter], rtol=0, atol=1e-12)
                    before = tuple(found[letter] for letter in letters)
                for letter in seen:
                    assert not of(seen[letter][length:]).any()
            handed_on.append(seen["h"])
        below = torch.cat(handed_on, -1)


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cells_trace_is_its_step(kind, form, native_kernels):
    native, kit = make_pair(kind, cell=True)
    x, hx = arguments(kit, form)
    for module in (native, kit):
        trace = rnnkit.trace(module, x, hx)
        assert_equal_tensors(named(trace.output), named(native(x, hx)), case=str((kind, form)))
        assert list(trace.seen) == ["cell"]
        assert set(trace.seen["cell"]) == {*kit.equation.gates, *kit.equation.state}
        assert all(t.shape == (*x.shape[:-1], kit.hidden_size) for t in trace.seen["cell"].values())


def test_what_is_seen_can_be_differentiated_by_the_modules_own_parameters():
    native = nn.LSTM(3, 4, dtype=torch.float64)
    trace = rnnkit.trace(native, torch.randn(5, 2, 3, dtype=torch.float64))
    trace.seen["l0"]["f"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in native.parameters())


def test_dropout_draws_what_the_call_draws():
    module = rnnkit.GRU(3, 4, 3, dropout=0.5)
    x = torch.randn(5, 2, 3)
    torch.manual_seed(7)
    expected = module(x)[0]
    torch.manual_seed(7)
    torch.testing.assert_close(rnnkit.trace(module, x).output, expected)


@pytest.mark.parametrize("thing", [None, nn.Linear(3, 4), rnnkit.GRU], ids=["None", "Linear", "class"])
def test_another_module_is_refused_by_name(thing):
    with pytest.raises(TypeError, match=r"a layer or a cell of rnnkit or torch\.nn, got: "):
        rnnkit.trace(thing, torch.zeros(5, 2, 3))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_of_no_steps_nothing_is_seen(kind, bidirectional):
    _, kit = make_pair(kind, num_layers=2, bidirectional=bidirectional)
    x, hx = arguments(kit, steps=0)
    trace = rnnkit.trace(kit, x, hx)
    assert_equal_tensors(named((trace.output, trace.hx)), named(kit(x, hx)))
    for seen in trace.seen.values():
        assert set(seen) == {*kit.equation.gates, *kit.equation.state}
        H_out = kit.proj_size or kit.hidden_size
        for letter, rows in seen.items():
            assert rows.shape == (0, x.size(1), H_out if letter == "h" else kit.hidden_size), letter
