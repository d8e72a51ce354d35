"""Kept pictures survive the gateway and an artifact store that is away: real processes, no broker and no model."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from deploy.devstack.ports import take_ports
from schemas.predictions import PredictionLogged
from schemas.task_settings import MediaPolicy, RedactionSettings
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.recording.media_folder import waiting_files
from shared.conversation import replay_request
from shared.storage.media import MediaReader
from tests.integration.gateway_process import GatewayProcess, model_server
from tests.waiting import until

pytestmark = pytest.mark.stack

TASK = TaskSpec(
    name="pictures", kind=TaskKind.GENERATION, system_prompt="", media=MediaPolicy.KEEP,
    redaction=RedactionSettings(enabled=False),
)  # fmt: skip
PICTURE = b"\x89PNG Maria Gonzalez, passport L01X00T47 " * 2_000
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
CONTENT = [{"type": "text", "text": "Who is it?"}, {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}]
SEEDED = (b"Maria Gonzalez", b"L01X00T47", URL[22:80].encode())
"""What must be in no file: in the picture, and in its base64."""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway that has read its task before, and whose artifact store is away."""
    change = TaskChanged(task=TASK.name, task_revision=TASK.revision, spec=TASK)
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "tasks.json").write_bytes(b"[" + change.model_dump_json().encode() + b"]")
    (tmp_path / "store").write_text("a file is no folder")
    async with model_server(lambda: "Somebody") as vllm:
        env = {
            "RATCHET_VLLM": vllm, "RATCHET_KAFKA": f"127.0.0.1:{take_ports(1)[0]}",
            "RATCHET_ARTIFACTS": str(tmp_path / "store"),
            "RATCHET_GATEWAY_SHIPPER_STOP_SECONDS": "0.5",
        }  # fmt: skip
        gateway = GatewayProcess(tmp_path, env)
        gateway.start()
        try:
            await gateway.until_ready()
            yield gateway
        finally:
            gateway.kill_with_shipper()


async def ask(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    body = {"model": TASK.name, "messages": [{"role": "user", "content": CONTENT}], "user": "ann", **more}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def event_of(gateway: GatewayProcess) -> PredictionLogged:
    (event,) = [orjson.loads(value) for value in gateway.spooled() if b'"call"' in value]
    return PredictionLogged.model_validate(event)


def repair(store: Path) -> None:
    """The artifact store is there again."""
    store.unlink()


def leaks(folder: Path) -> list[Path]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in paths if any(seed in path.read_bytes() for seed in SEEDED)]


async def test_a_picture_survives_the_death_of_its_gateway_before_its_upload_and_is_nowhere_readable(
    gateway: GatewayProcess,
) -> None:
    folder, store = gateway.settings.media_folder, Path(gateway.settings.artifacts_uri)
    async with gateway.http() as http:
        await ask(http)
    gateway.kill_with_shipper()
    assert len(waiting_files(folder)) == 1
    event = event_of(gateway)
    repair(store)
    gateway.start()
    await gateway.until_ready()
    await until(lambda: not waiting_files(folder))
    reader = MediaReader.open(str(store), gateway.settings.secrets_folder)
    _, body = replay_request(event.call, load=reader.part)
    assert body["messages"] == [{"role": "user", "content": CONTENT}]
    assert sum(path.stat().st_size for path in gateway.home.rglob("*") if path.is_file()) > len(PICTURE)
    assert leaks(gateway.home) == []
    (gateway.home / "planted").write_bytes(PICTURE)
    assert leaks(gateway.home) == [gateway.home / "planted"]


async def test_while_the_artifact_store_is_away_requests_are_answered_and_pictures_wait(
    gateway: GatewayProcess,
) -> None:
    folder = gateway.settings.media_folder
    async with gateway.http() as http:
        for user in ("ann", "bob", "eve"):
            await ask(http, user=user)

        async def is_reported() -> bool:
            notes = (await http.get("/readyz")).json()["notes"]
            return any("media have waited for the artifact store" in note for note in notes)

        await until(is_reported)
        metrics = (await http.get("/metrics")).text
        assert f"ratchet_gateway_media_bytes {float(sum(file.size for file in waiting_files(folder)))}" in metrics
        assert len(waiting_files(folder)) == 3
        repair(Path(gateway.settings.artifacts_uri))
        await until(lambda: not waiting_files(folder))

        async def is_counted() -> bool:
            return "ratchet_gateway_media_uploaded_total 3.0" in (await http.get("/metrics")).text

        await until(is_counted)
