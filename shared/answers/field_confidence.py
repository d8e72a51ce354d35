"""How sure each field of a JSON answer is, or of tool calls, from the log-probabilities of its own tokens. Pure.

A field's probability is the product of those of its value's tokens: quotes included, since the first one decides
between a text and null, and of a number the token after it, which decides that it ends. Names, braces and commas are
what guided decoding writes by itself. Of a field in a list, the least sure item counts.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from schemas.output_schema import MAX_FIELDS
from shared.grading.json_values import NOT_JSON, json_or_nothing

_DECODER = json.JSONDecoder()
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]++')


def field_probabilities(tokens: Sequence[Mapping[str, Any]], fields: Collection[str]) -> dict[str, float] | None:
    """Return the probability of each of `fields` that the answer has; None if the answer is no JSON.

    `tokens`: OpenAI's `choices[0].logprobs.content`. Raises KeyError or TypeError for tokens that are none.
    """
    answer, value = _json_of(tokens)
    if value is NOT_JSON:
        return None
    return _least_of_each(tokens, (place for place in _values(answer) if place[0] in fields))


def label_probabilities(tokens: Sequence[Mapping[str, Any]], labels: Collection[str]) -> dict[str, float] | None:
    """Return the probability of each of `labels` that an answer lists; None if the answer is no JSON list."""
    answer, value = _json_of(tokens)
    if not isinstance(value, list):
        return None
    items = [(json.loads(answer[s:e]), s, e) for path, s, e in _values(answer) if path == "[]" and answer[s] == '"']
    return _least_of_each(tokens, [place for place in items if place[0] in labels][:MAX_FIELDS])


def call_probabilities(tokens: Sequence[Mapping[str, Any]], fields: Collection[str]) -> dict[str, float] | None:
    """Return the probability of each function and argument of `fields` in an answer's calls; None for one without.

    Calls are read as models write them: objects with a `name` and `arguments` (or `parameters`), in tags, in a list, or
    by themselves. What else stands between them decides that there is a call: the first function counts with it.
    """
    answer = "".join(token["token"] for token in tokens)
    places: list[tuple[str, int, int]] = []
    for start, end in _objects(answer):
        inner = list(_values(answer[start:end]))
        name = next((json.loads(answer[start + s : start + e]) for path, s, e in inner if path == "name"), None)
        if not isinstance(name, str):
            continue
        for path, first, last in inner:
            outer, _, argument = path.partition(".")
            if path == "name":
                places.append((name, start + first if places else 0, start + last))
            elif outer in ("arguments", "parameters") and argument:
                places.append((f"{name}.{argument}", start + first, start + last))
    if not places:
        return None
    return _least_of_each(tokens, (place for place in places if place[0] in fields))


def _json_of(tokens: Sequence[Mapping[str, Any]]) -> tuple[str, Any]:
    """Return the answer's text and its value, NOT_JSON if it has none.

    vLLM lists the token that ends an answer as the last one, which is no part of the text.
    """
    texts = [token["token"] for token in tokens]
    answer = "".join(texts)
    if (value := json_or_nothing(answer)) is NOT_JSON:
        answer = "".join(texts[:-1])
        value = json_or_nothing(answer)
    return answer, value


def _least_of_each(tokens: Sequence[Mapping[str, Any]], places: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """Return the probability of the tokens at each place; where a path has several, the lowest."""
    ends = list(accumulate(len(token["token"]) for token in tokens))
    sums = [0.0, *accumulate(min(token["logprob"], 0.0) for token in tokens)]
    found: dict[str, float] = {}
    for path, start, end in places:
        first, last = bisect_right(ends, start), bisect_left(ends, end)
        # The difference of two sums may be above 0 by a rounding.
        probability = math.exp(min(sums[min(last + 1, len(tokens))] - sums[first], 0.0))
        found[path] = min(found.get(path, 1.0), probability)
    return found


def _objects(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of the outermost JSON objects in a text."""
    position = 0
    while (start := text.find("{", position)) >= 0:
        try:
            _, position = _DECODER.raw_decode(text, start)
        except ValueError:
            position = start + 1
        except RecursionError:  # What is nested so deeply is no call, nor is what may stand in it.
            return
        else:
            yield start, position


def _values(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the path, as `schemas.output_schema` names fields, and the place of each value that is no list or object.

    `text` is valid JSON. The place of a number, of true, false and null has one more character.
    """
    outer: list[tuple[str, bool]] = []
    path, at_name = "", False
    for token in _TOKEN.finditer(text):
        said = token[0]
        if said in "{[":
            at_name = said == "{"
            outer.append((path, at_name))
            path = path if at_name else f"{path}[]"
        elif said in "}]":
            path, _ = outer.pop()
            at_name = False
        elif said == ",":
            at_name = outer[-1][1]
        elif said == ":":
            at_name = False
        elif at_name:
            name, inside = json.loads(said), outer[-1][0]
            path = f"{inside}.{name}" if inside else name
        else:
            yield path, token.start(), token.end() + (said[0] != '"')
