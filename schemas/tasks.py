"""Tasks: what an application asks, on which base model, with which labels and thresholds.

One YAML file per task, which the scheduler reads from `<home>/tasks/*.yaml`, is parsed into `TaskSpec`; every change of
it is an event.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.base import Event, Identifier, Probability, ShortText, TaskName

NO_TASK = "pass-through"
"""Stands in `requests.observed` for all models that are no task: no task may have this name."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]


class TaskKind(StrEnum):
    CLASSIFICATION = "classification"
    GENERATION = "generation"


class MediaPolicy(StrEnum):
    """What becomes of the pictures, sound and documents of requests. Their bytes are never in an event."""

    DROP = "drop"
    KEEP = "keep"


class _Section(BaseModel):
    """The base class of the YAML's sections: an unknown key is an error of the author, not a newer contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingSettings(_Section):
    """Settings of LoRA fine-tuning. The defaults suit 7–8B models."""

    method: Annotated[str, StringConstraints(pattern="^lora$")] = "lora"
    r: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1, le=1024)
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    learning_rate: float = Field(default=2e-4, gt=0.0, lt=1.0)
    epochs: float = Field(default=3.0, gt=0.0, le=100.0)
    batch_size: int = Field(default=8, ge=1, le=4096)
    max_length: int = Field(default=2048, ge=16, le=131_072, description="Tokens of prompt and answer together.")
    warmup_ratio: float = Field(default=0.05, ge=0.0, lt=1.0)
    seed: int = 20
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads; None: RATCHET_TRAINER_THREADS, else all cores but one; on a GPU PyTorch's default.",
    )


class DatasetSettings(_Section):
    """The gates of a training set, and how it is split."""

    eval_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    min_examples: int = Field(default=50, ge=2, description="Fewer accepted training examples stop the cycle.")
    min_examples_per_label: int = Field(default=3, ge=1)
    max_rejected_share: Probability = 0.5
    min_answer_chars: int = Field(default=1, ge=1)
    max_answer_chars: int = Field(default=8_000, ge=1)
    near_copy_similarity: Probability = Field(default=0.8, description="Jaccard of character 4-shingles.")
    max_age_days: int | None = Field(
        default=None,
        ge=1,
        description="Corrections of older predictions are deleted and not trained on; empty: never.",
    )
    seed: int = 20


class FailureSettings(_Section):
    """Which predictions are suspects, and how they are clustered into failure modes."""

    confidence_threshold: Probability = Field(default=0.6, description="Below it, a prediction is a suspect.")
    min_cluster_size: int = Field(default=8, ge=2)
    min_samples: int = Field(default=2, ge=1)
    same_mode_cosine: Probability = Field(default=0.85, description="Minimum similarity of centroids of one mode.")
    review_budget_per_day: int = Field(default=2_000, ge=0, description="Maximum labels requested per day.")
    overlap_share: Probability = Field(default=0.1, description="Share of questions that two reviewers answer.")


class EvaluationSettings(_Section):
    """The offline gates. All must pass before a candidate answers a single live input."""

    min_gain: float = Field(default=0.0, ge=-1.0, le=1.0, description="Minimum accuracy gain over production.")
    min_accuracy: Probability = 0.0
    max_golden_net_loss: Probability = Field(default=0.05, description="Share of golden answers lost minus gained.")
    max_failed_share: Probability = Field(default=0.02, description="Share of requests that failed or timed out.")


class RolloutSettings(_Section):
    """How much evidence (wealth) a candidate needs for more traffic. The statistics are in the deployer."""

    yearly_false_promotion: float = Field(default=0.05, gt=0.0, lt=1.0, description="Alpha of a whole year.")
    cycles_per_year: int = Field(default=52, ge=1)
    canary_wealth: float = Field(default=20.0, gt=1.0)
    canary_percent: int = Field(default=5, ge=1, le=100)
    min_canary_requests: int = Field(default=50, ge=0, description="Canary answers required for a promotion.")
    max_labels: int = Field(default=300, ge=1, description="Tickets on which people are asked, at most.")
    max_error_ratio: float = Field(default=1.5, gt=1.0, description="Maximum ratio of error rates, canary to primary.")
    shadow_percent: int = Field(default=100, ge=1, le=100)
    shadow_requests_per_day: int = Field(default=50_000, ge=1)


class ExtraPattern(_Section):
    """A pattern of personal data that is special to the task, such as a customer number."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    regex: Annotated[str, StringConstraints(min_length=1, max_length=500)]

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            found = re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"{self.name}: not a regular expression: {error}") from error
        if found.match(""):
            raise ValueError(f"{self.name}: the pattern matches the empty text")
        return self


class RedactionSettings(_Section):
    """How personal data is replaced by surrogates of the same shape before an event reaches Kafka."""

    enabled: bool = True
    names: bool = Field(default=True, description="Also names of people, found by a model; off: patterns only.")
    patterns: tuple[ExtraPattern, ...] = Field(default=(), max_length=20)


class Prices(_Section):
    """Prices for the cost report, in one currency."""

    currency: str = Field(default="USD", max_length=3)
    gpu_hour: float = Field(default=0.0, ge=0.0)
    label: float = Field(default=0.0, ge=0.0)
    million_tokens: float = Field(default=0.0, ge=0.0)


class GoldenExample(_Section):
    """A question that every candidate must still answer correctly."""

    text: ShortText
    label: ShortText


class TaskSpec(_Section):
    """The complete specification of a task. `golden` is read from `golden_file`, which is beside the YAML."""

    name: TaskName
    kind: TaskKind
    base_model: Identifier = "meta-llama/Llama-3.1-8B-Instruct"
    system_prompt: ShortText
    labels: tuple[Label, ...] = Field(default=(), max_length=500)
    max_answer_tokens: int = Field(default=256, ge=1, le=32_768)
    cron: Identifier = "0 3 * * 1"
    step_timeout_minutes: int = Field(
        default=240, ge=1, description="A step without progress for longer is reported as late."
    )
    failures: FailureSettings = FailureSettings()
    dataset: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    rollout: RolloutSettings = RolloutSettings()
    prices: Prices = Prices()
    redaction: RedactionSettings = RedactionSettings()
    media: MediaPolicy = Field(
        default=MediaPolicy.DROP,
        description="Pictures, sound and documents that a request has in itself. drop: an event names their kind, size "
        "and hash. keep: they are also in the artifact store, encrypted and not redacted, as long as predictions are.",
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="Retention of predictions, kept media and open review questions; empty: forever.",
    )
    golden_file: Identifier | None = None
    golden: tuple[GoldenExample, ...] = Field(default=(), max_length=5_000)

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == NO_TASK:
            raise ValueError(f"{NO_TASK} is reserved for requests of models that are no task: choose another name")
        return name

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> Self:
        if self.kind is TaskKind.CLASSIFICATION and len(self.labels) < 2:
            raise ValueError("a classification task needs at least two labels")
        if self.kind is TaskKind.GENERATION and self.labels:
            raise ValueError("a generation task has no labels; remove `labels` or set kind: classification")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        unknown = {g.label for g in self.golden} - set(self.labels)
        if self.kind is TaskKind.CLASSIFICATION and unknown:
            raise ValueError(f"golden examples use unknown labels: {sorted(unknown)}")
        return self

    @property
    def revision(self) -> str:
        """Hash (12 hex digits) of what makes answers comparable: kind, base model, prompt, labels; not thresholds."""
        comparable = {
            "kind": self.kind, "base_model": self.base_model, "system_prompt": self.system_prompt,
            "labels": sorted(self.labels),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest()[:12]


class TaskChanged(Event):
    """A task was created or changed. Compacted: the last value per task holds. Key: task."""

    spec: TaskSpec
