"""The command `ratchet advise`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Annotated, Any

import typer

from deploy.cli.advice import rules
from deploy.cli.advice.facts import Answers, Facts, Need
from deploy.cli.advice.rules import SENTENCES, Advice, Condition, Reading, Source, needed
from deploy.cli.output import build_table, print_table, say, warn
from deploy.demo.report.approaches import COLUMNS, approach_rows, basis
from schemas.base import utc_now

_MARKS = {True: "holds", False: "does not", None: "not known"}
_STYLES = {True: "green", False: None, None: "yellow"}
_NEEDS = {
    Need.SKILL: "nothing else: it follows from the question",
    Need.KNOWLEDGE: "facts from documents, or facts that change",
    Need.REASONING: "open-ended reasoning over several steps",
}


def advise(
    task: Annotated[str, typer.Argument(help="The task's name.", show_default=False)],
    need: Annotated[Need | None, typer.Option(help="What an answer takes beside the question.")] = None,
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
    ask_person: Annotated[
        bool | None, typer.Option("--ask/--no-ask", help="Ask what cannot be measured; default: in a terminal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and ask nothing.")] = False,
) -> None:
    """Fine-tune or prompt? What the task's own log says, and what would change the answer.

    Five conditions speak for fine-tuning: a strict output format, a domain's own words, answers in under 500 ms, a cost
    that must fall, and thousands of labelled examples (1,000 count). Two or more: fine-tune. One: few-shot prompts with
    structured output first. None: prompt. Whatever they say, answers that take knowledge need retrieval, with
    fine-tuning beside it where the form or the words are wrong too; open-ended reasoning needs a larger model with
    retrieval.

    Format, words, latency, cost and examples are measured in the lake and the newest data set; a cost by the prices of
    RATCHET_PRICES_FILE. Budgets, and what an answer takes, only you know: say them with options, or be asked. The table
    of the last evaluation shows what prompts and linear classifiers reach on the task's questions (docs/approaches.md).

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
    evidence = gather(spec, settings, utc_now())
    answers = Answers(need, strict_format, domain_words, latency_budget, cost_budget, cost_must_fall, examples)
    if not as_json and (sys.stdin.isatty() if ask_person is None else ask_person):
        answers = ask_what_is_unknown(evidence.facts, answers)
    given = rules.advise(evidence.facts, answers)
    if as_json:
        typer.echo(json.dumps(_as_json(task, evidence.facts, given, evidence.missing), ensure_ascii=False, indent=2))
        return
    for missing in evidence.missing:
        warn(f"Not looked at: {missing}", "yellow")
    _show(evidence.facts, given)


def ask_what_is_unknown(facts: Facts, answers: Answers) -> Answers:
    """Ask a person for each thing that is neither measured nor said; an empty answer leaves it unknown."""
    if needed(facts, answers) is None:
        for kind, meaning in _NEEDS.items():
            say(f"  {kind.value}: {meaning}")
        answers = replace(answers, need=_prompt("What does an answer take", Need))
    for reading in rules.advise(facts, answers).readings:
        if reading.holds is None:
            answers = _ask_condition(reading, facts, answers)
    return answers


def _ask_condition(reading: Reading, facts: Facts, answers: Answers) -> Answers:
    say(reading.detail)
    match reading.condition:
        case Condition.STRICT_FORMAT:
            return replace(answers, strict_format=_prompt("Does a program read the answers, yes or no", _yes))
        case Condition.DOMAIN_WORDS:
            return replace(answers, domain_words=_prompt("Are the texts full of a trade's own words, yes or no", _yes))
        case Condition.LATENCY:
            return replace(answers, budget_ms=_prompt("What may an answer take, in ms", _amount))
        case Condition.COST if facts.cost_per_month is not None:
            return replace(answers, budget_month=_prompt(f"What may a month cost, in {facts.currency}", _amount))
        case Condition.COST:
            return replace(answers, cost_must_fall=_prompt("Must the cost fall, yes or no", _yes))
        case Condition.EXAMPLES:
            count = _prompt("How many labelled examples do you have", _amount)
            return replace(answers, examples=None if count is None else int(count))


def _prompt(question: str, kind: Any) -> Any:
    """Ask until the answer can be read, or is empty."""
    while True:
        text = typer.prompt(
            f"{question}? Enter: not known".replace("??", "?"), default="", show_default=False, err=True
        )
        if not text.strip():
            return None
        try:
            return kind(text.strip())
        except ValueError as error:
            warn(f"That cannot be read: {error}")


def _yes(text: str) -> bool:
    if text.casefold() in ("y", "yes"):
        return True
    if text.casefold() in ("n", "no"):
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def _amount(text: str) -> float:
    amount = float(text.replace(",", ""))
    if not 0.0 <= amount < float("inf"):
        raise ValueError(f"{text} is no amount")
    return amount


def _show(facts: Facts, given: Advice) -> None:
    say(SENTENCES[given.recommendation], "bold")
    for reason in given.reasons:
        say(f"  {reason}")
    table = build_table("condition", "", "by", "what", title="Conditions for fine-tuning", title_justify="left")
    for reading in given.readings:
        name = reading.condition.replace("_", " ")
        by = "–" if reading.source is Source.UNKNOWN else reading.source.value
        table.add_row(name, _MARKS[reading.holds], by, reading.detail, style=_STYLES[reading.holds])
    print_table(table)
    if facts.approaches is not None:
        measured = build_table(*COLUMNS, title="What the last evaluation measured", title_justify="left")
        for row in approach_rows(facts.approaches):
            measured.add_row(*row)
        print_table(measured)
        say(basis(facts.approaches))
    say("What would change this:")
    for change in given.would_change:
        say(f"  {change}")


def _as_json(task: str, facts: Facts, given: Advice, missing: list[str]) -> dict[str, Any]:
    return {
        "task": task,
        "recommendation": given.recommendation.value,
        "need": given.need.value if given.need else None,
        "conditions": [
            {
                "condition": reading.condition.value,
                "holds": reading.holds,
                "source": reading.source.value,
                "detail": reading.detail,
                "would_change": reading.would_change,
            }
            for reading in given.readings
        ],
        "reasons": given.reasons,
        "would_change": given.would_change,
        "answers_read": facts.answers,
        "approaches": facts.approaches.model_dump(mode="json") if facts.approaches else None,
        "not_looked_at": missing,
    }
