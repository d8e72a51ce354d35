"""The stand-in people: reviewers, who are mostly right, and users, who sometimes say that an answer was wrong."""

from __future__ import annotations

from collections import defaultdict, deque

from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import FeedbackGiven, PredictionLogged
from services.failure_miner.sampling import sampling_point
from tests.benchmarks.twelve_weeks.stand_ins.bus import Bus
from tests.benchmarks.twelve_weeks.stand_ins.engine import Engine
from tests.benchmarks.twelve_weeks.world.stream import Corpus

REVIEWERS = ("ann", "ben", "cat", "dan", "eve", "fay")
RIGHT = 0.95
_THUMBS_DOWN = {False: 0.08, True: 0.004}
"""How often a user complains, by whether the answer was right."""


class Reviewers:
    """The queue and those who answer it: tickets first, then by priority, each question by another person.

    A reviewer errs in one of twenty questions, and always in the same ones.
    """

    def __init__(self, corpus: Corpus, engine: Engine, bus: Bus, per_step: int) -> None:
        self._corpus, self._engine, self._bus, self._per_step = corpus, engine, bus, per_step
        self._open: dict[str, LabelRequested] = {}
        self._asked: defaultdict[str, int] = defaultdict(int)
        self._tickets: deque[LabelRequested] = deque()
        self.given = 0

    async def on_question(self, question: LabelRequested) -> None:
        if question.purpose is Purpose.DISCORDANT_PAIR:
            self._tickets.append(question)
        else:
            self._open[question.request_id] = question

    async def work(self) -> None:
        """Answer what there is time for. What is left at the end of a step is still there in the next."""
        by_priority = sorted(self._open.values(), key=lambda q: -q.priority)
        for question in [*self._tickets, *by_priority][: self._per_step]:
            for _ in range(question.overlap):
                await self._answer(question)
            self._open.pop(question.request_id, None)
        answered = min(self._per_step, len(self._tickets))
        for _ in range(answered):
            self._tickets.popleft()

    async def _answer(self, question: LabelRequested) -> None:
        turn = self._asked[question.prediction_id]
        self._asked[question.prediction_id] += 1
        first = int(sampling_point("reviewer", question.prediction_id) * len(REVIEWERS))
        reviewer = REVIEWERS[(first + turn) % len(REVIEWERS)]
        echoed = (
            "task", "task_revision", "cycle_id", "request_id", "prediction_id", "purpose", "call", "answers",
            "inclusion_probability", "drawn_probability", "overlap", "app", "ticket_id", "user_hash", "predicted_at",
        )  # fmt: skip
        self.given += 1
        await self._bus.publish(
            CorrectionSubmitted(
                **{name: getattr(question, name) for name in echoed},
                correction_id=f"{question.request_id}-{reviewer}",
                reviewer=reviewer,
                label=self.label(self._engine.question(question.call.messages[-1].text), reviewer),
            )
        )

    def label(self, question: int, reviewer: str) -> str:
        """Return what this reviewer takes for the right label of a question."""
        truth = int(self._corpus.labels[question])
        if sampling_point(f"{reviewer} errs", str(question)) >= 1.0 - RIGHT:
            return self._corpus.names[truth]
        others = len(self._corpus.names) - 1
        wrong = int(sampling_point(f"{reviewer} takes it for", str(question)) * others)
        return self._corpus.names[wrong + (wrong >= truth)]


def complaint(event: PredictionLogged, *, right: bool) -> FeedbackGiven | None:
    """Return the thumbs down of the answer's user, if there is one."""
    answer = event.answers[0]
    if sampling_point("thumbs down", answer.prediction_id) >= _THUMBS_DOWN[right]:
        return None
    return FeedbackGiven(
        task=event.task, task_revision=event.task_revision, prediction_id=answer.prediction_id, kind="thumbs",
        positive=False, user_hash=event.user_hash,
    )  # fmt: skip
