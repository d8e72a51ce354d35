"""Reports of evaluations that were never run, one of each kind of task, the same every time."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import numpy as np

from schemas.adapters import AdapterTrained, Calibration
from schemas.adversarial import AdversarialArm, AdversarialKind, AdversarialReport, AdversarialResult
from schemas.approaches import Approach, ApproachKind, ApproachTable, Gain
from schemas.conversation import Message, Role
from schemas.evaluation import EvaluationReport
from schemas.evaluation_settings import TextMetric
from schemas.judging import Certification, JudgeReport
from schemas.tasks import TaskSpec
from services.evaluator.calibration import fit
from services.evaluator.domain import Question
from services.evaluator.recipe import ArmAnswers
from services.evaluator.rivals.findings import findings
from services.evaluator.statistics.intervals import wilson
from services.evaluator.texts.metrics import word_scores
from services.evaluator.verdict import Asked, Extras, evaluation_report
from tests.unit.evaluator.arms import FREE, ORDERS
from tests.unit.shared.grading.home import STOPS, book, calls, home, light
from tests.unit.shared.grading.tickets import LABELS, tickets, topics

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
PRODUCTION = "desk-1"
_MODES = ("card is lost", "<b>a mode</b>", "wrong amount")


def _misled(clean: float, score: float, wrong: float) -> AdversarialArm:
    drop = Gain(value=clean - score, low=clean - score - 0.1, high=clean - score + 0.1)
    return AdversarialArm(
        clean=wilson(clean * 32, 32), score=wilson(score * 32, 32), drop=drop, confident_wrong=wilson(wrong * 32, 32)
    )


def _foreign(wrong: float) -> AdversarialArm:
    return AdversarialArm(confident_wrong=wilson(wrong * 40, 40))


ADVERSARIAL = AdversarialReport(
    results=(
        AdversarialResult(
            kind=AdversarialKind.TYPOS, inputs=32, candidate=_misled(0.8, 0.75, 0.1), production=_misled(0.7, 0.6, 0.2),
            score=Gain(value=0.15, low=0.0, high=0.3),
        ),
        AdversarialResult(
            kind=AdversarialKind.INJECTION, inputs=64,
            candidate=_misled(0.8, 0.5, 0.3).model_copy(update={"obeyed": wilson(16, 64)}),
            production=_misled(0.7, 0.6, 0.2).model_copy(update={"obeyed": wilson(8, 64)}),
            obeyed=Gain(value=0.125, low=-0.02, high=0.27),
        ),
        AdversarialResult(
            kind=AdversarialKind.OUT_OF_DISTRIBUTION, inputs=40, candidate=_foreign(0.4),
            production=_foreign(0.5),
        ),
    ),
)  # fmt: skip


def trained(spec: TaskSpec) -> AdapterTrained:
    return AdapterTrained(
        occurred_at=NOON, task=spec.name, task_revision=spec.revision, cycle_id=f"{spec.name}-20261123-030000",
        adapter=f"{spec.name}-2", uri=f"/artifacts/adapters/{spec.name}-2", base_model="SmolLM2-135M-Instruct",
        dataset_id=f"{spec.name}-data", dataset_uri=f"/artifacts/datasets/{spec.name}-data", method="lora", rank=16,
        steps=120, train_loss=0.1, seconds=300.0, data_cutoff=NOON, spec=spec,
    )  # fmt: skip


def desk(labels: int) -> TaskSpec:
    names = [f"{('card', 'transfer', 'top up', 'cash', 'exchange rate')[n % 5]} question {n}" for n in range(labels)]
    return TaskSpec.model_validate({"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": names})


def classification(
    labels: int = 77, rows: int = 616, better: float = 0.82, calibration: Calibration | None = None
) -> EvaluationReport:
    """A candidate that is right on `better` of the rows beside a production adapter at 0.7, and fails on one label.

    `calibration`: of an earlier evaluation; None: the one that these answers give.
    """
    spec = desk(labels)
    chance = np.random.default_rng(20)
    asked = [
        Question(
            (Message(role=Role.USER, content=f"Question {n} " + "about it " * (n % 7)),), spec.labels[n % labels],
            row_id=f"e{n}", group=f"g{n}", drawn=0.2 if n % 3 else None, is_uniform=bool(n % 3),
            slices=(f"failure mode {_MODES[n % 3]}", f"app {('web', 'phone')[n // 7 % 2]}"),
        )
        for n in range(rows)
    ]  # fmt: skip

    def answers(accuracy: float, forgotten: str, times: float) -> ArmAnswers:
        sure = chance.beta(5, 1, rows)
        right = (chance.random(rows) < accuracy * (0.55 + 0.5 * sure)) & [q.answer != forgotten for q in asked]
        other = [spec.labels[(spec.labels.index(q.answer) + 5) % labels] for q in asked]
        given = tuple(q.answer if ok else wrong for q, ok, wrong in zip(asked, right, other, strict=True))
        latencies = tuple(map(float, times * chance.lognormal(0, 0.3, rows)))
        return ArmAnswers(
            answers=given, latencies_ms=latencies, scores=tuple(map(float, sure)), prompt_tokens=412.0,
            answer_tokens=3.2, tokens_per_second=21.5,
        )  # fmt: skip

    candidate, production = answers(better, spec.labels[min(3, labels - 1)], 180.0), answers(0.7, "", 175.0)
    fitted = fit(f"{spec.name}-2", candidate.scores, candidate.graded(asked, 0, spec).right, 1 / (labels - 1), 0.8)
    assert fitted is not None
    extras = Extras(approaches(rows), calibration or fitted.calibration, fitted.reliability, concurrency=8)
    both = Asked(asked, [], candidate, production)
    report = evaluation_report(trained(spec), PRODUCTION, "desk-2-vs-desk-1-abc123", both, extras, NOON)
    return report.model_copy(update={"adversarial": ADVERSARIAL})


def extraction() -> EvaluationReport:
    """A candidate whose field `city` is always empty, beside the base model, whose JSON is often none."""
    chance = np.random.default_rng(20)
    objects = [{"name": f"Ann {n}", "city": "Bonn" if n % 2 else "Ulm", "total": n} for n in range(60)]
    asked = [
        Question((Message(role=Role.USER, content=f"Order {n}"),), json.dumps(right), row_id=f"e{n}", group=f"g{n}")
        for n, right in enumerate(objects)
    ]
    ours = tuple(json.dumps({**right, "city": None}) for right in objects)
    theirs = tuple(
        json.dumps({**right, "total": 0}) if ok else "no JSON"
        for right, ok in zip(objects, chance.random(60) < 0.6, strict=True)
    )
    arms = [ArmAnswers(answers=given, latencies_ms=(900.0,) * 60) for given in (ours, theirs)]
    table = approaches(60).model_copy(update={"curve": None})
    both, extras = Asked(asked, [], *arms), Extras(table, concurrency=8)
    return evaluation_report(trained(ORDERS), None, "orders-2-vs-base-abc123", both, extras, NOON)


def tools() -> EvaluationReport:
    """A candidate that turns lights off instead of on, beside the base model, which cannot book a table."""
    spec, rights = home(), [calls((light, book, lambda: STOPS)[n % 3]()) for n in range(60)]
    asked = [
        Question((Message(role=Role.USER, content=f"Message {n}"),), right, row_id=f"e{n}", group=f"g{n}")
        for n, right in enumerate(rights)
    ]
    ours = tuple(right.replace("true", "false") for right in rights)
    theirs = tuple("Sure!" if "book_table" in right else right for right in rights)
    arms = [ArmAnswers(answers=given, latencies_ms=(700.0,) * 60) for given in (ours, theirs)]
    table = approaches(60).model_copy(update={"curve": None})
    return evaluation_report(
        trained(spec), None, "home-2-vs-base-abc123", Asked(asked, [], *arms), Extras(table, concurrency=8), NOON
    )


def multi_label() -> EvaluationReport:
    """A candidate that often misses `damage`, beside the base model, which adds a label and often writes no list."""
    chance, sets = np.random.default_rng(20), [set(LABELS[n % 4 : n % 4 + 1 + n % 2]) for n in range(60)]
    asked = [
        Question(
            (Message(role=Role.USER, content=f"Ticket {n}"),), topics(*sorted(each)), row_id=f"e{n}", group=f"g{n}"
        )
        for n, each in enumerate(sets)
    ]
    ours = tuple(topics(*sorted(each - {"damage"} if n % 3 else each)) for n, each in enumerate(sets))
    theirs = tuple(
        topics(*sorted(each | {LABELS[n % 3]})) if ok else "delivery"
        for n, (each, ok) in enumerate(zip(sets, chance.random(60) < 0.6, strict=True))
    )
    arms = [
        ArmAnswers(answers=given, latencies_ms=(400.0,) * 60, scores=tuple(map(float, chance.beta(5, 1, 60))))
        for given in (ours, theirs)
    ]
    spec = tickets()
    fitted = fit("tickets-2", arms[0].scores, arms[0].graded(asked, 0, spec).right, 1 / (2 ** len(LABELS) - 1), 0.8)
    assert fitted is not None
    extras = Extras(
        approaches(60).model_copy(update={"curve": None}), fitted.calibration, fitted.reliability, concurrency=8
    )
    return evaluation_report(trained(spec), None, "tickets-2-vs-base-abc123", Asked(asked, [], *arms), extras, NOON)


JUDGE = JudgeReport(
    model="<gpt>",
    certified=False,
    certification=Certification(
        pairs=61, agreement=wilson(45, 61), lower=0.634, required=0.8, pairs_required=50, first_share=wilson(83, 118),
        consistent=wilson(52, 61),
    ),
    wins=11, losses=4, ties=5, p_worse=0.982, requests=169, failed=7, problem="No answer in 60 s",
)  # fmt: skip


def generation(spec: TaskSpec = FREE, golden: int = 0) -> EvaluationReport:
    """A candidate whose texts are near the right ones, beside one that says no, and a judge without certification.

    `golden`: so many of the rows are the golden set as well.
    """
    asked = [
        Question(
            (Message(role=Role.USER, content=f"When? {n}"),), f"we refund order {n} within five days", row_id=f"e{n}"
        )
        for n in range(20)
    ]
    good = ArmAnswers(answers=tuple(f"order {n} is refunded within five days" for n in range(20)), latencies_ms=(1e3,))
    poor = ArmAnswers(answers=("no",) * 20, latencies_ms=(1e3,))
    few = approaches(20)
    none = {"approaches": few.approaches[:2], "answers_per_month": None, "findings": ()}
    ours, theirs = (word_scores([q.answer for q in asked], arm.answers) for arm in (good, poor))
    texts = {metric: (ours[metric], theirs[metric]) for metric in ours}
    texts[TextMetric.COSINE] = np.full(20, 0.82), np.full(20, 0.11)
    arms = [arm.model_copy(update={"answers": arm.answers + arm.answers[:golden]}) for arm in (good, poor)]
    both = Asked(asked, asked[:golden], *arms, texts=texts, judge=JUDGE)
    extras = Extras(few.model_copy(update=none))
    return evaluation_report(trained(spec), None, "reply-2-vs-base-abc123", both, extras, NOON)


def approaches(rows: int) -> ApproachTable:
    """A table in which a linear classifier does as well as the candidate."""

    def row(kind: ApproachKind, right: float, gain: float | None, cost: float, p95: float, n: int = rows) -> Approach:
        found = None if gain is None else Gain(value=gain, low=gain - 0.03, high=gain + 0.03)
        return Approach(
            kind=kind, accuracy=wilson(round(right * n), n), candidate_gain=found, latency_ms_p50=p95 / 2,
            latency_ms_p95=p95, cost_per_month=cost, prompt_tokens=412.0, answer_tokens=3.2, examples=3_080,
            adapter=PRODUCTION if kind is ApproachKind.PRODUCTION else None,
        )  # fmt: skip

    rivals = (
        row(ApproachKind.CANDIDATE, 0.81, None, 212.5, 311.0),
        row(ApproachKind.PRODUCTION, 0.68, 0.13, 208.0, 302.0),
        row(ApproachKind.BASE, 0.12, 0.70, 190.0, 298.0, min(40, rows)),
        row(ApproachKind.LINEAR, 0.82, -0.01, 4.1, 21.0),
    )
    return ApproachTable(
        approaches=rivals, answers_per_month=1_250_000.0, currency="USD", prices_of=date(2026, 11, 1),
        findings=findings(rivals, "USD"),
    )  # fmt: skip
