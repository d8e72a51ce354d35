"""What the stand-in for the model server answers. The request's seed decides all of it, so the ledger knows it before.

A seed is ten times the request's number, plus what is special about the answer.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any

from tests.chaos.load.people import long_text, personal_texts, plain_texts
from tests.chaos.tasks import LABELS

_PERSONAL_SHARE = 0.05
_LONG_CHARACTERS = 200_000
LOW_LOGPROB, HIGH_LOGPROB = -3.0, -0.01


class Special(IntEnum):
    """What is special about an answer. LOW: its confidence. SLOW: pieces of its stream come a tenth of a second apart.
    PLAIN: nothing but text that ended by itself."""

    NOTHING = 0
    LOW = 1
    LONG = 2
    SLOW = 3
    PLAIN = 4


@dataclass(frozen=True)
class StandInAnswer:
    """One answer. `tool_calls`: pairs of a function's name and its arguments."""

    text: str
    tool_calls: tuple[tuple[str, str], ...] = ()
    refusal: str | None = None
    reasoning: str | None = None
    finish_reason: str = "stop"
    ids: tuple[str, ...] = field(default=())


def seed_of(number: int, special: Special = Special.NOTHING) -> int:
    return number * 10 + special


def special_of(seed: int) -> Special:
    return Special(seed % 10)


def usage_of(seed: int) -> tuple[int, int, int, int]:
    """Return the tokens of prompt, answers, cache and reasoning of a request."""
    number = seed // 10
    return 20 + number % 7, 9 + number % 4, number % 5, number % 3


def answers_to(seed: int, count: int, *, functions: tuple[str, ...] = (), labels: bool = False) -> list[StandInAnswer]:
    """Return the answers to a request for `count` of them, which offers these functions or asks for a label."""
    if labels:
        return [StandInAnswer(LABELS[seed // 10 % len(LABELS)])]
    return [_answer(random.Random(f"answer {seed} {number}"), seed, number, functions) for number in range(count)]


def _answer(rng: random.Random, seed: int, number: int, functions: tuple[str, ...]) -> StandInAnswer:
    special = special_of(seed)
    if special in (Special.LOW, Special.PLAIN):
        return StandInAnswer(_text(rng))
    if special is Special.LONG:
        return StandInAnswer(long_text(rng, _LONG_CHARACTERS))
    if special is Special.SLOW:
        return StandInAnswer(long_text(rng, 1_500))
    reasoning = _text(rng) if rng.random() < 0.15 else None
    if functions and rng.random() < 0.6:
        calls = tuple((rng.choice(functions), _arguments(rng)) for _ in range(rng.randint(1, 3)))
        ids = tuple(f"call_{seed}_{number}_{position}" for position in range(len(calls)))
        text = _text(rng) if rng.random() < 0.3 else ""
        return StandInAnswer(text, calls, None, reasoning, "tool_calls", ids)
    if rng.random() < 0.08:
        return StandInAnswer("", (), _text(rng), reasoning)
    return StandInAnswer(_text(rng), (), None, reasoning, rng.choices(("stop", "length"), (90, 10))[0])


def _arguments(rng: random.Random) -> str:
    arguments: dict[str, Any] = {"order": f"A-{rng.randrange(100, 999)}", "note": _text(rng), "urgent": True}
    return json.dumps(arguments, separators=rng.choice(((",", ":"), (", ", ": "))))


def _text(rng: random.Random) -> str:
    plain, personal = _texts()
    return rng.choice(personal if rng.random() < _PERSONAL_SHARE else plain)


@cache
def _texts() -> tuple[list[str], list[str]]:
    return plain_texts(), personal_texts()
