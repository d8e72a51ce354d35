"""The peers of the gateway benchmark, installed as their makers advise, once, into the checkout's tools.

LiteLLM's proxy comes from PyPI, into a virtual environment of its own; Portkey's gateway comes from npm.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import install_once, pip, run_logged, virtual_environment
from deploy.devstack.part import Launch, Say
from deploy.devstack.parts.unleash import NPM_OPTIONS, ensure_node, npm
from tests.benchmarks.upstream import ADAPTER

LITELLM = "litellm[proxy]==1.108.7"
"""The newest version whose requirements were all on PyPI when this was written."""
PORTKEY = "1.15.2"
PORTKEY_OVERRIDES = {"@hono/node-server": "1.14.0"}
"""Its range allows newer versions, with which every stream fails with a 500."""
LITELLM_KEY = "sk-bench"
"""LiteLLM's proxy requires a key of its own."""
PORTKEY_HEADERS = {"x-portkey-provider": "openai", "authorization": "Bearer unused"}


def litellm(config: StackConfig, upstream: str, port: int, say: Say) -> Launch:
    """Install LiteLLM's proxy; return how to start it with one worker, as its docs advise. Raises PartError."""

    def build(folder: Path) -> None:
        say(f"installing {LITELLM}")
        pip(config, virtual_environment(folder, config), [LITELLM], LITELLM)

    folder = install_once(config.tools / "bench-litellm", LITELLM, build)
    settings = {
        "model_list": [
            {
                "model_name": ADAPTER,
                "litellm_params": {"model": f"openai/{ADAPTER}", "api_base": f"{upstream}/v1", "api_key": "unused"},
            }
        ],
        "general_settings": {"master_key": LITELLM_KEY},
    }
    file = config.home / "litellm.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML.
    env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    options = ("--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    return Launch(argv=(str(folder / "bin" / "litellm"), *options, "--telemetry", "False"), env=env)


def portkey(config: StackConfig, port: int, say: Say) -> Launch:
    """Install Portkey's gateway; return how to start it. Each request names its upstream. Raises PartError."""
    node = ensure_node(config, say)

    def build(folder: Path) -> None:
        say(f"installing @portkey-ai/gateway {PORTKEY} from npm")
        package = {"name": "ratchet-bench-portkey", "private": True, "overrides": PORTKEY_OVERRIDES}
        (folder / "package.json").write_text(json.dumps(package))
        argv = [*npm(config), "install", "--prefix", str(folder), f"@portkey-ai/gateway@{PORTKEY}", *NPM_OPTIONS]
        run_logged(argv, config.logs / "install-portkey.log", "npm install @portkey-ai/gateway", "", cwd=folder)

    folder = install_once(config.tools / "bench-portkey", f"{PORTKEY} {PORTKEY_OVERRIDES}", build)
    script = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        raise PartError(f"Portkey {PORTKEY} has no {script.name}", f"Remove {folder} and try again.")
    return Launch(argv=(node, str(script), "--headless", f"--port={port}"), env={"NODE_ENV": "production"})
