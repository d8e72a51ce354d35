"""Whether held-out rows tell production's accuracy, and stop a candidate that fails the commonest texts.

Simulated traffic, real builds and the evaluator's own interval and gate: 800 audits, whose texts come by Zipf's law, or
half of them from a few that are nearly repeated. Answers are simulated, too: production is right on a share of the
texts, the broken candidate on all but the 20 commonest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from rich.progress import Progress

from schemas.datasets import Example
from schemas.labels import CorrectionSubmitted
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Inputs, build_dataset
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, evaluation_questions
from services.evaluator.gates import not_worse
from services.evaluator.statistics.intervals import group_numbers, weighted_share
from shared.grading.grade import RIGHT, WRONG
from tests.benchmarks.dataset.made import LABELS, SPEC, audit, call, sentence
from tests.benchmarks.table import Grid, Measured

AUDITS, TEXTS, COMMON = 800, 2_000, 20
RUNS, PROCESSES = 1_000, 2
_RIGHT = 0.75
"""Of the texts that production answers right."""


def measure(runs: int = RUNS, processes: int = PROCESSES) -> tuple[list[Measured], list[Grid]]:
    """Return the aims: the interval covers production's accuracy, and who fails the commonest texts is stopped."""
    found = []
    traffic = {"Zipf 1.0": _zipf(), "half near-repeats": _half_repeated()}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, Progress() as progress:
        for name, weights in traffic.items():
            results = progress.track(pool.map(partial(_run, weights=weights), range(runs)), runs, description=name)
            covered, stopped = (float(np.mean(part)) for part in zip(*results, strict=True))
            found += [
                Measured(f"{name}: accuracy of production inside the 95 % interval", "share", covered, min_value=0.93),
                Measured(f"{name}: wrong on the {COMMON} commonest texts, stopped", "share", stopped, min_value=0.95),
            ]
    return found, []


def _zipf() -> np.ndarray:
    weights = 1.0 / np.arange(1, TEXTS + 1)
    return weights / weights.sum()


def _half_repeated() -> np.ndarray:
    weights = np.full(TEXTS, 0.5 / (TEXTS - COMMON))
    weights[:COMMON] = 0.5 / COMMON
    return weights


def _run(seed: int, weights: np.ndarray) -> tuple[bool, bool]:
    """Whether the interval covers, and whether the gate stops the broken candidate."""
    chance = random.Random(seed)
    asked = chance.choices(range(TEXTS), weights, k=AUDITS)
    right = {text for text in range(TEXTS) if random.Random(f"{seed} {text}").random() < _RIGHT} | set(range(COMMON))
    build = build_dataset(Inputs(votes_of(_audit(n, text, chance) for n, text in enumerate(asked)), SPEC))
    rows = build.dataset.eval
    texts = [int(row.prediction_ids[0].split("-")[1]) for row in rows]
    production = np.array([text in right for text in texts], dtype=np.float64)
    drawn = np.array([1.0 / (row.drawn_probability or 1.0) for row in rows])
    interval = weighted_share(production, drawn, group_numbers([row.group for row in rows]))
    truth = float(sum(weights[text] for text in right))
    gate = not_worse(SPEC, _compared(rows, [text >= COMMON for text in texts], [text in right for text in texts]))
    return interval.low <= truth <= interval.high, not gate.passed


def _compared(rows: Sequence[Example], candidate: Sequence[bool], production: Sequence[bool]) -> Comparison:
    questions = evaluation_questions(rows)
    arms = [
        GradedAnswers(tuple("a" for _ in arm), tuple(RIGHT if is_right else WRONG for is_right in arm))
        for arm in (candidate, production)
    ]
    return Comparison(questions, *arms)


def _audit(number: int, text: int, chance: random.Random) -> CorrectionSubmitted:
    asked = sentence(text)
    if text < COMMON and chance.random() < 0.5:
        asked = f"{asked} please"
    return audit(number, f"p{number}-{text}", call(asked), LABELS[text % 3])
