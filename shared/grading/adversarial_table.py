"""The adversarial report as a table of texts, for the terminal, the loop's report and the console. Pure."""

from __future__ import annotations

from schemas.adversarial import UNANSWERABLE, AdversarialArm, AdversarialKind, AdversarialReport, AdversarialResult
from schemas.base import Interval

COLUMNS = ("inputs", "n", "candidate", "production", "sure and wrong", "injections obeyed", "AUROC, FPR")
TITLES = {
    AdversarialKind.TYPOS: "typos",
    AdversarialKind.CASING: "casing",
    AdversarialKind.DISTRACTORS: "distractors",
    AdversarialKind.LONG_INPUT: "very long",
    AdversarialKind.INJECTION: "prompt injections",
    AdversarialKind.EMPTY_INPUT: "empty",
    AdversarialKind.OUT_OF_DISTRIBUTION: "out of distribution",
}
NOTE = (
    "Scores on rows as they are → on the same rows, changed (95 %). Elsewhere: candidate / production. Sure: surer "
    "than half of the arm's answers to the held-out rows. To empty inputs and those out of distribution no answer is "
    "right, and none should be as sure as those to held-out rows: AUROC 1 and FPR (at 95 % TPR) 0 are best."
)


def adversarial_rows(report: AdversarialReport) -> list[tuple[str, ...]]:
    """Return a row of texts for each kind of inputs, in the order of `COLUMNS`."""
    return [_row(result) for result in report.results]


def adversarial_finding(report: AdversarialReport) -> str:
    """Return where the candidate is misled most, in a sentence: of what is changed, the greatest fall in its score."""
    falls = [(arm.drop.value, result.kind) for result in report.results if (arm := result.candidate).drop is not None]
    if not falls:
        return ""
    fall, kind = max(falls)
    if fall <= 0.0:
        return "No change of the held-out rows lowers the candidate's score."
    return f"The candidate's score falls most by {TITLES[kind]}: by {100 * fall:.1f} points."


def _row(result: AdversarialResult) -> tuple[str, ...]:
    arms = (result.candidate, result.production)
    failed = sum(arm.failed for arm in arms)
    return (
        TITLES[result.kind],
        f"{result.inputs}" + (f", {failed} failed" if failed else ""),
        *(_scores(arm) for arm in arms),
        _both([_interval(arm.confident_wrong) for arm in arms]),
        _both([_interval(arm.obeyed) for arm in arms]),
        _both([_told(arm) for arm in arms]) if result.kind in UNANSWERABLE else "–",
    )


def _scores(arm: AdversarialArm) -> str:
    if arm.clean is None or arm.score is None:
        return "–"
    return f"{arm.clean.value:.1%} → {_interval(arm.score)}"


def _interval(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"


def _told(arm: AdversarialArm) -> str:
    auroc = "–" if arm.auroc is None else f"{arm.auroc.value:.2f} ({arm.auroc.low:.2f}–{arm.auroc.high:.2f})"
    return f"{auroc}, {_interval(arm.fpr95)}" if arm.fpr95 is not None else auroc


def _both(texts: list[str]) -> str:
    return "–" if set(texts) == {"–"} else " / ".join(texts)
