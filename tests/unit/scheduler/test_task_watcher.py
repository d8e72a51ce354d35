"""A golden set is in the artifact store before the event that names it, and the event does not grow with it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from schemas.base import Event
from schemas.tasks import TaskChanged
from services.scheduler import task_files
from services.scheduler.settings import SchedulerSettings
from services.scheduler.task_watcher import TaskWatcher
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import read_golden_set

TASK = """\
name: desk
kind: classification
system_prompt: Classify.
labels: [delivery, refund]
golden_file: golden.jsonl
"""


class Bench:
    """A watcher of a folder with one task; at each event the golden set that it names is read from the store."""

    def __init__(self, folder: Path) -> None:
        self.settings = SchedulerSettings(home=folder)
        self.folder = self.settings.tasks_folder
        self.folder.mkdir()
        (self.folder / "desk.yaml").write_text(TASK)
        self.store = ArtifactStore(self.settings.artifacts_uri, folder / "cache")
        self.events: list[TaskChanged] = []

    async def start(self) -> None:
        """Start the watcher, on an empty topic of tasks."""
        table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
        await table.read_to({})
        self.watcher = TaskWatcher(self.settings, self, table, self.store)

    def write_golden(self, rows: int, text: str = "question") -> None:
        lines = (json.dumps({"text": f"{text} {n}", "label": "refund"}) for n in range(rows))
        (self.folder / "golden.jsonl").write_text("\n".join(lines))

    async def publish(self, event: Event) -> None:
        assert isinstance(event, TaskChanged)
        assert event.spec.golden_set is not None
        assert len(read_golden_set(self.store, event.spec)) == event.spec.golden_set.rows
        self.events.append(event)


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    await bench.start()
    return bench


async def test_a_golden_file_that_is_larger_than_a_record_is_an_event_of_the_usual_size(bench: Bench) -> None:
    bench.write_golden(1_200, text="a long question of several thousand characters, " * 80)
    assert (bench.folder / "golden.jsonl").stat().st_size > 4 * 1024 * 1024  # Larger than any record of Kafka.
    await bench.watcher.scan()
    (event,) = bench.events
    assert len(event.model_dump_json()) < 5_000
    assert event.spec.golden_set is not None
    assert event.spec.golden_set.rows == 1_200


async def test_a_changed_golden_file_is_another_set_and_the_old_one_stays(bench: Bench) -> None:
    bench.write_golden(2)
    await bench.watcher.scan()
    await bench.watcher.scan()
    bench.write_golden(3)
    await bench.watcher.scan()
    before, after = (event.spec for event in bench.events)
    assert (len(read_golden_set(bench.store, before)), len(read_golden_set(bench.store, after))) == (2, 3)
    assert before.revision == after.revision


async def test_a_task_file_is_parsed_again_only_once_it_or_its_golden_file_has_changed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_file, parsed, load = bench.folder / "desk.yaml", [0], task_files._load

    def counted(path: Path) -> object:
        parsed[0] += 1
        return load(path)

    async def scans(times: int = 3) -> int:
        before = parsed[0]
        for _ in range(times):
            await bench.watcher.scan()
        return parsed[0] - before

    def written_long_ago() -> None:
        os.utime(task_file, (time.time() - 60, time.time() - 60))

    monkeypatch.setattr(task_files, "_load", counted)
    bench.write_golden(2)
    assert await scans() == 3, "it was written this moment, and may be again"
    written_long_ago()
    assert (await scans(), await scans()) == (1, 0)
    task_file.write_text(TASK.replace("Classify.", "Classify!"))
    written_long_ago()
    assert (await scans(), await scans()) == (2, 0), "with the rows that are to be published, and without"
    bench.write_golden(3)
    assert (await scans(), await scans()) == (2, 0)
    assert [event.spec.system_prompt for event in bench.events] == ["Classify.", "Classify!", "Classify!"]
    assert [event.spec.golden_set.rows for event in bench.events if event.spec.golden_set] == [2, 2, 3]
    task_file.write_text("kind: [")
    written_long_ago()
    await bench.watcher.scan()
    assert "desk.yaml" in bench.watcher.invalid_files


async def test_an_unchanged_golden_file_is_read_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[Path]()
    real = task_files.read_golden_file
    monkeypatch.setattr(task_files, "read_golden_file", lambda path, spec: read.append(path) or real(path, spec))
    bench.write_golden(2)
    for _ in range(3):
        await bench.watcher.scan()
    assert len(read) == 1
    (bench.folder / "desk.yaml").write_text(TASK.replace("refund", "other"))  # Its rows are wrong now.
    await bench.watcher.scan()
    assert "label: 'refund' is not a label" in bench.watcher.invalid_files["desk.yaml"]


async def test_a_renamed_label_is_another_set_of_the_same_file(bench: Bench) -> None:
    bench.write_golden(2)
    await bench.watcher.scan()
    renamed = TASK.replace("labels: [delivery, refund]", "labels: [delivery, money]\nrenamed_labels: {refund: money}")
    (bench.folder / "desk.yaml").write_text(renamed)
    await bench.watcher.scan()
    answers = [{row.answer for row in read_golden_set(bench.store, event.spec)} for event in bench.events]
    assert answers == [{"refund"}, {"money"}]


async def test_a_store_that_is_away_delays_the_event(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write_golden(2)
    with monkeypatch.context() as away:
        away.setattr(bench.store, "publish", full_disk)
        with pytest.raises(DependencyUnavailable, match="No space left"):
            await bench.watcher.scan()
    assert not bench.events
    await bench.watcher.scan()
    assert len(bench.events) == 1


def full_disk(folder: Path, kind: str, name: str) -> str:
    raise OSError(28, "No space left on device")


async def test_a_restarted_scheduler_publishes_a_set_again_that_was_deleted(bench: Bench) -> None:
    bench.write_golden(2)
    await bench.watcher.scan()
    shutil.rmtree(Path(bench.settings.artifacts_uri) / "golden")
    await bench.start()
    await bench.watcher.scan()
    assert len(read_golden_set(bench.store, bench.events[0].spec)) == 2


def write_task(bench: Bench, file: str, *labels: str, golden_file: str = "golden.jsonl", name: str = "desk") -> None:
    text = TASK.replace("[delivery, refund]", f"[{', '.join(labels)}]").replace("golden.jsonl", golden_file)
    (bench.folder / file).write_text(text.replace("name: desk", f"name: {name}"))


@pytest.mark.parametrize("copy", ["desk-old.yaml", "another.yaml", "twin.yaml"])
async def test_a_copy_of_a_task_file_never_takes_the_place_of_the_tasks_own(bench: Bench, copy: str) -> None:
    """A backup beside it, which sorts before it, was the task; and one that sorts after it once it had a mistake."""
    bench.write_golden(2)
    write_task(bench, "desk.yaml", "refund", "new")
    write_task(bench, copy, "refund", "old")
    await bench.watcher.scan()
    (event,) = bench.events
    assert event.spec.labels == ("refund", "new")
    assert list(bench.watcher.invalid_files) == [copy]
    (bench.folder / "desk.yaml").write_text("name: desk\nkind: clasification\n")
    await bench.watcher.scan()
    assert len(bench.events) == 1
    assert set(bench.watcher.invalid_files) == {copy, "desk.yaml"}


async def test_a_golden_file_that_cannot_be_looked_at_is_one_files_mistake(bench: Bench) -> None:
    """A name over 255 bytes, or a folder that may not be entered, had stopped all tasks' files, cycles and erasures."""
    bench.write_golden(2)
    write_task(bench, "long.yaml", "refund", "b", golden_file="é" * 180 + ".jsonl", name="long")
    await bench.watcher.scan()
    assert [event.task for event in bench.events] == ["desk"]
    assert "long.yaml:5: " in bench.watcher.invalid_files["long.yaml"]
    assert "cannot be read: File name too long" in bench.watcher.invalid_files["long.yaml"]
    assert bench.watcher.scanned
