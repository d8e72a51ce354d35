"""`python -m tests.e2e.restart FOLDER`: after a `make loop`, `down` and `up` lose nothing, and the loop goes on.

FOLDER has the report of the loop, whose stack still runs. Topics, ids, end offsets, committed offsets, the lake, the
database, the console's history and the serving adapter are compared before and after; then a second cycle of the same
task must compare its candidate with the adapter that serves. Prints its figures; exits with 1 where something differs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
from kafka.structs import OffsetAndMetadata
from ruamel.yaml import YAML

from deploy.demo.clients import TIMEOUT, ConsoleClient, GatewayAnswer, GatewayClient, SchedulerClient
from deploy.demo.data.csv_file import Row
from deploy.demo.settings import LoopSettings
from deploy.devstack import stack
from schemas.catalog import DEAD_LETTERS, SERVICES, TOPICS
from services.prediction_log.tables import SCHEMAS, open_table
from services.scheduler.task_files import apply_task
from shared.kafka.clients import connect_admin, describe_topics, end_offsets
from shared.kafka.delivery import TopicPartition
from shared.settings import Settings

CYCLE_SECONDS = 600.0
QUICK_CYCLE = {"training": {"epochs": 0.03}, "dataset": {"eval_share": 0.04, "min_new_examples": 0}}
"""Settings of the second cycle's task that do not change its revision: it is compared, not promoted."""
Snapshot = dict[str, Any]


async def read_topics(settings: Settings) -> Snapshot:
    """Return the id, end offsets and the groups' committed offsets of every topic."""
    names = [*(topic.name for topic in TOPICS), *DEAD_LETTERS]
    described = await describe_topics(settings, names)
    partitions = [TopicPartition(name, number) for name, topic in described.items() for number in topic.partitions]
    ends = await end_offsets(settings, partitions)
    groups = [
        f"ratchet.{service}.{topic.name}" for service in SERVICES for topic in TOPICS if service in topic.consumers
    ]
    return {
        "topics": {name: topic.topic_id for name, topic in described.items()},
        "end offsets": {f"{p.topic}-{p.partition}": end for p, end in ends.items()},
        "committed offsets": await asyncio.to_thread(committed_offsets, settings, groups),
    }


def committed_offsets(settings: Settings, groups: list[str]) -> dict[str, int]:
    admin = connect_admin(settings, "ratchet-restart-check")
    try:
        found: dict[str, dict[Any, OffsetAndMetadata]] = {g: admin.list_group_offsets(g)[g] for g in groups}
    finally:
        admin.close()
    return {
        f"{group}-{partition.partition}": position.offset
        for group, positions in found.items()
        for partition, position in positions.items()
        if position.offset >= 0
    }


def read_lake(settings: Settings) -> Snapshot:
    """Return the number of rows of each table, and a hash of them."""
    tables = {}
    for name in SCHEMAS:
        table = open_table(settings.lake_uri, name)
        rows = sorted(map(repr, table.to_pyarrow_table().to_pylist())) if table else []
        tables[name] = (len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest())
    return {"tables of the lake": tables}


def read_database(settings: Settings) -> Snapshot:
    """Return the number of rows of each table of the services, and the rollouts."""
    with psycopg.connect(settings.postgres) as connection:
        names = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY(%s)", [list(SERVICES)]
        ).fetchall()
        counts = {
            f"{schema}.{table}": connection.execute(f'SELECT count(*) FROM "{schema}"."{table}"').fetchall()[0][0]
            for schema, table in names
        }
    return {"tables of the database": counts}


async def read_stores(settings: Settings) -> Snapshot:
    """Return what broker, lake and database keep. The services must be stopped."""
    return {**await read_topics(settings), **read_lake(settings), **read_database(settings)}


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Return what differs, in words; also what was empty before, since then nothing was shown."""
    found = [f"{part}: nothing was there before" for part, values in before.items() if not values]
    for part, values in before.items():
        for name in sorted(values.keys() | after[part].keys()):
            if values.get(name) != after[part].get(name):
                found.append(f"{part}: {name} was {values.get(name)}, is {after[part].get(name)}")
    return found


async def until(find: Callable[[], Awaitable[Any]], what: str, seconds: float) -> Any:
    """Return what `find` finds. Raises TimeoutError naming it."""
    deadline = time.monotonic() + seconds
    while (found := await find()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        await asyncio.sleep(1.0)
    return found


class Check:
    """The check of one task."""

    def __init__(self, http: httpx.AsyncClient, task: str) -> None:
        self.settings = settings = LoopSettings.load()
        self.task = task
        self.gateway = GatewayClient(http, settings.gateway_url, task)
        self.console = ConsoleClient(http, settings.console_url, task)
        self.scheduler = SchedulerClient(http, settings.scheduler_url, task)

    async def run(self) -> list[str]:
        """Return everything that was lost or went wrong."""
        served = await self.ask()
        history = await self.history()
        stack.down(["services"])
        before = await read_stores(self.settings) | {"history of the console": history}
        stack.down()
        began = time.monotonic()
        stack.up([name for name in stack.INFRASTRUCTURE if name != "vllm"])
        after = await read_stores(self.settings)
        stack.up()
        seconds = time.monotonic() - began
        after["history of the console"] = await self.history()
        found = differences(before, after)
        kept = ", ".join(f"{len(values)} {part}" for part, values in before.items())
        print(f"restart: up again in {seconds:.0f} s, compared {kept}: {len(found)} differences")
        await until(self.served_by(served.adapter), f"{served.adapter} does not serve again", 60.0)
        return found + await self.second_cycle(served.adapter)

    async def ask(self) -> GatewayAnswer:
        return await self.gateway.ask(Row("where is my parcel", "delivery"), "restart")

    def served_by(self, adapter: str) -> Callable[[], Awaitable[bool | None]]:
        async def find() -> bool | None:
            answer = await self.ask()
            return True if (answer.variant, answer.adapter) == ("primary", adapter) else None

        return find

    async def history(self) -> Snapshot:
        cycles = {
            cycle["cycle_id"]: await self.console.cycle(cycle["cycle_id"]) for cycle in await self.console.cycles()
        }
        return {name: json.dumps(page, sort_keys=True) for name, page in cycles.items()}

    async def second_cycle(self, adapter: str) -> list[str]:
        """Play a second cycle up to the verdict of its offline gates."""
        self.quicken()
        began, cycle_id = time.monotonic(), await self.scheduler.start_cycle()

        async def verdict() -> dict[str, Any] | None:
            steps = (await self.console.cycle(cycle_id) or {"steps": []})["steps"]
            failed = [step for step in steps if step["topic"].startswith("steps.failed")]
            assert not failed, failed
            found = [step["event"] for step in steps if step["topic"].startswith("adapters.evaluated")]
            return found[0] if found else None

        event = await until(verdict, f"cycle {cycle_id}", CYCLE_SECONDS)
        opponent = event["production"]["adapter"]
        print(f"restart: a second cycle compared {event['candidate']['adapter']} with {opponent}, which serves, "
              f"in {time.monotonic() - began:.0f} s")  # fmt: skip
        return [] if opponent == adapter else [f"the second cycle's opponent is {opponent}, and {adapter} serves"]

    def quicken(self) -> None:
        """Apply the task with a short training and few evaluation rows."""
        file, yaml = self.settings.home / "tasks" / f"{self.task}.yaml", YAML(typ="rt")
        document: Any = yaml.load(file.read_text(encoding="utf-8"))
        for section, values in QUICK_CYCLE.items():
            document.setdefault(section, {}).update(values)
        changed = file.with_suffix(".changed")
        with changed.open("w", encoding="utf-8") as output:
            yaml.dump(document, output)
        apply_task(changed, file.parent)
        changed.unlink()


async def check(task: str) -> list[str]:
    async with httpx.AsyncClient(timeout=TIMEOUT) as http:
        return await Check(http, task).run()


def main(folder: Path) -> int:
    """Entry point: returns the exit code."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = asyncio.run(check(report["task"]))
    for problem in found:
        print(f"restart: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
