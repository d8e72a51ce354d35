"""The trainer for real: TRL and PEFT on a tiny random model, killed and resumed; and through the real broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from aiokafka import AIOKafkaConsumer
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from schemas.adapters import AdapterTrained
from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.conversation import Message, Role, ToolCall
from schemas.cycles import StepFailed
from schemas.datasets import DatasetBuilt, Example
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.domain import SkippedRows, TrainingOutcome, TrainingRequest
from services.trainer.handlers import Handlers
from services.trainer.job import Manifest
from services.trainer.main import build
from services.trainer.recipe import engine, train
from services.trainer.recipe.checkpoints import last_checkpoint
from services.trainer.settings import TrainerSettings
from shared.errors import StepImpossible
from shared.jobs import Jobs
from shared.kafka.broker import build_broker
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.model.adapter_files import check_adapter
from shared.processor import has_bfloat16
from shared.service import running
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from tests.integration.consumer_groups import skip_backlog
from tests.unit.trainer.test_handlers import Published
from tests.waiting import PATIENCE_SECONDS, until

BASE = "tiny"
LABELS = ("refund", "login")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path, hidden: int = 32) -> None:
    """A Llama of two layers, random weights, a tokenizer of bytes and a chat template. 4 bits want 64 `hidden`."""
    special = ["<|im_start|>", "<|im_end|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=1, pad_token_id=1, bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def example(number: int) -> Example:
    label = LABELS[number % 2]
    text = f"{'money back' if label == 'refund' else 'cannot get in'} {number}"
    messages = (
        Message(role=Role.SYSTEM, content="Label it."),
        Message(role=Role.USER, content=text),
        Message(role=Role.ASSISTANT, content=label),
    )
    name = f"e{number}"
    return Example(example_id=name, messages=messages, group=name, prediction_ids=(), correction_ids=())


def dataset_built(store: ArtifactStore, folder: Path, task: str, epochs: float) -> DatasetBuilt:
    """A dataset of 16 rows in the store, and its event."""
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(example(n).model_dump_json() + "\n" for n in range(16)))
    (folder / "manifest.json").write_text("{}")
    training = TrainingSettings(
        r=4, alpha=8, learning_rate=0.01, epochs=epochs, batch_size=4, max_length=128, threads=1
    )  # fmt: skip
    spec = TaskSpec(
        name=task, kind=TaskKind.CLASSIFICATION, base_model=BASE, system_prompt="Label it.", labels=LABELS,
        training=training,
    )  # fmt: skip
    dataset_id = f"{task}-data"
    return DatasetBuilt(
        task=task, task_revision=spec.revision, cycle_id=f"{task}-cycle", dataset_id=dataset_id,
        uri=store.publish(folder, "datasets", dataset_id), train_examples=16, eval_examples=4,
        data_cutoff=utc_now() - timedelta(minutes=1), spec=spec,
    )  # fmt: skip


def run(
    rows: Sequence[Example],
    spec: TaskSpec,
    home: Path,
    folder: Path | None = None,
    report: Callable[..., None] = lambda *_, **__: None,
) -> TrainingOutcome:
    """Train on the base model in `home`; results are in `folder`, which is `home` unless given."""
    return train(TrainingRequest(spec, str(home / BASE), threads=1), rows, folder or home, report)


@pytest.fixture
def task() -> str:
    return f"train-{uuid4().hex[:8]}"


def test_a_checkpoint_that_was_being_written_when_the_process_was_killed_is_none(tmp_path: Path) -> None:
    for name, state in (
        ("checkpoint-4", "{}"),
        ("checkpoint-8", '{"epoch": 2}'),
        ("checkpoint-12", ""),
        ("checkpoint-16", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-20").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")


@pytest.mark.parametrize("damaged", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.9])
def test_a_checkpoint_whose_files_lack_their_ends_is_none(tmp_path: Path, damaged: str, kept: float) -> None:
    """The machine stopped before they were on its disk: the training ended with an error of whoever reads them."""
    for name in ("checkpoint-4", "checkpoint-8"):
        (tmp_path / name).mkdir()
        save_file({"lora": torch.ones(64)}, tmp_path / name / "adapter_model.safetensors")
        for state in ("optimizer.pt", "rng_state.pth"):
            torch.save({"state": torch.ones(64)}, tmp_path / name / state)
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    file = tmp_path / "checkpoint-8" / damaged
    os.truncate(file, int(file.stat().st_size * kept))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


async def test_a_killed_training_resumes_from_its_last_checkpoint(tmp_path: Path, task: str) -> None:
    settings = TrainerSettings(home=tmp_path)
    make_tiny_model(settings.models_folder / BASE)
    store = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    event = dataset_built(store, tmp_path / "data", task, epochs=50)
    published = Published()
    jobs = Jobs(settings.jobs_folder, "services.trainer.job", {"HF_HUB_OFFLINE": "1"})
    handlers = Handlers(settings, jobs, published, LatestByKey("rollouts.changed.v1"))
    await handlers.on_dataset(event)
    (spec,) = settings.jobs_folder.glob("*/spec.json")
    watching = asyncio.create_task(handlers.follow_jobs())
    try:
        await until(lambda: last_checkpoint(spec.parent / "checkpoints"))
        os.kill(int((spec.parent / "lock").read_text().split()[0]), signal.SIGKILL)
        await until(lambda: any(isinstance(e, AdapterTrained | StepFailed) for e in published.events))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    trained = published.events[-1]
    assert isinstance(trained, AdapterTrained), (spec.parent / "log.txt").read_text()
    assert "resuming from" in (spec.parent / "log.txt").read_text()
    manifest = Manifest.model_validate_json((Path(trained.uri) / "manifest.json").read_bytes())
    assert (trained.steps, len(manifest.losses)) == (200, 200)
    assert manifest.losses[-1] < manifest.losses[0]
    assert manifest.dtype == ("bfloat16" if has_bfloat16() else "float32")
    assert trained.cycle_id == event.cycle_id


def test_rows_over_the_length_limit_are_skipped_and_counted(tmp_path: Path, task: str) -> None:
    make_tiny_model(tmp_path / BASE)
    store = ArtifactStore(str(tmp_path / "store"), tmp_path)
    spec = dataset_built(store, tmp_path / "data", task, epochs=1).spec
    long = example(0).model_copy(
        update={"messages": (Message(role=Role.USER, content="x" * 200), *example(0).messages)}
    )
    reports: list[str] = []

    def report(done: float, total: float, message: str, **_: float) -> None:
        reports.append(message)

    outcome = run([*map(example, range(31)), long], spec, tmp_path, report=report)
    assert (outcome.skipped, outcome.steps) == (SkippedRows(too_long=1), 9), (
        "31 rows, and copies with an injection that fit"
    )
    assert reports[-1].startswith("step 9 of 9, loss ")
    with pytest.raises(StepImpossible, match=r"1 of 1 training rows \(100%\) .* 1 are longer than 128 tokens"):
        run([long], spec, tmp_path, tmp_path / "second")


def test_a_training_whose_loss_is_no_number_ends_there_and_leaves_no_adapter(tmp_path: Path, task: str) -> None:
    """The trainer would pass over such losses, and report 0: the best of all."""
    make_tiny_model(tmp_path / BASE)
    model = LlamaForCausalLM.from_pretrained(tmp_path / BASE)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / BASE)
    spec = dataset_built(ArtifactStore(str(tmp_path / "store"), tmp_path), tmp_path / "data", task, epochs=3).spec
    with pytest.raises(StepImpossible, match="diverged at step 1 of 12") as stopped:
        run([*map(example, range(16))], spec, tmp_path)
    assert "training.learning_rate" in stopped.value.way_out
    assert not (tmp_path / "adapter").exists()


def test_a_last_gradient_that_is_no_number_leaves_no_adapter(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other one shows in the next loss. After the last there is none: weights that are none were published."""
    train_step = engine.SftTrainer.training_step

    def overflow(trainer: Any, model: Any, *inputs: Any, **options: Any) -> Any:
        loss = train_step(trainer, model, *inputs, **options)
        if trainer.state.global_step + 1 == trainer.state.max_steps:
            next(weight.grad for weight in model.parameters() if weight.grad is not None).fill_(torch.inf)
        return loss

    monkeypatch.setattr(engine.SftTrainer, "training_step", overflow)
    make_tiny_model(tmp_path / BASE)
    spec = dataset_built(ArtifactStore(str(tmp_path / "store"), tmp_path), tmp_path / "data", task, epochs=1).spec
    with pytest.raises(StepImpossible, match="diverged at step 4 of 4: its gradient is"):
        run([*map(example, range(16))], spec, tmp_path)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("modules", [("q_proj", "qkv_proj"), ("qkv_proj",)])
def test_modules_that_the_base_model_does_not_have_are_named_and_not_passed_over(
    tmp_path: Path, task: str, modules: tuple[str, ...]
) -> None:
    make_tiny_model(tmp_path / BASE)
    spec = dataset_built(ArtifactStore(str(tmp_path / "store"), tmp_path), tmp_path / "data", task, epochs=1).spec
    training = spec.training.model_copy(update={"target_modules": modules})
    spec = spec.model_copy(update={"training": training})
    with pytest.raises(StepImpossible, match=f"{BASE} has no module named qkv_proj") as stopped:
        run([*map(example, range(16))], spec, tmp_path)
    assert "training.target_modules" in stopped.value.way_out


def losses(folder: Path, weights: list[float], epochs: float = 2) -> tuple[float, ...]:
    """Train on as many rows as there are weights; the loss of each step."""
    make_tiny_model(folder / BASE)
    spec = dataset_built(ArtifactStore(str(folder / "store"), folder), folder / "data", "weights", epochs).spec
    rows = [example(number).model_copy(update={"weight": weight}) for number, weight in enumerate(weights)]
    return run(rows, spec, folder).losses


def test_only_the_ratio_of_weights_counts(tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain", [1.0] * 16)
    assert losses(tmp_path / "doubled", [2.0] * 16) == pytest.approx(plain, rel=1e-4)
    assert losses(tmp_path / "weighted", [5.0, *[0.2] * 15]) != pytest.approx(plain, rel=1e-2)


def test_conversations_with_tools_are_trained_on(tmp_path: Path, task: str) -> None:
    make_tiny_model(tmp_path / BASE)
    spec = dataset_built(ArtifactStore(str(tmp_path / "store"), tmp_path), tmp_path / "data", task, epochs=1).spec
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"max_length": 400})})

    def call(name: str, arguments: str) -> Message:
        return Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name=name, arguments=arguments, id="c1"),))

    asked = Message(role=Role.USER, content="Where is 4711?")
    found = Message(role=Role.TOOL, content="on its way", tool_call_id="c1")
    tools = ({"type": "function", "function": {"name": "find"}}, {"type": "function", "function": {"name": "cancel"}})
    talks = [
        (asked, call("find", '{"number": 4711}')),
        (asked, call("find", '{"number": 4711}'), found, call("cancel", '{"why": {"late": true}}')),
        (asked, call("find", '{"number": 4711}'), found, Message(role=Role.ASSISTANT, content="On its way.")),
    ]
    rows = [example(n).model_copy(update={"messages": talk, "tools": tools}) for n, talk in enumerate(talks)]
    outcome = run([*rows, example(9)], spec, tmp_path)
    assert (outcome.skipped.total, outcome.steps) == (0, 2), "of four rows, one more with an injection"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_a_missing_base_model_is_reported_with_where_to_put_it(tmp_path: Path, task: str) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path)
    spec = dataset_built(store, tmp_path / "data", task, epochs=1).spec
    with pytest.raises(StepImpossible, match="cannot be loaded") as missing:
        run([example(0)], spec, tmp_path / "no-model", tmp_path)
    assert "<home>/models" in missing.value.way_out


@pytest.mark.stack
async def test_a_dataset_on_the_broker_becomes_an_adapter_that_vllm_can_resolve(
    stack_settings: Settings, tmp_path: Path, task: str
) -> None:
    settings = TrainerSettings(**{**stack_settings.model_dump(), "home": tmp_path})
    make_tiny_model(settings.models_folder / BASE)
    event = dataset_built(ArtifactStore(settings.artifacts_uri, tmp_path), tmp_path / "data", task, epochs=2)
    source = build_broker(settings, "dataset_builder")
    topic = topic_of(AdapterTrained).name
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest")
    await asyncio.gather(source.connect(), consumer.start())
    try:
        await skip_backlog(settings, "trainer")
        async with running([build(settings)]), asyncio.timeout(PATIENCE_SECONDS):
            await Publisher(source, "dataset_builder").publish(event)
            async for record in consumer:
                trained = AdapterTrained.model_validate_json(record.value or b"")
                if trained.task == task:
                    break
    finally:
        await consumer.stop()
        await source.stop()
    assert (trained.cycle_id, trained.dataset_id, trained.data_cutoff) == (
        event.cycle_id, event.dataset_id, event.data_cutoff,
    )  # fmt: skip
    folder = Path(trained.uri)
    assert folder == Path(settings.artifacts_uri) / "adapters" / trained.adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"], config["r"]) == ("LORA", BASE, 4)
    assert len(config["target_modules"]) == 7
    check_adapter(folder, BASE, 4, trained.spec.training.target_modules)
