"""Encrypted messages are unreadable without their key, damage is noticed, and keys can be rotated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy.encryption import OVERHEAD_BYTES, Cipher, DecryptionFailed, DecryptionKeyMissing, load_cipher

KEY = bytes(range(32))


@given(st.binary(max_size=2000))
def test_an_encrypted_message_is_unreadable_and_can_be_decrypted(data: bytes) -> None:
    encrypted = Cipher(KEY).encrypt(data)
    assert Cipher(KEY).decrypt(encrypted) == data
    assert len(encrypted) == len(data) + OVERHEAD_BYTES
    assert len(data) < 4 or data not in encrypted


@given(st.binary(max_size=2000))
def test_a_message_is_written_to_a_buffer_as_it_is_returned_with_a_nonce_of_its_own(data: bytes) -> None:
    cipher = Cipher(KEY)
    buffer = bytearray(len(data) + OVERHEAD_BYTES)
    returned = cipher.encrypt(data)
    cipher.encrypt_into(data, memoryview(buffer))
    assert cipher.decrypt(bytes(buffer)) == data
    assert buffer[:4] == returned[:4]
    assert buffer[4:16] != returned[4:16]


@given(st.binary(min_size=1, max_size=100), st.data())
def test_one_changed_bit_anywhere_is_detected(data: bytes, draw: st.DataObject) -> None:
    encrypted = bytearray(Cipher(KEY).encrypt(data))
    bit = draw.draw(st.integers(0, 8 * len(encrypted) - 1))
    encrypted[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecryptionFailed):
        Cipher(KEY).decrypt(bytes(encrypted))


@pytest.mark.parametrize("size", [0, 4, OVERHEAD_BYTES - 1])
def test_a_truncated_message_cannot_be_decrypted(size: int) -> None:
    with pytest.raises(DecryptionFailed):
        Cipher(KEY).decrypt(Cipher(KEY).encrypt(b"text")[:size])


def test_a_previous_key_decrypts_but_no_longer_encrypts() -> None:
    old, new = os.urandom(32), os.urandom(32)
    rotated = Cipher(new, previous=[old])
    assert rotated.decrypt(Cipher(old).encrypt(b"before")) == b"before"
    with pytest.raises(DecryptionKeyMissing, match="not here") as error:
        Cipher(old).decrypt(rotated.encrypt(b"after"))
    assert "previous" in error.value.way_out


def test_no_nonce_is_reused_when_the_counter_overflows() -> None:
    cipher = Cipher(KEY)
    before = cipher.encrypt(b"")[4:16]
    for _ in range(3):
        cipher._count = iter([1 << 32])  # type: ignore[assignment]
        after = cipher.encrypt(b"")[4:16]
        assert after[:8] != before[:8]
        before = after


def test_a_forked_child_uses_nonces_of_its_own() -> None:
    cipher = Cipher(KEY)
    parent_end, child_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(child_end, cipher.encrypt(b"")[4:16])
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(parent_end, 12)[:8] != cipher.encrypt(b"")[4:12]
    os.close(parent_end), os.close(child_end)


def test_a_cipher_is_loaded_with_its_previous_keys(tmp_path: Path) -> None:
    first = load_cipher(tmp_path, "spool")
    encrypted = first.encrypt(b"text")
    assert load_cipher(tmp_path, "spool").decrypt(encrypted) == b"text"
    (tmp_path / "spool").rename(tmp_path / "spool.previous")
    assert load_cipher(tmp_path, "spool").decrypt(encrypted) == b"text"
    (tmp_path / "spool.previous").unlink()
    with pytest.raises(DecryptionKeyMissing):
        load_cipher(tmp_path, "spool").decrypt(encrypted)


def test_a_key_file_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"one that is too long, by a few bytes")
    with pytest.raises(DecryptionFailed, match="32 bytes"):
        load_cipher(tmp_path, "spool")
