"""A model server whose models are stand-ins for vLLM: `python -m … HOME PORT VLLM`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.devstack.model_server.__main__ import serve
from deploy.devstack.model_server.front import Front
from deploy.devstack.model_server.pool import ModelPool
from deploy.devstack.part import Launch
from shared.storage.artifacts import ArtifactStore


def stand_in(name: str, folder: Path, port: int) -> Launch:
    """How a stand-in serves a model."""
    program = Path(__file__).with_name("stand_in_model.py")
    return Launch(argv=(sys.executable, str(program), name, str(port)), cwd=str(folder.parent), grace_seconds=5.0)


def publish_model(home: Path, name: str, **config: str) -> Path:
    """Publish a model without weights."""
    folder = home / "artifacts" / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "model.safetensors").touch()
    (folder / "manifest.json").write_text("{}")
    return folder


if __name__ == "__main__":
    home = Path(sys.argv[1])
    pool = ModelPool(stand_in, home / "logs")
    serve(Front(ArtifactStore(str(home / "artifacts"), home / "cache"), pool, sys.argv[3]), int(sys.argv[2]))
