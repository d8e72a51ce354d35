"""Thirty-four tasks as people describe them, what their logs would say, and what to do about each.

The right advice was written from the description by the rule of `ratchet advise`, not by running it.
"""

from __future__ import annotations

from typing import NamedTuple

from deploy.cli.advice.log import LogFacts
from deploy.cli.advice.rules import Answers, Facts, Need, Recommendation
from schemas.tasks import TaskKind


class Case(NamedTuple):
    description: str
    facts: Facts
    answers: Answers
    right: R


R = Recommendation
LABELS, FIELDS, TEXT = TaskKind.CLASSIFICATION, TaskKind.EXTRACTION, TaskKind.GENERATION
SKILL, KNOWLEDGE, REASONING = Need.SKILL, Need.KNOWLEDGE, Need.REASONING


def facts(
    kind: TaskKind,
    answers: int = 0,
    machine_read: float | None = None,
    broken: float | None = None,
    tokens_per_word: float | None = None,
    p95_ms: float | None = None,
    cost: float | None = None,
    examples: int | None = None,
) -> Facts:
    return Facts(
        kind, LogFacts(answers, machine_read, broken, tokens_per_word, p95_ms), cost_per_month=cost, examples=examples
    )


CASES = (
    Case("Support messages to one of 77 intents, 12,000 corrected, routing must not add 300 ms.",
         facts(LABELS, 2_000, 1.0, 0.0, 1.35, 820.0, 90.0, examples=12_000), Answers(budget_ms=300.0), R.FINE_TUNE),
    Case("Ten topics of mail, 200 labels so far, nobody waits for them, cheap enough.",
         facts(LABELS, 2_000, 1.0, 0.0, 1.3, 400.0, 12.0, examples=200),
         Answers(budget_ms=60_000.0, budget_month=100.0), R.FEW_SHOT),
    Case("A label of sentiment, a new task without log or labels.", facts(LABELS), Answers(), R.FEW_SHOT),
    Case("ICD-10 codes from doctors' notes, full of drug names; 5,000 coded notes.",
         facts(LABELS, 2_000, 1.0, 0.02, 2.3, 900.0, 50.0, examples=5_000), Answers(), R.FINE_TUNE),
    Case("Spam or not for a forum; a million posts a month on a large model cost too much.",
         facts(LABELS, 2_000, 1.0, 0.0, 1.4, 700.0, 9_000.0, examples=300), Answers(budget_month=500.0), R.FINE_TUNE),
    Case("Orders to JSON with ten fields, 3,000 corrected orders.",
         facts(FIELDS, 2_000, 1.0, 0.12, 1.5, 1_500.0, 60.0, examples=3_000), Answers(), R.FINE_TUNE),
    Case("Invoices to JSON, fifty examples, overnight batch, no hurry and no cost worth naming.",
         facts(FIELDS, 400, 1.0, 0.01, 1.5, 2_000.0, 3.0, examples=50),
         Answers(budget_ms=600_000.0, budget_month=50.0), R.FEW_SHOT),
    Case("Fields of machine-part requests full of part numbers; 400 examples.",
         facts(FIELDS, 900, 1.0, 0.08, 2.6, 1_200.0, 20.0, examples=400), Answers(), R.FINE_TUNE),
    Case("Fields of a leaflet while a scanner at a till waits 200 ms; few examples.",
         facts(FIELDS, 900, 1.0, 0.0, 1.4, 900.0, 20.0, examples=120), Answers(budget_ms=200.0), R.FINE_TUNE),
    Case("Friendly replies to reviews; people read and send them; a hundred examples.",
         facts(TEXT, 1_500, 0.0, None, 1.3, 2_500.0, 15.0, examples=100),
         Answers(SKILL, budget_ms=10_000.0, budget_month=200.0), R.PROMPT),
    Case("Replies in the house's tone, 8,000 edited by the team; nothing else is special.",
         facts(TEXT, 2_000, 0.0, None, 1.3, 2_500.0, 40.0, examples=8_000),
         Answers(SKILL, budget_ms=10_000.0, budget_month=200.0), R.FEW_SHOT),
    Case("The same replies, and the bill must halve.",
         facts(TEXT, 2_000, 0.0, None, 1.3, 2_500.0, 400.0, examples=8_000),
         Answers(SKILL, budget_ms=10_000.0, budget_month=200.0), R.FINE_TUNE),
    Case("Completing a sentence as one types: 150 ms, half of the cost, no examples.",
         facts(TEXT, 2_000, 0.0, None, 1.4, 900.0, 800.0, examples=0),
         Answers(SKILL, budget_ms=150.0, budget_month=400.0), R.FINE_TUNE),
    Case("Completing a sentence as one types: 150 ms, the cost does not matter.",
         facts(TEXT, 2_000, 0.0, None, 1.4, 900.0, 800.0, examples=0),
         Answers(SKILL, budget_ms=150.0, budget_month=5_000.0), R.FEW_SHOT),
    Case("Summaries of insurance clauses in legal language; 40 examples, an hour of time.",
         facts(TEXT, 600, 0.0, None, 2.1, 4_000.0, 30.0, examples=40),
         Answers(SKILL, budget_ms=3_600_000.0, budget_month=100.0), R.FEW_SHOT),
    Case("Summaries of insurance clauses; 2,500 written by lawyers.",
         facts(TEXT, 2_000, 0.0, None, 2.1, 4_000.0, 30.0, examples=2_500),
         Answers(SKILL, budget_ms=3_600_000.0, budget_month=100.0), R.FINE_TUNE),
    Case("Release notes from commits as JSON for a web page; 20 examples.",
         facts(TEXT, 300, 0.98, 0.03, 1.7, 3_000.0, 2.0, examples=20),
         Answers(SKILL, domain_words=False, budget_month=50.0, budget_ms=60_000.0), R.FEW_SHOT),
    Case("JSON for a web page where a tenth of the answers is broken, in a chemist's words.",
         facts(TEXT, 800, 0.9, 0.1, 2.2, 1_000.0, 20.0, examples=100), Answers(SKILL), R.FINE_TUNE),
    Case("Poems for birthdays; one wants many different ones.", facts(TEXT, 500, 0.0, None, 1.25, 2_000.0, 5.0,
         examples=0), Answers(SKILL, budget_ms=20_000.0, budget_month=50.0), R.PROMPT),
    Case("Poems for birthdays, nothing logged yet.", facts(TEXT), Answers(SKILL), R.PROMPT),
    Case("What the staff handbook says about leave; plain language, read by people.",
         facts(TEXT, 900, 0.0, None, 1.3, 2_000.0, 30.0, examples=50), Answers(KNOWLEDGE), R.RETRIEVAL),
    Case("Prices and stock of a shop, which change daily; 10,000 rated answers, 300 ms.",
         facts(TEXT, 2_000, 0.0, None, 1.35, 900.0, 300.0, examples=10_000),
         Answers(KNOWLEDGE, budget_ms=300.0, budget_month=100.0), R.RETRIEVAL),
    Case("Doses from a formulary: facts, in clinicians' words.",
         facts(TEXT, 2_000, 0.0, None, 2.4, 2_000.0, 30.0, examples=600), Answers(KNOWLEDGE),
         R.RETRIEVAL_AND_FINE_TUNE),
    Case("Product facts as JSON for an app; every fifth answer is broken JSON.",
         facts(TEXT, 2_000, 0.95, 0.2, 1.4, 2_000.0, 30.0, examples=100), Answers(KNOWLEDGE),
         R.RETRIEVAL_AND_FINE_TUNE),
    Case("Product facts as JSON for an app; the JSON is always right.",
         facts(TEXT, 2_000, 0.95, 0.0, 1.4, 2_000.0, 30.0, examples=100), Answers(KNOWLEDGE), R.RETRIEVAL),
    Case("Which statute applies, as one of 40 labels; lawyers' words; laws change.",
         facts(LABELS, 2_000, 1.0, 0.0, 2.2, 900.0, 30.0, examples=2_000), Answers(KNOWLEDGE),
         R.RETRIEVAL_AND_FINE_TUNE),
    Case("Questions on football results of this week.", facts(TEXT, 200, 0.0, None, 1.4, 1_000.0, 4.0, examples=0),
         Answers(KNOWLEDGE), R.RETRIEVAL),
    Case("Investment memos that weigh a dozen papers.", facts(TEXT, 300, 0.0, None, 1.7, 30_000.0, 900.0, examples=80),
         Answers(REASONING, domain_words=True), R.LARGER_MODEL),
    Case("Root causes of outages from logs, step by step; cost must fall, 4,000 examples.",
         facts(TEXT, 2_000, 0.0, None, 2.5, 9_000.0, 4_000.0, examples=4_000),
         Answers(REASONING, budget_month=1_000.0), R.LARGER_MODEL),
    Case("A tutor who plans a term's lessons.", facts(TEXT), Answers(REASONING), R.LARGER_MODEL),
    Case("Tickets to labels in German, whose long words are counted as many tokens; a person says they are plain.",
         facts(LABELS, 2_000, 1.0, 0.0, 2.0, 600.0, 20.0, examples=300),
         Answers(domain_words=False, budget_ms=5_000.0, budget_month=100.0), R.FEW_SHOT),
    Case("Texts answered by another provider, imported without token counts; words are a trade's own, 1,500 edits.",
         facts(TEXT, 1_200, 0.0, None, None, None, 10.0, examples=1_500), Answers(SKILL, domain_words=True),
         R.FINE_TUNE),
    Case("Words between plain and special, and nobody says which; 1,500 edits.",
         facts(TEXT, 1_200, 0.0, None, 1.75, 900.0, 10.0, examples=1_500),
         Answers(SKILL, budget_ms=9_000.0, budget_month=100.0), R.FEW_SHOT),
    Case("A label that may take exactly half a second.", facts(LABELS, 2_000, 1.0, 0.0, 1.3, 600.0, 20.0,
         examples=900), Answers(budget_ms=500.0, budget_month=100.0), R.FEW_SHOT),
)  # fmt: skip
