"""The harness proves itself: it accuses nobody wrongly and lets nothing through."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import thinned

from parity.contract import answers
from parity.contract.answers import contract
from parity.grid import cases, compare, engine, run, verdict
from parity.grid.cases import AXES, grid, quick
from parity.grid.compare import judge
from parity.grid.verdict import Verdict
from parity.mutants import selftest
from parity.mutants.catalogue import LEVELS
from parity.mutants.module import Planted, implementation
from parity.mutants.selftest import PLANTED
from parity.mutants.spoiled import CONTROLS, SPOILED, Spoiled, spoilt

QUICK = quick(grid())


@pytest.fixture
def torch_nn_answers_once(monkeypatch):
    """What torch.nn shows in a case, and says to a question, is the same for every subject beside it."""
    observe, reply, shown, said = compare.observe, answers.reply, SHOWN, SAID

    def observed(namespace, case, drawn, precision):
        if namespace is not torch.nn:
            return observe(namespace, case, drawn, precision)
        numbers = [drawn.input, *drawn.hx, *drawn.weights.values()]
        key = case, precision, drawn.seed, *(tensor.numpy().tobytes() for tensor in numbers)
        if key not in shown:
            shown[key] = observe(namespace, case, drawn, precision)
        seen = shown[key]
        return replace(seen, tensors=dict(seen.tensors), facts=dict(seen.facts))

    def replied(namespace, class_name, question):
        if namespace is not torch.nn:
            return reply(namespace, class_name, question)
        if (class_name, question) not in said:
            said[class_name, question] = reply(namespace, class_name, question)
        return said[class_name, question]

    monkeypatch.setattr(compare, "observe", observed)
    monkeypatch.setattr(answers, "reply", replied)


SHOWN, SAID = {}, {}


@pytest.mark.slow
@pytest.mark.usefixtures("torch_nn_answers_once")
@pytest.mark.parametrize("name", CONTROLS)
def test_a_correct_implementation_is_within_rounding(name):
    subject = implementation(CONTROLS[name])
    judged = (judge(case, subject) for case in QUICK)
    assert [result.case.name for result in judged if not result.verdict.passes] == []


@pytest.mark.usefixtures("torch_nn_answers_once")
def test_a_correct_implementation_keeps_the_contract():
    said = contract(implementation(Planted))
    assert [answer for answer in said if answer.verdict is Verdict.DIFFERENT] == []


@pytest.mark.usefixtures("torch_nn_answers_once")
@pytest.mark.parametrize("mutant", thinned(2, PLANTED), ids=lambda mutant: mutant.name)
def test_a_planted_mistake_is_found_in_each_class(mutant):
    trials = [selftest.try_mutant(mutant, name) for name in mutant.classes]
    assert [trial.class_name for trial in trials if not trial.good] == []


@pytest.mark.parametrize("spoiled", thinned(5, SPOILED), ids=lambda spoiled: spoiled.name)
def test_a_spoiled_harness_is_told_from_the_true_one(spoiled, request):
    """It overlooks what the true one finds (see above), or accuses a control."""
    if spoiled.where.split(".")[1] not in ("run", "answers"):  # which ask torch.nn, otherwise than the true ones
        request.getfixturevalue("torch_nn_answers_once")
    trial = selftest.try_spoiled(spoiled)
    assert trial.good, trial


def test_the_selftest_does_not_shrink():
    """Whoever adds a mutant raises the numbers."""
    assert len(PLANTED) >= 309
    assert sum(len(mutant.classes) for mutant in PLANTED) >= 1041
    assert len(SPOILED) >= 75
    assert tuple(dict.fromkeys(mutant.level for mutant in PLANTED)) == LEVELS
    assert len({spoiled.name for spoiled in SPOILED}) == len(SPOILED)


def test_no_mistake_is_written_twice():
    """Some have one name for diagnosis and differ in how far they go, but no two are the same change."""
    written = [(mutant.name, tuple(mutant.knobs.items())) for mutant in PLANTED]
    assert [row for row, count in Counter(written).items() if count > 1] == []


def test_each_axis_is_left_out_of_a_spoiled_grid():
    conditions = [spoiled.new for spoiled in SPOILED if spoiled.where == "grid.cases.grid"]
    assert [axis for axis in AXES if not any(f"case.{axis}" in condition for condition in conditions)] == []


def test_a_spoiled_harness_is_mended_again():
    before = [dict(vars(module)) for module in (compare, answers, engine, cases, run, verdict)]
    for spoiled in SPOILED:
        with spoilt(spoiled):
            pass
    assert [dict(vars(module)) for module in (compare, answers, engine, cases, run, verdict)] == before


def test_a_line_that_is_not_there_cannot_be_spoiled():
    gone = Spoiled("", "grid.cases.grid", "no such line", "", "")
    with pytest.raises(ValueError, match="stands 0 times"), spoilt(gone):
        pass


@pytest.mark.parametrize("wrong", [None, "states", "control", "spoiled"])
def test_the_selftest_fails_if_a_fault_survives_a_control_is_accused_or_a_spoiled_harness_is_not_told(wrong, capsys):
    groups = {"states": "h0 ignored", "control": "a plain loop", "spoiled": "exit code always 0"}
    trials = [selftest.Trial(name, group, "GRU", group != wrong, 10, "h_n") for group, name in groups.items()]
    assert selftest.show(trials) == (wrong is not None)
    out = capsys.readouterr().out
    assert ("WRONG" in out) is (wrong is not None)
    assert wrong is None or f"WRONG  {wrong}: {groups[wrong]}" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_selftest_of_nothing_fails():
    assert selftest.show([]) == 1
