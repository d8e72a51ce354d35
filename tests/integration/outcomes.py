"""Stores the outcome of a build whose corrections are no matter."""

from __future__ import annotations

from schemas.base import Event
from services.dataset_builder.building.places import Places
from services.dataset_builder.storage.corrections import PostgresCorrectionStore


async def save_outcome(store: PostgresCorrectionStore, event: Event, places: Places) -> None:
    """Conclude a build of no corrections: below an empty fence there are none."""
    async with store.concluding(event.task, (), 0) as save:
        assert save is not None
        await save(event, places)
