"""Kept pictures, sound and documents: their places in the artifact store, and the format of a file. No I/O.

    media/<task>/<day it was sent, UTC>/<user hash, or anonymous>/<name>

The day comes before the person, because retention runs all the time and on everything: what is too old is one listing
of the task's days, and one prefix to delete for each. Forgetting a person is rare: one prefix for each day kept.

A file is a header, which says when the content was sent, and one encrypted message: what is around the content in the
request, and the content itself. It is the same in the gateway's folder and in the store, which never sees a clear byte.
"""

from __future__ import annotations

import binascii
import copy
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from shared.privacy.encryption import Cipher, DecryptionFailed

CIPHER = "media"
"""The name of the key in the secrets folder."""
ROOT = "media"
ANONYMOUS = "anonymous"
"""In place of the user hash, where the application names no user."""
_KEY = re.compile(rf"{ROOT}/([a-z0-9][a-z0-9-]*)/(\d{{4}}-\d\d-\d\d)/([a-z0-9]+)/([a-z0-9]+)")
_HEADER = struct.Struct("<4sd")
_MAGIC = b"RMD1"
HEADER_BYTES = _HEADER.size
_SURROUNDING = struct.Struct("<?I")
_DECODED_AT_ONCE = 256 * 1024
"""Characters of base64, a multiple of four: decoding holds the interpreter, and other threads run in between."""


class MediaKey(NamedTuple):
    """The parts of a `Media.key`."""

    task: str
    day: date
    subject: str
    name: str

    @classmethod
    def parse(cls, key: str) -> MediaKey:
        """Raises ValueError for another text."""
        if (match := _KEY.fullmatch(key)) is None:
            raise ValueError(f"not the key of a kept file: {key}")
        task, day, subject, name = match.groups()
        return cls(task, date.fromisoformat(day), subject, name)

    def __str__(self) -> str:
        return f"{ROOT}/{self.task}/{self.day}/{self.subject}/{self.name}"


@dataclass(frozen=True)
class Surroundings:
    """The part of a message without its content, which belongs at `path` behind `prefix`.

    With an empty path the content is the JSON of the whole part.
    """

    part: Mapping[str, Any]
    path: Sequence[str]
    prefix: str = ""


@dataclass(frozen=True)
class KeptFile:
    """A decrypted file. `content`: the bytes themselves, which the request had in base64 if `base64` is set."""

    surroundings: Surroundings
    content: bytes
    base64: bool

    @property
    def part(self) -> dict[str, Any]:
        """The part of the message, equal to the one that was sent."""
        if not self.surroundings.path:
            whole: dict[str, Any] = json.loads(self.content)
            return whole
        encoded = binascii.b2a_base64(self.content, newline=False) if self.base64 else self.content
        part = copy.deepcopy(dict(self.surroundings.part))
        holder = part
        *outer, name = self.surroundings.path
        for field in outer:
            holder = holder[field]
        holder[name] = self.surroundings.prefix + encoded.decode()
        return part


def pack(surroundings: bytes, content: str, sent_at: float, cipher: Cipher) -> bytes:
    """Return the file of a content as a request has it, behind the prefix: base64, or any other text.

    `surroundings`: their JSON. `sent_at`: Unix seconds. For a thread: 60 ms for 20 MB.
    """
    decoded = _decode_base64(content)
    clear = _SURROUNDING.pack(decoded is not None, len(surroundings))
    body = cipher.encrypt(b"".join((clear, surroundings, content.encode() if decoded is None else decoded)))
    return _HEADER.pack(_MAGIC, sent_at) + body


def sent_at(file: bytes) -> datetime:
    """Return when the content was sent. Needs the header only. Raises ValueError if this is no such file."""
    if len(file) < HEADER_BYTES:
        raise ValueError(f"{len(file)} bytes are too few for a kept file")
    magic, seconds = _HEADER.unpack_from(file)
    if magic != _MAGIC:
        raise ValueError("not a kept file")
    return datetime.fromtimestamp(seconds, UTC)


def unpack(file: bytes, cipher: Cipher) -> KeptFile:
    """Decrypt a file. Raises DecryptionFailed, DecryptionKeyMissing."""
    try:
        sent_at(file)
    except ValueError as error:
        raise DecryptionFailed(f"{error}".capitalize()) from error
    clear = cipher.decrypt(file[HEADER_BYTES:])
    base64, length = _SURROUNDING.unpack_from(clear)
    start = _SURROUNDING.size + length
    return KeptFile(Surroundings(**json.loads(clear[_SURROUNDING.size : start])), clear[start:], base64)


def _decode_base64(text: str) -> bytes | None:
    """Return the bytes; None for a text that these bytes would not give again: no base64, or an unusual one."""
    pieces = []
    for start in range(0, len(text), _DECODED_AT_ONCE):
        piece = text[start : start + _DECODED_AT_ONCE]
        is_last = start + _DECODED_AT_ONCE >= len(text)
        try:
            decoded = binascii.a2b_base64(piece, strict_mode=True)
        except ValueError:
            return None
        if binascii.b2a_base64(decoded, newline=False).decode() != piece or not (
            is_last or len(decoded) == len(piece) // 4 * 3
        ):
            return None
        pieces.append(decoded)
    return b"".join(pieces)
