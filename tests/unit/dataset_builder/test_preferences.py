"""People's choices between two answers go into a version, where a judge of texts is measured by them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.preferences import MAX_PREFERENCES, Preferences

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
SPEC = TaskSpec.model_validate({"name": "replies", "kind": "generation", "system_prompt": "Reply."})


def choice(
    preference: str, number: int = 0, reviewer: str = "ana", minutes: int = 0, **changes: Any
) -> CorrectionSubmitted:
    return CorrectionSubmitted.model_validate({
        "occurred_at": NOON + timedelta(minutes=number + minutes), "task": "replies", "task_revision": SPEC.revision,
        "correction_id": f"c{number}-{reviewer}-{minutes}", "request_id": f"r{number}", "prediction_id": f"p{number}",
        "purpose": Purpose.DISCORDANT_PAIR, "ticket_id": f"t{number}", "reviewer": reviewer, "user_hash": f"u{number}",
        "call": Call(messages=(Message(role=Role.USER, content=f"question {number}"),)), "predicted_at": NOON,
        "answers": (Answer(text="one"), Answer(text="two")), "preference": preference, **changes,
    })  # fmt: skip


def chosen(*given: CorrectionSubmitted) -> list[tuple[str, str]]:
    found = Preferences()
    found.add(given)
    return [(row.prediction_ids[0], row.preferred) for row in found.newest(SPEC)]


def test_a_choice_is_kept_with_what_was_shown_and_whose_prediction_it_is() -> None:
    found = Preferences()
    found.add([choice("b")])
    (row,) = found.newest(SPEC)
    assert [answer.text for answer in row.answers] == ["one", "two"]
    assert (row.prompt[-1].text, row.preferred, row.user_hash, row.predicted_at) == ("question 0", "b", "u0", NOON)
    assert (row.prediction_ids, row.correction_ids) == (("p0",), ("c0-ana-0",))


def test_a_persons_newest_choice_counts_and_who_cannot_tell_has_none() -> None:
    assert chosen(choice("b", minutes=1), choice("a")) == [("p0", "b")]
    assert chosen(choice("a"), choice("cannot_tell", minutes=1)) == []


def test_of_two_choices_at_one_moment_the_same_counts_in_whatever_order_they_are_read() -> None:
    both = choice("a", correction_id="c1"), choice("b", correction_id="c2")
    assert chosen(*both) == chosen(*reversed(both)) == [("p0", "b")]


def test_of_several_people_most_decide_and_no_one_where_they_are_even() -> None:
    three = (choice("a"), choice("b", reviewer="ben"), choice("b", reviewer="chloe"))
    assert chosen(*three) == [("p0", "b")]
    assert chosen(*three[:2]) == [("p0", "both_wrong")]


@pytest.mark.parametrize(
    "changes",
    [
        {"task_revision": "another"},
        {"answers": (Answer(text="one"),)},
        {"answers": (Answer(text="one", truncated=True), Answer(text="two"))},
        {"preference": None, "label": "three"},
    ],
    ids=["another prompt", "one answer", "cut", "a label"],
)
def test_what_is_no_whole_pair_of_todays_prompt_is_left_out(changes: dict[str, Any]) -> None:
    assert chosen(choice(**{"preference": "a", **changes})) == []


def test_the_newest_pairs_come_last_and_older_ones_are_left_out() -> None:
    given = [choice("a", number) for number in range(MAX_PREFERENCES + 5)]
    found = chosen(*reversed(given))
    assert (len(found), found[0][0], found[-1][0]) == (MAX_PREFERENCES, "p5", f"p{MAX_PREFERENCES + 4}")
