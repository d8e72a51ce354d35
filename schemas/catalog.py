"""Every topic: its event, producers, consumers, key, partitions and retention; dead-letter topics; documents.

Services subscribe and publish through this list only, so it cannot differ from what runs. Consumers that read a
compacted topic as a table (its last value per key) are listed like any other consumer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from schemas.adapters import AdapterEvaluated, AdapterTrained, EvaluationRequested
from schemas.base import Event, Frozen
from schemas.cycles import CycleFinished, CycleStarted, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt
from schemas.evaluation import EvaluationReport
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, LabelRequested
from schemas.predictions import (
    FeedbackGiven,
    PredictionLogged,
    PredictionsRolledUp,
    PredictionSubmitted,
    RequestObserved,
    SubjectForgotten,
)
from schemas.quality import QualityReport
from schemas.rollouts import RolloutChanged, ShadowCompared
from schemas.tasks import TaskChanged

SERVICES = (
    "gateway", "prediction_log", "failure_miner", "console", "dataset_builder", "trainer", "evaluator", "shadow",
    "deployer", "scheduler",
)  # fmt: skip

_DAY = timedelta(days=1)
_WEEK = timedelta(days=7)
_QUARTER = timedelta(days=92)
_FOREVER = timedelta(milliseconds=-1)
COMPACTION_LAG = _QUARTER
"""How long a compacted topic keeps every event: a service that was away for less has missed none."""


@dataclass(frozen=True)
class Topic:
    """One topic of the contract. `key` is the event's attribute that selects the partition.

    A topic without producers is written by applications, from outside. Producers are services; the command
    `ratchet import` writes corrections, too.
    """

    name: str
    event: type[Event]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    key: str
    partitions: int
    retention: timedelta
    compacted: bool = False


TASK_READERS = (
    "gateway", "prediction_log", "failure_miner", "console", "dataset_builder", "shadow", "deployer", "scheduler",
)  # fmt: skip

TOPICS: tuple[Topic, ...] = (
    Topic("tasks.changed.v1", TaskChanged, ("scheduler",), TASK_READERS, "task", 1, _FOREVER, compacted=True),
    Topic("predictions.submitted.v1", PredictionSubmitted, (), ("gateway",), "prediction_id", 8, _DAY),
    Topic("predictions.logged.v1", PredictionLogged, ("gateway",),
          ("prediction_log", "failure_miner", "shadow"), "request_id", 8, _QUARTER),
    Topic("feedback.given.v1", FeedbackGiven, ("gateway",),
          ("prediction_log", "failure_miner", "dataset_builder", "deployer"), "prediction_id", 4, _QUARTER),
    Topic("requests.observed.v1", RequestObserved, ("gateway",),
          ("prediction_log", "deployer"), "prediction_id", 8, _WEEK),
    Topic("predictions.rolled_up.v1", PredictionsRolledUp, ("prediction_log",),
          ("dataset_builder", "console"), "task", 1, _QUARTER),
    Topic("subjects.forgotten.v1", SubjectForgotten, ("scheduler",),
          ("prediction_log", "failure_miner", "console", "dataset_builder", "shadow", "deployer"), "task", 1, _FOREVER),
    Topic("failures.clustered.v1", FailuresClustered, ("failure_miner",),
          ("dataset_builder", "console", "scheduler"), "task", 1, _FOREVER),
    Topic("labels.requested.v1", LabelRequested, ("failure_miner", "dataset_builder", "deployer"),
          ("console",), "prediction_id", 4, _QUARTER),
    Topic("corrections.submitted.v1", CorrectionSubmitted, ("console",),
          ("failure_miner", "dataset_builder", "deployer"), "prediction_id", 4, _FOREVER),
    Topic("datasets.built.v1", DatasetBuilt, ("dataset_builder",),
          ("trainer", "console", "scheduler"), "task", 1, _FOREVER),
    Topic("adapters.trained.v1", AdapterTrained, ("trainer",),
          ("evaluator", "console", "scheduler"), "task", 1, _FOREVER),
    Topic("adapters.evaluated.v1", AdapterEvaluated, ("evaluator",),
          ("deployer", "console", "scheduler"), "task", 1, _FOREVER),
    Topic("evaluations.requested.v1", EvaluationRequested, ("deployer",), ("evaluator",), "task", 1, _QUARTER),
    Topic("shadow.compared.v1", ShadowCompared, ("shadow",), ("deployer",), "task", 4, _QUARTER),
    Topic("rollouts.changed.v1", RolloutChanged, ("deployer",),
          ("trainer", "evaluator", "shadow", "console", "scheduler"), "task", 1, _FOREVER, compacted=True),
    Topic("cycles.started.v1", CycleStarted, ("scheduler",),
          ("failure_miner", "console"), "task", 1, _FOREVER),
    Topic("cycles.finished.v1", CycleFinished, ("scheduler",),
          ("console", "dataset_builder", "trainer", "evaluator"), "task", 1, _FOREVER),
    Topic("steps.failed.v1", StepFailed,
          ("failure_miner", "dataset_builder", "trainer", "evaluator", "scheduler"),
          ("scheduler", "console", "deployer"), "task", 1, _QUARTER),
    Topic("steps.progressed.v1", StepProgressed, ("dataset_builder", "trainer", "evaluator"),
          ("scheduler", "console"), "task", 1, _WEEK),
)  # fmt: skip

DOCUMENTS: dict[str, type[Frozen]] = {"evaluation.json": EvaluationReport, "quality.json": QualityReport}
"""Files of the artifact store whose schema is generated beside the topics': name → what is in it."""

HEADER_TOPIC = "x-ratchet-topic"
HEADER_PARTITION = "x-ratchet-partition"
HEADER_OFFSET = "x-ratchet-offset"
HEADER_SERVICE = "x-ratchet-service"
HEADER_ERROR = "x-ratchet-error"
HEADER_KEY = "x-ratchet-key"
"""On a dead letter of a record with a key: that key, encrypted. The dead letter has none."""
HEADER_FAILED_AT = "x-ratchet-failed-at"
HEADER_SENT_AT = "x-ratchet-sent-at"
"""Of a dead letter and its replay: when the record was sent first, in ms since 1970."""
HEADER_ENCRYPTED = "x-ratchet-encrypted"
"""On a dead letter: the id of the encryption key."""
HEADER_ONLY = "x-ratchet-only"
"""On a replayed record: the one service it is meant for. The topic's other consumers skip it."""
HEADER_REPLAYED = "x-ratchet-replayed"
"""How often the record was replayed already: it shows an operator which message keeps failing."""


def dead_letter_topic(service: str) -> str:
    """Return the topic of a service's dead letters, from whichever topic they came."""
    return f"deadletters.{service}.v1"


DEAD_LETTERS: tuple[str, ...] = tuple(dead_letter_topic(service) for service in SERVICES)
DEAD_LETTER_RETENTION = _QUARTER

_BY_NAME = {topic.name: topic for topic in TOPICS}
_BY_EVENT = {topic.event: topic for topic in TOPICS}


def topic_of(event: type[Event]) -> Topic:
    """Return the topic of an event class. Raises KeyError for a class that is not in the catalog."""
    return _BY_EVENT[event]


def topic_named(name: str) -> Topic:
    """Return the topic of this name. Raises KeyError with the name if the catalog has none."""
    return _BY_NAME[name]


def key_of(event: Event) -> str:
    """Return the record key of an event: the attribute that the catalog names."""
    return str(getattr(event, topic_of(type(event)).key))


def topics_consumed_by(service: str) -> tuple[Topic, ...]:
    """Return the topics that a service reads."""
    return tuple(topic for topic in TOPICS if service in topic.consumers)


def topics_produced_by(service: str) -> tuple[Topic, ...]:
    """Return the topics that a service writes."""
    return tuple(topic for topic in TOPICS if service in topic.producers)
