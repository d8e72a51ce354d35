"""The command `ratchet advise`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from deploy.cli.advice import rules
from deploy.cli.advice.facts import Answers, Facts, Need
from deploy.cli.advice.rules import SENTENCES, Advice, Source
from deploy.cli.output import say, show_blocks, warn
from schemas.base import utc_now
from shared.report.blocks import Table, Tag, Tone
from shared.report.evaluation import approach_blocks

_MARKS = {True: "holds", False: "does not", None: "not known"}
_TONES: dict[bool | None, Tone] = {True: "good", False: "", None: "open"}


def advise(
    task: Annotated[str, typer.Argument(help="The task's name.", show_default=False)],
    need: Annotated[
        Need | None,
        typer.Option(help="What an answer takes beside the question: nothing, facts from documents, or reasoning."),
    ] = None,
    strict_format: Annotated[
        bool | None, typer.Option("--strict-format/--no-strict-format", help="A program reads the answers.")
    ] = None,
    domain_words: Annotated[
        bool | None, typer.Option("--domain-words/--no-domain-words", help="Texts are full of a trade's own words.")
    ] = None,
    latency_budget: Annotated[
        float | None, typer.Option("--latency-budget", min=1.0, help="What an answer may take, in ms.")
    ] = None,
    cost_budget: Annotated[
        float | None, typer.Option("--cost-budget", min=0.0, help="What a month may cost, in the prices' currency.")
    ] = None,
    cost_must_fall: Annotated[
        bool | None, typer.Option("--cost-must-fall/--no-cost-must-fall", help="Where there is no log to count in.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option("--examples", min=0, help="Labelled examples that you have elsewhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fine-tune or prompt? What the task's own log says, and what would change the answer.

    Five conditions speak for fine-tuning: a strict output format, a domain's own words, answers in under 500 ms, a cost
    that must fall, and thousands of labelled examples (1,000 count). Two or more: fine-tune. One: few-shot prompts with
    structured output first. None: prompt. Whatever they say, answers that take knowledge need retrieval, with
    fine-tuning beside it where the form or the words are wrong too; open-ended reasoning needs a larger model with
    retrieval.

    Format, words, latency, cost and examples are measured in the lake and the newest data set; a cost by the prices of
    RATCHET_PRICES_FILE. Budgets, and what an answer takes, only you know: say them with options, which go before what
    is measured. The table of the last evaluation shows what prompts and linear classifiers reach on the task's
    questions (docs/approaches.md).

    [bold]Examples[/bold]

      ratchet advise support-desk

      ratchet advise support-desk --latency-budget 300 --cost-budget 200

      ratchet advise handbook --need knowledge --json
    """
    from deploy.cli.advice.evidence import gather
    from services.scheduler.golden.changes import find_task
    from services.scheduler.settings import SchedulerSettings

    settings = SchedulerSettings.load()
    spec = find_task(settings.tasks_folder, task).spec
    facts, missing = gather(spec, settings, utc_now())
    answers = Answers(need, strict_format, domain_words, latency_budget, cost_budget, cost_must_fall, examples)
    given = rules.advise(facts, answers)
    if as_json:
        shown = {
            "task": task,
            "recommendation": given.recommendation,
            "need": given.need,
            "conditions": [reading.as_json() for reading in given.readings],
            "reasons": given.reasons,
            "would_change": given.would_change,
            "answers_read": facts.answers,
            "approaches": facts.approaches.model_dump(mode="json") if facts.approaches else None,
            "not_looked_at": missing,
        }
        return typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))
    for reason in missing:
        warn(f"Not looked at: {reason}", "yellow")
    _show(facts, given)


def _show(facts: Facts, given: Advice) -> None:
    say(SENTENCES[given.recommendation], "bold")
    for reason in given.reasons:
        say(f"  {reason}")
    rows = [
        (
            reading.condition.replace("_", " "),
            Tag(_MARKS[reading.holds], _TONES[reading.holds]),
            None if reading.source is Source.UNKNOWN else reading.source.value,
            reading.detail,
        )
        for reading in given.readings
    ]
    conditions = Table(("condition", "", "by", "what"), rows, "Conditions for fine-tuning")
    show_blocks(conditions, *approach_blocks(facts.approaches))
    say("What would change this:")
    for change in given.would_change:
        say(f"  {change}")
