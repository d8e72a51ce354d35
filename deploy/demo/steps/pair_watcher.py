"""Reads pairs and labels from Kafka as they appear, in no consumer group: nothing is acknowledged or changed."""

from __future__ import annotations

import asyncio
import logging

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from deploy.demo.pairs import PairLedger
from schemas.catalog import topic_of
from schemas.labels import CorrectionSubmitted
from schemas.rollouts import ShadowCompared
from shared.errors import RatchetError
from shared.kafka.clients import open_consumer
from shared.settings import Settings

logger = logging.getLogger(__name__)


async def watch_pairs(settings: Settings, task: str, ledger: PairLedger) -> None:
    """Fill `ledger` until cancelled. Where Kafka cannot be read it ends quietly: only a display goes without."""
    pairs, labels = topic_of(ShadowCompared), topic_of(CorrectionSubmitted)
    late: list[CorrectionSubmitted] = []
    try:
        async with open_consumer(settings, group_id=None, auto_offset_reset="earliest") as consumer:
            places = [TopicPartition(topic.name, n) for topic in (pairs, labels) for n in range(topic.partitions)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            while True:
                found = await consumer.getmany(timeout_ms=500)
                for place, records in found.items():
                    for record in records:
                        _take(record.value, place.topic == pairs.name, task, ledger, late)
                for label in late:  # A label may be read before its pair: they lie in different topics.
                    ledger.add_label(label)
                await asyncio.sleep(0.2)
    except (KafkaError, OSError, RatchetError) as error:
        logger.warning("the running wealth is not shown: %s", error)


def _take(value: bytes, is_pair: bool, task: str, ledger: PairLedger, late: list[CorrectionSubmitted]) -> None:
    try:
        if is_pair:
            pair = ShadowCompared.model_validate_json(value)
            if pair.task == task:
                ledger.add_pair(pair)
        else:
            label = CorrectionSubmitted.model_validate_json(value)
            if label.task == task and label.ticket_id is not None:
                late.append(label)
    except ValidationError:
        return  # A broken event is its consumers' business: it is in their dead letters.
