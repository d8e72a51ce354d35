"""FSDP: which trainings it takes, and a configuration that transformers and accelerate take; it runs on GPUs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from transformers import TrainingArguments

from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.distributed import fsdp_arguments
from services.trainer.domain import check_divisible
from shared.errors import StepImpossible


def spec_of(**training: Any) -> TaskSpec:
    return TaskSpec(
        name="t", kind=TaskKind.CLASSIFICATION, base_model="b", system_prompt="s", labels=("a", "b"),
        training=TrainingSettings.model_validate(training),
    )  # fmt: skip


def test_one_gpu_needs_no_fsdp() -> None:
    assert fsdp_arguments(1) == {}


def test_transformers_takes_the_configuration_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "")  # It is set as a side effect.
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **fsdp_arguments(2))
    plugin = FullyShardedDataParallelPlugin(**arguments._process_fsdp_args())
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


@pytest.mark.parametrize(
    "training",
    [
        {"method": "qlora"},
        {"dora": True},
        {"loraplus_ratio": 16},
        {"preferences": {"method": "dpo"}},
        {"sweep_hours": 1},
    ],
)
def test_what_one_process_must_do_is_refused_with_the_setting_that_allows_it(training: dict[str, Any]) -> None:
    with pytest.raises(
        StepImpossible, match=f"trains with: .*{training.get('method', next(iter(training)))}"
    ) as refused:
        check_divisible(spec_of(**training))
    assert "RATCHET_TRAINER_FSDP=false" in refused.value.way_out


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_adapter_and_a_whole_model_are_divided(method: str) -> None:
    check_divisible(spec_of(method=method))
