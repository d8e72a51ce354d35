"""The check of what a restart keeps names everything that differs."""

from __future__ import annotations

from tests.e2e.restart import differences

BEFORE = {"topics": {"a": "id-1", "b": "id-2"}, "end offsets": {"a-0": 7}}


def test_the_same_twice_is_no_difference() -> None:
    assert differences(BEFORE, {**BEFORE}) == []


def test_a_lost_a_changed_and_a_new_value_are_named() -> None:
    after = {"topics": {"a": "id-9", "c": "id-3"}, "end offsets": {"a-0": 7}}
    assert differences(BEFORE, after) == [
        "topics: a was id-1, is id-9",
        "topics: b was id-2, is None",
        "topics: c was None, is id-3",
    ]


def test_what_was_empty_before_shows_nothing() -> None:
    assert differences({"topics": {}}, {"topics": {}}) == ["topics: nothing was there before"]
