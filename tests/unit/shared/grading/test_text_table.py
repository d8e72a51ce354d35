"""Metrics and the judge of generated texts as people read them."""

from __future__ import annotations

from pathlib import Path

from schemas.adapters import AdapterEvaluated
from schemas.evaluation_settings import TextMetric
from shared.grading.text_table import COLUMNS, TITLES, judge_finding, judge_rows, text_rows

EVENT = AdapterEvaluated.model_validate_json(
    Path("schemas/examples/adapters.evaluated.v1/generation.json").read_bytes()
)
assert EVENT.judge is not None
JUDGE = EVENT.judge


def test_each_metric_is_a_line_and_the_one_that_the_gates_go_by_is_marked() -> None:
    rouge, cosine = text_rows(EVENT.texts)
    assert len(rouge) == len(COLUMNS)
    assert rouge == ("ROUGE-L ●", "41.0% (37.0%–45.0%)", "28.0% (24.0%–32.0%)", "+13.0 (+8.0 to +18.0)", "better")
    assert cosine[0] == "cosine of embeddings"
    assert set(TITLES) == set(TextMetric)


def test_a_difference_that_is_not_shown_is_neither_better_nor_worse() -> None:
    (score, _) = EVENT.texts
    for finding, said in (("worse", "worse"), ("not_shown", "neither")):
        found = score.model_copy(update={"difference": score.difference.model_copy(update={"finding": finding})})
        assert text_rows([found])[0][-1] == said


def test_a_judge_says_whether_it_may_stop_a_candidate_and_what_that_rests_on() -> None:
    assert judge_finding(JUDGE) == (
        "The judge gpt-4.1 prefers the candidate on 31 rows, production on 9, neither on 20. It is certified."
    )
    rows = dict(judge_rows(JUDGE))
    assert rows["Lower bound of that (95 %)"] == "84.3%, required 80.0%"
    assert rows["Pairs that people compared"] == "120, required 50"
    assert (rows["Requests"], "Stopped early" in rows) == ("360", False)


def test_a_judge_that_nobody_compared_pairs_for_is_shown_without_figures() -> None:
    of = JUDGE.certification.model_copy(
        update={"pairs": 0, "agreement": None, "lower": 0.0, "first_share": None, "consistent": None}
    )
    judge = JUDGE.model_copy(
        update={"certified": False, "certification": of, "p_worse": None, "failed": 3, "problem": "timed out"}
    )
    assert judge_finding(judge).endswith("It is not certified: it is shown and stops nothing.")
    assert [value for _, value in judge_rows(judge)] == [
        "–", "0.0%, required 80.0%", "0, required 50", "–", "–", "–", "360; 3 comparisons got no answer", "timed out",
    ]  # fmt: skip
