"""Sixty answers that users wrote anew, from `/v1/feedback` to a data set: all parts are real."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from deploy.devstack.ports import take_ports
from schemas.base import utc_now
from schemas.datasets import DatasetBuilt, Origin
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.task_settings import DatasetSettings, RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.main import build as build_dataset_builder
from services.dataset_builder.settings import DatasetBuilderSettings
from services.gateway.main import build as build_gateway
from services.gateway.settings import GatewaySettings
from services.prediction_log.main import build as build_prediction_log
from services.prediction_log.settings import PredictionLogSettings
from shared.service import running
from shared.settings import Settings
from shared.storage import predictions
from shared.storage.predictions import LakePredictions
from tests.integration.dataset_cycles import after_cycle, rows_of
from tests.integration.gateway_process import publish_task, read_topic
from tests.integration.publishing import publish
from tests.waiting import PATIENCE_SECONDS, until

EDITS, CONFIRMED = 60, 20
SUBJECTS = (
    "parcel", "invoice", "voucher", "password", "address", "order", "refund", "courier", "warranty", "receipt",
    "newsletter", "account",
)  # fmt: skip
TROUBLES = ("never came", "is wrong", "was lost", "came twice", "is too late")


def questions() -> list[str]:
    return [f"my {subject} {trouble}, what now" for subject in SUBJECTS for trouble in TROUBLES]


def reply(number: int) -> str:
    return f"We are sorry about that, case {number} is with a colleague of ours who writes to you today."


@pytest.mark.stack
async def test_sixty_edits_by_users_are_a_data_set_of_sixty_examples(
    stack_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TaskSpec(
        name=f"replies-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Reply to the customer.",
        cron="0 0 29 2 *", redaction=RedactionSettings(enabled=False),
        dataset=DatasetSettings(min_examples=40, min_eval_examples=2, near_copy_similarity=1.0),
    )  # fmt: skip
    own = {**stack_settings.model_dump(), "home": tmp_path, "lake": f"{tmp_path}/lake", "artifacts": ""}
    gateway = GatewaySettings(**own, gateway_port=take_ports(1)[0])
    # Other tests' feedback is on the topic too, and its predictions are in no lake.
    monkeypatch.setattr(predictions, "FEEDBACK_PATIENCE", timedelta(seconds=0.5))
    builder = DatasetBuilderSettings(**own)
    await publish_task(stack_settings, spec)
    services = [
        build_gateway(gateway), build_prediction_log(PredictionLogSettings(**own)),
        build_dataset_builder(builder),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{gateway.gateway_port}"
    async with running(services), httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as http:
        ids = await answered(http, spec)
        await in_lake(f"{tmp_path}/lake", spec.name, ids)
        for number, prediction_id in enumerate(ids):
            edit = {"prediction_id": prediction_id, "kind": "edited", "text": reply(number), "user": f"user-{number}"}
            response = await http.post("/v1/feedback", json=edit)
            assert response.status_code == 200, response.text
        await until(lambda: all_arrived(stack_settings, ids))
        await publish(stack_settings, "console", *confirmations(tmp_path, spec, ids))
        outcome = await after_cycle(stack_settings, spec)
    assert isinstance(outcome, DatasetBuilt), outcome.reason
    held_out, trained = (rows_of(outcome, name) for name in ("eval", "train"))
    examples = [*held_out, *trained]
    assert sorted(example.answer for example in examples) == sorted(reply(number) for number in range(EDITS))
    assert {example.origin for example in held_out} == {Origin.REVIEWER}, "a user's word alone measures nothing"
    users = [example for example in trained if example.origin is Origin.USER]
    assert len(users) == EDITS - CONFIRMED
    assert {example.weight for example in users} == {spec.dataset.user_weight}
    assert all(example.prompt[0].text == spec.system_prompt for example in examples)


async def answered(http: httpx.AsyncClient, spec: TaskSpec) -> list[str]:
    """Report answers that were made elsewhere, as an application does; return their ids."""
    body = [
        {
            "task": spec.name, "prediction_id": f"own-{number}", "user": f"user-{number}", "answer": "no idea",
            "latency_ms": 3,
            "messages": [
                {"role": "system", "content": spec.system_prompt}, {"role": "user", "content": text},
            ],
        }
        for number, text in enumerate(questions())
    ]  # fmt: skip

    async def is_served() -> bool:
        try:
            return (await http.get(f"/v1/models/{spec.name}")).is_success
        except httpx.TransportError:
            return False

    await until(is_served)
    response = await http.post("/v1/predictions", json=body)
    assert response.status_code == 200, response.text
    ids: list[str] = response.json()["prediction_ids"]
    assert len(ids) == EDITS
    return ids


async def in_lake(uri: str, task: str, ids: list[str]) -> None:
    async def all_stored() -> bool:
        return len(await asyncio.to_thread(LakePredictions(uri).find, task, ids, utc_now().date())) == len(ids)

    await until(all_stored, lambda: "the lake does not have all predictions")


async def all_arrived(settings: Settings, ids: list[str]) -> bool:
    values = [value for _, value in await read_topic(settings, "feedback.given.v1")]
    return all(any(prediction_id.encode() in value for value in values) for prediction_id in ids)


def confirmations(home: Path, spec: TaskSpec, ids: list[str]) -> list[CorrectionSubmitted]:
    """A reviewer says the same as the user about some of the predictions."""
    found = LakePredictions(f"{home}/lake").find(spec.name, ids[:CONFIRMED], utc_now().date())
    return [
        CorrectionSubmitted(
            task=spec.name, task_revision=spec.revision, correction_id=f"c-{prediction_id}", request_id=prediction_id,
            prediction_id=prediction_id, purpose=Purpose.FEEDBACK, reviewer="ana", call=found[prediction_id].call,
            answers=(found[prediction_id].answer,), label=reply(number), user_hash=found[prediction_id].user_hash,
            predicted_at=found[prediction_id].occurred_at,
        )
        for number, prediction_id in enumerate(ids[:CONFIRMED])
    ]  # fmt: skip
