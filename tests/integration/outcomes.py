"""Stores the outcome of a build whose corrections are no matter."""

from __future__ import annotations

from schemas.base import Event
from services.dataset_builder.pipeline import Decisions
from services.dataset_builder.storage.corrections import PostgresCorrectionStore


async def save_outcome(store: PostgresCorrectionStore, event: Event, decisions: Decisions) -> None:
    """Conclude a build of no corrections: below an empty fence there are none."""
    async with store.concluding(event.task, (), 0) as save:
        assert save is not None
        await save(event, decisions)
