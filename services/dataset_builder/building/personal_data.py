"""The last look for personal data before anything is built: whole conversations, their answers and labels. Pure.

Texts were redacted when they came in, so what is found is mostly a surrogate, which looks like a name or a number on
purpose. The events list theirs (`Call.surrogates`), and those stay. Anything else came past redaction: it is replaced
here and counted. What is clear is not looked at again by later builds. Since all that follows is made of these texts,
neither rows nor what a report quotes has any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from schemas.conversation import Answer, Call, JsonObject, Message
from schemas.labels import CorrectionSubmitted
from services.dataset_builder.building.votes import UserCorrection
from shared.identity import content_hash
from shared.privacy.redaction import DETECTORS, Redacted, Redactor, Rules
from shared.privacy.redaction.json_texts import literals_of_answer, with_replacements

_AT_ONCE = 2_000
"""Corrections that are searched together: what is found in all of a large task would take much memory."""
_ROUNDS = 3
"""A surrogate changes what stands around it, and with it, rarely, what is found there: so look again."""

Replace = Callable[[str], str]
W = TypeVar("W", CorrectionSubmitted, UserCorrection)
S = TypeVar("S", Answer, Message)


@dataclass(frozen=True)
class PersonalData:
    """What was found beside surrogates, by kind, in `changed` corrections, of which `left` still have some.

    `clear`: the ids of those that had none.
    """

    kinds: Mapping[str, int] = field(default_factory=dict)
    changed: int = 0
    left: int = 0
    clear: tuple[str, ...] = ()

    def __add__(self, other: PersonalData) -> PersonalData:
        kinds = dict(Counter(self.kinds) + Counter(other.kinds))
        return PersonalData(kinds, self.changed + other.changed, self.left + other.left, self.clear + other.clear)


def rules_id(rules: Rules, *, forms: bool = True) -> str:
    """Name what is searched for, and where: a correction that is clear by other rules is looked at again.

    `forms`: see `PersonalDataPass`. A task that no longer has a form of its own looks at those of applications.
    """
    return content_hash(str(DETECTORS), repr(rules), str(forms))


class PersonalDataPass:
    """The pass over a task's corrections. `own_texts`: its prompts and labels, which are nobody's.

    `forms`: what applications ask for themselves (`response_format`, `tool_choice`) becomes part of a version.
    """

    def __init__(self, redactor: Redactor, rules: Rules, own_texts: Collection[str], *, forms: bool = True) -> None:
        self._redactor = redactor
        self._rules = rules
        self._own_texts = frozenset(own_texts)
        self._forms = forms

    def clean(self, words: Sequence[W]) -> tuple[list[W], PersonalData]:
        """Return the corrections with personal data replaced, in order, and what was found."""
        if not self._rules.enabled:
            return list(words), PersonalData()
        kept = [word for word in words if _is_kept(word)]
        changed: dict[str, W] = {}
        kinds: Counter[str] = Counter()
        left = 0
        for word in self._with_findings(kept):
            clean, found, remains = self._clean(word)
            if found:
                changed[word.correction_id] = clean
                kinds.update(found)
                left += remains
        now_clear = tuple(word.correction_id for word in kept if word.correction_id not in changed)
        result = [changed.get(word.correction_id, word) for word in words]
        return result, PersonalData(dict(kinds), len(changed), left, now_clear)

    def _with_findings(self, words: Sequence[W]) -> Iterator[W]:
        """Yield those in which anything is found, surrogates included. To search all texts together is faster."""
        for start in range(0, len(words), _AT_ONCE):
            texts_of = [(word, self._texts(word)) for word in words[start : start + _AT_ONCE]]
            distinct = list(dict.fromkeys(text for _, texts in texts_of for text in texts))
            found = self._redactor.find(distinct, self._rules)
            hits = {text for text, spans in zip(distinct, found, strict=True) if spans}
            yield from (word for word, texts in texts_of if not hits.isdisjoint(texts))

    def _clean(self, word: W) -> tuple[W, Counter[str], bool]:
        """Return the correction without what was found, how much of each kind that was, and whether any is left."""
        kinds: Counter[str] = Counter()
        surrogates = {*word.call.surrogates, *word.surrogates}
        for _ in range(_ROUNDS):
            redacted = self._redact(self._texts(word), surrogates)
            if not redacted:
                return word, kinds, False
            for result in redacted.values():
                kinds.update(result.kinds)
                surrogates.update(result.surrogates)
            word = _rewritten(word, self._replace_by(redacted), forms=self._forms)
        return word, kinds, bool(self._redact(self._texts(word), surrogates))

    def _redact(self, texts: Sequence[str], surrogates: Iterable[str]) -> dict[str, Redacted]:
        """Return the texts that have personal data beside these surrogates, with what replaces each."""
        results = self._redactor.redact(texts, self._rules, sorted(surrogates))
        return {text: result for text, result in zip(texts, results, strict=True) if result.count}

    def _texts(self, word: W) -> list[str]:
        """Return the texts that are searched, each once."""
        found: dict[str, None] = {}

        def collect(text: str) -> str:
            found.setdefault(text)
            return text

        _rewritten(word, self._unless_own(collect), forms=self._forms)
        return list(found)

    def _replace_by(self, redacted: Mapping[str, Redacted]) -> Replace:
        return self._unless_own(lambda text: redacted[text].text if text in redacted else text)

    def _unless_own(self, replace_text: Replace) -> Replace:
        return lambda text: text if not text or text in self._own_texts else replace_text(text)


def _is_kept(word: CorrectionSubmitted | UserCorrection) -> bool:
    """Return True for a label, and for a choice between two answers: nothing else becomes part of a version."""
    return word.label is not None or (isinstance(word, CorrectionSubmitted) and word.preference != "cannot_tell")


def _rewritten(word: W, replace_text: Replace, *, forms: bool) -> W:
    """Return the correction with each text replaced. A label that repeats an answer still repeats it."""
    answers = tuple(_rewritten_texts(answer, replace_text) for answer in word.answers)
    said = (word.label or "").strip()
    repeated = (new.plain.strip() for old, new in zip(word.answers, answers, strict=True) if old.plain.strip() == said)
    label = next(repeated, None)
    return word.model_copy(
        update={
            "call": _rewritten_call(word.call, replace_text, forms=forms),
            "answers": answers,
            "label": None if word.label is None else _in_json(said, replace_text) if label is None else label,
        }
    )


def _rewritten_call(call: Call, replace_text: Replace, *, forms: bool) -> Call:
    update: dict[str, Any] = {
        "messages": tuple(_rewritten_texts(message, replace_text) for message in call.messages),
        "tools": tuple(_rewritten_object(tool, replace_text) for tool in call.tools),
    }
    for name in ("tool_choice", "response_format"):
        if forms and isinstance(value := getattr(call, name), dict):  # A name such as "auto" is nobody's text.
            update[name] = _rewritten_object(value, replace_text)
    return call.model_copy(update=update)


def _rewritten_texts(said: S, replace_text: Replace) -> S:
    update: dict[str, Any] = {
        name: replace_text(text) for name in ("name", "reasoning", "refusal") if (text := getattr(said, name, None))
    }
    update["tool_calls"] = tuple(
        call.model_copy(update={"arguments": _in_json(call.arguments, replace_text)}) for call in said.tool_calls
    )
    if isinstance(said, Answer):
        update["text"] = _in_json(said.text, replace_text)
    elif isinstance(said.content, str):
        update["content"] = _in_json(said.content, replace_text)
    elif said.content is not None:
        update["content"] = tuple(
            part if part.text is None else part.model_copy(update={"text": _in_json(part.text, replace_text)})
            for part in said.content
        )
    return said.model_copy(update=update)


def _rewritten_object(value: JsonObject, replace_text: Replace) -> JsonObject:
    text = orjson.dumps(value).decode()
    rewritten = _in_json(text, replace_text)
    return value if rewritten == text else orjson.loads(rewritten)


def _in_json(text: str, replace_text: Replace) -> str:
    """Replace a text, or the strings and long numbers of a text that is JSON: so it stays JSON."""
    found = literals_of_answer(text)
    if found is None:
        return replace_text(text)
    for literal in found:
        redacted = replace_text(literal.text)
        if redacted != literal.text:
            literal.put(redacted[literal.cue_length :])
    return with_replacements(text, found)
