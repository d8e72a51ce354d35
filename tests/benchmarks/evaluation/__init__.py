"""What the offline gates stop and let pass, by the evaluator's own code on simulated arms.

Bad candidates are planted, each to be stopped by the gate that is there for it. `RATCHET_BENCH_RUNS` (default 2,000)
candidates that are equal to production must hardly ever be stopped or called better; one that gains 7 points and loses
2 must pass. And accuracy on all traffic is estimated from suspects and audits together. It takes about five minutes on
one core. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import os

from tests.benchmarks.evaluation import traffic
from tests.benchmarks.evaluation.arms import EQUAL, FEW, GOOD
from tests.benchmarks.evaluation.planted import PLANTED, Planted
from tests.benchmarks.evaluation.play import Played, play
from tests.benchmarks.table import Grid, Measured, report

RUNS = int(os.environ.get("RATCHET_BENCH_RUNS", "2000"))
PLANTED_RUNS = 40


def main() -> None:
    """Simulate everything and write the report. Exits with 1 if a bar is missed."""
    planted = [(fault, fault.stopped(PLANTED_RUNS)) for fault in PLANTED]
    equal, good, few = play(EQUAL, RUNS), play(GOOD, RUNS // 4), play(EQUAL, RUNS // 4, rows=FEW)
    found, vague = traffic.estimate(RUNS, traffic.TOLD), traffic.estimate(RUNS // 4, traffic.VAGUE)
    measured = [
        *(
            Measured(f"{fault.name}: stopped by {fault.gate}", "share", shares.get(fault.gate, 0.0), min_value=0.95)
            for fault, shares in planted
        ),
        Measured("equal to production: called better", "share", equal.better, max_value=0.05),
        Measured("equal to production: stopped", "share", equal.stopped, max_value=0.05),
        Measured(f"equal to production, {FEW} rows: stopped", "share", few.stopped, max_value=0.05),
        Measured("gains 7 points, loses 2: passes", "share", 1.0 - good.stopped, min_value=0.9),
        Measured("gains 7 points, loses 2: called better", "share", good.better),
        Measured("300 suspects and 200 audits: interval covers the truth", "share", found.covered, min_value=0.93),
        Measured("its width, of that from the audits alone", "ratio", found.width_ratio, max_value=0.8),
        Measured("accuracy of the suspects' rows less the truth", "points", 100 * found.suspects_bias),
        Measured("accuracy estimated for all traffic less the truth", "points", 100 * found.bias),
        Measured("audits alone: interval covers the truth", "share", found.audit_covered),
        Measured("errors among the suspects, of all errors", "share", found.errors_suspected),
        Measured("where suspects have fewer of the errors: of all errors", "share", vague.errors_suspected),
        Measured("where suspects have fewer of the errors: interval covers", "share", vague.covered, min_value=0.93),
        Measured("where suspects have fewer of the errors: width, of the audits'", "ratio", vague.width_ratio),
    ]
    grids = [_planted(planted), _gates({"equal": equal, "good": good, f"equal, {FEW} rows": few})]
    report([], "evaluation", measured, grids)


def _planted(found: list[tuple[Planted, dict[str, float]]]) -> Grid:
    rows = [
        (fault.name, fault.what, ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items()) if share))
        for fault, shares in found
    ]
    return Grid(f"Planted faults, {PLANTED_RUNS} of each", ("fault", "how it is planted", "stopped by"), rows)


def _gates(played: dict[str, Played]) -> Grid:
    names = sorted({name for found in played.values() for name in found.by_gate})
    rows = [(name, *(f"{found.by_gate.get(name, 0.0):.2%}" for found in played.values())) for name in names]
    return Grid("How often each gate stops a candidate", ("gate", *played), rows)
