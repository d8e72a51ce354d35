"""Fine-tune or prompt? Five conditions, what they amount to, and what evidence would change that. Pure.

Two or more hold: fine-tune. One: few-shot prompts with structured output first. None: prompt. What needs knowledge gets
retrieval, with fine-tuning beside it where the form or the words are wrong too; what needs open-ended reasoning gets a
larger model with retrieval.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from deploy.cli.advice.log import LogFacts
from schemas.approaches import ApproachTable
from schemas.tasks import TaskKind
from shared.model.prices import money

MOST = 0.5
"""A format is the task's if programs read the answers to more than this share of its requests."""
BROKEN = 0.05
"""A form is wrong where more than this share of the answers is not in it."""
DOMAIN_TOKENS_PER_WORD = 1.9
"""Plain English has 1.2 to 1.5 tokens a word; part numbers, drug names and statutes fall into many pieces."""
PLAIN_TOKENS_PER_WORD = 1.6
"""Up to this the words are plain; between the two a person is asked: other languages have longer words, too."""
FAST_MS = 500.0
ENOUGH_EXAMPLES = 1_000


class Need(StrEnum):
    """What an answer takes that the question does not hold."""

    SKILL = "skill"
    """Nothing: the answer follows from the question and a habit, such as a label, a form or a tone."""
    KNOWLEDGE = "knowledge"
    """Facts from documents, or facts that change."""
    REASONING = "reasoning"
    """Open-ended reasoning over several steps."""


class Condition(StrEnum):
    STRICT_FORMAT = "strict format"
    DOMAIN_WORDS = "domain words"
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
_EVIDENCE = {
    Recommendation.RETRIEVAL: "Answers in the wrong form, or with wrong words, although the document was given: an "
    "adapter, too.",
    Recommendation.RETRIEVAL_AND_FINE_TUNE: "Answers in the right form and words once the document is given: retrieval "
    "alone.",
    Recommendation.LARGER_MODEL: "Wrong answers that are wrong in form or words only, not in what they conclude: look "
    "at the rule.",
}


@dataclass(frozen=True)
class Facts:
    """What was measured. `cost_per_month`: of all answers, at today's volume; `examples`: labelled rows of the newest
    data set. None: that is not known."""

    kind: TaskKind
    log: LogFacts = field(default_factory=LogFacts)
    cost_per_month: float | None = None
    currency: str = "USD"
    examples: int | None = None
    approaches: ApproachTable | None = None


@dataclass(frozen=True)
class Answers:
    """What a person said. None: not asked, or not known.

    `budget_ms`: how long an answer may take. `budget_month`: what a month may cost, in the prices' currency.
    """

    need: Need | None = None
    domain_words: bool | None = None
    budget_ms: float | None = None
    budget_month: float | None = None


@dataclass(frozen=True)
class Reading:
    """One condition: whether it holds (None: unknown, which counts as no), and why."""

    condition: Condition
    holds: bool | None
    detail: str

    @property
    def would_change(self) -> str:
        """The evidence that would turn it round."""
        return _CHANGES[self.condition][bool(self.holds)]


@dataclass(frozen=True)
class Advice:
    """`reasons` and `would_change` are sentences; what the last evaluation found comes first."""

    recommendation: Recommendation
    need: Need | None
    readings: tuple[Reading, ...]
    reasons: tuple[str, ...]
    would_change: tuple[str, ...]


def advise(facts: Facts, answers: Answers) -> Advice:
    """What to do about a task, with the reading of every condition."""
    readings = (
        _strict_format(facts),
        _domain_words(facts, answers),
        _latency(facts, answers),
        _cost(facts, answers),
        Reading(
            Condition.EXAMPLES,
            None if facts.examples is None else facts.examples >= ENOUGH_EXAMPLES,
            "No data set yet." if facts.examples is None else f"There are {facts.examples:,} labelled examples.",
        ),
    )
    need = answers.need
    if need is None and facts.kind is not TaskKind.GENERATION:
        need = Need.SKILL  # Labels, fields and tool calls follow from the question; a text may take more.
    held = {reading.condition for reading in readings if reading.holds}
    recommendation = _recommend(need, held, facts)
    findings = facts.approaches.findings if facts.approaches else ()
    rivals = (f"The last evaluation: {finding}" for finding in findings)  # They overrule no condition.
    reasons = (*rivals, *_why(readings, need))
    return Advice(recommendation, need, readings, reasons, _changes(recommendation, readings, facts))


def _recommend(need: Need | None, held: Collection[Condition], facts: Facts) -> Recommendation:
    if need is Need.REASONING:
        return Recommendation.LARGER_MODEL
    if need is Need.KNOWLEDGE:
        form = Condition.STRICT_FORMAT in held and (facts.log.broken or 0.0) > BROKEN
        wrong = form or Condition.DOMAIN_WORDS in held
        return Recommendation.RETRIEVAL_AND_FINE_TUNE if wrong else Recommendation.RETRIEVAL
    if len(held) >= 2:
        return Recommendation.FINE_TUNE
    return Recommendation.FEW_SHOT if held else Recommendation.PROMPT


def _strict_format(facts: Facts) -> Reading:
    share = 1.0 if facts.kind is not TaskKind.GENERATION else facts.log.machine_read
    if share is None:
        return Reading(Condition.STRICT_FORMAT, None, "The log has no answers.")
    broken = "" if facts.log.broken is None else f" {facts.log.broken:.1%} of the answers are not in the form."
    return Reading(Condition.STRICT_FORMAT, share > MOST, f"A program reads {share:.0%} of the answers.{broken}")


def _domain_words(facts: Facts, answers: Answers) -> Reading:
    tokens, holds = facts.log.tokens_per_word, answers.domain_words
    detail = "Say it with --domain-words or --no-domain-words."
    if tokens is not None:
        detail = f"{tokens:.2f} tokens a word in what users write; plain English has about 1.3."
        if holds is None and not PLAIN_TOKENS_PER_WORD < tokens < DOMAIN_TOKENS_PER_WORD:
            holds = tokens >= DOMAIN_TOKENS_PER_WORD
    return Reading(Condition.DOMAIN_WORDS, holds, detail)


def _latency(facts: Facts, answers: Answers) -> Reading:
    budget = answers.budget_ms
    detail = "Say it with --latency-budget MS." if budget is None else f"An answer may take {budget:,.0f} ms."
    if facts.log.p95_ms is not None:
        detail += f" Today 95 % are answered in {facts.log.p95_ms:,.0f} ms."
    return Reading(Condition.LATENCY, None if budget is None else budget < FAST_MS, detail)


def _cost(facts: Facts, answers: Answers) -> Reading:
    cost, budget = facts.cost_per_month, answers.budget_month
    if cost is None:
        named = ", ".join(f"`{model}`" for model in facts.log.unpriced)
        detail = f"No price, or no counts to reckon by: {named} (RATCHET_PRICES_FILE)." if named else "No answers yet."
        return Reading(Condition.COST, None, detail)
    today = f"Today's answers cost {money(cost, facts.currency)} a month."
    if budget is None:
        return Reading(Condition.COST, None, f"{today} Say what they may cost with --cost-budget AMOUNT.")
    return Reading(Condition.COST, cost > budget, f"{today} They may cost {money(budget, facts.currency)}.")


def _why(readings: Sequence[Reading], need: Need | None) -> list[str]:
    held, unknown = ([r.condition for r in readings if r.holds is holds] for holds in (True, None))
    said = [f"Of the five conditions for fine-tuning {len(held) or 'none'} hold: {', '.join(held) or 'see below'}."]
    if unknown:
        said.append(f"Not known, and counted as no: {', '.join(unknown)}.")
    if need is None:
        said.append("Not known: whether the answers take knowledge or reasoning (--need). Counted as neither.")
    return said


def _changes(recommendation: Recommendation, readings: Sequence[Reading], facts: Facts) -> tuple[str, ...]:
    """The evidence that would change the advice, each with what it would become."""
    held = [reading for reading in readings if reading.holds]
    if recommendation in _EVIDENCE:
        changes = [_EVIDENCE[recommendation]]
    elif recommendation is Recommendation.FINE_TUNE:
        lost = "; ".join(reading.would_change for reading in held)
        changes = [f"{len(held) - 1} of these together would make it few-shot prompts: {lost}."]
    else:
        wanted = "; ".join(reading.would_change for reading in readings if not reading.holds)
        changes = [f"{2 - len(held)} of these would make it fine-tuning: {wanted}."]
    if facts.approaches is None:
        measures = "its evaluation measures the base model and a linear classifier beside an adapter."
        changes.append(f"A cycle (ratchet cycle): {measures}")
    return tuple(changes)
