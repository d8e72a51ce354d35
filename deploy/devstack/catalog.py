"""The list of parts, and how to select from it by name."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.part import StackPart
from deploy.devstack.parts import models
from deploy.devstack.parts.kafka import KafkaPart, is_tansu
from deploy.devstack.parts.postgres import PostgresPart
from deploy.devstack.parts.s3 import S3Part
from deploy.devstack.parts.services import ALL_SERVICES, ServicesPart
from deploy.devstack.parts.unleash import UnleashPart
from deploy.devstack.parts.vllm import VllmPart

INFRASTRUCTURE = ("s3", "kafka", "postgres", "unleash", "vllm", "models")
PARTS = (*INFRASTRUCTURE, ALL_SERVICES)
STOP_ORDER: tuple[frozenset[str], ...] = (
    frozenset({ALL_SERVICES}),
    frozenset({"unleash", "vllm", "models"}),
    frozenset({"kafka", "postgres"}),
    frozenset({"s3"}),
)


def part_named(name: str) -> StackPart:
    """Return the part of that name. Raises PartError."""
    parts: dict[str, StackPart] = {
        "s3": S3Part(),
        "kafka": KafkaPart(),
        "postgres": PostgresPart(),
        "unleash": UnleashPart(),
        "vllm": VllmPart(),
        "models": models.ModelsPart(),
        ALL_SERVICES: ServicesPart(),
    }
    if name not in parts:
        raise PartError(f"there is no part called {name!r}", f"Parts: {', '.join(PARTS)}")
    return parts[name]


def is_wanted(config: StackConfig, name: str) -> bool:
    """Return True for a part that this home needs: S3 only if something is kept in it."""
    if name == "s3":
        return is_tansu(config) or config.storage == "s3"
    return name != "models" or models.is_wanted(config)


def select(config: StackConfig, parts: Sequence[str] | None = None) -> list[StackPart]:
    """Return the named parts; by default all that this home needs. tansu brings the S3 server that keeps everything."""
    names = list(parts or (name for name in PARTS if is_wanted(config, name)))
    if "kafka" in names and is_tansu(config):
        names.insert(0, "s3")
    return [part_named(name) for name in dict.fromkeys(names)]
