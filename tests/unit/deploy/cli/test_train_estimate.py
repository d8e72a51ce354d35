"""`ratchet train --estimate`: the table of a model of 8 billion parameters, and of a task's on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.training import estimate
from deploy.cli.training.estimate import GPU, LLAMA_8B, needed_by, show_estimate
from schemas.task_settings import Method, TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.memory import GIB
from shared.errors import ConfigurationError

CONFIG = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


def spec(**training: object) -> TaskSpec:
    return TaskSpec(
        name="desk", kind=TaskKind.CLASSIFICATION, base_model="small", system_prompt="Label it.", labels=("a", "b"),
        training=TrainingSettings.model_validate(training),
    )  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def total(method: Method, rows: int) -> float:
    return needed_by(method, LLAMA_8B, TrainingSettings(batch_size=rows), 10_000, GPU).total / GIB


def test_a_model_of_8_billion_parameters_takes_what_practice_reckons_with() -> None:
    assert LLAMA_8B.parameters == pytest.approx(8.03e9, rel=0.001)
    assert 16 <= total(Method.LORA, 1) < total(Method.LORA, 4) <= 24
    assert 60 <= total(Method.FULL, 1) < total(Method.FULL, 4) < 80
    assert 6 <= total(Method.QLORA, 1) <= 10, "with four rows of 2,048 tokens at once it is more"
    assert total(Method.QLORA, 4) < total(Method.FUSION, 4) <= 30


def test_without_a_task_the_table_has_the_ranges_of_practice(capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(None, 0, Path("nowhere"), 16)
    shown = capsys.readouterr().out
    for words in ("Llama 3.1 8B", "4 × 2,048 tokens", "60 and more", "16–24", "6–10", "20–30", "lora", "fusion"):
        assert words in shown


def test_a_tasks_table_says_what_this_machine_has(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 2.0 * GIB)
    monkeypatch.setattr(estimate, "gpus_present", lambda: 0)
    monkeypatch.setattr(estimate, "has_bfloat16", lambda: True)
    show_estimate(spec(max_length=128, batch_size=4), 300, models, 16)
    lines = {tuple(cell.strip() for cell in line.split("│")[1:3]): line for line in capsys.readouterr().out.split("\n")}
    assert "yes" in lines["lora (this task)", "CPU"]
    assert "too little" in lines["full", "CPU"]
    assert "none" in lines["full", "GPU"]


def test_a_rank_over_the_fleets_limit_is_said(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(spec(r=32), 300, models, 16)
    assert "over the fleet's limit of 16" in capsys.readouterr().err
    show_estimate(spec(r=32, method="full"), 300, models, 16)
    assert "limit" not in capsys.readouterr().err, "a whole model has no rank"


def test_few_rows_are_no_larger_batch_than_they_are(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(spec(batch_size=64), 10, models, 16)
    assert "10 × 2,048 tokens" in capsys.readouterr().out
    sixty_four, ten = (TrainingSettings(batch_size=rows) for rows in (64, 10))
    assert needed_by(Method.LORA, LLAMA_8B, sixty_four, 10, GPU) == needed_by(Method.LORA, LLAMA_8B, ten, 10, GPU)


def test_a_base_model_that_is_not_here_has_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not at"):
        show_estimate(spec(), 300, tmp_path, 16)


def test_the_estimate_loads_no_torch() -> None:
    code = (
        "import sys; from deploy.cli.training.estimate import show_estimate as show; show(None, 0, None, 16); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
