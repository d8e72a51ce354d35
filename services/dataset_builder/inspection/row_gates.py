"""The gates that count rows: how many there are, what was left out, what is where it must not be. Pure."""

from __future__ import annotations

import math

from schemas.base import Gate
from schemas.conversation import input_text
from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.task_settings import DatasetSettings
from services.dataset_builder.building.places import Exclusions
from services.dataset_builder.building.votes import USER_CORRECTION
from services.dataset_builder.checks.poisoning import MOVES_CLASS
from services.dataset_builder.inspection.gate import DatasetGate, Inspection
from shared.conversation import NEVER_TRAINED
from shared.model.texts import text_hash

DEFAULT = DatasetSettings()
_USUALLY_HELD_OUT = 10
_MAX_EXCLUDED_SHARE = 0.1
_SHOWN_LEAKS = 10


class MinExamples(DatasetGate):
    name = "min_examples"
    title = "Enough training examples"
    reads = "training rows"
    bar = f"≥ `min_examples` ({DEFAULT.min_examples})"
    source = "seed: on fewer rows an adapter learns little"
    remedy = "Have more answers corrected in the console, or lower dataset.min_examples."

    def measure(self, inspected: Inspection) -> Gate:
        count, minimum = len(inspected.dataset.train), inspected.spec.dataset.min_examples
        return self.gate(count >= minimum, count, f">= {minimum} training examples")


class MinEvalExamples(DatasetGate):
    name = "min_eval_examples"
    title = "Enough held-out examples"
    reads = "held-out rows"
    bar = f"≥ `min_eval_examples` ({_USUALLY_HELD_OUT}, or fewer with a low `min_examples`)"
    source = "seed: with fewer no gate of a candidate can decide"
    remedy = (
        "Have more answers corrected in the console, or raise dataset.eval_share. If all questions are nearly the "
        "same, say by dataset.user_part what differs."
    )

    def measure(self, inspected: Inspection) -> Gate:
        count, minimum = len(inspected.dataset.eval), fewest_held_out(inspected.spec.dataset)
        unconfirmed = sum(1 for example in inspected.dataset.train if example.origin is Origin.USER)
        detail = f"{unconfirmed} training rows are users' own corrections; only what a reviewer stands for is held out"
        return self.gate(count >= minimum, count, f">= {minimum} held-out examples", detail if unconfirmed else "")


def fewest_held_out(rules: DatasetSettings) -> int:
    """Return the setting; where it is empty 10, or less if the smallest set allowed has fewer to hold out."""
    if rules.min_eval_examples is not None:
        return rules.min_eval_examples
    implied = math.floor(rules.min_examples * rules.eval_share / (1.0 - rules.eval_share))
    return max(1, min(_USUALLY_HELD_OUT, implied))


class MaxRejectedShare(DatasetGate):
    """What is no defect of the data does not count: pictures that cannot be trained on, copies, older opinions.

    Nor does what users alone wrote: one who sends a hundred words of thanks would stop every cycle.
    """

    name = "max_rejected_share"
    title = "Few rows rejected"
    reads = "share of reviewed rows that are rejected"
    bar = f"≤ `max_rejected_share` ({DEFAULT.max_rejected_share})"
    source = "seed: more means that something is set up wrongly"
    remedy = "Look at the reasons: answer the open tie-breaks, or raise dataset.max_rejected_share."

    def measure(self, inspected: Inspection) -> Gate:
        dataset = inspected.dataset
        bad = sum(
            1 for row in dataset.left_out
            if row.fate is Fate.REJECTED and row.reason not in NEVER_TRAINED and not _is_by_users(row)
        )  # fmt: skip
        reasons = ", ".join(f"{reason} {count}" for reason, count in dataset.left_out_by_reason().items())
        return _share(self, bad, inspected, inspected.spec.dataset.max_rejected_share, reasons)


class MaxHeldBackShare(DatasetGate):
    """Only rows that are held back because of the reviewer who labelled them.

    What users alone wrote is named, and does not count: it waits, and one who floods a label would stop every cycle.
    """

    name = "max_held_back_share"
    title = "Few rows held back because of who labelled them"
    tasks = "labels"
    reads = "share of rows held back because of their reviewer"
    bar = f"≤ `max_held_back_share` ({DEFAULT.max_held_back_share})"
    source = "seed: what is left is no longer what people said"
    remedy = "Have a second person label the rows that are held back, or raise dataset.max_voter_shift."

    def measure(self, inspected: Inspection) -> Gate:
        left_out = inspected.dataset.left_out
        held = [row for row in left_out if (row.fate, row.reason) == (Fate.HELD_BACK, MOVES_CLASS)]
        by_reviewers = sum(1 for row in held if not _is_by_users(row))
        detail = "; ".join(dict.fromkeys(sorted(row.detail for row in held)))
        return _share(self, by_reviewers, inspected, inspected.spec.dataset.max_held_back_share, detail)


class Leakage(DatasetGate):
    """Training rows that are held out, too: the same prediction, conversation or unseen text; and golden questions.

    A *seen* held-out text may be trained on: production is asked it again, and so is the model. Where near-copies of
    unseen rows are a good part of all rows, the detail names what causes it.
    """

    name = "leakage"
    title = "Nothing held out is trained on"
    reads = "training rows that are held out, or in a held-out conversation; unseen, golden and adversarial questions"
    bar = "0"
    source = "a row that was trained on measures nothing"
    remedy = "Report it: it is a fault of the builder."

    def measure(self, inspected: Inspection) -> Gate:
        dataset, golden = inspected.dataset, inspected.measures.frozen
        prompts = (inspected.spec.system_prompt,)
        held_out = [text_hash(input_text(example.prompt, prompts)) for example in dataset.eval]
        predictions = {name for example in dataset.eval for name in example.prediction_ids}
        unseen = {text for example, text in zip(dataset.eval, held_out, strict=True) if not example.seen}
        groups, forbidden = {example.group for example in dataset.eval}, golden | unseen
        leaks = [
            example.example_id
            for example in dataset.train
            if example.group in groups
            or not predictions.isdisjoint(example.prediction_ids)
            or text_hash(input_text(example.prompt, prompts)) in forbidden
        ]
        leaks += [e.example_id for e, text in zip(dataset.eval, held_out, strict=True) if text in golden]
        return self.gate(
            not leaks,
            len(leaks),
            "0 training examples that are held out, 0 golden or adversarial questions",
            ", ".join(leaks[:_SHOWN_LEAKS]) or _excluded(inspected.measures.exclusions),
        )


class NoPersonalData(DatasetGate):
    name = "personal_data"
    title = "No personal data"
    reads = "corrections with personal data left"
    bar = "0"
    source = "no text of a person is stored in clear"
    remedy = "Look at what the redactor leaves in these rows: its patterns are the task's `redaction`."

    def measure(self, inspected: Inspection) -> Gate:
        found = inspected.personal_data
        replaced = ", ".join(f"{kind} {count}" for kind, count in sorted(found.kinds.items()))
        return self.gate(
            found.left == 0,
            found.left,
            "0 corrections with personal data after the pass",
            f"replaced in {found.changed} corrections: {replaced}" if replaced else "",
        )


def _excluded(exclusions: Exclusions) -> str:
    if exclusions.share <= _MAX_EXCLUDED_SHARE:
        return ""
    return (
        f"{exclusions.share:.0%} of the rows are left out as near-copies of unseen held-out ones, "
        f"{exclusions.caused} of {exclusions.rows} of {exclusions.cause}: the report quotes some. Texts "
        "may share a template: dataset.user_part says which part of such a text counts"
    )


def _is_by_users(row: LeftOutExample) -> bool:
    """Return True for what no reviewer has given."""
    return all(name.startswith(USER_CORRECTION) for name in row.correction_ids)


def _share(gate: DatasetGate, count: int, inspected: Inspection, maximum: float, detail: str) -> Gate:
    """The share of rows that are not in the set, of them and those that are."""
    total = count + len(inspected.dataset.train) + len(inspected.dataset.eval)
    share = count / total if total else 0.0
    return gate.gate(share <= maximum, share, f"<= {maximum}", detail)
