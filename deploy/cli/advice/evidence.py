"""Measures what is known of a task: in the lake, in its newest data set, and in its last evaluation."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from deploy.cli.advice.log import COLUMNS, log_facts
from deploy.cli.advice.rules import Facts
from deploy.cli.dataset.versions import UnknownVersion, open_store, versions_of
from deploy.cli.evaluation.reports import UnknownEvaluation, evaluations_of
from schemas.approaches import ApproachKind, ApproachTable
from schemas.lake import PREDICTIONS
from schemas.tasks import TaskSpec
from shared.errors import DependencyUnavailable
from shared.model.prices import read_prices
from shared.settings import Settings
from shared.storage.volume import WINDOW_DAYS, task_volume

MAX_ROWS = 2_000
"""Logged answers that are read."""


def gather(spec: TaskSpec, settings: Settings, now: datetime) -> Facts:
    """Measure what the log, the data set and the last evaluation say.

    Raises ConfigurationError for bad prices, DependencyUnavailable if the lake or the store does not answer.
    """
    prices, approaches = read_prices(settings.prices_file), last_approaches(spec.name)
    log = log_facts(read_rows(settings.lake_uri, spec.name, now), spec, prices, _measured(approaches))
    return Facts(
        kind=spec.kind,
        log=log,
        cost_per_month=None
        if log.answer_cost is None
        else log.answer_cost * task_volume(settings.lake_uri, spec.name, now).per_month,
        currency=prices.currency,
        examples=labelled_examples(spec.name),
        approaches=approaches,
    )


def read_rows(lake: str, task: str, now: datetime) -> list[dict[str, Any]]:
    """Return up to `MAX_ROWS` of the task's last answers; none where there is no lake.

    Raises DependencyUnavailable if the lake does not answer.
    """
    import pyarrow.compute as pc
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    uri = f"{lake.rstrip('/')}/{PREDICTIONS}"
    wanted = (pc.field("task") == task) & (pc.field("date") >= (now - timedelta(days=WINDOW_DAYS)).date())
    try:
        dataset = DeltaTable(uri).to_pyarrow_dataset()
        rows: list[dict[str, Any]] = dataset.scanner(columns=list(COLUMNS), filter=wanted).head(MAX_ROWS).to_pylist()
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
    """The table of approaches of the task's last evaluation; None: there is none yet."""
    try:
        return evaluations_of(open_store(), task)[-1].approaches
    except UnknownEvaluation:
        return None


def _measured(approaches: ApproachTable | None) -> float | None:
    """Return what an answer of production cost in the last evaluation; None: that is not known."""
    if approaches is not None and approaches.answers_per_month:
        for row in approaches.approaches:
            if row.kind is ApproachKind.PRODUCTION and row.cost_per_month is not None:
                return row.cost_per_month / approaches.answers_per_month
    return None
