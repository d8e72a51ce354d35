"""The bars of redaction hold: on the sets of the benchmark, and on pii60 where it lies beside the checkout."""

from __future__ import annotations

import pytest

from shared.privacy.redaction import Redactor, Rules
from tests.benchmarks import gold

SETS = gold.sets()


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


@pytest.mark.parametrize("name", SETS)
def test_recall_and_precision_hold_on(name: str, redactor: Redactor) -> None:
    golds = SETS[name]
    score = gold.score(golds, redactor.find([one.text for one in golds], Rules()))
    assert gold.below(score) == [], (score.missed, score.wrong)


def test_every_set_is_there_and_has_people_and_structured_kinds() -> None:
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
        kinds = {kind for one in golds for _, _, kind in one.marks}
        assert {"PERSON", "EMAIL", "PHONE", "IBAN", "CREDIT_CARD", "IP", "ID", "DOB"} <= kinds


def test_a_name_of_which_a_letter_stays_counts_as_missed() -> None:
    (line,) = [gold._parsed("I am [[PERSON:Maria Gonzalez]].")]
    half = gold.score([line], [[gold.TextSpan(5, 10, "person")]])
    assert (half.recall(), half.precision) == (0.0, 1.0)
