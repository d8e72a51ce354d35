from __future__ import annotations

import json

import pytest

from shared.answers import answer_form
from shared.grading.json_schema import canonical, read_answer
from shared.grading.json_values import MAX_DEPTH, NOT_JSON, json_or_nothing, read_json, same_json
from tests.unit.shared.grading.orders import orders


def nested(depth: int, inner: str = "1") -> str:
    return '{"a":[' * (depth // 2) + inner + "]}" * (depth // 2)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 900, 100_000])
def test_what_is_nested_too_deeply_to_be_compared_is_not_read(depth: int) -> None:
    with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
        read_json(nested(depth))
    assert json_or_nothing(nested(depth)) is NOT_JSON


def test_what_is_nested_as_deeply_as_allowed_is_read_compared_and_written() -> None:
    one, other = read_json(nested(MAX_DEPTH)), read_json(nested(MAX_DEPTH, "2"))
    assert same_json(one, one) and not same_json(one, other)
    assert json.loads(canonical(one, {"type": "object"})) == one


def test_brackets_in_texts_and_beside_each_other_are_no_depth() -> None:
    assert read_json(json.dumps(["[{" * 900])) == ["[{" * 900]
    assert read_json(json.dumps([[]] * 900)) == [[]] * 900


def test_an_answer_that_is_nested_too_deeply_is_invalid_and_says_why() -> None:
    free = {"type": "object", "properties": {"free": {"type": "object"}}}
    spec, deep = orders(output_schema=free), f'{{"free": {nested(900)}}}'
    found = answer_form(spec).grade('{"free": {"a": [1]}}', deep)
    assert (found.score, found.right, found.valid) == (0.0, False, False)
    with pytest.raises(ValueError, match=f"no JSON: nested more than {MAX_DEPTH} deep"):
        read_answer(deep, free)
    assert not answer_form(spec).grade(deep, deep).right, "nor is such a right answer one"


@pytest.mark.parametrize("text", ['"\\ud83d"', '{"\\ude00": 1}', '[["\\ude00\\ud83d"]]'])
def test_half_of_a_surrogate_pair_is_no_character(text: str) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        read_json(text)
    assert read_json('"\\ud83d\\ude00 \\\\ud83d"') == "😀 \\ud83d"


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_is_larger_than_any_float_is_not_read_and_is_near_to_no_other(number: str) -> None:
    """It would be read as infinity, which is within any tolerance of every number."""
    with pytest.raises(ValueError, match=f"{number} is too large"):
        read_json(number)
    spec = orders(comparators={"total": {"compare": "number", "tolerance": 0.01}})
    right = '{"customer": {"name": "Ann"}, "items": [], "total": 20}'
    found = answer_form(spec).grade(right, right.replace("20", number))
    assert (found.score, found.valid) == (0.0, False)
