"""Adapters of two halves of the rows are merged for real, by PEFT, into one that the engine loads as any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.task_settings import Combination
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingRequest
from services.trainer.recipe import methods, train
from services.trainer.recipe.engine import Packing, score_rows
from services.trainer.recipe.fusion import fuse, weightings
from services.trainer.rows import tokenize_rows
from shared.model.adapter_files import check_adapter
from tests.integration.tiny_model import make_tiny_model

BASE = "tiny"
LABELS = ("refund", "login")


def spec(**training: Any) -> TaskSpec:
    usual = {
        "r": 4, "alpha": 8, "learning_rate": 0.02, "epochs": 4, "batch_size": 8, "max_length": 128, "threads": 1,
        "validation_share": 0.0,
    }  # fmt: skip
    return TaskSpec.model_validate({
        "name": "desk", "kind": "classification", "system_prompt": "Label it.", "base_model": BASE, "labels": LABELS,
        "training": {**usual, **training},
    })  # fmt: skip


def example(number: int) -> Example:
    label = LABELS[number % 2]
    said = (Role.USER, f"{'money back' if label == 'refund' else 'cannot get in'} {number}"), (Role.ASSISTANT, label)
    messages = tuple(Message(role=role, content=text) for role, text in said)
    return Example(example_id=f"e{number}", messages=messages, group=f"g{number}", prediction_ids=(), correction_ids=())


UNSEEN = [example(number) for number in range(100, 112)]


def trained(folder: Path, rows: Sequence[Example], **training: Any) -> Path:
    train(TrainingRequest(spec(**training), str(folder.parent / BASE)), rows, folder, quiet)
    return folder / "adapter"


def quiet(*_: Any, **__: Any) -> None: ...


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and adapters of it: of each half of the labels, and a plain and a rank-stabilised one of rank 2."""
    home = tmp_path_factory.mktemp("fusion")
    make_tiny_model(home / BASE)
    for half in range(2):
        trained(home / f"half-{half}", [example(number) for number in range(half, 32, 2)])
    trained(home / "stabilised", [example(number) for number in range(0, 32, 2)], rslora=True, r=2)
    return home


def loss_of(model: Any, home: Path) -> float:
    """The loss of rows of both labels, per answer token."""
    rows, _ = tokenize_rows(UNSEEN, methods.load_tokenizer(str(home / BASE)), spec())
    return sum(score_rows(model, rows, Packing(rows, 128, "padded"), model.device)[0]) / sum(
        row.answer_tokens for row in rows
    )


def fused(home: Path, folder: Path, combination: str, *parts: str) -> tuple[Any, tuple[float, ...], list[float]]:
    """Merge, choose weights by rows of both labels, and save. Returns the model, the weights, and all losses."""
    settings = {"method": "fusion", "fusion": {"adapters": ("one", "two"), "combination": combination}}
    folders = tuple(home / part / "adapter" for part in parts or ("half-0", "half-1"))
    request = TrainingRequest(spec(**settings), str(home / BASE), fused=folders)
    tokenizer = methods.load_tokenizer(request.base)
    rows, _ = tokenize_rows(UNSEEN, tokenizer, request.spec)
    losses: list[float] = []
    base = methods.load_base(request, methods.read_shape(request.base))
    report = lambda *_, validation_loss: losses.append(validation_loss)  # noqa: E731
    model, weights, loss = fuse(base, request, rows, "shared", report)
    assert (loss, weights) == min(zip(losses, weightings(2), strict=True)), "the lowest loss is taken"
    methods.save(model, tokenizer, request, folder)
    return model, weights, losses


@pytest.mark.parametrize("combination", list(Combination))
def test_merged_adapters_are_one_plain_adapter_that_knows_the_task(
    home: Path, tmp_path: Path, combination: Combination
) -> None:
    model, _, losses = fused(home, tmp_path, combination)
    check_adapter(tmp_path / "adapter", BASE, 8, spec().training.target_modules)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    rank = 8 if combination is Combination.CAT else 4
    assert (config["r"], config["lora_alpha"], list(model.peft_config)) == (rank, rank, ["default"])
    assert len(set(losses)) == 5, "each weighting is another adapter"
    base = methods.load_base(TrainingRequest(spec(), str(home / BASE)), methods.read_shape(str(home / BASE)))
    assert min(losses) < loss_of(base, home)
    assert loss_of(model, home) == pytest.approx(min(losses), rel=1e-3), "what is left was made with those weights"
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    merged = get_peft_model_state_dict(model)
    assert saved.keys() == merged.keys()
    assert all(torch.equal(saved[name], merged[name]) for name in saved), "what is saved is what was measured"
    prompt = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=prompt).logits
        measured = model.eval()(input_ids=prompt).logits
    # Not bit for bit: the factors of SVD are transposed in memory, so that float32 products differ in their last bits.
    torch.testing.assert_close(loaded, measured)


def test_the_same_adapters_merge_into_the_same_weights_where_chance_has_a_part(home: Path, tmp_path: Path) -> None:
    once, again = (fused(home, tmp_path / name, "dare_linear")[2] for name in ("once", "again"))
    assert once == again
    files = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("once", "again")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_concatenated_with_full_weights_the_merged_adapter_changes_what_both_change(home: Path, tmp_path: Path) -> None:
    """A rank-stabilised part has another scale, which must not become the merged adapter's."""
    model, weights, _ = fused(home, tmp_path, "cat", "stabilised", "half-0")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = torch.zeros_like(layer.get_delta_weight("default"))
    for weight, part in zip(weights, ("stabilised", "half-0"), strict=True):
        config = json.loads((home / part / "adapter" / "adapter_config.json").read_text())
        tensors = load_file(home / part / "adapter" / "adapter_model.safetensors")
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
        expected += weight * scale * tensors[name.format("B")] @ tensors[name.format("A")]
    assert json.loads((home / "stabilised" / "adapter" / "adapter_config.json").read_text())["use_rslora"]
    torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=0.02, atol=1e-3)


def test_weights_are_tried_equal_with_one_heavy_and_as_sums() -> None:
    assert weightings(2) == [(0.5, 0.5), (0.7, pytest.approx(0.3)), (pytest.approx(0.3), 0.7), (1.0, 1.0), (0.8, 0.8)]
    three = weightings(3)
    assert len(three) == 6
    assert all(sum(weights) == pytest.approx(1.0) for weights in three[:4])
