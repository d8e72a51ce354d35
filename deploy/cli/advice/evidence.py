"""Measures what is known of a task: in the lake, in its newest data set, and in its last evaluation on the console."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from deploy.cli.advice.cost import cost_of_month
from deploy.cli.advice.facts import Facts
from deploy.cli.advice.log import COLUMNS, LogFacts, log_facts
from deploy.cli.dataset.versions import UnknownVersion, open_store, versions_of
from deploy.cli.output import ask
from schemas.approaches import ApproachKind, ApproachTable
from schemas.lake import PREDICTIONS
from schemas.tasks import TaskSpec
from services.console.settings import ConsoleSettings
from shared.errors import DependencyUnavailable, RatchetError
from shared.model.prices import read_prices
from shared.settings import Settings
from shared.storage.volume import WINDOW_DAYS, task_volume

MAX_ROWS = 2_000
"""Logged answers that are read: the days are read backwards until there are so many."""
_CYCLES = 20


def gather(spec: TaskSpec, settings: Settings, now: datetime) -> tuple[Facts, list[str]]:
    """Measure what the log, the data set and the last evaluation say, and name what could not be looked at.

    Raises ConfigurationError for bad prices.
    """
    prices, missing = read_prices(settings.prices_file), list[str]()
    log, per_month = LogFacts(answers=0), 0.0
    try:
        log = log_facts(read_rows(settings.lake_uri, spec.name, now), spec)
        per_month = task_volume(settings.lake_uri, spec.name, now).per_month
    except DependencyUnavailable as error:
        missing.append(f"the log: {error.reason}")
    approaches = None
    try:
        approaches = last_approaches(spec.name)
    except RatchetError as error:
        missing.append(f"the last evaluation: {error.reason}")
    cost, unpriced = cost_of_month(log.uses, per_month, spec.base_model, prices, _measured(approaches))
    facts = Facts(
        kind=spec.kind,
        answers=log.answers,
        machine_read=log.machine_read,
        broken=log.broken,
        tokens_per_word=log.tokens_per_word,
        p95_ms=log.p95_ms,
        cost_per_month=cost,
        unpriced=unpriced,
        currency=prices.currency,
        examples=labelled_examples(spec.name),
        approaches=approaches,
    )
    return facts, missing


def read_rows(lake: str, task: str, now: datetime) -> list[dict[str, Any]]:
    """Return up to `MAX_ROWS` of the task's answers, of the last days that have any; none where there is no lake.

    Raises DependencyUnavailable if the lake does not answer.
    """
    import pyarrow.compute as pc
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    uri = f"{lake.rstrip('/')}/{PREDICTIONS}"
    rows: list[dict[str, Any]] = []
    try:
        dataset = DeltaTable(uri).to_pyarrow_dataset()
        for day in range(WINDOW_DAYS + 1):
            of_day = (pc.field("task") == task) & (pc.field("date") == (now - timedelta(days=day)).date())
            part = dataset.scanner(columns=list(COLUMNS), filter=of_day).head(MAX_ROWS - len(rows))
            rows += part.to_pylist()
            if len(rows) >= MAX_ROWS:
                break
    except TableNotFoundError:
        return []
    except (DeltaError, OSError) as error:
        raise DependencyUnavailable(f"the lake at {uri} does not answer: {error}") from error
    return rows


def labelled_examples(task: str) -> int | None:
    """Return the rows of the newest version of the task's data set; None: there is none yet."""
    try:
        passed = [version.report for version in versions_of(open_store(), task) if version.report.passed]
    except UnknownVersion:
        return None
    return passed[-1].train_examples + passed[-1].eval_examples if passed else None


def last_approaches(task: str) -> ApproachTable | None:
    """The newest table of approaches that the console has of the task; None: no evaluation has one."""
    settings = ConsoleSettings.load()
    address = ("console", settings.console_host, settings.console_port, "GET")
    for cycle in ask(*address, "/api/cycles", params={"task": task})["cycles"][:_CYCLES]:
        for step in ask(*address, f"/api/cycles/{cycle['cycle_id']}")["steps"]:
            if step["topic"] == "adapters.evaluated.v1" and step["event"].get("approaches") is not None:
                return ApproachTable.model_validate(step["event"]["approaches"])
    return None


def _measured(approaches: ApproachTable | None) -> float | None:
    """Return what an answer of production cost in the last evaluation; None: that is not known."""
    if approaches is not None and approaches.answers_per_month:
        for row in approaches.approaches:
            if row.kind is ApproachKind.PRODUCTION and row.cost_per_month is not None:
                return row.cost_per_month / approaches.answers_per_month
    return None
