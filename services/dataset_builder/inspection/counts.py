"""The gates that count rows: how many there are, of which labels, and what was left out. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

from schemas.base import Gate
from schemas.conversation import input_text
from schemas.datasets import Example, Fate, LeftOutExample, Origin
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskSpec
from services.dataset_builder.building.places import Exclusions
from services.dataset_builder.building.votes import USER_CORRECTION
from services.dataset_builder.checks.distribution import weights_by_label
from services.dataset_builder.checks.poisoning import MOVES_CLASS
from services.dataset_builder.pipeline import Dataset
from shared.answers import answer_form
from shared.conversation import NEVER_TRAINED
from shared.model.texts import text_hash

MAX_DETAIL = 2_000
_USUALLY_HELD_OUT = 10
_MAX_EXCLUDED_SHARE = 0.1
_SHOWN_LEAKS = 10


def min_examples(dataset: Dataset, spec: TaskSpec) -> Gate:
    count, minimum = len(dataset.train), spec.dataset.min_examples
    return Gate(
        name="min_examples", passed=count >= minimum, measured=count, required=f">= {minimum} training examples"
    )


def min_eval_examples(dataset: Dataset, spec: TaskSpec) -> Gate:
    count, minimum = len(dataset.eval), fewest_held_out(spec.dataset)
    unconfirmed = sum(1 for example in dataset.train if example.origin is Origin.USER)
    detail = f"{unconfirmed} training rows are users' own corrections; only what a reviewer stands for is held out"
    return Gate(
        name="min_eval_examples",
        passed=count >= minimum,
        measured=count,
        required=f">= {minimum} held-out examples",
        detail=detail if unconfirmed else "",
    )


def fewest_held_out(rules: DatasetSettings) -> int:
    """Return the setting; where it is empty 10, or less if the smallest set allowed has fewer to hold out."""
    if rules.min_eval_examples is not None:
        return rules.min_eval_examples
    implied = math.floor(rules.min_examples * rules.eval_share / (1.0 - rules.eval_share))
    return max(1, min(_USUALLY_HELD_OUT, implied))


def max_rejected_share(dataset: Dataset, spec: TaskSpec) -> Gate:
    """What is no defect of the data does not count: pictures that cannot be trained on, copies, older opinions.

    Nor does what users alone wrote: one who sends a hundred words of thanks would stop every cycle.
    """
    bad = sum(
        1 for row in dataset.left_out
        if row.fate is Fate.REJECTED and row.reason not in NEVER_TRAINED and not _is_by_users(row)
    )  # fmt: skip
    total = bad + len(dataset.train) + len(dataset.eval)
    reasons = ", ".join(f"{reason} {count}" for reason, count in dataset.left_out_by_reason().items())
    return _share("max_rejected_share", bad, total, spec.dataset.max_rejected_share, reasons)


def max_held_back_share(dataset: Dataset, spec: TaskSpec) -> Gate:
    """Only rows that are held back because of the reviewer who labelled them.

    What users alone wrote is named, and does not count: it waits, and one who floods a label would stop every cycle.
    """
    held = [row for row in dataset.left_out if (row.fate, row.reason) == (Fate.HELD_BACK, MOVES_CLASS)]
    by_reviewers = sum(1 for row in held if not _is_by_users(row))
    total = by_reviewers + len(dataset.train) + len(dataset.eval)
    detail = "; ".join(dict.fromkeys(sorted(row.detail for row in held)))
    return _share("max_held_back_share", by_reviewers, total, spec.dataset.max_held_back_share, detail)


def leakage(dataset: Dataset, frozen: Collection[str], exclusions: Exclusions, prompt: str = "") -> Gate:
    """Training rows that are held out, too (the same prediction, text or group of near-copies), and golden questions.

    `frozen`: hashes of texts that no row may have. `prompt`: the task's system prompt, which is in no text. Where
    near-copies of held-out rows are a good part of all rows, the detail names what causes it.
    """
    golden, prompts = frozenset(frozen), (prompt,)
    texts_of_eval = [_text_hash(example, prompts) for example in dataset.eval]
    predictions = {name for example in dataset.eval for name in example.prediction_ids}
    groups, texts = {example.group for example in dataset.eval}, golden.union(texts_of_eval)
    leaks = [
        example.example_id
        for example in dataset.train
        if example.group in groups
        or not predictions.isdisjoint(example.prediction_ids)
        or _text_hash(example, prompts) in texts
    ]
    leaks += [e.example_id for e, text in zip(dataset.eval, texts_of_eval, strict=True) if text in golden]
    return Gate(
        name="leakage",
        passed=not leaks,
        measured=len(leaks),
        required="0 training examples that are held out, 0 golden or adversarial questions",
        detail=", ".join(leaks[:_SHOWN_LEAKS]) or _excluded(exclusions),
    )


def _excluded(exclusions: Exclusions) -> str:
    if exclusions.share <= _MAX_EXCLUDED_SHARE:
        return ""
    return (
        f"{exclusions.share:.0%} of the rows are left out as near-copies of held-out ones, or as turns of their "
        f"conversations, {exclusions.caused} of {exclusions.rows} of {exclusions.cause}: the report quotes some. Texts "
        "may share a template: dataset.user_part says which part of such a text counts"
    )


def labels_to_learn(dataset: Dataset, spec: TaskSpec) -> Gate:
    """A set that has only one label teaches to say it always. A rare label stops nothing: it is named and asked for."""
    minimum = spec.dataset.min_examples_per_label
    counts, form = Counter[str](), answer_form(spec)
    for answer, count in Counter([example.answer for example in dataset.train]).items():
        counts.update(dict.fromkeys(form.labels(answer) or (), count))
    enough = sum(1 for label in spec.labels if counts[label] >= minimum)
    few = [f"{label} {counts[label]}" for label in spec.labels if 0 < counts[label] < minimum]
    missing = [label for label in spec.labels if not counts[label]]
    parts = [f"collect more of: {', '.join(few)}"] if few else []
    parts += [f"none of: {', '.join(missing)}"] if missing else []
    return Gate(
        name="labels_to_learn",
        passed=enough >= 2,
        measured=enough,
        required=f">= 2 labels with >= {minimum} training examples",
        detail="; ".join(parts)[:MAX_DETAIL],
    )


def max_label_share(dataset: Dataset, spec: TaskSpec) -> Gate:
    """The share of the training rows that have the commonest label, by weight."""
    weighted = answer_form(spec).counts_by_label(weights_by_label(dataset.train))
    total = sum(example.weight for example in dataset.train)
    loudest = max(sorted(weighted), key=lambda label: weighted[label], default="")
    most = weighted.get(loudest, 0.0)  # Of several labels no row may have any.
    share = most / total if total else 0.0
    maximum = spec.dataset.max_label_share
    others = math.ceil(most * (1.0 - maximum) / maximum) if share > maximum > 0.0 else 0
    missing = max(1, others - round(total - most)) if share > maximum else 0
    return Gate(
        name="max_label_share",
        passed=share <= maximum,
        measured=round(share, 4),
        required=f"<= {maximum} of one label",
        detail=f"{loudest}: collect {missing} more examples without it" if missing else loudest,
    )


def _is_by_users(row: LeftOutExample) -> bool:
    """Return True for what no reviewer has given."""
    return all(name.startswith(USER_CORRECTION) for name in row.correction_ids)


def _share(name: str, count: int, total: int, maximum: float, detail: str) -> Gate:
    share = count / total if total else 0.0
    return Gate(
        name=name,
        passed=share <= maximum,
        measured=round(share, 4),
        required=f"<= {maximum}",
        detail=detail[:MAX_DETAIL],
    )


def _text_hash(example: Example, prompts: Collection[str]) -> str:
    return text_hash(input_text(example.prompt, prompts))
