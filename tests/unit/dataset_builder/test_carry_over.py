"""A new label, a renamed one or a comma in the prompt orphans no correction; what no longer holds is listed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from schemas.conversation import Answer, Api, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.carry_over import CurrentCalls, Revision
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Build, Inputs, build_dataset

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
OLD = TaskSpec(
    name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Answer with the intent.", labels=("refund", "delivery")
)
FORMER = {OLD.revision: Revision(OLD.kind, OLD.system_prompt)}


def spec(**changes: object) -> TaskSpec:
    return TaskSpec.model_validate({**OLD.model_dump(), **changes})


def system(text: str) -> Message:
    return Message(role=Role.SYSTEM, content=text)


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def correction(
    label: str, number: int = 0, revision: str = OLD.revision, call: Call | None = None
) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        occurred_at=NOON, task="desk", task_revision=revision, correction_id=f"c{number}", request_id=f"r{number}",
        prediction_id=f"p{number}", purpose=Purpose.LOW_CONFIDENCE, reviewer="ana",
        call=call or Call(messages=(system(OLD.system_prompt), user(f"{'abcdefgh'[number] * 9} {number}"))),
        answers=(Answer(text="refund"),), label=label,
    )  # fmt: skip


def build(current: TaskSpec, *corrections: CorrectionSubmitted, former: dict[str, Revision] | None = None) -> Build:
    return build_dataset(Inputs(votes_of(corrections), current, revisions=FORMER if former is None else former))


def answers(built: Build) -> list[str]:
    return sorted(example.answer for example in (*built.dataset.train, *built.dataset.eval))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("refund", "delivery", "cancel")},
        {"system_prompt": "Answer with the intent, please."},
        {"base_model": "another/model"},
    ],
    ids=["one more label", "a comma in the prompt", "another base model"],
)
def test_corrections_of_the_earlier_revision_go_on(changes: dict[str, object]) -> None:
    current = spec(**changes)
    assert current.revision != OLD.revision
    built = build(current, correction("refund"), correction("delivery", 1))
    assert answers(built) == ["delivery", "refund"]
    assert not built.dataset.left_out


def test_rows_are_trained_with_the_prompt_of_today() -> None:
    current = spec(system_prompt="Answer with the intent, please.")
    built = build(current, *(correction("refund", number) for number in range(4)))
    prompts = {example.messages[0].text for example in (*built.dataset.train, *built.dataset.eval)}
    assert prompts == {"Answer with the intent, please."}


def test_a_label_that_was_removed_is_listed_and_a_renamed_one_goes_on() -> None:
    current = spec(labels=("refund", "shipping"), renamed_labels={"delivery": "shipping"})
    built = build(current, correction("delivery"), correction("refund", 1))
    assert answers(built) == ["refund", "shipping"]
    built = build(spec(labels=("refund", "shipping")), correction("delivery"), correction("refund", 1))
    assert answers(built) == ["refund"]
    (left,) = built.dataset.left_out
    assert (left.fate, left.reason, left.correction_ids) == (Fate.SUPERSEDED, "label_removed", ("c0",))
    assert "'delivery'" in left.detail


def test_votes_of_two_revisions_on_one_prediction_are_one_row() -> None:
    current = spec(labels=("refund", "shipping"), renamed_labels={"delivery": "shipping"})
    newer = correction("shipping", revision=current.revision).model_copy(
        update={"correction_id": "c9", "reviewer": "ben"}
    )
    built = build(current, correction("delivery"), newer)
    assert answers(built) == ["shipping"]
    assert not built.questions


@pytest.mark.parametrize("known", [True, False])
def test_corrections_of_another_kind_are_listed(known: bool) -> None:
    current = spec(kind=TaskKind.GENERATION, labels=())
    constrained = Call(messages=(system(OLD.system_prompt), user("late")), constrained=True)
    built = build(current, correction("refund", call=constrained), former=FORMER if known else {})
    assert answers(built) == []
    assert built.dataset.left_out_by_reason() == {"other_kind": 1}


def test_an_unknown_label_of_the_current_revision_is_an_error_not_a_removed_label() -> None:
    assert build(OLD, correction("lost")).dataset.left_out_by_reason() == {"unknown_label": 1}


def test_a_system_prompt_of_the_application_stays() -> None:
    own = Call(messages=(system("You are Bo."), user("late")))
    assert CurrentCalls(spec(system_prompt="New."), {OLD.system_prompt, ""})(own) is own
    two = Call(messages=(system(OLD.system_prompt), system("You are Bo."), user("late")))
    assert CurrentCalls(spec(system_prompt="New."), {OLD.system_prompt})(two) is two


def test_a_system_message_that_says_more_than_a_former_prompt_stays_and_stops_no_build() -> None:
    more = Message(role=Role.SYSTEM, content=OLD.system_prompt, refusal="I would rather not.")
    call = Call(messages=(more, user("late")))
    assert CurrentCalls(spec(system_prompt="New."), {OLD.system_prompt})(call) is call
    assert answers(build(spec(system_prompt="New."), correction("refund", call=call))) == ["refund"]


@pytest.mark.parametrize(
    ("before", "api", "now", "after"),
    [
        ((system("Old."), user("late")), Api.CHAT, "New.", (system("New."), user("late"))),
        ((system("Old."), user("late")), Api.CHAT, "", (user("late"),)),
        ((user("late"),), Api.CHAT, "New.", (system("New."), user("late"))),
        ((user("late"),), Api.COMPLETIONS, "New.", (user("late"),)),
        ((system("New."), user("late")), Api.CHAT, "New.", (system("New."), user("late"))),
    ],
)
def test_a_former_prompt_becomes_the_current_one(
    before: tuple[Message, ...], api: Api, now: str, after: tuple[Message, ...]
) -> None:
    call = Call(api=api, messages=before)
    assert CurrentCalls(spec(system_prompt=now), {"Old.", ""})(call).messages == after


def test_a_map_of_renamed_labels_is_checked() -> None:
    with pytest.raises(ValidationError, match=r"labels that the task does not have: \['parcels'\]"):
        spec(renamed_labels={"shipping": "parcels"})
    with pytest.raises(ValidationError, match=r"labels that the task still has: \['refund'\]"):
        spec(renamed_labels={"refund": "delivery"})


def test_a_map_of_renamed_labels_makes_no_new_revision() -> None:
    assert spec(renamed_labels={"parcel": "delivery"}).revision == OLD.revision
