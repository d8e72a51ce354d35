"""A task: what an application asks, on which base model, with which labels and thresholds.

One YAML file a task (`deploy/tasks/<task>.yaml`) is parsed into `TaskSpec`; every change of it is an event.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.base import Event, Identifier, Probability, TaskName, Text

Label = Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]


class TaskKind(StrEnum):
    CLASSIFICATION = "classification"
    GENERATION = "generation"


class _Section(BaseModel):
    """Part of the YAML: an unknown key is a mistake of the writer, not a newer contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingSettings(_Section):
    """LoRA fine-tuning. The defaults are for 7–8B models; a demonstration overrides some."""

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
    threads: int | None = Field(default=None, ge=1, description="CPU threads; None: all cores but none on a GPU.")


class DatasetSettings(_Section):
    """What a training set must be before anything is trained on it."""

    eval_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    min_examples: int = Field(default=50, ge=2, description="Fewer accepted training examples stop the cycle.")
    min_examples_per_label: int = Field(default=3, ge=1)
    max_rejected_share: Probability = 0.5
    min_answer_chars: int = Field(default=1, ge=1)
    max_answer_chars: int = Field(default=8_000, ge=1)
    near_copy_similarity: Probability = Field(default=0.8, description="Jaccard of character 4-shingles.")
    max_age_days: int | None = Field(
        default=None, ge=1, description="Corrections of older predictions train no more and are deleted; empty: kept."
    )
    seed: int = 20


class FailureSettings(_Section):
    """Which predictions are suspects, and how they are grouped into failure modes."""

    confidence_threshold: Probability = Field(default=0.6, description="Below it, a prediction is a suspect.")
    min_cluster_size: int = Field(default=8, ge=2)
    min_samples: int = Field(default=2, ge=1)
    same_mode_cosine: Probability = Field(default=0.85, description="Centroids this near are the same mode.")
    review_budget_per_day: int = Field(default=2_000, ge=0, description="Most labels asked of people in a day.")
    overlap_share: Probability = Field(default=0.1, description="Share of questions put to two people.")


class EvaluationSettings(_Section):
    """The offline gates. All must pass before a candidate sees a single live input."""

    min_gain: float = Field(default=0.0, ge=-1.0, le=1.0, description="Accuracy gain over production, at least.")
    min_accuracy: Probability = 0.0
    max_golden_net_loss: Probability = Field(default=0.05, description="Golden answers lost minus gained, share.")
    max_failed_share: Probability = Field(default=0.02, description="Requests that errored or timed out.")


class RolloutSettings(_Section):
    """How wealth buys exposure. See the deployer's `domain.py` for the statistics."""

    yearly_false_promotion: float = Field(default=0.05, gt=0.0, lt=1.0, description="Alpha of a whole year.")
    cycles_per_year: int = Field(default=52, ge=1)
    canary_wealth: float = Field(default=20.0, gt=1.0)
    canary_percent: int = Field(default=5, ge=1, le=100)
    min_canary_requests: int = Field(default=50, ge=0, description="Canary answers seen before everyone gets it.")
    max_labels: int = Field(default=300, ge=1, description="Tickets a candidate may spend before it is dropped.")
    max_error_ratio: float = Field(default=1.5, gt=1.0, description="Canary errors this many times primary's.")
    shadow_percent: int = Field(default=100, ge=1, le=100)
    shadow_requests_per_day: int = Field(default=50_000, ge=1)


class ExtraPattern(_Section):
    """Personal data of the task's own kind: a customer number, say."""

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
    """Personal data is replaced by made-up data of the same shape before anything is stored."""

    enabled: bool = True
    names: bool = Field(default=True, description="People's names too, found by a model; off: patterns only.")
    patterns: tuple[ExtraPattern, ...] = Field(default=(), max_length=20)


class Prices(_Section):
    """For the cost report, in one currency."""

    currency: str = Field(default="USD", max_length=3)
    gpu_hour: float = Field(default=0.0, ge=0.0)
    label: float = Field(default=0.0, ge=0.0)
    million_tokens: float = Field(default=0.0, ge=0.0)


class GoldenExample(_Section):
    """A question whose answer must not be lost."""

    text: Text
    label: Text


class TaskSpec(_Section):
    """One task, whole. `golden` is read from the file that `golden_file` names, beside the YAML."""

    name: TaskName
    kind: TaskKind
    base_model: Identifier = "meta-llama/Llama-3.1-8B-Instruct"
    system_prompt: Text
    labels: tuple[Label, ...] = Field(default=(), max_length=500)
    max_answer_tokens: int = Field(default=256, ge=1, le=32_768)
    cron: Identifier = "0 3 * * 1"
    step_timeout_minutes: int = Field(default=240, ge=1, description="A step that takes longer is reported late.")
    failures: FailureSettings = FailureSettings()
    dataset: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    rollout: RolloutSettings = RolloutSettings()
    prices: Prices = Prices()
    redaction: RedactionSettings = RedactionSettings()
    retention_days: int | None = Field(
        default=None, ge=1, description="Older predictions, and what waits for people of them, go; empty: kept."
    )
    golden_file: Identifier | None = None
    golden: tuple[GoldenExample, ...] = Field(default=(), max_length=5_000)

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
        """Hash (12 hex) of what makes answers comparable: kind, base model, prompt and labels; not thresholds."""
        comparable = {
            "kind": self.kind, "base_model": self.base_model, "system_prompt": self.system_prompt,
            "labels": sorted(self.labels),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest()[:12]


class TaskChanged(Event):
    """The task as it is from now on. The topic is compacted: its last value per task is the truth."""

    spec: TaskSpec
