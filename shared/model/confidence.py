"""How sure an answer is, from the log-probabilities of its own tokens. Pure; microseconds; never raises.

A label's probability is taken within the task's labels, token by token: of what is listed at a position (the most
probable tokens, 20 at most), only tokens that go on towards some label count.

    score    = product over positions of  p(towards the answered label) / p(towards any label)
    outside  = 1 - p(towards any label), at the first position
    branches = where other labels part from the answered one, each with its probability

That is the probability with which constrained decoding takes this path. Texts are compared, not tokens, so no
tokenizer is needed, and another spelling of a label in tokens counts for it. That matters: vLLM reports what its
constraint to the labels has left, and a model that was not trained on them spells them in many ways (SmolLM2 on
Banking77: the product of its token probabilities is 0.03 in the mean, the label's probability 0.37). For the same
reason `outside` tells something only where the engine reports the whole vocabulary; from vLLM's constrained answers it
is next to 0.

What is not listed is bounded, always to the answer's disadvantage: a label none of whose first tokens is listed may
have up to the probability of the least one listed, together no more than what the listed tokens leave over. Where
nothing is listed for a position, its token counts with its plain probability, which is a lower bound; so does the
whole of an answer that is no label (cut off, unconstrained, or with a character split over tokens). Where labels are
the beginnings of others, the engine must list the token that ends an answer, as vLLM does.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from schemas.adapters import Calibration
from schemas.tasks import TaskKind, TaskSpec

TOP_LOGPROBS = 20
"""What vLLM lists at most by default (`--max-logprobs`)."""
LIMIT = 20.0
"""Log-odds are cut at +- this: two in a billion."""
_EXPONENT = 700.0
_ROUNDING = 1e-3
"""A log-probability this far above zero is a certain token, rounded upstream."""
_NEGLIGIBLE = 1e-4
_CERTAIN = -1e-5
_ALL = 1.01
"""No more than this can be listed at a position, rounding included."""
_HALF = math.log(0.5)

Tokens = Sequence[Mapping[str, Any]]
"""OpenAI's `choices[0].logprobs.content`: token, logprob, top_logprobs."""


class Measure(NamedTuple):
    """The fields of `schemas.predictions.Confidence`, for who makes events without its class."""

    score: float | None = None
    logprob: float | None = None
    tokens: int = 0
    raw: float | None = None
    margin: float | None = None
    entropy: float | None = None
    outside: float | None = None
    uncertain_share: float | None = None
    calibration: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The event's field `confidence`; of the optional ones those that are there."""
        return {name: value for name, value in zip(self._fields, self, strict=True) if value is not None}


UNKNOWN = Measure()


def request_fields(spec: TaskSpec) -> dict[str, Any]:
    """What a chat request must ask for, so that its answer can be measured."""
    if spec.kind is TaskKind.CLASSIFICATION:
        return {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return {"logprobs": True}


def measure(spec: TaskSpec, tokens: Tokens | None, calibration: Calibration | None = None) -> Measure:
    """How sure the answer made of `tokens` is; `UNKNOWN` where the upstream gave nothing that makes sense."""
    if not tokens:
        return UNKNOWN
    try:
        logprobs = [token["logprob"] for token in tokens]
        total = min(math.fsum(logprobs), 0.0)
        if not (max(logprobs) <= _ROUNDING and total > -math.inf):
            return UNKNOWN
        if spec.kind is TaskKind.CLASSIFICATION:
            found = _within(_labels(spec.labels), tokens, total, calibration)
        else:
            found = _of_text(logprobs, total)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError):
        return UNKNOWN
    return found if found.score is not None and 0.0 <= found.score <= 1.0 else UNKNOWN


def log_odds(score: float) -> float:
    """ln(p / (1 - p)), cut at +-LIMIT."""
    if score <= 0.0:
        return -LIMIT
    if score >= 1.0:
        return LIMIT
    return max(-LIMIT, min(LIMIT, math.log(score) - math.log1p(-score)))


def calibrated(calibration: Calibration, score: float) -> float:
    """A score in [0, 1], mapped. Keeps the order of scores."""
    x = log_odds(score)
    if calibration.kind == "temperature":
        return 1.0 / (1.0 + math.exp(min(-x / calibration.temperature, _EXPONENT)))
    knots = calibration.knots
    place = bisect_right(knots, (x, math.inf))
    if place in (0, len(knots)):
        return knots[min(place, len(knots) - 1)][1]
    (left, low), (right, high) = knots[place - 1], knots[place]
    return low + (high - low) * (x - left) / (right - left)


Way = tuple[int, int]
"""Labels that begin alike: from, up to but not with, in sorted order."""


class _Step(NamedTuple):
    """What may follow after a text. `ways`: a token's text to the labels that it keeps possible."""

    ways: dict[str, Way]
    possible: Way
    whole: int | None  # The label that this text is.


class _Labels:
    """A task's labels, sorted; what may follow after a text is worked out when it is first needed."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._sorted = sorted(labels)
        self._place = {label: place for place, label in enumerate(self._sorted)}
        self._steps: dict[str, _Step] = {}

    def __len__(self) -> int:
        return len(self._sorted)

    def place(self, text: str) -> int | None:
        return self._place.get(text)

    def after(self, text: str) -> _Step | None:
        """None: no label begins with `text`. Kept for texts that one does begin with: there are not many."""
        step = self._steps.get(text)
        if step is None and (step := self._step(text)) is not None:
            self._steps[text] = step
        return step

    def _step(self, text: str) -> _Step | None:
        low = high = bisect_left(self._sorted, text)
        ways: dict[str, Way] = {}
        while high < len(self._sorted) and self._sorted[high].startswith(text):
            rest = self._sorted[high][len(text) :]
            for end in range(1, len(rest) + 1):
                ways[rest[:end]] = (ways.get(rest[:end], (high, high))[0], high + 1)
            high += 1
        if not text:  # Free models begin with a space; a constrained one cannot.
            ways |= {f" {token}": way for token, way in ways.items()} | {" ": (low, high)}
        return _Step(ways, (low, high), self._place.get(text)) if high > low else None


@lru_cache(maxsize=256)
def _labels(labels: tuple[str, ...]) -> _Labels:
    return _Labels(labels)


def _of_text(logprobs: Sequence[float], total: float) -> Measure:
    count = len(logprobs)
    uncertain = sum([logprob < _HALF for logprob in logprobs])
    return Measure(math.exp(total / count), total, count, uncertain_share=uncertain / count)


def _within(labels: _Labels, tokens: Tokens, total: float, calibration: Calibration | None) -> Measure:
    """`total`: the plain log-probability of the answer, nats."""
    answer, end = _answer(labels, tokens)
    place = -1 if answer is None else answer
    text, score, outside, whole = "", 1.0, None, answer is not None
    branches: list[float] = []
    rival = 0.0
    for token in tokens:
        step = labels.after(text)
        if step is None or step.possible[1] - step.possible[0] == 1:
            break  # Decided: what follows is forced.
        if text and token["logprob"] > _CERTAIN:
            pass  # Whatever else is listed has next to nothing.
        elif listed := token.get("top_logprobs"):
            towards, others, hidden, least = _split(step, token, listed, end, place)
            any_label = towards + sum(others)
            if not any_label <= _ALL:
                raise ValueError(f"tokens with a probability of {any_label} in all")
            if not text and outside is None:
                outside = 1.0 - any_label if any_label < 1.0 else 0.0
            if place < 0:
                break
            allowed = (any_label + hidden) or 1.0  # Nothing at all: the answer has next to no probability.
            if hidden:
                rival = max(rival, score * (min(hidden, least) / allowed))
                branches.append(score * (hidden / allowed))
            if others:
                rival = max(rival, score * (max(others) / allowed))
                branches += [score * (p / allowed) for p in others]
            score *= towards / allowed
        else:
            whole = False
            score *= math.exp(min(token["logprob"], 0.0))
        text = (text + token["token"]).lstrip()
    if answer is None:
        score = math.exp(total)
    score = min(score, 1.0)
    margin, entropy = (score - rival, _entropy(score, branches, len(labels))) if whole else (None, None)
    if calibration is None:
        return Measure(score, total, len(tokens), None, margin, entropy, outside)
    now = calibrated(calibration, score)
    return Measure(now, total, len(tokens), score, margin, entropy, outside, calibration=calibration.name)


def _answer(labels: _Labels, tokens: Tokens) -> tuple[int | None, str | None]:
    """The label that the tokens spell (None: no label), and the text of the token that ended it, if that is listed."""
    texts = [token["token"] for token in tokens]
    place = labels.place("".join(texts).strip())
    if place is not None:
        return place, None
    place = labels.place("".join(texts[:-1]).strip())
    return place, None if place is None else texts[-1]


def _split(
    step: _Step, token: Mapping[str, Any], listed: Tokens, end: str | None, answer: int
) -> tuple[float, list[float], float, float]:
    """Probabilities: towards the answer, towards other labels by branch, what may hide, of the least token listed."""
    ways = step.ways
    if end is not None and step.whole is not None:
        ways = {**ways, end: (step.whole, step.whole + 1)}
    towards, others, own, seen = 0.0, dict[Way, float](), token["token"], False
    for other in [other for other in listed if other["token"] in ways]:
        way = ways[other["token"]]
        p = math.exp(min(other["logprob"], 0.0))
        if way[0] <= answer < way[1]:
            towards += p
            seen = seen or other["token"] == own
        else:
            others[way] = others.get(way, 0.0) + p
    if not seen and answer >= 0:
        towards += math.exp(min(token["logprob"], 0.0))
    least = math.exp(min(listed[-1]["logprob"], 0.0))
    hidden = 0.0
    if least * (step.possible[1] - step.possible[0]) > _NEGLIGIBLE:
        hidden = _hidden(step, listed, [*others, (answer, answer + 1)], least)
    return towards, list(others.values()), hidden, least


def _hidden(step: _Step, listed: Tokens, ways: Sequence[Way], least: float) -> float:
    """The most that labels of which nothing is listed can have."""
    unseen = set(range(*step.possible)).difference(*(range(*way) for way in ways))
    left_over = 1.0 - math.fsum(math.exp(min(other["logprob"], 0.0)) for other in listed)
    return max(0.0, min(left_over, len(unseen) * least))


def _entropy(score: float, branches: list[float], labels: int) -> float:
    """Of the answer and the branches, over that of all labels being as probable."""
    nats = -sum([p * math.log(p) for p in (score, *branches) if p > 0.0])
    return max(0.0, min(nats / math.log(labels), 1.0))
