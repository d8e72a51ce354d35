"""A whole loop against simulated services: a good candidate, one that is stopped, a faulty data set, a failed step."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from deploy.demo.errors import CycleStepFailed
from deploy.demo.report.result import LoopResult
from deploy.demo.settings import Fault, LoopOptions, LoopSettings
from deploy.demo.steps import live_test as live
from deploy.demo.steps.traffic import QUIET_SECONDS, STALL_SECONDS
from deploy.demo.story import play, read_data, run
from deploy.demo.terminal import Terminal
from schemas.base import utc_now
from shared.errors import ConfigurationError
from tests.unit.deploy.demo.inspections import inspection

EVIDENCE = {"wins": 30, "losses": 0, "ties": 0, "pending": 0, "wealth": 2000.0, "alpha": 0.00096}
EVALUATED = json.loads(Path("schemas/examples/adapters.evaluated.v1/inconclusive.json").read_text())
ARM = {
    "adapter": None, "accuracy": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 60}, "macro_f1": 0.1, "classes": [],
    "failed": 0, "latency_ms_p50": 90.0,
}  # fmt: skip


class FakeServices:
    """Gateway, console and scheduler in one transport. It promotes after so many live requests."""

    def __init__(self, truth: dict[str, str], gain: float = 0.8, fails: str = "", report: str | None = None) -> None:
        self.truth = truth
        self.gain = gain
        self.fails = fails
        self.report = report
        self.evaluation: str | None = None
        """Address of the evaluations' report."""
        self.asked: list[tuple[str, str]] = []
        self.corrected: dict[str, str] = {}
        self.cycle: list[dict[str, Any]] = []
        self.live = 0
        self.served: str | None = None
        self.tasks = Path()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": p.stem} for p in self.tasks.glob("*.yaml")]})
        if path == "/v1/chat/completions":
            return self.answer(body)
        if path == "/api/queue":
            return httpx.Response(200, json={"items": self.queue(request.url.params.get("purpose"))})
        if path == "/api/corrections":
            self.corrected[body["request_id"]] = body["label"]
            return httpx.Response(200, json={"correction_id": "c", "counted": True})
        if path == "/api/cycles" and request.method == "GET":
            return httpx.Response(200, json={"cycles": []})
        if path == "/api/cycles":
            self.begin()
            return httpx.Response(202, json={"cycle_id": "cycle-1"})
        if path.startswith("/api/cycles/"):
            self.move()
            return httpx.Response(200, json={"cycle_id": "cycle-1", "task": "t", "steps": self.cycle, "progress": None})
        assert path == "/api/rollouts"
        evidence = {**EVIDENCE, "labels": self.live}
        return httpx.Response(
            200, json={"rollouts": [{"task": "another"}, {"task": "support-desk", "evidence": evidence}]}
        )

    def answer(self, body: dict[str, Any]) -> httpx.Response:
        text, user = body["messages"][-1]["content"], body["user"]
        self.asked.append((user, text))
        self.live += user.startswith("live-")
        variant = "primary" if self.served else "base"
        content = self.truth[text] if variant == "primary" or len(self.asked) % 8 == 0 else "nothing"
        headers = {
            "x-ratchet-prediction-id": f"p{len(self.asked)}",
            "x-ratchet-variant": variant,
            "x-ratchet-confidence": "0.1",
            "x-ratchet-adapter": self.served or "",
        }
        return httpx.Response(200, json={"choices": [{"message": {"content": content}}]}, headers=headers)

    def queue(self, purpose: str | None) -> list[dict[str, Any]]:
        if purpose:
            return []
        made = [f"p{n}" for n in range(1, len(self.asked) + 1)]
        return [
            {"request_id": p, "prediction_id": p, "purpose": "low_confidence", "overlap": 1}
            for p in made
            if p not in self.corrected
        ]

    def begin(self) -> None:
        if self.fails:
            self.add(
                "steps.failed.v1",
                {
                    "service": self.fails,
                    "step": "dataset",
                    "reason": "too few",
                    "way_out": "more",
                    "report": self.report,
                },
            )
            return
        mode = {"name": "m", "size": 9, "share": 0.5, "mean_confidence": 0.1, "exemplars": ["x"]}
        self.add("failures.clustered.v1", {"suspects": 9, "noise": 1, "modes": [mode]})
        gate = {"name": "min_examples", "passed": True, "measured": 9.0, "required": ">= 5", "detail": ""}
        self.add(
            "datasets.built.v1",
            {
                "dataset_id": "d",
                "uri": "/nowhere",
                "train_examples": 9,
                "eval_examples": 3,
                "left_out": [],
                "gates": [gate],
            },
        )
        self.add("adapters.trained.v1", {"adapter": "a1", "steps": 9, "train_loss": 0.1, "seconds": 1.0})
        passed = self.gain > 0
        gain = {"name": "min_gain", "passed": passed, "measured": self.gain, "required": ">= 0", "detail": ""}
        verdict = "passed" if passed else "failed"
        arms = {"candidate": {**ARM, "adapter": "a1"}, "production": ARM}
        said = {"headline": f"The verdict is {verdict}.", "report": self.evaluation}
        self.add("adapters.evaluated.v1", {**EVALUATED, "verdict": verdict, "gates": [gain], **arms, **said})
        if passed:
            self.add_stage("shadow")

    def move(self) -> None:
        stages = [s["event"].get("stage") for s in self.cycle]
        if self.live > 20 and "shadow" in stages and "canary" not in stages:
            self.add_stage("canary")
        elif self.live > 60 and "promoted" not in stages:
            self.add_stage("promoted")
            self.served = "a1"

    def add_stage(self, stage: str) -> None:
        event = {
            "occurred_at": utc_now().isoformat(),
            "stage": stage,
            "rollout_id": "r1",
            "reason": "wealth",
            "candidate_adapter": "a1",
            "evidence": EVIDENCE,
        }
        self.add("rollouts.changed.v1", event)

    def add(self, topic: str, event: dict[str, Any]) -> None:
        self.cycle.append({"topic": topic, "occurred_at": utc_now().isoformat(), "event": event})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.steps.traffic.QUIET_SECONDS", QUIET_SECONDS / 20)
    monkeypatch.setattr("deploy.demo.steps.cycle.POLL_SECONDS", 0.02)
    monkeypatch.setattr("deploy.demo.reviewers.IDLE_SECONDS", 0.05)
    monkeypatch.setattr("deploy.demo.steps.traffic.STALL_SECONDS", STALL_SECONDS / 50)
    monkeypatch.setattr(live, "STALL_SECONDS", 0.0)
    monkeypatch.setattr(live, "QUIET_SECONDS", 0.5)


async def played(
    services: FakeServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None = None
) -> tuple[LoopResult, str]:
    options = LoopOptions(report=tmp_path / "report", fault=fault)
    data, parts = read_data(options)
    small = replace(parts, traffic=parts.traffic[:60], held_out=parts.held_out[:20])
    services.truth.update({row.text: row.label for row in data.rows})
    services.tasks = tmp_path / "tasks"
    settings = LoopSettings(home=tmp_path, kafka="127.0.0.1:9")
    client = httpx.AsyncClient(transport=httpx.MockTransport(services))
    monkeypatch.setattr("httpx.AsyncClient", lambda **_: client)
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=160))
    return await play(options, settings, data, small, terminal), output.getvalue()


def test_a_report_that_could_not_be_written_is_an_error_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("deploy.demo.story.bring_up", started.append)
    (tmp_path / "report").write_text("no folder")
    with pytest.raises(ConfigurationError, match=f"no report can be written into {tmp_path}/report") as error:
        run(LoopOptions(report=tmp_path / "report"), Terminal(Console(file=io.StringIO())))
    assert (error.value.way_out, started) == ("Name another folder with --report.", [])


@pytest.mark.usefixtures("quick")
async def test_a_good_candidate_is_promoted_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = FakeServices({})
    result, output = await played(services, tmp_path, monkeypatch)
    assert result.promoted
    assert result.as_expected
    assert result.after is not None
    assert result.after.accuracy.value == 1.0
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert data["promoted"] is True
    assert data["accuracy_before"]["n"] == 20
    assert data["labels_spent"] == 60
    assert "Promoted" in output


@pytest.mark.usefixtures("quick")
async def test_held_out_questions_are_asked_twice_and_never_corrected_and_live_questions_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = FakeServices({})
    await played(services, tmp_path, monkeypatch)
    held_out = {text for user, text in services.asked if user.startswith("held-out-before")}
    assert held_out == {text for user, text in services.asked if user.startswith("held-out-after")}
    texts = {f"p{n}": text for n, (_, text) in enumerate(services.asked, start=1)}
    assert not held_out & {texts[p] for p in services.corrected}
    sent_live = [text for user, text in services.asked if user.startswith("live-")]
    assert len(sent_live) == len(set(sent_live))
    assert not set(sent_live) & ({text for user, text in services.asked if user.startswith("traffic-")} | held_out)


@pytest.mark.usefixtures("quick")
async def test_a_candidate_is_stopped_by_a_named_gate_with_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, output = await played(FakeServices({}, gain=-0.05), tmp_path, monkeypatch)
    assert not result.promoted
    assert not result.as_expected
    assert result.stopped_by == "evaluation gate min_gain"
    assert "measured -0.05, required >= 0" in result.evidence
    assert "stopped by evaluation gate min_gain" in output


@pytest.mark.usefixtures("quick")
async def test_the_verdict_is_said_in_a_sentence_and_its_page_copied_beside_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifacts" / "evaluations" / "a1-vs-base-1"
    folder.mkdir(parents=True)
    (folder / "evaluation.html").write_text("<h1>Stopped.</h1>")
    (folder / "manifest.json").write_text("{}")
    services = FakeServices({}, gain=-0.05)
    services.evaluation = str(folder)
    result, output = await played(services, tmp_path, monkeypatch)
    assert "The verdict is failed." in output
    assert str(folder / "evaluation.html") in output.replace("\n", "")
    assert result.cycle.evaluation_page == folder / "evaluation.html"
    assert (tmp_path / "report" / "evaluation.html").read_text() == "<h1>Stopped.</h1>"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("gate", "expected"), [("labels_to_learn", True), ("min_examples", False)])
async def test_a_faulty_data_set_is_stopped_before_training_and_its_inspection_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str, expected: bool
) -> None:
    folder = tmp_path / "artifacts" / "inspections" / "cycle-1"
    folder.mkdir(parents=True)
    (folder / "quality.json").write_text(inspection(gate).model_dump_json())
    (folder / "manifest.json").write_text("{}")  # Written last: the folder is whole.
    services = FakeServices({}, fails="dataset_builder", report=str(folder))
    result, output = await played(services, tmp_path, monkeypatch, Fault.ONE_CLASS)
    assert len(set(services.corrected.values())) == 1, "everything has the same label"
    assert result.stopped_by == "the data set's inspection"
    assert "too few" in result.evidence
    assert result.after is None, "nothing was trained, so nothing can have changed"
    assert gate in output
    assert "unknown" in output
    assert result.as_expected is expected
    assert ("Not as expected" in output) is not expected
    assert "the gates that should name this fault are labels_to_learn" in output


@pytest.mark.usefixtures("quick")
async def test_a_test_that_used_up_the_live_traffic_reports_how_far_it_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = FakeServices({})
    monkeypatch.setattr(services, "move", lambda: None)
    result, _ = await played(services, tmp_path, monkeypatch)
    assert result.stopped_by == "betting test (still in shadow when the live traffic was used up)"
    assert "after 160 live requests" in result.evidence
    assert not result.as_expected


@pytest.mark.usefixtures("quick")
async def test_a_step_that_failed_is_an_error_and_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CycleStepFailed, match="dataset_builder could not finish dataset: too few"):
        await played(FakeServices({}, fails="dataset_builder"), tmp_path, monkeypatch)
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert data["promoted"] is False
    assert "too few" in data["evidence"]
