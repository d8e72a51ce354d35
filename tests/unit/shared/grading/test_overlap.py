"""ROUGE as Google's `rouge-score` 0.1.2 computes it without stemming, and of texts that it has no words of."""

from __future__ import annotations

import pytest

from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.grading.overlap import rouge_l, rouge_n


@pytest.mark.parametrize(
    ("given", "expected", "one", "two", "longest"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75, 1 / 3, 0.75),
        ("the gunman kill police", "police kill the gunman", 1.0, 1 / 3, 0.5),
        ("the gunman police killed", "police killed the gunman", 1.0, 2 / 3, 0.5),
        ("a b c d e f", "a x c d y f z", 8 / 13, 2 / 11, 8 / 13),
        ("a a a b", "a b b", 4 / 7, 2 / 5, 4 / 7),
    ],
)
def test_rouge_is_that_of_the_reference(given: str, expected: str, one: float, two: float, longest: float) -> None:
    assert rouge_n(given, expected, 1) == pytest.approx(one)
    assert rouge_n(given, expected, 2) == pytest.approx(two)
    assert rouge_l(given, expected) == rouge_l(expected, given) == pytest.approx(longest)


def test_texts_of_other_scripts_have_words_too() -> None:
    assert rouge_l("Die Rückerstattung ist fällig", "die Rückerstattung war fällig!") == pytest.approx(0.75)
    assert rouge_n("η παραγγελία έφτασε", "η παραγγελία χάθηκε", 2) == pytest.approx(0.5)


def test_a_text_without_words_or_runs_is_worth_something_only_beside_its_like() -> None:
    assert (rouge_l("", "yes"), rouge_l("yes", ""), rouge_l("", "")) == (0.0, 0.0, 1.0)
    assert (rouge_n("yes", "yes", 2), rouge_n("yes", "no", 2)) == (1.0, 0.0)


@pytest.mark.parametrize(("metric", "score"), [("rouge_l", 0.5), ("token_f1", 1.0), ("exact_match", 0.0)])
def test_the_task_says_by_which_metric_a_text_is_scored(metric: str, score: float) -> None:
    spec = TaskSpec.model_validate(
        {"name": "reply", "kind": "generation", "system_prompt": "Reply.", "evaluation": {"text_metric": metric}}
    )
    found = answer_form(spec).grade("police kill the gunman", "the gunman kill police")
    assert (found.score, found.right) == (pytest.approx(score), False)
