"""Events and files of datasets: versions of the training and evaluation set, in the artifact store."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Gate, Identifier, Text
from schemas.conversation import JsonObject, Messages
from schemas.tasks import TaskSpec


class RejectedCount(Frozen):
    reason: Identifier
    count: int = Field(ge=1)


class DatasetBuilt(Event):
    """A dataset passed its gates: train.jsonl, eval.jsonl, rejected.jsonl and manifest.json in a folder. Key: task."""

    dataset_id: Identifier = Field(description="Task and content hash: the same rows get the same id.")
    uri: str = Field(max_length=2_000)
    train_examples: int = Field(ge=1)
    eval_examples: int = Field(ge=1)
    rejected: tuple[RejectedCount, ...] = ()
    gates: tuple[Gate, ...] = ()
    data_cutoff: AwareDatetime
    spec: TaskSpec = Field(description="The task at the time of the build, so that training needs no look-up.")


class Example(Frozen):
    """One line of train.jsonl and eval.jsonl: a published, read-only format.

    `messages` ends with the assistant's answer. Near-duplicates have the same `group`, which is never split.
    """

    example_id: Identifier
    messages: Messages
    tools: tuple[JsonObject, ...] = Field(default=(), description="The tools that the model could call.")
    group: Identifier
    prediction_ids: tuple[Identifier, ...]
    correction_ids: tuple[Identifier, ...]
    user_hash: Identifier | None = Field(default=None, description="Keyed hash of the user, for erasure.")
    predicted_at: AwareDatetime | None = Field(default=None, description="When the prediction was made.")

    @property
    def prompt(self) -> Messages:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].text


class RejectedExample(Frozen):
    """One line of rejected.jsonl."""

    reason: Identifier
    detail: Text = ""
    prediction_ids: tuple[Identifier, ...]
    correction_ids: tuple[Identifier, ...]
    user_hash: Identifier | None = None
    predicted_at: AwareDatetime | None = None


class DatasetManifest(Frozen):
    """manifest.json: what this version was built from, and how it is split."""

    dataset_id: Identifier
    task: Identifier
    task_revision: Identifier
    cycle_id: Identifier | None
    created_at: AwareDatetime
    data_cutoff: AwareDatetime
    seed: int
    files: dict[str, str] = Field(description="File name to SHA-256.")
    train_examples: int
    eval_examples: int
    rejected: dict[str, int]
    labels: dict[str, int] = Field(description="Examples per answer in train.jsonl, for label tasks.")
    failure_modes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
