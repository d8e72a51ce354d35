"""Events and files of datasets: versions of the training and evaluation set, in the artifact store."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, JsonValue

from schemas.base import Event, Frozen, Gate, Identifier, Probability, Text
from schemas.conversation import Answer, JsonObject, Messages
from schemas.labels import Preference, Purpose
from schemas.tasks import TaskSpec


def _is_none(value: object) -> bool:
    return value is None


AuthorHashes = Annotated[
    tuple[Identifier, ...],
    Field(
        exclude_if=lambda hashes: not hashes,
        description="Keyed hashes of other users whose feedback is in the line, for erasure; absent if there are none.",
    ),
]


class Fate(StrEnum):
    """Where a row of a build ends. Every row ends in exactly one place."""

    TRAIN = "train"
    EVAL = "eval"
    REJECTED = "rejected"
    """It can never be trained on as it is: the form is wrong, or people disagree."""
    SUPERSEDED = "superseded"
    """Another word of the same person, a newer opinion or another revision of the task took its place."""
    EXCLUDED = "excluded"
    """It is, or is nearly, a row of the evaluation set or of a frozen set."""
    CAPPED = "capped"
    """There are enough rows like it: of its text, its failure mode, its reviewer, its user or its application."""
    HELD_BACK = "held_back"
    """It waits for a person: the label is suspicious, or whoever gave it moves a class too far."""
    FORGOTTEN = "forgotten"
    """Its user was forgotten. Only the number of such rows is known."""


class Origin(StrEnum):
    """How a row came into a data set."""

    REVIEWER = "reviewer"
    USER = "user"
    """A user's own correction, which no reviewer has confirmed."""
    HARD_NEGATIVE = "hard_negative"
    """Augmentation: a confirmed answer of another label from the same failure mode."""


class LeftOutCount(Frozen):
    fate: Fate
    reason: Identifier
    count: int = Field(ge=1)


class DatasetBuilt(Event):
    """A dataset passed its gates, and a folder has its rows, its inspection and its manifest. Key: task.

    train.jsonl, eval.jsonl, rejected.jsonl, quality.json (schemas/quality.py), quality.html and manifest.json; where
    people compared or corrected generated answers preferences.jsonl.
    """

    dataset_id: Identifier = Field(description="Task and content hash: the same rows get the same id.")
    uri: str = Field(max_length=2_000)
    parent: Identifier | None = Field(default=None, description="The task's version before this one; None: the first.")
    train_examples: int = Field(ge=1)
    eval_examples: int = Field(ge=1)
    left_out: tuple[LeftOutCount, ...] = ()
    gates: tuple[Gate, ...] = ()
    data_cutoff: AwareDatetime
    spec: TaskSpec = Field(description="The task at the time of the build, so that training needs no look-up.")


class Example(Frozen):
    """One line of train.jsonl and eval.jsonl: a published, read-only format.

    `messages` ends with the assistant's answer. Turns of a conversation have the same `group`, which is never split.
    """

    example_id: Identifier
    messages: Messages
    tools: tuple[JsonObject, ...] = Field(default=(), description="The tools that the model could call.")
    tool_choice: JsonValue = Field(
        default=None, exclude_if=_is_none, description="Which of them had to be called; absent: any, or none."
    )
    response_format: JsonObject | None = Field(
        default=None,
        exclude_if=_is_none,
        description="The JSON that the application itself asked for, as in OpenAI's chat API: the engine guides the "
        "answer by it. Absent: none, or the task's own.",
    )
    group: Identifier
    seen: bool = Field(
        default=False, description="Of a held-out row: its text, or nearly, is trained on, as production's is."
    )
    origin: Origin = Origin.REVIEWER
    weight: float = Field(default=1.0, gt=0.0, le=10.0, description="How much it counts in training; 1: as usual.")
    mode_id: Identifier | None = Field(default=None, description="The failure mode that its prediction belongs to.")
    app: Identifier | None = Field(default=None, description="The application that asked the model.")
    purpose: Purpose | None = Field(default=None, description="Why a reviewer was asked, where chance drew the row.")
    drawn_probability: Probability | None = Field(
        default=None,
        gt=0.0,
        description="How probable it was that chance drew its prediction for a question and that somebody answered it. "
        "None: it was not chance.",
    )
    prediction_ids: tuple[Identifier, ...]
    correction_ids: tuple[Identifier, ...]
    user_hash: Identifier | None = Field(default=None, description="Keyed hash of the user, for erasure.")
    author_hashes: AuthorHashes = ()
    predicted_at: AwareDatetime | None = Field(default=None, description="When the prediction was made.")

    @property
    def prompt(self) -> Messages:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].text


class LeftOutExample(Frozen):
    """One line of rejected.jsonl: a row that is in neither train.jsonl nor eval.jsonl, and why."""

    fate: Fate
    reason: Identifier
    detail: Text = ""
    prediction_ids: tuple[Identifier, ...]
    correction_ids: tuple[Identifier, ...]
    user_hash: Identifier | None = None
    author_hashes: AuthorHashes = ()
    predicted_at: AwareDatetime | None = None


PREFERENCES = "preferences.jsonl"


class PreferredAnswer(Frozen):
    """One line of preferences.jsonl: two answers to one prompt, generated texts or objects, and which is better.

    `judged`: people compared them, blind, in the order in which they were shown. Nothing says which model gave which.
    `edited`: `a` is what a person made of production's answer `b`; its prompt is one of train.jsonl.
    """

    source: Literal["judged", "edited"] = "judged"
    prompt: Messages
    tools: tuple[JsonObject, ...] = Field(default=(), description="The tools that the model could call.")
    answers: tuple[Answer, Answer]
    preferred: Preference = Field(description="Of several people the choice of most; `both_wrong` if they are even.")
    held_out: bool = Field(
        default=False, description="Its prompt is one of eval.jsonl or of a frozen set, or nearly: never train on it."
    )
    prediction_ids: tuple[Identifier, ...]
    correction_ids: tuple[Identifier, ...]
    user_hash: Identifier | None = Field(default=None, description="Keyed hash of the user, for erasure.")
    author_hashes: AuthorHashes = ()
    predicted_at: AwareDatetime | None = None


class DatasetManifest(Frozen):
    """manifest.json: what this version was built from, and how it is split."""

    dataset_id: Identifier
    task: Identifier
    task_revision: Identifier
    cycle_id: Identifier | None
    parent: Identifier | None = Field(default=None, description="The task's version before this one; None: the first.")
    created_at: AwareDatetime
    data_cutoff: AwareDatetime
    seed: int
    files: dict[str, str] = Field(description="File name to SHA-256.")
    train_examples: int
    eval_examples: int
    left_out: tuple[LeftOutCount, ...] = ()
    labels: dict[str, int] = Field(description="Examples per answer in train.jsonl, for label tasks.")
    failure_modes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
