"""What lies on disk before it is redacted is unreadable without its key, and keys can be rotated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy.encryption import OVERHEAD_BYTES, Cipher, DecryptionFailed, DecryptionKeyMissing, load_cipher

KEY = bytes(range(32))


@given(st.binary(max_size=2000))
def test_what_is_sealed_comes_back_and_cannot_be_read(data: bytes) -> None:
    sealed = Cipher(KEY).encrypt(data)
    assert Cipher(KEY).decrypt(sealed) == data
    assert len(sealed) == len(data) + OVERHEAD_BYTES
    assert len(data) < 4 or data not in sealed


@given(st.binary(min_size=1, max_size=100), st.data())
def test_one_changed_bit_anywhere_is_noticed(data: bytes, draw: st.DataObject) -> None:
    sealed = bytearray(Cipher(KEY).encrypt(data))
    bit = draw.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecryptionFailed):
        Cipher(KEY).decrypt(bytes(sealed))


@pytest.mark.parametrize("size", [0, 4, OVERHEAD_BYTES - 1])
def test_a_message_cut_short_is_no_sealed_message(size: int) -> None:
    with pytest.raises(DecryptionFailed):
        Cipher(KEY).decrypt(Cipher(KEY).encrypt(b"text")[:size])


def test_an_older_key_still_opens_and_no_longer_seals() -> None:
    old, new = os.urandom(32), os.urandom(32)
    rotated = Cipher(new, previous=[old])
    assert rotated.decrypt(Cipher(old).encrypt(b"before")) == b"before"
    with pytest.raises(DecryptionKeyMissing, match="not here") as error:
        Cipher(old).decrypt(rotated.encrypt(b"after"))
    assert "previous" in error.value.way_out


def test_no_nonce_comes_twice_when_the_counter_runs_out() -> None:
    cipher = Cipher(KEY)
    before = cipher.encrypt(b"")[4:16]
    for _ in range(3):
        cipher._count = iter([1 << 32])  # type: ignore[assignment]
        after = cipher.encrypt(b"")[4:16]
        assert after[:8] != before[:8]
        before = after


def test_a_forked_child_seals_with_nonces_of_its_own() -> None:
    cipher = Cipher(KEY)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, cipher.encrypt(b"")[4:16])
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ours, 12)[:8] != cipher.encrypt(b"")[4:12]
    os.close(ours), os.close(theirs)


def test_a_seal_is_loaded_with_its_older_keys(tmp_path: Path) -> None:
    first = load_cipher(tmp_path, "spool")
    sealed = first.encrypt(b"text")
    assert load_cipher(tmp_path, "spool").decrypt(sealed) == b"text"
    (tmp_path / "spool").rename(tmp_path / "spool.previous")
    assert load_cipher(tmp_path, "spool").decrypt(sealed) == b"text"
    (tmp_path / "spool.previous").unlink()
    with pytest.raises(DecryptionKeyMissing):
        load_cipher(tmp_path, "spool").decrypt(sealed)


def test_a_key_file_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"short")
    with pytest.raises(DecryptionFailed, match="32 bytes"):
        load_cipher(tmp_path, "spool")
