"""A golden set changes on purpose only: a change has an author, a time and a reason; a refused one changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.golden import GoldenRow
from schemas.tasks import TaskSpec
from services.scheduler.golden import changes
from services.scheduler.golden.changes import (
    Author,
    add_rows,
    find_task,
    forget_people,
    mark_row,
    read_history,
    remove_rows,
)
from services.scheduler.golden.file import GoldenLine
from services.scheduler.task_files import apply_task, read_task
from shared.errors import ConfigurationError

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TASK = """\
name: desk
kind: classification
# Why we are strict here.
system_prompt: Classify.
labels: [delivery, refund]
"""
SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Classify.", "labels": ["delivery", "refund"]}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "desk.yaml").write_text(TASK)
    return tmp_path


def row(text: str, prediction_id: str | None = None) -> GoldenRow:
    return GoldenLine(text=text, label="refund", prediction_id=prediction_id).row(SPEC)


def author(reason: str) -> Author:
    return Author("ana", reason, NOON)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".lock"}


def test_the_first_row_gives_the_task_a_golden_file_and_its_comments_stay(folder: Path) -> None:
    assert read_task(folder / "desk.yaml").golden_set is None
    add_rows(folder, "desk", [row("one")], author("asked daily"))
    spec = read_task(folder / "desk.yaml")
    assert spec.golden_set is not None
    assert (spec.golden_file, spec.golden_set.rows) == ("desk.golden.jsonl", 1)
    assert "# Why we are strict here." in (folder / "desk.yaml").read_text()


def test_each_change_is_in_the_history_with_its_author_and_reason_but_no_text(folder: Path) -> None:
    one, two = row("one", "p1"), row("two")
    add_rows(folder, "desk", [one, two], author("asked daily"))
    mark_row(folder, "desk", one.row_id, True, author("a customer was lost"))
    assert [r.must_pass for r in find_task(folder, "desk").golden] == [True, False]
    mark_row(folder, "desk", one.row_id, False, author("too strict"))
    remove_rows(folder, "desk", [two.row_id], author("unclear"))
    file = find_task(folder, "desk")
    assert file.golden == (one,)
    history = read_history(file)
    assert [(c.action, c.row_id, c.reason) for c in history] == [
        ("added", one.row_id, "asked daily"),
        ("added", two.row_id, "asked daily"),
        ("marked", one.row_id, "a customer was lost"),
        ("unmarked", one.row_id, "too strict"),
        ("removed", two.row_id, "unclear"),
    ]
    assert {(c.by, c.at) for c in history} == {("ana", NOON)}
    assert history[0].prediction_id == "p1"
    assert "one" not in (folder / "desk.golden.history.jsonl").read_text()


@pytest.mark.parametrize("whose", ["user_hash", "author_hash"])
def test_a_row_of_somebody_who_was_forgotten_does_not_come_back(folder: Path, whose: str) -> None:
    """Neither from a file of before, nor by hand: its text would be asked of every candidate again."""
    theirs, others = row("leaves wrote", "p1"), row("two")
    theirs = theirs.model_copy(update={whose: "h1"})
    add_rows(folder, "desk", [theirs, others], author("asked daily"))
    mine = folder / "mine"
    mine.mkdir()
    for name in ("desk.yaml", "desk.golden.jsonl"):
        (mine / name).write_bytes((folder / name).read_bytes())
    forget_people(folder, ["desk"], ["h1"], author("a person was forgotten"))
    kept = files(folder)
    with pytest.raises(ConfigurationError, match=f"1 rows of .* forgotten since: {theirs.row_id}") as caught:
        apply_task(mine / "desk.yaml", folder)
    assert "Delete these lines" in caught.value.way_out
    with pytest.raises(ConfigurationError, match="forgotten since"):
        add_rows(folder, "desk", [theirs], author("again"))
    assert files(folder) == kept and b"leaves wrote" not in kept["desk.golden.jsonl"]
    add_rows(folder, "desk", [row("leaves wrote", "p2")], author("asked by another"))


def test_a_golden_set_may_become_empty(folder: Path) -> None:
    add_rows(folder, "desk", [row("one")], author("a"))
    remove_rows(folder, "desk", [row("one").row_id], author("b"))
    assert read_task(folder / "desk.yaml").golden_set is None


def test_a_refused_change_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rows(folder, "desk", [row("one")], author("a"))
    before = files(folder)
    with pytest.raises(ConfigurationError, match="in desk's golden set already"):
        add_rows(folder, "desk", [row("two"), row("one")], author("b"))
    with pytest.raises(ConfigurationError, match="has no row g-nothing"):
        remove_rows(folder, "desk", [row("one").row_id, "g-nothing"], author("b"))
    with pytest.raises(ConfigurationError, match="has no row g-nothing"):
        mark_row(folder, "desk", "g-nothing", True, author("b"))
    monkeypatch.setattr(changes, "MAX_ROWS", 2)
    with pytest.raises(ConfigurationError, match="at most 2 rows; desk would have 3"):
        add_rows(folder, "desk", [row("two"), row("three")], author("b"))
    with pytest.raises(ConfigurationError, match="no task other"):
        add_rows(folder, "other", [row("two")], author("b"))
    assert files(folder) == before


def test_changes_at_the_same_time_are_all_kept(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_rows(folder, "desk", [row(f"question {n}")], author("a")), range(16)))
    file = find_task(folder, "desk")
    assert len(file.golden) == len(read_history(file)) == 16
