"""Kept media for tests of what deletes them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from shared.privacy.encryption import Cipher
from shared.storage.media import MediaStore
from shared.storage.media_files import pack


def upload(artifacts: Path | str, task: str, user_hash: str, at: datetime) -> Path:
    """Upload a picture that a user sent, as a shipper does. Returns its file in the store, which may refuse it."""
    key = f"media/{task}/{at.date()}/{user_hash}/{at:%H%M%S}"
    file = pack(b'{"part":{},"path":["image_url"],"prefix":""}', "UE5H", at.timestamp(), Cipher(b"k" * 32))
    MediaStore(str(artifacts)).add(key, file)
    return Path(artifacts) / key
