"""Which parts there are, and how to pick from them by name."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.devstack.errors import PartError
from deploy.devstack.part import Part
from deploy.devstack.parts.kafka import KafkaPart
from deploy.devstack.parts.postgres import PostgresPart
from deploy.devstack.parts.services import ALL, SERVICES, ServicesPart
from deploy.devstack.parts.unleash import UnleashPart
from deploy.devstack.parts.vllm import VllmPart

INFRASTRUCTURE = ("kafka", "postgres", "unleash", "vllm")
PARTS = (*INFRASTRUCTURE, ALL)
STOP_ORDER: tuple[frozenset[str], ...] = (
    frozenset({ALL, *SERVICES}),
    frozenset({"unleash", "vllm"}),
    frozenset({"kafka", "postgres"}),
)


def part_named(name: str) -> Part:
    """The part of that name; a service's name is the part that runs only it. Raises PartError."""
    known: dict[str, Part] = {
        "kafka": KafkaPart(),
        "postgres": PostgresPart(),
        "unleash": UnleashPart(),
        "vllm": VllmPart(),
        ALL: ServicesPart(),
    }
    if name in SERVICES:
        return ServicesPart(name)
    if name not in known:
        services = ", ".join(SERVICES)
        raise PartError(f"there is no part called {name!r}", f"Parts: {', '.join(PARTS)}; services: {services}")
    return known[name]


def select(parts: Sequence[str] | None = None, without: Sequence[str] = (), split: bool = False) -> list[Part]:
    """The parts to act on. `split`: each service is a part of its own."""
    for name in without:
        part_named(name)
    wanted = [name for name in (parts or PARTS) if name not in without]
    if split and ALL in wanted:
        wanted = [name for name in wanted if name != ALL] + [name for name in SERVICES if name not in without]
    return [part_named(name) for name in dict.fromkeys(wanted)]


def with_split_services(parts: Sequence[str]) -> set[str]:
    """For stopping: `services` means all of them, in whatever shape they run. Raises PartError."""
    for name in parts:
        part_named(name)
    return set(parts) | (set(SERVICES) if ALL in parts else set())
