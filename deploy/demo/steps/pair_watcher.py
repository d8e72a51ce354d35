"""Reads pairs and labels from Kafka as they appear, in no consumer group: nothing is committed or changed."""

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
    """Fill `ledger` until cancelled. If Kafka cannot be read it ends with a warning: only the display needs it."""
    pair_topic, label_topic = topic_of(ShadowCompared), topic_of(CorrectionSubmitted)
    labels: list[CorrectionSubmitted] = []
    try:
        async with open_consumer(settings, group_id=None, auto_offset_reset="earliest") as consumer:
            partitions = [TopicPartition(t.name, n) for t in (pair_topic, label_topic) for n in range(t.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            while True:
                for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                    for record in records:
                        _add_record(record.value, partition.topic == pair_topic.name, task, ledger, labels)
                for label in labels:  # All of them: one may be read before its pair, which is on another topic.
                    ledger.add_label(label)
                await asyncio.sleep(0.2)
    except (KafkaError, OSError, RatchetError) as error:
        logger.warning("the running wealth is not shown: %s", error)


def _add_record(value: bytes, is_pair: bool, task: str, ledger: PairLedger, labels: list[CorrectionSubmitted]) -> None:
    try:
        if is_pair:
            pair = ShadowCompared.model_validate_json(value)
            if pair.task == task:
                ledger.add_pair(pair)
        else:
            label = CorrectionSubmitted.model_validate_json(value)
            if label.task == task and label.ticket_id is not None:
                labels.append(label)
    except ValidationError:
        return  # An invalid event is in the dead letters of its consumers.
