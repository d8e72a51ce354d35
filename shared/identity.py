"""Names derived from content: the same thing gets the same name on every machine and at every retry."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
from functools import lru_cache
from pathlib import Path
from uuid import UUID, uuid5

from shared.errors import ConfigurationError

NAMESPACE = UUID("6d1f3b1e-51a7-4c50-9a0c-3f4e8f4d7a10")

logger = logging.getLogger(__name__)


def event_id(*parts: object) -> UUID:
    """Return the id of an event that a retried handler may publish twice: same parts, same id (RFC 9562 version 5)."""
    return uuid5(NAMESPACE, "\x1f".join(str(part) for part in parts))


def random_id() -> str:
    """A random UUID (RFC 9562 version 4) in 32 hex digits, in a third of the time of `uuid4().hex`."""
    number = int.from_bytes(os.urandom(16), "big")
    return f"{(number & _RANDOM_BITS) | _VERSION_4:032x}"


_RANDOM_BITS = (1 << 128) - 1 - (0xF << 76) - (0x3 << 62)
_VERSION_4 = (0x4 << 76) | (0x2 << 62)
_BLOCK = 1 << 20
_MIN_KEY_BYTES = 16


def content_hash(*parts: bytes | str | Path, length: int = 12) -> str:
    """Return the first `length` hex digits of the SHA-256 of the parts, each prefixed by its size.

    A path stands for the content of its file.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(part.stat().st_size.to_bytes(8, "big"))
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            continue
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:length]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hex, as manifests have it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path, length: int = 12) -> str:
    """Return the first `length` hex digits of the SHA-256 of all files below `folder`, names included, sorted."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\x1f")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:length]


def keyed_hash(key: bytes, text: str, length: int = 24) -> str:
    """Return the HMAC-SHA256 of `text` in hex: it joins the events of a person without saying who it is."""
    keyed = _hmac_of(key).copy()
    keyed.update(text.encode())
    return keyed.hexdigest()[:length]


@lru_cache(maxsize=16)
def _hmac_of(key: bytes) -> hmac.HMAC:
    """The HMAC with this key of nothing yet: setting up the key takes half of the time of a short text's HMAC."""
    return hmac.new(key, digestmod=hashlib.sha256)


def load_or_create_key(folder: Path, name: str) -> bytes:
    """Return the 32-byte secret in the file `name` (mode 0600), made on first use. Safe when two processes race.

    Raises ConfigurationError for a file of under 16 bytes: by a hash with an empty key anybody finds out whose it is.

    The log says that one was made: a service whose home lacks its installation's secrets hashes people otherwise than
    the others do, and nothing else would tell.
    """
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(dir=folder)  # Mode 0600.
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())  # A power cut would leave the name with nothing in it.
        with contextlib.suppress(FileExistsError):  # Another process was first: its key is used.
            os.link(temporary, path)
            logger.info("made a new key: %s. Services on other machines need a copy of this folder", path)
        Path(temporary).unlink()
    key = path.read_bytes()
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigurationError(
            f"{path} has {len(key)} bytes, which is too short for a key",
            "Restore it from a backup, or from another machine of this installation. Delete it only where nothing was "
            "made with it: the next start makes another key.",
        )
    return key
