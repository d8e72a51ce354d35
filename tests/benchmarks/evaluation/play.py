"""Plays candidates through all gates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from services.evaluator.gates import check_gates
from tests.benchmarks.evaluation.arms import ROWS, SPEC, Truth, evaluation_set, golden_set
from tests.benchmarks.evaluation.attacks import USUAL, attacked


@dataclass
class Played:
    """Shares of the runs. `by_gate`: stopped by this gate, alone or with others."""

    better: float
    stopped: float
    by_gate: dict[str, float] = field(default_factory=dict)


def play(truth: Truth, runs: int, seed: int = 1, rows: int = ROWS) -> Played:
    """Simulate candidates, compared on so many held-out rows, and check all gates of each."""
    better, stopped, by_gate = 0, 0, Counter[str]()
    for run in range(runs):
        chance = np.random.default_rng([seed, run])
        evaluation, golden = evaluation_set(truth, chance, rows), golden_set(truth, chance)
        misled = attacked(evaluation, USUAL, USUAL, chance)
        gates = check_gates(SPEC, evaluation, golden[0], (), golden[1], misled)
        failed = [gate.name for gate in gates if not gate.passed]
        better += evaluation.gain.finding == "better"
        stopped += bool(failed)
        by_gate.update(failed)
    return Played(better / runs, stopped / runs, {name: count / runs for name, count in by_gate.items()})
