"""A cycle's events are rendered as a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.catalog import topic_named
from services.console.history import stored_event
from services.console.pages.cycle import outcome_tag, sections, timeline
from services.console.pages.layout import Markup, duration, link, table

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EXAMPLES = Path(__file__).parents[3] / "schemas" / "examples"
ORDER = ("cycles.started", "failures.clustered", "datasets.built", "adapters.trained", "adapters.evaluated")


def stored(topic: str, minute: int, example: str | None = None, **changes: Any) -> dict[str, Any]:
    folder = EXAMPLES / f"{topic}.v1"
    path = folder / example if example else sorted(folder.iterdir())[0]
    event = topic_named(f"{topic}.v1").event.model_validate({**json.loads(path.read_text()), **changes})
    return {"topic": f"{topic}.v1", "occurred_at": NOON + timedelta(minutes=minute), "event": stored_event(event)}


def of_kind(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """The same of a task of this kind: what is stored of its spec needs no tools and no schema."""
    return {**record, "event": {**record["event"], "spec": {**record["event"]["spec"], "kind": kind}}}


def states(steps: list[dict[str, Any]]) -> list[str]:
    return [state.state for state in timeline(steps, NOON + timedelta(hours=1))]


@pytest.mark.parametrize("done", range(5))
def test_the_first_step_without_a_result_is_running(done: int) -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER[: done + 1])]
    assert states(steps) == ["done"] * done + ["go"] + [""] * (4 - done)


def test_a_promoted_cycle_is_done() -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER)]
    steps += [
        stored("rollouts.changed", 7, "promoted.json"),
        stored("cycles.finished", 8, outcome="promoted"),
    ]
    assert states(steps) == ["done"] * 5


def test_a_cycle_whose_candidate_was_rejected_is_bad_at_the_rollout() -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER)]
    steps += [
        stored("rollouts.changed", 7, stage="rejected"),
        stored("cycles.finished", 8, outcome="rejected"),
    ]
    assert states(steps) == ["done"] * 4 + ["bad"]


def test_a_failed_step_is_bad_and_nothing_runs_after_it() -> None:
    steps = [stored("cycles.started", 0), stored("steps.failed", 1, service="trainer", step="dataset")]
    steps.insert(1, stored("failures.clustered", 0))
    assert states(steps) == ["done", "bad", "", "", ""]


def test_a_late_step_is_still_running() -> None:
    steps = [stored("cycles.started", 0), stored("steps.failed", 30, service="scheduler", step="failures")]
    (first, *_) = timeline(steps, NOON + timedelta(hours=1))
    assert (first.state, first.note) == ("go", "late, 1 h 0 min")


@pytest.mark.parametrize(("minute", "note"), [(29, "late, 1 h 0 min"), (31, "1 h 0 min")])
def test_a_step_that_progressed_after_it_was_reported_late_is_late_no_more(minute: int, note: str) -> None:
    steps = [stored("cycles.started", 0), stored("steps.failed", 30, service="scheduler", step="failures")]
    progress = {"step": "failures", "occurred_at": (NOON + timedelta(minutes=minute)).isoformat()}
    (first, *_) = timeline(steps, NOON + timedelta(hours=1), progress)
    assert first.note == note


def test_a_rollout_that_moved_on_after_it_was_reported_late_is_late_no_more() -> None:
    steps = [stored(topic, minute) for minute, topic in enumerate(ORDER)]
    steps.append(stored("rollouts.changed", 5, stage="shadow"))
    steps.append(stored("steps.failed", 30, service="scheduler", step="rollout"))
    now = NOON + timedelta(hours=1)
    assert timeline(steps, now)[-1].note.startswith("late, ")
    steps.append(stored("rollouts.changed", 40, stage="canary"))
    assert not timeline(steps, now)[-1].note.startswith("late, ")


def test_a_cycle_with_too_little_new_is_skipped_in_words_and_is_no_problem() -> None:
    skipped = stored("steps.failed", 1, "too-little-new.json")
    steps = [stored("cycles.started", 0), stored("failures.clustered", 0), skipped]
    steps.append(stored("cycles.finished", 2, outcome="skipped", adapter=None, reason=skipped["event"]["reason"]))
    dataset = timeline(steps, NOON)[1]
    assert (states(steps), dataset.note) == (["done", "", "", "", ""], "skipped")
    cards = dict(sections(steps))
    assert "Problems" not in cards
    assert "4 examples are new or changed" in "".join(cards["Nothing to learn from yet"])
    assert "bad" not in outcome_tag("skipped") and "bad" in outcome_tag("failed")


def test_a_dataset_and_a_stopped_build_link_to_their_inspection() -> None:
    built = stored("datasets.built", 1, gates=[
        {"name": "agreement", "passed": True, "measured": None, "required": ">= 0.9", "detail": "31 overlaps"}
    ])  # fmt: skip
    stopped = stored("steps.failed", 1, "too-few.json", cycle_id="desk-2")
    cards = {name: "".join(parts) for name, parts in sections([built, stopped])}
    assert f"/cycles/{built['event']['cycle_id']}/report" in cards["Dataset"]
    assert "/cycles/desk-2/report" in cards["Problems"]
    assert ">unknown<" in cards["Dataset"] and ">passed<" not in cards["Dataset"]
    late = {**stopped, "event": {**stopped["event"], "report": None}}
    assert "report" not in "".join(dict(sections([late]))["Problems"])


def test_an_evaluation_says_the_verdict_first_and_links_to_its_page() -> None:
    found = stored("adapters.evaluated", 0, "passed.json", headline="Passed <every> gate.")
    (first, *_) = dict(sections([found]))["Evaluation"]
    assert first.startswith("<p><b>Passed &lt;every&gt; gate.</b></p>")
    assert f"/cycles/{found['event']['cycle_id']}/evaluation" in first
    for missing in ({"report": None}, {"cycle_id": None}):
        older = stored("adapters.evaluated", 0, "passed.json", headline="", **missing)
        assert "/evaluation" not in "".join(dict(sections([older]))["Evaluation"])


def test_every_example_message_has_a_card() -> None:
    topics = ("cycles.finished", "steps.failed", *ORDER[1:], "rollouts.changed")
    cards = dict(sections([stored(topic, 0) for topic in topics]))
    assert list(cards) == [
        "Outcome", "Problems", "Failure modes", "Dataset", "Training", "Evaluation", "Rollout",
    ]  # fmt: skip


def test_text_from_events_is_escaped() -> None:
    poison = "<img src=x onerror=alert(1)>"
    modes = [
        {"mode_id": "m", "name": poison, "words": [poison], "exemplars": [poison], "size": 1, "share": 1.0,
         "mean_confidence": None, "is_new": True}
    ]  # fmt: skip
    cards = dict(sections([stored("failures.clustered", 0, modes=modes), stored("steps.failed", 0, reason=poison)]))
    assert poison not in "".join(part for parts in cards.values() for part in parts)
    assert poison not in table((poison,), [(poison,)]) + link(poison, poison)
    assert table(("x",), [(Markup("<b>bold</b>"),)]).count("<b>bold</b>") == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (-2, "0 s"), (61, "1 min 1 s"), (7_260, "2 h 1 min")])
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_evaluation_shows_the_adapter_beside_cheap_rivals_and_says_first_what_that_means() -> None:
    shown = dict(sections([stored("adapters.evaluated", 0, "passed.json")]))["Evaluation"]
    assert "A linear classifier on TF-IDF does as well as the adapter" in shown[0]
    page = " ".join(shown)
    told = (
        "base, retrieved few-shot", "embeddings, linear", "88.3\u00a0% (77.8\u00a0% to 94.2\u00a0%)", "0.011 USD",
        "320 ms", "600,000 answers a month, by prices of 2026-11-26",
    )  # fmt: skip
    for said in told:
        assert said in page, said
    without = {key: value for key, value in stored("adapters.evaluated", 0, "passed.json")["event"].items()}
    without.pop("approaches")
    record = {"topic": "adapters.evaluated.v1", "occurred_at": NOON, "event": without}
    assert "Approach" not in " ".join(dict(sections([record]))["Evaluation"])


def test_an_evaluation_shows_what_inputs_that_mislead_do_to_both_arms() -> None:
    page = " ".join(dict(sections([stored("adapters.evaluated", 0, "passed.json")]))["Evaluation"])
    told = (
        "The candidate&#x27;s score falls most by prompt injections: by 19.0 points.", "92.0% → 81.0% (65.0%–90.0%)",
        "0.91 (0.85–0.97)", "Injections by technique", "few-shot", "Sure: surer than half",
    )  # fmt: skip
    for said in told:
        assert said in page, said
    without = {**stored("adapters.evaluated", 0, "passed.json")["event"], "adversarial": None}
    record = {"topic": "adapters.evaluated.v1", "occurred_at": NOON, "event": without}
    assert "mislead" not in " ".join(dict(sections([record]))["Evaluation"])


def test_an_evaluation_of_texts_shows_each_metric_and_the_judge_with_its_certification() -> None:
    found = stored("adapters.evaluated", 0, "generation.json")
    page = " ".join(dict(sections([found]))["Evaluation"])
    told = (
        "ROUGE-L ●", "41.0% (37.0%–45.0%)", "cosine of embeddings", "+6.0 (+2.0 to +10.0)", "Mean score",
        "The judge gpt-4.1 prefers the candidate on 31 rows, production on 9, neither on 20. It is certified.",
        "84.3%, required 80.0%", "90.0% (83.0%–94.0%)", "120, required 50",
    )  # fmt: skip
    for said in told:
        assert said in page, said
    assert "Macro F1" not in page and "Golden set: 14 gained, 0 lost, of 20." in page
    unjudged = stored("adapters.evaluated", 0, "generation.json", golden_total=0, golden_gained=0)
    assert "No golden row was judged." in " ".join(dict(sections([unjudged]))["Evaluation"])
    refused = {**found["event"]["judge"], "certified": False, "model": "<gpt>"}
    page = " ".join(dict(sections([stored("adapters.evaluated", 0, "generation.json", judge=refused)]))["Evaluation"])
    assert "The judge &lt;gpt&gt; prefers" in page and "It is not certified: it is shown and stops nothing." in page
    for plain in (
        stored("adapters.evaluated", 0, "generation.json", texts=[], judge=None),
        stored("adapters.evaluated", 0, "passed.json"),
    ):
        page = " ".join(dict(sections([plain]))["Evaluation"])
        assert "text metric" not in page and "The judge" not in page


def test_an_evaluation_of_several_labels_shows_whole_sets_and_micro_f1() -> None:
    found = stored("adapters.evaluated", 0, "passed.json")["event"]
    share = {"value": 0.7531, "low": 0.7, "high": 0.8, "n": 60}
    micro = {"kind": "micro", "precision": share, "recall": share, "f1": share}
    arms = {
        arm: {**found[arm], "score": share, "valid": share, "averages": [micro]} for arm in ("candidate", "production")
    }
    record = of_kind("multi_label", stored("adapters.evaluated", 0, "passed.json", **arms))
    page = " ".join(dict(sections([record]))["Evaluation"])
    for said in (
        "Subset accuracy: the whole set is right",
        "Mean score",
        "Answers that are a list of labels",
        "Macro F1",
    ):
        assert said in page
    assert "Micro F1" in page and "75.3" in page
    one = " ".join(dict(sections([stored("adapters.evaluated", 0, "passed.json")]))["Evaluation"])
    assert "Subset accuracy" not in one and "Micro F1" not in one and "Accuracy" in one


def test_an_evaluation_of_calls_shows_right_functions_and_calls_that_can_be_run() -> None:
    found = stored("adapters.evaluated", 0, "passed.json")["event"]
    share = {"value": 0.9, "low": 0.8, "high": 0.96, "n": 60}
    both = ("candidate", "production")
    arms = {arm: {**found[arm], "function_accuracy": share, "valid": share, "score": share} for arm in both}
    pages = {}
    for kind in ("tools", "extraction"):
        record = of_kind(kind, stored("adapters.evaluated", 0, "passed.json", **arms))
        pages[kind] = " ".join(dict(sections([record]))["Evaluation"])
    assert "Right functions, whatever the arguments" in pages["tools"] and "Calls that can be run" in pages["tools"]
    assert "Answers by the schema" in pages["extraction"] and "Macro F1" in pages["extraction"]
    labels = {arm: {**found[arm], "score": share} for arm in both}
    plain = " ".join(dict(sections([stored("adapters.evaluated", 0, "passed.json", **labels)]))["Evaluation"])
    assert (
        "Mean score" in pages["tools"]
        and "Right functions" not in plain
        and "by the schema" not in plain
        and "Mean score" not in plain
    )


def test_an_evaluation_says_what_it_shows_estimates_all_traffic_and_names_what_is_unknown() -> None:
    shown = dict(sections([stored("adapters.evaluated", 0, "inconclusive.json")]))["Evaluation"]
    page = " ".join(shown)
    told = (
        "The candidate is better: 71.0\u00a0%", "Accuracy on all traffic, estimated", "parts not worse", "unknown",
        "3 more labelled rows would decide",
    )  # fmt: skip
    for said in told:
        assert said in page, said
