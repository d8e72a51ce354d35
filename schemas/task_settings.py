"""The sections of a task's YAML: training, data sets, failures, rollout, redaction. Each has a sane default."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from schemas.base import AdapterName, Label, Probability


class MediaPolicy(StrEnum):
    """What becomes of the pictures, sound and documents of requests. Their bytes are never in an event."""

    DROP = "drop"
    KEEP = "keep"


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What every generator of random numbers takes."""
MAX_DAYS = 100_000
"""So far back the calendar goes from any day of ours."""
MAX_CHARS = 2_000_000
"""More than a text has that any engine reads."""


class TaskSection(BaseModel):
    """The base class of the YAML's sections: an unknown key is an error of the author, not a newer contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _switches_alone_are_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false as numbers: `retention_days: true` would delete all but a day."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        values = value if isinstance(value, list | tuple) else (value,)
        found = [item for item in values if isinstance(item, bool)]
        if found and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"found {str(found[0]).lower()}, which only a switch may be")
        return value


class Method(StrEnum):
    """How a candidate is trained. `docs/training.md` says what each needs and when it pays."""

    LORA = "lora"
    QLORA = "qlora"
    """LoRA on base weights in 4 bits (NF4, double quantisation): less memory where the base model is large."""
    FULL = "full"
    """All weights: the result is a model of its own, not an adapter."""
    FUSION = "fusion"
    """Published adapters of the same base model merged into one, without training."""


class Combination(StrEnum):
    """How PEFT's `add_weighted_adapter` merges adapters."""

    LINEAR = "linear"
    CAT = "cat"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare_linear"


class FusionSettings(TaskSection):
    """Which adapters `method: fusion` merges, and how."""

    adapters: tuple[AdapterName, ...] = Field(
        default=(), max_length=10, description="Published adapters, by name; at least two."
    )
    combination: Combination = Field(
        default=Combination.CAT,
        description="linear, svd, ties and dare_linear keep the rank; cat adds up the ranks, which the fleet's limit "
        "must allow.",
    )


class PreferenceSettings(TaskSection):
    """A second stage of training, on pairs of answers of which people preferred one: blind judgements and edits."""

    method: Literal["none", "dpo", "kto"] = "none"
    beta: float = Field(default=0.1, gt=0.0, le=10.0, description="The higher, the closer to what was trained before.")
    learning_rate: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="Empty: 5e-6, of models under a billion parameters 1e-4."
    )
    epochs: float = Field(default=1.0, gt=0.0, le=100.0)


class TrainingSettings(TaskSection):
    """How a candidate is trained. What is empty follows from the model and the number of rows: `docs/training.md`."""

    method: Method = Method.LORA
    start_from: Literal["base", "last"] = Field(
        default="base", description="base: on all rows, from the base model. last: from the adapter that serves."
    )
    r: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1, le=1024)
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0, description="Of LoRA; empty: 0.05, of small models 0.")
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    rslora: bool = Field(default=False, description="Scale by alpha over the root of r: for high ranks.")
    dora: bool = Field(
        default=False, description="Weight-decomposed LoRA. vLLM serves no such adapter: it is merged into a model."
    )
    loraplus_ratio: float | None = Field(
        default=None, ge=1.0, le=1_000.0, description="LoRA+: how much faster B learns than A; empty: as fast."
    )
    learning_rate: float | None = Field(default=None, gt=0.0, lt=1.0)
    epochs: float | None = Field(default=None, gt=0.0, le=100.0)
    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="Rows in memory at once; a small set's are one step, too."
    )
    accumulation: int | None = Field(default=None, ge=1, le=4096, description="Batches of a step.")
    max_length: int = Field(default=2048, ge=16, le=131_072, description="Tokens of prompt and answer together.")
    max_skipped_share: Probability = Field(
        default=0.05, description="Of rows over max_length, or that the chat template refuses: more stop the training."
    )
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.01, ge=0.0, lt=1.0)
    validation_share: float = Field(
        default=0.05,
        ge=0.0,
        le=0.5,
        description="Of the training rows, for the loss by which the best checkpoint is chosen; 0: the last one is "
        "taken. Never a row of the gates.",
    )
    liger: bool = Field(default=False, description="Liger kernels, on a GPU where they are installed.")
    fusion: FusionSettings = FusionSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    sweep_hours: float | None = Field(
        default=None, gt=0.0, le=1_000.0, description="Search settings for so long before each training; empty: never."
    )
    max_gpu_hours: float | None = Field(
        default=None,
        gt=0.0,
        le=1_000_000.0,
        description="A training that would take more is not started; on a CPU hours of the machine. Empty: no cap.",
    )
    seed: Seed = 20
    threads: int | None = Field(
        default=None, ge=1, le=1_024, description="CPU threads; empty: RATCHET_TRAINER_THREADS, else as measured."
    )

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        if self.method is Method.FUSION and len(set(self.fusion.adapters)) < 2:
            raise ValueError("method: fusion merges adapters: name two or more in training.fusion.adapters")
        if self.method is Method.FUSION and self.preferences.method != "none":
            raise ValueError("method: fusion has no steps for training.preferences to go on from; remove it")
        if self.dora and self.method in (Method.FULL, Method.FUSION):
            raise ValueError(f"training.dora is of LoRA and QLoRA, not of method: {self.method}; remove it")
        if self.sweep_hours is not None and (self.method is Method.FUSION or not self.is_adapter):
            raise ValueError("training.sweep_hours searches settings of LoRA and QLoRA, without DoRA; remove it")
        return self

    @property
    def is_adapter(self) -> bool:
        """Whether it ends as a LoRA adapter; else as a model of its own."""
        return self.method is not Method.FULL and not self.dora


class BalanceSettings(TaskSection):
    """What one source may contribute to a training set, and how far class weights go.

    A source over its share is weighed down, to 0.2 at the least; what that does not reach is left out (`capped`).
    """

    max_copies: int = Field(default=10, ge=1, le=1_000_000, description="Near-copies of one text that are trained on.")
    max_mode_share: Probability = Field(default=0.5, gt=0.0, description="Of one failure mode; 1: no limit.")
    max_user_share: Probability = Field(default=0.1, gt=0.0, description="Of the texts of one user; 1: no limit.")
    max_app_share: Probability = Field(default=0.9, gt=0.0, description="Of one application; 1: no limit.")
    max_reviewer_share: Probability = Field(default=0.9, gt=0.0, description="Of one reviewer; 1: no limit.")
    max_class_weight: float = Field(
        default=3.0,
        ge=1.0,
        le=5.0,
        description="Classes count up to so much more or less, so that they are as frequent as among audited answers; "
        "1: all the same.",
    )


class AugmentationSettings(TaskSection):
    """Which rows count more than once; each such row says so (`origin`)."""

    hard_negatives: bool = Field(
        default=False, description="Rows of a failure mode with another label than most of it count twice."
    )


class DatasetSettings(TaskSection):
    """The gates of a training set, and how it is split."""

    eval_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    min_examples: int = Field(
        default=50, ge=2, le=10_000_000, description="Fewer accepted training examples stop the cycle."
    )
    min_eval_examples: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Fewer held-out examples stop the cycle; empty: 10, fewer where min_examples and eval_share imply "
        "fewer.",
    )
    min_examples_per_label: int = Field(
        default=3, ge=1, le=10_000_000, description="A label with fewer is named and asked for; two must have them."
    )
    min_new_examples: int = Field(
        default=10,
        ge=0,
        le=10_000_000,
        description="A cycle with fewer new or changed examples than this since the last version is skipped; 0: never.",
    )
    max_rejected_share: Probability = 0.5
    max_held_back_share: Probability = Field(
        default=0.3, description="Of rows whose reviewer moves a class too far: they wait for another person."
    )
    max_voter_shift: float = Field(
        default=0.3,
        gt=0.0,
        le=1.0,
        description="A voter with a greater share of labels that others do not give to such answers is held back.",
    )
    min_agreement: Probability = Field(
        default=0.9, description="Of two reviewers who answer the same question without seeing each other's answer."
    )
    min_overlaps: int = Field(
        default=20, ge=1, le=1_000_000, description="Agreement on fewer questions is unknown and stops nothing."
    )
    max_noise_share: Probability = Field(
        default=0.15, description="Of labels that look wrong to a model that has not seen them; 1: no limit."
    )
    max_label_psi: float = Field(
        default=0.25,
        gt=0.0,
        le=100.0,
        description="Of the training rows' labels, weighted, against audited production's.",
    )
    balance: BalanceSettings = BalanceSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    min_answer_chars: int | None = Field(
        default=None,
        ge=1,
        le=MAX_CHARS,
        description="Shorter answers are rejected, but for tool calls; empty: 20 of a generation.",
    )
    max_answer_chars: int = Field(default=8_000, ge=1, le=MAX_CHARS)
    user_weight: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="Weight in training of a user's correction that no reviewer confirmed.",
    )
    near_copy_similarity: Probability = Field(
        default=0.8, gt=0.0, description="Jaccard of character 4-shingles from which two questions are near-copies."
    )
    user_part: Annotated[str, StringConstraints(max_length=500)] | None = Field(
        default=None,
        description="Regular expression of what of a conversation is the user's own (its first group, if it has one): "
        "by that alone near-copies are told. Empty: the last message of the user, and what came before it.",
    )
    max_age_days: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DAYS,
        description="Corrections of older predictions are deleted and not trained on; empty: never.",
    )
    seed: Seed = 20

    @field_validator("user_part")
    @classmethod
    def _user_part_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class FailureSettings(TaskSection):
    """Which predictions are suspects, and how they are clustered into failure modes."""

    confidence_threshold: Probability | None = Field(
        default=None,
        description="Below it, a prediction with a calibrated confidence is a suspect, and people are asked about it. "
        "Empty: a suspect below 0.6, asked about at or below the adapter's own threshold "
        "(evaluation.low_confidence_recall), below 0.6 where it has none.",
    )
    min_cluster_size: int = Field(default=8, ge=2, le=1_000_000)
    review_budget_per_day: int = Field(
        default=2_000,
        ge=0,
        le=1_000_000,
        description="Questions put to people in a day; up to a fifth more where traffic varies.",
    )
    audit_share: Probability = Field(
        default=0.01,
        description="Share of all answers, confident ones too, that people check, within half of the budget.",
    )
    overlap_share: Probability = Field(default=0.2, description="Share of questions that two reviewers answer.")


class Severity(TaskSection):
    """How bad one confusion is: what it costs to answer `answer` where `truth` is right. Any other wrong answer: 1."""

    truth: Label
    answer: Label
    weight: Probability = Field(description="0: as good as right; 1: as bad as any wrong answer.")


class RolloutSettings(TaskSection):
    """How much evidence (wealth) a candidate needs for more traffic. The statistics are in the deployer."""

    yearly_false_promotion: float = Field(default=0.05, ge=1e-6, lt=1.0, description="Alpha of a whole year.")
    cycles_per_year: int = Field(
        default=52, ge=1, le=8_784, description="A candidate draws at most one cycle's share of the year's alpha."
    )
    canary_wealth: float = Field(default=20.0, gt=1.0, le=1e9)
    canary_steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        default=(5, 25, 50),
        min_length=1,
        max_length=20,
        description="Percent of users in the canary, step by step: the first at `canary_wealth`, later ones and "
        "everyone only once the candidate is proven.",
    )
    min_canary_users: int = Field(
        default=25, ge=0, le=10_000, description="Users whom each step of the canary must have served before the next."
    )
    control_percent: int = Field(
        default=5,
        ge=1,
        le=50,
        description="Percent of users who stay on the previous adapter after a promotion, as control.",
    )
    control_days: float = Field(
        default=7.0,
        ge=0.0,
        le=60.0,
        description="Days of that; meanwhile guards go on and the next candidate waits. 0: none.",
    )
    non_inferiority: bool = Field(
        default=False,
        description="A candidate that is not shown to be better, but proven not to be worse by more than a margin, is "
        "promoted, too: two points in a year at most, all such promotions together.",
    )
    annotator_error: float = Field(
        default=0.05,
        ge=0.0,
        lt=0.5,
        description="Share of wrong labels, at most, for which the margin of `non_inferiority` allows.",
    )
    max_labels: int = Field(default=300, ge=1, le=10_000, description="Tickets on which people are asked, at most.")
    severity: tuple[Severity, ...] = Field(
        default=(),
        max_length=1_000,
        description="Confusions that are less bad than others. A label on a pair then bets production's cost minus the "
        "candidate's, from -1 to 1.",
    )
    max_days: int = Field(
        default=28,
        ge=1,
        le=365,
        description="Days in shadow, and again in the canary, after which a candidate ends unproven.",
    )
    approval: bool = Field(default=False, description="A person must approve the last step: `ratchet rollout promote`.")
    max_error_ratio: float = Field(
        default=1.5,
        gt=1.0,
        le=10.0,
        description="Maximum ratio of error rates, canary to primary; of shares of slow answers, too.",
    )
    max_complaint_ratio: float = Field(
        default=1.5, gt=1.0, le=10.0, description="The same of negative feedback, and of wrong answers in the audit."
    )
    shadow_percent: int = Field(default=100, ge=1, le=100, description="Share of requests replayed on the candidate.")
    shadow_requests_per_second: float = Field(
        default=20.0, gt=0.0, le=10_000.0, description="Replays a second, at most; further requests are left out."
    )
    shadow_tokens_per_day: int = Field(
        default=20_000_000,
        ge=1,
        le=10**12,
        description="Tokens of replays a UTC day, counted as production used them.",
    )

    @field_validator("canary_steps")
    @classmethod
    def _steps_rise(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"the steps of a canary rise from one to the next, not as {list(steps)}")
        return steps


class ExtraPattern(TaskSection):
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


class RedactionSettings(TaskSection):
    """How personal data is replaced by surrogates of the same shape before an event reaches Kafka."""

    enabled: bool = True
    names: bool = Field(default=True, description="Also names of people, found by a model; off: patterns only.")
    patterns: tuple[ExtraPattern, ...] = Field(default=(), max_length=20)
