"""The gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from schemas.base import MAX_EVENT_BYTES
from shared.addresses import is_loopback
from shared.errors import ConfigurationError
from shared.settings import Settings, read_key
from shared.spool import SpoolOptions, Sync


@dataclass(frozen=True)
class UpstreamLimits:
    """The limits of a request to a model server. Seconds: `total` for a whole answer, `stream` for a whole stream,
    `piece` for a stream's longest silence, `connect` for a connection, `wait` for one of the `connections` to be free.
    `retries` of one request; `opens_after`:
    consecutive failures that open a replica's circuit breaker."""

    total: float = 120.0
    stream: float = 600.0
    piece: float = 60.0
    connect: float = 2.0
    connections: int = 1_000
    wait: float = 30.0
    retries: int = 2
    opens_after: int = 3


@dataclass(frozen=True)
class BodyLimits:
    """`body`: bytes of one body, `telemetry` of one with spans; `worker`, `app`: bytes in flight of this process and of
    one application in it; `silence`: seconds without a byte before or while a body arrives."""

    body: int = 32 * 1024**2
    telemetry: int = 4 * 1024**2
    worker: int = 256 * 1024**2
    app: int = 64 * 1024**2
    silence: float = 30.0


class GatewaySettings(Settings):
    gateway_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    gateway_port: int = Field(default=28080, ge=0, le=65_535, description="Port to listen on.")
    gateway_max_body_bytes: int = Field(
        default=32 * 1024**2,
        ge=1_024,
        le=1024**3,
        description="A longer body is refused: 413. Of all requests that a worker is answering, bodies may have eight "
        "times as much; over it, 503. Of one application's, twice as much; over it, 429. They take up to five times "
        "their size of memory.",
    )
    gateway_keys_file: Path | None = Field(
        default=None, description="API keys, written by `ratchet keys`. Empty: <home>/gateway/keys.json."
    )
    gateway_require_keys: bool | None = Field(
        default=None,
        description="Refuse every request while there are no API keys. false: never, so whoever reaches the gateway "
        "may use it. Unset: if RATCHET_GATEWAY_HOST is not loopback, or the gateway has had keys.",
    )
    gateway_public_metrics: bool = Field(
        default=False, description="Serve /metrics, which names every task, without a key where others need one."
    )
    gateway_cors_origins: str = Field(
        default="", description="Web pages that may use the gateway: origins, comma-separated, or *. Empty: none."
    )
    gateway_workers: int = Field(
        default=1, ge=1, le=64, description="Processes that answer, on one port; each has a spool and a shipper."
    )
    gateway_upstream_seconds: float = Field(
        default=120.0,
        gt=0.0,
        description="Longest wait for one whole answer. A streamed one may take five times as long, and be silent for "
        "half of it, before its first piece too. Higher for slow models.",
    )
    gateway_fallback_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s]+)?$",
        description="An OpenAI-compatible API that answers while no replica does: its base_url, such as "
        "https://api.openai.com/v1. Prompts, with the personal data in them, then leave for whoever runs it. "
        "Empty: they never do.",
    )
    gateway_fallback_model: str = Field(default="", max_length=200, description="The model of that API.")
    gateway_fallback_key: SecretStr = Field(default=SecretStr(""), description="The key of that API.")
    gateway_pass_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s]+)?$",
        description="An OpenAI-compatible API that answers requests whose `model` is no task, for the keys that may: "
        "its base_url. They leave unchanged, and nothing of their text is recorded. Empty: they are refused.",
    )
    gateway_pass_models: str = Field(
        default="",
        max_length=10_000,
        description="The models that pass to it, comma-separated: names, or patterns such as gpt-*. A task of the same "
        "name wins.",
    )
    gateway_pass_key: SecretStr = Field(default=SecretStr(""), description="The key of that API.")
    gateway_spool_folder: Path | None = Field(
        default=None, description="Where events wait for Kafka, encrypted: a local disk. Empty: <home>/spool."
    )
    gateway_spool_sync: Sync = Field(
        default=Sync.INTERVAL,
        description="When an event counts as durable. process: it is with the operating system, so the death of any "
        "process loses nothing. interval: also on the disk within half a second, so a power cut loses at most "
        "the events of that time. always: on the disk before the answer leaves; each waits for it.",
    )
    gateway_spool_segment_bytes: int = Field(
        default=16 * 1024**2, ge=64 * 1024, description="Size of one file. Disk space is freed by whole files."
    )
    gateway_spool_max_bytes: int = Field(
        default=2 * 1024**3,
        ge=1024**2,
        description="The spool is full above it. An event is 1 to 3 KB. As much again may be kept media that wait.",
    )
    gateway_spool_full: Literal["refuse", "answer"] = Field(
        default="refuse",
        description="What a request gets while the spool or its disk is full. refuse: 503, and nothing is answered "
        "that is not recorded. answer: its answer, marked x-ratchet-logged: false, counted and never recorded.",
    )
    gateway_shipper_stop_seconds: float = Field(
        default=10.0,
        ge=0.0,
        description="On a stop, time to ship what waits; the rest is shipped by the next start. /readyz notes an "
        "event, or kept media, that wait six times as long. Lower where a stopped process is soon killed.",
    )
    gateway_traces_tasks: str = Field(
        default="",
        description="The task of a service or model: `service=task` or `model=task`, comma-separated, for applications "
        "that set no `ratchet.task` and whose `service.name` is not a task's name.",
    )
    gateway_event_bytes: int = Field(
        default=MAX_EVENT_BYTES,
        ge=16 * 1024,
        le=3 * 1024**2,
        description="The most that an event has of a request and its answers, as JSON: lower for a broker that takes "
        "only small messages. Longer texts are logged cut and marked, and never trained on.",
    )
    gateway_forward_identity: bool = Field(
        default=False,
        description="Send `user`, `safety_identifier`, `metadata`, `client_metadata`, `prompt_cache_key` and session "
        "ids on to the model server.",
    )

    @property
    def keys_file(self) -> Path:
        return self.gateway_keys_file or self.home / "gateway" / "keys.json"

    @property
    def had_keys_file(self) -> Path:
        """Exists once the gateway has had keys. Not beside them, so that a folder that is lost does not lose both."""
        return self.secrets_folder / "gateway-had-keys"

    @property
    def keys_required(self) -> bool | None:
        """Whether a request needs a key while there are none; None: only once there have been some."""
        if self.gateway_require_keys is None and not is_loopback(self.gateway_host):
            return True
        return self.gateway_require_keys

    @property
    def tasks_file(self) -> Path:
        """The tasks that this gateway served last."""
        return self.home / "gateway" / "tasks.json"

    @property
    def limits_folder(self) -> Path:
        """Where the workers of one gateway, on one port, share the rate limits of API keys."""
        return self.home / "gateway" / "limits" / str(self.gateway_port)

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Origins as browsers write them, without a slash at the end."""
        return tuple(origin.strip().rstrip("/") for origin in self.gateway_cors_origins.split(",") if origin.strip())

    @property
    def body_limits(self) -> BodyLimits:
        return BodyLimits(
            body=self.gateway_max_body_bytes,
            worker=8 * self.gateway_max_body_bytes,
            app=2 * self.gateway_max_body_bytes,
        )

    @property
    def upstream_limits(self) -> UpstreamLimits:
        return UpstreamLimits(
            total=self.gateway_upstream_seconds,
            stream=5 * self.gateway_upstream_seconds,
            piece=self.gateway_upstream_seconds / 2,
        )

    @property
    def fallback_model(self) -> str | None:
        """The model of the external API; None without one. Raises ConfigurationError if only one half is set."""
        if bool(self.gateway_fallback_url) != bool(self.gateway_fallback_model):
            raise ConfigurationError(
                "a fallback needs an address and a model",
                "Set both RATCHET_GATEWAY_FALLBACK_URL and RATCHET_GATEWAY_FALLBACK_MODEL, or neither.",
            )
        return self.gateway_fallback_model or None

    def fallback_key(self) -> str:
        """The key of the external API, empty if it needs none. Raises ConfigurationError for one not fit to send."""
        return read_key("gateway_fallback_key", self.gateway_fallback_key)

    @property
    def pass_models(self) -> tuple[str, ...]:
        """Names and patterns of models that pass through. Raises ConfigurationError if only one half is set."""
        models = tuple(name.strip() for name in self.gateway_pass_models.split(",") if name.strip())
        if bool(models) != bool(self.gateway_pass_url):
            raise ConfigurationError(
                "models that pass through need an address",
                "Set both RATCHET_GATEWAY_PASS_URL and RATCHET_GATEWAY_PASS_MODELS, or neither.",
            )
        return models

    def pass_key(self) -> str:
        """The key of the server that they pass to, empty if it needs none. Raises ConfigurationError."""
        return read_key("gateway_pass_key", self.gateway_pass_key)

    @property
    def traces_tasks(self) -> dict[str, str]:
        """The task of a service or model. Raises ConfigurationError."""
        pairs = [pair.split("=") for pair in self.gateway_traces_tasks.split(",") if pair.strip()]
        if not all(len(pair) == 2 and pair[0].strip() and pair[1].strip() for pair in pairs):
            raise ConfigurationError(
                f"RATCHET_GATEWAY_TRACES_TASKS is {self.gateway_traces_tasks!r}", "Write service=task,model=task."
            )
        return {name.strip(): task.strip() for name, task in pairs}

    @property
    def spool_folder(self) -> Path:
        return self.gateway_spool_folder or self.home / "spool"

    @property
    def media_folder(self) -> Path:
        """Where media that a task keeps wait for the artifact store, encrypted."""
        return self.spool_folder.with_name("media")

    @property
    def spool_options(self) -> SpoolOptions:
        return SpoolOptions(
            sync=self.gateway_spool_sync,
            segment_bytes=self.gateway_spool_segment_bytes,
            max_bytes=self.gateway_spool_max_bytes,
        )
