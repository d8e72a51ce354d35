"""Files, and folders of them, that are either complete or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file: a reader sees the old content or the new, never a part. Only its owner can read the new file."""
    with replaced_atomically(path) as file:
        file.write(data)


def rename_folder(folder: Path, target: Path) -> None:
    """Give a finished folder its name, which it has with all of its files or not at all, also if the machine stops.

    Raises OSError if there is such a folder already.
    """
    for path in (*folder.rglob("*"), folder):
        sync(path)
    folder.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Like `write_atomically`, with a file to write to: what is large need not be in memory twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
