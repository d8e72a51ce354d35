"""Files are complete or absent, and so is what was to become one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shared.files import write_atomically


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever repeats it would fill the disk, and a folder that is published would have it in itself."""
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("result.json", b"old")]
