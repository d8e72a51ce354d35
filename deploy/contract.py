"""The contract, written out for other languages and for people: JSON Schema per topic, AsyncAPI 3 per service.

`ratchet contract generate` writes `schemas/json/` and `schemas/asyncapi/`; `ratchet contract check` fails on drift.
The AsyncAPI documents come from the catalog, which is also what services subscribe and publish through, so they
carry keys, partitions and retention that a scan of the handlers could not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from schemas.catalog import SERVICES, TOPICS, Topic, dead_letter_topic, topics_consumed_by, topics_produced_by

app = typer.Typer(no_args_is_help=True, help="The generated part of the contract: JSON Schema and AsyncAPI.")

SCHEMAS_FOLDER = Path(__file__).parent.parent / "schemas"


def render() -> dict[Path, str]:
    """All generated files: path relative to `schemas/`, and content. The same on every machine."""
    files = {Path("json") / f"{topic.name}.json": _dump(_json_schema(topic)) for topic in TOPICS}
    files |= {Path("asyncapi") / f"{service}.json": _dump(_asyncapi(service)) for service in SERVICES}
    return files


def generate(folder: Path = SCHEMAS_FOLDER) -> list[Path]:
    """Write what changed and remove what is no longer generated; returns the paths touched."""
    wanted = render()
    touched = []
    for path, content in wanted.items():
        target = folder / path
        if not target.exists() or target.read_text() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            touched.append(path)
    for path in _existing(folder) - set(wanted):
        (folder / path).unlink()
        touched.append(path)
    return sorted(touched)


def drift(folder: Path = SCHEMAS_FOLDER) -> list[Path]:
    """Generated files that are missing, different or no longer wanted."""
    wanted = render()
    stale = {path for path, content in wanted.items() if not _same(folder / path, content)}
    return sorted(stale | (_existing(folder) - set(wanted)))


def _existing(folder: Path) -> set[Path]:
    return {p.relative_to(folder) for kind in ("json", "asyncapi") for p in (folder / kind).glob("*.json")}


def _same(path: Path, content: str) -> bool:
    return path.exists() and path.read_text() == content


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _json_schema(topic: Topic) -> dict[str, Any]:
    schema = topic.event.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": topic.name, **schema}


def _asyncapi(service: str) -> dict[str, Any]:
    consumed, produced = topics_consumed_by(service), topics_produced_by(service)
    channels = {topic.name: _channel(topic) for topic in (*consumed, *produced)}
    letters = dead_letter_topic(service)
    channels[letters] = {"address": letters, "messages": {"record": {"summary": "The raw record, as it came."}}}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": f"Ratchet {service}", "version": "1", "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            **{f"receive {t.name}": _operation("receive", t.name) for t in consumed},
            **{f"send {t.name}": _operation("send", t.name) for t in produced},
            f"send {letters}": _operation("send", letters),
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    event = topic.event.__name__
    return {
        "address": topic.name,
        "messages": {event: {"name": event, "payload": {"$ref": f"../json/{topic.name}.json"}}},
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": ["compact" if topic.compacted else "delete"],
                    "retention.ms": int(topic.retention.total_seconds() * 1000),
                },
            }
        },
        "x-key": topic.key,
    }


def _operation(action: str, channel: str) -> dict[str, Any]:
    pointer = channel.replace("~", "~0").replace("/", "~1")
    return {"action": action, "channel": {"$ref": f"#/channels/{pointer}"}}


@app.command("generate")
def generate_command() -> None:
    """Write schemas/json and schemas/asyncapi anew. Commit the result."""
    touched = generate()
    typer.echo("\n".join(map(str, touched)) or "nothing changed")


@app.command("check")
def check_command() -> None:
    """Fail if the committed files are not what the code says."""
    if stale := drift():
        typer.echo("out of date: " + ", ".join(map(str, stale)) + "\nRun: ratchet contract generate", err=True)
        raise typer.Exit(1)
    typer.echo("the generated contract is up to date")
