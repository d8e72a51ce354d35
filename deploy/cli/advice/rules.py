"""Fine-tune or prompt? Five conditions, what they amount to, and what evidence would change that. Pure.

Two or more hold: fine-tune. One: few-shot prompts with structured output first. None: prompt. What needs knowledge gets
retrieval, with fine-tuning beside it where the form or the words are wrong too; what needs open-ended reasoning gets a
larger model with retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from deploy.cli.advice.facts import Answers, Facts, Need
from schemas.tasks import TaskKind
from shared.model.prices import money

MOST = 0.5
"""A format is the task's if programs read the answers to more than this share of its requests."""
BROKEN = 0.05
"""A form is wrong where more than this share of the answers is not in it."""
DOMAIN_TOKENS_PER_WORD = 1.9
"""Plain English has 1.2 to 1.5 tokens a word; part numbers, drug names and statutes fall into many pieces."""
PLAIN_TOKENS_PER_WORD = 1.6
"""Up to this the words are plain; between the two a person is asked."""
FAST_MS = 500.0
ENOUGH_EXAMPLES = 1_000


_FORMS = {TaskKind.CLASSIFICATION: "one of a list of labels", TaskKind.MULTI_LABEL: "labels of a list"}
_TO_ONE = {2: "One of these", 3: "Two of these together", 4: "Three of these together", 5: "Four of these together"}
"""Conditions that hold → how many of them have to go until one is left."""


class Condition(StrEnum):
    STRICT_FORMAT = "strict_format"
    DOMAIN_WORDS = "domain_words"
    LATENCY = "latency"
    COST = "cost"
    EXAMPLES = "examples"


class Recommendation(StrEnum):
    FINE_TUNE = "fine_tune"
    FEW_SHOT = "few_shot"
    PROMPT = "prompt"
    RETRIEVAL = "retrieval"
    RETRIEVAL_AND_FINE_TUNE = "retrieval_and_fine_tune"
    LARGER_MODEL = "larger_model"


SENTENCES = {
    Recommendation.FINE_TUNE: "Fine-tune: train an adapter.",
    Recommendation.FEW_SHOT: "Few-shot prompts with structured output first; fine-tune if they do not suffice.",
    Recommendation.PROMPT: "Prompt: nothing here asks for fine-tuning.",
    Recommendation.RETRIEVAL: "Retrieval: give the model the documents. An adapter learns habits, not facts.",
    Recommendation.RETRIEVAL_AND_FINE_TUNE: "Retrieval for the facts, and an adapter beside it for the form and words.",
    Recommendation.LARGER_MODEL: "A larger model with retrieval: an adapter teaches no reasoning.",
}


class Source(StrEnum):
    MEASURED = "measured"
    ANSWERED = "answered"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reading:
    """One condition: whether it holds (None: unknown, which counts as no), why, and what would change that."""

    condition: Condition
    holds: bool | None
    source: Source
    detail: str
    would_change: str


@dataclass(frozen=True)
class Advice:
    """`reasons` and `would_change` are sentences; of rivals the first reason speaks where they decide something."""

    recommendation: Recommendation
    need: Need | None
    readings: tuple[Reading, ...]
    reasons: tuple[str, ...]
    would_change: tuple[str, ...]


def advise(facts: Facts, answers: Answers) -> Advice:
    """Return what to do about a task, with the reading of every condition."""
    readings = tuple(read(facts, answers) for read in (_strict_format, _domain_words, _latency, _cost, _examples))
    need = needed(facts, answers)
    held = [reading.condition for reading in readings if reading.holds]
    recommendation = _recommend(need, held, facts)
    reasons = (*_rivals(facts), _why(recommendation, held), *_unknown(readings, need))
    return Advice(recommendation, need, readings, reasons, _changes(recommendation, readings, facts))


def needed(facts: Facts, answers: Answers) -> Need | None:
    """Return what the answers take: labels, fields and tool calls follow from the question, text may take more."""
    if answers.need is not None:
        return answers.need
    return None if facts.kind is TaskKind.GENERATION else Need.SKILL


def _recommend(need: Need | None, held: Sequence[Condition], facts: Facts) -> Recommendation:
    if need is Need.REASONING:
        return Recommendation.LARGER_MODEL
    if need is Need.KNOWLEDGE:
        form = Condition.STRICT_FORMAT in held and facts.broken is not None and facts.broken > BROKEN
        wrong = form or Condition.DOMAIN_WORDS in held
        return Recommendation.RETRIEVAL_AND_FINE_TUNE if wrong else Recommendation.RETRIEVAL
    if len(held) >= 2:
        return Recommendation.FINE_TUNE
    return Recommendation.FEW_SHOT if held else Recommendation.PROMPT


def _strict_format(facts: Facts, answers: Answers) -> Reading:
    change = "a program that reads the answers" if not _is_strict(facts, answers) else "answers that only people read"
    if facts.kind is not TaskKind.GENERATION:
        form = _FORMS.get(facts.kind, "an object that a program reads")
        return Reading(
            Condition.STRICT_FORMAT, True, Source.MEASURED, f"Every answer is {form}.{_broken(facts)}", change
        )
    if facts.machine_read is not None and facts.machine_read > MOST:
        detail = f"{facts.machine_read:.0%} of the requests ask for JSON or a tool's call.{_broken(facts)}"
        return Reading(Condition.STRICT_FORMAT, True, Source.MEASURED, detail, change)
    if answers.strict_format is not None:
        detail = "You said that " + ("a program reads it." if answers.strict_format else "people read it.")
        return Reading(Condition.STRICT_FORMAT, answers.strict_format, Source.ANSWERED, detail, change)
    if facts.machine_read is None:
        return _unread(Condition.STRICT_FORMAT, "--strict-format", change)
    detail = f"{facts.machine_read:.0%} of the requests ask for JSON or a tool's call."
    return Reading(Condition.STRICT_FORMAT, False, Source.MEASURED, detail, change)


def _is_strict(facts: Facts, answers: Answers) -> bool:
    return facts.kind is not TaskKind.GENERATION or bool(answers.strict_format) or (facts.machine_read or 0.0) > MOST


def _broken(facts: Facts) -> str:
    return "" if facts.broken is None else f" {facts.broken:.1%} of the answers are not in the form."


def _domain_words(facts: Facts, answers: Answers) -> Reading:
    tokens = facts.tokens_per_word
    measured = "" if tokens is None else f"{tokens:.2f} tokens a word in what users write; plain English has about 1.3."
    change = "texts whose words the model has whole" if answers.domain_words else "texts full of a trade's own words"
    if answers.domain_words is not None:  # A person knows better than a count: other languages have longer words, too.
        detail = "You said that the words are " + ("the domain's own." if answers.domain_words else "plain.")
        detail += f" Measured: {measured}" if measured else ""
        return Reading(Condition.DOMAIN_WORDS, answers.domain_words, Source.ANSWERED, detail, change)
    if tokens is None:
        return _unread(Condition.DOMAIN_WORDS, "--domain-words", change)
    if PLAIN_TOKENS_PER_WORD < tokens < DOMAIN_TOKENS_PER_WORD:
        detail = f"{measured} That tells neither: say it with --domain-words or --no-domain-words."
        return Reading(Condition.DOMAIN_WORDS, None, Source.UNKNOWN, detail, change)
    holds = tokens >= DOMAIN_TOKENS_PER_WORD
    change = "texts whose words the model has whole" if holds else change
    return Reading(Condition.DOMAIN_WORDS, holds, Source.MEASURED, measured, change)


def _latency(facts: Facts, answers: Answers) -> Reading:
    now = "" if facts.p95_ms is None else f" Today 95 % are answered in {facts.p95_ms:,.0f} ms."
    if answers.budget_ms is None:
        return _unread(Condition.LATENCY, "--latency-budget MS", f"a budget under {FAST_MS:.0f} ms", now)
    holds = answers.budget_ms < FAST_MS
    change = f"a budget of {FAST_MS:.0f} ms or more" if holds else f"a budget under {FAST_MS:.0f} ms"
    return Reading(
        Condition.LATENCY, holds, Source.ANSWERED, f"An answer may take {answers.budget_ms:,.0f} ms.{now}", change
    )


def _cost(facts: Facts, answers: Answers) -> Reading:
    cost, budget = facts.cost_per_month, answers.budget_month
    now = "" if cost is None else f"Today's answers cost {money(cost, facts.currency)} a month."
    change = "a month that costs more than it may"
    if cost is not None and budget is not None:
        holds = cost > budget
        detail = f"{now} They may cost {money(budget, facts.currency)}."
        change = "a budget above today's cost, or less traffic" if holds else change
        return Reading(Condition.COST, holds, Source.MEASURED, detail, change)
    if cost is None and facts.priced_per_month is not None:
        part = f"{money(facts.priced_per_month, facts.currency)} a month"
        now = f"The answers that have a price cost {part}, and some {facts.unpriced_answers:,.0f} a month have none."
        if budget is not None and facts.priced_per_month > budget:  # All of them cost more still.
            detail = " ".join((now, f"All of them may cost {money(budget, facts.currency)}.", *facts.unpriced))
            return Reading(Condition.COST, True, Source.MEASURED, detail, "a budget above that, or less traffic")
    if answers.cost_must_fall is not None:
        detail = f"You said that it {'must' if answers.cost_must_fall else 'need not'} fall. {now}".strip()
        return Reading(Condition.COST, answers.cost_must_fall, Source.ANSWERED, detail, change)
    option = "--cost-budget AMOUNT" if cost is not None else "--cost-must-fall"
    return _unread(Condition.COST, option, change, "".join(f" {said}" for said in (now, *facts.unpriced) if said))


def _examples(facts: Facts, answers: Answers) -> Reading:
    count, source = facts.examples, Source.MEASURED
    if answers.examples is not None and answers.examples > (count or 0):
        count, source = answers.examples, Source.ANSWERED
    if count is None:
        return _unread(Condition.EXAMPLES, "--examples N", f"{ENOUGH_EXAMPLES:,} labelled examples")
    holds = count >= ENOUGH_EXAMPLES
    change = "examples that turn out to be wrong" if holds else f"{ENOUGH_EXAMPLES - count:,} more labelled examples"
    return Reading(Condition.EXAMPLES, holds, source, f"There are {count:,} labelled examples.", change)


def _unread(condition: Condition, option: str, change: str, now: str = "") -> Reading:
    return Reading(condition, None, Source.UNKNOWN, f"Not known: say it with {option}.{now}", change)


def _why(recommendation: Recommendation, held: Sequence[Condition]) -> str:
    if recommendation is Recommendation.LARGER_MODEL:
        return "The answers take open-ended reasoning."
    if recommendation is Recommendation.RETRIEVAL:
        return "The answers take knowledge, and neither the form nor the words are wrong."
    if recommendation is Recommendation.RETRIEVAL_AND_FINE_TUNE:
        return "The answers take knowledge, and the form or the words are wrong, too."
    if not held:
        return "None of the five conditions for fine-tuning holds."
    names = ", ".join(condition.replace("_", " ") for condition in held)
    return f"{len(held)} of the five conditions for fine-tuning {'holds' if len(held) == 1 else 'hold'}: {names}."


def _unknown(readings: Sequence[Reading], need: Need | None) -> list[str]:
    unknown = [reading.condition.replace("_", " ") for reading in readings if reading.holds is None]
    said = [f"Not known, and counted as no: {', '.join(unknown)}."] if unknown else []
    if need is None:
        said.append("Not known: whether the answers take knowledge or reasoning (--need). Counted as neither.")
    return said


def _changes(recommendation: Recommendation, readings: Sequence[Reading], facts: Facts) -> tuple[str, ...]:
    """Return the evidence that would change the advice, each with what it would become."""
    held = sum(bool(reading.holds) for reading in readings)
    said: list[str] = []
    if recommendation in (Recommendation.PROMPT, Recommendation.FEW_SHOT):
        wanted = [reading.would_change for reading in readings if not reading.holds]
        count = 2 - held
        said.append(f"{'One' if count == 1 else 'Two'} of these would make it fine-tuning: {'; '.join(wanted)}.")
    elif recommendation is Recommendation.FINE_TUNE:
        lost = [reading.would_change for reading in readings if reading.holds]
        said.append(f"{_TO_ONE[held]} would make it few-shot prompts: {'; '.join(lost)}.")
    elif recommendation is Recommendation.RETRIEVAL:
        said.append("Answers in the wrong form, or with wrong words, although the document was given: an adapter, too.")
    elif recommendation is Recommendation.RETRIEVAL_AND_FINE_TUNE:
        said.append("Answers in the right form and words once the document is given: retrieval alone.")
    elif recommendation is Recommendation.LARGER_MODEL:
        said.append("Wrong answers that are wrong in form or words only, not in what they conclude: look at the rule.")
    if facts.approaches is None:
        said.append(
            "A cycle (ratchet cycle): its evaluation measures prompts and linear classifiers beside an adapter."
        )
    elif recommendation in (Recommendation.PROMPT, Recommendation.FEW_SHOT):
        said.append("An adapter that measurably beats few-shot prompts on the held-out rows at a cost you can bear.")
    return tuple(said)


def _rivals(facts: Facts) -> list[str]:
    """Return what the last evaluation says for or against an adapter; it overrules no condition."""
    if facts.approaches is None:
        return []
    return [f"The last evaluation: {finding}" for finding in facts.approaches.findings]
