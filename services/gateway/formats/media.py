"""Pictures, sound and documents of a request, as an event refers to them. No I/O.

An event never has their bytes: base64 would make it too large for Kafka, and nobody reads it there. For a task that
keeps them, what a request has in itself is collected here to be written; addresses are never fetched.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from services.gateway.json_codec import encode_json
from shared.identity import keyed_hash
from shared.storage.media_files import ANONYMOUS, MediaKey, Surroundings

MEDIA_KINDS = {
    "image_url": "image", "input_image": "image", "image": "image", "image_embeds": "image",
    "audio_url": "audio", "input_audio": "audio", "audio": "audio", "audio_embeds": "audio",
    "video_url": "video", "input_video": "video", "video": "video", "video_embeds": "video",
    "file": "document", "input_file": "document", "document": "document", "prompt_embeds": "text",
}  # fmt: skip
"""The types of parts of OpenAI's APIs and of vLLM's, and what each is."""
_CONTENT_FIELDS = ("url", "data", "file_data", "file_url", "image_url", "file_id")
_ADDRESSES = frozenset({"url", "file_url", "image_url", "audio_url", "video_url", "file_id"})
"""Fields whose text is an address, unless it is a `data:` URL."""
_HASH_DIGITS = 24
_MAX_MEDIA_TYPE = 100


class InlineMedia(NamedTuple):
    """Content that a request has in itself, to be kept at `key`. `surroundings`: their JSON. `sent_at`: Unix
    seconds. `text`: base64 from `start` on, as a rule."""

    key: str
    surroundings: bytes
    sent_at: float
    text: str
    start: int


class _Content(NamedTuple):
    """The content of a part, or its address. `path`: where it is in the part; empty: it is the whole part's JSON."""

    text: str
    path: tuple[str, ...]
    media_type: str
    is_address: bool


class MediaReferences:
    """Makes the references. `key` makes their hashes, which tell equal contents apart from others and nothing else."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def keeping(self, task: str, user_hash: str | None) -> KeptMedia:
        """References of one request, whose inline contents are collected to be kept."""
        return KeptMedia(self._key, task, user_hash)

    def reference(self, part_type: str, part: Mapping[str, Any]) -> dict[str, Any]:
        """The `Media` of a part that has a picture, a sound, a film or a document. Raises HttpError 400."""
        content = _content_of(part_type, part)
        reference: dict[str, Any] = {"kind": MEDIA_KINDS[part_type], "hash": self._hash(content.text)}
        media_type = content.media_type
        if not content.is_address:
            start = _start_of(content.text)
            media_type = content.text[5:start].partition(";")[0].rstrip(",") or media_type
            reference["size"] = _size(content, start)
            self._keep(reference, part, content, start)
        if media_type:
            reference["media_type"] = media_type[:_MAX_MEDIA_TYPE]
        return reference

    @property
    def collected(self) -> Collection[InlineMedia] | None:
        """What is to be kept; None if there is nothing."""
        return None

    def _keep(self, reference: dict[str, Any], part: Mapping[str, Any], content: _Content, start: int) -> None:
        """Nothing: this task drops media."""

    def _hash(self, content: str) -> str:
        return hmac.new(self._key, content.encode(), hashlib.sha256).hexdigest()[:_HASH_DIGITS]


class KeptMedia(MediaReferences):
    """Makes the references of one request of a task that keeps media, and collects what is to be kept."""

    def __init__(self, key: bytes, task: str, user_hash: str | None) -> None:
        super().__init__(key)
        self._task = task
        self._subject = user_hash or ANONYMOUS
        self._now = datetime.now(UTC)
        self._inline: dict[str, InlineMedia] = {}

    @property
    def collected(self) -> Collection[InlineMedia] | None:
        return self._inline.values() or None

    def _keep(self, reference: dict[str, Any], part: Mapping[str, Any], content: _Content, start: int) -> None:
        around = Surroundings(_without_content(part, content.path), content.path, content.text[:start])
        surroundings = encode_json(vars(around))
        # The same picture with another `detail`, or a file with another name, is another file.
        name = keyed_hash(self._key, f"{reference['hash']}{surroundings.decode()}", _HASH_DIGITS)
        key = str(MediaKey(self._task, self._now.date(), self._subject, name))
        reference["key"] = key
        self._inline[key] = InlineMedia(key, surroundings, self._now.timestamp(), content.text, start)


def _content_of(part_type: str, part: Mapping[str, Any]) -> _Content:
    held: Any = part.get(part_type, part)
    if isinstance(held, str):
        return _Content(held, (part_type,), "", _is_address(part_type, held))
    if isinstance(held, Mapping):
        media_type = f"{MEDIA_KINDS[part_type]}/{held['format']}" if isinstance(held.get("format"), str) else ""
        for name in _CONTENT_FIELDS:
            if isinstance(text := held.get(name), str):
                path = (name,) if held is part else (part_type, name)
                return _Content(text, path, media_type, _is_address(name, text))
    return _Content(encode_json(part).decode(), (), "", is_address=not held)


def _is_address(field: str, text: str) -> bool:
    return not text.startswith("data:") and (field in _ADDRESSES or "://" in text[:_MAX_MEDIA_TYPE])


def _start_of(text: str) -> int:
    """Where the content begins: behind the head of a `data:` URL."""
    if not text.startswith("data:"):
        return 0
    return text.find(",", 0, 1_000) + 1


def _size(content: _Content, start: int) -> int:
    """How many bytes the content has; it is taken to be base64."""
    length = len(content.text) - start
    padding = content.text.count("=", max(start, len(content.text) - 2))
    return length * 3 // 4 - padding if content.path else length


def _without_content(part: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if not path:
        return {}
    rest = dict(part)
    rest[path[0]] = _without_content(part[path[0]], path[1:]) if len(path) > 1 else None
    return rest
