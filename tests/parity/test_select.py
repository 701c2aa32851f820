"""Choosing cases by an expression, as for -k."""

import pytest

from parity.grid.cases import grid, parse, select

GRID = grid()


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [
        ("lstm", "lstm-float64", True),
        ("LSTM", "lstm-float64", True),
        ("gru", "lstm-float64", False),
        ("not gru", "lstm-float64", True),
        ("lstm and not proj", "lstm-proj-float64", False),
        ("gru or lstm and proj", "gru-float64", True),
        ("(gru or lstm) and proj", "gru-float64", False),
        ("not (gru or lstm)", "rnn-tanh", True),
        ("not not gru", "gru", True),
        ("packed", "lstm-packed_unsorted", True),
        ("unsorted", "lstm-packed_unsorted", True),
        ("bias", "lstm-nobias", False),
        ("batched", "lstm-unbatched", False),
        ("float", "lstm-bfloat16", False),
    ],
)
def test_an_expression_selects_by_the_beginnings_of_parts(expression, text, matches):
    assert parse(expression)(text) is matches


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "and",
        "lstm and",
        "or lstm",
        "not",
        "(lstm",
        "lstm)",
        "lstm gru",
        "()",
        "lstm (gru)",
        "(lstm) (gru)",
        "lstm and ()",
    ],
)
def test_an_expression_that_cannot_be_read_is_refused(expression):
    with pytest.raises(ValueError, match="-k: "):
        parse(expression)


def test_a_full_name_selects_that_case_alone():
    name = "LSTM-float64-layers1-bias-unbatched"
    assert sum(name.lower() in case.name.lower() for case in GRID) > 1
    assert [case.name for case in select(GRID, name)] == [name]
