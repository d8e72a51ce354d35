"""Which rows are repeated with an injection, and that those of the tests are others."""

from __future__ import annotations

import random
from typing import Any

import pytest

from schemas.conversation import Message, Part, Role
from schemas.datasets import Example
from schemas.evaluation_settings import AdversarialSettings, EvaluationSettings
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.adversarial.texts import EMPTY, FOREIGN
from services.trainer.injections import FROM_NOWHERE, SHARE, added_rows
from shared.model.injections import CANARIES, HELD_OUT, TARGET, TRAINED

LABELS = ("billing", "delivery", "other")


def spec(**adversarial: Any) -> TaskSpec:
    settings = EvaluationSettings(adversarial=AdversarialSettings(**adversarial))
    return TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Say.", labels=LABELS, evaluation=settings)


def row(n: int, content: Any = None, role: Role = Role.USER) -> Example:
    messages = (
        Message(role=Role.SYSTEM, content="Say."),
        Message(role=role, content=f"where is parcel {n}" if content is None else content),
        Message(role=Role.ASSISTANT, content="delivery"),
    )
    return Example(
        example_id=f"e{n}", group=f"g{n}", messages=messages, prediction_ids=("p",), correction_ids=("c",), weight=0.5
    )


ROWS = [row(n) for n in range(100)]


def test_a_share_of_the_rows_is_repeated_with_an_injection_and_the_right_answer() -> None:
    added = added_rows(ROWS, spec())
    assert len(added) == SHARE * 100
    by_group = {row.group: row for row in ROWS}
    for copy in added:
        source = by_group[copy.group]
        assert copy.prompt[-1].text.startswith(f"{source.prompt[-1].text} ")
        assert (copy.messages[0], copy.messages[-1], copy.weight) == (source.messages[0], source.messages[-1], 0.5)
        demanded = copy.prompt[-1].text.removeprefix(source.prompt[-1].text)
        wrong = [injection.text.replace(TARGET, label) for injection in TRAINED for label in ("billing", "other")]
        assert demanded.removeprefix(" ") in wrong
    assert len({copy.example_id for copy in added} | {row.example_id for row in ROWS}) == len(added) + 100


def test_the_same_rows_give_the_same_copies_in_any_order() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert added_rows(shuffled, spec()) == added_rows(ROWS, spec())


def test_where_answers_are_no_labels_a_word_is_demanded_that_no_answer_has() -> None:
    free = TaskSpec(name="notes", kind=TaskKind.GENERATION, system_prompt="Say.")
    assert all(any(word in copy.prompt[-1].text for word in CANARIES) for copy in added_rows(ROWS, free))


def test_a_conversation_that_ends_with_no_text_of_the_user_is_not_repeated() -> None:
    assert added_rows([row(1, role=Role.ASSISTANT), row(2, (Part(type="text", text="where"),))], spec()) == []
    assert added_rows([], spec()) == []


def test_a_few_questions_that_the_task_is_not_about_are_learnt_where_it_has_a_label_for_them() -> None:
    foreign = [row for row in added_rows(ROWS, spec(catch_all_labels=["other"])) if row.answer == "other"]
    assert [row.prompt[-1].text for row in foreign] == list(FROM_NOWHERE[:4])
    assert {row.messages[0].text for row in foreign} == {"Say."}


def test_of_several_labels_the_one_for_foreign_questions_is_a_list_as_every_answer_is() -> None:
    several = spec(catch_all_labels=["other"]).model_copy(update={"kind": TaskKind.MULTI_LABEL})
    assert added_rows(ROWS, several)[-1].answer == '["other"]'


@pytest.mark.parametrize("kept", [HELD_OUT, EMPTY, FOREIGN], ids=["injections", "empty", "foreign"])
def test_what_the_adversarial_set_asks_is_never_trained_on(kept: tuple[Any, ...]) -> None:
    assert not set(kept) & {*TRAINED, *FROM_NOWHERE}
    assert not {injection.technique for injection in TRAINED} & {injection.technique for injection in HELD_OUT}
    assert all(TARGET in injection.text for injection in (*TRAINED, *HELD_OUT))
