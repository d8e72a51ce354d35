"""Files with large rows are compacted to fewer bytes and erased from a few at a time, so that memory is bounded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.lake import PREDICTIONS
from services.prediction_log import rewrites
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.rewrites import SizedFile, compacted_bytes, rewrite_spans
from tests.unit.prediction_log.lake_rows import NOON, TASK, ids, maintain, opened, prediction, write

TEXT_BYTES, LIMIT = 20_000, 100_000
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rewrites, "MAX_REWRITE_BYTES", LIMIT)
    yield


def write_large(lake: Path, files: int) -> list[str]:
    """Append files of one large row each, ten minutes apart; every third is Ann's."""
    texts = random.Random(1)
    for number in range(files):
        at, user = NOON - timedelta(minutes=10 * number), "ann" if number % 3 == 0 else "bob"
        text = texts.randbytes(TEXT_BYTES // 2).hex()
        write(lake, PREDICTIONS, [prediction(f"p{number:02d}", at, user_hash=user, messages=text)])
    return [f"p{number:02d}" for number in range(files)]


def sizes(lake: Path) -> list[int]:
    """Return the uncompressed bytes of each current file."""
    return [pq.read_metadata(path).row_group(0).total_byte_size for path in opened(lake, PREDICTIONS).file_uris()]


def test_files_of_large_rows_stay_small_when_they_are_compacted(tmp_path: Path) -> None:
    names = write_large(tmp_path, 16)
    maintain(tmp_path)
    assert 3 <= len(sizes(tmp_path)) < 8 and max(sizes(tmp_path)) < LIMIT + 3 * TEXT_BYTES
    assert ids(tmp_path, PREDICTIONS) == names


def test_a_deletion_from_a_day_of_large_rows_rewrites_a_few_files_at_a_time(tmp_path: Path) -> None:
    names = write_large(tmp_path, 16)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert ids(tmp_path, PREDICTIONS) == [name for number, name in enumerate(names) if number % 3]
    deletions = [commit for commit in opened(tmp_path, PREDICTIONS).history() if commit["operation"] == "DELETE"]
    removed = [int(commit["operationMetrics"]["num_removed_files"]) for commit in deletions]
    assert sum(removed) == 6 and max(removed) <= 2
    assert all("ratchet.deleted" in commit for commit in deletions), "the hours are counted again"


def test_small_rows_are_compacted_and_deleted_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "MAX_REWRITE_BYTES", 256 * MIB)
    files = [SizedFile(f"{n}", 100_000, 25 * MIB, 100 * MIB, n) for n in range(30)]
    assert compacted_bytes(files, 128 * MIB) == 128 * MIB
    assert list(rewrite_spans(files)) == [(None, None)]
    assert compacted_bytes([], 128 * MIB) == 128 * MIB
    large = [SizedFile(f"{n}", 1_000, 10 * MIB, 100 * MIB, n) for n in range(30)]
    assert compacted_bytes(large, 128 * MIB) == 25 * MIB + 3 * MIB // 5
    assert len(list(rewrite_spans(large))) == 15


sized = st.builds(
    SizedFile, path=st.just(""), rows=st.integers(1, 9), compressed=st.integers(1, 50_000),
    uncompressed=st.integers(1, 150_000), oldest=st.integers(0, 20) | st.integers(0, 20) | st.none(),
)  # fmt: skip


@given(st.lists(sized, max_size=12))
def test_spans_have_every_time_once_and_no_more_bytes_than_one_file_needs(files: list[SizedFile]) -> None:
    spans = list(rewrite_spans(files))
    assert (spans[0][0], spans[-1][1]) == (None, None)
    assert all(end == start is not None for (_, end), (start, _) in pairwise(spans))
    if all(file.oldest is not None for file in files):
        for first, after in spans:
            begun = [f for f in files if (first or 0) <= (f.oldest or 0) < (99 if after is None else after)]
            assert sum(f.uncompressed for f in begun) <= LIMIT or len({f.oldest for f in begun}) == 1
