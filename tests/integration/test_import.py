"""Two hundred labelled rows of a file, by the command, to a data set without one review: all parts are real."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.cycles import StepFailed
from schemas.datasets import DatasetBuilt
from schemas.labels import CorrectionSubmitted
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.main import build as build_dataset_builder
from services.dataset_builder.settings import DatasetBuilderSettings
from shared.service import running
from shared.settings import Settings
from tests.integration.dataset_cycles import after_cycle, rows_of
from tests.integration.gateway_process import publish_task, read_topic

DATA = Path("deploy/demo/data/support_desk.csv")
ROWS = 200
ADDRESS = "ana.ruiz@corp.example"


def written(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Write the file: rows of two hundred users, one with an address, every second with twice the weight."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:ROWS]
    rows[0]["text"] += f" Write to {ADDRESS}."
    lines = [(row["text"], row["label"], f"c-{n}", 2 if n % 2 else 1) for n, row in enumerate(rows)]
    with (tickets := folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "user", "weight"), *lines])
    return tickets, tuple(sorted({row["label"] for row in rows}))


def imported(task: str, file: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["import", task, str(file), "--yes", "--json"])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


async def corrections(settings: Settings, task: str) -> list[CorrectionSubmitted]:
    values = [value for _, value in await read_topic(settings, "corrections.submitted.v1") if task.encode() in value]
    return [CorrectionSubmitted.model_validate_json(value) for value in values]


@pytest.mark.stack
async def test_imported_rows_are_a_data_set_and_imported_again_nothing_new(
    stack_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets, labels = written(tmp_path)
    spec = TaskSpec(
        name=f"desk-{uuid4().hex[:8]}", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", cron="0 0 29 2 *",
        labels=labels, redaction=RedactionSettings(names=False),
    )  # fmt: skip
    (tmp_path / "models").symlink_to(stack_settings.models_folder)
    own = {**stack_settings.model_dump(), "home": tmp_path, "lake": f"{tmp_path}/lake", "artifacts": ""}
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.setenv("RATCHET_KAFKA", stack_settings.kafka)
    monkeypatch.setenv("RATCHET_KAFKA_IDEMPOTENCE", str(stack_settings.kafka_idempotence))
    await publish_task(stack_settings, spec)

    async with running([build_dataset_builder(DatasetBuilderSettings(**own))]):
        report = await asyncio.to_thread(imported, spec.name, tickets)
        assert (report["published"], report["redactions"], report["errors"]) == (ROWS, 1, [])
        sent = await corrections(stack_settings, spec.name)
        assert len(sent) == len({correction.prediction_id for correction in sent}) == ROWS
        assert not any(ADDRESS in correction.model_dump_json() for correction in sent)

        built = await after_cycle(stack_settings, spec)
        assert isinstance(built, DatasetBuilt), built.reason
        trained, held_out = (rows_of(built, name) for name in ("train", "eval"))
        rejected = (Path(built.uri) / "rejected.jsonl").read_text().splitlines()
        assert len(trained) + len(held_out) + len(rejected) == ROWS
        assert len(trained) > 100 and len(held_out) > 20
        assert {(row.seen, row.drawn_probability) for row in held_out} == {(False, None)}
        assert {row.weight for row in trained} == {1.0, 2.0}
        assert all(row.user_hash for row in (*trained, *held_out))

        report = await asyncio.to_thread(imported, spec.name, tickets)
        assert (report["new"], report["imported_before"], report["published"]) == (0, ROWS, 0)
        assert len(await corrections(stack_settings, spec.name)) == ROWS
        again = await after_cycle(stack_settings, spec, number=2)
        assert isinstance(again, StepFailed), "nothing is new"
