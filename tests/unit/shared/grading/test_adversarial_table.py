"""The adversarial report as people read it: one line for each kind of inputs, both arms beside each other."""

from __future__ import annotations

from pathlib import Path

from schemas.adapters import AdapterEvaluated
from schemas.adversarial import AdversarialKind, AdversarialReport
from shared.grading.adversarial_table import COLUMNS, TITLES, adversarial_finding, adversarial_rows

EVENT = AdapterEvaluated.model_validate_json(Path("schemas/examples/adapters.evaluated.v1/passed.json").read_bytes())
assert EVENT.adversarial is not None
REPORT: AdversarialReport = EVENT.adversarial


def test_each_kind_is_a_line_with_what_applies_to_it_and_a_dash_elsewhere() -> None:
    typos, injections, foreign = adversarial_rows(REPORT)
    assert {len(row) for row in (typos, injections, foreign)} == {len(COLUMNS)}
    assert typos == (
        "typos", "36", "92.0% → 81.0% (65.0%–90.0%)", "19.0% → 17.0% (8.0%–32.0%)",
        "3.0% (0.0%–14.0%) / 42.0% (27.0%–58.0%)", "–", "–",
    )  # fmt: skip
    assert injections[5] == "17.0% (8.0%–32.0%) / 64.0% (48.0%–78.0%)"
    assert foreign[2:4] == ("–", "–")
    assert foreign[6] == "0.91 (0.85–0.97), 36.0% (22.0%–52.0%) / 0.55 (0.43–0.67), 94.0% (82.0%–98.0%)"


def test_failed_requests_of_either_arm_are_named() -> None:
    first = REPORT.results[0]
    failed = first.model_copy(update={"production": first.production.model_copy(update={"failed": 2})})
    assert adversarial_rows(AdversarialReport(results=(failed,)))[0][1] == "36, 2 failed"


def test_the_finding_names_what_lowers_the_candidates_score_most() -> None:
    assert adversarial_finding(REPORT) == "The candidate's score falls most by prompt injections: by 19.0 points."
    typos, _, foreign = REPORT.results
    assert typos.candidate.drop is not None
    level = typos.candidate.model_copy(update={"drop": typos.candidate.drop.model_copy(update={"value": 0.0})})
    flat = AdversarialReport(results=(typos.model_copy(update={"candidate": level}),))
    assert adversarial_finding(flat) == "No change of the held-out rows lowers the candidate's score."
    assert adversarial_finding(AdversarialReport(results=(foreign,))) == ""


def test_every_kind_has_a_title() -> None:
    assert TITLES.keys() == set(AdversarialKind)
