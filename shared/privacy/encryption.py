"""Text that has to lie on disk before it is redacted lies there sealed: AES-256-GCM, with keys that can be rotated."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import RatchetError
from shared.identity import load_or_create_key

KEY_BYTES = 32
_ID_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16
OVERHEAD = _ID_BYTES + _NONCE_BYTES + _TAG_BYTES
"""Bytes by which a sealed message is longer than what is in it."""


class SealBroken(RatchetError):
    """These bytes are not what was sealed: damaged, tampered with, or no sealed message at all."""


class KeyMissing(SealBroken):
    """The message was sealed with a key that is not here: nothing is wrong with the message."""


class Seal:
    """Seals with `key`, opens what `key` or one of `previous` sealed (32 bytes each).

    A sealed message is the key's id (4 bytes of its SHA-256), a nonce (12 bytes), the ciphertext and its tag. The
    nonce is 8 random bytes drawn once a process and a counter, so it does not repeat however many messages there are
    (a random nonce a message would be spent after 2^32 of them). Safe to use from several threads and after a fork.
    """

    def __init__(self, key: bytes, previous: Sequence[bytes] = ()) -> None:
        self._ciphers = {_key_id(k): AESGCM(_checked(k)) for k in (*previous, key)}
        self._id = _key_id(key)
        self._cipher = self._ciphers[self._id]
        self._renew()
        _seals.add(self)

    def _renew(self) -> None:
        self._prefix = self._id + os.urandom(8)
        self._count = count()

    def seal(self, data: bytes) -> bytes:
        """`data`, unreadable without the key; longer by `OVERHEAD` bytes."""
        number = next(self._count)
        if number >> 32:  # Counted out: 2^32 messages later a new random part.
            self._renew()
            number = next(self._count)
        prefix = self._prefix + number.to_bytes(4, "big")
        return prefix + self._cipher.encrypt(prefix[_ID_BYTES:], data, None)

    def open(self, data: bytes) -> bytes:
        """What was sealed. `KeyMissing` if no key here has sealed it, `SealBroken` if it is not what was sealed."""
        if len(data) < OVERHEAD:
            raise SealBroken(f"{len(data)} bytes are too few for a sealed message.")
        cipher = self._ciphers.get(data[:_ID_BYTES])
        if cipher is None:
            raise KeyMissing(
                f"Sealed with key {data[:_ID_BYTES].hex()}, which is not here.",
                "Put the 32-byte key that was used before beside the present one, as <name>.previous.",
            )
        nonce = data[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        try:
            return cipher.decrypt(nonce, data[_ID_BYTES + _NONCE_BYTES :], None)
        except InvalidTag:
            raise SealBroken("A sealed message was changed after it was sealed.") from None


def load_seal(folder: Path, name: str) -> Seal:
    """The seal with the key `folder/name`, made on first use; `folder/name.previous` has older ones, 32 bytes each."""
    older = folder / f"{name}.previous"
    data = older.read_bytes() if older.exists() else b""
    previous = [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]
    return Seal(load_or_create_key(folder, name), previous)


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_ID_BYTES]


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise SealBroken(f"A key of a seal has {KEY_BYTES} bytes, not {len(key)}.", "Restore the key file.")
    return key


_seals: weakref.WeakSet[Seal] = weakref.WeakSet()


def _after_fork() -> None:
    for seal in _seals:
        seal._renew()  # Parent and child must never seal with the same nonce.


os.register_at_fork(after_in_child=_after_fork)
