"""The evaluator's job in this process: its own steps, with the stand-in engine, without cheap rivals and probes."""

from __future__ import annotations

from pathlib import Path

from schemas.adapters import AdapterEvaluated
from services.evaluator.domain import evaluation_questions, golden_questions
from services.evaluator.job import (
    EvaluationJob,
    ask_failed_again,
    ask_must_pass_again,
    calibrate,
    read_examples,
    with_golden_history,
)
from services.evaluator.recipe import ask
from services.evaluator.verdict import Asked, verdict_event
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import read_golden_set
from tests.benchmarks.twelve_weeks.engine import Engine


async def evaluate(spec: bytes, folder: Path, store: ArtifactStore, engine: Engine) -> AdapterEvaluated:
    """Return the verdict, as `services.evaluator.job.evaluate_adapter` does."""
    job = EvaluationJob.model_validate_json(spec)
    trained = job.trained
    evaluation = evaluation_questions(read_examples(store.fetch(trained.dataset_uri) / "eval.jsonl"))
    golden = golden_questions(read_golden_set(store, trained.spec), trained.spec)
    questions = [*evaluation, *golden]
    arms = []
    for model in (trained.adapter, job.production or trained.base_model):
        answers = await ask(engine, model, questions, trained.spec, job.concurrency, lambda done: None)
        arms.append(await ask_failed_again(job, engine, model, answers, questions))
    wrong_twice = await ask_must_pass_again(job, engine, golden, arms[0], len(evaluation))
    asked = with_golden_history(job, Asked(evaluation, golden, *arms, wrong_twice), store, folder)
    calibration = calibrate(trained, evaluation, asked.candidate, store, folder)
    return verdict_event(trained, job.production, folder.name, asked, calibration)
