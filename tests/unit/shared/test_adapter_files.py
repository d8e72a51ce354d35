"""What an engine may load, and each thing that it may not, planted in an adapter that it may."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from shared.errors import InvalidMessage
from shared.model.adapter_files import check_adapter, check_model
from tests.unit.shared.adapter_folders import LAYER, WIDTH, write_adapter, write_weights

BASE, MODULES, MAX_RANK = "small-1", ("q_proj", "v_proj"), 16
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def test_what_the_trainer_publishes_may_be_loaded(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", BASE)
    check_adapter(folder, BASE, MAX_RANK, MODULES)
    check_adapter(folder, BASE, 4)
    with safe_open(folder / WEIGHTS, "numpy") as file:  # The library reads what these tests write.
        assert sorted(file.keys()) == [A, B]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("peft_type", "IA3", "its type is 'IA3', not 'LORA'"),
        ("peft_type", None, "its type is None"),
        ("base_model_name_or_path", "another", "it was trained on 'another', and the task's base model is 'small-1'"),
        ("r", 17, "rank 17 is over the engine's limit of 16"),
        ("r", 0, "its rank is 0"),
        ("r", True, "its rank is True"),
        ("r", "4", "its rank is '4'"),
        ("target_modules", ["q_proj", "embed_tokens"], "it changes embed_tokens, which the task does not train"),
        ("target_modules", ".*", "its target_modules are '.*', not a list"),
        ("target_modules", [], "not a list of names"),
        ("target_modules", [["q_proj"]], "not a list of names"),
        ("bias", "all", "its bias is 'all'"),
        ("auto_mapping", {"parent_library": "evil"}, "it uses auto_mapping"),
        ("trust_remote_code", True, "it uses trust_remote_code"),
        ("modules_to_save", ["lm_head"], "it uses modules_to_save"),
        ("use_dora", True, "it uses use_dora"),
        ("rank_pattern", {"q_proj": 64}, "it uses rank_pattern"),
    ],
)
def test_a_configuration_that_the_engine_must_not_load_is_refused(
    tmp_path: Path, field: str, value: object, reason: str
) -> None:
    folder = write_adapter(tmp_path / "a", BASE, **{field: value})
    with pytest.raises(InvalidMessage) as refused:
        check_adapter(folder, BASE, MAX_RANK, MODULES)
    assert reason in refused.value.reason
    assert refused.value.way_out


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (lambda f: (f / "adapter_model.bin").write_bytes(pickle.dumps(print)), "its folder has adapter_model.bin"),
        (lambda f: (f / "modeling.py").write_text("import os"), "its folder has modeling.py"),
        (lambda f: (f / "inner").mkdir(), "its folder has inner"),
        (lambda f: (f / WEIGHTS).unlink(), f"its folder has no {WEIGHTS}"),
        (lambda f: (f / CONFIG).unlink(), f"its folder has no {CONFIG}"),
        (lambda f: (f / WEIGHTS).rename(f.parent / "w") and (f / WEIGHTS).symlink_to(f.parent / "w"), "no file of its"),
        (lambda f: (f / CONFIG).write_text(" " * (2 << 20) + "{}"), f"{CONFIG} is larger than"),
        (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG} is not JSON"),
        (lambda f: (f / CONFIG).write_text("[" * 100_000), f"{CONFIG} is not JSON"),
        (lambda f: (f / CONFIG).write_bytes(b"\xff{}"), f"{CONFIG} is not JSON"),
        (lambda f: (f / CONFIG).write_text("[]"), f"{CONFIG} is no object"),
        (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({A: 1})), "is no safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), f"the header of {WEIGHTS} is not JSON"),
        (lambda f: write_weights(f, {}), "has no weights"),
        (lambda f: write_weights(f, {A: (4, WIDTH)}), "has one of two matrices of model.layers.0.self_attn.q_proj"),
        (lambda f: write_weights(f, {A: (8, WIDTH), B: (WIDTH, 8)}), "has the shape [8, 8], not rank 4"),
        (lambda f: write_weights(f, {A: (4, WIDTH), B: (4, WIDTH)}), "has the shape [4, 8], not rank 4"),
        (lambda f: write_weights(f, {A: (4,), B: (WIDTH, 4)}), "is no matrix of"),
        (lambda f: write_weights(f, {A: (4, -8), B: (WIDTH, 4)}), "is no matrix of"),
        (lambda f: write_weights(f, {A: (4, WIDTH), B: (WIDTH, 4)}, dtype="F64"), "is no matrix of"),
        (lambda f: write_weights(f, {A: (4, WIDTH), B: (WIDTH, 4)}, missing=1), "and its header says"),
        (lambda f: write_weights(f, {A.replace("q_proj", "v_proj"): (4, 8)}), "which is no LoRA weight of q_proj"),
        (lambda f: write_weights(f, {A.replace("q_proj", "not_q_proj"): (4, 8)}), "which is no LoRA weight of q_proj"),
        (lambda f: write_weights(f, {A.removeprefix("base_model."): (4, 8)}), "which is no LoRA weight of q_proj"),
        (lambda f: write_weights(f, {"base_model.model.lm_head.weight": (4, 8)}), "which is no LoRA weight of q_proj"),
    ],
)  # fmt: skip
def test_a_folder_with_anything_else_is_refused(tmp_path: Path, plant: Callable[[Path], object], reason: str) -> None:
    """Weights under other names leave an engine serving the base model under the adapter's name, without a word."""
    folder = write_adapter(tmp_path / "a", BASE)
    plant(folder)
    with pytest.raises(InvalidMessage) as refused:
        check_adapter(folder, BASE, MAX_RANK, MODULES)
    assert reason in refused.value.reason


def test_an_older_adapter_may_change_modules_that_the_task_does_not_train_any_more(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", BASE, target_modules=["q_proj", "up_proj"])
    check_adapter(folder, BASE, MAX_RANK)
    with pytest.raises(InvalidMessage, match="it changes up_proj"):
        check_adapter(folder, BASE, MAX_RANK, MODULES)


def test_a_header_that_claims_terabytes_is_not_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", BASE)
    (folder / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(InvalidMessage, match="is no safetensors file: its header has 1099511627776 bytes"):
        check_adapter(folder, BASE, MAX_RANK, MODULES)


def write_model(folder: Path) -> Path:
    """Write a whole model's files without weights."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", "manifest.json"):
        (folder / name).write_text("{}")
    for name in ("model-00001-of-00001.safetensors", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (folder / name).touch()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_a_plain_model_may_be_loaded(tmp_path: Path) -> None:
    check_model(write_model(tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("pytorch_model.bin", "", "its folder has pytorch_model.bin"),
        ("optimizer.pt", "", "its folder has optimizer.pt"),
        ("modeling_evil.py", "", "its folder has modeling_evil.py"),
        ("model-00001-of-00001.safetensors", None, "its folder has no safetensors"),
        ("config.json", None, "its folder has no config.json"),
        ("config.json", "[]", "config.json is no object"),
        ("config.json", "{}", "its model_type is missing"),
        ("config.json", '{"model_type": "x", "auto_map": {}}', "config.json has auto_map"),
        ("tokenizer_config.json", '{"auto_map": {}}', "tokenizer_config.json has auto_map"),
    ],
)
def test_a_model_that_the_engine_must_not_load_is_refused(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    path = write_model(tmp_path / "m") / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(InvalidMessage) as refused:
        check_model(path.parent)
    assert reason in refused.value.reason and refused.value.way_out


def test_a_models_file_is_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(InvalidMessage, match=r"vocab\.json is no file of its own"):
        check_model(folder)
