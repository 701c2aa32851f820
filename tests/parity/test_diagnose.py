"""The catalogue names what is wrong in modules written by hand, and accuses none that is right."""

import itertools

import pytest
import torch
from helpers import slow, thinned
from subjects import correct, gradients, grus, lstms, memory, stacks, unknown
from torch import nn

from parity.checkup.diagnose import Doctor
from parity.checkup.search import distance, equivalent, search
from parity.checkup.subjects import adapt
from parity.checkup.weights import infer
from parity.mutants.catalogue import CATALOGUE
from parity.mutants.definition import Example
from parity.mutants.orders import Order, orders
from parity.mutants.variants import Variant, catalogue, define, plain


def diagnose(subject, seed=0):
    return Doctor(subject, seed).diagnose()


MISTAKEN = [
    (cls, names) for module in (lstms, grus, stacks, gradients, memory, unknown) for cls, *names in module.EXPECTED
]
CORRECT = [cls for module in (correct, stacks, memory) for cls in module.CORRECT]


@pytest.mark.parametrize(
    ("cls", "expected"),
    thinned(2, MISTAKEN),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_mistake_is_caught_and_named(cls, expected):
    diagnosis = diagnose(adapt(cls))
    assert diagnosis.names == expected, str(diagnosis)
    assert not diagnosis.unexplained
    assert all(finding.fix for finding in diagnosis.findings)


def test_there_are_enough_of_them():
    assert len(MISTAKEN) >= 84
    assert len(CORRECT) >= 15


@pytest.mark.parametrize("cls", [*CORRECT, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_none_that_is_right_is_accused(cls):
    diagnosis = diagnose(adapt(cls))
    assert diagnosis.same, str(diagnosis)
    assert "one layer" in diagnosis.passed


@pytest.mark.parametrize("seed", [1, *slow([2, 3])])
def test_the_name_does_not_depend_on_the_numbers(seed):
    assert diagnose(adapt(lstms.TensorFlow), seed).names == ["gates in the order i g f o", "forget gate + 1"]
    assert diagnose(adapt(grus.HaikuGRU), seed).names == list(grus.EXPECTED[8][1:])


@pytest.mark.parametrize("cls", [*unknown.UNKNOWN[:2], *slow(unknown.UNKNOWN[2:])])
def test_what_is_not_in_the_catalogue_is_caught_and_not_named(cls):
    diagnosis = diagnose(adapt(cls))
    assert diagnosis.names == []
    assert [one.probe for one in diagnosis.unexplained] == ["one layer"]
    assert "no known variant fits" in str(diagnosis)


def test_what_a_subject_lacks_is_not_offered_and_not_passed():
    diagnosis = diagnose(adapt(correct.BlockRNN))
    assert diagnosis.not_offered["two directions"] == "no argument bidirectional"
    assert "two layers" in diagnosis.passed
    assert not set(diagnosis.passed) & set(diagnosis.not_offered)


def test_not_run_is_another_thing_than_not_offered():
    diagnosis = diagnose(adapt(unknown.SquareGRU))
    assert diagnosis.not_offered["two layers"] == "no argument num_layers"
    assert list(diagnosis.not_run) == ["what comes after one layer"]
    assert not {"hx", "large states"} & set(diagnosis.left_out), "these it does offer"


def test_a_weight_map_may_be_given():
    def keras(weights):
        i, f, g, o = weights["weight_ih_l0"].chunk(4)
        return {
            "kernel": torch.cat([i, f, g, o]).T,
            "recurrent_kernel": weights["weight_hh_l0"].T,
            "bias": weights["bias_ih_l0"] + weights["bias_hh_l0"],
        }

    assert diagnose(adapt(correct.KernelLSTM, weight_map=keras)).same


def test_a_map_is_found_from_names_and_shapes():
    module = correct.WordyLSTM(3, 4)
    own = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in nn.LSTM(3, 4).named_parameters()}
    lines = list(infer(own, shapes, "LSTM").lines())
    assert lines[0] == "forget_x.weight = weight_ih[gate f]"
    assert "cell_h.bias = bias_hh[gate g]" in lines


# The catalogue itself


def example(kind: str, layers: int = 1, seed: int = 0, cotangents: bool = False) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    module = getattr(nn, kind)(3, 4, layers, dtype=torch.float64)
    weights = {name: randn(*parameter.shape) for name, parameter in module.named_parameters()}
    hx = tuple(randn(layers, 2, 4) for _ in range(1 + (kind == "LSTM")))
    return Example(kind, weights, randn(5, 2, 3), hx)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_plain_definition_is_torch(kind):
    problem = example(kind, layers=2)
    module = getattr(nn, kind)(3, 4, 2, dtype=torch.float64)
    module.load_state_dict(problem.weights)
    output, states = module(problem.input, problem.hx if kind == "LSTM" else problem.hx[0])
    states = states if isinstance(states, tuple) else (states,)
    seen = {"output": output.detach()} | {name: s.detach() for name, s in zip(("h_n", "c_n"), states, strict=False)}
    assert distance(plain(kind).run(problem), seen).item() < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_every_variant_of_a_cell_is_found_among_all(kind):
    """Each order with each deviation is planted in turn; the search must come back with it, or with its equal."""
    deviations = [deviation for deviation in catalogue(kind, ["cell"]) if "batch_first" not in deviation.knobs]
    some = list(itertools.islice(itertools.product(orders(kind), deviations), 0, None, 29))
    for order, deviation in some:
        planted = Variant(order, (deviation,))
        first, second = example(kind, seed=1), example(kind, seed=2)
        found = search(first, planted.run(first), ["cell"], plain(kind), [(second, planted.run(second))])
        assert found.best is not None, planted.name
        assert len(found.best.parts) <= len(planted.parts)
        assert found.best == planted or equivalent(found.best, planted, first), (found.best.name, planted.name)


def test_equivalent_variants_are_one():
    """With a sigmoid on the candidate, input gate and candidate are interchangeable."""
    by_name = {deviation.name: deviation for deviation in CATALOGUE}
    candidate = by_name["sigmoid on the candidate in place of tanh"]
    first, second = (Variant(Order(gates), (candidate,)) for gates in ("ifgo", "gfio"))
    assert equivalent(first, second, example("LSTM"))
    found = search(example("LSTM"), second.run(example("LSTM")), ["cell"], plain("LSTM"))
    assert found.best == first
    assert found.runner_up > 1e-3


def test_one_run_serves_all_orders():
    problem = example("LSTM")
    rows = torch.stack([order.rows(4) for order in orders("LSTM")])
    together = define(()).run(problem, rows)["output"]
    for order, output in zip(orders("LSTM"), together, strict=False):
        torch.testing.assert_close(Variant(order).run(problem)["output"], output, rtol=0, atol=1e-14)


def test_the_fix_for_an_order_repairs_it():
    """Weights permuted as the fix says make an implementation of that order compute torch's numbers."""
    problem = example("LSTM")
    assert Order("iofg").fix.startswith("permute rows [0:H], [3H:4H], [H:2H], [2H:3H] of weight_ih")
    usual = plain("LSTM").run(problem)
    blocks = [0, 3, 1, 2]
    permuted = {name: torch.cat([w.chunk(4)[block] for block in blocks]) for name, w in problem.weights.items()}
    other = Example("LSTM", permuted, problem.input, problem.hx)
    assert distance(Variant(Order("iofg")).run(other), usual).item() < 1e-14


def test_a_mutant_that_diagnosis_looks_for_changes_numbers_and_says_what_to_do():
    known = [mutant for mutant in CATALOGUE if mutant.fix and mutant.order is None]
    assert len(known) >= 130
    assert all(mutant.knobs and mutant.name and mutant.mixin is None for mutant in known)
