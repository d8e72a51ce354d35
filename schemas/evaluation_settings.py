"""The section `evaluation` of a task's YAML: its gates, what misleads, and a judge of generated text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from schemas.adversarial import AdversarialKind
from schemas.base import Identifier, Label, Probability, ShortText
from schemas.task_settings import TaskSection


class TextMetric(StrEnum):
    """How near generated text is to the right one, in [0, 1]. `cosine` needs the sentence encoder."""

    EXACT_MATCH = "exact_match"
    TOKEN_F1 = "token_f1"  # noqa: S105 - the name of a metric
    ROUGE_1 = "rouge_1"
    ROUGE_2 = "rouge_2"
    ROUGE_L = "rouge_l"
    COSINE = "cosine"


AttackText = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class AdversarialSettings(TaskSection):
    """Inputs that are made from held-out rows to see what misleads an arm. Texts given here are never trained on."""

    rows: int = Field(
        default=48,
        ge=0,
        le=1_000,
        description="Held-out rows that are asked again in each way of changing them; 0: no adversarial set.",
    )
    kinds: tuple[AdversarialKind, ...] = Field(
        default=tuple(AdversarialKind), description="Of them, empty and foreign inputs are of classifications only."
    )
    injections: tuple[AttackText, ...] = Field(
        default=(),
        max_length=200,
        description="Injections of your own, beside ours; {target} stands for what they ask the model to answer; "
        "one without it is obeyed if the answer changes.",
    )
    out_of_distribution: tuple[AttackText, ...] = Field(
        default=(), max_length=200, description="Foreign texts of your own in place of ours; empty: ours."
    )
    catch_all_labels: tuple[Label, ...] = Field(
        default=(),
        max_length=20,
        description="Labels for what is none of the others, such as `other`: right to empty and foreign inputs.",
    )


class JudgeSettings(TaskSection):
    """A model that compares generated texts, behind any OpenAI-compatible API.

    It is shown, and stops nothing until it is certified: until its agreement with people's own blind comparisons is
    shown to be as high as `min_agreement`.
    """

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@?#]+$", max_length=1_000)] = Field(
        description="Of the API, such as https://api.openai.com/v1; no credentials in it. It gets redacted texts."
    )
    model: Identifier
    key_variable: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")] | None = Field(
        default=None, description="Environment variable of the evaluator that has the key; empty: no key."
    )
    criterion: ShortText = Field(
        default="Which answer serves the user better: correct, complete, and without needless words?",
        description="What is asked about two answers.",
    )
    min_agreement: float = Field(
        default=0.8, ge=0.5, le=1.0, description="Lower 95 % bound of its agreement with people, to be certified."
    )
    max_requests: int = Field(
        default=1_000, ge=1, le=100_000, description="Requests of one evaluation, repeated ones included: two a pair."
    )
    concurrency: int = Field(default=4, ge=1, le=100)

    @field_validator("key_variable")
    @classmethod
    def _key_is_not_ours(cls, name: str | None) -> str | None:
        if name is not None and name.startswith("RATCHET_") and not name.startswith("RATCHET_JUDGE_"):
            raise ValueError(f"{name} has a secret of Ratchet's own, which no judge may get; use RATCHET_JUDGE_KEY")
        return name


class EvaluationSettings(TaskSection):
    """The offline gates, which stop a candidate that is worse before it answers a single live input.

    That it is better is no condition: few rows can show it, and the test on live traffic will.
    """

    min_gain: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        description="Minimum gain over production as measured; empty: none, it must only not be shown to be worse.",
    )
    min_accuracy: Probability = Field(default=0.0, description="0: no such gate.")
    better_than_chance: bool = Field(
        default=True, description="Answers must have to do with the questions; labels only."
    )
    max_golden_net_loss: Probability = Field(
        default=0.05,
        description="Share of golden answers lost minus gained, against the best of production and of any adapter that "
        "was ever promoted; where that is less than two rows, one row more.",
    )
    golden_score: Probability | None = Field(
        default=None,
        gt=0.0,
        description="Of generated text: the score by text_metric (ROUGE-L where that is cosine) from "
        "which an answer to a golden question counts as right. Empty: golden texts stop nothing, and the report says "
        "so.",
    )
    max_confidence_loss: Probability = Field(
        default=0.1, description="Shown loss of AUROC against production, in telling right answers from wrong ones."
    )
    max_failed_share: Probability = Field(default=0.02, description="Share of requests that failed or timed out.")
    low_confidence_recall: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="Share of an adapter's errors that is to lie at or below its threshold of low confidence.",
    )
    adversarial: AdversarialSettings = AdversarialSettings()
    text_metric: TextMetric = Field(
        default=TextMetric.ROUGE_L,
        description="Of generated text: the score by which a candidate may not be worse; the others are shown.",
    )
    judge: JudgeSettings | None = Field(default=None, description="Of generated text; empty: none.")
