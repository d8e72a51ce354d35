"""Tasks: what an application asks, on which base model, with which labels and thresholds.

One YAML file per task, which the scheduler reads from `<home>/tasks/*.yaml`, is parsed into `TaskSpec`; every change of
it is an event.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.adversarial import AdversarialKind
from schemas.base import Event, Identifier, Probability, ShortText, TaskName
from schemas.conversation import JsonObject
from schemas.golden import GoldenSet
from schemas.output_schema import MAX_FIELDS, MAX_SCHEMA_CHARS, FieldPath, fields_of
from schemas.tools import MAX_TOOLS, CallsPerAnswer, FunctionTool, ToolChoice, fields_of_tools

NO_TASK = "pass-through"
"""Stands in `requests.observed` for all models that are no task: no task may have this name."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]


class TaskKind(StrEnum):
    CLASSIFICATION = "classification"
    GENERATION = "generation"
    EXTRACTION = "extraction"
    TOOLS = "tools"


class Compare(StrEnum):
    """How a field's value is compared with the right one."""

    EXACT = "exact"
    CASEFOLD = "casefold"
    NORMALISED = "normalised"
    NUMBER = "number"
    DATE = "date"


_TEXTS = frozenset({"string"})
_COMPARED_TYPES = {
    Compare.CASEFOLD: _TEXTS, Compare.NORMALISED: _TEXTS, Compare.DATE: _TEXTS,
    Compare.NUMBER: frozenset({"number", "integer"}),
}  # fmt: skip
"""The types of fields that a comparison is for; an exact one is for all."""


class TextMetric(StrEnum):
    """How near generated text is to the right one, in [0, 1]. Those from `cosine` on need the sentence encoder."""

    EXACT_MATCH = "exact_match"
    TOKEN_F1 = "token_f1"  # noqa: S105 - the name of a metric
    ROUGE_1 = "rouge_1"
    ROUGE_2 = "rouge_2"
    ROUGE_L = "rouge_l"
    COSINE = "cosine"
    BERT_SCORE = "bert_score"


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


class BalanceSettings(_Section):
    """What one source may contribute to a training set, and how far class weights go.

    A source over its share is weighed down, to 0.2 at the least; what that does not reach is left out (`capped`).
    """

    max_copies: int = Field(default=10, ge=1, description="Near-copies of one text that are trained on.")
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


class AugmentationSettings(_Section):
    """What is trained on beside people's corrections; each such row says so (`origin`)."""

    audited: bool = Field(
        default=False,
        description="Answers that an audit showed right, so that the rest of production is not forgotten.",
    )
    hard_negatives: bool = Field(
        default=False, description="Rows of a failure mode with another label than most of it count twice."
    )


class DatasetSettings(_Section):
    """The gates of a training set, and how it is split."""

    eval_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    min_examples: int = Field(default=50, ge=2, description="Fewer accepted training examples stop the cycle.")
    min_eval_examples: int = Field(
        default=10, ge=1, description="Fewer held-out examples stop the cycle; less where min_examples implies less."
    )
    min_examples_per_label: int = Field(
        default=3, ge=1, description="A label with fewer is named and asked for; two must have them."
    )
    min_new_examples: int = Field(
        default=10,
        ge=0,
        description="A cycle with fewer new or changed examples than this since the last version is skipped; 0: never.",
    )
    max_rejected_share: Probability = 0.5
    max_held_back_share: Probability = Field(
        default=0.3, description="Of rows whose voter moves a class too far: they wait for a person."
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
        default=100, ge=1, description="Agreement on fewer questions is unknown and stops nothing."
    )
    max_noise_share: Probability = Field(
        default=0.2, description="Of labels that look wrong to a model that has not seen them; 1: no limit."
    )
    max_label_share: Probability = Field(default=0.95, description="Of one label among the training rows, weighted.")
    max_label_psi: float = Field(
        default=2.5, gt=0.0, description="Of the training rows' labels, weighted, against audited production's."
    )
    balance: BalanceSettings = BalanceSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    min_answer_chars: int | None = Field(
        default=None, ge=1, description="Shorter answers are rejected, but for tool calls; empty: 20 of a generation."
    )
    max_answer_chars: int = Field(default=8_000, ge=1)
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
        "by that alone near-copies are told. Empty: templates that many texts share are found.",
    )
    max_age_days: int | None = Field(
        default=None,
        ge=1,
        description="Corrections of older predictions are deleted and not trained on; empty: never.",
    )
    seed: int = 20

    @field_validator("user_part")
    @classmethod
    def _user_part_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class FailureSettings(_Section):
    """Which predictions are suspects, and how they are clustered into failure modes."""

    confidence_threshold: Probability = Field(
        default=0.6, description="Below it, a prediction is a suspect, if its confidence is calibrated."
    )
    min_cluster_size: int = Field(default=8, ge=2)
    min_samples: int = Field(default=2, ge=1)
    same_mode_cosine: Probability = Field(default=0.85, description="Minimum similarity of centroids of one mode.")
    review_budget_per_day: int = Field(
        default=2_000, ge=0, description="Questions put to people in a day; up to a fifth more where traffic varies."
    )
    audit_share: Probability = Field(
        default=0.01,
        description="Share of all answers, confident ones too, that people check, within half of the budget.",
    )
    overlap_share: Probability = Field(default=0.1, description="Share of questions that two reviewers answer.")


AttackText = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class AdversarialSettings(_Section):
    """Inputs that are made from held-out rows to see what misleads an arm. Texts given here are never trained on."""

    rows: int = Field(
        default=36,
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
    long_characters: int = Field(
        default=6_000, ge=100, le=2_000_000, description="Of a long input; less where the engine's context is shorter."
    )
    seed: int = 20


class JudgeSettings(_Section):
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
    min_pairs: int = Field(default=50, ge=10, le=1_000, description="Pairs with a person's preference, at least.")
    max_pairs: int = Field(default=200, ge=10, le=1_000, description="Of the newest ones, so many are judged.")
    max_requests: int = Field(
        default=1_000, ge=1, le=100_000, description="Requests of one evaluation, repeated ones included: two a pair."
    )
    timeout_seconds: float = Field(default=60.0, gt=0.0, le=3_600.0, description="Of one request.")
    max_seconds: float = Field(default=1_800.0, gt=0.0, le=86_400.0, description="Of all of them; then it goes on.")
    concurrency: int = Field(default=4, ge=1, le=100)

    @field_validator("key_variable")
    @classmethod
    def _key_is_not_ours(cls, name: str | None) -> str | None:
        if name is not None and name.startswith("RATCHET_") and not name.startswith("RATCHET_JUDGE_"):
            raise ValueError(f"{name} has a secret of Ratchet's own, which no judge may get; use RATCHET_JUDGE_KEY")
        return name

    @model_validator(mode="after")
    def _pairs_suffice(self) -> Self:
        if self.max_pairs < self.min_pairs:
            raise ValueError(f"max_pairs ({self.max_pairs}) is below min_pairs ({self.min_pairs})")
        return self


class EvaluationSettings(_Section):
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
        "was ever promoted.",
    )
    max_confidence_loss: Probability = Field(
        default=0.1, description="Shown loss of AUROC against production, in telling right answers from wrong ones."
    )
    max_failed_share: Probability = Field(default=0.02, description="Share of requests that failed or timed out.")
    low_confidence_recall: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="Share of the errors that is to lie at or below the low-confidence threshold of the report.",
    )
    adversarial: AdversarialSettings = AdversarialSettings()
    text_metric: TextMetric = Field(
        default=TextMetric.ROUGE_L,
        description="Of generated text: the score by which a candidate may not be worse; the others are shown.",
    )
    judge: JudgeSettings | None = Field(default=None, description="Of generated text; empty: none.")


class Severity(_Section):
    """How bad one confusion is: what it costs to answer `answer` where `truth` is right. Any other wrong answer: 1."""

    truth: Label
    answer: Label
    weight: Probability = Field(description="0: as good as right; 1: as bad as any wrong answer.")


class RolloutSettings(_Section):
    """How much evidence (wealth) a candidate needs for more traffic. The statistics are in the deployer."""

    yearly_false_promotion: float = Field(default=0.05, gt=0.0, lt=1.0, description="Alpha of a whole year.")
    cycles_per_year: int = Field(
        default=52, ge=1, description="A candidate draws at most one cycle's share of the year's alpha."
    )
    canary_wealth: float = Field(default=20.0, gt=1.0)
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
    max_labels: int = Field(default=300, ge=1, description="Tickets on which people are asked, at most.")
    severity: tuple[Severity, ...] = Field(
        default=(),
        max_length=1_000,
        description="Confusions that are less bad than others. A label on a pair then bets production's cost minus the "
        "candidate's, from -1 to 1.",
    )
    max_days: int = Field(
        default=28, ge=1, description="Days in shadow, and again in the canary, after which a candidate ends unproven."
    )
    approval: bool = Field(default=False, description="A person must approve the last step: `ratchet rollout promote`.")
    max_error_ratio: float = Field(default=1.5, gt=1.0, description="Maximum ratio of error rates, canary to primary.")
    max_complaint_ratio: float = Field(
        default=1.5, gt=1.0, description="The same of negative feedback, and of wrong answers in the audit."
    )
    shadow_percent: int = Field(default=100, ge=1, le=100, description="Share of requests replayed on the candidate.")
    shadow_requests_per_second: float = Field(
        default=20.0, gt=0.0, le=10_000.0, description="Replays a second, at most; further requests are left out."
    )
    shadow_tokens_per_day: int = Field(
        default=20_000_000, ge=1, description="Tokens of replays a UTC day, counted as production used them."
    )

    @field_validator("canary_steps")
    @classmethod
    def _steps_rise(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"the steps of a canary rise from one to the next, not as {list(steps)}")
        return steps


class Comparator(_Section):
    """How one field of an extraction is judged. Without one: equal as JSON, so that 1.0 is 1 and "A" is not "a"."""

    compare: Compare = Field(
        description="exact; casefold: texts without case and surplus space; normalised: their words alone, without "
        "case and punctuation; number: within `tolerance`; date: ISO dates and times of one day, or within "
        "`tolerance` days."
    )
    tolerance: float = Field(
        default=0.0, ge=0.0, description="Of a number: the most that it may be off; of a date: days."
    )

    @model_validator(mode="after")
    def _tolerance_has_a_unit(self) -> Self:
        if self.tolerance and self.compare not in (Compare.NUMBER, Compare.DATE):
            raise ValueError(f"`tolerance` is of numbers and dates, not of {self.compare}: leave it out")
        return self


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


class TaskSpec(_Section):
    """The complete specification of a task."""

    name: TaskName
    kind: TaskKind
    base_model: Identifier = "meta-llama/Llama-3.1-8B-Instruct"
    system_prompt: ShortText
    labels: tuple[Label, ...] = Field(default=(), max_length=500)
    renamed_labels: dict[Label, Label] = Field(
        default_factory=dict,
        max_length=500,
        description="Former label → label of today: corrections to a former label go on as corrections to the new one.",
    )
    output_schema: JsonObject | None = Field(
        default=None,
        description="JSON Schema of an extraction's answers, which they are constrained to; `schemas/output_schema.py` "
        "says what it may use.",
    )
    comparators: dict[FieldPath, Comparator] = Field(
        default_factory=dict,
        max_length=MAX_FIELDS,
        description="How fields of an extraction are judged, by path: `total`, `customer.name`, `items[].price`; of "
        "arguments behind their function's name: `book_room.date`.",
    )
    tools: tuple[FunctionTool, ...] = Field(
        default=(), max_length=MAX_TOOLS, description="The functions that a tools task's answers call."
    )
    tool_choice: ToolChoice = ToolChoice.REQUIRED
    calls_per_answer: CallsPerAnswer = CallsPerAnswer.ONE
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
    golden_file: Identifier | None = Field(
        default=None, description="JSON lines beside the YAML: the rows of the golden set, as people write them."
    )
    golden_set: GoldenSet | None = Field(
        default=None, description="The set that the scheduler published of `golden_file`; it is not in the YAML."
    )

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
        if self.kind is TaskKind.EXTRACTION and self.labels:
            raise ValueError("an extraction task has no labels; name them as `enum` of a field in `output_schema`")
        if self.kind is TaskKind.TOOLS and self.labels:
            raise ValueError("a tools task has no labels; its functions are in `tools`")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        confusions = [(severity.truth, severity.answer) for severity in self.rollout.severity]
        if unknown := sorted({label for confusion in confusions for label in confusion} - set(self.labels)):
            raise ValueError(f"rollout.severity names labels that the task does not have: {unknown}")
        if len(set(confusions)) != len(confusions) or any(truth == answer for truth, answer in confusions):
            raise ValueError("rollout.severity weighs each confusion of two different labels once")
        if gone := sorted(set(self.renamed_labels.values()) - set(self.labels)):
            raise ValueError(f"renamed_labels names labels that the task does not have: {gone}; add them to `labels`")
        if kept := sorted(set(self.renamed_labels) & set(self.labels)):
            raise ValueError(f"renamed_labels renames labels that the task still has: {kept}; take them out of one")
        return self

    @model_validator(mode="after")
    def _judge_fits_kind(self) -> Self:
        if self.evaluation.judge is not None and self.kind is not TaskKind.GENERATION:
            raise ValueError(
                f"`evaluation.judge` is of generation tasks, and answers of this {self.kind} task are right or wrong; "
                "remove it"
            )
        return self

    @model_validator(mode="after")
    def _schema_fits_kind(self) -> Self:
        if self.kind is not TaskKind.EXTRACTION:
            if self.output_schema is not None or (self.comparators and self.kind is not TaskKind.TOOLS):
                raise ValueError(
                    f"`output_schema` and `comparators` are of extraction tasks, and this is a {self.kind} task; "
                    "remove them or set kind: extraction"
                )
            return self
        if self.output_schema is None:
            raise ValueError("an extraction task needs `output_schema`, the JSON Schema of its answers")
        if len(json.dumps(self.output_schema)) > MAX_SCHEMA_CHARS:
            raise ValueError(f"output_schema: longer than {MAX_SCHEMA_CHARS:,} characters; shorten its descriptions")
        return self

    @model_validator(mode="after")
    def _tools_fit_kind(self) -> Self:
        if self.kind is not TaskKind.TOOLS:
            if self.tools:
                raise ValueError(f"`tools` are of tools tasks, and this is a {self.kind} task; set kind: tools")
            return self
        if not self.tools:
            raise ValueError("a tools task needs `tools`, the functions that its answers call")
        names = [tool.name for tool in self.tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tools: {', '.join(twice)} is there twice; names of functions must be unique")
        return self

    @model_validator(mode="after")
    def _comparators_fit_fields(self) -> Self:
        where = "tools" if self.kind is TaskKind.TOOLS else "output_schema"
        try:
            fields = self.output_fields
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        compared = {path: types for path, types in fields.items() if path not in self.functions}
        for path, comparator in self.comparators.items():
            if path not in compared:
                raise ValueError(
                    f"comparators: {path!r} is no field of {where}; its fields: {', '.join(list(compared)[:50])}"
                )
            wanted = _COMPARED_TYPES.get(comparator.compare)
            if wanted and not compared[path] & wanted:
                raise ValueError(
                    f"comparators: {path!r} is compared as {comparator.compare}, which is for "
                    f"{' and '.join(sorted(wanted))}; its type is {', '.join(sorted(compared[path])) or 'not given'}"
                )
        return self

    @cached_property
    def output_fields(self) -> dict[str, frozenset[str]]:
        """What is judged of an answer by itself, with the JSON types of its values: the fields of an extraction, the
        functions and arguments of calls; nothing of other kinds."""
        if self.kind is TaskKind.TOOLS:
            return fields_of_tools(self.tools)
        return {} if self.output_schema is None else fields_of(self.output_schema)

    @cached_property
    def functions(self) -> dict[str, FunctionTool]:
        """The functions of a tools task, by name."""
        return {tool.name: tool for tool in self.tools}

    @property
    def min_answer_chars(self) -> int:
        """Fewest characters of an answer that is trained on: of a label 1, of a generation 20, unless set."""
        usual = 20 if self.kind is TaskKind.GENERATION else 1
        return self.dataset.min_answer_chars or usual

    @property
    def revision(self) -> str:
        """Hash (12 hex digits) of what makes answers comparable: kind, base model, prompt, labels, schema,
        tools; not thresholds."""
        comparable: dict[str, Any] = {
            "kind": self.kind, "base_model": self.base_model, "system_prompt": self.system_prompt,
            "labels": sorted(self.labels),
        }  # fmt: skip
        if self.output_schema is not None:
            comparable["output_schema"] = self.output_schema
        if self.tools:
            comparable["tools"] = [tool.model_dump(mode="json") for tool in self.tools]
            comparable["tool_choice"], comparable["calls_per_answer"] = self.tool_choice, self.calls_per_answer
        return hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest()[:12]


class TaskChanged(Event):
    """A task was created or changed. Compacted: the last value per task holds. Key: task."""

    spec: TaskSpec
