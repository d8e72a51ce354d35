"""The format of kept media gives every part back as it was sent."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy.encryption import Cipher, DecryptionFailed, DecryptionKeyMissing
from shared.storage.media_files import HEADER_BYTES, MediaKey, pack, sent_at, unpack

CIPHER = Cipher(b"k" * 32)
AROUND = {"part": {"type": "image_url", "image_url": {"url": None, "detail": "low"}}, "path": ["image_url", "url"],
          "prefix": "data:image/png;base64,"}  # fmt: skip


def packed(content: str, around: dict[str, Any] = AROUND) -> bytes:
    return pack(json.dumps(around).encode(), content, 1_790_000_000.5, CIPHER)


@given(st.binary(max_size=100) | st.text(max_size=100))
def test_a_content_comes_back_as_it_was_sent(content: bytes | str) -> None:
    text = base64.b64encode(content).decode() if isinstance(content, bytes) else content
    file = unpack(packed(text), CIPHER)
    assert file.part == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}", "detail": "low"}}
    if isinstance(content, bytes):
        assert file.content == content


@pytest.mark.parametrize(
    "text", ["QUJD\nREVG", "QR==", "QQ", "QQ==QQ==", "-_-_", "A" * 262_140 + "QQ==QUJD", "", "日本"]
)
def test_unusual_base64_comes_back_as_it_was_sent(text: str) -> None:
    assert unpack(packed(text), CIPHER).part["image_url"]["url"] == f"data:image/png;base64,{text}"


def test_a_large_content_is_stored_as_its_bytes() -> None:
    content = os.urandom(3_000_001)
    file = packed(base64.b64encode(content).decode())
    assert len(file) < 3_001_000
    assert unpack(file, CIPHER).content == content


def test_without_a_path_the_content_is_the_whole_part() -> None:
    part = {"type": "image_embeds", "image_embeds": {"grid": "QUJD"}}
    assert unpack(packed(json.dumps(part), {"part": {}, "path": [], "prefix": ""}), CIPHER).part == part


def test_the_header_alone_says_when_it_was_sent_and_the_rest_is_not_readable() -> None:
    file = packed("a secret that is not base64")
    assert sent_at(file[:HEADER_BYTES]).timestamp() == 1_790_000_000.5
    assert b"secret" not in file
    assert b"image" not in file
    with pytest.raises(DecryptionKeyMissing):
        unpack(file, Cipher(b"x" * 32))


@pytest.mark.parametrize("file", [b"", b"RMD1", b"PNG1" + b"\0" * 100, packed("QUJD")[:-1]])
def test_a_damaged_file_says_so(file: bytes) -> None:
    with pytest.raises(DecryptionFailed):
        unpack(file, CIPHER)


@pytest.mark.parametrize("key", ["", "media/t/2026-01-01/u", "datasets/t/2026-01-01/u/n", "media/../2026-01-01/u/n",
                                 "media/t/yesterday/u/n", "media/t/2026-01-01//n"])  # fmt: skip
def test_another_address_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match="not the key"):
        MediaKey.parse(key)


def test_a_key_names_task_day_person_and_content() -> None:
    key = MediaKey.parse("media/support/2026-01-02/anonymous/abc")
    assert (key.task, key.day.isoformat(), key.subject, key.name) == ("support", "2026-01-02", "anonymous", "abc")
    assert str(key) == "media/support/2026-01-02/anonymous/abc"
