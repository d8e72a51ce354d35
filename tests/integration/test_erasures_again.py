"""A database that is restored to a time before an erasure reads it again, though its consumer group has read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.predictions import SubjectForgotten
from services.console.main import build as build_console
from services.console.settings import ConsoleSettings
from services.dataset_builder.main import build as build_dataset_builder
from services.dataset_builder.settings import DatasetBuilderSettings
from services.deployer.main import build as build_deployer
from services.deployer.settings import DeployerSettings
from services.failure_miner.main import build as build_failure_miner
from services.shadow.main import build as build_shadow
from services.shadow.settings import ShadowSettings
from shared.service import Service
from shared.settings import Settings
from shared.storage.database import build_engine, transaction
from tests.integration.publishing import publish
from tests.waiting import until

TOPIC = topic_of(SubjectForgotten).name
BUILDS: dict[str, tuple[Callable[[Any], Service], type[Settings]]] = {
    "console": (build_console, ConsoleSettings),
    "dataset_builder": (build_dataset_builder, DatasetBuilderSettings),
    "deployer": (build_deployer, DeployerSettings),
    "failure_miner": (build_failure_miner, Settings),
    "shadow": (build_shadow, ShadowSettings),
}
FORGOTTEN, OFFSETS = sa.table("forgotten", sa.column("task")), sa.table("offsets", sa.column("topic"))


@pytest.mark.stack
@pytest.mark.parametrize("name", BUILDS)
async def test_a_restored_database_reads_the_erasures_again(stack_settings: Settings, name: str) -> None:
    build, kind = BUILDS[name]
    settings, task = kind.load(home=stack_settings.home), f"again-{uuid4().hex[:8]}"
    engine = build_engine(settings, name)
    erasure = SubjectForgotten(task=task, task_revision="r1", subject_hash="0" * 24, occurred_at=utc_now())
    await publish(settings, "scheduler", erasure)

    async def is_forgotten() -> bool:
        async with transaction(engine) as connection:
            return bool(
                await connection.scalar(
                    sa.select(sa.func.count()).select_from(FORGOTTEN).where(FORGOTTEN.c.task == task)
                )
            )

    for _ in range(2):
        service = build(settings)
        for prepare in service.prepare:
            await prepare()
        assert service.broker is not None
        (reading,) = (each for each in service.broker.subscribers if TOPIC in each.topic_names)  # type: ignore[union-attr]
        await service.broker.connect()
        await reading.start()
        try:
            await until(is_forgotten)
        finally:
            await service.broker.stop()
            for close in service.close:
                await close()
        async with transaction(engine) as connection:  # Back to the time before.
            await connection.execute(sa.delete(FORGOTTEN).where(FORGOTTEN.c.task == task))
            await connection.execute(sa.delete(OFFSETS).where(OFFSETS.c.topic == TOPIC))
    await engine.dispose()
