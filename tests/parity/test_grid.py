"""The whole grid on rnnkit; the cases, the numbers, the verdicts."""

import itertools
import math
import types
from collections import Counter

import pytest
import torch
from helpers import slow

from parity.contract.answers import contract
from parity.grid import verdict
from parity.grid.cases import AXES, CELLS, DTYPES, KINDS, RAGGED, SPECIALS, Case, grid, quick
from parity.grid.compare import Yardstick, allowance, judge, relative_error
from parity.grid.run import Precision, draw, observe, same_bits
from parity.grid.subject import load
from parity.grid.verdict import Verdict

GRID = grid()
QUICK = quick(GRID)
FAST = load("rnnkit", {"path": "always fast"})
LAYER = Case("LSTM", "float64", False, 2, True, False, True, "", "padded", True)


def different(cases, subject):
    results = (judge(case, subject) for case in cases)
    return [f"{result.case.name}: {result.worst}" for result in results if not result.verdict.passes]


@pytest.mark.parametrize(
    ("axes", "dtype"),
    [(2, "float64"), (2, "float32"), (2, "bfloat16"), *slow([(3, dtype) for dtype in DTYPES])],
)
@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_rnnkit_is_torch_nn_wherever_so_many_axes_meet(axes, kind, dtype):
    """Of a layer any values of so many axes occur together, of a cell of all, of a special circumstance any two. The
    full product, some seven times as many cases as with three, `python -m parity` runs."""
    cases = [case for case in GRID if (case.kind, case.dtype) == (kind, dtype)]
    plain, special = ([case for case in cases if bool(case.special) == of] for of in (False, True))
    some = plain if kind in CELLS else quick(plain, strength=axes)
    assert different([*some, *quick(special)], FAST) == []
    met, all_that_meet = (
        {met for case in chosen for met in itertools.combinations([(a, getattr(case, a)) for a in AXES], axes)}
        for chosen in (some, plain)
    )
    assert met == all_that_meet


@pytest.mark.slow
def test_torch_nn_is_torch_nn_bit_for_bit():
    assert {judge(case, torch.nn).verdict for case in QUICK} == {Verdict.BITWISE}
    assert {answer.verdict for answer in contract(torch.nn)} == {Verdict.EQUAL}


def test_the_grid_is_the_full_product():
    plain = [case for case in GRID if not case.special and not case.is_cell]
    per_backend = 3 * 2 * 2 * 2 * 3 * 4 * 2  # layers, bias, batch_first, bidirectional, dropout, form, hx
    cut = Counter((case.kind, case.dtype, case.onednn, case.form) for case in plain if case.is_ragged)
    assert set(cut.values()) == {3 * 2 * 2 * 2 * 2}  # the same without dropout, of each of RAGGED
    counts = Counter((case.kind, case.dtype, case.onednn) for case in plain if not case.is_ragged)
    assert {key[:3] for key in cut} == set(counts)
    assert {key[3] for key in cut} == set(RAGGED)
    assert {count for (_, dtype, _), count in counts.items() if not dtype.startswith("complex")} == {per_backend}
    assert {count for (_, dtype, _), count in counts.items() if dtype.startswith("complex")} == {per_backend * 2 // 3}
    assert {(kind, dtype) for kind, dtype, _ in counts} == {
        (kind, dtype) for kind in KINDS for dtype in DTYPES if kind != "RNN-relu" or not dtype.startswith("complex")
    }
    assert len(GRID) > 20_000
    assert {case.special for case in GRID} == {"", *SPECIALS}


def test_names_are_unique():
    assert len({case.name for case in GRID}) == len(GRID)


def test_quick_shows_every_triple_of_axis_values():
    def triples(cases):
        values = ([(axis, getattr(case, axis)) for axis in AXES] for case in cases)
        return {triple for case_values in values for triple in itertools.combinations(case_values, 3)}

    plain = [case for case in GRID if not case.special and not case.is_cell]
    assert triples(plain) == triples(case for case in QUICK if not case.special and not case.is_cell)


def test_numbers_depend_on_the_case_and_the_seed_alone():
    again = draw(LAYER, 0)
    assert all(torch.equal(weight, again.weights[name]) for name, weight in draw(LAYER, 0).weights.items())
    assert not torch.equal(draw(LAYER, 0).weights["bias_ih_l0"], draw(LAYER, 1).weights["bias_ih_l0"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_weights_are_equal(kind):
    case = Case(kind, "float64", False, 3, True, False, True, "", "padded", True)
    drawn = torch.cat([weight.flatten() for weight in draw(case, 0).weights.values()])
    assert drawn.unique().numel() == drawn.numel()


@pytest.mark.slow
def test_every_gradient_of_torch_nn_is_there_and_not_zero():
    for case in QUICK:
        if case.special in ("", "long", "wide", "second_call", "noncontiguous", "keywords"):
            dtype = getattr(torch, case.dtype)
            seen = observe(torch.nn, case, draw(case, 0), Precision(dtype, dtype))
            grads = {name: tensor for name, tensor in seen.tensors.items() if name.startswith("grad of")}
            drawn = draw(case, 0)
            parameters = len(drawn.weights) + 1 + len(drawn.hx) + len(drawn.reset_to)
            assert len(grads) == parameters
            if case.is_ragged:  # a state that no row begins with has none
                grads = {name: grad for name, grad in grads.items() if not name.endswith("_0")}
            if case.is_cell and not case.hx:  # h is zero then, and so is the gradient of what multiplies it
                assert not grads.pop("grad of weight_hh").any()
            assert all(grad is not None and grad.any() for grad in grads.values()), case.name


def yardstick(case):
    dtype = getattr(torch, case.dtype)
    drawn = draw(case, 0)
    theirs = observe(torch.nn, case, drawn, Precision(dtype, dtype))
    return Yardstick(case, drawn, torch.nn, theirs), theirs.tensors


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_gradient_a_thousandth_off_is_found_in_every_case(dtype):
    for case in QUICK:
        if case.dtype == dtype and case.special not in ("autocast", "empty_batch"):
            measure, tensors = yardstick(case)
            for name, grad in tensors.items():
                if name.startswith("grad of") and grad is not None and grad.any():
                    assert measure.compare(name, grad * 1.001).verdict is Verdict.DIFFERENT, (case.name, name)


def test_one_digit_in_the_last_place_is_within_rounding_and_not_bitwise():
    measure, tensors = yardstick(LAYER)
    grad = tensors["grad of weight_hh_l0"]
    nudged = torch.nextafter(grad, torch.full_like(grad, math.inf))
    assert not same_bits(grad, nudged)
    assert measure.compare("grad of weight_hh_l0", nudged).verdict is Verdict.ROUNDING


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_equal_means_equal_bits(dtype):
    tensor = torch.randn(3, 4, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    assert same_bits(tensor, tensor.clone())
    assert same_bits(tensor.t(), tensor.t().contiguous())
    assert not same_bits(tensor, tensor.t())
    assert not same_bits(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
    assert same_bits(torch.full((2,), math.nan, dtype=dtype), torch.full((2,), math.nan, dtype=dtype))
    assert not same_bits(tensor, tensor.to(torch.complex128))


def test_errors_are_relative_to_the_largest_element():
    true = torch.tensor([4.0, 0.0, -8.0], dtype=torch.float64)
    assert relative_error(torch.tensor([4.0, 0.8, -8.0]), true) == pytest.approx(0.1)
    assert relative_error(torch.tensor([4.0, math.nan, -8.0]), true) == math.inf
    assert relative_error(torch.zeros(3), torch.zeros(3, dtype=torch.float64)) == 0
    assert relative_error(torch.full((3,), 1e-30), torch.zeros(3, dtype=torch.float64)) == math.inf


def test_no_allowance_hides_a_hopeless_case():
    assert allowance(own=0.5, eps=2**-52, depth=6) < 2e-4
    assert allowance(own=0.0, eps=2**-23, depth=120) < 1e-5


def test_a_case_that_the_reference_does_not_run_is_an_error_even_if_the_subject_fails_alike():
    class Broken(torch.nn.GRUCell):
        def forward(self, *args, **kwargs):
            raise RuntimeError("Numpy is not available")

    case = next(case for case in GRID if case.kind == "GRUCell")
    both = types.SimpleNamespace(GRUCell=Broken)
    for subject, reference in ((both, both), (torch.nn, both), (both, torch.nn)):
        assert judge(case, subject, reference).verdict is Verdict.ERROR
    assert verdict.exit_code([judge(case, both, both)]) == 1


@pytest.mark.slow
def test_torch_nn_runs_every_case():
    """So none is there for torch.nn's refusal, and an error of the reference is always an error of the run."""
    for case in QUICK:
        dtype = getattr(torch, case.dtype)
        assert observe(torch.nn, case, draw(case, 0), Precision(dtype, dtype)).error == "", case.name
