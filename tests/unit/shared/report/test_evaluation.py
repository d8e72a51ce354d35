"""What an evaluation's event says, in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.adversarial import AdversarialKind
from schemas.evaluation_settings import TextMetric
from shared.report import evaluation
from shared.report.evaluation import evaluated_blocks
from tests.unit.shared.report.reading import printed, rows_of

EXAMPLES = Path("schemas/examples/adapters.evaluated.v1")
SHARE = {"value": 0.7531, "low": 0.7, "high": 0.8, "n": 60}


def event(name: str = "passed", kind: str | None = None, **changes: Any) -> dict[str, Any]:
    found = json.loads((EXAMPLES / f"{name}.json").read_text())
    stored_spec = {"kind": kind or found["spec"]["kind"]}  # The console stores no more of it: its texts are not shown.
    return {**found, "spec": stored_spec, **changes}


def of_arms(kind: str, **scores: Any) -> list[str]:
    """The names of the rows that compare both arms of a task of this kind."""
    arms = {arm: {**event()[arm], **scores} for arm in ("candidate", "production")}
    return [name for name, *_ in rows_of(evaluated_blocks(event(kind=kind, **arms)), "")]


def test_the_verdict_is_said_first_then_the_gates_with_those_that_failed_first() -> None:
    passed, failed = event()["gates"][0], {**event()["gates"][0], "name": "not_worse", "passed": False}
    first, second, *_ = evaluated_blocks(event(gates=[passed, failed], verdict="failed"))
    assert (first.text, first.tone) == (event()["headline"], "bad")  # type: ignore[union-attr]
    assert rows_of([second], "gate")[0][:2] == ("not worse", "failed")


def test_a_gate_that_measured_nothing_is_unknown() -> None:
    gate = {"name": "agreement", "passed": True, "measured": None, "required": ">= 0.9", "detail": "31 overlaps"}
    assert rows_of(evaluated_blocks(event(gates=[gate])), "gate") == [
        ("agreement", "unknown", "–", ">= 0.9", "31 overlaps")
    ]


def test_the_adapter_stands_beside_cheap_rivals_with_what_that_means() -> None:
    blocks = evaluated_blocks(event(headline=""))
    assert "A linear classifier on sentence embeddings does as well as the adapter" in printed(*blocks)
    assert "600,000 answers a month, by prices of 2026-11-26" in printed(*blocks)
    row = next(row for row in rows_of(blocks, "approach") if row[0] == "linear classifier")
    assert row[1] == "88.3% (77.8%–94.2%)" and "0.011 USD" in " ".join(map(" ".join, rows_of(blocks, "approach")))
    first, *others = evaluated_blocks(event(headline=" ".join(event()["approaches"]["findings"])))
    assert "does as well" in printed(first) and "does as well" not in printed(*others)
    assert not rows_of(evaluated_blocks(event(approaches=None)), "approach")


def test_an_answer_is_compared_by_what_its_form_has() -> None:
    micro = {"kind": "micro", "precision": SHARE, "recall": SHARE, "f1": SHARE}
    labels = of_arms("multi_label", score=SHARE, valid=SHARE, averages=[micro])
    assert {"Subset accuracy: the whole set is right", "Mean score", "F1, micro"} <= set(labels)
    assert "Answers that are a list of labels" in labels
    calls = of_arms("tools", score=SHARE, valid=SHARE, function_accuracy=SHARE)
    assert {"Accuracy", "Right functions, whatever the arguments", "Calls that can be run"} <= set(calls)
    assert "Answers by the schema" in of_arms("extraction", score=SHARE, valid=SHARE)
    plain = of_arms("classification", score=event()["candidate"]["accuracy"])
    assert not {"Subset accuracy: the whole set is right", "F1, micro", "Answers by the schema"} & set(plain)


def test_what_the_comparison_shows_is_said_with_its_basis() -> None:
    said = printed(*evaluated_blocks(event("inconclusive")))
    assert "The candidate is better: +71.0" in said and "Accuracy on all traffic, estimated" in said
    assert "3 more labelled rows would decide" in said
    assert "Golden set: 14 gained, 0 lost, of 20." in printed(*evaluated_blocks(event("generation")))
    assert "No golden row was judged." in printed(*evaluated_blocks(event("generation", golden_total=0)))


def test_each_text_metric_is_a_row_and_the_one_that_the_gates_go_by_is_marked() -> None:
    rouge, cosine = rows_of(evaluated_blocks(event("generation")), "text metric")
    assert rouge == ("ROUGE-L ●", "41.0% (37.0%–45.0%)", "28.0% (24.0%–32.0%)", "+13.0 (+8.0 to +18.0)", "better")
    assert cosine[0] == "cosine of embeddings"
    assert set(evaluation._METRICS) == set(TextMetric)
    first = event("generation")["texts"][0]
    shown = [{**first, "difference": {**first["difference"], "finding": finding}} for finding in ("worse", "not_shown")]
    rows = rows_of(evaluated_blocks(event("generation", texts=shown)), "text metric")
    assert [row[-1] for row in rows] == ["worse", "neither"]


def test_a_judge_says_whether_it_may_stop_a_candidate_and_what_that_rests_on() -> None:
    blocks = evaluated_blocks(event("generation"))
    assert "The judge gpt-4.1 prefers the candidate on 31 rows, production on 9, neither on 20. It is certified." in (
        printed(*blocks)
    )
    rows = dict(rows_of(blocks, "the judge"))  # type: ignore[arg-type]
    assert rows["Lower bound of that (95 %)"] == "84.3%, required 80.0%"
    assert (rows["Pairs that people compared"], rows["Requests"]) == ("120, required 50", "360")
    assert "Stopped early" not in rows


def test_a_judge_that_nobody_compared_pairs_for_is_shown_without_figures() -> None:
    judge = event("generation")["judge"]
    of = {
        **judge["certification"],
        "pairs": 0,
        "agreement": None,
        "lower": 0.0,
        "first_share": None,
        "consistent": None,
    }
    judge |= {"certified": False, "certification": of, "p_worse": None, "failed": 3, "problem": "timed out"}
    blocks = evaluated_blocks(event("generation", judge=judge))
    assert "It is not certified: it is shown and stops nothing." in printed(*blocks)
    assert [value for _, value in rows_of(blocks, "the judge")] == [
        "–", "0.0%, required 80.0%", "0, required 50", "–", "–", "–", "360; 3 comparisons got no answer", "timed out",
    ]  # fmt: skip


@pytest.mark.parametrize("plain", [event("generation", texts=[], judge=None), event()])
def test_where_no_text_is_judged_nothing_is_said_of_it(plain: dict[str, Any]) -> None:
    assert "Generated text" not in printed(*evaluated_blocks(plain))


def test_each_kind_of_misleading_inputs_is_a_row_with_what_applies_to_it() -> None:
    blocks = evaluated_blocks(event())
    typos, injections, foreign = rows_of(blocks, "inputs")
    assert typos == (
        "typos", "36", "92.0% → 81.0% (65.0%–90.0%)", "19.0% → 17.0% (8.0%–32.0%)",
        "3.0% (0.0%–14.0%) / 42.0% (27.0%–58.0%)", "–",
    )  # fmt: skip
    assert injections[5] == "17.0% (8.0%–32.0%) / 64.0% (48.0%–78.0%)"
    assert foreign[2:4] == ("–", "–")
    assert evaluation._MISLEADING.keys() == set(AdversarialKind)


def test_what_lowers_the_candidates_score_most_is_named() -> None:
    found = event()["adversarial"]
    typos, _, foreign = found["results"]
    assert "falls most by prompt injections: by 19.0 points." in printed(*evaluated_blocks(event()))
    typos["production"]["failed"] = 2
    typos["candidate"]["drop"]["value"] = 0.0
    flat = evaluated_blocks(event(adversarial={"results": [typos]}))
    assert "No change of the held-out rows lowers the candidate's score." in printed(*flat)
    assert rows_of(flat, "inputs")[0][1] == "36, 2 failed"
    said = printed(*evaluated_blocks(event(adversarial={"results": [foreign]})))
    assert "falls most" not in said and "No change" not in said and "mislead" in said
    assert "mislead" not in printed(*evaluated_blocks(event(adversarial=None)))
