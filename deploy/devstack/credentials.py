"""Passwords and tokens of the stack's own servers: created once per home, in `<home>/secrets/stack.json`, mode 0600."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from shared.files import write_atomically


@dataclass(frozen=True)
class Credentials:
    """The secrets of the stack's own PostgreSQL, Unleash and S3 server."""

    postgres_password: str
    unleash_client_token: str
    unleash_admin_token: str
    unleash_admin_password: str
    s3_access_key: str
    s3_secret_key: str

    @classmethod
    def load(cls, home: Path) -> Credentials:
        """Read the credentials, or create them. Call it holding the home's lock, or after `up` ran."""
        path = home / "secrets" / "stack.json"
        try:
            if path.exists():
                return cls(**json.loads(path.read_text()))
        except ValueError as error:
            way_out = "Restore the file: the home's database and Unleash know these passwords alone."
            raise ConfigurationError(f"{path} is not JSON: {error}", way_out) from error
        created = cls(
            postgres_password=secrets.token_hex(16),
            unleash_client_token=f"default:development.{secrets.token_hex(28)}",
            unleash_admin_token=f"*:*.{secrets.token_hex(28)}",
            unleash_admin_password=secrets.token_urlsafe(12),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_hex(20),
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, json.dumps(asdict(created), indent=1).encode())
        return created
