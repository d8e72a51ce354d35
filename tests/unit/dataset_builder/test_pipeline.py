"""From corrections to examples: agreement, every reason to reject, duplicates, and a stable split by group."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.conversation import Answer, Call, FinishReason, Media, Message, Part, Role, ToolCall
from schemas.datasets import Example
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder import pipeline
from services.dataset_builder.building.votes import third_opinion, votes_of
from services.dataset_builder.pipeline import Dataset, Inputs
from services.dataset_builder.pipeline import build_dataset as build
from shared.model.near_copies import jaccard, shingles
from tests.conftest import ROOT

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SYSTEM = Message(role=Role.SYSTEM, content="Answer with the intent.")


def spec(**dataset: object) -> TaskSpec:
    return TaskSpec(
        name="support-desk",
        kind=TaskKind.CLASSIFICATION,
        system_prompt=SYSTEM.text,
        labels=("refund", "delivery", "cancel"),
        dataset=DatasetSettings.model_validate({"max_answer_chars": 20, **dataset}),
    )


def user(content: str = "where is it") -> Message:
    return Message(role=Role.USER, content=content)


WRITING = TaskSpec(
    name="replies",
    kind=TaskKind.GENERATION,
    system_prompt="Reply.",
    dataset=DatasetSettings(min_answer_chars=1),
)


def correction(
    text: str, label: str | None, *, prediction: str = "", reviewer: str = "ana", minute: int = 0, **other: object
) -> CorrectionSubmitted:
    prediction = prediction or f"p-{text}"
    return CorrectionSubmitted.model_validate(
        {
            "occurred_at": NOON + timedelta(minutes=minute),
            "task": "support-desk",
            "task_revision": spec().revision,
            "correction_id": f"c-{prediction}-{reviewer}-{minute}",
            "request_id": f"r-{prediction}",
            "prediction_id": prediction,
            "purpose": Purpose.LOW_CONFIDENCE,
            "reviewer": reviewer,
            "call": Call(messages=(SYSTEM, Message(role=Role.USER, content=text))),
            "answers": (Answer(text="cancel"),),
            "label": label,
            **other,
        }
    )


def build_dataset(corrections: Iterable[CorrectionSubmitted], spec: TaskSpec) -> Dataset:
    return build(Inputs(votes_of(corrections), spec)).dataset


@pytest.mark.parametrize("preference", ["a", "cannot_tell"])
def test_a_preference_is_no_label(preference: str) -> None:
    pair = correction("late", None, preference=preference, answers=(Answer(text="x"), Answer(text="y")))
    dataset = build_dataset([pair], spec())
    assert not dataset.train
    assert not dataset.left_out


def test_the_label_of_a_discordant_pair_is_an_example() -> None:
    pair = correction(
        "late",
        "delivery",
        purpose=Purpose.DISCORDANT_PAIR,
        ticket_id="t1",
        answers=(Answer(text="refund"), Answer(text="delivery")),
    )
    dataset = build_dataset([pair], spec())
    assert [e.correction_ids for e in (*dataset.train, *dataset.eval)] == [(pair.correction_id,)]


FIND = {"type": "function", "function": {"name": "find_order", "parameters": {"type": "object"}}}
TALK = Call(
    messages=(
        SYSTEM,
        Message(role=Role.USER, content="Where are 4711 and 4712?", name="customer"),
        Message(
            role=Role.ASSISTANT,
            tool_calls=(
                ToolCall(name="find_order", arguments='{"number": "4711"}', id="call_1"),
                ToolCall(name="find_order", arguments='{"number": "4712"}', id="call_2"),
            ),
        ),
        Message(role=Role.TOOL, content='{"state": "on its way"}', tool_call_id="call_1"),
        Message(role=Role.TOOL, content=(Part(type="text", text="no such order"),), tool_call_id="call_2"),
        Message(role=Role.ASSISTANT, content="4711 is on its way."),
        Message(role=Role.USER, content="Sorry:"),
        Message(role=Role.USER, content="I meant 4713."),
    ),
    tools=(FIND,),
)
CALLED = Answer(text="", tool_calls=(ToolCall(name="find_order", arguments='{"number": "4713"}', id="call_3"),))


def talk(label: str, answer: Answer = CALLED, call: Call = TALK) -> CorrectionSubmitted:
    return correction("talk", label, call=call, answers=(answer,))


def rows(dataset: Dataset) -> list[Example]:
    return [*dataset.train, *dataset.eval]


def test_a_conversation_with_tools_becomes_an_example_with_its_structure() -> None:
    (example,) = rows(build_dataset([talk(" I am looking for it. ")], WRITING))
    assert example.prompt == TALK.messages
    assert example.tools == (FIND,)
    assert example.messages[-1] == Message(role=Role.ASSISTANT, content="I am looking for it.")


def test_a_label_that_repeats_the_answers_tool_calls_is_tool_calls_again() -> None:
    (example,) = rows(build_dataset([talk(CALLED.plain)], WRITING))
    assert example.messages[-1] == Message(role=Role.ASSISTANT, tool_calls=CALLED.tool_calls)
    assert example.answer == CALLED.plain


def test_a_label_with_corrected_tool_calls_is_tool_calls_too() -> None:
    label = "One moment.\n" + CALLED.plain.replace("4713", "4714")
    (example,) = rows(build_dataset([talk(label)], WRITING))
    (call,) = example.messages[-1].tool_calls
    assert (example.messages[-1].content, call.name, call.arguments) == (
        "One moment.", "find_order", '{"number": "4714"}',
    )  # fmt: skip
    assert call.id is not None and len(call.id) == 9
    assert example.answer == label


@pytest.mark.parametrize(
    ("label", "answer", "call", "reason"),
    [
        ("x", CALLED, {"truncated": True}, "truncated"),
        ("x", Answer(text="a long one", truncated=True), {}, "truncated"),
        ("x", Answer(refusal="I cannot."), {}, "refused"),
        ("I cannot.", Answer(refusal="I cannot."), {}, "refused"),
        ("x", Answer(text="", finish_reason=FinishReason.CONTENT_FILTER), {}, "refused"),
        ("half an", Answer(text="half an", finish_reason=FinishReason.LENGTH), {}, "cut"),
        ("half an", Answer(text="half an", finish_reason=FinishReason.CLIENT_LEFT), {}, "cut"),
        ("x", CALLED, {"messages": (Message(role=Role.USER, content=(
            Part(type="text", text="and this?"), Part(type="image_url", media=Media(kind="image", hash="h", key="k")),
        )),)}, "media"),
        ('[{"name":"drop_order","arguments":"{}"}]', CALLED, {}, "unknown_tool"),
        ('[{"name":"find_order","arguments":"4713"}]', CALLED, {}, "invalid_arguments"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_rejected_with_its_reason(
    label: str, answer: Answer, call: dict[str, Any], reason: str
) -> None:
    dataset = build_dataset([talk(label, answer, TALK.model_copy(update=call))], WRITING)
    assert rows(dataset) == []
    assert dataset.left_out_by_reason() == {reason: 1}


def test_what_a_person_writes_in_place_of_a_cut_answer_is_an_example() -> None:
    cut = Answer(text="half an", finish_reason=FinishReason.LENGTH)
    assert len(rows(build_dataset([talk("a whole answer", cut)], WRITING))) == 1
    label = correction("late", "cancel", answers=(Answer(text="cancel", finish_reason=FinishReason.LENGTH),))
    assert len(rows(build_dataset([label], spec()))) == 1, "a label of the task is whole"


def test_no_tie_break_is_asked_about_what_can_never_be_trained_on() -> None:
    cut = Call(messages=(user(),), truncated=True)
    two = [correction("late", "delivery", call=cut), correction("late", "refund", reviewer="ben", minute=1, call=cut)]
    assert third_opinion(votes_of(two), spec(), {}) is None
    assert build_dataset(two, spec()).left_out_by_reason() == {"truncated": 1}


def many(count: int = 40) -> list[CorrectionSubmitted]:
    topics = ("my parcel", "the invoice", "this subscription", "a refund", "the second order")
    return [
        correction(f"{topics[i % 5]} number {i * 7919} has a problem", ("refund", "delivery")[i % 2], minute=i)
        for i in range(count)
    ]


def test_the_split_is_the_same_on_every_build_and_in_any_order() -> None:
    once, again = build_dataset(many(), spec()), build_dataset(list(reversed(many())), spec())
    assert once == again
    assert once.eval


def test_another_seed_gives_another_split() -> None:
    assert build_dataset(many(), spec()).eval != build_dataset(many(), spec(seed=21)).eval


WORDS = st.sampled_from(("parcel", "refund", "please", "where", "order", "late", "cancel", "now", "card"))


@settings(max_examples=20)
@given(st.lists(st.lists(WORDS, min_size=2, max_size=9).map(" ".join), min_size=2, max_size=30), st.integers(0, 5))
def test_near_duplicates_are_never_in_both_parts(texts: list[str], seed: int) -> None:
    rows = [correction(text, "refund", prediction=f"p{i}", minute=i) for i, text in enumerate(texts)]
    dataset = build_dataset(rows, spec(seed=seed, eval_share=0.5))
    for trained in dataset.train:
        for held_out in dataset.eval:
            assert trained.group != held_out.group
            assert jaccard(shingles(trained.prompt[-1].text), shingles(held_out.prompt[-1].text)) < 0.8


@settings(max_examples=15)
@given(st.lists(st.tuples(WORDS, st.sampled_from(("refund", "delivery", "nonsense"))), max_size=30))
def test_every_correction_ends_in_exactly_one_part(rows: list[tuple[str, str]]) -> None:
    corrections = [correction(text, label, prediction=f"p{i}", minute=i) for i, (text, label) in enumerate(rows)]
    dataset = build_dataset(corrections, spec())
    found = [c for example in (*dataset.train, *dataset.eval, *dataset.left_out) for c in example.correction_ids]
    assert sorted(found) == sorted(c.correction_id for c in corrections)


def test_the_page_of_data_sets_says_what_each_reason_of_the_pipeline_means() -> None:
    last_column = " ".join(re.findall(r"^ {4}.* {2}(\S.*)$", pipeline.__doc__ or "", re.MULTILINE))
    reasons = re.findall(r"[a-z]+(?:_[a-z]+)+", last_column)
    assert len(reasons) > 15
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert [reason for reason in reasons if f"`{reason}`" not in page] == []
