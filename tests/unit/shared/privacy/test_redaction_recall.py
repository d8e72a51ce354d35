"""Recall and precision reach their minimum on the benchmark's sets, and on pii60 where it lies beside the checkout."""

from __future__ import annotations

import pytest

from shared.privacy.redaction import Redactor, Rules
from tests.benchmarks import gold

SETS = gold.sets()


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


@pytest.mark.parametrize("name", SETS)
def test_recall_and_precision_are_reached_on(name: str, redactor: Redactor) -> None:
    golds = SETS[name]
    score = gold.score(golds, redactor.find([g.text for g in golds], Rules()))
    assert gold.shortfalls(score) == [], (score.missed, score.wrong)


def test_every_set_exists_and_has_people_and_structured_kinds() -> None:
    assert {
        "unseen_desk",
        "unseen_presidio",
        "unseen_fresh",
        "unseen_final",
        "unseen_last",
        "unseen_blind",
        "unseen_desk_mail",
    } <= set(SETS)
    for golds in SETS.values():
        kinds = {kind for g in golds for _, _, kind in g.spans}
        assert {"PERSON", "EMAIL", "PHONE", "IBAN", "CREDIT_CARD", "IP", "ID", "DOB"} <= kinds


def test_a_name_of_which_one_letter_stays_counts_as_missed() -> None:
    (line,) = [gold._parsed("I am [[PERSON:Maria Gonzalez]].")]
    half = gold.score([line], [[gold.TextSpan(5, 10, "person")]])
    assert (half.recall(), half.precision) == (0.0, 1.0)
