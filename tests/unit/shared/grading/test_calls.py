"""Calls are right where the right functions are called with the right arguments."""

from __future__ import annotations

import pytest

from shared.answers import answer_form
from shared.grading.fields import FieldGrade
from tests.unit.shared.grading.home import STOPS, book, calls, home, light

HOME = home()
ANY = home(calls_per_answer="any_order")
ORDERED = home(calls_per_answer="in_order")
AUTO = home(tool_choice="auto")


def test_arguments_are_compared_as_the_task_says() -> None:
    right = calls(book("Ann Lee", "2026-12-01", price=10.0))
    assert answer_form(HOME).grade(right, calls(book("ann  LEE", "2026-12-01T19:00:00", price=10.005))).right
    for other in (book("Ann Li", price=10.0), book("Ann Lee", "2026-12-02", price=10.0), book("Ann Lee", price=11.0)):
        assert not answer_form(HOME).grade(right, calls(other)).right


def test_keys_may_be_in_any_order_and_null_is_as_good_as_absent() -> None:
    turned = '[{"arguments":"{\\"on\\": true, \\"brightness\\": null, \\"room\\": \\"kitchen\\"}","name":"set_light"}]'
    assert answer_form(HOME).grade(calls(light()), turned).right


def test_each_function_and_argument_is_counted_and_the_score_is_their_f1() -> None:
    found = answer_form(HOME).grade(calls(light(brightness=20)), calls(light(on=False)))
    assert found.fields == (
        FieldGrade("set_light", 1, 1, 1), FieldGrade("set_light.brightness", 0, 0, 1),
        FieldGrade("set_light.on", 0, 1, 1), FieldGrade("set_light.room", 1, 1, 1),
    )  # fmt: skip
    assert (found.score, found.right, found.valid) == (pytest.approx(4 / 7), False, True)


OPEN = home(tools=[
    {"name": "find", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
    {"name": "note", "parameters": {"type": "object"}},
], comparators={})  # fmt: skip


def test_an_argument_that_the_schema_does_not_name_is_one_of_its_function_and_no_function() -> None:
    found = answer_form(OPEN).grade(calls(("find", {"q": "x"})), calls(("find", {"q": "x", "Ann Lee": 1})))
    assert found.fields == (
        FieldGrade("find", 1, 1, 1), FieldGrade("find.(not in the schema)", 0, 1, 0), FieldGrade("find.q", 1, 1, 1),
    )  # fmt: skip
    assert (found.score, found.right) == (pytest.approx(4 / 5), False)


def test_arguments_of_a_function_that_declares_none_are_compared_as_one() -> None:
    found = answer_form(OPEN).grade(calls(("note", {"Ann": 1})), calls(("note", {"Ann": 2})))
    assert found.fields == (FieldGrade("note", 1, 1, 1), FieldGrade("note.(not in the schema)", 0, 1, 1))


def test_the_wrong_function_is_wrong_though_its_arguments_have_the_same_names() -> None:
    found = answer_form(HOME).grade(calls(light()), calls(STOPS))
    assert found.score == 0.0
    assert [(f.path, f.given, f.expected) for f in found.fields if "." not in f.path] == [
        ("set_light", 0, 1), ("stop", 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        None, "", "Done!", calls(("dance", {})), calls(("set_light", {"room": "attic", "on": True})),
        calls(("set_light", {"room": "kitchen"})), calls(light(), STOPS), calls(("stop", {"now": True})),
        '[{"name":"stop","arguments":"{"}]',
    ],
    ids=["failed", "empty", "a text", "unknown", "breaks the schema", "missing", "two calls", "surplus", "no JSON"],
)  # fmt: skip
def test_what_could_not_be_run_is_invalid_and_worth_nothing(given: str | None) -> None:
    found = answer_form(HOME).grade(calls(light()), given)
    assert (found.score, found.right, found.valid) == (0.0, False, False)
    assert FieldGrade("set_light", 0, 0, 1) in found.fields


def test_parallel_calls_are_a_set_or_in_order_as_the_task_says() -> None:
    both, turned = calls(light("kitchen"), light("hall", False)), calls(light("hall", False), light("kitchen"))
    assert answer_form(ANY).grade(both, turned).right
    assert answer_form(ORDERED).grade(both, both).right
    assert not answer_form(ORDERED).grade(both, turned).right
    assert not answer_form(ANY).grade(both, calls(light("kitchen"))).right
    assert not answer_form(ANY).grade(both, calls(light("kitchen"), light("kitchen"))).right


def test_calls_of_one_function_are_paired_by_what_they_have_in_common() -> None:
    wanted = calls(light("kitchen", True, brightness=10), light("hall", False, brightness=90))
    found = answer_form(ANY).grade(
        wanted, calls(light("hall", False, brightness=91), light("kitchen", True, brightness=10))
    )
    assert sum(field.matched for field in found.fields) == 7


def test_calls_are_paired_so_that_all_of_them_have_most_in_common() -> None:
    """The first is right beside either, the second beside the first alone."""
    spec = home(calls_per_answer="any_order", comparators={"book_table.day": {"compare": "date", "tolerance": 1}})
    wanted = calls(book("Ann", "2026-12-01"), book("Ann", "2026-12-03"))
    assert answer_form(spec).grade(wanted, calls(book("Ann", "2026-12-02"), book("Ann", "2026-12-01"))).right


def test_where_no_call_is_right_any_text_is_and_a_call_is_not() -> None:
    assert answer_form(AUTO).grade("I cannot do that.", "Sorry, no.").right
    called = answer_form(AUTO).grade("I cannot do that.", calls(STOPS))
    assert called.fields == (FieldGrade("(no call)", 0, 0, 1), FieldGrade("stop", 0, 1, 0))
    assert (called.right, called.valid) == (False, True)
    missed = answer_form(AUTO).grade(calls(STOPS), "Sorry, no.")
    assert (missed.right, missed.valid, missed.score) == (False, True, 0.0)


def test_calls_are_trained_on_in_one_spelling() -> None:
    turned = '[{"name": "set_light", "arguments": "{\\"on\\":true,\\n\\"room\\":\\"kitchen\\"}"}]'
    assert answer_form(HOME).canonical(f"Sure!\n{turned}") == calls(light())
    with pytest.raises(ValueError, match=r"set_light: brightness: 0 is less than the minimum of 1"):
        answer_form(HOME).canonical(calls(light(brightness=0)))
    with pytest.raises(ValueError, match="no call; every answer calls a function: set_light, book_table, stop"):
        answer_form(HOME).canonical("Sure!")


def test_two_arms_say_the_same_where_only_the_layout_of_arguments_differs() -> None:
    turned = '[{"name":"set_light","arguments":"{\\"on\\":true,\\"room\\":\\"kitchen\\"}"}]'
    assert answer_form(HOME).same(calls(light()), turned)
    assert not answer_form(HOME).same(calls(light()), calls(light("hall")))
    assert not answer_form(HOME).same(calls(light(), STOPS), calls(STOPS, light()))


def test_no_words_at_all_are_no_answer_where_a_text_is_right() -> None:
    """A model that ends every answer at once would be right on all rows without a call."""
    for empty in ("", " \n"):
        found = answer_form(AUTO).grade("I cannot do that.", empty)
        assert (found.score, found.right, found.valid) == (0.0, False, False)
