"""The checker detects every kind of problem, and a run without its faults fails: what cannot fail proves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.chaos import leaks
from tests.chaos.checker import check, expected_suspects, rows_hash
from tests.chaos.faults import schedule, too_few
from tests.chaos.ledger import Ledger, Sent
from tests.chaos.people import PEOPLE, personal_texts, plain_texts, seeded_values

TASK = "chaos-test"


class Scenario:
    """A ledger of ten accepted predictions, p0 to p9, with marker-0 to marker-9; p9 is of the forgotten user bob."""

    def __init__(self, folder: Path) -> None:
        self.lake = folder / "lake"
        self.ledger = Ledger(folder / "ledger.sqlite")
        sent = [Sent(f"marker-{n}", "predictions", "bob" if n == 9 else "ann", low=n < 2) for n in range(10)]
        self.ledger.record_sending([*sent, Sent("marker-broke", "predictions"), Sent("marker-no", "predictions")])
        self.ledger.record_accepted((f"marker-{n}", f"p{n}") for n in range(10))
        self.ledger.record_refused(["marker-no"])
        self.ledger.record_forgotten("bob", 1.0)
        for n in (1, 2):
            self.ledger.record_feedback(f"p{n}", "ann", False)
            self.ledger.record_feedback_outcome(f"p{n}", "accepted")

    def store(self, rows: Sequence[tuple[str, str]], text: str = "where is my order") -> None:
        """Append predictions: pairs of id and marker."""
        columns = {
            "prediction_id": [row[0] for row in rows],
            "task": [TASK] * len(rows),
            "date": [date(2026, 11, 25)] * len(rows),
            "messages": [text] * len(rows),
            "model": [row[1] for row in rows],
            "finish_reason": pa.array([None] * len(rows), pa.string()),
        }
        write_deltalake(self.lake / "predictions", pa.table(columns), mode="append", partition_by=["task", "date"])

    def store_feedback(self, ids: Sequence[str]) -> None:
        columns = {
            "event_id": [f"e{i}" for i, _ in enumerate(ids)],
            "prediction_id": list(ids),
            "task": [TASK] * len(ids),
            "date": [date(2026, 11, 25)] * len(ids),
        }
        write_deltalake(self.lake / "feedback", pa.table(columns), mode="append", partition_by=["task", "date"])


RIGHT = [(f"p{n}", f"marker-{n}") for n in range(9)]


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return Scenario(tmp_path)


def test_a_lake_with_every_accepted_row_once_is_clean(scenario: Scenario) -> None:
    scenario.store(RIGHT)
    scenario.store_feedback(["p1", "p2"])
    found = check(scenario.ledger.path, scenario.lake, TASK)
    assert found.is_clean
    assert (found.predictions.accepted, found.predictions.stored, found.predictions.forgotten) == (10, 9, 1)


def test_an_accepted_row_that_is_not_there_is_lost(scenario: Scenario) -> None:
    scenario.store(RIGHT[:4] + RIGHT[5:])
    found = check(scenario.ledger.path, scenario.lake, TASK).predictions
    assert (found.lost, found.examples["lost"]) == (1, ["p4"])
    assert not found.is_clean


def test_in_a_missing_lake_everything_is_lost(scenario: Scenario) -> None:
    assert check(scenario.ledger.path, scenario.lake, TASK).predictions.lost == 9


def test_an_id_in_two_files_is_doubled(scenario: Scenario) -> None:
    scenario.store(RIGHT)
    scenario.store(RIGHT[3:4])
    found = check(scenario.ledger.path, scenario.lake, TASK).predictions
    assert (found.doubled, found.examples["doubled"], found.lost) == (1, ["p3"], 0)
    assert not found.is_clean


def test_one_request_stored_under_two_ids_is_doubled(scenario: Scenario) -> None:
    scenario.store([*RIGHT, ("another", "marker-3")])
    found = check(scenario.ledger.path, scenario.lake, TASK).predictions
    assert {"p3", "another"} <= set(found.examples["doubled"])


def test_a_row_that_nobody_sent_is_invented(scenario: Scenario) -> None:
    scenario.store([*RIGHT, ("unsent", "marker-unheard")])
    assert check(scenario.ledger.path, scenario.lake, TASK).predictions.examples["invented"] == ["unsent"]


def test_another_requests_content_under_an_accepted_id_is_invented(scenario: Scenario) -> None:
    scenario.store([*RIGHT[:8], ("p8", "marker-unheard")])
    assert check(scenario.ledger.path, scenario.lake, TASK).predictions.examples["invented"] == ["p8"]


def test_a_request_whose_connection_broke_may_be_stored_or_not(scenario: Scenario) -> None:
    scenario.store(RIGHT)
    assert check(scenario.ledger.path, scenario.lake, TASK).predictions.unknown_stored == 0
    scenario.store([("unknown-to-the-client", "marker-broke"), ("refused-but-stored", "marker-no")])
    found = check(scenario.ledger.path, scenario.lake, TASK).predictions
    assert (found.unknown_stored, found.refused_stored) == (1, 1)
    assert found.is_clean


def test_a_row_of_a_forgotten_user_is_found_and_its_absence_is_not_a_loss(scenario: Scenario) -> None:
    scenario.store([*RIGHT, ("p9", "marker-9")])
    found = check(scenario.ledger.path, scenario.lake, TASK).predictions
    assert (found.forgotten_left, found.lost) == (1, 0)
    assert not found.is_clean


def test_lost_and_doubled_feedback_is_found(scenario: Scenario) -> None:
    scenario.store(RIGHT)
    scenario.store_feedback(["p1", "p1"])
    found = check(scenario.ledger.path, scenario.lake, TASK).feedback
    assert (found.lost, found.doubled) == (1, 1)


def test_a_removed_row_counts_as_lost_and_its_file_is_still_scanned(scenario: Scenario) -> None:
    scenario.store(RIGHT, text=f"call me at {PEOPLE[0].phone}")
    DeltaTable(scenario.lake / "predictions").delete("prediction_id = 'p4'")
    assert check(scenario.ledger.path, scenario.lake, TASK).predictions.examples["lost"] == ["p4"]
    DeltaTable(scenario.lake / "predictions").delete()
    found = leaks.Leaks()
    leaks.scan_lake(leaks.Scanner(seeded_values()), scenario.lake, found)
    assert found.by_location["lake: phone"] >= len(RIGHT)


def test_predictions_of_low_confidence_are_expected_suspects(scenario: Scenario) -> None:
    assert expected_suspects(scenario.ledger.path) == ({"p0", "p1"}, set())


def test_the_hash_depends_on_the_rows_and_not_on_their_files(scenario: Scenario, tmp_path: Path) -> None:
    scenario.store(RIGHT)
    (tmp_path / "other").mkdir()
    other_files = Scenario(tmp_path / "other")
    other_files.store(RIGHT[5:])
    other_files.store(RIGHT[:5])
    key = "prediction_id"
    whole = rows_hash(scenario.lake, "predictions", TASK, key)
    assert rows_hash(other_files.lake, "predictions", TASK, key) == whole
    DeltaTable(other_files.lake / "predictions").optimize.compact()
    assert rows_hash(other_files.lake, "predictions", TASK, key) == whole
    DeltaTable(other_files.lake / "predictions").delete("prediction_id = 'p4'")
    assert rows_hash(other_files.lake, "predictions", TASK, key) != whole


@pytest.mark.parametrize("kind", ["name", "email", "phone", "card", "iban", "ip", "ssn"])
def test_a_leaked_value_of_every_kind_is_found_in_the_lake_and_in_raw_bytes(scenario: Scenario, kind: str) -> None:
    person = PEOPLE[7]
    scenario.store(RIGHT[:1], text=f'[{{"role": "user", "content": "it is {person.data[kind]}."}}]')
    (scenario.lake.parent / "spool").mkdir()
    (scenario.lake.parent / "spool" / "segment").write_bytes(b"\x00\xff\x01" + person.data[kind].encode() + b"\x00")
    found, scanner = leaks.Leaks(), leaks.Scanner(seeded_values())
    leaks.scan_lake(scanner, scenario.lake, found)
    leaks.scan_files(scanner, "spool files", scenario.lake.parent / "spool", found)
    assert found.by_location == {f"lake: {kind}": 1, f"spool files: {kind}": 1}


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
