"""AES-256-GCM encryption, with keys that can be rotated, of text that must lie on disk before it is redacted."""

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
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16
OVERHEAD_BYTES = _KEY_ID_BYTES + _NONCE_BYTES + _TAG_BYTES
"""By how much an encrypted message is longer than its plaintext."""


class DecryptionFailed(RatchetError):
    """The message is damaged, was tampered with, or is no encrypted message at all."""


class DecryptionKeyMissing(DecryptionFailed):
    """The message was encrypted with a key that is not here; the message itself may be fine."""


class Cipher:
    """Encrypts with `key`; decrypts what `key` or one of `previous` encrypted (32 bytes each).

    An encrypted message is the key's id (4 bytes of its SHA-256), a nonce (12 bytes), the ciphertext and its tag. The
    nonce is 8 random bytes, drawn once per process, and a counter, so it never repeats (random nonces alone would be
    safe for only 2^32 messages). Thread-safe and fork-safe.
    """

    def __init__(self, key: bytes, previous: Sequence[bytes] = ()) -> None:
        self._keys = {_key_id(k): AESGCM(_checked(k)) for k in (*previous, key)}
        self._key_id = _key_id(key)
        self._key = self._keys[self._key_id]
        self._renew_nonce()
        _ciphers.add(self)

    def _renew_nonce(self) -> None:
        self._prefix = self._key_id + os.urandom(8)
        self._count = count()

    def encrypt(self, data: bytes) -> bytes:
        """Encrypt `data`; the result is longer by `OVERHEAD_BYTES`."""
        prefix = self._next_prefix()
        return prefix + self._key.encrypt(prefix[_KEY_ID_BYTES:], data, None)

    def encrypt_into(self, data: bytes, buffer: memoryview) -> None:
        """Write what `encrypt` returns to a buffer, which must be longer than `data` by `OVERHEAD_BYTES`.

        It spares a large message two copies on its way to a file.
        """
        prefix = self._next_prefix()
        buffer[: len(prefix)] = prefix
        self._key.encrypt_into(prefix[_KEY_ID_BYTES:], data, None, buffer[len(prefix) :])

    def _next_prefix(self) -> bytes:
        """The key's id, and a nonce that no other message has."""
        number = next(self._count)
        if number >> 32:  # The 4-byte counter is used up after 2^32 messages: draw a new random part.
            self._renew_nonce()
            number = next(self._count)
        return self._prefix + number.to_bytes(4, "big")

    def decrypt(self, data: bytes) -> bytes:
        """Decrypt a message. Raises `DecryptionKeyMissing` if its key is not here, `DecryptionFailed` if damaged."""
        if len(data) < OVERHEAD_BYTES:
            raise DecryptionFailed(f"{len(data)} bytes are too few for an encrypted message.")
        key = self._keys.get(data[:_KEY_ID_BYTES])
        if key is None:
            raise DecryptionKeyMissing(
                f"Encrypted with key {data[:_KEY_ID_BYTES].hex()}, which is not here.",
                "Append the 32-byte key that was used before to the file <name>.previous beside the current key.",
            )
        nonce = data[_KEY_ID_BYTES : _KEY_ID_BYTES + _NONCE_BYTES]
        try:
            return key.decrypt(nonce, data[_KEY_ID_BYTES + _NONCE_BYTES :], None)
        except InvalidTag:
            raise DecryptionFailed("An encrypted message was changed after it was encrypted.") from None


def load_cipher(folder: Path, name: str) -> Cipher:
    """Load the key `folder/name`, created on first use; `folder/name.previous` holds older keys, 32 bytes each."""
    older = folder / f"{name}.previous"
    data = older.read_bytes() if older.exists() else b""
    previous = [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]
    return Cipher(load_or_create_key(folder, name), previous)


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_KEY_ID_BYTES]


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise DecryptionFailed(f"An encryption key has {KEY_BYTES} bytes, not {len(key)}.", "Restore the key file.")
    return key


_ciphers: weakref.WeakSet[Cipher] = weakref.WeakSet()


def _after_fork() -> None:
    for cipher in _ciphers:
        cipher._renew_nonce()  # Parent and child must never encrypt with the same nonce.


os.register_at_fork(after_in_child=_after_fork)
