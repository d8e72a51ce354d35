"""Reads answers with several labels: JSON lists of the task's labels. Order and repetition say nothing. Pure."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping

from schemas.tasks import TaskKind, TaskSpec
from shared.grading.json_values import json_or_nothing, read_json

_SHOWN_CHARS = 100
_SHOWN_LABELS = 20


def label_set(text: str) -> frozenset[str] | None:
    """Return the labels of an answer, whichever they are; None if it is no JSON list of texts."""
    value = json_or_nothing(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return frozenset(value)


def set_of_one(word: str, spec: TaskSpec) -> str:
    """Return what a user wrote that an answer of a multi-label task should have been, as such an answer.

    A user names one label as it is called, also by a former name; anything else stays as it is. Reviewers are shown all
    labels, and give a list.
    """
    is_label = word in spec.labels or word in spec.renamed_labels
    return json.dumps([word], ensure_ascii=False) if is_label else word


def labels_of(text: str, spec: TaskSpec) -> frozenset[str] | None:
    """Return which of the task's labels an answer has: one, or several or none of a multi-label task.

    None: it is no answer of such a task.
    """
    if spec.kind is TaskKind.CLASSIFICATION:
        return frozenset({text}) if text in spec.labels else None
    found = label_set(text) if spec.kind is TaskKind.MULTI_LABEL else None
    return found if found is not None and found.issubset(spec.labels) else None


def counts_by_label(answers: Mapping[str, float], spec: TaskSpec) -> dict[str, float]:
    """Return how often each label is given, of how often each answer is; what is no answer of the task stays."""
    found = defaultdict[str, float](float)
    for answer, count in answers.items():
        labels = labels_of(answer, spec)
        for label in {answer} if labels is None else labels:
            found[label] += count
    return dict(found)


def counts_by_set(answers: Mapping[str, int], spec: TaskSpec) -> dict[str, int]:
    """Return how often each answer is given, in one spelling; those of other kinds as they are."""
    found = Counter[str]()
    for answer, count in answers.items():
        is_set = spec.kind is TaskKind.MULTI_LABEL and labels_of(answer, spec) is not None
        found[canonical_labels(answer, spec) if is_set else answer] += count
    return dict(found)


def read_labels(text: str, spec: TaskSpec) -> list[str]:
    """Return the labels of an answer in the task's order, each once; empty: none of them fits.

    Raises ValueError for what is no list of the task's labels, or has more than an answer may.
    """
    try:
        value = read_json(text)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}): {_form(spec)}") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"no list of labels: {_form(spec)}")
    found = frozenset(value)
    if unknown := sorted(found.difference(spec.labels)):
        more = len(spec.labels) - _SHOWN_LABELS
        known = ", ".join(spec.labels[:_SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(f"{unknown[0][:_SHOWN_CHARS]!r} is not a label of the task; its labels: {known}")
    most = (spec.answer_schema or {}).get("maxItems")
    if isinstance(most, int) and len(found) > most:
        raise ValueError(f"{len(found)} labels; an answer has at most {most}")
    return [label for label in spec.labels if label in found]


def canonical_labels(text: str, spec: TaskSpec) -> str:
    """Return an answer in the spelling that is trained on: equal sets are equal texts. Raises ValueError as above."""
    return json.dumps(read_labels(text, spec), ensure_ascii=False)


def _form(spec: TaskSpec) -> str:
    return f"expected a JSON list of labels, such as {json.dumps(spec.labels[:2], ensure_ascii=False)}"
