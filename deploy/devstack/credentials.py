"""Passwords and tokens of our own parts: made once per home, kept in `<home>/secrets/stack.json`, owner only."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.devstack.supervision.supervisor import write_private


@dataclass(frozen=True)
class Credentials:
    """What opens our own PostgreSQL and Unleash."""

    postgres_password: str
    unleash_client_token: str
    unleash_admin_token: str
    unleash_admin_password: str

    @classmethod
    def load(cls, home: Path) -> Credentials:
        """Read them, or make them on the first call. Call under the home's lock, or after `up` once ran."""
        path = home / "secrets" / "stack.json"
        if path.exists():
            return cls(**json.loads(path.read_text()))
        made = cls(
            postgres_password=secrets.token_hex(16),
            unleash_client_token=f"default:development.{secrets.token_hex(28)}",
            unleash_admin_token=f"*:*.{secrets.token_hex(28)}",
            unleash_admin_password=secrets.token_urlsafe(12),
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, json.dumps(asdict(made), indent=1))
        return made
