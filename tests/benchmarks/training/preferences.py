"""DPO on edits of the demonstration's generation task, beside the adapter that it begins with: who writes better?

An adapter is trained on abstracts of SciTLDR with their summaries. It summarises others, and what people wrote of those
is taken as their edit of its answer. A stage of DPO on these pairs follows. Both adapters summarise held-out abstracts,
and the task's own metric judges.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deploy.demo.data.rows import DataRow, read_lines
from schemas.conversation import Answer, Message, Role
from schemas.datasets import Example, PreferredAnswer
from schemas.tasks import TaskSpec
from services.evaluator.statistics.paired import difference
from services.trainer.domain import TrainingRequest
from shared.answers import answer_form
from tests.benchmarks.table import Grid, Measured, report

SCITLDR = Path(os.environ.get("RATCHET_SCITLDR", Path(__file__).parents[4] / "shared" / "data" / "scitldr"))
BASE = Path(os.environ.get("RATCHET_HOME", ".ratchet")) / "models" / "SmolLM2-135M-Instruct"
TASK = Path("deploy/tasks/summaries.yaml")
TRAINED, EDITED, HELD_OUT = 96, 64, 80
_WORDS, _ANSWER_TOKENS, _AT_ONCE = 80, 40, 16
_STAGE = {"method": "dpo", "learning_rate": 1e-4, "epochs": 1.0}
"""The rate for a small model: with few pairs that of a large one changes nothing."""


def main() -> None:
    rows = read_lines(SCITLDR / "train.jsonl", _spec()).rows[: TRAINED + EDITED + HELD_OUT]
    trained, edited, held_out = rows[:TRAINED], rows[TRAINED : TRAINED + EDITED], rows[TRAINED + EDITED :]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, note = _train(trained, (), folder)
        sft = shutil.copytree(folder / "adapter", folder / "sft")
        pairs = [_pair(row, answer) for row, answer in zip(edited, _summaries(sft, edited), strict=True)]
        more_seconds, note = _train(trained, tuple(pairs), folder)
        scores = [_scores(_summaries(adapter, held_out), held_out) for adapter in (sft, folder / "adapter")]
    found = difference(scores[1], scores[0], np.arange(len(held_out)), None, "rows")
    verdict = f"DPO is {'preferred' if found.finding == 'better' else 'not preferred'} over SFT"
    interval = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    metric = _spec().evaluation.text_metric
    print(f"{verdict}: {metric} {interval} on {len(held_out)} held-out abstracts ({note})")
    table = [
        [f"SFT on {TRAINED} rows", f"{scores[0].mean():.3f}", f"{seconds:.0f}", ""],
        [f"and DPO on {EDITED} edits", f"{scores[1].mean():.3f}", f"{more_seconds:.0f}", interval],
    ]
    columns = (
        "adapter",
        f"mean {metric}, {len(held_out)} held out",
        "seconds",
        "difference, 95 % of a paired bootstrap",
    )
    report(
        (), "training_preferences", [Measured(f"{metric} of DPO less that of SFT", "", found.value)],
        [Grid(f"{verdict}; {note}", columns, table)],
    )  # fmt: skip


def _spec(**training: Any) -> TaskSpec:
    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    task["training"] |= {"epochs": 1.0, "validation_share": 0.0, "threads": 1, **training}
    return TaskSpec.model_validate(task)


def _train(rows: Sequence[DataRow], pairs: tuple[PreferredAnswer, ...], folder: Path) -> tuple[float, str]:
    """Train; with pairs go on from where the training on rows alone has ended. Returns seconds, and what is noted."""
    from services.trainer.recipe import train

    spec = _spec(preferences=_STAGE) if pairs else _spec()
    examples = [
        Example(
            example_id=f"e{number}",
            messages=(*_prompt(row), Message(role=Role.ASSISTANT, content=row.label)),
            group=f"e{number}",
            prediction_ids=(),
            correction_ids=(),
        )
        for number, row in enumerate(rows)
    ]
    started = time.perf_counter()
    request = TrainingRequest(spec, str(BASE), threads=1, pairs=pairs)
    outcome = train(request, examples, folder, lambda done, total, message, **_: print(message, flush=True))
    return time.perf_counter() - started, "; ".join(outcome.notes)


def _prompt(row: DataRow) -> tuple[Message, ...]:
    """The beginning of an abstract: a core has minutes, not hours."""
    text = " ".join(row.text.split()[:_WORDS])
    return Message(role=Role.SYSTEM, content=_spec().system_prompt), Message(role=Role.USER, content=text)


def _pair(row: DataRow, answered: str) -> PreferredAnswer:
    return PreferredAnswer(
        source="edited", prompt=_prompt(row), answers=(Answer(text=row.label), Answer(text=answered)), preferred="a",
        prediction_ids=(), correction_ids=("edit",),
    )  # fmt: skip


def _summaries(adapter: Path, rows: Sequence[DataRow]) -> list[str]:
    """What an adapter answers, by the likeliest token each time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16), adapter).eval()
    talks = [[{"role": m.role, "content": m.text} for m in _prompt(row)] for row in rows]
    answers: list[str] = []
    for start in range(0, len(talks), _AT_ONCE):
        batch = tokenizer.apply_chat_template(
            talks[start : start + _AT_ONCE], add_generation_prompt=True, return_dict=True, return_tensors="pt",
            padding=True,
        )  # fmt: skip
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
        answers += tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def _scores(answers: Sequence[str], rows: Sequence[DataRow]) -> Any:
    """The score of each answer by the task's metric, as the evaluator computes it."""
    spec = _spec()
    return np.array(
        [answer_form(spec).grade(row.label, answer).score for row, answer in zip(rows, answers, strict=True)]
    )


if __name__ == "__main__":
    main()
