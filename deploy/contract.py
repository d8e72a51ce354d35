"""Renders the contract for other languages and for people: JSON Schema per topic and document, AsyncAPI 3 per service.

The command is `ratchet contract`. The AsyncAPI documents come from the catalog, through which services subscribe and
publish, so they carry keys, partitions and retention, which a scan of the handlers could not find.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from schemas.base import Frozen
from schemas.catalog import (
    COMPACTION_LAG,
    DOCUMENTS,
    SERVICES,
    TOPICS,
    Topic,
    dead_letter_topic,
    topics_consumed_by,
    topics_produced_by,
)

SCHEMAS_FOLDER = Path(__file__).parent.parent / "schemas"


def render() -> dict[Path, str]:
    """Render all generated files: path relative to `schemas/` → content, the same on every machine."""
    contents: dict[str, type[Frozen]] = {topic.name: topic.event for topic in TOPICS}
    contents |= {name.removesuffix(".json"): kind for name, kind in DOCUMENTS.items()}
    files = {Path("json") / f"{name}.json": _dump(_json_schema(name, kind)) for name, kind in contents.items()}
    files |= {Path("asyncapi") / f"{service}.json": _dump(_asyncapi(service)) for service in SERVICES}
    return files


def generate(folder: Path = SCHEMAS_FOLDER) -> list[Path]:
    """Write the files that changed and remove those no longer generated. Returns the paths touched."""
    generated = render()
    touched = []
    for path, content in generated.items():
        target = folder / path
        if not _same(target, content):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            touched.append(path)
    for path in _existing(folder) - set(generated):
        (folder / path).unlink()
        touched.append(path)
    return sorted(touched)


def drift(folder: Path = SCHEMAS_FOLDER) -> list[Path]:
    """Return the generated files that are missing, different or no longer generated."""
    generated = render()
    stale = {path for path, content in generated.items() if not _same(folder / path, content)}
    return sorted(stale | (_existing(folder) - set(generated)))


def _existing(folder: Path) -> set[Path]:
    return {p.relative_to(folder) for kind in ("json", "asyncapi") for p in (folder / kind).glob("*.json")}


def _same(path: Path, content: str) -> bool:
    return path.exists() and path.read_text() == content


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _json_schema(name: str, kind: type[Frozen]) -> dict[str, Any]:
    schema = kind.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": name, **schema}


def _asyncapi(service: str) -> dict[str, Any]:
    consumed, produced = topics_consumed_by(service), topics_produced_by(service)
    channels = {topic.name: _channel(topic) for topic in (*consumed, *produced)}
    dead_letters = dead_letter_topic(service)
    channels[dead_letters] = {
        "address": dead_letters,
        "messages": {"record": {"summary": "The record as it came, encrypted, with its key and why it failed."}},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": f"Ratchet {service}", "version": "1", "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            **{f"receive {t.name}": _operation("receive", t.name) for t in consumed},
            **{f"send {t.name}": _operation("send", t.name) for t in produced},
            f"send {dead_letters}": _operation("send", dead_letters),
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    event = topic.event.__name__
    configs: dict[str, Any] = {
        "cleanup.policy": ["compact" if topic.compacted else "delete"], "retention.ms": _milliseconds(topic.retention),
    }  # fmt: skip
    if topic.compacted:
        configs["min.compaction.lag.ms"] = _milliseconds(COMPACTION_LAG)
    return {
        "address": topic.name,
        "messages": {event: {"name": event, "payload": {"$ref": f"../json/{topic.name}.json"}}},
        "bindings": {"kafka": {"partitions": topic.partitions, "topicConfiguration": configs}},
        "x-key": topic.key,
    }


def _milliseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)


def _operation(action: str, channel: str) -> dict[str, Any]:
    pointer = channel.replace("~", "~0").replace("/", "~1")
    return {"action": action, "channel": {"$ref": f"#/channels/{pointer}"}}
