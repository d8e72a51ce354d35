"""The trainer's LoRA beside a bare TRL script at its best: the same rows, steps, rank and rate, one thread each.

TRL is measured with padded batches of similar length and with its own packing; the faster of the two is the peer.
Aims: 0.95 of its examples a second on long rows, 1.3 times on short ones, at equal accuracy; CPU seconds likewise.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.devstack.config import StackConfig
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.statistics.intervals import wilson
from services.trainer.recipe.engine import Packing, score_rows
from services.trainer.recipe.packing import PACKED_ATTENTION
from services.trainer.rows import tokenize_rows
from tests.benchmarks.table import Grid, Measured, Result, report
from tests.benchmarks.training import processes
from tests.benchmarks.training.rows import (
    PROMPT,
    SUMMARISE,
    Pair,
    abstracts,
    banking,
    examples,
    messages,
    write_examples,
)

BATCH = 8
PAIRS = 3
MIN_LONG, MIN_SHORT = 0.95, 1.3


@dataclass(frozen=True)
class Case:
    """Rows to train on. `aim`: of our rate over the peer's."""

    name: str
    pairs: Sequence[Pair]
    held_out: Sequence[Pair]
    prompt: str
    max_length: int
    epochs: float
    aim: float


def main() -> None:
    short, held_out, _ = banking(30, 200)
    cases = [
        Case("short rows (Banking77)", short[:160], held_out, PROMPT, 256, 1, MIN_SHORT),
        Case("long rows (SciTLDR)", abstracts(32), (), SUMMARISE, 512, 1, MIN_LONG),
    ]
    results, figures, grid = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            measured, accuracy, rows = compare(case, Path(folder) / case.name[:5])
            results += measured
            figures += accuracy
            grid += rows
    columns = ("rows", "who", "examples/s", "CPU s", "peak MiB", "steps", "held out, every token right")
    report(results, "training_speed", figures, [Grid("Every run", columns, grid)])


def compare(case: Case, folder: Path) -> tuple[list[Result], list[Measured], list[Sequence[str]]]:
    """Run TRL both ways, then the faster one and ours in turn."""
    folder.mkdir()
    job = _job(case, folder)
    ways = {
        packing: processes.bare_trl(job | {"packing": packing}, folder / f"trl{packing:d}") for packing in (False, True)
    }
    best = min(ways, key=lambda packing: ways[packing]["seconds"])
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(PAIRS):
        mine = processes.ours(job, folder / f"ours{number}")
        runs.append((mine, processes.bare_trl(job | {"packing": best}, folder / f"peer{number}")))
    peer = f"TRL, {'packed' if best else 'padded'}"
    count = len(case.pairs) * case.epochs

    def result(name: str, unit: str, values: list[tuple[float, float]], aim: float) -> Result:
        ratios = [a / b for a, b in values]
        medians = (statistics.median(side) for side in zip(*values, strict=True))
        return Result(f"{case.name}: {name}", unit, *medians, statistics.median(ratios), peer, len(values), aim)

    results = [
        result(name, "1/s", [(count / mine[spent], count / theirs[spent]) for mine, theirs in runs], case.aim)
        for name, spent in (("examples", "seconds"), ("examples a CPU second", "cpu_seconds"))
    ]
    adapters = {"ours": folder / "ours0" / "adapter", peer: folder / "peer0" / "adapter"}
    right = {name: _right(job["base"], adapter, case) for name, adapter in adapters.items()} if case.held_out else {}
    figures = []
    if right:
        mine, theirs = right["ours"], right[peer]
        figures = [Measured(f"{case.name}: accuracy less TRL's", "points", 100 * (mine - theirs), min_value=-5.0)]
    tried = [(f"TRL, {'packed' if packing else 'padded'}, first run", way) for packing, way in ways.items()]
    shown = [("ours", runs[0][0]), (peer, runs[0][1]), *tried]
    grid = [
        (
            case.name, name, f"{count / run['seconds']:.2f}", f"{run['cpu_seconds']:.0f}", f"{run['peak_mib']:.0f}",
            str(run["steps"]), _share(right.get(name), len(case.held_out)),
        )
        for name, run in shown
    ]  # fmt: skip
    return results, figures, grid


def _job(case: Case, folder: Path) -> dict[str, Any]:
    base = StackConfig.load().models / "SmolLM2-135M-Instruct"
    settings = TrainingSettings(
        learning_rate=1e-3, epochs=case.epochs, batch_size=BATCH, accumulation=1, dropout=0.0,
        max_length=case.max_length, validation_share=0.0, max_skipped_share=0.5,
    )  # fmt: skip
    spec = TaskSpec(
        name="speed",
        kind=TaskKind.GENERATION,
        base_model="SmolLM2-135M-Instruct",
        system_prompt=case.prompt,
        training=settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    fitting = tokenize_rows(examples(case.pairs, case.prompt), tokenizer, spec)[0]
    lines = [
        {"prompt": row[:-1], "completion": row[-1:]} for row in (messages(pair, case.prompt) for pair in case.pairs)
    ]  # fmt: skip
    (folder / "trl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ours.jsonl").touch()
    return {
        "base": str(base), "spec": spec.model_dump(mode="json"), "r": 16, "alpha": 32, "learning_rate": 1e-3,
        "epochs": case.epochs, "batch_size": BATCH, "max_length": case.max_length,
        "packed_length": round(BATCH * sum(len(row.tokens) for row in fitting) / len(fitting)),
        "rows": str(write_examples(folder / "ours.jsonl", case.pairs, case.prompt)),
        "trl_rows": str(folder / "trl.jsonl"),
    }  # fmt: skip


def _right(base: str, adapter: Path, case: Case) -> float:
    """The share of held-out rows of which every answer token is the likeliest."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation=PACKED_ATTENTION)
    tokenizer = AutoTokenizer.from_pretrained(base)
    spec = TaskSpec(name="speed", kind=TaskKind.GENERATION, base_model="m", system_prompt=case.prompt)
    rows = tokenize_rows(examples(case.held_out, case.prompt), tokenizer, spec)[0]
    scored = score_rows(
        PeftModel.from_pretrained(model, adapter), rows, Packing(rows, 2_048, "shared"), torch.device("cpu")
    )
    return sum(scored[1]) / len(rows)


def _share(value: float | None, n: int) -> str:
    if value is None:
        return "–"
    interval = wilson(round(value * n), n)
    return f"{value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


if __name__ == "__main__":
    main()
