"""The checker itself: a checker that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.chaos import leaks
from tests.chaos.checker import check, content_hash, suspects_wanted
from tests.chaos.ledger import Ledger, Sent
from tests.chaos.people import PEOPLE, personal_texts, plain_texts, seeded_values

TASK = "chaos-test"


class World:
    """A ledger of ten accepted predictions, p0 to p9 (marks mark-0 to mark-9; p9 by a person who was forgotten)."""

    def __init__(self, folder: Path) -> None:
        self.lake = folder / "lake"
        self.ledger = Ledger(folder / "ledger.sqlite")
        sent = [Sent(f"mark-{n}", "predictions", "leaver" if n == 9 else "ann", low=n < 2) for n in range(10)]
        self.ledger.sending([*sent, Sent("mark-broke", "predictions"), Sent("mark-no", "predictions")])
        self.ledger.accepted((f"mark-{n}", f"p{n}") for n in range(10))
        self.ledger.refused(["mark-no"])
        self.ledger.forgotten("leaver", 1.0)
        for n in (1, 2):
            self.ledger.feedback_sending(f"p{n}", "ann", False)
            self.ledger.feedback_told(f"p{n}", "accepted")

    def store(self, rows: Sequence[tuple[str, str]], text: str = "where is my order") -> None:
        """Append predictions: pairs of id and mark."""
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


RIGHT = [(f"p{n}", f"mark-{n}") for n in range(9)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_lake_with_every_accepted_row_once_is_faultless(world: World) -> None:
    world.store(RIGHT)
    world.store_feedback(["p1", "p2"])
    found = check(world.ledger.path, world.lake, TASK)
    assert found.faultless
    assert (found.predictions.accepted, found.predictions.stored, found.predictions.forgotten) == (10, 9, 1)


def test_an_accepted_row_that_is_not_there_is_lost(world: World) -> None:
    world.store(RIGHT[:4] + RIGHT[5:])
    found = check(world.ledger.path, world.lake, TASK).predictions
    assert (found.lost, found.examples["lost"]) == (1, ["p4"])
    assert not found.faultless


def test_a_lake_that_does_not_exist_has_lost_everything(world: World) -> None:
    assert check(world.ledger.path, world.lake, TASK).predictions.lost == 9


def test_an_id_in_two_files_is_doubled(world: World) -> None:
    world.store(RIGHT)
    world.store(RIGHT[3:4])
    found = check(world.ledger.path, world.lake, TASK).predictions
    assert (found.doubled, found.examples["doubled"], found.lost) == (1, ["p3"], 0)
    assert not found.faultless


def test_one_request_stored_under_two_ids_is_doubled(world: World) -> None:
    world.store([*RIGHT, ("another", "mark-3")])
    found = check(world.ledger.path, world.lake, TASK).predictions
    assert {"p3", "another"} <= set(found.examples["doubled"])


def test_a_row_that_nobody_sent_is_invented(world: World) -> None:
    world.store([*RIGHT, ("stranger", "mark-unheard")])
    assert check(world.ledger.path, world.lake, TASK).predictions.examples["invented"] == ["stranger"]


def test_another_requests_content_under_a_promised_id_is_invented(world: World) -> None:
    world.store([*RIGHT[:8], ("p8", "mark-unheard")])
    assert check(world.ledger.path, world.lake, TASK).predictions.examples["invented"] == ["p8"]


def test_a_request_whose_connection_broke_may_be_stored_or_not(world: World) -> None:
    world.store(RIGHT)
    assert check(world.ledger.path, world.lake, TASK).predictions.unknown_stored == 0
    world.store([("unknown-to-the-client", "mark-broke"), ("refused-but-stored", "mark-no")])
    found = check(world.ledger.path, world.lake, TASK).predictions
    assert (found.unknown_stored, found.refused_stored) == (1, 1)
    assert found.faultless


def test_a_row_of_a_forgotten_person_is_found_and_its_absence_is_no_loss(world: World) -> None:
    world.store([*RIGHT, ("p9", "mark-9")])
    found = check(world.ledger.path, world.lake, TASK).predictions
    assert (found.forgotten_left, found.lost) == (1, 0)
    assert not found.faultless


def test_lost_and_doubled_feedback_is_found(world: World) -> None:
    world.store(RIGHT)
    world.store_feedback(["p1", "p1"])
    found = check(world.ledger.path, world.lake, TASK).feedback
    assert (found.lost, found.doubled) == (1, 1)


def test_a_removed_row_counts_as_not_stored_and_its_file_is_still_looked_into(world: World) -> None:
    world.store(RIGHT, text=f"call me at {PEOPLE[0].phone}")
    DeltaTable(world.lake / "predictions").delete("prediction_id = 'p4'")
    assert check(world.ledger.path, world.lake, TASK).predictions.examples["lost"] == ["p4"]
    DeltaTable(world.lake / "predictions").delete()
    found = leaks.Leaks()
    leaks.scan_lake(leaks.Scanner(seeded_values()), world.lake, found)
    assert found.by_place["lake: phone"] >= len(RIGHT)


def test_low_confidence_is_wanted_of_the_failure_miner(world: World) -> None:
    assert suspects_wanted(world.ledger.path) == ({"p0", "p1"}, set())


def test_the_hash_follows_the_rows_and_not_their_files(world: World, tmp_path: Path) -> None:
    world.store(RIGHT)
    (tmp_path / "other").mkdir()
    elsewhere = World(tmp_path / "other")
    elsewhere.store(RIGHT[5:])
    elsewhere.store(RIGHT[:5])
    key = "prediction_id"
    whole = content_hash(world.lake, "predictions", TASK, key)
    assert content_hash(elsewhere.lake, "predictions", TASK, key) == whole
    DeltaTable(elsewhere.lake / "predictions").optimize.compact()
    assert content_hash(elsewhere.lake, "predictions", TASK, key) == whole
    DeltaTable(elsewhere.lake / "predictions").delete("prediction_id = 'p4'")
    assert content_hash(elsewhere.lake, "predictions", TASK, key) != whole


@pytest.mark.parametrize("kind", ["name", "email", "phone", "card", "iban", "ip", "ssn"])
def test_a_leaked_value_of_every_kind_is_found_in_the_lake_and_in_raw_bytes(world: World, kind: str) -> None:
    person = PEOPLE[7]
    world.store(RIGHT[:1], text=f'[{{"role": "user", "content": "it is {person.data[kind]}."}}]')
    (world.lake.parent / "spool").mkdir()
    (world.lake.parent / "spool" / "segment").write_bytes(b"\x00\xff\x01" + person.data[kind].encode() + b"\x00")
    found, scanner = leaks.Leaks(), leaks.Scanner(seeded_values())
    leaks.scan_lake(scanner, world.lake, found)
    leaks.scan_files(scanner, "spool files", world.lake.parent / "spool", found)
    assert found.by_place == {f"lake: {kind}": 1, f"spool files: {kind}": 1}


def test_texts_without_personal_data_are_no_leak() -> None:
    found, scanner = leaks.Leaks(), leaks.Scanner(seeded_values())
    scanner.texts("texts", [text.encode() for text in plain_texts()], found)
    assert found.total == 0
    scanner.texts("texts", [text.encode() for text in personal_texts()], found)
    assert found.total >= len(personal_texts())
