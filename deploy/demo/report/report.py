"""The end of a turn: the table in the terminal, `report.json` for programs, `report.html` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from deploy.demo.pairs import Standing
from deploy.demo.report.measure import Measurement
from deploy.demo.report.plots import draw
from deploy.demo.reviewers import Tally
from deploy.demo.state import Result
from deploy.demo.terminal import Show


@dataclass(frozen=True)
class Report:
    """All that a report says."""

    result: Result
    tally: Tally
    history: Sequence[Standing]
    standing: Standing
    seconds: Mapping[str, float]
    addresses: Mapping[str, str]
    canary_wealth: float = 20.0


def as_json(report: Report) -> dict[str, Any]:
    """`report.json`. The first eight keys are a contract; the rest is for whoever wants more."""
    result = report.result
    return {
        "promoted": result.promoted,
        "accuracy_before": _accuracy(result.before),
        "accuracy_after": _accuracy(result.after),
        "labels_spent": report.tally.spent,
        "pairs": report.standing.pairs,
        "seconds": round(result.seconds, 1),
        "steps": [{"name": name, "seconds": round(seconds, 1)} for name, seconds in report.seconds.items()],
        "task": result.task,
        "shuffled_labels": result.shuffled,
        "stopped_by": result.stopped_by or None,
        "evidence": result.evidence or None,
        "latency_ms": {
            when: {"p50": round(found.latency_ms_p50, 1), "p95": round(found.latency_ms_p95, 1)}
            for when, found in (("before", result.before), ("after", result.after))
            if found
        },
        "served_after": result.after.variants if result.after else {},
        "labels_by_purpose": dict(report.tally.by_purpose),
        "wrong_on_purpose": report.tally.wrong,
        "disagreed_on_purpose": report.tally.disagreed,
        "pair_outcomes": {
            "agree": report.standing.agree, "wins": report.standing.wins, "losses": report.standing.losses,
            "ties": report.standing.ties, "pending": report.standing.pending, "wealth": report.standing.wealth,
        },
        "rollouts": [
            {key: event[key] for key in ("stage", "reason", "evidence", "candidate_adapter")}
            for event in result.rollouts
        ],
        "canary_answers": result.canary_answers,
        "failure_modes": [{"name": m["name"], "size": m["size"]} for m in result.modes],
        "rejected": result.rejected,
        "gates": [g for event in (result.dataset, result.evaluation) if event for g in event["gates"]],
        "flags": [
            {"move": s.move, "variant": s.variant, "adapter": s.adapter or None, "seconds": round(s.seconds, 2)}
            for s in result.switched
        ],
        "cycle_id": result.cycle_id,
        "addresses": dict(report.addresses),
    }  # fmt: skip


def write(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`."""
    data = as_json(report)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    page = environment.get_template("report.html.j2").render(
        data=data,
        result=report.result,
        rows=summary(report),
        plots=draw(report.result, report.history, dict(report.seconds), report.canary_wealth),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def summary(report: Report) -> list[tuple[str, str, str]]:
    """The table at the end: what, before, after."""
    before, after, standing = report.result.before, report.result.after, report.standing
    rows = [
        ("accuracy", _share(before), _share(after)),
        ("latency p50", _ms(before, "latency_ms_p50"), _ms(after, "latency_ms_p50")),
        ("latency p95", _ms(before, "latency_ms_p95"), _ms(after, "latency_ms_p95")),
    ]
    purposes = ", ".join(f"{count} {purpose}" for purpose, count in report.tally.by_purpose.items())
    rows += [
        ("labels spent", "", f"{report.tally.spent} ({purposes or 'none'})"),
        ("pairs", "", f"{standing.pairs}: {standing.agree} agree, {standing.wins} wins, {standing.losses} losses"),
        ("wealth", "", f"{standing.wealth:,.1f}"),
    ]
    rows += [(f"flag: {s.move}", "", f"{s.variant} after {s.seconds:.1f} s") for s in report.result.switched]
    rows += [(f"step: {name}", "", f"{seconds:.1f} s") for name, seconds in report.seconds.items()]
    rows.append(("all of it", "", f"{report.result.seconds:.0f} s"))
    rows += [(name, "", address) for name, address in report.addresses.items()]
    return rows


def show(report: Report, display: Show, folder: Path) -> None:
    """The table at the end, in the terminal."""
    result = report.result
    display.table("One turn of the wheel", ("", "before", "after"), summary(report))
    if result.promoted:
        display.say(f"[bold green]Promoted[/] · {folder / 'report.html'} · {folder / 'report.json'}")
    else:
        display.say(f"[bold yellow]Not promoted[/]: stopped by {result.stopped_by}. Evidence: {result.evidence}")
        display.say(f"{folder / 'report.html'} · {folder / 'report.json'}")


def _accuracy(found: Measurement | None) -> dict[str, float | int] | None:
    return found.accuracy.model_dump() if found else None


def _share(found: Measurement | None) -> str:
    if found is None:
        return "–"
    a = found.accuracy
    return f"{a.value:.1%} ({a.low:.1%}–{a.high:.1%}, n = {a.n})"


def _ms(found: Measurement | None, name: str) -> str:
    return f"{getattr(found, name):,.0f} ms" if found else "–"
