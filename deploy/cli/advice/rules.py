"""Fine-tune or prompt? Five conditions, what they amount to, and what evidence would change that. Pure.

Two or more hold: fine-tune. One: few-shot prompts with structured output first. None: prompt. What needs knowledge gets
retrieval, with fine-tuning beside it where the form or the words are wrong too; what needs open-ended reasoning gets a
larger model with retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

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


class Condition(StrEnum):
    STRICT_FORMAT = "strict_format"
    DOMAIN_WORDS = "domain_words"
    LATENCY = "latency"
    COST = "cost"
    EXAMPLES = "examples"


_CHANGES = {
    Condition.STRICT_FORMAT: ("a program that reads the answers", "answers that only people read"),
    Condition.DOMAIN_WORDS: ("texts full of a trade's own words", "texts whose words the model has whole"),
    Condition.LATENCY: (f"a budget under {FAST_MS:.0f} ms", f"a budget of {FAST_MS:.0f} ms or more"),
    Condition.COST: ("a month that costs more than it may", "a budget above today's cost, or less traffic"),
    Condition.EXAMPLES: (f"{ENOUGH_EXAMPLES:,} labelled examples", "examples that turn out to be wrong"),
}
"""What would make a condition hold, and what would make it hold no longer."""


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
    """One condition: whether it holds (None: unknown, which counts as no), and why."""

    condition: Condition
    holds: bool | None
    source: Source
    detail: str

    @property
    def would_change(self) -> str:
        """The evidence that would turn it round."""
        return _CHANGES[self.condition][bool(self.holds)]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"would_change": self.would_change}


@dataclass(frozen=True)
class Advice:
    """`reasons` and `would_change` are sentences; of rivals the first reason speaks where they decide something."""

    recommendation: Recommendation
    need: Need | None
    readings: tuple[Reading, ...]
    reasons: tuple[str, ...]
    would_change: tuple[str, ...]


def advise(facts: Facts, answers: Answers) -> Advice:
    """What to do about a task, with the reading of every condition."""
    readings = tuple(read(facts, answers) for read in (_strict_format, _domain_words, _latency, _cost, _examples))
    need = answers.need
    if need is None and facts.kind is not TaskKind.GENERATION:
        need = Need.SKILL  # Labels, fields and tool calls follow from the question; a text may take more.
    held = [reading.condition for reading in readings if reading.holds]
    recommendation = _recommend(need, held, facts)
    findings = facts.approaches.findings if facts.approaches else ()
    rivals = (f"The last evaluation: {finding}" for finding in findings)  # They overrule no condition.
    reasons = (*rivals, _why(recommendation, held), *_unknown(readings, need))
    return Advice(recommendation, need, readings, reasons, _changes(recommendation, readings, facts))


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


def _read(condition: Condition, said: bool | None, measured: bool | None, detail: str, option: str) -> Reading:
    """A condition's reading: a person's word goes before what is measured, and what is neither is unknown."""
    if said is not None:
        return Reading(condition, said, Source.ANSWERED, detail or f"You said {'so' if said else 'that it does not'}.")
    if measured is not None:
        return Reading(condition, measured, Source.MEASURED, detail)
    return Reading(condition, None, Source.UNKNOWN, f"Not known: say it with {option}. {detail}".strip())


def _strict_format(facts: Facts, answers: Answers) -> Reading:
    broken = "" if facts.broken is None else f" {facts.broken:.1%} of the answers are not in the form."
    if facts.kind is not TaskKind.GENERATION:
        return Reading(Condition.STRICT_FORMAT, True, Source.MEASURED, f"A program reads every answer.{broken}")
    share, detail = facts.machine_read, ""
    if share is not None:
        detail = f"{share:.0%} of the requests ask for JSON or a tool's call.{broken}"
    measured = None if share is None else share > MOST
    return _read(Condition.STRICT_FORMAT, answers.strict_format, measured, detail, "--strict-format")


def _domain_words(facts: Facts, answers: Answers) -> Reading:
    """What is between plain and special tells neither: other languages have longer words, too."""
    tokens, detail, measured = facts.tokens_per_word, "", None
    if tokens is not None:
        detail = f"{tokens:.2f} tokens a word in what users write; plain English has about 1.3."
        if not PLAIN_TOKENS_PER_WORD < tokens < DOMAIN_TOKENS_PER_WORD:
            measured = tokens >= DOMAIN_TOKENS_PER_WORD
    return _read(Condition.DOMAIN_WORDS, answers.domain_words, measured, detail, "--domain-words or --no-domain-words")


def _latency(facts: Facts, answers: Answers) -> Reading:
    budget = answers.budget_ms
    detail = "" if budget is None else f"An answer may take {budget:,.0f} ms. "
    detail += "" if facts.p95_ms is None else f"Today 95 % are answered in {facts.p95_ms:,.0f} ms."
    said = None if budget is None else budget < FAST_MS
    return _read(Condition.LATENCY, said, None, detail.strip(), "--latency-budget MS")


def _cost(facts: Facts, answers: Answers) -> Reading:
    cost, budget, measured = facts.cost_per_month, answers.budget_month, None
    details = list(facts.unpriced)
    if cost is not None:
        details.append(f"Today's answers cost {money(cost, facts.currency)} a month.")
        if budget is not None:
            details.append(f"They may cost {money(budget, facts.currency)}.")
            measured = cost > budget
    option = "--cost-must-fall" if cost is None else "--cost-budget AMOUNT"
    return _read(Condition.COST, answers.cost_must_fall, measured, " ".join(details), option)


def _examples(facts: Facts, answers: Answers) -> Reading:
    said, measured = (None if n is None else n >= ENOUGH_EXAMPLES for n in (answers.examples, facts.examples))
    count = facts.examples if answers.examples is None else answers.examples
    detail = "" if count is None else f"There are {count:,} labelled examples."
    return _read(Condition.EXAMPLES, said, measured, detail, "--examples N")


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


_EVIDENCE = {
    Recommendation.RETRIEVAL: "Answers in the wrong form, or with wrong words, although the document was given: an "
    "adapter, too.",
    Recommendation.RETRIEVAL_AND_FINE_TUNE: "Answers in the right form and words once the document is given: retrieval "
    "alone.",
    Recommendation.LARGER_MODEL: "Wrong answers that are wrong in form or words only, not in what they conclude: look "
    "at the rule.",
}


def _changes(recommendation: Recommendation, readings: Sequence[Reading], facts: Facts) -> tuple[str, ...]:
    """The evidence that would change the advice, each with what it would become."""
    held = [reading for reading in readings if reading.holds]
    is_prompt = recommendation in (Recommendation.PROMPT, Recommendation.FEW_SHOT)
    if is_prompt:
        wanted = "; ".join(reading.would_change for reading in readings if not reading.holds)
        changes = [f"{2 - len(held)} of these would make it fine-tuning: {wanted}."]
    elif recommendation is Recommendation.FINE_TUNE:
        lost = "; ".join(reading.would_change for reading in held)
        changes = [f"{len(held) - 1} of these together would make it few-shot prompts: {lost}."]
    else:
        changes = [_EVIDENCE[recommendation]]
    if facts.approaches is None:
        measures = "its evaluation measures the base model and a linear classifier beside an adapter."
        changes.append(f"A cycle (ratchet cycle): {measures}")
    elif is_prompt:
        changes.append("An adapter that measurably beats the base model on the held-out rows at a cost you can bear.")
    return tuple(changes)
