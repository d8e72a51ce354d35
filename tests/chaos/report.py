"""The report of a run: tables in the terminal and as Markdown, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checks.checker import CheckResult
from tests.chaos.checks.predictions import PROBLEMS, Finding

_NUMBERS = (
    "accepted", "stored", "compared", "lost", "doubled", "changed", "invented", "forgotten", "forgotten_left",
    "unknown", "unknown_stored", "refused", "refused_stored",
)  # fmt: skip
"""Counts of predictions. `stored`: those accepted and not forgotten, and those of unknown outcome that arrived.
`compared`: rows whose call and answer were compared with the ledger."""
_PASSED = "lost 0, doubled 0, changed 0, leaked 0"
SAME = "same: "
"""Prefix of `rebuilt` for a table with the same hash."""


@dataclass
class Outcome:
    """All results of a run; its fields are JSON keys. `verdict`: why it failed, in sentences; empty if it passed."""

    system: dict[str, Any]
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    faults_by_way: dict[str, int] = field(default_factory=dict)
    faults_lasted: dict[str, dict[str, float]] = field(default_factory=dict)
    faults_missed: dict[str, int] = field(default_factory=dict)
    not_played: dict[str, str] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    checked: CheckResult | None = None
    questions: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    dead_letter_errors: dict[str, int] = field(default_factory=dict)
    leaks: dict[str, int] = field(default_factory=dict)
    looked_at: dict[str, int] = field(default_factory=dict)
    leak_examples: list[str] = field(default_factory=list)
    last_seen: dict[str, Any] = field(default_factory=dict)
    rebuilt: dict[str, Any] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    fell: dict[str, dict[str, int]] = field(default_factory=dict)
    settled_seconds: float = 0.0
    verdict: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.verdict

    def summary(self) -> dict[str, Any]:
        """Return the numbers with which the file begins."""
        head: dict[str, Any] = {"passed": self.passed, "verdict": self.verdict}
        if self.checked:
            counted = asdict(self.checked.predictions)
            head |= {name: counted[name] for name in _NUMBERS}
        dead = sum(count for name, count in self.dead_letters.items() if name != "poison_sent")
        head |= {"dead_lettered": dead, "leaked": sum(self.leaks.values())}
        return head | {"faults": self.faults, "not_played": self.not_played, "rebuilt_the_same": self.rebuilt_the_same}

    @property
    def rebuilt_the_same(self) -> bool | None:
        """True if the lake rebuilt from the topics has exactly the same rows; None: not tried."""
        hashes = [text for table, text in self.rebuilt.items() if table != "seconds"]
        return all(str(text).startswith(SAME) for text in hashes) if hashes else None

    def write(self, path: Path, private: Sequence[Path] = ()) -> None:
        """Write JSON (the summary, then all of it) and, beside it, Markdown, without the names of `private` folders."""
        path.parent.mkdir(parents=True, exist_ok=True)
        as_json = json.dumps({**self.summary(), "details": asdict(self)}, indent=1, default=str) + "\n"
        for target, text in ((path, as_json), (path.with_suffix(".md"), markdown(self))):
            for folder in private:
                text = text.replace(str(folder), f"<{folder.name}>")
            target.write_text(text)


def markdown(outcome: Outcome) -> str:
    """Return the outcome as Markdown, with a section for each part that is not empty."""
    summary = outcome.summary()
    lines = [
        "# Chaos",
        "",
        "**Passed**: lost 0, doubled 0, changed 0, leaked 0." if outcome.passed else "**Failed**:",
        "",
    ]
    lines += [f"- {sentence}" for sentence in outcome.verdict] + [""] * bool(outcome.verdict)
    names = (*_NUMBERS, "dead_lettered", "leaked", "rebuilt_the_same")
    lines += rows({name.replace("_", " "): summary[name] for name in names if name in summary}, "predictions")
    parts: dict[str, Mapping[str, object]] = {
        "Ran": {
            **outcome.system,
            "seconds of load and faults": outcome.seconds,
            "seconds until everything was stored": outcome.settled_seconds,
        },
        "Faults": {
            kind: f"{count:,}" + _durations(outcome.faults_lasted.get(kind)) for kind, count in outcome.faults.items()
        },
        "Faults by way": outcome.faults_by_way,
        "Planned, but without a target": outcome.faults_missed,
        "Not played": outcome.not_played,
        "Clients": {name: value for name, value in outcome.load.items() if not isinstance(value, dict)},
        "Texts with seeded personal data, by place": outcome.load.get("seeded", {}),
        "Answers to clients": outcome.load.get("answers", {}),
        "Dead letters": {**outcome.dead_letters, **outcome.dead_letter_errors},
        "Failure miner": outcome.questions,
        "Texts scanned for seeded personal data": outcome.looked_at,
        "Leaked": outcome.leaks,
        "The lake, deleted and rebuilt from the topics": outcome.rebuilt,
        "Where missing predictions were last found": outcome.last_seen,
        "Restarts": {name: count for name, count in outcome.restarts.items() if count},
        "Crashes, by exit code": outcome.fell,
    }
    if outcome.checked:
        for name, found in asdict(outcome.checked).items():
            parts[f"Ledger compared with the lake: {name}"] = found
    for title, values in parts.items():
        if values:
            lines += ["", f"## {title}", "", *rows(values, "")]
    return "\n".join(lines) + "\n"


def _durations(durations: Mapping[str, float] | None) -> str:
    return f" (median {durations['median_s']} s, longest {durations['longest_s']} s)" if durations else ""


def rows(values: Mapping[str, object], column: str) -> list[str]:
    """Return a Markdown table of two columns."""
    found = [f"| | {column} |", "|---|---|"]
    for name, value in values.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        text = "not tried" if value is None else text
        found.append(f"| {name} | {text} |".replace("\n", " "))
    return found


def show(outcome: Outcome, console: Console) -> None:
    """Print the tables, and the verdict last. Use a console without markup: examples may contain anything."""
    if outcome.checked:
        console.print(_checked_table(outcome.checked))
    faults = {
        kind: f"{count:,}" + _durations(outcome.faults_lasted.get(kind)) for kind, count in outcome.faults.items()
    }
    console.print(_table("faults", faults, "played"))
    if outcome.not_played:
        console.print(_table("not played", outcome.not_played, "why"))
    console.print(_table("failure miner: questions", outcome.questions, "predictions"))
    console.print(_table("dead letters", {**outcome.dead_letters, **outcome.dead_letter_errors}, "records"))
    console.print(_table("scanned for seeded personal data", outcome.looked_at, "texts"))
    if outcome.leaks:
        console.print(_table("LEAKED", outcome.leaks, "texts"))
        for example in outcome.leak_examples:
            console.print(f"  {example}", style="red", soft_wrap=True)
    if outcome.rebuilt:
        console.print(_table("the lake, deleted and rebuilt from the topics", outcome.rebuilt, ""))
    if outcome.last_seen:
        console.print(_table("where missing predictions were last found", outcome.last_seen, ""))
    restarts = ", ".join(f"{name} {count}" for name, count in outcome.restarts.items() if count)
    console.print(f"restarts: {restarts}", soft_wrap=True)
    if outcome.fell:
        console.print(_table("processes that crashed", outcome.fell, "exit code: times"))
    for sentence in outcome.verdict:
        console.print(f"FAILED: {sentence}", style="bold red", soft_wrap=True)
    if outcome.passed:
        console.print(_PASSED, style="bold green")


def _checked_table(checked: CheckResult) -> Table:
    table = Table(title="ledger compared with the lake", title_justify="left")
    table.add_column("")
    columns = {"predictions": checked.predictions, "feedback": checked.feedback, "requests": checked.requests}
    for name in columns:
        table.add_column(name, justify="right")
    for row in Finding.__dataclass_fields__:
        if row not in ("examples", "changed_fields"):
            is_problem = row in PROBLEMS
            values = [getattr(found, row) for found in columns.values()]
            style = "bold red" if is_problem and any(values) else "bold green" if is_problem else ""
            table.add_row(row.replace("_", " "), *(f"{value:,}" for value in values), style=style)
    return table


def _table(title: str, values: Mapping[str, object], column: str) -> Table:
    table = Table("", column, title=title, title_justify="left")
    for name, value in values.items():
        table.add_row(str(name), f"{value:,}" if isinstance(value, int) else str(value))
    return table
