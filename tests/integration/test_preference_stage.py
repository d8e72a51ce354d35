"""The second stage for real: DPO and KTO of TRL on a tiny model, also when it is killed at any step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.conversation import Answer, Message, Role
from schemas.datasets import PREFERENCES, PreferredAnswer
from schemas.labels import Preference
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingRequest
from services.trainer.pairs import ComparedRows, read_pairs, tokenize_pairs
from services.trainer.plan import resolve
from services.trainer.recipe import methods
from services.trainer.recipe.checkpoints import CHECKPOINTS, last_checkpoint
from services.trainer.recipe.engine import Packing, score_rows
from services.trainer.recipe.preferences import STAGE, PreferenceOutcome, align
from tests.integration.tiny_model import make_tiny_model
from tests.waiting import PATIENCE_SECONDS


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


def quiet(*_: Any, **__: Any) -> None: ...


def margins(model: Any, compared: Sequence[ComparedRows]) -> list[float]:
    """By how much the first answer of each pair is likelier than the second, in nats."""
    rows = [row for pair in compared for row in pair.rows]
    losses, _ = score_rows(model, rows, Packing(rows, 160, "padded"), model.device)
    return [second - first for first, second in zip(losses[::2], losses[1::2], strict=True)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stage")
    make_tiny_model(home / "tiny")
    return home


@pytest.mark.parametrize(
    ("method", "base", "preferred"),
    [("dpo", "lora", "a"), ("dpo", "full", "b"), ("kto", "lora", "b"), ("kto", "full", "a")],
)
def test_what_people_preferred_becomes_likelier_than_the_other_answer(
    home: Path, tmp_path: Path, method: str, base: str, preferred: Preference
) -> None:
    request = request_of(home, method, base)
    model, tokenizer = model_of(request)
    pairs = [pair(number, preferred) for number in range(40)]
    compared = tokenize_pairs(pairs, tokenizer, 160)
    before = margins(model, compared)
    outcome = align(model, tokenizer, request, pairs, "shared", tmp_path, quiet)
    after = margins(model, compared)
    gained = [new - old if preferred == "a" else old - new for new, old in zip(after, before, strict=True)]
    assert sum(gained) / len(gained) > 1.0
    assert (outcome.compared + outcome.held_out, outcome.method) == (40, method)
    assert 0 < outcome.held_out < 20
    assert outcome.accuracy is not None and outcome.accuracy > 0.9
    assert outcome.steps == len(outcome.losses) == 2 * -(-outcome.compared // 8)
    assert outcome.losses[-1] < outcome.losses[0]
    folder = methods.save(model, tokenizer, request, tmp_path)
    assert not [path for path in folder.iterdir() if path.is_dir()], "nothing of the reference is saved"


@pytest.mark.parametrize("base", ["lora", "qlora", "full"])
def test_the_reference_is_the_model_as_it_was_and_not_the_base_model(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """Against the base model a stage would take back what rows have taught, and the first loss would not be ln 2."""
    request = request_of(home, base=base)
    model, tokenizer = model_of(request)
    if base == "full":
        with torch.no_grad():
            model.lm_head.weight.mul_(8.0)
    outcome = align(model, tokenizer, request, [pair(number) for number in range(24)], "shared", tmp_path, quiet)
    assert outcome.losses[0] == pytest.approx(0.6931, abs=0.005)
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}, "bfloat16 would lose steps of a small rate"


def test_dpo_reads_pairs_of_which_one_is_preferred_and_kto_single_answers_too(home: Path, tmp_path: Path) -> None:
    choices: list[Preference] = ["a", "both_right", "both_wrong"] * 10
    pairs = [pair(number, choice) for number, choice in enumerate(choices)]
    for method, least, most in (("dpo", 5, 10), ("kto", 25, 30)):
        request = request_of(home, method, epochs=1)
        model, tokenizer = model_of(request)
        outcome = align(model, tokenizer, request, pairs, "shared", tmp_path / method, quiet)
        assert least <= outcome.compared <= most
        assert outcome.compared + outcome.held_out == most


def test_without_a_pair_the_model_stays_as_it_is_and_the_outcome_says_so(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_of(home)
    model, tokenizer = model_of(request)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    long = pair(1, answers=(Answer(text="x" * 300), Answer(text="y")))
    for pairs in ([], [pair(0, "both_right")], [long]):
        outcome = align(model, tokenizer, request, pairs, "shared", tmp_path, quiet)
        assert outcome == PreferenceOutcome("dpo", 0)
        assert outcome.note == "dpo: no pair of answers to prefer yet, trained on rows alone"
        assert outcome.note in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_pairs_that_are_held_out_or_undecided_are_not_read(tmp_path: Path) -> None:
    assert read_pairs(tmp_path) == []
    pairs = [pair(0), pair(1, "b", held_out=True), pair(2, "cannot_tell"), pair(3, "both_wrong", source="edited")]
    (tmp_path / PREFERENCES).write_text("".join(line.model_dump_json() + "\n" for line in pairs))
    assert [found.prediction_ids[0] for found in read_pairs(tmp_path)] == ["p0", "p3"]


def test_a_pair_is_rendered_as_a_training_row_is_with_its_tools(home: Path) -> None:
    tools = ({"type": "function", "function": {"name": "find"}},)
    tokenizer = methods.load_tokenizer(str(home / "tiny"))
    (compared,) = tokenize_pairs([pair(4, "b", tools=tools)], tokenizer, 400)
    chosen, rejected = compared.chosen, compared.rejected
    assert chosen is not None
    prompt = tokenizer.decode(compared.prompt)
    assert '"find"' in prompt and prompt.endswith("question 4<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(chosen.tokens[chosen.start :]) == "No, never 4!<|im_end|>\n"
    assert tokenizer.decode(rejected.tokens[rejected.start :]) == "Yes, of course 4.<|im_end|>\n"


PROGRAM = """
import sys
from pathlib import Path
from tests.integration import test_preference_stage as stage

stage.run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def run(home: Path, folder: Path) -> None:
    """Run a stage as a process of its own does."""
    request = request_of(home, epochs=12)
    torch.set_num_threads(1)
    model, tokenizer = model_of(request)
    pairs = [pair(number) for number in range(30)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "steps").open("a") as steps:
        align(
            model,
            tokenizer,
            request,
            pairs,
            "shared",
            folder,
            lambda done, *_, **__: print(done, file=steps, flush=True),
        )
    methods.save(model, tokenizer, request, folder)


def test_a_stage_that_was_killed_ends_with_the_identical_weights(home: Path, tmp_path: Path) -> None:
    run(home, tmp_path / "whole")
    folder = tmp_path / "killed"
    kills = 0
    while not (folder / "adapter" / "adapter_model.safetensors").exists():
        seen = last_checkpoint(folder / CHECKPOINTS / STAGE)
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(home), str(folder)])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if not kills and last_checkpoint(folder / CHECKPOINTS / STAGE) != seen:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.005)
        process.wait(PATIENCE_SECONDS)
    assert kills == 1
    steps = [int(step) for step in (folder / "steps").read_text().split()]
    assert steps.count(1) == 1, "it went on from its last checkpoint"
    whole, killed = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
