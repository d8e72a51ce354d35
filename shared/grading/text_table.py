"""What metrics and a judge say of generated texts, as rows of texts for the terminal and the pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.adapters import TextScore
from schemas.base import Interval
from schemas.evaluation_settings import TextMetric
from schemas.judging import JudgeReport

COLUMNS = ("text metric", "candidate", "production", "difference, points", "shown to be")
TITLES = {
    TextMetric.EXACT_MATCH: "exact match",
    TextMetric.TOKEN_F1: "token F1",
    TextMetric.ROUGE_1: "ROUGE-1",
    TextMetric.ROUGE_2: "ROUGE-2",
    TextMetric.ROUGE_L: "ROUGE-L",
    TextMetric.COSINE: "cosine of embeddings",
    TextMetric.BERT_SCORE: "BERTScore",
}
_FINDINGS = {"better": "better", "worse": "worse", "not_shown": "neither"}
NOTE = "Means of all held-out rows (95 %). The gates go by the one marked ●; the others are shown."


def text_rows(scores: Sequence[TextScore]) -> list[tuple[str, ...]]:
    """Return a row of texts for each metric, in the order of `COLUMNS`."""
    return [
        (
            TITLES[score.metric] + (" ●" if score.gates else ""),
            _interval(score.candidate),
            _interval(score.production),
            f"{100 * score.difference.value:+.1f} "
            f"({100 * score.difference.low:+.1f} to {100 * score.difference.high:+.1f})",
            _FINDINGS[score.difference.finding],
        )
        for score in scores
    ]


def judge_finding(report: JudgeReport) -> str:
    """Return what the judge prefers, and whether that may stop a candidate, in two sentences."""
    standing = "It is certified." if report.certified else "It is not certified: it is shown and stops nothing."
    return (
        f"The judge {report.model} prefers the candidate on {report.wins} rows, production on {report.losses}, neither "
        f"on {report.ties}. {standing}"
    )


def judge_rows(report: JudgeReport) -> list[tuple[str, str]]:
    """Return what its certification rests on, and what it cost: a name and a text each."""
    of = report.certification
    rows = [
        ("Agrees with people's own choices", _interval(of.agreement)),
        ("Lower bound of that (95 %)", f"{of.lower:.1%}, required {of.required:.1%}"),
        ("Pairs that people compared", f"{of.pairs:,}, required {of.pairs_required:,}"),
        ("Chooses the answer shown first (unbiased: 50 %)", _interval(of.first_share)),
        ("Same verdict in both orders", _interval(of.consistent)),
        ("p that it prefers the candidate no less often", "–" if report.p_worse is None else f"{report.p_worse:.3g}"),
        (
            "Requests",
            f"{report.requests:,}" + (f"; {report.failed:,} comparisons got no answer" if report.failed else ""),
        ),
    ]
    return [*rows, ("Stopped early", report.problem)] if report.problem else rows


def _interval(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"
