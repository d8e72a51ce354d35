"""The builder's step of a cycle, on the real broker, and the rows of what it published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.base import utc_now
from schemas.cycles import StepFailed
from schemas.datasets import DatasetBuilt, Example
from schemas.failures import FailuresClustered
from schemas.tasks import TaskSpec
from services.scheduler.clients import KafkaFenceReader
from shared.settings import Settings
from tests.integration.gateway_process import read_topic
from tests.integration.publishing import publish
from tests.waiting import until


async def after_cycle(settings: Settings, spec: TaskSpec, number: int = 1) -> DatasetBuilt | StepFailed:
    """Start the builder's step of a cycle; return what it ended with."""
    fence = await KafkaFenceReader(settings).fence()
    cycle_id = f"{spec.name}-{number}"
    event = FailuresClustered(
        task=spec.name, task_revision=spec.revision, cycle_id=cycle_id, suspects=0, noise=0, modes=(),
        data_cutoff=utc_now(), fence=fence,
    )  # fmt: skip
    await publish(settings, "failure_miner", event)
    outcomes: list[Any] = []

    async def ended() -> bool:
        for topic, kind in (("datasets.built.v1", DatasetBuilt), ("steps.failed.v1", StepFailed)):
            values = [value for _, value in await read_topic(settings, topic) if cycle_id.encode() in value]
            outcomes.extend(kind.model_validate_json(value) for value in values)
        return bool(outcomes)

    await until(ended)
    outcome: DatasetBuilt | StepFailed = outcomes[0]
    return outcome


def rows_of(built: DatasetBuilt, name: str) -> list[Example]:
    lines = (Path(built.uri) / f"{name}.jsonl").read_text().splitlines()
    return [Example.model_validate_json(line) for line in lines]
