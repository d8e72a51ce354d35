"""Who owns a slot: locks that the kernel gives back when their owner dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from shared.spool.records import SpoolFull

_OWNER = "owner.lock"
_SHIPPER = "shipper.lock"


class SlotLock:
    """Held until `close` or the death of the process; a started child does not inherit it, a forked one does."""

    def __init__(self, slot: Path, descriptor: int) -> None:
        self.slot = slot
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> SlotLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def slots(folder: Path) -> list[Path]:
    """The slots in `folder` by number; none if the folder is not there yet."""
    with contextlib.suppress(FileNotFoundError):
        return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return []


def lock_for_shipping(slot: Path) -> SlotLock | None:
    """The right to ship from `slot`, None while another process has it. Use one `SpoolReader` under it."""
    return _try_lock(slot, _SHIPPER)


def take_slot(folder: Path) -> SlotLock:
    """The writer's lock on the first slot without a living owner, a new one if all have one. Raises `SpoolFull`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _deciding(folder):
            number = 0
            while True:
                slot = folder / str(number)
                if not slot.exists():
                    slot.mkdir(mode=0o700)
                    sync_folder(folder)
                if lock := _try_lock(slot, _OWNER):
                    return lock
                number += 1
    except OSError as error:
        raise SpoolFull(f"No slot could be opened in {folder}: {error}", "Make room, or set another folder.") from error


def has_owner(slot: Path) -> bool:
    """Whether a living process may still append to the slot's last segment."""
    with _deciding(slot.parent):  # So that a writer that opens does not find the slot locked by this look.
        lock = _try_lock(slot, _OWNER)
    if lock is None:
        return True
    lock.close()
    return False


def sync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(slot: Path, name: str) -> SlotLock | None:
    descriptor = os.open(slot / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return SlotLock(slot, descriptor)


@contextlib.contextmanager
def _deciding(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
