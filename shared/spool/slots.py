"""Slots: one folder per writing process, with locks that the kernel releases however their owner dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shared.files import sync
from shared.spool.records import SpoolUnavailable

_OWNER_LOCK = "owner.lock"
_SHIPPER_LOCK = "shipper.lock"


class SlotLock(contextlib.AbstractContextManager["SlotLock"]):
    """Held until `close` or the death of the process; a spawned child does not inherit it, a forked one does."""

    def __init__(self, slot: Path, descriptor: int) -> None:
        self.slot = slot
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __exit__(self, *_: object) -> None:
        self.close()


def list_slots(folder: Path) -> list[Path]:
    """Return the slots in `folder` by number; none if the folder does not exist yet."""
    with contextlib.suppress(FileNotFoundError):
        return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return []


def lock_for_shipping(slot: Path) -> SlotLock | None:
    """Take the lock to ship from `slot` with a `SpoolReader`; None while another process holds it."""
    return _try_lock(slot, _SHIPPER_LOCK)


def take_slot(folder: Path) -> SlotLock:
    """Lock the first slot without a living owner for writing, or create one. Raises `SpoolUnavailable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _folder_lock(folder):
            number = 0
            while True:
                slot = folder / str(number)
                if not slot.exists():
                    slot.mkdir(mode=0o700)
                    sync(folder)
                if lock := _try_lock(slot, _OWNER_LOCK):
                    return lock
                number += 1
    except OSError as error:
        raise SpoolUnavailable(
            f"No slot could be opened in {folder}: {error}", "Free disk space, or set another folder."
        ) from error


def has_owner(slot: Path) -> bool:
    """Return True if a living process may still append to the slot's last segment."""
    with _folder_lock(slot.parent):  # Otherwise a writer that opens now would find the slot locked by this check.
        lock = _try_lock(slot, _OWNER_LOCK)
    if lock is None:
        return True
    lock.close()
    return False


def _try_lock(slot: Path, name: str) -> SlotLock | None:
    descriptor = os.open(slot / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return SlotLock(slot, descriptor)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
