"""`python -m tests.e2e.loop_report FOLDER`: the report of a `make loop`, checked as a person would read it.

Prints its figures; exits with 1 where the loop did not promote, or the report does not show what it promises.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MIN_GAIN = 0.3
"""Share of held-out questions that the promoted adapter answers right beyond the base model; 0.7 is usual."""
MISLEADING = {
    "typos", "casing", "distractors", "long_input", "injection", "empty_input", "out_of_distribution",
}  # fmt: skip
APPROACHES = {"candidate", "production", "base", "linear"}


def problems(report: dict[str, Any], page: str) -> list[str]:
    """What the report lacks or says wrong, in words; empty for a sound one."""
    before, after = report["accuracy_before"], report["accuracy_after"]
    if not report["promoted"] or not before or not after:
        return [f"nothing was promoted: stopped by {report['stopped_by']}, {report['evidence']}"]
    measured = {row["kind"]: row for row in (report["approaches"] or {"approaches": []})["approaches"]}
    attacked = {result["kind"]: result for result in (report["adversarial"] or {"results": []})["results"]}
    checks = {
        f"the accuracy rose from {before['value']:.3f} only to {after['value']:.3f}":
            after["value"] - before["value"] >= MIN_GAIN,
        "the lower bound after is not above the upper bound before": after["low"] > before["high"],
        "no label was spent": report["labels_spent"] > 0,
        "no pair was compared": report["pairs"] > 0,
        "the promoted adapter does not answer": "primary" in report["served_after"],
        "report.html has no plots": page.count("<svg") >= 3,
        "report.html does not name the task": report["task"] in page,
        "the data set was not inspected, or did not pass":
            bool(report["inspection"]) and all(check["result"] != "failed" for check in report["inspection"]["checks"]),
        f"the table of approaches lacks {sorted(APPROACHES - measured.keys())}, or an interval": not APPROACHES
            - measured.keys() and all(row["accuracy"]["n"] and row["latency_ms_p95"] for row in measured.values()),
        f"the adversarial report lacks {sorted(MISLEADING - attacked.keys())}": not MISLEADING - attacked.keys()
            and all(result["candidate"]["confident_wrong"] for result in attacked.values()),
        "the costs a month are missing": all(row["cost_per_month"] is not None for row in measured.values()),
        "report.html does not show the approaches, or not first what they say":
            'data-name="approach"' in page and -1 < page.find('class="text"') < page.find('class="verdict'),
        "report.html does not link the inspection of the data set": 'href="dataset.html"' in page,
    }  # fmt: skip
    return [problem for problem, fine in checks.items() if not fine]


def main(folder: Path) -> int:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = problems(report, (folder / "report.html").read_text(encoding="utf-8"))
    for problem in found:
        print(f"loop report: {problem}")
    if not found:
        before, after = report["accuracy_before"]["value"], report["accuracy_after"]["value"]
        print(f"loop report: promoted, {before:.1%} to {after:.1%} right, in {report['seconds']:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
