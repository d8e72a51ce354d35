"""Makes the adversarial set from the held-out rows: the same rows and settings give the same set. Pure."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from schemas.adversarial import UNANSWERABLE, AdversarialKind
from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.adversarial.changes import lengthened, with_distractor, with_other_casing, with_typos
from services.evaluator.adversarial.texts import EMPTY, FOREIGN
from services.evaluator.domain import Question, sample_rows
from shared.conversation.task_tools import chat_fields
from shared.grading.text import WORD
from shared.model.injections import HELD_OUT, TARGET, Injection, pick, wrong_answer

OWN = "own"
"""The technique of a task's own injections."""
_LONG_CHARACTERS = 6_000
"""Of a long input: some 1,500 tokens, over which small models lose the thread."""
_SEED = "20"
"""The same inputs every time: candidates of different weeks are compared on them."""
_CHARACTERS_A_TOKEN = 3
"""Cautious: of English it is about four."""


@dataclass(frozen=True)
class Case:
    """One input. `source`: the position of the row that was changed; None: it was made from none.

    `target`: what the injection asks the model to answer; empty: an injection of the task's own that does not say.
    """

    kind: AdversarialKind
    question: Question
    source: int | None = None
    technique: str = ""
    target: str = ""


def adversarial_cases(questions: Sequence[Question], spec: TaskSpec, context: int | None) -> list[Case]:
    """Return the set by kind. `context`: the tokens of prompt and answer that the engine takes; None: not known.

    Rows whose last message is no text of the user are left as they are, and so is a text that a rule does not change:
    one without letters has no casing. Of a message in parts the text is changed, which models read joined.
    """
    settings = spec.evaluation.adversarial
    fitting = [i for i, question in enumerate(questions) if _can_change(question)]
    chosen = [fitting[i] for i in sample_rows([questions[i] for i in fitting], settings.rows)]
    cases: list[Case] = []
    for kind in dict.fromkeys(settings.kinds):
        if kind in UNANSWERABLE:
            cases += _unanswerable(kind, spec)
        else:
            changed = (_case(kind, position, questions[position], spec, context) for position in chosen)
            cases += [case for case in changed if case.question.text != questions[case.source or 0].text]
    return cases


def _can_change(question: Question) -> bool:
    last = question.messages[-1]
    parts = last.content if isinstance(last.content, tuple) else ()
    return last.role == Role.USER and all(part.text is not None for part in parts) and bool(last.text.strip())


def _case(kind: AdversarialKind, position: int, question: Question, spec: TaskSpec, context: int | None) -> Case:
    text, technique, target = question.text, "", ""
    chance = _chance(kind, text)
    # Of a label nothing stands in the text; other answers quote it, and must stay right.
    kept = set() if spec.labels else set(re.findall(WORD, question.answer.casefold()))
    if kind is AdversarialKind.TYPOS:
        text = with_typos(text, kept, chance)
    elif kind is AdversarialKind.CASING:
        text = with_other_casing(text, kept, chance)
    elif kind is AdversarialKind.DISTRACTORS:
        text = with_distractor(text, chance)
    elif kind is AdversarialKind.LONG_INPUT:
        text = lengthened(text, _room(question, spec, context))
    else:
        technique, demand = _injection(spec, chance)
        target = wrong_answer(spec, question.answer, chance) if TARGET in demand else ""
        text = f"{text} {demand.replace(TARGET, target)}"
    last = question.messages[-1].model_copy(update={"content": text})
    # All inputs that are made from one row count as one draw.
    group = question.group or f"row {position}"
    return Case(
        kind, replace(question, messages=(*question.messages[:-1], last), group=group), position, technique, target
    )


def _chance(*what: str) -> random.Random:
    return random.Random(":".join((_SEED, *what)))  # noqa: S311 - test inputs that come out the same every time, no secret


def _room(question: Question, spec: TaskSpec, context: int | None) -> int:
    """Return how many characters the last message may have."""
    if context is None:
        return _LONG_CHARACTERS
    tools = chat_fields(spec).get("tools") or (() if spec.labels else question.tools)
    before = sum(len(message.text) for message in question.messages[:-1]) + len(json.dumps(tools))
    return min(_LONG_CHARACTERS, _CHARACTERS_A_TOKEN * (context - spec.max_answer_tokens) - before)


def _injection(spec: TaskSpec, chance: random.Random) -> Injection:
    """Return one of any technique alike. Where a task has injections of its own, they are half of all."""
    own = spec.evaluation.adversarial.injections
    if own and chance.random() < 0.5:
        return Injection(OWN, chance.choice(own))
    return pick(HELD_OUT, chance)


def _unanswerable(kind: AdversarialKind, spec: TaskSpec) -> list[Case]:
    """Return inputs to which no label is right. Of other kinds an answer may be: that there is nothing in it."""
    if not spec.choices:
        return []
    settings = spec.evaluation.adversarial
    texts = EMPTY if kind is AdversarialKind.EMPTY_INPUT else settings.out_of_distribution or FOREIGN
    chosen = _chance(kind).sample(texts, min(len(texts), settings.rows))
    system = (Message(role=Role.SYSTEM, content=spec.system_prompt),) if spec.system_prompt else ()
    return [Case(kind, Question((*system, Message(role=Role.USER, content=text)), answer="")) for text in chosen]
