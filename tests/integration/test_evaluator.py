"""The evaluator on the real broker and vLLM: an adapter that changes nothing is judged against its own base."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer
from safetensors.numpy import save_file

from schemas.adapters import PROBES, PROBES_FILE, AdapterEvaluated, AdapterTrained, Probes
from schemas.approaches import ApproachKind
from schemas.base import Event, utc_now
from schemas.catalog import topic_of
from schemas.conversation import Message, Role
from schemas.cycles import StepFailed
from schemas.datasets import Example
from schemas.evaluation import EVALUATION_FILE, EVALUATION_PAGE, EVALUATIONS, EvaluationReport
from schemas.evaluation_settings import AdversarialSettings, EvaluationSettings
from schemas.golden import GoldenRow
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.main import build
from services.evaluator.settings import EvaluatorSettings
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.model.probes import distance
from shared.service import running
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import golden_set, publish_golden_set
from tests.integration.consumer_groups import skip_backlog
from tests.unit.shared.adapter_folders import LAYER, WIDTH, write_adapter, write_weights
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

BASE = "SmolLM2-135M-Instruct"
LABELS = ("refund", "login", "delivery")


@pytest.fixture
def task() -> str:
    return f"eval-{uuid4().hex[:8]}"


def task_spec(task: str) -> TaskSpec:
    return TaskSpec(
        name=task, kind=TaskKind.CLASSIFICATION, base_model=BASE, labels=LABELS, max_answer_tokens=8,
        system_prompt="Classify the customer's message. Answer with one label.",
        golden_set=golden_set(task, golden_rows()),
        evaluation=EvaluationSettings(adversarial=AdversarialSettings(rows=4)),
    )  # fmt: skip


def golden_rows() -> list[GoldenRow]:
    """The same question three times, each time with another answer: every model gets two of them wrong."""
    return [
        GoldenRow(
            row_id=f"g-{label}", must_pass=True,
            messages=(
                Message(role=Role.USER, content="I want my money back"),
                Message(role=Role.ASSISTANT, content=label),
            ),
        )
        for label in LABELS
    ]  # fmt: skip


def publish_empty_adapter(store: ArtifactStore, model: Path, name: str, folder: Path) -> str:
    """A LoRA adapter whose B matrices are zero: it answers as the base does."""
    config = json.loads((model / "config.json").read_text())
    hidden = config["hidden_size"]
    weights: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{stem}.lora_A.weight"] = np.ones((4, hidden), np.float32)
        weights[f"{stem}.lora_B.weight"] = np.zeros((hidden, 4), np.float32)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    lora = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE, "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(lora))
    (folder / "manifest.json").write_text("{}")
    return store.publish(folder, "adapters", name)


def publish_dataset(store: ArtifactStore, spec: TaskSpec, folder: Path) -> str:
    """Twelve rows to evaluate on, four of each label."""
    folder.mkdir()
    rows = [
        Example(
            example_id=f"e{n}", group=f"g{n}", prediction_ids=(), correction_ids=(),
            messages=(
                Message(role=Role.SYSTEM, content=spec.system_prompt),
                Message(role=Role.USER, content=f"Message {n} about {LABELS[n % 3]}"),
                Message(role=Role.ASSISTANT, content=LABELS[n % 3]),
            ),
        )
        for n in range(12)
    ]  # fmt: skip
    for file in ("eval.jsonl", "train.jsonl"):
        (folder / file).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    (folder / "manifest.json").write_text("{}")
    return store.publish(folder, "datasets", f"{spec.name}-data")


def adapter_trained(spec: TaskSpec, adapter: str, adapter_uri: str, dataset_uri: str) -> AdapterTrained:
    return AdapterTrained(
        task=spec.name, task_revision=spec.revision, cycle_id=f"{spec.name}-cycle", adapter=adapter, uri=adapter_uri,
        base_model=BASE, dataset_id=f"{spec.name}-data", dataset_uri=dataset_uri, method="lora", rank=4, steps=1,
        train_loss=0.1, seconds=1.0, data_cutoff=utc_now() - timedelta(minutes=1), spec=spec,
    )  # fmt: skip


@asynccontextmanager
async def evaluated(settings: EvaluatorSettings, trained: AdapterTrained) -> AsyncIterator[Event]:
    """The first verdict or failure about the task, with the service running."""
    kinds = {topic_of(kind).name: kind for kind in (AdapterEvaluated, StepFailed)}
    source = build_broker(settings, "trainer")
    consumer = AIOKafkaConsumer(*kinds, bootstrap_servers=settings.kafka, auto_offset_reset="earliest")
    await asyncio.gather(source.connect(), consumer.start())
    try:
        await skip_backlog(settings, "evaluator")
        async with running([build(settings)]), asyncio.timeout(PATIENCE_SECONDS):
            await Publisher(source, "trainer").publish(trained)
            async for record in consumer:
                event = kinds[record.topic].model_validate_json(record.value or b"")
                if event.task == trained.task:
                    yield event
                    break
    finally:
        await consumer.stop()
        await source.stop()


async def test_an_adapter_that_changes_nothing_ties_with_its_base(
    stack_settings: Settings, vllm: str, tmp_path: Path, task: str
) -> None:
    (tmp_path / "models").symlink_to(stack_settings.models_folder)  # The rivals' sentence encoder is there.
    artifacts = stack_settings.artifacts_uri  # vLLM looks for adapters there.
    settings = EvaluatorSettings(**{**stack_settings.model_dump(), "home": tmp_path, "artifacts": artifacts})
    store, spec = ArtifactStore(artifacts, tmp_path), task_spec(task)
    adapter = f"{task}-empty"
    adapter_uri = publish_empty_adapter(store, stack_settings.models_folder / BASE, adapter, tmp_path / "adapter")
    trained = adapter_trained(spec, adapter, adapter_uri, publish_dataset(store, spec, tmp_path / "data"))
    golden_uri, probes_uri = publish_golden_set(store, task, golden_rows()), store.address(PROBES, adapter)
    try:
        async with evaluated(settings, trained) as event:
            assert isinstance(event, AdapterEvaluated), event
        probes = Probes.model_validate_json((Path(probes_uri) / PROBES_FILE).read_bytes())
        (stored,) = (Path(artifacts) / EVALUATIONS).glob(f"{adapter}-*")
        assert event.report == str(stored) and (stored / EVALUATION_PAGE).read_text().startswith("<!doctype html>")
        report = EvaluationReport.model_validate_json((stored / EVALUATION_FILE).read_bytes())
        shutil.rmtree(stored)
    finally:
        for uri in (adapter_uri, trained.dataset_uri, golden_uri, probes_uri):  # In the running stack's store.
            shutil.rmtree(uri)
    gates = {gate.name: gate for gate in event.gates}
    assert event.cycle_id == trained.cycle_id
    assert event.production.adapter is None
    assert event.candidate.accuracy == event.production.accuracy
    assert event.candidate.accuracy.n == 12
    assert (event.candidate.failed, event.candidate.latency_ms_p50 > 0) == (0, True)
    assert (event.golden_lost, event.golden_gained, event.golden_total) == (0, 0, 3)
    assert event.verdict == "failed"
    assert gates["must_pass"].measured == 2.0
    assert "g-" in gates["must_pass"].detail
    assert gates["not_worse"].passed
    assert event.gain is not None
    assert (event.gain.value, event.gain.finding) == (0.0, "not_shown")
    assert report.verdict == event.verdict and report.gates == event.gates
    assert {c.label for c in report.candidate.classes} == set(LABELS)
    assert sum(cell.count for cell in report.candidate.confusions) == 12
    assert report.candidate.speed.tokens_per_second and report.production.speed.tokens_per_second
    assert event.headline.startswith("Stopped by ") and "must pass." in event.headline
    assert "A linear classifier on " in event.headline
    assert event.approaches is not None
    measured = {row.kind: row for row in event.approaches.approaches}
    assert set(measured) == set(ApproachKind)
    assert all(row.accuracy.n == 12 and row.failed == 0 and row.latency_ms_p95 > 0 for row in measured.values())
    assert measured[ApproachKind.BASE].prompt_tokens > 0
    assert measured[ApproachKind.LINEAR].accuracy.value == 1.0, "the training rows are the held-out ones here"
    assert event.approaches.findings[0].startswith("A linear classifier on ")
    assert event.adversarial is not None and report.adversarial == event.adversarial
    assert [result.inputs for result in event.adversarial.results] == [4] * 7
    assert all(result.candidate.failed == result.production.failed == 0 for result in event.adversarial.results), (
        "a long input fits the context"
    )
    assert (probes.adapter, probes.base_model, len(probes.probes)) == (adapter, BASE, 5)
    assert max(distance(probe.adapter, probe.base) for probe in probes.probes) < 0.3


@pytest.mark.parametrize(
    ("published", "reason"),
    [(True, "vLLM does not serve the adapter"), (False, "cannot be served: no artifact at")],
)
async def test_an_adapter_that_vllm_refuses_or_that_is_not_published_fails_the_step(
    stack_settings: Settings, vllm: str, tmp_path: Path, task: str, published: bool, reason: str
) -> None:
    settings = EvaluatorSettings(**{**stack_settings.model_dump(), "home": tmp_path, "vllm_max_lora_rank": 64})
    store, spec = ArtifactStore(settings.artifacts_uri, tmp_path), task_spec(task)
    dataset_uri = publish_dataset(store, spec, tmp_path / "data")
    publish_golden_set(store, task, golden_rows())
    name = f"{task}-nowhere"
    folder = write_adapter(tmp_path / "nowhere", spec.base_model, r=32)  # This vLLM takes 16.
    write_weights(folder, {f"{LAYER}.lora_A.weight": (32, WIDTH), f"{LAYER}.lora_B.weight": (WIDTH, 32)})
    uri = store.publish(tmp_path / "nowhere", "adapters", name) if published else store.address("adapters", name)
    trained = adapter_trained(spec, name, uri, dataset_uri)
    async with evaluated(settings, trained) as event:
        assert isinstance(event, StepFailed), event
    assert reason in event.reason
    assert (event.service, event.step, event.cycle_id) == ("evaluator", "evaluation", trained.cycle_id)
