"""The settings of all services: one frozen object, built in `main` and handed down; never read at import.

Sources, first wins: arguments, environment (`RATCHET_…`), `<home>/stack.env` (written by `ratchet up`), files of
`<home>/secrets` with a variable's name in lower case (`ratchet_vllm_key`), defaults.
S3 clients read `AWS_…` from the environment: `load` puts the lines of `stack.env` there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from shared.errors import ConfigurationError, field_path

INCARNATION_FILE = "incarnation"
"""A file in the home, written by `ratchet lake resume`. Its text is appended to `kafka_incarnation`."""


def default_home() -> Path:
    """Return the folder with all local state: `RATCHET_HOME`, else `.ratchet` in the current folder."""
    return Path(os.environ.get("RATCHET_HOME", ".ratchet")).absolute()


def read_key(name: str, value: SecretStr) -> str:
    """Return the key that a setting holds. Raises ConfigurationError for one that cannot be a header's value."""
    key = value.get_secret_value()
    if not all("!" <= character <= "~" for character in key):
        reason = f"RATCHET_{name.upper()} has a character that no key has"
        raise ConfigurationError(reason, "Set it to the key alone.")
    return key


class Settings(BaseSettings):
    """What all services need. Each service adds its own settings in `services/<name>/settings.py`."""

    model_config = SettingsConfigDict(
        env_prefix="RATCHET_", frozen=True, extra="ignore",
        hide_input_in_errors=True,  # A refused address may have a password in it.
    )  # fmt: skip

    home: Path = Field(
        default_factory=default_home, description="Folder of all local state; unset: `.ratchet` in the current folder."
    )
    kafka: str = Field(default="127.0.0.1:29092", description="Bootstrap servers, comma-separated host:port.")
    kafka_idempotence: bool = Field(default=True, description="Idempotent producers; tansu has none.")
    kafka_incarnation: str = Field(
        default="", max_length=64, description="Changed when a broker lost its topics: older offsets are void."
    )
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."
    )
    kafka_username: str = Field(default="", description="User, with SASL_…")
    kafka_password: SecretStr = Field(default=SecretStr(""), description="Password, with SASL_…")
    kafka_ca_file: Path | None = Field(default=None, description="PEM of the brokers' issuer; empty: the system's.")
    kafka_client_certificate: Path | None = Field(default=None, description="PEM with certificate and key, for mTLS.")
    kafka_replication: int = Field(default=1, ge=1, description="Replication factor of topics that are created.")
    postgres: str = Field(
        default="postgresql://ratchet@127.0.0.1:25432/ratchet",
        description="PostgreSQL; each service has a schema in it.",
    )
    unleash: str = Field(default="http://127.0.0.1:24242", description="Unleash server.")
    unleash_project: str = Field(default="default", description="Unleash project of the flags.")
    unleash_environment: str = Field(default="development", description="Unleash environment of the flags.")
    unleash_client_token: str = Field(default="", description="Token that reads flags.")
    unleash_admin_token: str = Field(default="", description="Token that moves flags; the deployer needs it.")
    vllm: str = Field(default="http://127.0.0.1:28000", description="Replicas' base URLs, comma-separated.")
    models: str = Field(
        default="", description="Address of a server that serves whole models by name; empty: RATCHET_VLLM."
    )
    vllm_key: SecretStr = Field(
        default=SecretStr(""), description="The replicas' key (`vllm serve --api-key`); empty: they need none."
    )
    vllm_max_lora_rank: int = Field(
        default=16, ge=1, description="The fleet's --max-lora-rank: no adapter of a higher rank is trained or loaded."
    )
    embedder: str = Field(
        default="all-MiniLM-L6-v2",
        description="Encoder of sentences, a folder below <home>/models. Another one finds no former failure modes.",
    )
    lake: str = Field(default="", description="Folder or s3:// URI of the lake; empty: <home>/lake.")
    artifacts: str = Field(default="", description="Folder or s3:// URI of artifacts; empty: <home>/artifacts.")
    prices_file: Path | None = Field(
        default=None, description="YAML of what serving costs; empty: the shipped one, which explains itself."
    )
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^\s]+)?$",
        description="Where OpenTelemetry spans go, OTLP/HTTP: http://host:4318; empty: none are made.",
    )

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the settings, including `<home>/stack.env` and the incarnation that `ratchet lake resume` stored.

        Changes this process's `AWS_…` variables where the lake or the artifacts are in the S3 server of `stack.env`.
        Raises ConfigurationError as `read` does.
        """
        home = Path(str(overrides.get("home", default_home())))
        stack_env = home / "stack.env"
        settings = cls.read(stack_env, **overrides)
        settings._use_object_store(DotEnvSettingsSource(cls, env_file=stack_env, case_sensitive=True).env_vars)
        file = home / INCARNATION_FILE
        suffix = file.read_text() if file.exists() else ""
        if "kafka_incarnation" in overrides or settings.kafka_incarnation.endswith(suffix):
            return settings
        name = "-".join(part for part in (settings.kafka_incarnation, suffix) if part)
        return settings.model_copy(update={"kafka_incarnation": name})

    @classmethod
    def read(cls, file: Path | None = None, **overrides: object) -> Self:
        """Read the settings from the environment, a file of variables where one is given, and the home's secrets.

        Raises ConfigurationError that names the variables whose values cannot be used, without the values.
        """
        secrets = Path(str(overrides.get("home", default_home()))) / "secrets"
        folder = secrets if secrets.is_dir() else None  # pydantic warns of one that is missing.
        try:
            return cls(_env_file=file, _secrets_dir=folder, **overrides)  # type: ignore[arg-type]  # pydantic's own
        except ValidationError as error:
            problems = [f"RATCHET_{field_path(detail).upper()}: {detail['msg']}" for detail in error.errors()]
            place = "the environment" if file is None else f"the environment or in {file}"
            way_out = f"Correct it in {place}; docs/configuration.md has every setting."
            raise ConfigurationError("\n".join(problems), way_out) from error

    def _use_object_store(self, stack_env: Mapping[str, str | None]) -> None:
        """Make the S3 server of `stack.env` the one of this process, if the lake or the artifacts are in it.

        All of the process's own `AWS_…` variables go: a profile, a session token or another region beside the server's
        keys would be refused.
        """
        server = {name: value for name, value in stack_env.items() if name.startswith("AWS_") and value}
        locations = {self.lake, self.artifacts} & {stack_env.get("RATCHET_LAKE"), stack_env.get("RATCHET_ARTIFACTS")}
        present = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        if not server or not any(locations) or present == server:
            return
        for name in present.keys() - server.keys():
            del os.environ[name]
        os.environ.update(server)

    def server_key(self) -> str:
        """The key of the replicas, empty if they need none. Raises ConfigurationError for one that cannot be sent."""
        return read_key("vllm_key", self.vllm_key)

    @property
    def lake_uri(self) -> str:
        return self.lake or str(self.home / "lake")

    @property
    def artifacts_uri(self) -> str:
        return self.artifacts or str(self.home / "artifacts")

    @property
    def vllm_urls(self) -> tuple[str, ...]:
        return tuple(url.strip().rstrip("/") for url in self.vllm.split(",") if url.strip())

    @property
    def model_urls(self) -> tuple[str, ...]:
        """The server of whole models."""
        return (self.models.rstrip("/"),) if self.models else self.vllm_urls

    @property
    def models_folder(self) -> Path:
        return self.home / "models"

    @property
    def embedder_folder(self) -> Path:
        return self.models_folder / self.embedder

    @property
    def secrets_folder(self) -> Path:
        return self.home / "secrets"
