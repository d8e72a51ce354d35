"""The estimate of a training's memory beside the peak of its process: methods × batch sizes × models.

Each training is the recipe itself in a process of its own, two steps on rows of known length. The larger model has
random weights and the shape of SmolLM2-360M. Exits with 1 where an estimate is off by more than a fifth. It takes a
quarter of an hour on one core, and 11 GiB.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deploy.devstack.config import StackConfig
from tests.benchmarks.table import Grid, Measured, report
from tests.benchmarks.training.processes import run

METHODS = ("lora", "qlora", "full")
BATCHES = (2, 8, 16)
ROW_TOKENS = 128
STEPS = 2
SMALL, LARGE = "SmolLM2-135M-Instruct", "SmolLM2-360M's shape, random"
_AROUND = 24
"""Tokens of a row that are not its question's."""
_WORDS = ("refund", "card", "the", "account", "why", "is", "my", "payment")


def main() -> None:
    """Train with everything and write the report."""
    small = StackConfig.load().models / SMALL
    with TemporaryDirectory() as scratch:
        large = Path(scratch) / "large"
        _run_here("make", str(small), str(large))
        found = [
            (name, method, batch, _train(base, method, batch, Path(scratch) / f"{number}-{method}-{batch}"))
            for number, (name, base) in enumerate({SMALL: small, LARGE: large}.items())
            for method in METHODS
            for batch in BATCHES
        ]
    _report(found)


def _run_here(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.benchmarks.training.memory", *arguments], check=True)


def _train(base: Path, method: str, batch: int, folder: Path) -> dict[str, Any]:
    """Bytes: the `estimate` and its `parts`, and the `peak` of the process; `tokens` of the longest pass."""
    job = {"base": str(base), "method": method, "batch": batch, "folder": str(folder / "training")}
    return run(["-m", "tests.benchmarks.training.memory", "train"], job, folder)


def _report(found: list[tuple[str, str, int, dict[str, Any]]]) -> None:
    measured, rows = [], []
    for name, method, batch, training in found:
        ratio = training["estimate"] / 2**20 / training["peak_mib"]
        what = f"{name}, {method}, {batch} rows: estimate by measured peak"
        measured.append(Measured(what, "ratio", ratio, max_value=1.2, min_value=0.8))
        parts = ", ".join(f"{part} {value / 2**20:,.0f}" for part, value in training["parts"].items() if value >= 2**20)
        sizes = f"{training['estimate'] / 2**20:,.0f}", f"{training['peak_mib']:,.0f}"
        rows.append((name, method, str(batch), str(training["tokens"]), *sizes, f"{ratio:.2f}", parts))
    columns = ("model", "method", "rows", "tokens", "estimate", "measured", "ratio", "parts of the estimate")
    report([], "training_memory", measured, [Grid("Peak of the process, MiB", columns, rows)])


def make(source: Path, target: Path) -> None:
    """Save a Llama of the larger shape with random weights, and the smaller model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(source)
    config.update(
        {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
        }
    )
    torch.manual_seed(20)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def train(base: str, method: str, batch: int, folder: str) -> dict[str, Any]:
    """Train as the trainer does, and return what was estimated before."""
    from schemas.task_settings import TrainingSettings
    from schemas.tasks import TaskKind, TaskSpec
    from services.trainer import recipe
    from services.trainer.domain import TrainingRequest
    from services.trainer.plan import resolve
    from services.trainer.recipe import methods, resources
    from services.trainer.rows import tokenize_rows
    from tests.benchmarks.training.rows import examples

    settings = TrainingSettings(
        method=method, batch_size=batch, max_length=ROW_TOKENS, epochs=1, validation_share=0.0, threads=1
    )
    labels = ("refund request", "login")
    spec = TaskSpec(
        name="memory", kind=TaskKind.CLASSIFICATION, base_model="base", system_prompt="Label it.", labels=labels,
        training=settings,
    )  # fmt: skip
    chance = random.Random(20)
    texts = [" ".join(chance.choices(_WORDS, k=ROW_TOKENS - _AROUND)) for _ in range(batch * STEPS)]
    rows = examples([(text, labels[number % 2]) for number, text in enumerate(texts)], "Label it.")
    request = TrainingRequest(spec=spec, base=base, threads=1)
    shape = methods.read_shape(base)
    fitting, _ = tokenize_rows(rows, methods.load_tokenizer(base), spec)
    needed = resources.memory_needed(request, shape, resolve(settings, shape, len(fitting)), fitting)
    Path(folder).mkdir()
    recipe.train(request, rows, Path(folder), lambda *_, **__: None)
    tokens = sum(sorted(len(row.tokens) for row in fitting)[-batch:])
    return {"estimate": needed.total, "parts": needed.parts, "tokens": tokens}


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["make", source, target]:
            make(Path(source), Path(target))
        case ["train", job]:
            print(json.dumps(train(**json.loads(Path(job).read_text()))))
