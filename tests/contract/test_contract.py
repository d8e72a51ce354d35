"""The contract: generated files are current, every event is used, no service acknowledges before its handler."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import jsonschema_rs
import pytest
from faststream import AckPolicy
from pydantic import BaseModel

from deploy.contract import drift
from schemas.base import Event
from schemas.catalog import (
    DOCUMENTS,
    SERVICES,
    TOPICS,
    key_of,
    topic_of,
    topics_consumed_by,
    topics_produced_by,
)
from schemas.predictions import PredictionSubmitted
from schemas.tasks import TaskKind
from services.dataset_builder.job import STEP as DATASET
from services.failure_miner.handlers import STEP as FAILURES
from services.scheduler.clients import FENCED_TOPICS
from shared.service import Service

ROOT = Path(__file__).parent.parent.parent
ALL_EXAMPLES = sorted((ROOT / "schemas" / "examples").glob("*/*.json"))
EXAMPLES = [path for path in ALL_EXAMPLES if path.parent.name not in DOCUMENTS]
DOCUMENT_EXAMPLES = [path for path in ALL_EXAMPLES if path.parent.name in DOCUMENTS]


def build_processes(service: str) -> list[Service]:
    """The processes of a service: its main, and others such as the gateway's shipper; none of them is started."""
    files = sorted((ROOT / "services" / service).rglob("*.py"))
    builds = re.compile(r"^def build\(.*\) -> Service:", re.MULTILINE)
    entries = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if builds.search(path.read_text())
    ]
    assert f"services.{service}.main" in entries
    return [importlib.import_module(entry).build() for entry in entries]


def test_generated_schemas_are_what_the_code_says() -> None:
    assert drift() == [], "run `ratchet contract generate` and commit the result"


def test_every_event_class_has_a_topic() -> None:
    def leaves(kind: type[Event]) -> set[type[Event]]:
        children = [child for child in kind.__subclasses__() if child.__module__.startswith("schemas.")]
        return set().union(*map(leaves, children)) if children else {kind}

    assert leaves(Event) == {topic.event for topic in TOPICS}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_is_produced_consumed_keyed_and_versioned(topic) -> None:  # type: ignore[no-untyped-def]
    assert topic.consumers, "every event has a consumer"
    assert topic.producers or topic.event is PredictionSubmitted, "only applications write from outside"
    assert set(topic.producers) | set(topic.consumers) <= set(SERVICES)
    assert topic.key in topic.event.model_fields
    assert topic.name.rsplit(".", 1)[1].startswith("v")


def test_events_and_their_parts_are_frozen() -> None:
    def models(kind: type[BaseModel]) -> set[type[BaseModel]]:
        return {kind}.union(*map(models, kind.__subclasses__()))

    contract = [model for model in models(BaseModel) if model.__module__.startswith("schemas.")]
    assert len(contract) > 30
    assert [model for model in contract if not model.model_config.get("frozen")] == []


def without_new_fields(example: object, written: object) -> object:
    """`written` without the fields that were added after the example message, at any depth."""
    if isinstance(example, dict) and isinstance(written, dict):
        return {name: without_new_fields(example[name], written[name]) for name in example if name in written}
    if isinstance(example, list) and isinstance(written, list) and len(example) == len(written):
        return [without_new_fields(*pair) for pair in zip(example, written, strict=True)]
    return written


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_example_messages_are_still_read_and_written_the_same(path: Path) -> None:
    event_class = next(topic.event for topic in TOPICS if topic.name == path.parent.name)
    example = json.loads(path.read_text())
    event = event_class.model_validate(example)
    assert key_of(event)
    assert without_new_fields(example, json.loads(event.model_dump_json())) == example
    assert topic_of(type(event)).name == path.parent.name


def test_every_topic_has_an_example_message() -> None:
    assert {path.parent.name for path in EXAMPLES} == {topic.name for topic in TOPICS}


@pytest.mark.parametrize("path", DOCUMENT_EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_example_documents_are_still_read_and_written_the_same_and_follow_their_schema(path: Path) -> None:
    """By the published schema, not by the code: that is what other languages have."""
    example = json.loads(path.read_text())
    document = DOCUMENTS[path.parent.name].model_validate(example)
    assert without_new_fields(example, json.loads(document.model_dump_json())) == example
    schema = json.loads((ROOT / "schemas" / "json" / path.parent.name).read_text())
    current = json.loads(document.model_dump_json())
    check = jsonschema_rs.validator_for(schema, validate_formats=True)
    assert [error.message for error in check.iter_errors(current)] == []
    for name in schema["required"]:
        assert not check.is_valid({other: value for other, value in current.items() if other != name}), name


def test_every_document_has_an_example_and_every_kind_of_task_an_evaluation() -> None:
    assert {path.parent.name for path in DOCUMENT_EXAMPLES} == set(DOCUMENTS)
    kinds = {json.loads(path.read_text()).get("kind") for path in DOCUMENT_EXAMPLES if "evaluation" in path.parent.name}
    assert kinds == set(TaskKind)


def test_a_consumer_ignores_fields_that_a_newer_producer_adds() -> None:
    path = EXAMPLES[0]
    event_class = next(topic.event for topic in TOPICS if topic.name == path.parent.name)
    event_class.model_validate({**json.loads(path.read_text()), "added_later": 1})


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_subscribes_to_what_the_catalog_says(service: str) -> None:
    subscribers = [subscriber for built in build_processes(service) for subscriber in built.broker.subscribers]
    subscribed = {topic for subscriber in subscribers for topic in subscriber.topic_names}
    assert subscribed == {topic.name for topic in topics_consumed_by(service)}


def test_a_cycles_fence_has_every_topic_that_a_step_waits_for() -> None:
    assert {*FAILURES.inputs, *DATASET.inputs} == set(FENCED_TOPICS)


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_acknowledges_before_its_handler_is_done(service: str) -> None:
    tables = {topic.name for topic in TOPICS if topic.compacted}
    for subscriber in [subscriber for built in build_processes(service) for subscriber in built.broker.subscribers]:
        if subscriber.group_id is None:  # A table: every process reads it anew and acknowledges nothing.
            assert set(subscriber.topic_names) <= tables
        else:
            assert subscriber.ack_policy is AckPolicy.NACK_ON_ERROR


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_publishes_what_the_catalog_says(service: str) -> None:
    """A service constructs exactly the events that the catalog lets it produce.

    The gateway makes its prediction without the class, in one place, which asks the catalog for its topic.
    """
    constructed = set()
    for path in (ROOT / "services" / service).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                constructed.add(node.func.id)
                if path.name == "builder.py" and node.func.id == "topic_of":
                    constructed |= {argument.id for argument in node.args if isinstance(argument, ast.Name)}
            elif isinstance(node, ast.Attribute) and node.attr == "progressed":  # STEP.progressed, as of `CycleStep`.
                constructed.add("StepProgressed")
    if "CycleStep" in constructed:  # shared/cycle_step.py says why a step failed, for every service that has one.
        constructed.add("StepFailed")
    events = {topic.event.__name__ for topic in TOPICS}
    assert constructed & events == {topic.event.__name__ for topic in topics_produced_by(service)}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_opens_with_the_topics_that_it_reads_and_writes(service: str) -> None:
    """The first thing that a newcomer reads of it. `cycles.*` is all topics of the family."""
    read, _, written = (importlib.import_module(f"services.{service}").__doc__ or "").partition("\nproduces ")
    for part, topics in ((read, topics_consumed_by(service)), (written, topics_produced_by(service))):
        said = {
            topic.name for topic in TOPICS
            if re.search(rf"\b{re.escape(topic.name[:-3])}\b", part) or f"{topic.name.split('.')[0]}.*" in part
        }  # fmt: skip
        assert said == {topic.name for topic in topics}


def test_only_consumers_py_subscribes() -> None:
    for path in [*(ROOT / "services").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]:
        if path != ROOT / "shared" / "kafka" / "consumers.py":
            assert ".subscriber(" not in path.read_text(), f"{path}: subscribe through shared.kafka.consumers.Consumers"
