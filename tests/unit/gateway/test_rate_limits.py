"""Token buckets, alone and shared by processes."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.gateway.auth.rate_limits import TokenBuckets, clear_buckets
from tests.waiting import PATIENCE_SECONDS

_TAKER = """
import sys, time
from pathlib import Path
from services.gateway.auth.rate_limits import TokenBuckets
bucket = TokenBuckets(Path(sys.argv[1])).bucket("shop", "requests", 0.001, 1_000.0)
print("ready", flush=True)
sys.stdin.readline()
taken = 0
for _ in range(2_000):
    taken += bucket.take(1.0, time.monotonic()) == 0.0
    time.sleep(0.0001)
print(taken, flush=True)
"""


def test_a_bucket_refills_up_to_its_burst() -> None:
    bucket = TokenBuckets().bucket("shop", "requests", 2.0, 3.0)
    assert [bucket.take(1.0, 10.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(1.0, 10.0) == pytest.approx(0.5)
    assert bucket.take(1.0, 10.5) == 0.0
    assert [bucket.take(1.0, 9_999.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.5)]


def test_more_than_the_burst_is_granted_by_a_full_bucket_and_paid_back() -> None:
    bucket = TokenBuckets().bucket("shop", "bytes", 1.0, 10.0)
    assert bucket.take(25.0, 0.0) == 0.0
    assert bucket.take(1.0, 0.0) == pytest.approx(16.0)
    assert bucket.take(11.0, 24.0) == pytest.approx(1.0)
    assert bucket.take(11.0, 25.0) == 0.0


def test_a_refusal_takes_nothing() -> None:
    bucket = TokenBuckets().bucket("shop", "requests", 1.0, 1.0)
    assert bucket.take(1.0, 0.0) == 0.0
    assert [bucket.take(1.0, 0.9) for _ in range(50)] == [pytest.approx(0.1)] * 50
    assert bucket.take(1.0, 1.0) == 0.0


def test_there_is_one_bucket_for_each_app_kind_and_limit() -> None:
    buckets = TokenBuckets()
    bucket = buckets.bucket("shop", "requests", 1.0, 1.0)
    assert buckets.bucket("shop", "requests", 1.0, 1.0) is bucket
    different = [("web", "requests", 1.0, 1.0), ("shop", "bytes", 1.0, 1.0), ("shop", "requests", 2.0, 1.0)]
    assert not any(buckets.bucket(*arguments) is bucket for arguments in different)


def test_workers_share_the_buckets_of_a_folder_until_it_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "limits"
    first, second = (TokenBuckets(folder).bucket("shop", "requests", 1.0, 2.0) for _ in range(2))
    assert [first.take(1.0, 5.0), second.take(1.0, 5.0)] == [0.0, 0.0]
    assert first.take(1.0, 5.0) == second.take(1.0, 5.0) == pytest.approx(1.0)
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]
    clear_buckets(folder)
    clear_buckets(folder)
    assert TokenBuckets(folder).bucket("shop", "requests", 1.0, 2.0).take(1.0, 5.0) == 0.0


def test_processes_together_take_no_more_than_one_bucket_allows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TAKER, str(tmp_path / "limits")]
    takers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(3)
    ]
    for taker in takers:
        assert taker.stdout and taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin
        taker.stdin.write("go\n")
        taker.stdin.flush()
    taken = [int(taker.communicate(timeout=PATIENCE_SECONDS)[0]) for taker in takers]
    # Of two takes in the same microsecond one may go uncounted.
    assert 1_000 <= sum(taken) <= 1_050, taken


def test_on_a_full_disk_each_worker_limits_for_itself_and_logs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.ERROR):
        bucket = TokenBuckets(tmp_path).bucket("shop", "requests", 1.0, 1.0)
    assert "shop" in caplog.text and "No space left" in caplog.text
    now = time.monotonic()
    assert [bucket.take(1.0, now), bucket.take(1.0, now)] == [0.0, pytest.approx(1.0)]
