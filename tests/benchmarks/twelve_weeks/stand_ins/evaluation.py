"""The evaluator's job in this process: its own steps, but for cheap rivals, adversarial inputs and probes."""

from __future__ import annotations

from pathlib import Path

from schemas.adapters import AdapterEvaluated
from schemas.approaches import Approach, ApproachKind, ApproachTable
from schemas.base import utc_now
from services.evaluator.domain import evaluation_questions, golden_questions
from services.evaluator.job import (
    ask_must_pass_again,
    calibrate,
    calibration_of,
    read_examples,
    with_golden_history,
)
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import ask, ask_failed_again
from services.evaluator.report.publish import publish_report
from services.evaluator.second_opinion import with_second_opinions
from services.evaluator.statistics.intervals import wilson
from services.evaluator.verdict import Asked, Extras, evaluated_event, evaluation_report
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import read_golden_set
from tests.benchmarks.twelve_weeks.stand_ins.engine import Engine


async def evaluate(spec: bytes, folder: Path, store: ArtifactStore, engine: Engine) -> AdapterEvaluated:
    """Return the verdict, as `services.evaluator.job.evaluate_adapter` does."""
    job = EvaluationJob.model_validate_json(spec)
    trained = job.trained
    dataset = store.fetch(trained.dataset_uri)
    evaluation = evaluation_questions(read_examples(dataset / "eval.jsonl"))
    golden = golden_questions(read_golden_set(store, trained.spec), trained.spec)
    questions = [*evaluation, *golden]
    arms = []
    for model in (trained.adapter, job.production or trained.base_model):
        answers = await ask(engine, model, questions, trained.spec, job.concurrency, lambda done: None)
        arms.append(await ask_failed_again(engine, model, answers, questions, trained.spec, job.concurrency))
    repeated = await ask_must_pass_again(job, engine, golden, arms[0], len(evaluation))
    asked = with_golden_history(job, Asked(evaluation, golden, *arms, repeated), store)
    train, production = read_examples(dataset / "train.jsonl"), calibration_of(store, job.production)
    asked, opinion = with_second_opinions(asked, train, trained.spec, production)
    fitted = calibrate(trained, evaluation, asked.candidate, store, opinion)
    extras = Extras(_alone(Asked(evaluation, golden, *arms), job), *fitted, job.concurrency)
    report = evaluation_report(trained, job.production, folder.name, asked, extras, utc_now())
    return evaluated_event(trained, report, publish_report(report, store, folder / "report"))


def _alone(asked: Asked, job: EvaluationJob) -> ApproachTable:
    """Return the table of approaches with the candidate alone: it gates nothing."""
    right = asked.candidate.graded(asked.evaluation, 0, job.trained.spec).right
    candidate = Approach(
        kind=ApproachKind.CANDIDATE, adapter=job.trained.adapter, accuracy=wilson(sum(right), len(right)),
        latency_ms_p50=0.0, latency_ms_p95=0.0,
    )  # fmt: skip
    return ApproachTable(approaches=(candidate,), currency="EUR", prices_of=utc_now().date())
