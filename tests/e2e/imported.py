"""`python -m tests.e2e.imported FILE.csv`: from labelled rows to a promoted adapter, without a review before the pairs.

The file's rows of its commonest labels are split as `ratchet loop` splits them. What the loop lets people correct is
imported here by `ratchet import`; nobody answers a question until the candidate is in shadow. Brings the stack up in
RATCHET_HOME, and prints its figures; exits with 1 where nothing is promoted. Five thousand rows train for about half an
hour on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.demo.data.rows import DataRow
from deploy.demo.errors import CandidateStopped
from deploy.demo.settings import DataOptions, LoopOptions
from deploy.demo.stack import bring_up
from deploy.demo.state import LoopContext
from deploy.demo.steps.learning import learn
from deploy.demo.steps.live_test import prove_live
from deploy.demo.steps.traffic import ask_held_out
from deploy.demo.story import prepared, read_data
from deploy.demo.terminal import Terminal
from tests.e2e.restart import change_task

ONE_PASS = {"training": {"epochs": 1}}
"""Of thousands of rows one is enough, and two cores take a quarter of an hour for it."""


def import_rows(rows: Sequence[DataRow], task: str) -> None:
    """Import the rows by the command that a user has. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        with (file := Path(folder) / "labelled.csv").open("w", encoding="utf-8", newline="") as written:
            writer = csv.writer(written)
            writer.writerow(("text", "label"))
            writer.writerows((row.text, row.label) for row in rows)
        subprocess.run([Path(sys.executable).with_name("ratchet"), "import", task, file, "--yes"], check=True)


async def play(options: LoopOptions) -> bool:
    """Import, learn and prove the candidate on live traffic. Returns True if it is promoted."""
    data, rows = read_data(options)
    terminal = Terminal()
    settings = bring_up(lambda message: None)
    async with prepared(options, settings, data, rows, terminal) as loop:
        loop.reviewers.only_pairs = True
        change_task(settings.home / "tasks", loop.setup.task.name, ONE_PASS)
        before = await ask_held_out(loop, "before")
        await asyncio.to_thread(import_rows, rows.traffic, loop.setup.task.name)
        await _learn_and_prove(loop)
        after = await ask_held_out(loop, "after")
        reviews = dict(loop.reviewers.counts.by_purpose)
    trained = (loop.result.cycle.dataset or {}).get("train_examples")
    print(
        f"imported: {len(rows.traffic)} rows of {len(data.labels)} labels, {trained} trained on; accuracy "
        f"{before.accuracy.value:.1%} → {after.accuracy.value:.1%}; answers of people: {reviews}; "
        f"promoted: {loop.result.promoted}"
    )
    return loop.result.promoted and set(reviews) <= {"discordant_pair"}


async def _learn_and_prove(loop: LoopContext) -> None:
    try:
        await learn(loop)
        await prove_live(loop)
    except CandidateStopped as stopped:
        print(f"imported: stopped by {stopped.by}: {stopped.evidence}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.imported", description=__doc__)
    parser.add_argument("file", type=Path, help="CSV file of labelled rows")
    parser.add_argument("--text", default="text", help="its column of texts")
    parser.add_argument("--label", default="label", help="its column of labels")
    parser.add_argument("--labels", type=int, default=45, help="how many of its commonest labels")
    parser.add_argument("--rows", type=int, default=115, help="most rows of a label to import")
    given = parser.parse_args(arguments)
    data = DataOptions(given.file, given.text, given.label, given.labels, max_corrections=given.rows)
    return 0 if asyncio.run(play(LoopOptions(data=data))) else 1


if __name__ == "__main__":
    sys.exit(main())
