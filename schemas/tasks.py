"""Tasks: what an application asks, on which base model, with which labels and thresholds.

One YAML file per task, which the scheduler reads from `<home>/tasks/*.yaml`, is parsed into `TaskSpec`; every change of
it is an event.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from schemas.base import Event, Identifier, Label, ShortText, TaskName
from schemas.conversation import JsonObject
from schemas.evaluation_settings import EvaluationSettings
from schemas.golden import GoldenSet
from schemas.output_schema import MAX_FIELDS, MAX_SCHEMA_CHARS, FieldPath, fields_of
from schemas.task_settings import (
    MAX_DAYS,
    DatasetSettings,
    FailureSettings,
    MediaPolicy,
    RedactionSettings,
    RolloutSettings,
    TaskSection,
    TrainingSettings,
)
from schemas.tools import MAX_TOOLS, CallsPerAnswer, FunctionTool, ToolChoice, fields_of_tools

NO_TASK = "pass-through"
"""Stands in `requests.observed` for all models that are no task: no task may have this name."""


class TaskKind(StrEnum):
    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    GENERATION = "generation"
    EXTRACTION = "extraction"
    TOOLS = "tools"

    @property
    def has_labels(self) -> bool:
        return self in (TaskKind.CLASSIFICATION, TaskKind.MULTI_LABEL)


_KINDS_OF = {
    "labels": (TaskKind.CLASSIFICATION, TaskKind.MULTI_LABEL),
    "max_labels_per_answer": (TaskKind.MULTI_LABEL,),
    "output_schema": (TaskKind.EXTRACTION,),
    "comparators": (TaskKind.EXTRACTION, TaskKind.TOOLS),
    "tools": (TaskKind.TOOLS,),
    "evaluation.judge": (TaskKind.GENERATION,),
    "evaluation.golden_score": (TaskKind.GENERATION,),
}
"""The kinds of tasks that a setting is of."""
_NEEDED_BY = {name: _KINDS_OF[name] for name in ("labels", "output_schema", "tools")}


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


class Comparator(TaskSection):
    """How one field of an extraction is judged. Without one: equal as JSON, so that 1.0 is 1 and "A" is not "a"."""

    compare: Compare = Field(
        description="exact; casefold: texts without case and surplus space; normalised: their words alone, without "
        "case and punctuation; number: within `tolerance`; date: ISO dates and times of one day, or within "
        "`tolerance` days."
    )
    tolerance: float = Field(
        default=0.0, ge=0.0, le=1e15, description="Of a number: the most that it may be off; of a date: days."
    )

    @model_validator(mode="after")
    def _tolerance_has_a_unit(self) -> Self:
        if self.tolerance and self.compare not in (Compare.NUMBER, Compare.DATE):
            raise ValueError(f"`tolerance` is of numbers and dates, not of {self.compare}: leave it out")
        return self


class TaskSpec(TaskSection):
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
    max_labels_per_answer: int | None = Field(
        default=None,
        ge=1,
        le=MAX_FIELDS,
        description=f"Most labels of one multi-label answer, which may have none; empty: all, up to {MAX_FIELDS}.",
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
        default=240, ge=1, le=525_600, description="A step without progress for longer is reported as late."
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
        le=MAX_DAYS,
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
    def _settings_fit_kind(self) -> Self:
        """Each kind of answers needs what describes it, and takes nothing that describes others."""
        given = {name: attrgetter(name)(self) not in (None, (), {}) for name in _KINDS_OF}
        for name, kinds in _KINDS_OF.items():
            if given[name] and self.kind not in kinds:
                raise ValueError(
                    f"`{name}` is of {' and '.join(kinds)} tasks, and this is a {self.kind} task; remove it or set "
                    f"kind: {kinds[0]}"
                )
        for name, kinds in _NEEDED_BY.items():
            if self.kind in kinds and not given[name]:
                raise ValueError(f"a {self.kind} task needs `{name}`")
        if self.kind.has_labels and len(self.labels) < 2:
            raise ValueError(f"a {self.kind} task needs at least two labels")
        return self

    @model_validator(mode="after")
    def _labels_are_consistent(self) -> Self:
        if twice := sorted(label for label, times in Counter(self.labels).items() if times > 1):
            raise ValueError(f"labels: {', '.join(twice)} is there twice; each must be unique")
        confusions = [(severity.truth, severity.answer) for severity in self.rollout.severity]
        if unknown := sorted({label for confusion in confusions for label in confusion} - set(self.labels)):
            raise ValueError(f"rollout.severity names labels that the task does not have: {unknown}")
        if len(set(confusions)) != len(confusions) or any(truth == answer for truth, answer in confusions):
            raise ValueError("rollout.severity weighs each confusion of two different labels once")
        if unknown := sorted(set(self.evaluation.adversarial.catch_all_labels) - set(self.labels)):
            raise ValueError(
                f"evaluation.adversarial.catch_all_labels names labels that the task does not have: {unknown}"
            )
        if gone := sorted(set(self.renamed_labels.values()) - set(self.labels)):
            raise ValueError(f"renamed_labels names labels that the task does not have: {gone}; add them to `labels`")
        if kept := sorted(set(self.renamed_labels) & set(self.labels)):
            raise ValueError(f"renamed_labels renames labels that the task still has: {kept}; take them out of one")
        return self

    @model_validator(mode="after")
    def _sets_of_labels_are_possible(self) -> Self:
        if (self.max_labels_per_answer or 0) > len(self.labels):
            raise ValueError(f"max_labels_per_answer is more than the task's {len(self.labels)} labels: lower it")
        if self.kind is TaskKind.MULTI_LABEL and self.rollout.severity:
            raise ValueError(
                "rollout.severity weighs one label in the place of another, and answers of a multi-label task have "
                "several; remove it"
            )
        return self

    @model_validator(mode="after")
    def _schemas_are_possible(self) -> Self:
        if len(json.dumps(self.output_schema)) > MAX_SCHEMA_CHARS:
            raise ValueError(f"output_schema: longer than {MAX_SCHEMA_CHARS:,} characters; shorten its descriptions")
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

    @property
    def choices(self) -> tuple[str, ...]:
        """The labels of which every answer is exactly one; empty of other kinds."""
        return self.labels if self.kind is TaskKind.CLASSIFICATION else ()

    @cached_property
    def answer_schema(self) -> JsonObject | None:
        """The JSON Schema that answers are constrained to: an extraction's, or that of a list of labels; None: no JSON.

        Engines cannot keep an item from coming twice (xgrammar knows no `uniqueItems`): a list is read as a set.
        """
        if self.kind is not TaskKind.MULTI_LABEL:
            return self.output_schema
        most = self.max_labels_per_answer or min(len(self.labels), MAX_FIELDS)
        return {"type": "array", "items": {"type": "string", "enum": list(self.labels)}, "maxItems": most}

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
        return _short_hash(comparable | self._answer_rules)

    @property
    def answer_form(self) -> str:
        """Hash (12 hex digits) of what of the revision decides whether a text is an answer, labels aside."""
        return _short_hash(self._answer_rules)

    @property
    def _answer_rules(self) -> dict[str, Any]:
        rules: dict[str, Any] = {}
        if self.output_schema is not None:
            rules["output_schema"] = self.output_schema
        if self.max_labels_per_answer is not None:
            rules["max_labels_per_answer"] = self.max_labels_per_answer
        if self.tools:
            rules["tools"] = [tool.model_dump(mode="json") for tool in self.tools]
            rules["tool_choice"], rules["calls_per_answer"] = self.tool_choice, self.calls_per_answer
        return rules


def _short_hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class TaskChanged(Event):
    """A task was created or changed. Compacted: the last value per task holds. Key: task."""

    spec: TaskSpec
