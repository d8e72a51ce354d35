"""The second stage for real: DPO and KTO of TRL on a tiny model, also when it is killed at any step."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.conversation import Answer, Message, Role
from schemas.datasets import PREFERENCES, PreferredAnswer
from schemas.labels import Preference
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingRequest, TrainingRow
from services.trainer.inputs import read_pairs
from services.trainer.plan import resolve
from services.trainer.recipe import methods
from services.trainer.recipe.engine import Packing, score_rows
from services.trainer.recipe.preferences import align, judged, tokenize_pairs
from tests.integration.tiny_model import make_tiny_model


def request_of(home: Path, method: str = "dpo", base: str = "lora", **stage: Any) -> TrainingRequest:
    preferences = {"method": method, "learning_rate": 0.01, "epochs": 2, **stage}
    spec = TaskSpec.model_validate({
        "name": "replies", "kind": "generation", "system_prompt": "Reply.", "base_model": "tiny",
        "training": {
            "method": base, "r": 4, "alpha": 8, "max_length": 160, "threads": 1, "validation_share": 0.2,
            "preferences": preferences,
        },
    })  # fmt: skip
    return TrainingRequest(spec, str(home / "tiny"))


def pair(number: int, preferred: Preference = "a", **changes: Any) -> PreferredAnswer:
    fields: dict[str, Any] = {
        "prompt": (Message(role=Role.USER, content=f"question {number}"),),
        "answers": (Answer(text=f"Yes, of course {number}."), Answer(text=f"No, never {number}!")),
        "prediction_ids": (f"p{number}",), "correction_ids": (f"c{number}",),
    }  # fmt: skip
    return PreferredAnswer.model_validate({**fields, "preferred": preferred, **changes})


def model_of(request: TrainingRequest) -> tuple[Any, Any]:
    """The model as it is before the stage: an adapter that changes something, or all weights."""
    torch.manual_seed(7)
    shape = methods.read_shape(request.base)
    model = methods.prepare(methods.load_base(request, shape), request, resolve(request.settings, shape, 8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model, methods.load_tokenizer(request.base)


def stage(request: TrainingRequest, folder: Path) -> tuple[Any, str, list[float], float]:
    """Run it; returns the model, what is said, the loss of each step, and by how much the preferred answers became
    likelier than the others, in nats."""
    model, tokenizer = model_of(request)
    rows = [
        TrainingRow((*row["prompt_ids"], *row[answer]), len(row["prompt_ids"]))
        for row in tokenize_pairs(request.pairs, tokenizer, 160)
        for answer in ("chosen_ids", "rejected_ids")
    ]

    def margin() -> float:
        losses, _ = score_rows(model, rows, Packing(rows, 160, "padded"), model.device)
        return (sum(losses[1::2]) - sum(losses[::2])) / len(request.pairs)

    losses: list[float] = []
    before = margin()
    said = align(model, tokenizer, request, folder, lambda *_, loss, **__: losses.append(loss))
    return model, said, losses, margin() - before


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stage")
    make_tiny_model(home / "tiny")
    return home


@pytest.mark.parametrize(("method", "base", "preferred"), [("dpo", "lora", "a"), ("kto", "full", "b")])
def test_what_people_preferred_becomes_likelier_than_the_other_answer(
    home: Path, tmp_path: Path, method: str, base: str, preferred: Preference
) -> None:
    request = replace(request_of(home, method, base), pairs=tuple(pair(number, preferred) for number in range(24)))
    model, said, losses, gained = stage(request, tmp_path)
    assert gained > 1.0
    assert said == f"{method} on 24 of 24 pairs of answers, 6 steps" and len(losses) == 6
    assert losses[-1] < losses[0]
    folder = methods.save(model, methods.load_tokenizer(request.base), request, tmp_path)
    assert not [path for path in folder.iterdir() if path.is_dir()], "nothing of the reference is saved"


@pytest.mark.parametrize("base", ["qlora", "full"])
def test_the_reference_is_the_model_as_it_was_and_not_the_base_model(home: Path, tmp_path: Path, base: str) -> None:
    """Against the base model a stage would take back what rows have taught, and the first loss would not be ln 2."""
    request = replace(request_of(home, base=base, epochs=1), pairs=tuple(map(pair, range(8))))
    model, _, losses, _ = stage(request, tmp_path)
    assert losses[0] == pytest.approx(0.6931, abs=0.005)
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}, "bfloat16 would lose steps of a small rate"


def test_dpo_reads_pairs_of_which_one_is_preferred_and_kto_single_answers_too(home: Path) -> None:
    choices: list[Preference] = ["a", "b", "both_right", "both_wrong"]
    tokenizer = methods.load_tokenizer(str(home / "tiny"))
    rows = tokenize_pairs([pair(number, choice) for number, choice in enumerate(choices)], tokenizer, 160)
    assert [row["good"] for row in rows] == [[True, False], [True, False], [True, True], [False, False]]
    answers = judged(rows, 4)
    assert sorted(answer["label"] for answer in answers) == [False] * 4 + [True] * 4
    good = [tokenizer.decode(answer["completion_ids"]) for answer in answers if answer["label"]]
    assert any(text.startswith("No, never 1!") for text in good), "b was preferred"
    assert all(answer["KL_completion_ids"] != answer["completion_ids"] for answer in answers)


def test_without_a_pair_to_learn_from_the_model_stays_as_it_is(home: Path, tmp_path: Path) -> None:
    request = request_of(home)
    model, tokenizer = model_of(request)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    long = pair(1, answers=(Answer(text="x" * 300), Answer(text="y")))
    for pairs in ((), (pair(0, "both_right"),), (long,)):
        said = align(model, tokenizer, replace(request, pairs=pairs), tmp_path, pytest.fail)
        assert said == "dpo: no pair of answers to prefer yet, trained on rows alone"
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_pairs_that_are_held_out_or_undecided_are_not_read(tmp_path: Path) -> None:
    assert read_pairs(tmp_path) == []
    pairs = [pair(0), pair(1, "b", held_out=True), pair(2, "cannot_tell"), pair(3, "both_wrong", source="edited")]
    (tmp_path / PREFERENCES).write_text("".join(line.model_dump_json() + "\n" for line in pairs))
    assert [found.prediction_ids[0] for found in read_pairs(tmp_path)] == ["p0", "p3"]


def test_a_pair_is_rendered_as_a_training_row_is_with_its_tools(home: Path) -> None:
    tools = ({"type": "function", "function": {"name": "find"}},)
    tokenizer = methods.load_tokenizer(str(home / "tiny"))
    (row,) = tokenize_pairs([pair(4, "b", tools=tools)], tokenizer, 400)
    prompt = tokenizer.decode(row["prompt_ids"])
    assert '"find"' in prompt and prompt.endswith("question 4<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(row["chosen_ids"]) == "No, never 4!<|im_end|>\n"
    assert tokenizer.decode(row["rejected_ids"]) == "Yes, of course 4.<|im_end|>\n"


class Killed(BaseException):
    """What nothing catches, as nothing does a signal."""


def run(home: Path, folder: Path, kill_at: int | None = None) -> list[int]:
    """Run a stage as a job does; returns the steps that were done. `kill_at`: the step behind which it ends."""
    request = replace(request_of(home, epochs=12), pairs=tuple(map(pair, range(16))))
    torch.set_num_threads(1)
    model, tokenizer = model_of(request)
    steps: list[int] = []

    def report(done: int, *_: Any, **__: Any) -> None:
        steps.append(done)
        if done == kill_at:
            raise Killed

    with contextlib.suppress(Killed):
        align(model, tokenizer, request, folder, report)
        methods.save(model, tokenizer, request, folder)
    return steps


def test_a_stage_that_was_killed_ends_with_the_identical_weights(home: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run(home, killed, kill_at=9)
    assert not (killed / "adapter").exists(), "it was killed before its end"
    assert run(home, whole)[0] == 1 < run(home, killed)[0], "it went on from its last checkpoint"
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, killed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
