"""No engine is asked for an adapter whose files are not what the task's trainer makes."""

from __future__ import annotations

from pathlib import Path

from schemas.rollouts import Stage
from services.deployer.clients import VllmAdapterServer
from shared.model.inference import InferenceClient
from shared.storage.artifacts import ArtifactStore
from tests.unit.deployer.fakes import Deployer, evaluated, spec
from tests.unit.shared.adapter_folders import write_adapter


async def test_a_candidate_whose_rank_is_over_the_engines_limit_is_rejected_with_that_reason(tmp_path: Path) -> None:
    asked: list[str] = []

    class Vllm(InferenceClient):
        async def serve_adapter(self, name: str, folder: str) -> None:
            asked.append(name)

    artifacts, deployer = ArtifactStore(str(tmp_path), tmp_path / "cache"), Deployer()
    deployer.transitions._adapters = VllmAdapterServer(Vllm(["http://127.0.0.1:9"]), artifacts, max_rank=16)
    for name, rank in (("bad", 17), ("good", 4)):
        write_adapter(tmp_path / "adapters" / name, spec().base_model, r=rank)
        uri = artifacts.address("adapters", name)
        await deployer.handlers.on_evaluated(evaluated(name).model_copy(update={"adapter_uri": uri}))
    good = deployer.last
    (bad,) = [change for change in deployer.publisher.changes if change.stage is Stage.REJECTED]
    assert bad.candidate_adapter == "bad"
    assert bad.reason.startswith(
        "vLLM does not serve bad: its rank 17 is over the engine's limit of 16. Lower training.r"
    )
    assert (good.candidate_adapter, good.stage) == ("good", Stage.SHADOW)
    assert set(asked) == {"good"}
