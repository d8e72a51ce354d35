"""The evaluation job, from adapter to verdict. `shared.jobs` runs it: `python -m services.evaluator.job FOLDER`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from schemas.adapters import (
    CALIBRATION_FILE,
    CALIBRATIONS,
    OPINION_FILE,
    PROBES,
    PROBES_FILE,
    AdapterEvaluated,
    Calibration,
    Probes,
)
from schemas.base import utc_now
from schemas.datasets import Example
from schemas.evaluation import Reliability
from services.evaluator.domain import (
    REFUSED_WAY_OUT,
    Candidate,
    Question,
    Repeated,
    evaluation_questions,
    failed_must_pass,
    golden_grades,
    golden_questions,
    is_model,
    probe_prompts,
)
from services.evaluator.golden_history import golden_result, past_results, publish_result, record_promotion
from services.evaluator.job_input import EvaluationJob
from services.evaluator.settings import KEY_VARIABLE
from shared.conversation import chat_messages
from shared.errors import DependencyUnavailable, InvalidMessage, RatchetError, StepImpossible
from shared.files import write_atomically
from shared.identity import content_hash
from shared.jobs import Progress, lease, run_job
from shared.model.adapter_files import check_adapter, check_model
from shared.model.inference import InferenceClient
from shared.model.probes import measure_probes
from shared.storage.artifacts import MANIFEST, ArtifactNotFound, ArtifactStore
from shared.storage.calibrations import AdapterCalibration, read_calibration
from shared.storage.golden_sets import read_golden_set

if TYPE_CHECKING:
    from services.evaluator.recipe import ArmAnswers
    from services.evaluator.second_opinion import FittedOpinion
    from services.evaluator.verdict import Asked


_WAKE_SECONDS = 600.0
"""A whole model is loaded when it is first asked."""


def evaluate_adapter(spec: bytes, folder: Path, progress: Progress) -> AdapterEvaluated:
    """Ask both arms, score their answers and check the gates. A killed job reuses the arms it has already asked."""
    from services.evaluator.parts.languages import with_languages  # Load scikit-learn and SciPy: only in this process.
    from services.evaluator.report.publish import publish_report, read_report
    from services.evaluator.rivals.run import compare_rivals
    from services.evaluator.second_opinion import with_second_opinions
    from services.evaluator.texts.step import compare_texts
    from services.evaluator.verdict import Extras, evaluated_event, evaluation_report

    job = EvaluationJob.model_validate_json(spec)
    store = ArtifactStore(job.artifacts, job.cache)
    dataset = store.fetch_whole(job.trained.dataset_uri)
    evaluation = with_languages(evaluation_questions(read_examples(dataset / "eval.jsonl")))
    golden = golden_questions(read_golden_set(store, job.trained.spec), job.trained.spec)
    train = read_examples(dataset / "train.jsonl")
    with lease(job.slots_folder, job.slots, progress):
        asked, probes = asyncio.run(_ask_both(job, store, evaluation, golden, folder, progress))
        approaches = asyncio.run(compare_rivals(job, train, asked, folder, progress))
        asked = compare_texts(job, asked, dataset, folder, progress)
    if probes is not None:
        publish_probes(probes, store)
    asked = with_golden_history(job, asked, store)
    asked, opinion = with_second_opinions(asked, train, job.trained.spec, calibration_of(store, job.production))
    fitted = calibrate(job.trained, evaluation, asked.candidate, store, opinion)
    extras = Extras(approaches, *fitted, job.concurrency)
    report = evaluation_report(job.trained, job.production, folder.name, asked, extras, utc_now())
    uri = publish_report(report, store, folder / "report")
    return evaluated_event(job.trained, read_report(store, uri), uri)  # A killed process may have published another.


def with_golden_history(job: EvaluationJob, asked: Asked, store: ArtifactStore) -> Asked:
    """Add what promoted adapters got right of the golden set, and store what this candidate did.

    The adapter that serves was promoted, whether its event has been read yet or not.
    """
    trained = job.trained
    if job.production is not None:
        record_promotion(store, trained.task, job.production)
    if trained.spec.golden_set is None:
        return asked
    graded = asked.candidate.graded(asked.golden, len(asked.evaluation), trained.spec)
    grades = golden_grades(asked.golden, graded, trained.spec).right
    right = [None if answer is None else grade for answer, grade in zip(graded.answers, grades, strict=True)]
    result = golden_result(trained.spec, trained.adapter, asked.golden, right)
    if result.right:  # Its first result stays: none before a row can be judged.
        publish_result(store, result, trained.spec.golden_set.set_id)
    return replace(asked, past=past_results(store, trained.task, trained.spec.base_model))


async def _ask_both(
    job: EvaluationJob,
    store: ArtifactStore,
    evaluation: Sequence[Question],
    golden: Sequence[Question],
    folder: Path,
    progress: Progress,
) -> tuple[Asked, Probes | None]:
    """Return both arms' answers to all questions, what became of the must-pass rows that the candidate got wrong, and
    the probes of an adapter."""
    from services.evaluator.adversarial.cases import adversarial_cases
    from services.evaluator.adversarial.misled import AdversarialAnswers
    from services.evaluator.verdict import Asked

    trained, questions = job.trained, [*evaluation, *golden]
    key = os.environ.get(KEY_VARIABLE, "")
    client = ours = InferenceClient(job.vllm, job.timeout_seconds, key)
    if is_model(trained):
        ours = InferenceClient(job.models, job.timeout_seconds, key)
    try:
        check = partial(check_adapter, base_model=trained.base_model, max_rank=job.max_rank)
        of_task = partial(check, modules=trained.spec.training.target_modules)
        if is_model(trained):
            await wake(job.models, key, store, trained)
        else:
            await serve(client, store, trained.adapter, trained.uri, of_task)
        if job.production is not None:  # It may have been trained before the task's modules were changed.
            await serve(client, store, job.production, store.address("adapters", job.production), check)
        opponent = job.production or trained.base_model
        arms = AskedArm("candidate", trained.adapter, ours), AskedArm("production", opponent, client)
        candidate, production = await ask_arms(job, arms, "", questions, folder, progress)
        repeated = await ask_must_pass_again(job, ours, golden, candidate, len(evaluation))
        adversarial = None
        if cases := adversarial_cases(evaluation, trained.spec, await client.context_tokens()):
            attacked = [case.question for case in cases]
            adversarial = AdversarialAnswers(
                cases, *await ask_arms(job, arms, "adversarial_", attacked, folder, progress)
            )
        probes = None if is_model(trained) else await ask_probes(client, trained)
    finally:
        await client.close()
        await ours.close()
    if len(production.unanswered) > trained.spec.evaluation.max_failed_share * len(questions):
        # Not a fair opponent. The next attempt asks it again, and the candidate where it fared no better.
        for arm, answers in (("candidate", candidate), ("production", production)):
            if len(answers.unanswered) > trained.spec.evaluation.max_failed_share * len(questions):
                _arm_file(folder, arm, questions).unlink()
        raise unfair(production, len(questions))
    return Asked(evaluation, golden, candidate, production, repeated, adversarial=adversarial), probes


def unfair(production: ArmAnswers, asked: int) -> RatchetError:
    """Return why production, which left too many of so many requests unanswered, is no fair opponent."""
    failed, refused = len(production.unanswered), len(production.refused)
    if 2 * refused > failed:
        return StepImpossible(f"vLLM refuses {refused} of {asked} requests to production", REFUSED_WAY_OUT)
    return DependencyUnavailable(
        f"{failed} of {asked} requests to production failed, so no fair comparison is possible",
        "Check vLLM and its log: ratchet status. Where answers take long, lower RATCHET_EVALUATOR_CONCURRENCY, or "
        "raise the task's evaluation.max_failed_share.",
    )


async def ask_must_pass_again(
    job: EvaluationJob, client: InferenceClient, golden: Sequence[Question], candidate: ArmAnswers, start: int
) -> Repeated:
    """Ask the candidate again the must-pass rows that it got wrong; returns the positions of those not right now.

    `start`: the position of the first golden answer. One wrong answer may be an accident of how requests were batched,
    and a request that fails, as often as any may, first or when it is repeated, is no second one.
    """
    from services.evaluator.recipe import ask_persistently

    spec, model = job.trained.spec, job.trained.adapter
    wrong = failed_must_pass(golden, golden_grades(golden, candidate.graded(golden, start, spec), spec))
    questions = [golden[position] for position in wrong]
    repeated = await ask_persistently(client, model, questions, spec, job.concurrency)
    right_now = golden_grades(questions, repeated.graded(questions, 0, spec), spec).right
    failures = {
        position: (candidate.answers[start + position] is None) + (answer is None)
        for position, is_right, answer in zip(wrong, right_now, repeated.answers, strict=True)
        if not is_right
    }
    return Repeated(
        [p for p, count in failures.items() if count != 1], [p for p, count in failures.items() if count == 1]
    )


async def ask_probes(client: InferenceClient, trained: Candidate) -> Probes:
    """Ask one replica the probes. Raises StepImpossible if it reports no log-probabilities, or refuses a model."""
    url, *_ = client.in_turn()
    try:
        return await measure_probes(client, url, trained.adapter, trained.base_model, probe_prompts(trained.spec))
    except InvalidMessage as error:
        raise StepImpossible(
            f"replicas could not be proved to serve {trained.adapter}: {error.reason}",
            "vLLM must report 20 log-probabilities (--max-logprobs).",
        ) from error


def publish_probes(probes: Probes, store: ArtifactStore) -> None:
    """Store the probes where the deployer finds them by the adapter's name. Its first ones stay."""
    manifest = json.dumps({"adapter": probes.adapter}).encode()
    store.publish_files(
        {PROBES_FILE: probes.model_dump_json(indent=2).encode(), MANIFEST: manifest}, PROBES, probes.adapter
    )


async def serve(
    client: InferenceClient, store: ArtifactStore, adapter: str, uri: str, check: Callable[[Path], None]
) -> None:
    """Have every replica serve the adapter, once its folder is checked. Raises StepImpossible."""
    try:
        folder = await asyncio.to_thread(store.fetch, uri)
    except ArtifactNotFound as error:  # It is published before its event, so it will not come.
        raise StepImpossible(f"the adapter {adapter} cannot be served: {error.reason}", error.way_out) from error
    try:
        await asyncio.to_thread(check, folder)
        await client.serve_adapter(adapter, str(folder))
    except InvalidMessage as error:
        raise StepImpossible(
            f"vLLM does not serve the adapter {adapter}: {error.reason}",
            error.way_out
            or f"Check that vLLM's VLLM_LORA_RESOLVER_CACHE_DIR is {folder.parent}, and that the adapter's rank is "
            "within its --max-lora-rank.",
        ) from error


async def wake(urls: Sequence[str], key: str, store: ArtifactStore, trained: Candidate) -> None:
    """Have a whole model's server started, once its folder is checked. Raises StepImpossible.

    Raises DependencyUnavailable while others keep it from being started.
    """
    client = InferenceClient(urls, _WAKE_SECONDS, key)
    try:
        check_model(await asyncio.to_thread(store.fetch, trained.uri))
        message = {"role": "user", "content": "."}
        await client.complete(trained.adapter, [message], max_tokens=1)
    except (ArtifactNotFound, InvalidMessage) as error:
        way_out = error.way_out or "RATCHET_MODELS must be a server of whole models: ratchet up --only models"
        raise StepImpossible(f"the model {trained.adapter} cannot be served: {error.reason}", way_out) from error
    finally:
        await client.close()


class AskedArm(NamedTuple):
    """One of the two models: its name in files and messages, and where it is asked."""

    name: str
    model: str
    client: InferenceClient


async def ask_arms(
    job: EvaluationJob,
    arms: Sequence[AskedArm],
    what: str,
    questions: Sequence[Question],
    folder: Path,
    progress: Progress,
) -> list[ArmAnswers]:
    """Return the arms' answers. `what`: what the questions are, in the names of files.

    What failed is repeated when all were asked: at once, a repeat finds an engine that restarts as it was, and the
    failures would be those of one arm. What fails each time, or is refused, for its length for example, is a wrong
    answer. Raises as `ask`.
    """
    from services.evaluator.recipe import ask_failed_again

    spec, concurrency = job.trained.spec, job.concurrency
    found: list[ArmAnswers] = []
    for number, (name, model, client) in enumerate(arms):
        done = number * len(questions)
        found.append(await ask_arm(job, client, model, f"{what}{name}", done, questions, folder, progress))
    return [
        await ask_failed_again(arm.client, arm.model, answers, questions, spec, concurrency)
        for arm, answers in zip(arms, found, strict=True)
    ]


async def ask_arm(
    job: EvaluationJob,
    client: InferenceClient,
    model: str,
    arm: str,
    already_done: int,
    questions: Sequence[Question],
    folder: Path,
    progress: Progress,
) -> ArmAnswers:
    """Return a model's answers: those that a killed process has stored, if it asked the same."""
    from services.evaluator.recipe import ArmAnswers, ask

    path = _arm_file(folder, arm, questions)
    if path.exists():
        return ArmAnswers.model_validate_json(path.read_bytes())

    def report(done: int) -> None:
        progress(already_done + done, 2 * len(questions), f"{arm}: {done} of {len(questions)} answers")

    answers = await ask(client, model, questions, job.trained.spec, job.concurrency, report)
    write_atomically(path, answers.model_dump_json().encode())
    return answers


def _arm_file(folder: Path, arm: str, questions: Sequence[Question]) -> Path:
    """Return where an arm's answers are stored. What is asked may change: long inputs follow the engine's context."""
    asked = (message.model_dump_json() for question in questions for message in question.messages)
    forms = (repr((question.tool_choice, question.response_format)) for question in questions)
    return folder / f"{arm}-{content_hash(*asked, *forms)}.json"


def calibration_of(store: ArtifactStore, adapter: str | None) -> AdapterCalibration | None:
    """Return an adapter's calibration; None of the base model, and of one without. Raises DependencyUnavailable."""
    if adapter is None:
        return None
    try:
        return read_calibration(store, adapter)
    except ArtifactNotFound:
        return None


def calibrate(
    trained: Candidate,
    evaluation: Sequence[Question],
    candidate: ArmAnswers,
    store: ArtifactStore,
    opinion: FittedOpinion | None = None,
) -> tuple[Calibration | None, Reliability | None]:
    """Fit and publish the candidate's calibration. Returns the one in the store: an adapter's first one stays.

    `opinion`: the second one that the answers' scores are with, which is published beside it. With the calibration
    comes how often these answers are right at each confidence. None for generated texts, and if too few answers have a
    confidence.
    """
    from services.evaluator.calibration import chance_mistake_looks_right, fit
    from services.evaluator.comparison import traffic_of
    from services.evaluator.statistics.intervals import group_numbers

    if (chance := chance_mistake_looks_right(trained.spec)) is None:
        return None, None
    right = candidate.graded(evaluation, 0, trained.spec).right
    scores = candidate.scores[: len(evaluation)] or (None,) * len(evaluation)
    recall = trained.spec.evaluation.low_confidence_recall
    groups = group_numbers([question.group for question in evaluation])
    traffic, pooled = traffic_of(evaluation), opinion is not None
    fitted = fit(trained.adapter, scores, right, chance, recall, traffic, groups, pooled=pooled)
    if fitted is None:
        return None, None
    manifest = {"adapter": trained.adapter, "task_revision": trained.task_revision, "dataset_id": trained.dataset_id}
    files, calibration = {MANIFEST: json.dumps(manifest, indent=2).encode()}, fitted.calibration
    if opinion is not None:
        calibration = calibration.model_copy(update={"opinion": opinion.share})
        files[OPINION_FILE] = opinion.opinion.to_bytes()
    files[CALIBRATION_FILE] = calibration.model_dump_json(indent=2).encode()
    uri = store.publish_files(files, CALIBRATIONS, trained.adapter)
    first = Calibration.model_validate_json((store.fetch(uri) / CALIBRATION_FILE).read_bytes())
    return first, fitted.reliability


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
