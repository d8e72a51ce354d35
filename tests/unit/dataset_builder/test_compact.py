"""What a build holds of corrections is small, and says the same."""

from __future__ import annotations

from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted
from services.dataset_builder.building.compact import Compactor, replaced
from services.dataset_builder.building.votes import Vote, votes_of
from tests.unit.dataset_builder.voting import correction


def stored(number: int) -> str:
    messages = (Message(role=Role.SYSTEM, content="Intent?"), Message(role=Role.USER, content=f"question {number}"))
    return correction(number, "a", call=Call(messages=messages), user_hash="u1").model_dump_json()


def read(compact: Compactor, number: int) -> Vote:
    return votes_of([CorrectionSubmitted.model_validate_json(stored(number))], compact=compact)[0]


def test_votes_say_what_corrections_say_and_share_what_they_have_in_common() -> None:
    compact = Compactor()
    first, second = read(compact, 1), read(compact, 2)
    for vote, number in ((first, 1), (second, 2)):
        given = CorrectionSubmitted.model_validate_json(stored(number))
        assert (vote.call, vote.answers, vote.label, vote.voter) == (given.call, given.answers, "a", given.reviewer)
        assert vote.call.model_dump_json() == given.call.model_dump_json()
    assert first.call.messages[0] is second.call.messages[0]
    assert first.answers[0] is second.answers[0]
    assert first.user_hash is second.user_hash
    assert first.call.messages[1].content != second.call.messages[1].content
    for left, right in ((first.call, second.call), (first.call.messages[1], second.call.messages[1])):
        assert left.model_fields_set is right.model_fields_set


def test_answers_that_differ_in_anything_are_not_shared() -> None:
    compact = Compactor()
    answers = (Answer(text="a"), Answer(text="a", truncated=True), Answer(text="b"))
    assert compact.items(answers) == answers


def test_an_object_that_was_given_other_fields_does_not_share_with_the_rest() -> None:
    compact = Compactor()
    few = compact(Message(role=Role.USER, content="a question"))
    named = compact(Message(role=Role.USER, content="a question", name="ana"))
    assert few.model_fields_set == {"role", "content"}
    assert named.model_fields_set == {"role", "content", "name"}


def test_a_changed_copy_shares_the_set_of_what_it_was_given() -> None:
    before = Message(role=Role.USER, content="a question")
    after = replaced(before, content="another")
    assert (before.content, after.content) == ("a question", "another")
    assert after.model_fields_set is before.model_fields_set
