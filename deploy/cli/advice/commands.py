"""The command `ratchet advise`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from deploy.cli.advice import rules
from deploy.cli.advice.rules import SENTENCES, Answers, Need
from deploy.cli.output import say, show_blocks
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
    domain_words: Annotated[
        bool | None, typer.Option("--domain-words/--no-domain-words", help="Texts are full of a trade's own words.")
    ] = None,
    latency_budget: Annotated[
        float | None, typer.Option("--latency-budget", min=1.0, help="What an answer may take, in ms.")
    ] = None,
    cost_budget: Annotated[
        float | None, typer.Option("--cost-budget", min=0.0, help="What a month may cost, in the prices' currency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fine-tune or prompt? What the task's own log says, and what would change the answer.

    Five conditions speak for fine-tuning: a strict output format, a domain's own words, answers in under 500 ms, a cost
    that must fall, and thousands of labelled examples (1,000 count). Two or more: fine-tune. One: few-shot prompts with
    structured output first. None: prompt. Whatever they say, answers that take knowledge need retrieval, with
    fine-tuning beside it where the form or the words are wrong too; open-ended reasoning needs a larger model with
    retrieval.

    Format, words, cost and examples are measured in the lake and the newest data set; a cost by the prices of
    RATCHET_PRICES_FILE. Budgets, and what an answer takes, only you know: say them with options. The table of the last
    evaluation shows what prompts and a linear classifier reach on the task's questions (docs/approaches.md).

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
    facts = gather(spec, settings, utc_now())
    given = rules.advise(facts, Answers(need, domain_words, latency_budget, cost_budget))
    if as_json:
        shown = asdict(given) | {"task": task, "answers_read": facts.log.answers}
        return typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))
    say(SENTENCES[given.recommendation], "bold")
    for reason in given.reasons:
        say(f"  {reason}")
    rows = [
        (reading.condition, Tag(_MARKS[reading.holds], _TONES[reading.holds]), reading.detail)
        for reading in given.readings
    ]
    conditions_table = Table(("condition", "", "what"), rows, "Conditions for fine-tuning")
    show_blocks(conditions_table, *approach_blocks(facts.approaches))
    say("What would change this:")
    for change in given.would_change:
        say(f"  {change}")
