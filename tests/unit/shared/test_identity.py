"""Names derived from content, and secrets made once."""

from __future__ import annotations

import hmac
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import RFC_4122, UUID

import pytest

from shared.errors import ConfigurationError
from shared.identity import content_hash, event_id, folder_hash, keyed_hash, load_or_create_key, random_id


def test_the_same_parts_have_the_same_event_id() -> None:
    assert event_id("built", "d-1") == event_id("built", "d-1")
    assert event_id("built", "d-1") != event_id("built", "d-2")
    assert event_id("ab", "c") != event_id("a", "bc")


def test_a_content_hash_depends_on_where_parts_end() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert len(content_hash("x")) == 12


def test_a_folder_hash_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = folder_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_hash(tmp_path) != first


def test_a_key_is_made_once_and_private_when_threads_race_for_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: load_or_create_key(tmp_path / "secrets", "subjects"), range(32)))
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert (tmp_path / "secrets" / "subjects").stat().st_mode & 0o077 == 0


def test_the_log_says_that_a_key_was_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A scheduler with a key of its own would erase nobody."""
    with caplog.at_level("INFO"):
        for _ in range(2):
            load_or_create_key(tmp_path, "subjects")
    (said,) = caplog.messages
    assert said.startswith(f"made a new key: {tmp_path / 'subjects'}.")


@pytest.mark.parametrize("content", [b"", b"changeme\n"])
def test_a_key_that_could_be_guessed_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    """A disk that was full or a template left it: with it the hash of a user is no secret."""
    (tmp_path / "subjects").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"subjects has {len(content)} bytes") as error:
        load_or_create_key(tmp_path, "subjects")
    assert "Restore it" in error.value.way_out
    assert (tmp_path / "subjects").read_bytes() == content


def test_a_user_has_the_same_hash_under_the_same_key_only() -> None:
    assert keyed_hash(b"k", "ann") == keyed_hash(b"k", "ann") != keyed_hash(b"other", "ann")


@pytest.mark.parametrize("text", ["ann", "", "Zoë", "x" * 1_000])
def test_a_hash_under_a_key_is_its_hmac_however_often_the_key_is_used(text: str) -> None:
    expected = hmac.digest(b"k" * 32, text.encode(), "sha256").hex()
    assert [keyed_hash(b"k" * 32, text, 64) for _ in range(3)] == [expected] * 3


def test_a_random_id_is_a_random_uuid() -> None:
    made = {random_id() for _ in range(1_000)}
    assert len(made) == 1_000
    assert {(UUID(each).version, UUID(each).variant, len(each)) for each in made} == {(4, RFC_4122, 32)}
