"""Plays trainer and evaluator: each task gets one candidate after the other, and now and then one while another is
compared, which waits for its turn and is evaluated again if production has changed meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from operator import ne
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from schemas.adapters import PROBES, PROBES_FILE, AdapterEvaluated, ArmScore, EvaluationRequested, Probe, Probes
from schemas.base import Gate, Interval
from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from services.evaluator.domain import probe_prompts
from shared.conversation import chat_messages
from shared.identity import event_id
from tests.chaos.rollouts.cut_model import LAYERS
from tests.chaos.rollouts.engine import first_tokens, number
from tests.chaos.rollouts.passing import answers_of_vllm, probes_of_vllm
from tests.chaos.rollouts.system import RolloutSystem
from tests.chaos.rollouts.tasks import VLLM_BASE, VLLM_MARK, Kind
from tests.chaos.rollouts.topics import PatientPublisher

ENDED = (Stage.PROMOTED, Stage.REJECTED, Stage.INCONCLUSIVE, Stage.ROLLED_BACK)
VLLM_SIZE = LAYERS, 576, 192
"""Layers of what vLLM serves, its width, and that of all values of its attention."""
_QUEUED_EVERY = 4
"""Every so many candidates come while the one before is compared."""
_CONTROL_OVER = "its control has ended"
_FEWEST = 1
"""As many candidates each task has at least."""


class Cycles:
    """All tasks' candidates, so many `rollouts` together: a task that is faster gets more of them.

    `kinds`: of each adapter that was published. `stages`: where each is, as last heard.
    """

    def __init__(self, system: RolloutSystem, publisher: PatientPublisher, rollouts: int) -> None:
        self._system = system
        self._left = rollouts
        self._publisher = publisher
        self.kinds: dict[str, Kind] = {}
        self.stages: dict[str, Stage] = {}
        self._entered: set[str] = set()
        self._over: set[str] = set()
        self._primaries: dict[str, str | None] = {}
        self._answers: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
        self._heard = asyncio.Condition()
        self._dataset_uri = ""

    @property
    def ended(self) -> int:
        return sum(stage in ENDED for stage in self.stages.values())

    async def on_changed(self, event: RolloutChanged) -> None:
        """Note where a rollout is. An older event, read again, changes nothing: an ended candidate stays ended."""
        async with self._heard:
            if self.stages.get(event.candidate_adapter) not in ENDED:
                self.stages[event.candidate_adapter] = event.stage
            if event.stage is Stage.SHADOW:
                self._entered.add(event.task)
            if event.stage in ENDED and (event.stage is not Stage.PROMOTED or _CONTROL_OVER in event.reason):
                self._over.add(event.candidate_adapter)
            self._primaries[event.task] = event.primary_adapter
            self._heard.notify_all()

    async def on_requested(self, event: EvaluationRequested) -> None:
        """Evaluate a candidate again, against the model that serves by now."""
        spec = self._system.specs[event.task]
        verdict = self._verdict(spec, event.adapter, event.data_cutoff, event.against)
        again = event_id("chaos", event.event_id)
        await self._publisher.publish("evaluator", verdict.model_copy(update={"event_id": again}))

    async def play(self, task: str, kinds: Iterator[Kind]) -> None:
        """Publish a task's candidates one after the other while some are left, and return when all are over.

        A fragile one that is promoted is the task's last: production's answers are broken by then, and none of them can
        be compared. Other tasks get those that are left.
        """
        before = ""
        for position in itertools.count():
            is_fragile = before and self.kinds[before] is Kind.FRAGILE
            if before and position % _QUEUED_EVERY == _QUEUED_EVERY - 1 and not is_fragile:
                await self._wait(before, (Stage.SHADOW, Stage.CANARY, *ENDED))
            elif before:
                await self._wait(before, ENDED)
            if is_fragile and self.stages[before] is Stage.PROMOTED:
                break
            if position >= _FEWEST and self._left <= 0:
                break
            self._left -= 1
            before = await self._publish(self._system.specs[task], f"{task}-{position:02d}", next(kinds))
        names = {name for name in self.kinds if name.startswith(f"{task}-")}
        async with self._heard:
            await self._heard.wait_for(lambda: names <= self._over)

    async def wait_for_first(self) -> None:
        """Return when every task has had a candidate that entered shadow: earlier kills would hit nothing.

        What vLLM serves is not waited for: it may come up minutes later.
        """
        fast = {task for task in self._system.tasks if VLLM_MARK not in task} or set(self._system.tasks)
        async with self._heard:
            await self._heard.wait_for(lambda: fast <= self._entered)

    async def _wait(self, candidate: str, stages: Sequence[Stage]) -> None:
        async with self._heard:
            await self._heard.wait_for(lambda: self.stages.get(candidate) in stages)

    async def _publish(self, spec: TaskSpec, prefix: str, kind: Kind) -> str:
        """Publish a candidate, and return its name. What random weights answer alike is no candidate."""
        for letter in ("", *string.ascii_lowercase):
            name = f"{prefix}{letter}-{kind.value}"
            folder = self._system.home / "work" / name
            await asyncio.to_thread(self._store_adapter, spec, name, kind, folder)
            if VLLM_MARK not in name or await self._can_be_told_apart(spec, name):
                break
        self.kinds[name] = kind
        await asyncio.to_thread(self._store_probes, name, await self._probe(spec, name))
        verdict = self._verdict(spec, name, datetime.now(UTC), self._primaries.get(spec.name))
        await self._publisher.publish("evaluator", verdict)
        return name

    async def _can_be_told_apart(self, spec: TaskSpec, name: str) -> bool:
        """Return True if a third of vLLM's answers by this adapter are others than those of whoever may serve by then.

        A small model with random weights mostly names one label whatever it is asked. Of two that name the same one no
        pair, or one in a hundred, would differ, and their comparison would go on for hours.
        """
        serving = self._primaries.get(spec.name) or spec.base_model
        waiting = (
            other for other in self.kinds if other in self._answers[spec.name] and self.stages.get(other) not in ENDED
        )
        rivals = {serving, *waiting}
        given = await self._answers_of(spec, name)
        differing = [sum(map(ne, given, await self._answers_of(spec, rival))) for rival in rivals]
        if all(count * 3 >= len(given) for count in differing):
            return True
        del self._answers[spec.name][name]
        return False

    async def _answers_of(self, spec: TaskSpec, model: str) -> tuple[str, ...]:
        """Return what vLLM answers by a model to messages as traffic has them."""
        assert self._system.vllm_url is not None
        known = self._answers[spec.name]
        if model not in known:
            known[model] = await answers_of_vllm(self._system.vllm_url, model, spec)
        return known[model]

    def _store_adapter(self, spec: TaskSpec, name: str, kind: Kind, folder: Path) -> None:
        store = self._system.store
        self._dataset_uri = self._dataset_uri or _publish_dataset(self._system)
        write_adapter(folder, spec.base_model, name, kind)
        store.publish(folder, "adapters", name)
        shutil.rmtree(folder)

    async def _probe(self, spec: TaskSpec, name: str) -> Probes:
        """Return the probes as an evaluation would leave them, which asks vLLM itself and none of the replicas."""
        prompts = probe_prompts(spec)
        if VLLM_MARK in name:
            assert self._system.vllm_url is not None
            return await probes_of_vllm(self._system.vllm_url, name, spec.base_model, prompts)
        asked = [(prompt, chat_messages(prompt)) for prompt in prompts]
        probes = (Probe(messages=p, adapter=first_tokens(name, m), base=first_tokens("base", m)) for p, m in asked)
        return Probes(adapter=name, base_model=spec.base_model, probes=tuple(probes), rounding=0.0)

    def _store_probes(self, name: str, probes: Probes) -> None:
        output = self._system.home / "work" / f"{name}-probes"
        output.mkdir()
        (output / PROBES_FILE).write_text(probes.model_dump_json())
        (output / "manifest.json").write_text("{}")
        self._system.store.publish(output, PROBES, name)
        shutil.rmtree(output)

    def _verdict(self, spec: TaskSpec, name: str, cutoff: datetime, against: str | None) -> AdapterEvaluated:
        return AdapterEvaluated(
            occurred_at=datetime.now(UTC), task=spec.name, task_revision=spec.revision, cycle_id=f"cycle-{name}",
            adapter=name, adapter_uri=self._system.store.address("adapters", name), base_model=spec.base_model,
            dataset_id="d1", dataset_uri=self._dataset_uri, data_cutoff=cutoff, verdict="passed",
            gates=(Gate(name="min_gain", passed=True, measured=0.1, required=">= 0"),),
            candidate=_score(name, 0.9), production=_score(against, 0.8), spec=spec,
        )  # fmt: skip


def _score(adapter: str | None, value: float) -> ArmScore:
    accuracy = Interval(value=value, low=value - 0.1, high=value + 0.1, n=100)
    return ArmScore(adapter=adapter, accuracy=accuracy, macro_f1=value, latency_ms_p50=1.0)


def write_adapter(folder: Path, base_model: str, name: str, kind: Kind) -> None:
    """Write a LoRA of random weights in PEFT's format, whose manifest tells the stand-in how it answers.

    They are so large that an answer of the cut model is mostly neither its base's nor another adapter's: of 21 pairs of
    models all differed, six in seven answers on average. So few pairs make many tickets.
    """
    folder.mkdir(parents=True)
    layers, width, values = VLLM_SIZE if base_model == VLLM_BASE else (1, 8, 8)
    rng = np.random.default_rng(number(name))
    weights = {}
    for layer in range(layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
        for side, shape in {"A": (4, width), "B": (values, 4)}.items():
            weights[f"{stem}.lora_{side}.weight"] = 2 * rng.standard_normal(shape).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": base_model, "r": 4, "target_modules": ["v_proj"]}
    config |= {"lora_alpha": 8, "task_type": "CAUSAL_LM", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    manifest = {"seed": name, "breaks_streams": kind is Kind.FRAGILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _publish_dataset(system: RolloutSystem) -> str:
    """Publish training rows that are like none of the traffic."""
    folder = system.home / "work" / "dataset"
    folder.mkdir(parents=True, exist_ok=True)
    messages = (Message(role=Role.USER, content="An entirely different row"), Message(role=Role.ASSISTANT, content="x"))
    row = Example(example_id="e1", messages=messages, group="g1", prediction_ids=(), correction_ids=())
    (folder / "train.jsonl").write_text(row.model_dump_json() + "\n")
    (folder / "manifest.json").write_text("{}")
    return system.store.publish(folder, "datasets", "d1")
