"""The report of a run of rollouts: lines in the terminal, Markdown, and JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.chaos.report import rows
from tests.chaos.rollouts.checks.flags import PROBES
from tests.chaos.rollouts.checks.history import History
from tests.chaos.rollouts.checks.moves import ENDED, by_rollout
from tests.chaos.rollouts.tasks import Kind


@dataclass
class Outcome:
    """All results of a run; its fields are JSON keys. `verdict`: why it failed, in sentences; empty if it passed."""

    system: dict[str, Any]
    seconds: float = 0.0
    ended: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    ends: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tickets: dict[str, int] = field(default_factory=dict)
    unproved: dict[str, float] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    crashes: dict[str, dict[str, int]] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.verdict

    def write(self, path: Path, private: Sequence[Path] = ()) -> None:
        """Write JSON, and Markdown beside it, without the names of `private` folders."""
        path.parent.mkdir(parents=True, exist_ok=True)
        as_json = json.dumps({"passed": self.passed, **asdict(self)}, indent=1, default=str) + "\n"
        for target, text in ((path, as_json), (path.with_suffix(".md"), markdown(self))):
            for folder in private:
                text = text.replace(str(folder), f"<{folder.name}>")
            target.write_text(text)


def summarise(outcome: Outcome, history: History, kinds: Mapping[str, Kind]) -> None:
    """Count how the rollouts ended, what was bet, and for how long a restarted engine lacked what a flag named."""
    rollouts = by_rollout(history.moves)
    ends: dict[str, Counter[str]] = {}
    for moves in rollouts.values():
        kind = kinds[moves[-1].candidate].value
        ends.setdefault(kind, Counter())[moves[-1].stage] += 1
        if moves[-1].stage in ENDED:
            outcome.ended += 1
            outcome.reasons[_short(moves[-1].reason)] = outcome.reasons.get(_short(moves[-1].reason), 0) + 1
    outcome.ends = {kind: dict(found) for kind, found in sorted(ends.items())}
    outcome.counts = {
        "rollouts": len(rollouts), "moves": len(history.moves), "pairs": len(history.pairs),
        "tickets": sum(bool(entry.ticket_id) for entry in history.entries), "answers": len(history.answers),
        "requests": len(history.requests), "samples of flags and engines": len(history.samples),
    }  # fmt: skip
    tickets = Counter(entry.rollout_id for entry in history.entries if entry.asked)
    if tickets:
        outcome.tickets = {"fewest in a rollout": min(tickets.values()), "most": max(tickets.values())}
    lacking = [
        sample.at - engine.started for sample in history.samples for flags in sample.flags.values()
        for adapter in (flags.primary, flags.canary) if adapter
        for engine in sample.engines.values() if engine.probes.get(adapter, 0) < PROBES
    ]  # fmt: skip
    outcome.unproved = {"looks": len(lacking), "longest after an engine's start, s": round(max(lacking, default=0), 1)}


def _short(reason: str) -> str:
    """Return the reason without its numbers."""
    return re.sub(r"[\d.]+", "…", re.split(r" after | \(|: ", reason)[0])[:80]


def markdown(outcome: Outcome) -> str:
    """Return the outcome as Markdown."""
    lines = ["# Rollouts under kills", ""]
    if outcome.passed:
        lines.append("**Passed**: every rollout ended as its evidence says, and no flag named what was not proved.")
    else:
        lines += ["**Failed**:", "", *(f"- {sentence}" for sentence in outcome.verdict)]
    ends = {kind: ", ".join(f"{stage} {n}" for stage, n in found.items()) for kind, found in outcome.ends.items()}
    parts: dict[str, Mapping[str, object]] = {
        "Ran": {**outcome.system, "seconds": outcome.seconds},
        "Kills": outcome.kills,
        "How candidates ended": ends,
        "Why": outcome.reasons,
        "Counted": outcome.counts,
        "Tickets": outcome.tickets,
        "Flagged and not proved, while a restarted engine loaded": outcome.unproved,
        "Answers to clients": outcome.traffic,
        "Restarts": outcome.restarts,
        "Crashes, by exit code": outcome.crashes,
    }
    for title, values in parts.items():
        if values:
            lines += ["", f"## {title}", "", *rows(values, "")]
    return "\n".join(lines) + "\n"


def show(outcome: Outcome, console: Console) -> None:
    """Print the report, and the verdict last. Use a console without markup."""
    console.print(markdown(outcome), soft_wrap=True)
    for sentence in outcome.verdict:
        console.print(f"FAILED: {sentence}", style="bold red", soft_wrap=True)
