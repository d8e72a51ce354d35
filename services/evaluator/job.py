"""The evaluation job, from adapter to verdict. `shared.jobs` runs it: `python -m services.evaluator.job FOLDER`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from schemas.adapters import CALIBRATION_FILE, CALIBRATIONS, AdapterEvaluated, AdapterTrained, Calibration
from schemas.datasets import Example
from schemas.tasks import TaskKind
from services.evaluator.domain import Comparison, Question, evaluation_questions, golden_questions
from services.evaluator.gates import check_gates, regression_set, verdict
from services.evaluator.settings import KEY_VARIABLE
from shared.conversation import chat_messages
from shared.errors import DependencyUnavailable, InvalidMessage, StepImpossible
from shared.files import write_atomically
from shared.identity import event_id
from shared.jobs import Progress, lease, run_job
from shared.model.inference import InferenceClient
from shared.storage.artifacts import MANIFEST, ArtifactMissing, ArtifactStore

if TYPE_CHECKING:
    from services.evaluator.recipe import ArmAnswers


class EvaluationJob(BaseModel):
    """The input of the job's process. `production`: the adapter that serves now; None: the base model."""

    trained: AdapterTrained
    production: str | None
    vllm: tuple[str, ...]
    artifacts: str
    cache: Path
    slots_folder: Path
    slots: int
    concurrency: int
    timeout_seconds: float


def evaluate_adapter(spec: bytes, folder: Path, progress: Progress) -> AdapterEvaluated:
    """Ask both arms, score their answers and check the gates. A killed job reuses the arms it has already asked."""
    job = EvaluationJob.model_validate_json(spec)
    store = ArtifactStore(job.artifacts, job.cache)
    evaluation = evaluation_questions(read_examples(store.fetch(job.trained.dataset_uri) / "eval.jsonl"))
    golden = golden_questions(job.trained.spec)
    progress(0, 1, "waiting until another job ends")
    with lease(job.slots_folder, job.slots):
        candidate, production = asyncio.run(_ask_both(job, store, [*evaluation, *golden], folder, progress))
    calibration = calibrate(job.trained, evaluation, candidate, store, folder)
    return verdict_event(job, folder.name, evaluation, golden, candidate, production, calibration)


async def _ask_both(
    job: EvaluationJob, store: ArtifactStore, questions: Sequence[Question], folder: Path, progress: Progress
) -> tuple[ArmAnswers, ArmAnswers]:
    client = InferenceClient(job.vllm, job.timeout_seconds, os.environ.get(KEY_VARIABLE, ""))
    trained = job.trained
    try:
        await serve(client, store, trained.adapter, trained.uri)
        if job.production is not None:
            await serve(client, store, job.production, store.address("adapters", job.production))
        candidate = await _ask_arm(job, client, trained.adapter, "candidate", 0, questions, folder, progress)
        opponent = job.production or trained.base_model
        production = await _ask_arm(job, client, opponent, "production", len(questions), questions, folder, progress)
    finally:
        await client.close()
    failed = sum(answer is None for answer in production.answers)
    if failed > trained.spec.evaluation.max_failed_share * len(questions):
        (folder / "production.json").unlink()  # Not a fair opponent; the next attempt asks it again.
        raise DependencyUnavailable(
            f"{failed} of {len(questions)} requests to production failed, so no fair comparison is possible",
            "Check vLLM and its log: ratchet status",
        )
    return candidate, production


async def serve(client: InferenceClient, store: ArtifactStore, adapter: str, uri: str) -> None:
    try:
        folder = await asyncio.to_thread(store.fetch, uri)
    except ArtifactMissing as error:  # It is published before its event, so it will not come.
        raise StepImpossible(f"the adapter {adapter} cannot be served: {error.reason}", error.way_out) from error
    try:
        await client.serve_adapter(adapter, str(folder))
    except InvalidMessage as error:
        raise StepImpossible(
            f"vLLM does not serve the adapter {adapter}: {error.reason}",
            f"Check that vLLM's VLLM_LORA_RESOLVER_CACHE_DIR is {folder.parent}, and that the adapter's rank is within "
            "its --max-lora-rank.",
        ) from error


async def _ask_arm(
    job: EvaluationJob,
    client: InferenceClient,
    model: str,
    arm: str,
    already_done: int,
    questions: Sequence[Question],
    folder: Path,
    progress: Progress,
) -> ArmAnswers:
    from services.evaluator.recipe import ArmAnswers, ask  # Loads scikit-learn: only in this process.

    path = folder / f"{arm}.json"
    if path.exists():
        return ArmAnswers.model_validate_json(path.read_bytes())

    def report(done: int) -> None:
        progress(already_done + done, 2 * len(questions), f"{arm}: {done} of {len(questions)} answers")

    answers = await ask(client, model, questions, job.trained.spec, job.concurrency, report)
    write_atomically(path, answers.model_dump_json().encode())
    return answers


def calibrate(
    trained: AdapterTrained, evaluation: Sequence[Question], candidate: ArmAnswers, store: ArtifactStore, folder: Path
) -> Calibration | None:
    """Fit and publish the candidate's calibration. Returns the one in the store: an adapter's first one stays.

    None for a generation task, where right answers are not known, and if too few answers have a confidence.
    """
    from services.evaluator.calibration import fit

    if trained.spec.kind is not TaskKind.CLASSIFICATION:
        return None
    right = candidate.graded(evaluation, 0, trained.spec.kind).right
    scores = candidate.scores[: len(evaluation)] or (None,) * len(evaluation)
    fitted = fit(trained.adapter, scores, right, len(trained.spec.labels))
    if fitted is None:
        return None
    output = folder / "calibration"
    write_atomically(output / CALIBRATION_FILE, fitted.model_dump_json(indent=2).encode())
    manifest = {"adapter": trained.adapter, "task_revision": trained.task_revision, "dataset_id": trained.dataset_id}
    write_atomically(output / MANIFEST, json.dumps(manifest, indent=2).encode())
    uri = store.publish(output, CALIBRATIONS, trained.adapter)
    return Calibration.model_validate_json((store.fetch(uri) / CALIBRATION_FILE).read_bytes())


def verdict_event(
    job: EvaluationJob,
    name: str,
    evaluation: Sequence[Question],
    golden: Sequence[Question],
    candidate: ArmAnswers,
    production: ArmAnswers,
    calibration: Calibration | None = None,
) -> AdapterEvaluated:
    """Build the event. Both arms answered `evaluation`, then `golden`; the id follows from the job's name."""
    from services.evaluator.recipe import score

    trained, spec = job.trained, job.trained.spec
    on_evaluation = Comparison(
        evaluation, candidate.graded(evaluation, 0, spec.kind), production.graded(evaluation, 0, spec.kind)
    )
    start = len(evaluation)
    on_golden = Comparison(
        golden, candidate.graded(golden, start, spec.kind), production.graded(golden, start, spec.kind)
    )
    gates = check_gates(spec, on_evaluation, on_golden)
    regression = regression_set(on_evaluation, on_golden)
    return AdapterEvaluated(
        event_id=event_id("adapter evaluated", name),
        task=trained.task,
        task_revision=trained.task_revision,
        cycle_id=trained.cycle_id,
        adapter=trained.adapter,
        adapter_uri=trained.uri,
        base_model=trained.base_model,
        dataset_id=trained.dataset_id,
        dataset_uri=trained.dataset_uri,
        data_cutoff=trained.data_cutoff,
        verdict=verdict(gates),
        gates=gates,
        candidate=score(trained.adapter, on_evaluation.candidate, evaluation, candidate.latencies_ms, spec),
        production=score(job.production, on_evaluation.production, evaluation, production.latencies_ms, spec),
        golden_lost=len(regression.lost),
        golden_gained=len(regression.gained),
        golden_total=len(regression.questions),
        calibration=calibration,
        spec=spec,
    )


def read_examples(path: Path) -> list[Example]:
    """Read the rows of eval.jsonl. Raises StepImpossible if there is none, or for one that is not one or has media."""
    try:
        with path.open(encoding="utf-8") as file:
            rows = [Example.model_validate_json(line) for line in file]
        for row in rows:
            chat_messages(row.messages)
    except ValueError as error:
        raise StepImpossible(f"{path} has a row that is not an example: {error}", "Build the dataset again.") from error
    if not rows:
        raise StepImpossible(f"{path} is empty: nothing to evaluate on", "Raise dataset.eval_share, or label more.")
    return rows


if __name__ == "__main__":
    run_job(evaluate_adapter)
