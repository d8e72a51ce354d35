"""The quality of confidence on Banking77's ten most frequent intents, or with --intents on more, through the gateway.

The adapter is the one that `ratchet loop` trains, evaluates, calibrates and promotes on Banking77's training file. If
the home (RATCHET_HOME) serves none, the loop runs first with its usual number of corrections: a quarter of an hour on
ten intents, an hour on all 77. Then questions that the loop did not use (Banking77's test file and the rest of the
training file, without near-duplicates of used rows) go through the gateway to vLLM. Raw and calibrated scores are read
from the events.

Exit code 1 if an aim is missed: after calibration, an expected calibration error of at most 0.04 (that of a perfect map
for as many answers stands beside it), and an AUROC of confidence for errors of at least 0.85; and the tenth of answers
with the lowest confidence holds at least 60 % of the errors that a tenth can hold. RATCHET_BANKING77 names the folder
with train.csv and test.csv.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from deploy.demo.clients import TIMEOUT, GatewayAnswer, GatewayClient
from deploy.demo.data.rows import DataRow, read_rows
from deploy.demo.data.split import SIMILARITY, split_rows
from deploy.demo.settings import DataOptions, LoopOptions, LoopSettings, PlannedMistakes
from deploy.demo.stack import bring_up, take_down
from deploy.demo.story import run
from deploy.demo.terminal import Terminal
from deploy.devstack.parts.services import probe_readiness
from schemas.catalog import topic_of
from schemas.predictions import Confidence, PredictionLogged
from services.evaluator.statistics.intervals import wilson
from shared.kafka.clients import open_consumer
from shared.model.near_copies import NearCopies, Question
from tests.benchmarks.calibration import best_possible_lowest_tenth, draw, figures, perfect_ece
from tests.benchmarks.table import RESULTS, Measured, report

INTENTS = 10
SEED = 20
CORRECTIONS = 40
"""Most for a label: the default of the loop."""
CORRECTIONS_OF_MANY_INTENTS = 20
"""The same for more than twenty intents: what two cores train in an hour."""
MAX_QUESTIONS = 2_000
CONCURRENCY = 8
MAX_ECE = 0.04
MIN_AUROC = 0.85
MIN_LOWEST_TENTH = 0.6
"""Of the errors that a tenth of the answers can hold."""
_DEFAULT_FOLDER = Path(__file__).parents[3] / "shared" / "data" / "banking77"
_SHIPPED_SECONDS = 60.0

Found = tuple[GatewayAnswer, Confidence]


def main(intents: int | None = None) -> None:
    """Run the loop if needed, ask, measure; SystemExit(1) if an aim is missed. `intents`: the most frequent ones."""
    intents = INTENTS if intents is None else intents
    folder = Path(os.environ.get("RATCHET_BANKING77") or _DEFAULT_FOLDER)
    if not (folder / "train.csv").is_file():
        raise SystemExit(f"no Banking77 in {folder}: set RATCHET_BANKING77 to the folder with train.csv and test.csv")
    terminal, running = Terminal(), probe_readiness(LoopSettings.load().gateway_url) is None
    try:
        settings = bring_up(lambda _: None)
        task = f"banking77-{intents}"
        if not asyncio.run(_is_promoted(settings, task)):
            _run_loop(folder, terminal, task, intents)
        found = asyncio.run(_measure(settings, task, unseen(folder, intents), terminal))
    finally:
        if not running:
            take_down(lambda _: None)
    if not _report(found, intents):
        raise SystemExit(1)


async def _is_promoted(settings: LoopSettings, task: str) -> bool:
    """Return whether the home has the task with an adapter that serves everyone."""
    async with httpx.AsyncClient(timeout=TIMEOUT) as http:
        gateway = GatewayClient(http, settings.gateway_url, task)
        if task not in await gateway.tasks():
            return False
        return (await gateway.ask(DataRow("Where is my card?", ""), "benchmark")).variant == "primary"


def _run_loop(folder: Path, terminal: Terminal, task: str, intents: int) -> None:
    options = LoopOptions(
        DataOptions(folder / "train.csv", "text", "category", intents, _corrections(intents)),
        PlannedMistakes(seed=SEED), task_name=task, report=LoopSettings.load().home / f"confidence-{intents}",
    )  # fmt: skip
    result = run(options, terminal)
    if not result.promoted:
        raise SystemExit(f"the loop promoted nothing, stopped by {result.stopped_by}: {result.evidence}")


def _corrections(intents: int) -> int:
    return CORRECTIONS_OF_MANY_INTENTS if intents > 2 * INTENTS else CORRECTIONS


def unseen(folder: Path, intents: int) -> list[DataRow]:
    """Return questions that the loop did not use, the test file's first, at most `MAX_QUESTIONS`, in a seeded order."""
    data = read_rows(folder / "train.csv", "text", "category", intents)
    parts = split_rows(data, SEED, _corrections(intents))
    used = NearCopies(SIMILARITY)
    for row in (*parts.traffic, *parts.live, *parts.held_out):
        used.add(Question(row.text))
    rows = [row for row in read_rows(folder / "test.csv", "text", "category").rows if row.label in data.labels]
    rest = list(data.rows)
    random.Random(SEED).shuffle(rest)
    return [row for row in dict.fromkeys([*rows, *rest]) if not used.contains(Question(row.text))][:MAX_QUESTIONS]


async def _measure(settings: LoopSettings, task: str, rows: Sequence[DataRow], terminal: Terminal) -> list[Found]:
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=32)) as http:
        gateway = GatewayClient(http, settings.gateway_url, task)
        await gateway.ask(rows[0], "warm-up")
        await asyncio.sleep(2.0)  # The gateway loads an adapter's calibration after its first request.
        with terminal.step("asked", f"{len(rows)} questions that the loop did not use") as bar:
            done = 0

            def count(_: GatewayAnswer) -> None:
                nonlocal done
                done += 1
                bar.update(done, len(rows))

            answers = [answer for answer in await gateway.ask_all(rows, "benchmark", CONCURRENCY, count) if answer.ok]
    events = await _confidences(settings, {answer.prediction_id for answer in answers})
    found = [(answer, events[answer.prediction_id]) for answer in answers if answer.prediction_id in events]
    unusable = {
        (answer.variant, confidence.calibration)
        for answer, confidence in found
        if confidence.raw is None or answer.variant != "primary"
    }
    if unusable or len(found) < len(rows):
        raise SystemExit(
            f"{len(found)} of {len(rows)} answers have an event; not primary, or not calibrated: {unusable}"
        )
    return found


async def _confidences(settings: LoopSettings, ids: set[str]) -> dict[str, Confidence]:
    """Return the confidence of these predictions, without those that are not in Kafka after a while."""
    found: dict[str, Confidence] = {}
    topic = topic_of(PredictionLogged).name
    async with open_consumer(settings, topic, auto_offset_reset="earliest") as consumer:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHIPPED_SECONDS):
                while ids - found.keys():
                    for records in (await consumer.getmany(timeout_ms=500)).values():
                        events = [PredictionLogged.model_validate_json(record.value) for record in records]
                        answers = [answer for event in events for answer in event.answers]
                        found |= {a.prediction_id: a.confidence for a in answers if a.prediction_id in ids}
    return found


def _report(found: Sequence[Found], intents: int) -> bool:
    right = np.array([float(answer.correct) for answer, _ in found])
    before = np.array([confidence.raw for _, confidence in found], dtype=np.float64)
    after = np.array([confidence.score for _, confidence in found], dtype=np.float64)
    raw, calibrated = figures(before, right), figures(after, right)
    accuracy = wilson(int(right.sum()), len(right))
    possible = best_possible_lowest_tenth(right)
    perfect = perfect_ece(after, SEED)
    lines = [
        Measured("intents", "", intents),
        Measured("questions", "", len(right)),
        Measured(f"accuracy (95 %: {accuracy.low:.3f} to {accuracy.high:.3f})", "", accuracy.value),
        Measured("ECE before calibration, 15 bins of equal mass", "", raw.ece),
        Measured(f"ECE after calibration, 15 bins of equal mass (at most {MAX_ECE})", "", calibrated.ece),
        Measured("the same of a perfect map, mean of 1,000 draws of as many answers", "", perfect),
        Measured("ECE before calibration, 15 bins of equal width", "", raw.ece_width),
        Measured("ECE after calibration, 15 bins of equal width", "", calibrated.ece_width),
        Measured(f"AUROC of confidence for errors (at least {MIN_AUROC})", "", calibrated.auroc),
        Measured(f"errors in the lowest tenth, of the {possible:.0%} that are possible (at least {MIN_LOWEST_TENTH})",
                 "", calibrated.lowest_tenth / possible),
    ]  # fmt: skip
    name = "confidence" if intents == INTENTS else f"confidence-{intents}"
    report([], name, lines)
    draw(before, after, right, RESULTS / f"{name}.png")
    passed = (
        calibrated.ece <= MAX_ECE
        and calibrated.auroc >= MIN_AUROC
        and calibrated.lowest_tenth >= MIN_LOWEST_TENTH * possible
    )
    if not passed:
        print("an aim is missed", file=sys.stderr)
    return passed


if __name__ == "__main__":
    main()
