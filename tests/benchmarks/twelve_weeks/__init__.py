"""Twelve weekly cycles, unattended and in fast-forward, on a stream whose intents drift, with bad candidates planted.

`RATCHET_BENCH_WEEKS`, `RATCHET_BENCH_REQUESTS` (a week) and `RATCHET_BENCH_SEED` make another run. Exits with 1 if a
bar is missed. What is real and what stands in is in `product.py`, and in the report.
"""

from __future__ import annotations

import asyncio
import os
import shutil

from tests.benchmarks.table import RESULTS, Grid, report
from tests.benchmarks.twelve_weeks.judge import grids, measured
from tests.benchmarks.twelve_weeks.play import Plan, Play
from tests.benchmarks.twelve_weeks.plot import plot
from tests.benchmarks.twelve_weeks.world.models import Fault
from tests.benchmarks.twelve_weeks.world.stream import load_corpus
from tests.conftest import ROOT, TestStack

NAME = "twelve_weeks"
FAULTS = {3: Fault.WORSE, 5: Fault.MEMORISED, 8: Fault.FORGETS, 10: Fault.BREAKS}
WEEKS, REQUESTS, SEED = 12, 2_400, 20
REAL = Grid(
    "what was real",
    ("part", "in this run"),
    (
        ("failure_miner, dataset_builder, evaluator, shadow, deployer, scheduler",
         "their handlers, rules, statistics and PostgreSQL stores; the builder's label noise with real embeddings"),
        ("gateway", "its choice of the arm, its confidence and calibration; no HTTP and no redaction"),
        ("Unleash, broker, lake", "in memory; users are hashed into the canary as Unleash's SDK does"),
        ("engine, trainer",
         "tables of logistic regressions on sentence embeddings, fitted on the train.jsonl that the builder built"),
        ("evaluator's cheap rivals, adversarial part and probes", "left out"),
        ("people", "six reviewers, each right on 95 % of questions; users complain of 8 % of wrong answers"),
        ("clock", "turned by the benchmark, four hours a step"),
    ),
)  # fmt: skip


def plan() -> Plan:
    """Return the run that the environment asks for; fewer weeks have fewer bad candidates."""
    weeks = int(os.environ.get("RATCHET_BENCH_WEEKS", WEEKS))
    faults = {week: fault for week, fault in FAULTS.items() if week < weeks}
    seed = int(os.environ.get("RATCHET_BENCH_SEED", SEED))
    return Plan(weeks, int(os.environ.get("RATCHET_BENCH_REQUESTS", REQUESTS)), faults, seed)


def main() -> None:
    """Play the weeks and write the report. Exits with 1 if a bar is missed."""
    home = ROOT / ".ratchet" / "bench" / NAME
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    stack = TestStack(home)
    try:
        settings = stack.start(["postgres"])
        played = asyncio.run(Play(settings, load_corpus(settings), plan()).run(print))
    finally:
        stack.stop()
        shutil.rmtree(home, ignore_errors=True)
    found = measured(played)
    report([], NAME, found, [*grids(played), REAL])
    plot(played, RESULTS / f"{NAME}.png")
