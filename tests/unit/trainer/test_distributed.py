"""The configuration of FSDP is one that transformers and accelerate take; it runs on GPUs alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from services.trainer.distributed import fsdp_arguments


def test_one_gpu_needs_no_fsdp() -> None:
    assert fsdp_arguments(1) == {}


def test_transformers_takes_the_configuration_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "")  # It is set as a side effect.
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **fsdp_arguments(2))
    plugin = FullyShardedDataParallelPlugin(**arguments._process_fsdp_args())
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
