"""The part of the evaluation job that asks a judge: first what people have compared, then both arms' answers.

Nothing here raises for what a judge does: an evaluation goes on without it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from schemas.datasets import PREFERENCES, PreferredAnswer
from schemas.evaluation_settings import JudgeSettings
from schemas.judging import JudgeReport
from services.evaluator.judge.certification import certify
from services.evaluator.judge.client import JudgeClient
from services.evaluator.judge.pairs import AnswerPair, JudgedPair, judge_pairs
from services.evaluator.statistics.intervals import group_numbers
from services.evaluator.statistics.paired import p_worse
from services.evaluator.verdict import Asked
from shared.files import write_atomically
from shared.identity import content_hash
from shared.jobs import Progress

MAX_PAIRS = 200
"""Of people's choices, so many are judged: enough for a bound within five points of the share."""
_CHOICES = {"a": 1, "b": -1}


def ask_judge(
    settings: JudgeSettings | None, dataset: Path, asked: Asked, folder: Path, progress: Progress
) -> JudgeReport | None:
    """Return what the task's judge says; None for a task without one. A report that a killed job wrote is taken."""
    if settings is None:
        return None
    path = folder / "judge.json"
    if path.exists():
        return JudgeReport.model_validate_json(path.read_bytes())
    client = JudgeClient(settings, os.environ.get(settings.key_variable or "", ""))
    people = read_preferences(dataset / PREFERENCES)
    report = asyncio.run(_ask(client, settings, people, asked, lambda said: progress(1, 1, f"judge: {said}")))
    write_atomically(path, report.model_dump_json().encode())
    return report


def read_preferences(path: Path) -> list[PreferredAnswer]:
    """Return people's blind choices between two answers, oldest first; none of a version that has no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        pairs = [PreferredAnswer.model_validate_json(line) for line in file]
    return [pair for pair in pairs if pair.source == "judged"]


async def _ask(
    client: JudgeClient,
    settings: JudgeSettings,
    people: Sequence[PreferredAnswer],
    asked: Asked,
    report: Callable[[str], None],
) -> JudgeReport:
    try:
        return await judge_arms(client, settings, people, asked, report)
    finally:
        await client.close()


async def judge_arms(
    client: JudgeClient,
    settings: JudgeSettings,
    people: Sequence[PreferredAnswer],
    asked: Asked,
    report: Callable[[str], None],
) -> JudgeReport:
    """Certify the judge by the newest of people's choices, then let it compare the arms as far as its limits go."""
    chosen = [pair for pair in people if pair.preferred in _CHOICES][-MAX_PAIRS:]
    pairs = [AnswerPair(pair.prompt, *(answer.plain for answer in pair.answers)) for pair in chosen]
    judged, problem = await judge_pairs(
        client,
        pairs,
        settings.criterion,
        lambda done: report(f"{done} of {len(pairs)} pairs that people compared"),
        settings.concurrency,
    )
    certification = certify(judged, [_CHOICES[pair.preferred] for pair in chosen], settings)
    rows, compared = _arms(asked)
    verdicts: list[JudgedPair] = []
    if not problem:
        verdicts, problem = await judge_pairs(
            client,
            compared,
            settings.criterion,
            lambda done: report(f"{done} of {len(compared)} rows"),
            settings.concurrency,
        )
    signs = {row: found.preferred for row, found in zip(rows, verdicts, strict=False) if found.preferred is not None}
    values = list(signs.values())
    groups = group_numbers([asked.evaluation[row].group for row in signs])
    return JudgeReport(
        model=settings.model,
        certified=certification.certified,
        certification=certification,
        wins=values.count(1),
        losses=values.count(-1),
        ties=values.count(0),
        p_worse=p_worse(np.array(values, dtype=np.float64), groups) if values else None,
        requests=client.requests,
        failed=sum(found.preferred is None for found in (*judged, *verdicts)),
        problem=problem[:500],
    )


def _arms(asked: Asked) -> tuple[list[int], list[AnswerPair]]:
    """Return the rows that both arms answered, with the candidate's answer first, in an order that depends on nothing
    but their texts: a budget cuts off a random part."""
    found = [
        (row, AnswerPair(question.messages, candidate, production))
        for row, (question, candidate, production) in enumerate(
            zip(asked.evaluation, asked.candidate.answers, asked.production.answers, strict=False)
        )
        if candidate is not None and production is not None
    ]
    found.sort(key=lambda entry: content_hash(entry[1].prompt[-1].text, str(entry[0])))
    return [row for row, _ in found], [pair for _, pair in found]
