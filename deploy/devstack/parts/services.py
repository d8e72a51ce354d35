"""Ratchet's own services, all in one process."""

from __future__ import annotations

import sys

import httpx

from deploy.devstack.config import CHECKOUT, StackConfig
from deploy.devstack.install.models import ensure_base_model, ensure_embedding_model
from deploy.devstack.part import Launch, Say, StackPart

ALL_SERVICES = "services"
PAGES = {"gateway": "/v1", "console": "/", "scheduler": "/", "deployer": "/"}
"""Service with HTTP → the path to show to people. Their `/readyz` lists what is missing; the others are only alive."""
NO_TASK = "no task is known"
"""A new gateway's only missing item: it is not ready for traffic, but `up` is done. Tasks are applied afterwards."""


class ServicesPart(StackPart):
    """All services."""

    name = ALL_SERVICES
    ports = tuple(PAGES)

    def needs(self, config: StackConfig) -> tuple[str, ...]:
        return ("kafka", "postgres", "unleash", "vllm", *(("s3",) if config.storage == "s3" else ()))

    def install(self, config: StackConfig, say: Say) -> None:
        ensure_base_model(config, say)
        ensure_embedding_model(config, say)

    def launch(self, config: StackConfig) -> Launch:
        return Launch(
            argv=(sys.executable, "-m", "deploy.runner"),
            env={"RATCHET_HOME": str(config.home), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            cwd=str(CHECKOUT),
            grace_seconds=30.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        problems = (probe_readiness(f"http://{config.address(service)}") for service in self.ports)
        return next((problem for problem in problems if problem), None)

    def address(self, config: StackConfig) -> str:
        return "\n".join(f"http://{config.address(service)}{PAGES[service]}" for service in self.ports)

    def environment(self, config: StackConfig) -> dict[str, str]:
        values = {f"RATCHET_{service.upper()}_PORT": str(config.ports[service]) for service in self.ports}
        hosts = {service: config.hosts[service] for service in self.ports if service in config.hosts}
        return values | {  # A wildcard is nothing that commands could ask.
            f"RATCHET_{service.upper()}_HOST": host for service, host in hosts.items() if host == config.host(service)
        }


def probe_readiness(url: str) -> str | None:
    """Return what the service's `/readyz` reports as missing; None if nothing is, or only a task."""
    try:
        response = httpx.get(f"{url}/readyz", timeout=4.0)
        if response.status_code == 200:
            return None
        missing = [str(item) for item in response.json()["missing"]]
        if missing and all(item.startswith(NO_TASK) for item in missing):
            return None
        return f"{url}/readyz returned {response.status_code}, missing: {', '.join(missing)}"
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return f"{url}/readyz: {type(error).__name__}: {error}"
