"""The second process of a build: it has the models, which take seconds to load while the first one goes on.

    redactor        spaCy's names and patterns
    sketches        what tells which questions are nearly the same
    noise model     scikit-learn, torch and the sentence encoder

It answers in the order in which it is asked.

It keeps nothing, and it ends with the first process, however that one ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from services.dataset_builder.checks.label_noise import LabelScore, LabelsToScore
from shared.errors import DependencyUnavailable
from shared.jobs import Progress
from shared.model.embedding import CachedEmbedder, SentenceEmbedder
from shared.model.question_sketches import QuestionsToSketch, Sketched, sketch_questions
from shared.privacy.redaction import Redacted, Redactor, Rules
from shared.privacy.redaction.spans import TextSpan

_CLOSE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Models(Protocol):
    """What a build asks models. To load one before it is needed makes nobody wait for it.

    `embed`: the texts of all corrections, for only their vectors are kept.
    """

    def load_redactor(self, rules: Rules) -> None: ...
    def load_scorer(self) -> None: ...
    def embed(self, texts: Sequence[str]) -> None: ...
    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]: ...
    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]: ...
    def sketch(self, asked: QuestionsToSketch) -> Callable[[], Sketched]: ...
    def score(self, asked: LabelsToScore) -> Iterable[LabelScore]: ...


@dataclass(frozen=True)
class LocalModels:
    """The models, in this process, each loaded when it is first needed. `key`: of surrogates.

    `embedder`: the sentence encoder's folder; `embeddings`: the file that keeps those of the task's texts. `folder`:
    the job's, for its progress.
    """

    key: bytes
    embedder: Path
    embeddings: Path
    folder: Path

    def load_redactor(self, rules: Rules) -> None:
        if rules.enabled:
            self._redactor.find(["Hello"], rules)

    def load_scorer(self) -> None:
        import services.dataset_builder.recipe  # noqa: F401  # It loads scikit-learn: only where it is needed.

    def embed(self, texts: Sequence[str]) -> None:
        self._embedder.store(texts)
        self._encoder.unload()  # While rows are scored it would only take memory.

    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]:
        """See `Redactor.find`."""
        return self._redactor.find(texts, rules)

    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]:
        """See `Redactor.redact`."""
        return self._redactor.redact(texts, rules, already_redacted)

    def sketch(self, asked: QuestionsToSketch) -> Callable[[], Sketched]:
        """See `BeginSketches`."""
        return partial(sketch_questions, asked)

    def score(self, asked: LabelsToScore) -> Iterable[LabelScore]:
        """See `checks.label_noise.Scorer`."""
        from services.dataset_builder.recipe import LabelScorer

        return LabelScorer(self._embedder)(asked)

    @cached_property
    def _redactor(self) -> Redactor:
        return Redactor(self.key)

    @cached_property
    def _encoder(self) -> SentenceEmbedder:
        return SentenceEmbedder(self.embedder, fast=True)

    @cached_property
    def _embedder(self) -> CachedEmbedder:
        progress = Progress(self.folder)

        def report(done: int, total: int) -> None:
            progress(2 + done / total, 4, f"embedding: {done} of {total} texts")

        return CachedEmbedder(self._encoder, self.embeddings, report)


class ModelProcess:
    """Models in a process of their own, for the length of a `with`.

    Methods raise what the models raise, and DependencyUnavailable if their process died.
    """

    def __init__(self, models: LocalModels) -> None:
        context = multiprocessing.get_context("spawn")  # A fork would share locks and leases, and with them their end.
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, models), daemon=True)
        self._process.start()
        theirs.close()
        self._sender = ThreadPoolExecutor(1, "to the models")
        self._receiver = ThreadPoolExecutor(1, "from the models")
        self._asking = threading.Lock()
        self._begun: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process at once: it keeps nothing, and with models an interpreter takes a second to end by itself."""
        self._process.kill()
        self._process.join()
        self._sender.shutdown()
        self._receiver.shutdown()
        self._connection.close()

    def load_redactor(self, rules: Rules) -> None:
        self._begin("load_redactor", rules)

    def load_scorer(self) -> None:
        self._begin("load_scorer")

    def embed(self, texts: Sequence[str]) -> None:
        self._begin("embed", texts)

    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]:
        found: list[list[TextSpan]] = self._ask("find", texts, rules)()
        return found

    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]:
        redacted: list[Redacted] = self._ask("redact", texts, rules, already_redacted)()
        return redacted

    def sketch(self, asked: QuestionsToSketch) -> Callable[[], Sketched]:
        """Ask for the sketches; returns what waits for them."""
        return self._ask("sketch", asked)

    def score(self, asked: LabelsToScore) -> Iterator[LabelScore]:
        """Ask for the scores. To iterate them waits for them."""
        wait = self._ask("score", asked)

        def received() -> Iterator[LabelScore]:
            yield from wait()

        return received()

    def _begin(self, method: str, *args: Any) -> None:
        """Have a request sent, in its order. To wait for it would be to wait until a model that is loaded is there."""
        with self._asking:
            self._begun.append(self._sender.submit(self._connection.send, (method, args)))

    def _ask(self, method: str, *args: Any) -> Callable[[], Any]:
        """Have a request sent and its answer received; returns what waits for the answer, once: it may be large.

        It is received when it is there, whoever waits for it: else the process could not go on with what is next.
        """
        with self._asking:  # Answers are received in the order of the requests.
            sent = [*self._begun, self._sender.submit(self._connection.send, (method, args))]
            self._begun.clear()
            waiting = [self._receiver.submit(self._receive, sent)]
        return lambda: waiting.pop().result()

    def _receive(self, sent: Sequence[Future[None]]) -> Any:
        try:
            for request in sent:
                request.result()
            result, error = self._connection.recv()
        except (EOFError, OSError) as cause:
            raise self._died() from cause
        if error is not None:
            raise error
        return result

    def _died(self) -> DependencyUnavailable:
        self._process.join(_CLOSE_SECONDS)
        return DependencyUnavailable(
            f"the process with the models died (exit code {self._process.exitcode})", "Is there enough memory for it?"
        )


_ANSWERED = ("find", "redact", "sketch", "score")


def _serve(connection: Connection, models: LocalModels) -> None:
    """Answer requests until the first process ends or wants no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        result, failure = None, None
        try:
            result = getattr(models, method)(*args)
            result = result() if callable(result) else result
        except Exception as error:  # noqa: BLE001 - the first process decides what an error means
            failure = error
            logger.warning("%s failed: %r", method, error)
        if method in _ANSWERED:  # What was only begun fails again when its result is asked for.
            connection.send((result, failure))
        del args, result, failure  # They may be large, and the next request may be long in coming.


def _end_with_parent() -> None:
    """End this process in the middle of whatever it does, so that a killed job leaves nothing behind."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
