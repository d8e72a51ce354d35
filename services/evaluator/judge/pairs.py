"""Compares pairs of answers in both orders: a judge that prefers what it sees first prefers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.conversation import Messages
from services.evaluator.judge.client import JudgeClient, JudgeStopped
from services.evaluator.judge.question import Verdict, judge_messages
from shared.grading.json_values import composed

_SIGNS = {"a": 1, "b": -1, "tie": 0}


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt."""

    prompt: Messages
    first: str
    second: str


@dataclass(frozen=True)
class JudgedPair:
    """Verdicts on a pair: with `first` shown as A, and with `second` as A. None: it has none."""

    forward: Verdict | None
    backward: Verdict | None

    @property
    def preferred(self) -> int | None:
        """Return 1 if the first answer is preferred in both orders, -1 for the second, else 0. None: not judged."""
        if self.forward is None or self.backward is None:
            return None
        one, other = _SIGNS[self.forward], -_SIGNS[self.backward]
        return one if one == other else 0

    @property
    def consistent(self) -> bool:
        return self.forward is not None and self.backward is not None and self.preferred == _SIGNS[self.forward]

    @property
    def positions(self) -> list[bool]:
        """For each choice whether it fell on the answer shown first; ties are none."""
        return [verdict == "a" for verdict in (self.forward, self.backward) if verdict in ("a", "b")]


NOT_JUDGED = JudgedPair(None, None)
_SAME = JudgedPair("tie", "tie")


async def judge_pairs(
    judge: JudgeClient, pairs: Sequence[AnswerPair], criterion: str, report: Callable[[int], None], at_once: int
) -> tuple[list[JudgedPair], str]:
    """Return each pair's verdicts, in order, and why the judge stopped before all were judged; empty: it did not.

    The same text twice, in any Unicode form, is a tie, and nobody is asked. `at_once`: the pairs that are begun before
    others are judged in both orders: if all were, a judge whose limits are reached would have judged none.
    """
    problem, done = "", 0
    limit = asyncio.Semaphore(at_once)

    async def one(pair: AnswerPair) -> JudgedPair:
        nonlocal problem, done
        if composed(pair.first).strip() == composed(pair.second).strip():
            return _SAME
        async with limit:
            try:
                forward = await judge.verdict(judge_messages(pair.prompt, pair.first, pair.second, criterion))
                backward = await judge.verdict(judge_messages(pair.prompt, pair.second, pair.first, criterion))
            except JudgeStopped as error:
                problem = problem or str(error)
                return NOT_JUDGED
        done += 1
        report(done)
        return JudgedPair(forward, backward)

    found = list(await asyncio.gather(*(one(pair) for pair in pairs)))
    return found, problem
