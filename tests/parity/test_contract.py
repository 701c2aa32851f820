"""The contract on rnnkit, and its questions."""

import pytest
import torch

import rnnkit
from parity.contract.answers import contract, questions, reply
from parity.grid.cases import CLASSES
from parity.grid.subject import load
from parity.grid.verdict import Verdict

FAST = load("rnnkit", {"path": "always fast"})


@pytest.mark.parametrize("subject", [rnnkit, FAST], ids=["rnnkit", "always fast"])
@pytest.mark.parametrize("name", CLASSES)
def test_rnnkit_keeps_the_contract(name, subject):
    said = contract(subject, classes=(name,))
    assert [answer for answer in said if answer.verdict is Verdict.DIFFERENT] == []


def test_torch_nn_refuses_hundreds_of_the_questions():
    replies = [reply(torch.nn, name, question).text for name, question in questions()]
    assert sum("raises" in text for text in replies) >= 600
    assert len(set(questions())) == len(list(questions()))


def test_excuses_are_few():
    assert sum("# excused" in question for _, question in questions()) <= 25
