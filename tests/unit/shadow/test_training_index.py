"""The index of a candidate's training rows has all of them, whatever characters they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.conversation import Answer, Message, Role
from schemas.datasets import PREFERENCES, Example, PreferredAnswer
from services.shadow.clients import StoredTrainingIndexes
from shared.errors import DependencyUnavailable
from shared.model.near_copies import AskedQuestions
from shared.storage.artifacts import ArtifactStore
from tests.unit.dataset_builder.histories import sentence
from tests.unit.shadow.fakes import rollout


def example(text: str) -> Example:
    turns = (Message(role=Role.USER, content=text), Message(role=Role.ASSISTANT, content="refund"))
    return Example(example_id="e", messages=turns, group="g", prediction_ids=(), correction_ids=())


def question(text: str, system: str | None = None) -> tuple[Message, ...]:
    asked = Message(role=Role.USER, content=text)
    return (asked,) if system is None else (Message(role=Role.SYSTEM, content=system), asked)


@pytest.mark.parametrize(
    ("system", "text", "is_near"),
    [
        (f"Ticket: {sentence(3, 60)}", "Classify the ticket.", True),
        (f"Ticket: {sentence(4, 60)}", "Classify the ticket.", False),
        (f"Rules: {sentence(5, 60)}", "where is my parcel?", True),
        (f"Rules: {sentence(5, 60)}", "I want my money back", False),
        ("Be brief.", "where is my parcel?", True),
        (rollout().spec.system_prompt, "where is my parcel?", True),
    ],
)
def test_a_document_in_the_system_message_tells_questions_apart_and_an_instruction_does_not(
    system: str, text: str, is_near: bool
) -> None:
    trained = [question("Classify the ticket.", f"Ticket: {sentence(3, 60)}")]
    trained.append(question("where is my parcel?", f"Rules: {sentence(5, 60)}"))
    trained.append(question("where is my parcel?"))
    assert AskedQuestions(trained, rollout().spec).contains(question(text, system)) is is_near


async def test_a_row_with_an_unusual_line_separator_is_one_row(tmp_path: Path) -> None:
    texts = ("where is parcel\u2028number 1?", "I was charged\x85twice in May", "my password is refused")
    folder = tmp_path / "datasets" / "d1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "train.jsonl").write_text("".join(example(text).model_dump_json() + "\n" for text in texts))
    indexes = StoredTrainingIndexes(ArtifactStore(str(tmp_path), tmp_path / "cache"))
    index = await indexes.for_rollout(rollout().model_copy(update={"dataset_uri": str(folder)}))
    assert len(index) == 3
    assert all(index.contains(question(text)) for text in texts)


async def test_the_rows_that_were_used_last_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketching all rows of a version takes seconds, and each request of a task that is compared asks for them."""
    folders = [tmp_path / "datasets" / f"d{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "train.jsonl").write_text(example("where is it?").model_dump_json())
    indexes = StoredTrainingIndexes(ArtifactStore(str(tmp_path), tmp_path / "cache"), max_rows=2)
    read: list[str] = []
    reading = indexes._read
    monkeypatch.setattr(indexes, "_read", lambda uri, spec: read.append(uri) or reading(uri, spec))
    for number in (0, 1, 0, 2, 0, 1):
        await indexes.for_rollout(rollout().model_copy(update={"dataset_uri": str(folders[number])}))
    assert read == [str(folders[number]) for number in (0, 1, 2, 1)]


async def test_training_rows_that_are_damaged_cannot_be_read(tmp_path: Path) -> None:
    """They dead-lettered every prediction of the task."""
    folder = tmp_path / "datasets" / "d1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "train.jsonl").write_text(example("where is it?").model_dump_json()[:-9])
    under = rollout().model_copy(update={"dataset_uri": str(folder)})
    with pytest.raises(DependencyUnavailable, match=r"train\.jsonl cannot be read"):
        await StoredTrainingIndexes(ArtifactStore(str(tmp_path), tmp_path / "cache")).for_rollout(under)


@pytest.mark.parametrize(("method", "counts"), [("dpo", True), ("none", False)])
async def test_the_questions_of_compared_answers_count_where_the_candidate_was_trained_on_them(
    tmp_path: Path, method: str, counts: bool
) -> None:
    folder = tmp_path / "datasets" / "d1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "train.jsonl").write_text(example("where is it?").model_dump_json() + "\n")
    pair = PreferredAnswer(
        prompt=question("which of my two cards was charged twice?"), answers=(Answer(text="x"), Answer(text="y")),
        preferred="b", prediction_ids=("p",), correction_ids=("c",),
    )  # fmt: skip
    (folder / PREFERENCES).write_text(pair.model_dump_json() + "\n")
    spec = rollout().spec
    preferences = spec.training.preferences.model_copy(update={"method": method})
    training = spec.training.model_copy(update={"preferences": preferences})
    under = rollout().model_copy(
        update={"dataset_uri": str(folder), "spec": spec.model_copy(update={"training": training})}
    )
    index = await StoredTrainingIndexes(ArtifactStore(str(tmp_path), tmp_path / "cache")).for_rollout(under)
    assert index.contains(pair.prompt) is counts
    assert index.contains(question("where is it?"))


@pytest.mark.parametrize(("similarity", "is_near"), [(0.8, True), (0.95, False)])
async def test_what_is_nearly_a_training_row_follows_from_the_tasks_setting(
    tmp_path: Path, similarity: float, is_near: bool
) -> None:
    folder = tmp_path / "datasets" / "d1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    trained = "why was I charged twice for the same transfer to my friend in Lisbon last Monday evening?"
    (folder / "train.jsonl").write_text(example(trained).model_dump_json() + "\n")
    spec = rollout().spec
    rules = spec.dataset.model_copy(update={"near_copy_similarity": similarity})
    under = rollout().model_copy(
        update={"dataset_uri": str(folder), "spec": spec.model_copy(update={"dataset": rules})}
    )
    index = await StoredTrainingIndexes(ArtifactStore(str(tmp_path), tmp_path / "cache")).for_rollout(under)
    assert index.contains(question(trained.replace("Monday", "Tuesday"))) is is_near


RULES = sentence(7, 40)


def test_a_date_in_an_instruction_does_not_hide_that_a_question_was_trained_on() -> None:
    trained = [question(sentence(n, 4), f"It is 2026-11-{n + 1:02d}, 10:{n:02d}. {RULES}") for n in range(20)]
    index = AskedQuestions(trained, rollout().spec)
    assert index.contains(question(sentence(3, 4), f"It is 2027-02-14, 08:55. {RULES}"))
    assert not index.contains(question(sentence(99, 4), f"It is 2027-02-14, 08:55. {RULES}"))


def test_another_turn_after_a_beginning_that_was_trained_on_is_another_question() -> None:
    def turn(text: str) -> tuple[Message, ...]:
        beginning = Message(role=Role.USER, content=sentence(1, 30))
        return beginning, Message(role=Role.ASSISTANT, content=sentence(2, 60)), Message(role=Role.USER, content=text)

    index = AskedQuestions([turn(sentence(3, 4))], rollout().spec)
    assert index.contains(turn(f"{sentence(3, 4)}?"))
    assert not index.contains(turn(sentence(4, 4)))
