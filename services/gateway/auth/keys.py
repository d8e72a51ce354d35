"""The keys file, `<home>/gateway/keys.json`: the hashes of the API keys, not the keys themselves.

The hash is plain SHA-256. Slow, salted hashes protect passwords, which people choose from few; a key here is 256
random bits, which cannot be guessed from a hash at any speed, and a slow hash would slow every request down. Nothing
here runs on the request path: see `grants.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import RatchetError, describe_validation_error
from shared.files import write_atomically

PREFIX = "rk_"
"""The start of every key, so that people, log scrubbers and secret scanners recognise one."""


class KeysUnreadable(RatchetError):
    """The keys file cannot be read, or is not a keys file."""


class ApiKey(BaseModel):
    """A key's entry in the file. `tasks` None: all. An unknown field is an error, because it may be a restriction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hex.")
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    requests_per_second: float | None = Field(default=None, gt=0.0, le=1e6)
    burst: int | None = Field(default=None, ge=1, le=10**6, description="Requests at once; default: one second's.")
    bytes_per_minute: int | None = Field(default=None, ge=1_000, le=10**12, description="Of request bodies.")
    pass_through: bool = Field(default=False, description="May name models that are no task.")

    @property
    def id(self) -> str:
        """A short name for the key, from its hash."""
        return self.digest[:12]

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and now >= self.expires_at


class _KeysFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...]


def new_key() -> tuple[str, str]:
    """Make a key; return it and its digest in hex."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...] | None:
    """Read the keys; None if there is no file. Raises KeysUnreadable, which quotes nothing of the file."""
    try:
        return _KeysFile.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysUnreadable(
            f"the API keys in {path} cannot be read: {error.strerror}", "The gateway's user must own the file."
        ) from error
    except ValidationError as error:
        raise KeysUnreadable(
            f"{path} is not a file of API keys: {describe_validation_error(error, limit=1)}",
            "Correct it, or restore it; it is written by: ratchet keys",
        ) from None


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file atomically, readable by its owner only. Raises OSError."""
    write_atomically(path, _KeysFile(keys=tuple(keys)).model_dump_json(indent=2).encode() + b"\n")


def remember_keys(path: Path) -> None:
    """Write the file by which the gateway knows at its next start that it has had keys. Idempotent. Raises OSError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, b"The gateway has had API keys: without their file it refuses every request.\n")


@contextmanager
def locked_for_editing(path: Path) -> Iterator[None]:
    """Hold an exclusive lock while the file is read, changed and written. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
