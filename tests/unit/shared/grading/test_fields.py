from __future__ import annotations

import json
import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tasks import Comparator
from shared.answers import answer_form
from shared.grading.fields import UNDECLARED, FieldGrade, same_value
from shared.grading.grade import Grade
from shared.grading.pairs import best_pairs
from tests.unit.shared.grading.orders import orders

RIGHT: dict[str, Any] = {
    "customer": {"name": "Ann Lee", "vip": True},
    "ordered_on": "2026-03-01",
    "total": 20.0,
    "status": "paid",
    "items": [{"sku": "A1", "count": 2}, {"sku": "B7", "count": 1}],
    "tags": ["gift", "late"],
}
VALUES = 11


def graded(changes: dict[str, Any], **spec: Any) -> Grade:
    return answer_form(orders(**spec)).grade(json.dumps(RIGHT), json.dumps({**RIGHT, **changes}))


def field(found: Grade, path: str) -> FieldGrade:
    return next(each for each in found.fields if each.path == path)


def test_keys_and_items_in_another_order_and_whole_numbers_make_no_difference() -> None:
    turned = {name: RIGHT[name] for name in reversed(RIGHT)} | {"items": RIGHT["items"][::-1], "total": 20}
    found = answer_form(orders()).grade(json.dumps(RIGHT), json.dumps(turned, indent=2))
    assert (found.score, found.right, found.valid) == (1.0, True, True)
    assert [each.path for each in found.fields] == [
        "customer.name", "customer.vip", "items[].count", "items[].sku", "ordered_on", "status", "tags[]", "total",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path", "counts"),
    [
        ({"total": -20.0}, "total", (0, 1, 1)),
        ({"total": None}, "total", (0, 0, 1)),
        ({"status": "open"}, "status", (0, 1, 1)),
        ({"customer": {"name": "ann lee", "vip": True}}, "customer.name", (0, 1, 1)),
        ({"tags": ["gift"]}, "tags[]", (1, 1, 2)),
        ({"tags": ["gift", "gift", "late"]}, "tags[]", (2, 3, 2)),
        ({"items": [{"sku": "A1", "count": 1}, {"sku": "B7", "count": 2}]}, "items[].count", (0, 2, 2)),
        ({"items": []}, "items[].sku", (0, 0, 2)),
    ],
)
def test_a_wrong_missing_or_surplus_value_counts_in_its_own_field_only(
    changes: dict[str, Any], path: str, counts: tuple[int, int, int]
) -> None:
    found = graded(changes)
    assert not found.right
    assert found.valid
    assert 0.0 < found.score < 1.0
    changed = field(found, path)
    assert (changed.matched, changed.given, changed.expected) == counts
    others = [each for each in found.fields if each.path.partition(".")[0].partition("[")[0] not in changes]
    assert all(each.matched == each.given == each.expected for each in others)


def test_the_score_is_the_f1_over_all_values() -> None:
    assert sum(each.expected for each in graded({}).fields) == VALUES
    assert graded({"tags": ["gift"]}).score == pytest.approx(2 * 10 / (10 + 11))


def test_an_item_is_paired_with_the_one_that_it_has_most_in_common_with() -> None:
    found = graded({"items": [{"sku": "B7", "count": 2}, {"sku": "A1", "count": 2}]})
    assert field(found, "items[].sku").matched == 2
    assert field(found, "items[].count").matched == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "zx qv",
        json.dumps(RIGHT)[:-1],
        f"```json\n{json.dumps(RIGHT)}\n```",
        json.dumps({**RIGHT, "note": "new"}),
        json.dumps({**RIGHT, "status": "Paid"}),
        json.dumps({name: RIGHT[name] for name in RIGHT if name != "items"}),
        json.dumps({**RIGHT, "items": [{"sku": "A1", "count": 0}]}),
        json.dumps({**RIGHT, "ordered_on": "1 March"}),
        json.dumps(RIGHT)[:-1] + ', "total": 20.0}',
    ],
)
def test_an_answer_that_no_program_could_read_is_worth_nothing(answer: str | None) -> None:
    found = answer_form(orders()).grade(json.dumps(RIGHT), answer)
    assert (found.score, found.right, found.valid) == (0.0, False, False)
    assert sum(each.expected for each in found.fields) == VALUES
    assert not any(each.matched or each.given for each in found.fields)


@pytest.mark.parametrize(
    ("one", "other", "tolerance", "same"),
    [
        (0.1 + 0.2, 0.3, 0.0, True),
        (20.01, 20.0, 0.01, True),
        (12_345_678.90, 12_345_678.91, 0.0, False),
        (1_234_567_890.12, 1_234_567_890.13, 0.0, False),
        (12_345_678_901, 12_345_678_905, 0.0, False),
        (12_345_678_901, 12_345_678_905, 4.0, True),
        pytest.param(10**400, 5, 1.0, False, id="400 digits"),
        pytest.param(10**400, 5.5, 1.0, False, id="400 digits and a float"),
        pytest.param(10**400, 10**400 + 1, 1.0, True, id="400 digits twice"),
    ],
)
def test_numbers_may_be_off_by_the_tolerance_and_by_what_a_float_is_rounded_and_by_no_more(
    one: float, other: float, tolerance: float, same: bool
) -> None:
    """A cent of twelve million is no rounding, and a number too large for a float ends no evaluation."""
    number = Comparator.model_validate({"compare": "number", "tolerance": tolerance})
    assert same_value(one, other, number) is same
    assert same_value(other, one, number) is same


def test_fields_that_the_schema_does_not_name_are_counted_under_no_name_of_theirs() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "free": {"type": "object"}}}
    spec = orders(output_schema=schema)
    found = answer_form(spec).grade(
        '{"a": "x", "free": {"Ann Lee": 1}}', '{"a": "x", "free": {"Ann Lee": 2}, "Bob": 3}'
    )
    assert {each.path for each in found.fields} == {"a", "free", UNDECLARED}
    assert not found.right


@pytest.mark.parametrize(
    ("comparator", "answer", "expected", "same"),
    [
        ({"compare": "number", "tolerance": 0.01}, 20.01, 20, True),
        ({"compare": "number", "tolerance": 0.01}, 20.02, 20, False),
        ({"compare": "number"}, 0.1 + 0.2, 0.3, True),
        ({"compare": "number"}, -20, 20, False),
        ({"compare": "number", "tolerance": 1}, True, 1, False),
        ({"compare": "date"}, "2026-03-01T10:00:00Z", "2026-03-01", True),
        ({"compare": "date"}, "20260301", "2026-03-01", True),
        ({"compare": "date"}, "2026-03-02", "2026-03-01", False),
        ({"compare": "date", "tolerance": 1}, "2026-03-02", "2026-03-01", True),
        ({"compare": "date"}, "1 March", "March 1st", False),
        ({"compare": "casefold"}, " ann  LEE", "Ann Lee", True),
        ({"compare": "casefold"}, "Ann-Lee", "Ann Lee", False),
        ({"compare": "normalised"}, "Ann, Lee.", "ann lee", True),
        ({"compare": "normalised"}, "-5 C", "5 C", False),
        ({"compare": "normalised"}, "!", "?", False),
        ({"compare": "exact"}, "Ann Lee", "ann lee", False),
        ({"compare": "exact"}, "Zoe\u0308", "Zo\u00eb", True),
        ({"compare": "casefold"}, "ZOE\u0308", "zo\u00eb", True),
        ({"compare": "normalised"}, "Zoe\u0308!", "zo\u00eb", True),
        ({"compare": "normalised"}, "Zoe", "Zo\u00eb", False),
    ],
)
def test_a_field_is_compared_as_the_task_says(
    comparator: dict[str, Any], answer: Any, expected: Any, same: bool
) -> None:
    how = Comparator.model_validate(comparator)
    assert same_value(answer, expected, how) is same
    assert same_value(expected, answer, how) is same


def test_comparators_reach_fields_inside_objects_and_lists() -> None:
    spec = {"comparators": {"customer.name": {"compare": "casefold"}, "tags[]": {"compare": "normalised"}}}
    changes = {"customer": {"name": "ANN LEE", "vip": True}, "tags": ["Late!", "Gift"]}
    assert graded(changes, **spec).right
    assert not graded(changes).right


def test_items_that_all_have_a_counterpart_within_the_tolerance_are_all_right() -> None:
    """1.05 is as near to 1.1 as to 1.0, which is the only one that is left for the second 1.0."""
    schema = {"type": "object", "properties": {"prices": {"type": "array", "items": {"type": "number"}}}}
    spec = orders(output_schema=schema, comparators={"prices[]": {"compare": "number", "tolerance": 0.06}})
    assert answer_form(spec).grade('{"prices": [1.0, 1.1]}', '{"prices": [1.05, 1.0]}').right
    assert answer_form(spec).grade('{"prices": [1.1, 1.0]}', '{"prices": [1.0, 1.05]}').right


@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=4))
def test_no_other_pairs_have_more_in_common(rows: list[list[int]]) -> None:
    common = {(i, j): value for i, row in enumerate(rows) for j, value in enumerate(row) if value}
    pairs = best_pairs(common)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert set(pairs) <= common.keys()
    most = max(sum(rows[i][j] for i, j in enumerate(order)) for order in permutations(range(4), len(rows)))
    assert sum(common[pair] for pair in pairs) == most


def test_long_lists_of_values_within_the_tolerance_are_paired_as_well() -> None:
    rng = random.Random(1)
    values = [round(rng.random() * 100, 2) for _ in range(400)]
    schema = {"type": "object", "properties": {"prices": {"type": "array", "items": {"type": "number"}}}}
    spec = orders(output_schema=schema, comparators={"prices[]": {"compare": "number", "tolerance": 1}})
    given = json.dumps({"prices": rng.sample([value + 0.5 for value in values], 400)})
    assert answer_form(spec).grade(json.dumps({"prices": values}), given).right


ITEM = st.fixed_dictionaries({"sku": st.sampled_from("ABC"), "count": st.integers(1, 3)})
ORDER = st.fixed_dictionaries(
    {"customer": st.fixed_dictionaries({"name": st.sampled_from(["x", "y"])}), "items": st.lists(ITEM, max_size=4)},
    optional={"total": st.none() | st.integers(0, 2), "tags": st.lists(st.sampled_from("ab"), max_size=3)},
)


@given(ORDER, ORDER, st.randoms())
def test_a_grade_is_a_fair_comparison(answer: dict[str, Any], expected: dict[str, Any], rng: random.Random) -> None:
    found = answer_form(orders()).grade(json.dumps(expected), json.dumps(answer))
    assert 0.0 <= found.score <= 1.0
    assert all(each.matched <= min(each.given, each.expected) for each in found.fields)
    back = answer_form(orders()).grade(json.dumps(answer), json.dumps(expected))
    assert back.right == found.right
    shuffled = {**answer, "items": rng.sample(answer["items"], len(answer["items"]))}
    assert answer_form(orders()).grade(json.dumps(answer), json.dumps(shuffled)).right
