"""The checker detects every kind of problem, and a run without its faults fails: what cannot fail proves nothing."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

from schemas.conversation import Call
from shared.conversation import never_trained
from tests.chaos.checks import leaks
from tests.chaos.checks.checker import check, expected_questions
from tests.chaos.checks.lake import ids_by_key, rows_hash
from tests.chaos.checks.planted import FAULTS, Row, drops, sets_message
from tests.chaos.checks.predictions import Finding, PredictionComparison
from tests.chaos.checks.scenario import TASK, Scenario, row_of, table_of
from tests.chaos.faults import schedule, too_few
from tests.chaos.load.answers import Special
from tests.chaos.load.conversations import Conversations
from tests.chaos.load.direct import event_messages
from tests.chaos.load.people import PEOPLE, PLACES, Texts, personal_texts, plain_texts, seeded_values


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return Scenario(tmp_path)


def predictions(scenario: Scenario) -> Finding:
    return check(scenario.ledger.path, scenario.lake, [TASK]).predictions


def compared(scenario: Scenario, rows: list[Row]) -> Finding:
    """The finding about a table of these rows, without a lake."""
    with contextlib.closing(sqlite3.connect(scenario.ledger.path)) as db:
        return PredictionComparison(db).compare(table_of(rows))


def test_a_lake_with_every_accepted_row_once_and_unchanged_is_clean(scenario: Scenario) -> None:
    scenario.store_right()
    scenario.store_feedback(["p1", "p2"])
    found = check(scenario.ledger.path, scenario.lake, [TASK])
    assert found.predictions.examples == {}
    assert (found.predictions.accepted, found.predictions.stored, found.predictions.forgotten) == (10, 9, 1)
    assert (found.predictions.compared, found.feedback.is_clean) == (9, True)


def test_an_accepted_row_that_is_not_there_is_lost(scenario: Scenario) -> None:
    scenario.store(row_of(n) for n in range(9) if n != 4)
    found = predictions(scenario)
    assert (found.lost, found.examples["lost"]) == (1, ["p4"])
    assert not found.is_clean


def test_in_a_missing_lake_everything_is_lost(scenario: Scenario) -> None:
    assert predictions(scenario).lost == 9


def test_an_id_in_two_files_is_doubled(scenario: Scenario) -> None:
    scenario.store_right()
    scenario.store([row_of(3)])
    found = predictions(scenario)
    assert (found.doubled, found.examples["doubled"], found.lost) == (1, ["p3"], 0)
    assert not found.is_clean


def test_one_request_stored_under_two_ids_is_doubled(scenario: Scenario) -> None:
    scenario.store_right()
    scenario.store([row_of(3, "another")])
    assert predictions(scenario).examples["doubled"] == ["p3"]


def test_a_row_that_nobody_sent_is_invented(scenario: Scenario) -> None:
    scenario.store_right()
    scenario.store([row_of(99, "unsent"), {**row_of(8, "a-second-answer"), "answer_number": 1}])
    assert predictions(scenario).examples["invented"] == ["a-second-answer", "unsent"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_with_a_planted_fault_is_changed(scenario: Scenario, fault: str) -> None:
    field, plant = FAULTS[fault]
    rows = [row_of(n) for n in range(9)]
    assert compared(scenario, rows).is_clean
    found = compared(scenario, [*rows[:5], plant(rows[5]), *rows[6:]])
    assert found.changed == 1 and field in found.changed_fields
    assert not found.is_clean


def test_answers_under_each_others_ids_are_changed(scenario: Scenario) -> None:
    scenario.store([*(row_of(n) for n in range(7)), row_of(7, "p8"), row_of(8, "p7")])
    found = predictions(scenario)
    assert (found.changed, found.changed_fields, found.lost, found.doubled) == (2, {"prediction_id": 2}, 0, 0)


def test_another_requests_answer_under_an_accepted_marker_is_changed(scenario: Scenario) -> None:
    scenario.store_right({**row_of(5), "text": "no", "tool_calls": None, "answer": "no", "reasoning": None}, n=5)
    assert set(predictions(scenario).changed_fields) == {"answer.text", "answer.tool_calls", "answer.reasoning"}


def test_around_a_redacted_value_everything_is_compared(tmp_path: Path) -> None:
    text = f"call me at {PEOPLE[3].phone} please"
    for number, (stored, changed) in enumerate({
        "call me at (555) 555-0199 please": 0, text: 9, "call me at please": 9, "call me (555) 555-0199 please": 9,
        "call me at (555) 555-0199 please now": 9,
    }.items()):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        scenario = Scenario(tmp_path / str(number), text)
        scenario.store({**row_of(n, user_text=stored), "redactions": 1} for n in range(9))
        assert predictions(scenario).changed == changed, stored


def test_personal_data_that_nothing_redacted_is_changed(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, f"call me at {PEOPLE[3].phone}")
    scenario.store(row_of(n, user_text="call me at (555) 555-0199") for n in range(9))
    assert predictions(scenario).changed_fields == {"redactions": 9}


def test_a_request_whose_connection_broke_may_be_stored_or_not_but_not_changed(scenario: Scenario) -> None:
    scenario.store_right()
    assert predictions(scenario).unknown_stored == 0
    scenario.store([row_of(10, "unknown-to-the-client"), row_of(11, "refused-but-stored")])
    found = predictions(scenario)
    assert (found.unknown_stored, found.refused_stored) == (1, 1)
    assert found.is_clean
    DeltaTable(scenario.lake / "predictions").delete("prediction_id = 'unknown-to-the-client'")
    scenario.store([drops("parameters", "temperature")(row_of(10, "unknown-to-the-client"))])
    assert predictions(scenario).changed_fields == {"parameters.temperature": 1}


def test_an_answer_that_the_client_left_may_be_cut_and_one_that_it_got_may_not(scenario: Scenario) -> None:
    cut = {"text": "I op", "answer": "I op", "tool_calls": None, "finish_reason": "client_left", "reasoning": None}
    scenario.store_right({**row_of(10, "left"), **cut, "logprob": None, "answer_tokens": 1})
    assert predictions(scenario).is_clean
    scenario.store([{**row_of(11, "left-too"), **cut, "text": "You op", "answer": "You op"}])
    assert predictions(scenario).changed_fields == {"answer.text": 1}
    DeltaTable(scenario.lake / "predictions").delete("prediction_id = 'p5'")
    scenario.store([{**row_of(5), **cut}])
    assert "answer.finish_reason" in predictions(scenario).changed_fields


def test_half_a_word_that_the_redaction_took_for_a_name_is_no_change(scenario: Scenario) -> None:
    cut = {"text": "I theodore", "answer": "I theodore", "tool_calls": None, "finish_reason": "client_left"}
    left = {**row_of(10, "left"), **cut, "reasoning": None, "logprob": None, "answer_tokens": 1}
    scenario.store_right(left)
    assert predictions(scenario).is_clean


def test_a_row_of_a_forgotten_user_is_found_and_its_absence_is_not_a_loss(scenario: Scenario) -> None:
    scenario.store_right(row_of(9))
    found = predictions(scenario)
    assert (found.forgotten_left, found.lost) == (1, 0)
    assert not found.is_clean


def test_lost_and_doubled_feedback_is_found(scenario: Scenario) -> None:
    scenario.store_right()
    scenario.store_feedback(["p1", "p1"])
    found = check(scenario.ledger.path, scenario.lake, [TASK]).feedback
    assert (found.lost, found.doubled) == (1, 1)


def test_feedback_by_an_own_id_for_another_answer_is_changed(scenario: Scenario) -> None:
    scenario.store_right()
    for marker, prediction_id in (("marker-3", "p3"), ("marker-4", "p6")):
        scenario.ledger.record_feedback(f"{TASK}/{marker}", marker, "ann", False)
        scenario.ledger.record_feedback_outcome(f"{TASK}/{marker}", "accepted", prediction_id)
    scenario.store_feedback(["p1", "p2", "p3", "p6"])
    found = check(scenario.ledger.path, scenario.lake, [TASK]).feedback
    assert (found.accepted, found.lost, found.changed, found.invented) == (4, 0, 1, 0)


def test_a_removed_row_counts_as_lost_and_its_file_is_still_scanned(scenario: Scenario) -> None:
    scenario.store(row_of(n, user_text=f"call me at {PEOPLE[0].phone}") for n in range(9))
    DeltaTable(scenario.lake / "predictions").delete("prediction_id = 'p4'")
    assert predictions(scenario).examples["lost"] == ["p4"]
    DeltaTable(scenario.lake / "predictions").delete()
    found = leaks.Leaks()
    leaks.scan_lake(leaks.Scanner(seeded_values()), scenario.lake, found)
    assert found.by_location["lake: phone"] >= 9


def test_people_are_expected_to_be_asked_about_low_confidence(scenario: Scenario) -> None:
    assert expected_questions(scenario.ledger.path, {}) == ({"marker-0", "marker-1"}, set())
    scenario.store([row_of(0)])
    ids = ids_by_key(scenario.lake, [TASK])
    assert expected_questions(scenario.ledger.path, ids) == ({"p0", "marker-1"}, set())


def test_the_hash_depends_on_the_rows_and_not_on_their_files(scenario: Scenario, tmp_path: Path) -> None:
    scenario.store_right()
    (tmp_path / "other").mkdir()
    other_files = Scenario(tmp_path / "other")
    other_files.store(row_of(n) for n in range(5, 9))
    other_files.store(row_of(n) for n in range(5))
    key = "prediction_id"
    whole = rows_hash(scenario.lake, "predictions", [TASK], key)
    assert rows_hash(other_files.lake, "predictions", [TASK], key) == whole
    DeltaTable(other_files.lake / "predictions").optimize.compact()
    assert rows_hash(other_files.lake, "predictions", [TASK], key) == whole
    DeltaTable(other_files.lake / "predictions").delete("prediction_id = 'p4'")
    assert rows_hash(other_files.lake, "predictions", [TASK], key) != whole


@pytest.mark.parametrize("kind", ["name", "email", "phone", "card", "iban", "ip", "ssn"])
def test_a_leaked_value_of_every_kind_is_found_in_the_lake_and_in_raw_bytes(scenario: Scenario, kind: str) -> None:
    person = PEOPLE[7]
    scenario.store([row_of(1, user_text=f"it is {person.data[kind]}.")])
    (scenario.lake.parent / "spool").mkdir()
    (scenario.lake.parent / "spool" / "segment").write_bytes(b"\x00\xff\x01" + person.data[kind].encode() + b"\x00")
    found, scanner = leaks.Leaks(), leaks.Scanner(seeded_values())
    leaks.scan_lake(scanner, scenario.lake, found)
    leaks.scan_files(scanner, "spool files", scenario.lake.parent / "spool", found)
    assert found.by_location == {f"lake: {kind}": 1, f"spool files: {kind}": 1}


def test_a_leaked_author_is_found(scenario: Scenario) -> None:
    scenario.store([sets_message(1, name=PEOPLE[7].author)(row_of(1))])
    found = leaks.Leaks()
    leaks.scan_lake(leaks.Scanner(seeded_values()), scenario.lake, found)
    assert found.by_location == {"lake: name": 1}


def test_texts_without_personal_data_are_not_leaks() -> None:
    found, scanner = leaks.Leaks(), leaks.Scanner(seeded_values())
    scanner.scan("texts", [text.encode() for text in plain_texts()], found)
    assert found.total == 0
    scanner.scan("texts", [text.encode() for text in personal_texts()], found)
    assert found.total >= len(personal_texts())


def test_the_short_run_on_the_local_broker_kills_tansu_and_its_store_ten_times_each() -> None:
    plan = schedule(4, 2, ["gateway"], "tansu", set(), tansu_kills=12)
    assert {fault.way for fault in plan if fault.kind in ("broker", "store")} == {"kill -9"}
    targets = Counter(fault.target for fault in plan)
    assert (targets["tansu"], targets["proxy"], targets["s3"], targets["s3 and tansu"]) == (10, 2, 10, 2)


@pytest.mark.parametrize(("broker", "outages"), [("apache", 10), ("external", 0)])
def test_other_brokers_have_no_store_to_kill_and_only_the_stacks_own_is_killed(broker: str, outages: int) -> None:
    kinds = Counter(fault.kind for fault in schedule(4, 10, ["gateway"], broker, {"disk"}, tansu_kills=12))
    assert kinds == Counter({"service": 10, "broker": outages, "database": 10, "zombie": 2})


def test_a_run_fails_if_a_fault_of_the_broker_or_its_store_was_not_played() -> None:
    planned = {"service": 10, "broker": 12, "store": 12, "zombie": 2}
    assert too_few(planned, {"service": 9, "broker": 12, "store": 12, "zombie": 1}) == []
    assert too_few(planned, {"service": 8, "broker": 11, "store": 12}) == [
        "only 8 of 10 faults of kind service were played",
        "only 11 of 12 faults of kind broker were played",
        "only 0 of 2 faults of kind zombie were played",
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_run_has_personal_data_in_each_place_of_a_conversation(seed: int) -> None:
    texts = Texts(seed, 0.05)
    conversations = Conversations(texts, random.Random(seed))
    for _ in range(30):
        conversations.next()
    assert texts.seeded.keys() >= set(PLACES) - {"metadata"}  # Requests draw the metadata.


def test_a_low_confidence_is_given_only_to_what_people_can_be_asked_about() -> None:
    """Otherwise a run whose random numbers draw one of the others fails."""
    conversations = Conversations(Texts(1, 0.05), random.Random(1))
    low = [call for call in (conversations.next() for _ in range(3_000)) if call.special is Special.LOW]
    calls = [Call.model_validate({"api": call.api, "messages": event_messages(call.messages)}) for call in low]
    assert len(low) > 50
    assert [reason for call in calls if (reason := never_trained(call, []))] == []
