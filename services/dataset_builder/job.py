"""The build as a job, from corrections to a version; `job_process` runs it.

The process reads corrections from PostgreSQL, and its folder holds the questions and files to publish only until they
are published: nothing of a person is left in a file that `ratchet forget` does not reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.conversation import Message
from schemas.cycles import StepFailed
from schemas.datasets import DatasetBuilt
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, LabelRequested
from schemas.predictions import FeedbackGiven, SubjectForgotten
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.personal_data import PersonalData, PersonalDataPass, rules_id
from services.dataset_builder.building.preferences import Preferences, mark_held_out
from services.dataset_builder.building.votes import OLDEST_FIRST, Vote, Withdrawals, votes_of
from services.dataset_builder.chat_tokens import ChatTokens
from services.dataset_builder.checks.label_noise import Scorer
from services.dataset_builder.inspection.changes import too_little_new
from services.dataset_builder.inspection.gates import describe_failed_gates, evaluate_gates, way_out
from services.dataset_builder.inspection.report import Inspected
from services.dataset_builder.inspection.summaries import summaries
from services.dataset_builder.job_input import BuildJob
from services.dataset_builder.pipeline import Inputs, build_dataset
from services.dataset_builder.publishing.publish import StagedBuild, delete_staged, staged_build
from services.dataset_builder.publishing.versions import read_parent
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from services.dataset_builder.storage.traffic import PostgresTrafficStore
from shared.answers import answer_form
from shared.conversation import has_own_form
from shared.cycle_step import CycleStep
from shared.errors import StepImpossible, StepSkipped
from shared.files import write_atomically
from shared.identity import content_hash, event_id, load_or_create_key
from shared.jobs import Job, Progress
from shared.privacy.redaction import Redactor, Rules
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.failure_modes import read_members
from shared.storage.golden_sets import read_golden_set

NAME = "dataset_builder"
INPUTS = (CorrectionSubmitted, FeedbackGiven, SubjectForgotten)
STEP = CycleStep(NAME, "dataset", inputs=tuple(topic_of(event).name for event in INPUTS))
POSTGRES_VARIABLE = "RATCHET_POSTGRES"
"""Has the database's address in a job's process: the password in it must not be in the job's file."""
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "4194304", "OMP_NUM_THREADS": "1"}
"""Makes glibc give memory back that a job's process has freed: most of a build's large arrays live for seconds."""
_QUESTIONS = "questions.jsonl"
_SKIPPED_WAY_OUT = "Nothing is wrong. Answer more questions in the console, or lower dataset.min_new_examples."


class BuildResult(BaseModel):
    """The event that the cycle's build ended with. A failed gate is a result, too."""

    outcome: DatasetBuilt | StepFailed


def job_name(cycle: FailuresClustered) -> str:
    """Return the job's name, one for each cycle, so that a redelivery attaches to its job."""
    return f"{cycle.task}-{content_hash(cycle.task, cycle.cycle_id or '')}"


def read_questions(job: Job) -> Iterator[LabelRequested]:
    """Yield what people are to be asked about the dataset."""
    for line in (job.read(_QUESTIONS) or b"").splitlines():
        yield LabelRequested.model_validate_json(line)


def delete_texts(folder: Path) -> None:
    """Delete a job's published questions, and what a killed process has left: they hold texts of people."""
    (folder / _QUESTIONS).unlink(missing_ok=True)
    delete_staged(folder)


async def build_on_postgres(job: BuildJob, folder: Path, progress: Progress, score: Scorer) -> BuildResult:
    """Do as `build_version`, with the corrections in PostgreSQL."""
    engine = build_engine(Settings(), NAME)
    try:
        store, traffic = PostgresCorrectionStore(engine), PostgresTrafficStore(engine)
        artifacts = ArtifactStore(job.artifacts, job.cache)
        return await build_version(job, store, traffic, artifacts, folder, progress, score)
    finally:
        await engine.dispose()


async def build_version(
    job: BuildJob,
    store: PostgresCorrectionStore,
    traffic: PostgresTrafficStore,
    artifacts: ArtifactStore,
    folder: Path,
    progress: Progress,
    score: Scorer | None = None,
) -> BuildResult:
    """Build, check and publish a version; store the outcome and the questions, then return the outcome.

    `score`: the model that doubts labels; without it none looks wrong.
    Raises DependencyUnavailable until the store has all inputs: it may have been restored since the job was submitted.
    """
    stored = await store.outcome(job.cycle.cycle_id or "")
    if stored is not None:
        return BuildResult.model_validate({"outcome": stored})
    delete_texts(folder)  # Of a run that was killed.
    await STEP.check_inputs(job.cycle.fence, store)
    golden = [row.prompt for row in await asyncio.to_thread(read_golden_set, artifacts, job.spec)]
    modes = await asyncio.to_thread(read_members, artifacts, job.cycle.uri)
    while True:
        inspected, count = await _inspected_build(job, store, traffic, artifacts, golden, modes, progress, score)
        questions = b"".join(asked.model_dump_json().encode() + b"\n" for asked in inspected.build.questions)
        # First: a second run with a stored outcome does not build again.
        write_atomically(folder / _QUESTIONS, questions)
        now = utc_now()
        with staged_build(inspected, job.cycle, now, folder) as staged:
            # Below the fence, corrections only ever disappear.
            async with store.concluding(job.cycle.task, job.cycle.fence, count) as save:
                if save is not None:
                    outcome: DatasetBuilt | StepFailed
                    try:
                        outcome = conclude(job.cycle, inspected, staged, artifacts, now)
                    except StepImpossible as error:
                        outcome = STEP.impossible(job.cycle, error)
                    await save(outcome, inspected.build.places)
                    return BuildResult(outcome=outcome)
        delete_texts(folder)
        del inspected, staged, questions  # Somebody was erased meanwhile; two builds are too much for the memory.


async def _inspected_build(
    job: BuildJob,
    store: PostgresCorrectionStore,
    traffic: PostgresTrafficStore,
    artifacts: ArtifactStore,
    golden: Sequence[tuple[Message, ...]],
    modes: Mapping[str, str],
    progress: Progress,
    score: Scorer | None,
) -> tuple[Inspected, int]:
    """Return a build with all that is published of it, and of how many corrections it is."""
    revisions = await store.revisions(job.cycle.task)
    votes, personal_data, count, preferences = await _read_votes(job, store, revisions, progress)
    progress(2, 4, f"building from {count} corrections")
    inputs = Inputs(
        votes,
        job.spec,
        # After the corrections: whoever is erased in between is missed among them in the end (`concluding`).
        places=await store.places(job.cycle.task),
        revisions=revisions,
        golden=golden,
        modes=modes,
        questions_drawn=job.cycle.questions_drawn,
        drawn_since=job.cycle.drawn_since,
    )
    parent = read_parent(artifacts, await store.last_version(job.spec.name))
    base_model = job.models_folder / job.spec.base_model  # Which is not on every machine.
    count_tokens = ChatTokens(base_model) if base_model.is_dir() else None
    build = await asyncio.to_thread(build_dataset, inputs, score, count_tokens)
    answers = await traffic.answer_counts(job.spec.name, job.cycle.task_revision, job.traffic_hours)
    answers = answer_form(job.spec).counts_by_answer(answers)
    progress(3, 4, "checking and publishing")
    gates = evaluate_gates(build, job.spec, answers, personal_data)
    measures = summaries(build, job.spec, personal_data)
    held_out = [*(example.prompt for example in build.dataset.eval), *inputs.frozen]
    pairs = [*mark_held_out(preferences.newest(job.spec), held_out, job.spec), *build.edits]
    return Inspected(build, votes, job.spec, gates, answers, measures, parent, pairs), count


async def _read_votes(
    job: BuildJob,
    store: PostgresCorrectionStore,
    revisions: Mapping[str, Revision],
    progress: Progress,
) -> tuple[list[Vote], PersonalData, int, Preferences]:
    """Return votes and preferences without personal data, what was found, and the number of corrections; notes which
    are clear."""
    spec, rules = job.spec, Rules.of(job.spec.redaction)
    prompts = (revision.system_prompt for revision in revisions.values())
    own_texts = (spec.system_prompt, *prompts, *spec.labels, *spec.renamed_labels)
    forms = not has_own_form(spec)
    redactor = Redactor(load_or_create_key(job.secrets_folder, "surrogates"))
    search = PersonalDataPass(redactor, rules, own_texts, forms=forms)
    votes, found, count, withdrawn = list[Vote](), PersonalData(), 0, Withdrawals()
    preferences = Preferences()
    by = rules_id(rules, forms=forms)
    total = await store.count_below(spec.name, job.cycle.fence)
    async for part in store.corrections_below(spec.name, job.cycle.fence, by):
        reviewers, in_reviewers = await asyncio.to_thread(search.clean, part.others.reviewers)
        users, in_users = await asyncio.to_thread(search.clean, part.others.users)
        found += in_reviewers + in_users
        reviewers += part.clear.reviewers
        votes += votes_of(reviewers, [*users, *part.clear.users])
        withdrawn.add(reviewers)
        preferences.add(reviewers)
        count += len(part.clear) + len(part.others)
        progress(2 * count / max(total, 1), 4, f"read {count} of {total} corrections, looking for personal data")
    await store.save_clear(by, found.clear)
    # They were read in no order, and their texts are embedded in this one: batches round alike in every build of them.
    left = sorted(withdrawn.left_of(votes), key=OLDEST_FIRST)
    return left, found, count, preferences


def conclude(
    cycle: FailuresClustered, inspected: Inspected, staged: StagedBuild, artifacts: ArtifactStore, now: datetime
) -> DatasetBuilt:
    """Publish a build with its report; returns the event that says it passed.

    Raises StepSkipped where too little is new, which has no report, StepImpossible where a gate stops the build.
    """
    spec, dataset, gates, parent = inspected.spec, inspected.build.dataset, inspected.gates, inspected.parent
    if (reason := too_little_new(dataset, spec, parent, inspected.difference)) is not None:
        raise StepSkipped(reason, _SKIPPED_WAY_OUT)
    uri = artifacts.publish(staged.folder, staged.kind, staged.name)
    if not staged.report.passed:
        reason = f"the dataset of {len(inspected.votes)} corrections did not pass: {describe_failed_gates(gates)}"
        raise StepImpossible(reason, way_out(gates, spec), uri)
    return DatasetBuilt(
        event_id=event_id("datasets.built", cycle.cycle_id),
        occurred_at=now,
        task=cycle.task,
        task_revision=cycle.task_revision,
        cycle_id=cycle.cycle_id,
        dataset_id=staged.dataset_id,
        uri=uri,
        parent=staged.report.parent,
        train_examples=len(dataset.train),
        eval_examples=len(dataset.eval),
        left_out=dataset.left_out_counts(),
        gates=gates,
        data_cutoff=cycle.data_cutoff,
        spec=spec,
    )
