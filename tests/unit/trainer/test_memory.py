"""The estimate of a training's memory, its refusal, and what the machine has left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.datasets import DatasetBuilt
from schemas.task_settings import FusionSettings, Method, TrainingSettings
from services.trainer.devices import available_memory
from services.trainer.domain import TrainingRow
from services.trainer.memory import GIB, Device, MemoryEstimate, PassSize, check_memory, estimate
from services.trainer.plan import ModelShape
from shared.errors import StepImpossible

EXAMPLE = Path("schemas/examples/datasets.built.v1/built.json")
SPEC = DatasetBuilt.model_validate_json(EXAMPLE.read_bytes()).spec
SMALL = ModelShape("llama", 30, 576, 1536, 9, 3, 64, 49152, is_tied=True, is_quantised=False)
HOLES = 1.2
"""What is taken on a CPU of what a pass keeps: the heap has holes."""
CPU, GPU = Device(is_gpu=False), Device(is_gpu=True)


def needed(size: PassSize | None = None, device: Device = CPU, dropout: float = 0.0, **settings: Any) -> MemoryEstimate:
    return estimate(SMALL, TrainingSettings(**settings), dropout, size or PassSize.at_most(4, 128), device)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_activations_and_logits_grow_with_the_batch_and_nothing_else_does(method: str, device: Device) -> None:
    few, many = (needed(PassSize.at_most(rows, 128), device, method=method) for rows in (4, 8))
    assert few.parts["activations"] < many.parts["activations"]
    assert many.parts["logits"] == pytest.approx(2 * few.parts["logits"])
    growing = {name for name, value in few.parts.items() if value != many.parts[name]}
    assert growing == {"activations", "logits"}


def test_an_adapters_part_grows_with_its_rank_and_its_modules() -> None:
    assert needed(r=32).parts["adapter"] == 2 * needed(r=16).parts["adapter"]
    assert (
        needed(target_modules=("q_proj",)).parts["adapter"]
        < needed(target_modules=("q_proj", "up_proj")).parts["adapter"]
    )
    of_block = 16 * 4 * (576 + 576 + 2 * (576 + 192) + 576 + 576 + 3 * (576 + 1536))
    assert needed(r=16).parts["adapter"] == 30 * of_block


def test_adam_keeps_two_numbers_for_each_that_is_trained() -> None:
    lora, full = needed(method="lora"), needed(method="full")
    assert lora.parts["gradients"] == lora.parts["adapter"] and lora.parts["optimizer"] == 2 * lora.parts["adapter"]
    assert full.parts["gradients"] == full.parts["weights"] and full.parts["optimizer"] == 2 * full.parts["weights"]


def test_a_small_model_trained_as_a_whole_has_float32_weights_and_a_large_one_bfloat16() -> None:
    large = replace(SMALL, layers=300)
    assert needed(method="full").parts["weights"] == 4 * SMALL.parameters
    size = PassSize.at_most(4, 128)
    assert (
        estimate(large, TrainingSettings(method=Method.FULL), 0.0, size, GPU).parts["weights"] == 2 * large.parameters
    )


def test_four_bits_save_memory_on_a_gpu_and_lie_beside_the_mapped_file_without_one() -> None:
    lora, qlora = needed(device=GPU), needed(device=GPU, method="qlora")
    linear = SMALL.layers * SMALL.layer_parameters
    assert lora.parts["weights"] - qlora.parts["weights"] == pytest.approx(linear * (2 - 0.516), rel=0.001)
    assert qlora.total < lora.total
    assert needed(method="qlora").parts["weights"] > needed(method="lora").parts["weights"]


def test_without_bfloat16_the_file_is_there_beside_the_copy_while_the_weights_are_loaded() -> None:
    size, old = PassSize.at_most(1, 16), Device(is_gpu=False, has_bfloat16=False)
    loaded = needed(size, old)
    assert loaded.parts["weights"] == 4 * SMALL.parameters
    assert loaded.total == loaded.parts["libraries"] + 6 * SMALL.parameters
    assert needed(PassSize.at_most(16, 128), old).total == sum(needed(PassSize.at_most(16, 128), old).parts.values())


def test_a_gpu_keeps_the_input_of_each_block_and_computes_one_again() -> None:
    size = PassSize(1024, 8, 128)
    on_cpu, on_gpu = needed(size), needed(size, GPU)
    assert on_gpu.parts["activations"] < on_cpu.parts["activations"] / 10
    assert on_gpu.parts["activations"] > 30 * 1024 * 576 * 2


def test_dropout_of_lora_costs_its_mask() -> None:
    size = PassSize(1024, 8, 128)
    inputs = 6 * 576 + 1536
    assert needed(size, dropout=0.1).parts["activations"] - needed(size).parts["activations"] == pytest.approx(
        HOLES * 30 * 1024 * inputs * 4
    )


def test_scores_of_short_rows_are_kept_on_a_cpu_alone() -> None:
    short, long = PassSize(1024, 8, 256), PassSize(1024, 8, 257)
    kept = 30 * 1024 * (9 * 256 - 576) * 2
    assert needed(short).parts["activations"] - needed(long).parts["activations"] == pytest.approx(HOLES * kept)
    assert needed(short, GPU).parts["activations"] == needed(long, GPU).parts["activations"]


def test_a_long_prompt_that_rows_share_is_kept_once_but_for_the_keys_and_values_of_each_row() -> None:
    shared, apart = PassSize(500 + 8 * 20, 8, 520, prefix=500), PassSize(8 * 520, 8, 520)
    assert needed(shared).parts["activations"] < needed(apart).parts["activations"] / 3
    keys_and_values = 30 * 8 * 520 * 576 * 2 * 2
    assert needed(shared).parts["activations"] > keys_and_values + 30 * 660 * 3 * 1536 * 2


def test_fusion_has_the_merged_adapters_and_nothing_that_is_trained() -> None:
    fusion = FusionSettings(adapters=("first", "second"))
    cat = needed(method="fusion", fusion=fusion)
    linear = needed(method="fusion", fusion=FusionSettings(adapters=("first", "second"), combination="linear"))
    assert (cat.parts["gradients"], cat.parts["optimizer"]) == (0, 0)
    assert cat.parts["adapter"] == 4 * needed().parts["adapter"]
    assert linear.parts["adapter"] == 3 * needed().parts["adapter"]


def test_a_pass_counts_the_common_prompt_once() -> None:
    rows = [TrainingRow((1,) * 20, start=15), TrainingRow((1,) * 30, start=24)]
    assert PassSize.of_rows(rows, prefix=10) == PassSize(tokens=40, answers=11, row=30, prefix=10)


def test_too_little_memory_is_refused_with_the_parts_and_what_to_lower() -> None:
    lora = needed(PassSize.at_most(64, 2048))
    with pytest.raises(StepImpossible) as refused:
        check_memory(lora, 4 * GIB, SPEC)
    assert f"training {SPEC.base_model} would take {lora.total / GIB:.1f} GiB" in refused.value.reason
    assert "4.0 GiB are free" in refused.value.reason
    assert f"activations {lora.parts['activations'] / GIB:.1f}" in refused.value.reason
    assert "adapter" not in refused.value.reason, "parts below 0.05 GiB are left out"
    for lower in ("training.batch_size", "training.max_length", "method: qlora", "--estimate"):
        assert lower in refused.value.way_out
    check_memory(lora, lora.total, SPEC)


def test_a_batch_is_not_blamed_where_the_weights_alone_are_too_many() -> None:
    with pytest.raises(StepImpossible) as refused:
        check_memory(needed(method="full"), GIB, SPEC)
    assert "No batch is small enough" in refused.value.way_out
    assert "batch_size" not in refused.value.way_out


def test_a_quantised_training_is_not_told_to_quantise() -> None:
    spec = SPEC.model_copy(update={"training": TrainingSettings(method=Method.QLORA)})
    with pytest.raises(StepImpossible) as refused:
        check_memory(needed(method="qlora"), 0, spec)
    assert "method: qlora" not in refused.value.way_out


def kernel(folder: Path, groups: str, **files: str) -> tuple[Path, Path]:
    """The kernel's files: 8 GiB available, and what is given of control groups, with `_` for `/`."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * 2**20} kB\nHugePages_Total: 0\n")
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc", folder / "groups"


def test_without_a_limit_all_that_the_machine_has_is_available(tmp_path: Path) -> None:
    limits = {"aDOTslice__memoryDOTmax": "max\n"}
    assert available_memory(*kernel(tmp_path, "0::/a.slice\n", **limits)) == 8 * GIB


def test_a_limit_of_a_group_above_holds_and_files_that_were_read_do_not_count(tmp_path: Path) -> None:
    files = {
        "aDOTslice__memoryDOTmax": f"{4 * GIB}\n",
        "aDOTslice__memoryDOTcurrent": f"{3 * GIB}\n",
        "aDOTslice__memoryDOTstat": f"anon 5\ninactive_file {GIB}\n",
        "aDOTslice__job__memoryDOTmax": "max\n",
    }
    assert available_memory(*kernel(tmp_path, "0::/a.slice/job\n", **files)) == 2 * GIB


def test_a_limit_of_version_1_holds_where_the_groups_own_folder_is_not_mounted(tmp_path: Path) -> None:
    files = {
        "memory__memoryDOTlimit_in_bytes": f"{2 * GIB}\n",
        "memory__memoryDOTusage_in_bytes": f"{GIB}\n",
        "memory__memoryDOTstat": "cache 7\ntotal_inactive_file 0\n",
    }
    assert available_memory(*kernel(tmp_path, "4:memory:/docker/3fa9\n1:cpu:/\n0::/\n", **files)) == GIB
