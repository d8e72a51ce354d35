"""The recipe on a tiny random model: passes of packed rows, methods, what a kill leaves, what is refused."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from schemas.datasets import Example
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer import recipe
from services.trainer.domain import TrainingOutcome, TrainingRequest, TrainingRow
from services.trainer.plan import preference_rate, resolve
from services.trainer.recipe import choose_packing, methods, set_aside, train
from services.trainer.recipe.checkpoints import CheckpointSchedule
from services.trainer.recipe.engine import Packing, StepSampler, answer_losses, score_rows
from services.trainer.recipe.packing import PACKED_ATTENTION, divide, pack, packed_attention, pad_rows, shared_prompt
from shared import jobs
from shared.errors import StepImpossible
from shared.model.adapter_files import check_adapter
from tests.integration.test_trainer import BASE, LABELS, example, make_tiny_model

CPU = torch.device("cpu")
SMALL = {"r": 4, "alpha": 8, "learning_rate": 0.01, "epochs": 2, "batch_size": 4, "max_length": 128, "threads": 1}


def spec_of(**training: Any) -> TaskSpec:
    return TaskSpec(
        name="recipe", kind=TaskKind.CLASSIFICATION, base_model=BASE, system_prompt="Label it.", labels=LABELS,
        training=TrainingSettings.model_validate(SMALL | training),
    )  # fmt: skip


def run(rows: Sequence[Example], spec: TaskSpec, home: Path, folder: Path, **request: Any) -> TrainingOutcome:
    folder.mkdir(exist_ok=True)
    wanted = TrainingRequest(spec, str(home / BASE), threads=1, **request)
    return train(wanted, rows, folder, lambda *_, **__: None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("recipe")
    make_tiny_model(home / BASE, hidden=64)
    return home


@pytest.fixture(scope="module")
def model(home: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        home / BASE, dtype=torch.float32, attn_implementation=PACKED_ATTENTION
    ).eval()


def rows_of(*lengths: int, prefix: int = 5) -> list[TrainingRow]:
    """Rows with a common prompt of so many tokens, an own one, and an answer of two tokens."""
    chance = random.Random(3)
    common = tuple(chance.randrange(2, 200) for _ in range(prefix))
    rests = [
        (number + 2, *(chance.randrange(2, 200) for _ in range(length - 1))) for number, length in enumerate(lengths)
    ]
    return [TrainingRow((*common, *rest), prefix + len(rest) - 2) for rest in rests]


def gradients(model: Any, packed: Sequence[Any]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = sum(answer_losses(model, one)[0].sum() for one in packed)
    loss.backward()
    return float(loss.detach()), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_the_shared_prompt_ends_before_the_first_own_token_of_any_prompt() -> None:
    rows = rows_of(9, 4, 6)
    assert shared_prompt(rows) == 5
    assert shared_prompt(rows[:1]) == rows[0].start - 1, "of one row all but the last token of its prompt"
    assert shared_prompt([TrainingRow((1, 2, 3), 2), TrainingRow((4, 2, 3), 2)]) == 0
    assert shared_prompt([TrainingRow((1, 2, 3, 4), 3), TrainingRow((1, 2, 3, 4, 5), 3)]) == 2


@pytest.mark.parametrize("prefix", [0, 3, 5])
def test_packed_rows_have_the_losses_and_gradients_of_rows_one_by_one(model: Any, prefix: int) -> None:
    rows = rows_of(9, 4, 6, 12)
    alone = gradients(model, [pad_rows([row], CPU) for row in rows])
    together = gradients(model, [pack(rows, prefix, CPU)])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert torch.allclose(together[1], alone[1], atol=1e-5)


def test_rows_over_the_length_of_plain_products_go_through_the_kernel_with_the_same_result(model: Any) -> None:
    rows = rows_of(300, 20)
    alone = gradients(model, [pad_rows([row], CPU) for row in rows])
    together = gradients(model, [pack(rows, 5, CPU)])
    assert torch.allclose(together[1], alone[1], atol=1e-5)


def test_padded_rows_have_the_losses_of_rows_one_by_one(home: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(home / BASE, dtype=torch.float32, attn_implementation="sdpa")
    rows = rows_of(9, 4, 6)
    alone = gradients(model, [pad_rows([row], CPU) for row in rows])
    for together in ([pad_rows(rows, CPU)], [pack(rows, 0, CPU, own_attention=False)]):
        assert torch.allclose(gradients(model, together)[1], alone[1], atol=1e-5)


def test_passes_keep_within_the_limit_of_tokens_and_lose_no_row() -> None:
    rows = rows_of(*range(3, 40))
    passes = list(divide(rows, 5, 60))
    assert sorted(row.tokens for rows in passes for row in rows) == sorted(row.tokens for row in rows)
    for chosen in passes:
        assert len(chosen) == 1 or 5 + sum(len(row.tokens) - 5 for row in chosen) <= 60
    assert len(passes) <= 20


def test_processes_have_as_many_passes_each_and_a_row_that_is_repeated_counts_for_nothing() -> None:
    """Of five rows, a pass each, one process has three and the other two."""
    rows = rows_of(9, 4, 6, 12, 7)
    parts = [list(Packing(rows, 1, "shared").passes(rows, CPU, process, 2)) for process in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    assert sum(float(one.weights.sum()) for part in parts for one in part) == sum(row.answer_tokens for row in rows)


def test_scores_come_in_the_order_of_the_rows(model: Any) -> None:
    rows = rows_of(9, 4, 12, 6, 4)
    packing = Packing(rows, 30, "shared")
    scored, right = score_rows(model, rows, packing, CPU)
    alone = [float(answer_losses(model, pad_rows([row], CPU))[0].sum()) for row in rows]
    assert scored == pytest.approx(alone, rel=1e-4)
    assert right == [False] * 5


def test_every_epoch_reads_each_row_once_in_an_order_of_its_own() -> None:
    sampler = StepSampler(rows_of(*range(3, 33)), 8, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]
    for steps in epochs:
        assert len(steps) == len(sampler) == 4
        assert sorted(row for step in steps for row in step) == list(range(30))


def test_near_copies_are_set_aside_together_and_few_rows_not_at_all() -> None:
    rows = [TrainingRow((1, number), 1, group=f"g{number // 3}") for number in range(600)]
    training, validation = set_aside(rows, 0.1, 20)
    assert 30 <= len(validation) <= 100 and len(training) + len(validation) == 600
    assert not {row.group for row in training} & {row.group for row in validation}
    assert set_aside(rows, 0.1, 20) == (training, validation) != set_aside(rows, 0.1, 21)
    assert set_aside(rows[:60], 0.05, 20) == (rows[:60], [])


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_plain_lora_and_changes_answers(home: Path, tmp_path: Path, method: str) -> None:
    outcome = run([*map(example, range(16))], spec_of(method=method, epochs=8), home, tmp_path)
    assert outcome.losses[-1] < outcome.losses[0]
    check_adapter(tmp_path / "adapter", BASE, 4, spec_of().training.target_modules)
    assert not (tmp_path / "model").exists()
    assert outcome.peak_memory > 0 and outcome.tokens_per_second > 0


@pytest.mark.parametrize("training", [{"method": "full", "learning_rate": 0.003}, {"dora": True}])
def test_what_vllm_does_not_serve_as_an_adapter_becomes_a_model_with_its_tokenizer(
    home: Path, tmp_path: Path, training: dict[str, Any]
) -> None:
    rows = [*map(example, range(16))]
    run(rows, spec_of(epochs=8, **training), home, tmp_path)
    saved = tmp_path / "model"
    assert {path.name for path in saved.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (tmp_path / "adapter").exists()
    assert json.loads((saved / "config.json").read_text())["dtype"] == str(methods.compute_dtype())[6:]
    request = TrainingRequest(spec_of(), str(home / BASE))
    tokens = recipe.tokenize_rows(rows, methods.load_tokenizer(request.base), request.spec)[0]
    before, after = (
        sum(score_rows(_loaded(folder), tokens, Packing(tokens, 512, "shared"), CPU)[0])
        for folder in (home / BASE, saved)
    )
    assert after < 0.95 * before


def _loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=PACKED_ATTENTION)


def test_the_progress_of_a_second_stage_goes_on_from_the_first() -> None:
    shares: list[float] = []

    def report(done: float, total: float, message: str, **_: Any) -> None:
        shares.append(done / total)

    for stage in (0, 1):
        for step in (1, 2, 4):
            recipe.half(report, stage)(step, 4, "")
    assert shares == [0.125, 0.25, 0.5, 0.625, 0.75, 1.0]


@pytest.mark.parametrize("training", [{"rslora": True}, {"loraplus_ratio": 16.0}, {"dropout": 0.2}])
def test_variants_of_lora_end_as_plain_adapters(home: Path, tmp_path: Path, training: dict[str, Any]) -> None:
    run([*map(example, range(16))], spec_of(**training), home, tmp_path)
    check_adapter(tmp_path / "adapter", BASE, 4, spec_of().training.target_modules)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] is bool(training.get("rslora"))


def test_a_training_goes_on_from_an_adapter(home: Path, tmp_path: Path) -> None:
    rows = [*map(example, range(16))]
    first = run(rows, spec_of(epochs=15), home, tmp_path / "first")
    again = run(rows, spec_of(epochs=1), home, tmp_path / "second", start=tmp_path / "first" / "adapter")
    assert again.losses[0] < 0.85 * first.losses[0]


def test_the_weights_of_the_best_evaluation_are_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss on the rows set aside rises at the end: the last weights are not the adapter."""
    kept: dict[int, Any] = {}

    def scored(trained: Any, *args: Any, **options: Any) -> tuple[list[float], list[bool]]:
        step = len(kept)
        kept[step] = {name: w.detach().clone() for name, w in trained.named_parameters() if "lora_B" in name}
        return [abs(step - 2.0) + 1.0], [True]

    monkeypatch.setattr("services.trainer.recipe.engine.score_rows", scored)
    outcome = run([*map(example, range(300))], spec_of(epochs=1, validation_share=0.2), home, tmp_path)
    assert len(outcome.validation_losses) >= 4
    steps = [step for step, _ in outcome.validation_losses]
    assert outcome.best_step == steps[2]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(name for name in kept[2] if "q_proj" in name)
    assert torch.equal(saved[name.replace(".default", "")], kept[2][name])


def test_rows_are_packed_though_rounding_gives_them_other_losses_than_apart(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the losses of rows that are computed apart differ by some hundredths."""

    def rounded(*args: Any, layout: Any = None, **options: Any) -> Any:
        result, _ = packed_attention(*args, layout=layout, **options)
        return (result if layout is None else 2 * result), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, PACKED_ATTENTION, rounded)
    sharp = AutoModelForCausalLM.from_pretrained(home / BASE, attn_implementation=PACKED_ATTENTION)
    sharp.get_output_embeddings().weight.data *= 20
    assert choose_packing(sharp, rows_of(9, 12, 30), 2_048).attention == "shared"


def test_a_model_whose_attention_mixes_rows_is_trained_side_by_side(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharp = AutoModelForCausalLM.from_pretrained(home / BASE)
    sharp.get_output_embeddings().weight.data *= 20  # Of nearly equal logits no loss shows anything.
    shutil.copytree(home / BASE, tmp_path / BASE)
    sharp.save_pretrained(tmp_path / BASE)

    def mixed(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, layout: Any = None, **_: Any
    ) -> Any:
        """Each token sees itself; in a packed row all before it, too, those of other rows among them."""
        seen = 50 * value.repeat_interleave(2, 1).transpose(1, 2)
        return (seen if layout is None else seen.cumsum(1)).contiguous(), None

    ways: list[str] = []
    passes = Packing.passes

    def spied(packing: Packing, *args: Any) -> Any:
        ways.append(packing.attention)
        return passes(packing, *args)

    monkeypatch.setattr(Packing, "passes", spied)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, PACKED_ATTENTION, mixed)
    run([*map(example, range(16))], spec_of(), tmp_path, tmp_path)
    assert ways[-1] == "padded"


KILLED = """
import json, logging, os, signal, sys
from pathlib import Path
from services.trainer.recipe.engine import Chance
from tests.integration.test_training_recipe import example, run, spec_of

home, folder, steps, training = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
begin = Chance.on_step_begin
logging.basicConfig(level=logging.INFO)
for kill_at in (*steps, None):
    if (child := os.fork()) == 0:  # A process of its own, which need not import all anew.
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            begin(self, args, state, control, **kwargs)

        Chance.on_step_begin = on_step_begin
        run([example(number) for number in range(160)], spec_of(**training), home, folder)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == (0 if kill_at is None else -signal.SIGKILL), (kill_at, ended)
"""


class Steps:
    """A training of a hundred steps: which of them asked for a checkpoint, each of which took so long to write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_seconds: float, save_seconds: float) -> None:
        now = 0.0
        monkeypatch.setattr("services.trainer.recipe.checkpoints.time.monotonic", lambda: now)
        schedule, self.saved = CheckpointSchedule(), []
        schedule.on_train_begin(None, SimpleNamespace(global_step=0), None)
        for step in range(1, 101):
            now += step_seconds
            state, control = SimpleNamespace(global_step=step, max_steps=100), SimpleNamespace(should_save=False)
            schedule.on_step_end(None, state, control)
            if control.should_save:
                self.saved.append(step)
                now += save_seconds
                schedule.on_save(None, state, control)


def test_a_checkpoint_comes_each_twentieth_of_the_steps_and_each_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Steps(monkeypatch, 1.0, 0.01).saved == [*range(5, 100, 5)]
    assert Steps(monkeypatch, 301.0, 0.01).saved == [*range(2, 100, 2)]


def test_checkpoints_that_take_long_to_write_take_a_twentieth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Steps(monkeypatch, 1.0, 1.0).saved == [5, 25, 45, 65, 85]


@pytest.mark.parametrize(
    ("kills", "training"),
    [
        (2, {"epochs": 1, "dropout": 0.1, "validation_share": 0.1}),
        (1, {"epochs": 2, "batch_size": 8, "method": "full", "learning_rate": 0.001}),
    ],
)
def test_a_training_killed_at_random_steps_ends_with_the_same_weights(
    home: Path, tmp_path: Path, kills: int, training: dict[str, Any]
) -> None:
    """Of one epoch, too: it had a checkpoint at the end alone, and began anew each time."""
    whole = run([*map(example, range(160))], spec_of(**training), home, tmp_path / "whole")
    steps = sorted(random.Random(5).sample(range(4, whole.steps), kills))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    (tmp_path / "killed").mkdir()
    command = [
        sys.executable,
        str(script),
        str(home),
        str(tmp_path / "killed"),
        json.dumps(steps),
        json.dumps(training),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert "resuming from" in ended.stderr
    kind = "model" if training.get("method") == "full" else "adapter"
    for file in sorted((tmp_path / "whole" / kind).glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "killed" / kind / file.name).read_bytes()


def test_a_gated_model_names_the_token(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*_: Any, **__: Any) -> None:
        raise OSError("You are trying to access a gated repo. 401 Client Error.")

    monkeypatch.setattr("services.trainer.recipe.methods.AutoConfig.from_pretrained", gated)
    with pytest.raises(StepImpossible, match="gated repo") as refused:
        run([example(0)], spec_of(), home, tmp_path)
    assert "HF_TOKEN" in refused.value.way_out


def test_qlora_of_a_quantised_model_is_refused(home: Path, tmp_path: Path) -> None:
    quantised = tmp_path / "home" / BASE
    quantised.parent.mkdir()
    make_tiny_model(quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(StepImpossible, match="quantised already") as refused:
        run([*map(example, range(16))], spec_of(method="qlora"), tmp_path / "home", tmp_path / "out")
    assert "method: lora" in refused.value.way_out


def test_memory_that_does_not_suffice_is_told_in_words(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(recipe.SftTrainer, "training_step", fail)
    with pytest.raises(StepImpossible, match="memory did not suffice") as stopped:
        run([*map(example, range(16))], spec_of(), home, tmp_path)
    assert "training.batch_size" in stopped.value.way_out


def test_a_full_disk_is_waited_for_and_no_end_of_the_training(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `shared.jobs` tells it from the error of whoever writes: here the checkpoint."""
    (tmp_path / "spec.json").write_bytes(b"")
    save, failures = recipe.SftTrainer.save_model, [1, 1]

    def full(trainer: Any, *args: Any, **options: Any) -> None:
        if failures:
            failures.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(trainer, *args, **options)

    monkeypatch.setattr(recipe.SftTrainer, "save_model", full)
    monkeypatch.setattr("shared.jobs.time.sleep", lambda seconds: None)
    rows = [*map(example, range(60))]

    def work(*_: Any) -> None:
        run(rows, spec_of(), home, tmp_path)

    jobs._call_with_retries(work, tmp_path, 60.0)
    assert not failures and (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_architecture_of_llama_3_1_takes_every_path_but_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As on a GPU: checkpointing of activations, `device_map`; RoPE of Llama 3.1, untied embeddings, grouped keys."""
    make_tiny_model(tmp_path / BASE, hidden=64)
    config = LlamaConfig.from_pretrained(tmp_path / BASE)
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8_192,
    }  # fmt: skip
    config.tie_word_embeddings, config.max_position_embeddings = False, 131_072
    torch.manual_seed(1)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / BASE)
    asked: list[dict[str, Any]] = []
    load = AutoModelForCausalLM.from_pretrained

    def on_cpu(base: str, **options: Any) -> Any:
        asked.append(options)
        return load(base, **options | {"device_map": "cpu"})

    monkeypatch.setattr(methods, "on_gpu", lambda: True)
    monkeypatch.setattr(methods, "has_flash_attention", lambda: False)
    monkeypatch.setattr(methods, "training_arguments", lambda settings: {"bf16": True, "use_cpu": True})
    monkeypatch.setattr(recipe, "peak_memory", lambda: 1)
    monkeypatch.setattr(recipe, "check_memory_for", lambda *_: None)
    monkeypatch.setattr(methods.AutoModelForCausalLM, "from_pretrained", on_cpu)
    outcome = run([*map(example, range(16))], spec_of(method=method, epochs=4), tmp_path, tmp_path)
    assert asked[0]["device_map"] == "auto"
    assert outcome.losses[-1] < outcome.losses[0]


def test_a_small_model_and_a_small_set_have_settings_of_their_own_and_say_so(home: Path) -> None:
    shape = methods.read_shape(str(home / BASE))
    large = type(shape)(**{**vars(shape), "layers": 32, "hidden": 4096, "intermediate": 14336, "vocabulary": 128256})
    plans = [resolve(TrainingSettings(), *of) for of in ((shape, 300), (shape, 9_000), (large, 300), (large, 9_000))]
    assert [(plan.learning_rate, plan.dropout) for plan in plans] == [(1e-3, 0.0)] * 2 + [(2e-4, 0.05)] * 2
    assert [(plan.batch_size, plan.accumulation) for plan in plans] == [(8, 1), (4, 8)] * 2
    assert "a small model" in plans[0].reason and "a small set (300 rows)" in plans[0].reason
    set_by_task = TrainingSettings(learning_rate=0.5, epochs=1, batch_size=3, accumulation=5, dropout=0.3)
    plan = resolve(set_by_task, shape, 300)
    assert (plan.learning_rate, plan.epochs, plan.step_rows, plan.dropout) == (0.5, 1, 15, 0.3)
    assert resolve(TrainingSettings(method="full"), large, 9_000).learning_rate == 2e-5
    assert [preference_rate(TrainingSettings(), size.parameters) for size in (shape, large)] == [1e-4, 5e-6]
    by_task = TrainingSettings.model_validate({"preferences": {"learning_rate": 0.5}})
    assert preference_rate(by_task, shape.parameters) == 0.5
