"""The task of the simulation: the settings of a team that reviews some hundred answers a week."""

from __future__ import annotations

from schemas.conversation import Message, Role
from schemas.golden import GoldenRow
from schemas.task_settings import DatasetSettings, FailureSettings, RedactionSettings, RolloutSettings
from schemas.tasks import TaskKind, TaskSpec
from shared.identity import content_hash
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import golden_set, publish_golden_set
from tests.benchmarks.banking77 import PROMPT
from tests.benchmarks.twelve_weeks.stand_ins.engine import BASE
from tests.benchmarks.twelve_weeks.world.stream import Corpus, Ints

TASK = "bank"
QUESTIONS_PER_DAY = 90


def make_task(corpus: Corpus, golden: Ints, artifacts: ArtifactStore) -> TaskSpec:
    """Return the task, with its golden set published. What is not set here is as it is for every task."""
    rows = [_golden_row(corpus, int(question)) for question in golden]
    publish_golden_set(artifacts, TASK, rows)
    return TaskSpec(
        name=TASK,
        kind=TaskKind.CLASSIFICATION,
        base_model=BASE,
        system_prompt=PROMPT,
        labels=corpus.names,
        cron="0 3 * * 1",
        golden_set=golden_set(TASK, rows),
        failures=FailureSettings(review_budget_per_day=QUESTIONS_PER_DAY, audit_share=0.08),
        dataset=DatasetSettings(),
        # Banking77 has no personal data, the models that look for it take a minute a cycle, and the benchmark
        # `redaction` measures them.
        redaction=RedactionSettings(enabled=False),
        # Steps and control that a small task needs, so that a promotion is over before the next week's candidate comes.
        # The pace of replays is by the wall's clock, which this benchmark outruns.
        rollout=RolloutSettings(
            canary_steps=(10, 50), min_canary_users=15, control_days=2.0, shadow_requests_per_second=10_000.0
        ),
    )


def _golden_row(corpus: Corpus, question: int) -> GoldenRow:
    text, answer = corpus.texts[question], corpus.names[corpus.labels[question]]
    messages = (Message(role=Role.USER, content=text), Message(role=Role.ASSISTANT, content=answer))
    return GoldenRow(row_id=content_hash(text), messages=messages)
