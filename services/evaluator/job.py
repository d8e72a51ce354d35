"""An evaluation, from adapter to verdict. Run by `shared.jobs` as `python -m services.evaluator.job FOLDER`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from schemas.adapters import CALIBRATION_FILE, CALIBRATIONS, AdapterEvaluated, AdapterTrained, Calibration
from schemas.datasets import Example
from schemas.tasks import TaskKind
from services.evaluator.domain import Comparison, Question, evaluation_questions, golden_questions
from services.evaluator.gates import judge, regression_set, verdict
from shared.errors import DependencyUnavailable, InvalidMessage, StepImpossible
from shared.files import write_atomically
from shared.identity import event_id
from shared.jobs import Progress, run_job, slot
from shared.model.inference import InferenceClient
from shared.storage.artifacts import MANIFEST, ArtifactStore

if TYPE_CHECKING:
    from services.evaluator.recipe import Answers


class EvaluationJob(BaseModel):
    """All that the process needs to know. `production`: the adapter that serves now; None: the base model."""

    trained: AdapterTrained
    production: str | None
    vllm: tuple[str, ...]
    artifacts: str
    cache: Path
    slots_folder: Path
    slots: int
    concurrency: int
    timeout_seconds: float


def work(spec: bytes, folder: Path, progress: Progress) -> AdapterEvaluated:
    """Ask both arms, score, judge. Each arm's answers are kept, so a killed job asks again only what is missing."""
    job = EvaluationJob.model_validate_json(spec)
    store = ArtifactStore(job.artifacts, job.cache)
    evaluation = evaluation_questions(read_examples(store.fetch(job.trained.dataset_uri) / "eval.jsonl"))
    golden = golden_questions(job.trained.spec)
    progress(0, 1, "waiting for a free slot")
    with slot(job.slots_folder, job.slots):
        candidate, production = asyncio.run(_ask_both(job, store, [*evaluation, *golden], folder, progress))
    calibration = calibrate(job.trained, evaluation, candidate, store, folder)
    return evaluate(job, folder.name, evaluation, golden, candidate, production, calibration)


async def _ask_both(
    job: EvaluationJob, store: ArtifactStore, questions: Sequence[Question], folder: Path, progress: Progress
) -> tuple[Answers, Answers]:
    client = InferenceClient(job.vllm, job.timeout_seconds)
    trained = job.trained
    try:
        await _serve(client, trained.adapter, trained.uri)
        if job.production is not None:
            await _serve(client, job.production, store.address("adapters", job.production))
        candidate = await _ask(job, client, trained.adapter, "candidate", 0, questions, folder, progress)
        opponent = job.production or trained.base_model
        production = await _ask(job, client, opponent, "production", len(questions), questions, folder, progress)
    finally:
        await client.close()
    failed = sum(answer is None for answer in production.answers)
    if failed > trained.spec.evaluation.max_failed_share * len(questions):
        (folder / "production.json").unlink()  # Not a fair opponent: ask it again.
        raise DependencyUnavailable(
            f"{failed} of {len(questions)} requests to production failed, so it cannot be compared with",
            "Check vLLM and its log: ratchet status",
        )
    return candidate, production


async def _serve(client: InferenceClient, adapter: str, uri: str) -> None:
    try:
        await client.serve_adapter(adapter, uri)
    except InvalidMessage as error:
        raise StepImpossible(
            f"vLLM does not take the adapter {adapter}: {error.reason}",
            "See that vLLM's VLLM_LORA_RESOLVER_CACHE_DIR is the folder `adapters` of RATCHET_ARTIFACTS, and that the "
            "adapter's rank is within its --max-lora-rank.",
        ) from error


async def _ask(
    job: EvaluationJob,
    client: InferenceClient,
    model: str,
    arm: str,
    before: int,
    questions: Sequence[Question],
    folder: Path,
    progress: Progress,
) -> Answers:
    from services.evaluator.recipe import Answers, ask  # scikit-learn: only in this process

    path = folder / f"{arm}.json"
    if path.exists():
        return Answers.model_validate_json(path.read_bytes())

    def report(done: int) -> None:
        progress(before + done, 2 * len(questions), f"{arm}: {done} of {len(questions)} answers")

    answers = await ask(client, model, questions, job.trained.spec, job.concurrency, report)
    write_atomically(path, answers.model_dump_json().encode())
    return answers


def calibrate(
    trained: AdapterTrained, evaluation: Sequence[Question], candidate: Answers, store: ArtifactStore, folder: Path
) -> Calibration | None:
    """The candidate's calibration, as it is in the artifact store from now on: an adapter's first one stays.

    None for a generation, where nobody knows which answers are right, and where too few answers have a confidence.
    """
    from services.evaluator.calibration import fit

    if trained.spec.kind is not TaskKind.CLASSIFICATION:
        return None
    right = candidate.part(evaluation, 0, trained.spec.kind).right
    scores = candidate.scores[: len(evaluation)] or (None,) * len(evaluation)
    fitted = fit(trained.adapter, scores, right, len(trained.spec.labels))
    if fitted is None:
        return None
    made = folder / "calibration"
    write_atomically(made / CALIBRATION_FILE, fitted.model_dump_json(indent=2).encode())
    manifest = {"adapter": trained.adapter, "task_revision": trained.task_revision, "dataset_id": trained.dataset_id}
    write_atomically(made / MANIFEST, json.dumps(manifest, indent=2).encode())
    uri = store.publish(made, CALIBRATIONS, trained.adapter)
    return Calibration.model_validate_json((store.fetch(uri) / CALIBRATION_FILE).read_bytes())


def evaluate(
    job: EvaluationJob,
    name: str,
    evaluation: Sequence[Question],
    golden: Sequence[Question],
    candidate: Answers,
    production: Answers,
    calibration: Calibration | None = None,
) -> AdapterEvaluated:
    """The event. Both arms answered `evaluation` and then `golden`; the id follows from the job's name."""
    from services.evaluator.recipe import score

    trained, spec = job.trained, job.trained.spec
    on_evaluation = Comparison(
        evaluation, candidate.part(evaluation, 0, spec.kind), production.part(evaluation, 0, spec.kind)
    )
    start = len(evaluation)
    on_golden = Comparison(golden, candidate.part(golden, start, spec.kind), production.part(golden, start, spec.kind))
    gates = judge(spec, on_evaluation, on_golden)
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
    """The rows of eval.jsonl. Raises StepImpossible for none, or for one that is not an Example."""
    try:
        with path.open(encoding="utf-8") as file:
            rows = [Example.model_validate_json(line) for line in file]
    except ValueError as error:
        raise StepImpossible(f"{path} holds a row that is no example: {error}", "Build the dataset again.") from error
    if not rows:
        raise StepImpossible(f"{path} is empty: nothing to evaluate on", "Raise dataset.eval_share, or label more.")
    return rows


if __name__ == "__main__":
    run_job(work)
