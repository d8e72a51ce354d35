"""The process that has a build's models answers as they do, says when it died, and ends with the build's process."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from services.dataset_builder.checks.label_noise import LabelledText, LabelsToScore
from services.dataset_builder.model_process import LocalModels, ModelProcess
from shared.errors import DependencyUnavailable
from shared.model.embedding import DIMENSIONS, Vectors
from shared.model.question_sketches import QuestionsToSketch, sketch_questions
from shared.privacy.redaction import Rules
from shared.privacy.redaction.spans import TextSpan
from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS

PATTERNS = Rules(names=False)
TEXTS = ["Please write to ann@example.net.", "Where is my parcel?"]


def local_models(folder: Path) -> LocalModels:
    return LocalModels(b"k" * 32, folder / "no encoder", folder / "embeddings.vectors", folder)


QUESTIONS = [(("user", f"where is order {number} of mine, please, and why is it late?"),) for number in range(5_000)]
TO_SKETCH = QuestionsToSketch(QUESTIONS, None, 0.8)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModels:
    return local_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(local: LocalModels) -> Iterator[ModelProcess]:
    """A process with the same models: it takes seconds to start."""
    with ModelProcess(local) as models:
        models.load_redactor(PATTERNS)
        yield models
    assert not multiprocessing.active_children()


def test_the_models_of_the_process_answer_as_those_of_this_one(models: ModelProcess, local: LocalModels) -> None:
    assert models.find(TEXTS, PATTERNS) == local.find(TEXTS, PATTERNS)
    assert models.redact(TEXTS, PATTERNS) == local.redact(TEXTS, PATTERNS)
    assert models.redact(TEXTS, PATTERNS, TEXTS) == local.redact(TEXTS, PATTERNS, TEXTS)


def test_questions_are_sketched_as_in_this_process_and_answers_go_to_those_who_asked_whoever_waits_first(
    models: ModelProcess,
) -> None:
    local = sketch_questions(TO_SKETCH)
    wait = models.sketch(TO_SKETCH)
    assert len(models.find(TEXTS, PATTERNS)) == len(TEXTS)
    sketched = wait()
    pairs = zip(vars(sketched.sketches).values(), vars(local.sketches).values(), strict=True)
    assert all(np.array_equal(theirs, ours) for theirs, ours in pairs)
    theirs, ours = (sketcher.sketch(QUESTIONS[7]) for sketcher in (sketched.sketcher, local.sketcher))
    assert np.array_equal(theirs.shingles, ours.shingles)


def test_what_could_not_be_sent_is_raised_with_the_next_answer(models: ModelProcess) -> None:
    models.embed([lambda: "no text"])  # type: ignore[list-item]
    with pytest.raises(Exception, match="pickle"):
        models.find(TEXTS, PATTERNS)


def test_what_a_model_raises_is_raised_here_with_its_way_out_and_what_could_not_be_loaded_stops_nothing(
    tmp_path: Path,
) -> None:
    rows = [LabelledText(f"text {number}", "ab"[number % 2]) for number in range(10)]
    with ModelProcess(local_models(tmp_path)) as models:
        models.load_scorer()
        models.embed(TEXTS)
        with pytest.raises(DependencyUnavailable, match="embedding model is not in") as missing:
            list(models.score(LabelsToScore(rows)))
        assert "ratchet up" in missing.value.way_out
        assert models.find(TEXTS, PATTERNS)[0]


def _encoder(embedded: list[str], loaded: list[bool] | None = None) -> type:
    """A sentence encoder's class. It notes what it embeds, and that it has been loaded and unloaded."""
    states = [] if loaded is None else loaded

    class Encoder:
        def __init__(self, folder: Path, fast: bool) -> None: ...

        def load(self) -> None:
            states.append(True)

        def unload(self) -> None:
            states.append(False)

        def embed(self, texts: Sequence[str]) -> Vectors:
            self.load()
            embedded.extend(texts)
            return np.eye(len(texts), DIMENSIONS, dtype=np.float32)

    return Encoder


def test_what_is_embedded_beforehand_is_not_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []
    monkeypatch.setattr("services.dataset_builder.model_process.SentenceEmbedder", _encoder(embedded))
    rows = [LabelledText(f"text {number}", "ab"[number % 2]) for number in range(40)]
    models = local_models(tmp_path)
    models.embed([row.text for row in rows[:39]])
    assert sorted(embedded) == sorted(row.text for row in rows[:39])
    models.score(LabelsToScore(rows))
    assert embedded[39:] == [rows[39].text]


def test_the_encoder_takes_no_memory_while_labels_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bool] = []
    monkeypatch.setattr("services.dataset_builder.model_process.SentenceEmbedder", _encoder([], loaded))
    rows = [LabelledText(f"text {number}", "ab"[number % 2]) for number in range(40)]
    models = local_models(tmp_path)
    models.load_scorer()
    assert loaded == [], "questions are sketched first, and nothing new may need it"
    models.embed([row.text for row in rows])
    models.score(LabelsToScore(rows))
    assert loaded == [True, False], "while labels are scored"


def test_what_no_score_is_asked_for_is_not_embedded_in_each_build_and_what_was_erased_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are rejected, or near-copies of held-out ones, have corrections and no score."""
    embedded: list[str] = []
    monkeypatch.setattr("services.dataset_builder.model_process.SentenceEmbedder", _encoder(embedded))
    rows = [LabelledText(f"text {number}", "ab"[number % 2]) for number in range(40)]
    for corrections in (["rejected", "erased"], ["rejected"]):
        models = local_models(tmp_path)
        models.embed([*(row.text for row in rows), *corrections])
        models.score(LabelsToScore(rows))
    assert len(embedded) == len(set(embedded)) == 42
    local_models(tmp_path).embed(["erased"])
    assert embedded[42:] == ["erased"], "its vector was gone"


def test_the_process_is_ended_not_waited_for_once_nothing_more_is_asked(tmp_path: Path) -> None:
    before = {*multiprocessing.active_children()}
    with ModelProcess(local_models(tmp_path)) as models:
        models.find(TEXTS, PATTERNS)
        (process,) = {*multiprocessing.active_children()} - before
    assert process.exitcode == -signal.SIGKILL


def test_a_process_that_died_is_away_and_may_come_back(tmp_path: Path) -> None:
    before = {*multiprocessing.active_children()}
    with ModelProcess(local_models(tmp_path)) as models:
        models.find(TEXTS, PATTERNS)
        (process,) = {*multiprocessing.active_children()} - before
        process.kill()
        with pytest.raises(DependencyUnavailable, match="died"):
            models.find(TEXTS, PATTERNS)


@dataclass(frozen=True)
class SlowModels(LocalModels):
    """Models whose scorer is loaded once a file says so."""

    def load_scorer(self) -> None:
        (self.folder / "loading").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)

    def embed(self, texts: Sequence[str]) -> None:
        (self.folder / "embedded").write_text(str(len(texts)))


def test_neither_the_process_nor_who_asks_for_what_comes_later_waits_for_the_other(tmp_path: Path) -> None:
    """Sketches and the texts of a large task are more than a pipe holds."""
    with ModelProcess(SlowModels(b"k" * 32, tmp_path, tmp_path, tmp_path)) as models:
        wait = models.sketch(TO_SKETCH)
        models.embed(TEXTS)
        wait_until((tmp_path / "embedded").exists, None)
        assert len(wait().sketches) == len(QUESTIONS)
        (tmp_path / "embedded").unlink()
        models.load_scorer()
        models.embed([f"{number:0100}" for number in range(50_000)])
        assert not (tmp_path / "embedded").exists()
        (tmp_path / "go").touch()
        assert models.find(TEXTS, PATTERNS)[0], "requests are answered in their order"
        assert (tmp_path / "embedded").read_text() == "50000"


@dataclass(frozen=True)
class BusyModels(LocalModels):
    """Models that are busy for ever, once they have said so in a file."""

    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]:
        (self.folder / "busy").touch()
        time.sleep(10_000)
        return []


def ask_busy_models(folder: Path) -> None:
    """Ask them, in a process that is going to be killed."""
    models = ModelProcess(BusyModels(b"k" * 32, folder, folder, folder))
    (process,) = multiprocessing.active_children()
    (folder / "pid").write_text(str(process.pid))
    models.find(TEXTS, PATTERNS)


def test_a_killed_build_leaves_no_process_however_busy_that_is(tmp_path: Path) -> None:
    code = f"from {__name__} import *\nask_busy_models(Path({str(tmp_path)!r}))"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until((tmp_path / "busy").exists, killed)
    killed.kill()
    killed.wait()
    pid = (tmp_path / "pid").read_text()
    wait_until(lambda: not is_running(pid), None)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, "it does not hold"
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    """False for a process that is gone, or that has ended and waits for its parent to notice."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
