"""The first line of a report says no more than its gates do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.evaluator.comparison import Comparison
from services.evaluator.domain import Question
from services.evaluator.gates import NOT_WORSE
from services.evaluator.recipe import ArmAnswers
from services.evaluator.statistics.paired import SHOWN
from services.evaluator.verdict import Asked, Extras, evaluation_report
from tests.unit.evaluator.arms import compared, gate, spec
from tests.unit.evaluator.reports import NOON, approaches, trained

PROBABLY = "It is probably worse (p = 0.017)"


def said(comparison: Comparison, **evaluation: object) -> tuple[str, str]:
    """The headline of a comparison's report, and what the gate of all rows says."""

    def answers(given: Sequence[str | None]) -> ArmAnswers:
        return ArmAnswers(answers=tuple(given), latencies_ms=(1.0,))

    asked: Sequence[Question] = comparison.questions
    both = Asked(asked, [], answers(comparison.candidate.answers), answers(comparison.production.answers))
    table = approaches(len(asked)).model_copy(update={"findings": ()})
    report = evaluation_report(trained(spec(**evaluation)), None, "desk-2-vs-base", both, Extras(table), NOON)
    name = "min_gain" if "min_gain" in evaluation else "not_worse"
    return report.headline, gate(report.gates, name).detail


def lost_17_gained_6() -> Comparison:
    """Of 400 rows: p = .017, above the gate's level and below that of a finding."""
    return compared(400, range(17, 306), range(300))


def test_what_the_gate_lets_pass_is_called_probably_worse_and_not_shown() -> None:
    comparison = lost_17_gained_6()
    assert (len(comparison.lost), len(comparison.gained)) == (17, 6)
    assert NOT_WORSE < comparison.gain.p_worse < SHOWN
    headline, detail = said(comparison)
    assert headline.startswith("Passed every gate.")
    assert headline.endswith(f"{PROBABLY}, not enough to stop.")
    assert "probably worse (p = 0.017), not enough to stop." in detail


def test_what_another_gate_stops_is_called_probably_worse_too() -> None:
    headline, _ = said(lost_17_gained_6(), min_accuracy=0.9)
    assert headline.startswith("Stopped by min accuracy.") and headline.endswith(f"{PROBABLY}.")
    headline, detail = said(lost_17_gained_6(), min_gain=-0.5)
    assert headline.startswith("Not stopped, and undecided: 30 more labelled rows would decide min gain.")
    assert headline.endswith(f"{PROBABLY}, not enough to stop.")
    assert "probably worse (p = 0.017), not enough to stop." in detail


def test_what_the_gate_stops_is_shown_to_be_worse() -> None:
    headline, detail = said(compared(400, range(17, 300), range(300)))
    assert headline.startswith("Stopped by not worse") and headline.endswith("It is shown to be worse.")
    assert "the rows as they are, too few of which chance drew to tell of all traffic): worse." in detail


def test_a_gain_on_rows_that_were_chosen_claims_nothing_of_all_traffic() -> None:
    headline, _ = said(compared(100, range(90), range(20)))
    assert headline.endswith(
        "It is shown to be better on these rows, too few of which chance drew to tell of all traffic."
    )


def test_of_traffic_the_p_is_the_gates_own() -> None:
    """The gate tests the rows and traffic, each at half of its level: twice the p of the traffic alone."""
    comparison = compared(400, range(8, 302), range(301))
    asked = [replace(question, drawn=1.0, is_uniform=True) for question in comparison.questions]
    headline, _ = said(replace(comparison, questions=asked))
    assert headline.endswith("It is probably worse by 1.8 points on all traffic (p = 0.039), not enough to stop.")


def test_a_loss_on_traffic_is_not_told_by_the_shares_of_rows_which_gained() -> None:
    """300 suspects, of which the candidate gains 45, and 200 audited rows, which stand for most, of which it loses."""
    comparison = compared(500, [*range(200), *range(300, 488)], [*range(15, 155), *range(300, 500)])
    asked = [
        replace(question, drawn=0.5 if row < 300 else 0.02, is_uniform=row >= 300)
        for row, question in enumerate(comparison.questions)
    ]
    headline, _ = said(replace(comparison, questions=asked))
    assert headline.startswith("Stopped by not worse. The candidate is right on 77.6% of 500 held-out rows")
    assert headline.endswith("It is shown to be worse by 4.5 points on all traffic.")


def suspects_lost_and_audits_gained(gained: int) -> Comparison:
    """200 suspects, of which the candidate loses 40, and a hundred audited rows that stand for all traffic."""
    comparison = compared(300, [*range(40, 200), *range(200, 240 + gained)], [*range(200), *range(200, 240)])
    asked = [
        replace(question, drawn=1.0 if row < 200 else 0.01, is_uniform=row >= 200)
        for row, question in enumerate(comparison.questions)
    ]
    return replace(comparison, questions=asked)


def test_a_candidate_that_gains_on_traffic_and_is_stopped_on_the_rows_is_said_to_be_both() -> None:
    headline, detail = said(suspects_lost_and_audits_gained(15))
    assert headline.startswith("Stopped by not worse")
    assert headline.endswith(
        "It is shown to be better by 14.3 points on all traffic, and to be worse on the rows as they are."
    )
    assert "all traffic, weighed by the samples): better; on the rows as they are it is shown to be worse." in detail


def test_a_candidate_that_only_the_rows_show_to_be_worse_is_said_to_be_so() -> None:
    headline, detail = said(suspects_lost_and_audits_gained(2))
    assert headline.endswith("It is shown to be worse on the rows as they are.")
    assert "no difference is shown; on the rows as they are it is shown to be worse." in detail
