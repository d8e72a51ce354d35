"""Pictures, sound and documents of a request, as an event refers to them. No I/O.

An event never has their bytes: base64 would make it too large for Kafka, and nobody reads it there.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import orjson

MEDIA_KINDS = {
    "image_url": "image", "input_image": "image", "image": "image", "image_embeds": "image",
    "audio_url": "audio", "input_audio": "audio", "audio": "audio", "audio_embeds": "audio",
    "video_url": "video", "input_video": "video", "video": "video", "video_embeds": "video",
    "file": "document", "input_file": "document", "document": "document",
}  # fmt: skip
"""The types of parts of OpenAI's APIs and of vLLM's, and what each is."""
_CONTENT_FIELDS = ("url", "data", "file_data", "file_url", "image_url", "file_id")
_HASH_DIGITS = 24
_MAX_MEDIA_TYPE = 100


class MediaReferences:
    """Makes the references. `key` makes their hashes, which tell equal contents apart from others and nothing else."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def reference(self, part_type: str, part: Mapping[str, Any]) -> dict[str, Any]:
        """The `Media` of a part that has a picture, a sound, a film or a document."""
        content, media_type = _content_of(part_type, part)
        reference: dict[str, Any] = {"kind": MEDIA_KINDS[part_type], "hash": self._hash(content)}
        if content.startswith("data:"):
            head = content[:_MAX_MEDIA_TYPE].partition(",")[0]
            media_type = head[5:].partition(";")[0] or media_type
            reference["size"] = max(0, len(content) - len(head) - 1) * 3 // 4
        elif not content.startswith(("http://", "https://", "file:")):
            reference["size"] = len(content) * 3 // 4
        if media_type:
            reference["media_type"] = media_type[:_MAX_MEDIA_TYPE]
        return reference

    def _hash(self, content: str) -> str:
        return hmac.new(self._key, content.encode(), hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def _content_of(part_type: str, part: Mapping[str, Any]) -> tuple[str, str]:
    """The content of a part, or its address, and its media type as far as it is said beside it."""
    held: Any = part.get(part_type, part)
    if isinstance(held, str):
        return held, ""
    if isinstance(held, Mapping):
        media_type = f"{MEDIA_KINDS[part_type]}/{held['format']}" if isinstance(held.get("format"), str) else ""
        for name in _CONTENT_FIELDS:
            if isinstance(held.get(name), str):
                return held[name], media_type
    return orjson.dumps(held).decode(), ""
