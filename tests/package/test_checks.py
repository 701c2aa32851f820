"""Bad calls, tried on torch.nn and on rnnkit: the same exception, the same words, and nothing changed.

With oneDNN off, since its LSTM words dtypes in its own way.
"""

import itertools
import math
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import (
    CELLS,
    H_IN,
    KINDS,
    LENGTHS,
    H,
    L,
    N,
    as_list,
    assert_equal_tensors,
    build,
    named,
    numbered,
    outcome,
    pair,
    product,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkit
from rnnkit import checks

pytestmark = pytest.mark.usefixtures("native_kernels")

F64 = torch.float64


def ramp(*shape, dtype=F64, device="cpu"):
    """A tensor of that form, of numbers that count where a call goes through."""
    if dtype is not F64 or device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape)


def check(native, kit, *args, refused=None):
    """Both end alike, with an exception or with a result; `refused` says whether it must be the exception."""
    watched = [t for t in flat(args) if not t.is_meta]
    copies = [t.clone() for t in watched]
    weights = [w.detach().clone() for w in kit.parameters()]
    generator = torch.get_rng_state()
    expected, seen = outcome(native, *args), outcome(kit, *args)
    assert seen == expected
    if refused is not None:
        assert bool(expected[0]) == refused
    if expected[0]:
        assert torch.equal(generator, torch.get_rng_state())
    elif not any(t.is_meta for t in flat(args)):
        torch.testing.assert_close(kit(*args), native(*args), rtol=0, atol=1e-13)
    assert_equal_tensors(numbered("given", watched), numbered("given", copies))
    assert_equal_tensors(numbered("weight", kit.parameters()), numbered("weight", weights))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else []


# Constructors -------------------------------------------------------------------------------------------------------

VALUES = [0, -1, 1, 2, 4, 5, True, False, None, 1.0, 1.5, "3", torch.tensor(2), [2], 0.5, 2.0, 1j]
ARGUMENTS = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size"]


def construct(library, name, arguments):
    """How the construction ends: the exception, or the module's repr and weights; and what it warned of."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ended = outcome(lambda: made.append(getattr(library, name)(**arguments)) if (made := []) is not None else None)
        made = []
        outcome(lambda: made.append(getattr(library, name)(**arguments)))
    text = [repr(module) + str([tuple(w.shape) for w in module.parameters()]) for module in made]
    return ended, text, [(w.category, str(w.message)) for w in caught]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("argument", [*ARGUMENTS, "nonlinearity", "device", "dtype", "unknown"])
def test_one_bad_constructor_argument(name, argument):
    for value in [*VALUES, "tanh", "relu", "cuda:99", torch.float64, torch.int64]:
        if (name, argument, value) == ("RNN", "hidden_size", True):
            continue  # torch.nn's LSTM and GRU take it for 1, its RNN doesn't; rnnkit's three do
        given = {"input_size": 3, "hidden_size": 4, argument: value}
        assert construct(rnnkit, name, given) == construct(nn, name, given), f"{argument}={value!r}"


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_dropout_that_is_no_number(name):
    given = {"input_size": 3, "hidden_size": 4, "dropout": float("nan")}
    assert construct(rnnkit, name, given) == construct(nn, name, given)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_two_bad_constructor_arguments_are_refused_in_torchs_order(name):
    bad = {
        "input_size": 0,
        "hidden_size": -1,
        "num_layers": 0,
        "bias": 1,
        "batch_first": None,
        "dropout": 2.0,
        "proj_size": 7,
    }
    for pairs in itertools.combinations(bad.items(), 2):
        given = {"input_size": 3, "hidden_size": 4} | dict(pairs)
        assert construct(rnnkit, name, given) == construct(nn, name, given), given
        assert construct(nn, name, given)[0] != ("", "")


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU", "RNN", "lstm", "", None, 3])
def test_a_mode_that_is_unknown(mode):
    given = {"mode": mode, "input_size": 3, "hidden_size": 4}
    assert construct(rnnkit, "RNNBase", given) == construct(nn, "RNNBase", given)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_missing_and_superfluous_arguments(name):
    for args in ((), (3,), (3, 4, 1, "tanh", True, True, 0.0, True, "cpu", F64, 1, 2)):
        expected = outcome(getattr(nn, name), *args)
        assert outcome(getattr(rnnkit, name), *args) == expected != ("", "")


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("argument", ["input_size", "hidden_size", "bias", "nonlinearity", "device", "dtype"])
def test_one_bad_argument_of_a_cell(name, argument):
    for value in [*VALUES, "tanh", "relu", F64, torch.int64]:
        given = {"input_size": 3, "hidden_size": 4, argument: value}
        assert construct(rnnkit, name, given) == construct(nn, name, given), f"{argument}={value!r}"


# Calls of layers ----------------------------------------------------------------------------------------------------

SHAPES = product(num_layers=[1, 2], bidirectional=[False, True], batch_first=[False, True], bias=[True, False])
DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex128]


def sizes(module):
    """The right sizes of h_0 and c_0."""
    slots = module.num_layers * (1 + module.bidirectional)
    return [(slots, N, module.proj_size or H), (slots, N, H)][: 1 + (module.mode == "LSTM")]


def wrong_sizes(size):
    """Every size near the right one: each dimension 0, 1, one less, one more; dimensions lost and gained."""
    for place, n in itertools.product(range(len(size)), (0, 1, -1, +1)):
        changed = list(size)
        changed[place] = n if n in (0, 1) and n != +1 else size[place] + n
        yield tuple(changed)
        changed[place] = 1
        yield tuple(changed)
    yield from (size[1:], size[:-1], (*size, 1), (1, *size), (), tuple(reversed(size)), (size[1], size[0], size[2]))


def states(module, kind="LSTM"):
    """The right hx of a module, and wrong ones beside it."""
    right = [ramp(*size) for size in sizes(module)]
    for k, size in enumerate(sizes(module)):
        for wrong in wrong_sizes(size):
            yield [*right[:k], ramp(*wrong), *right[k + 1 :]]
        for dtype in DTYPES:
            yield [*right[:k], ramp(*size, dtype=dtype), *right[k + 1 :]]
        yield [*right[:k], ramp(*size, device="meta"), *right[k + 1 :]]
    if len(right) == 2:
        yield right[::-1]
        yield [ramp(*wrong) for wrong in (sizes(module)[0][1:],) * 2]
        yield [ramp(*size, dtype=torch.float32) for size in sizes(module)]


def elsewhere(tensors):
    """On another device: where torch.nn leaves that to its operators, some mixtures run, to no use."""
    return any(t.is_meta for t in tensors)


def as_hx(states):
    return tuple(states) if len(states) > 1 else states[0]


def confusions(module):
    """Things that are no state at all."""
    right = [ramp(*size) for size in sizes(module)]
    return [
        right[0],
        tuple(right),
        right,
        (right[0],),
        (*right, right[0]),
        (),
        (None, None),
        (right[0], None),
        (None, right[0]),
        ([right[0]], [right[0]]),
        {"h_0": right[0]},
        "state",
        0,
        torch.stack([right[0], right[0]]),
        nn.Linear(1, 1),
    ]


def inputs(module):
    """A right input, and wrong ones."""
    leading = (N, L) if module.batch_first else (L, N)
    yield ramp(*leading, H_IN)
    for shape in ((), (H_IN,), (L, H_IN), (*leading, H_IN, 1), (1, *leading, H_IN), (1, 1, *leading, H_IN)):
        yield ramp(*shape)
    for size in (0, 1, H_IN - 1, H_IN + 1, H):
        yield ramp(*leading, size)
        yield ramp(L, size)
    for dtype in DTYPES:
        yield ramp(*leading, H_IN, dtype=dtype)
        yield ramp(L, H_IN, dtype=dtype)
    yield ramp(*leading, H_IN, device="meta")
    yield ramp(*leading, 0, dtype=torch.float32)


@pytest.mark.parametrize("options", SHAPES, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_inputs(kind, options):
    native, kit = pair(kind, **options)
    for input in inputs(native):
        check(native, kit, input)
        check(native, kit, input, as_hx([ramp(*size) for size in sizes(native)]))
        check(native, kit, input, as_hx([ramp(*(n for k, n in enumerate(size) if k != 1)) for size in sizes(native)]))


@pytest.mark.parametrize("kind", KINDS)
def test_things_that_are_no_tensor(kind):
    native, kit = pair(kind)
    for thing in (None, 3, "input", [1.0], (ramp(L, N, H_IN), None), {}, ramp(L, N, H_IN).numpy()):
        check(native, kit, thing, refused=True)


@pytest.mark.parametrize("options", SHAPES, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_states_of_a_padded_batch(kind, options):
    native, kit = pair(kind, **options)
    input = ramp(*((N, L) if options["batch_first"] else (L, N)), H_IN)
    for wrong in states(native):
        check(native, kit, input, as_hx(wrong))


@pytest.mark.parametrize("options", SHAPES, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_states_of_one_sequence(kind, options):
    native, kit = pair(kind, **options)
    for wrong in states(native):
        check(native, kit, ramp(L, H_IN), as_hx(wrong))
        check(native, kit, ramp(L, H_IN), as_hx([s[:, 0] if s.dim() > 2 and s.size(1) else s for s in wrong]))


@pytest.mark.parametrize("form", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_kind(kind, form):
    native, kit = pair(kind, num_layers=2)
    input = {"padded": ramp(L, N, H_IN), "unbatched": ramp(L, H_IN), "packed": packed()}[form]
    for thing in confusions(native):
        check(native, kit, input, thing)


def packed(size=H_IN, dtype=F64, unsorted=False):
    lengths = LENGTHS if unsorted else sorted(LENGTHS, reverse=True)
    return pack_padded_sequence(ramp(L, N, size, dtype=dtype), lengths, enforce_sorted=not unsorted)


def crashes(module, wrong):
    """What torch.nn's kernel doesn't survive: a packed LSTM's states of not three dimensions, or fewer c than h."""
    return module.mode == "LSTM" and (any(s.dim() != 3 for s in wrong) or wrong[1].size(0) < wrong[0].size(0))


@pytest.mark.parametrize("unsorted", [False, True], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(
    "options", product(num_layers=[1, 2], bidirectional=[False, True], bias=[True, False]), ids=named
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_states_of_a_packed_batch(kind, options, unsorted, path):
    native, kit = pair(kind, **options)
    for wrong in states(native):
        if crashes(native, wrong) or elsewhere(wrong):
            assert outcome(kit, packed(unsorted=unsorted), as_hx(wrong))[0] in ("RuntimeError", "IndexError")
        else:
            check(native, kit, packed(unsorted=unsorted), as_hx(wrong))


@pytest.mark.parametrize("options", SHAPES, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_packed_inputs(kind, options):
    native, kit = pair(kind, **options)
    for hx in (None, as_hx([ramp(*size) for size in sizes(native)])):
        for size in (1, H_IN - 1, H_IN + 1):
            check(native, kit, packed(size), hx, refused=True)
        for dtype in DTYPES:
            check(native, kit, packed(dtype=dtype), hx, refused=True)
        rows, batch_sizes, *_ = packed()
        for data in (rows[:, None], rows[:, 0], rows[:-1]):
            check(native, kit, PackedSequence(data, batch_sizes), hx)
        check(native, kit, PackedSequence(rows, batch_sizes.int()), hx, refused=True)


def test_what_crashes_torch_is_refused():
    """Each of these ends the interpreter under torch.nn, which is tried in one of its own; rnnkit raises."""
    crash = """
import torch
torch.backends.mkldnn.set_flags(False)
packed = torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(5, 3, 3), [5, 3, 1])
torch.nn.LSTM(3, 4)(packed, (torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)))
"""
    ended = subprocess.run([sys.executable, "-c", crash], capture_output=True, timeout=60).returncode
    assert ended != 0
    kit = build(rnnkit, "LSTM")
    for h, c in (
        (ramp(2, N, H), ramp(1, N, H)),
        (ramp(1, N, H, 1), ramp(1, N, H, 1)),
        (ramp(1, 1, N, H), ramp(1, 1, N, H)),
        (ramp(1, N, H), ramp(1, N, H, 1)),
        (ramp(1, N, H), ramp(0, N, H)),
    ):
        assert outcome(kit, packed(), (h, c))[0] in ("RuntimeError", "IndexError")


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit(kind, form):
    """A weight replaced by one of another dtype, device, or by none."""
    for name in ("weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1"):
        changes = [lambda w: w.float(), lambda w: None, lambda w: w.int()]
        for change in changes + [lambda w: w.to("meta")] * (form == "padded"):
            native, kit = pair(kind, num_layers=2)
            for module in (native, kit):
                changed = change(getattr(module, name).detach())
                delattr(module, name)
                setattr(module, name, changed)
            check(native, kit, ramp(L, N, H_IN) if form == "padded" else packed())


# Calls of cells -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_bad_calls_of_cells(kind, bias):
    native, kit = pair(kind, cell=True, bias=bias)
    count = 2 if kind == "LSTM" else 1
    shapes = [(), (H,), (N, H), (1, H), (0, H), (N + 1, H), (N, H + 1), (N, 1), (N, 0), (H, N), (1, N, H), (N, H, 1)]
    given = [ramp(*shape) for shape in shapes] + [ramp(N, H, dtype=dtype) for dtype in DTYPES]
    given += [ramp(N, H, device="meta"), ramp(H, dtype=torch.float32)]
    right = ramp(N, H)
    wrong = [as_hx([state] * count) for state in given]
    if count == 2:
        wrong += [pair for state in given for pair in ((state, right), (right, state))]
    wrong += [
        None,
        (),
        (right,),
        (right, right),
        (right, right, right),
        [right, right],
        "hx",
        3,
        (right, None),
        (None, None),
    ]
    for input in (ramp(N, H_IN), ramp(H_IN), ramp(1, H_IN)):
        for hx in wrong:
            if elsewhere(flat(hx)):
                assert outcome(kit, input, hx)[0] in ("RuntimeError", "ValueError")
            else:
                check(native, kit, input, hx)
    for shape in ((), (H_IN + 1,), (N, H_IN + 1), (N, 1), (N, 0), (0, H_IN), (1, N, H_IN), (N, H_IN, 1), (H_IN, N)):
        for hx in (None, as_hx([right] * count), as_hx([right[0]] * count)):
            check(native, kit, ramp(*shape), hx)
    for dtype in DTYPES:
        for hx in (None, as_hx([right] * count), as_hx([right.to(dtype)] * count)):
            check(native, kit, ramp(N, H_IN, dtype=dtype), hx)
    for thing in (None, 3, "input", [1.0], ramp(N, H_IN).numpy()):
        check(native, kit, thing, refused=True)
    assert len(as_list(kit(ramp(N, H_IN)))) == count


@pytest.mark.parametrize("H", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_state_of_two_dimensions_beside_an_input_of_one_is_refused(kind, H):
    """torch.nn crashes the interpreter where H is 1, its LSTM wherever H is no multiple of 4. From 2.15 on it looks."""
    cell, state = getattr(rnnkit, kind + "Cell")(3, H), torch.zeros(H, H)
    words = "should also be 1-D but got 2-D tensor" if kind == "LSTM" or H == 1 else "must match the size of tensor b"
    if checks.CELLS_CHECK_RANK:
        words = r"^Expected 2D hidden0 \(batch x hidden_size\), but got 3D tensor$"
    with pytest.raises(RuntimeError, match=words):
        cell(torch.zeros(3), (state, state) if kind == "LSTM" else state)


REMEDIES = [
    ("GRU", [0.0], None, ["input should be a tensor or a PackedSequence, got: list"]),
    ("LSTM", (torch.zeros(5, 2, 3),), None, ["input should be a tensor or a PackedSequence, got: tuple"]),
    ("RNN", None, None, ["input should be a tensor or a PackedSequence, got: NoneType"]),
    ("LSTM", torch.zeros(5, 2, 3), torch.zeros(1, 2, 4), ["hx should be (h_0, c_0), a pair of tensors, got: Tensor"]),
    ("LSTM", torch.zeros(5, 2, 3), ([0.0], [0.0]), ["hx should be (h_0, c_0), a pair of tensors, got: (list, list)"]),
    ("GRU", torch.zeros(5, 2, 3), (torch.zeros(1, 2, 4),), ["hx should be a tensor, got: tuple"]),
    ("GRU", torch.zeros(5, 2, 9), None, []),
]


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="errors have no notes before Python 3.11")
@pytest.mark.parametrize(("kind", "x", "hx", "notes"), REMEDIES, ids=[f"{k}-{n}" for k, *_, n in REMEDIES])
def test_what_torch_nns_words_dont_say_a_note_says(kind, x, hx, notes):
    said = []
    for library in (nn, rnnkit):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            getattr(library, kind)(3, 4)(x, hx)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]
    assert getattr(caught.value, "__notes__", []) == notes


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="errors have no notes before Python 3.11")
def test_an_unknown_mode_is_told_which_there_are():
    with pytest.raises(ValueError, match="Unrecognized RNN mode: lstm") as caught:
        rnnkit.RNNBase("lstm", 3, 4)
    assert str(caught.value) == "Unrecognized RNN mode: lstm"
    assert caught.value.__notes__ == ["mode should be one of RNN_TANH, RNN_RELU, LSTM, GRU, or an Equation"]


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTM-proj"])
def test_pythons_own_errors_name_the_class_whose_call_it_was(kind, cell):
    """And where a class of the caller's inherits it, the one of whom it inherits."""
    x = torch.randn(*(() if cell else (4,)), N, H_IN)
    calls = [((), {}), ((x, None, None), {}), ((x,), {"h_0": None}), ((x,), {"input": x})]
    modules = [build(library, kind, cell) for library in (nn, rnnkit)]
    for args, kwargs in calls:
        expected, seen = (outcome(module, *args, **kwargs) for module in modules)
        assert seen == expected, (kind, args[1:], kwargs)
        assert expected[0] == "TypeError"
    for module in modules:
        module.__class__ = type("Mine", (type(module),), {})
        assert outcome(module) == outcome(modules[0])
    made = [outcome(getattr(library, type(modules[1]).__base__.__name__), 3) for library in (nn, rnnkit)]
    assert made[1] == made[0]
