"""`ratchet lake`: what it reports about lake and broker, and what `resume` changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.lake import PREDICTIONS
from services.prediction_log.offsets import lag as standing
from services.prediction_log.offsets.resume import resume_from
from services.prediction_log.storage import DeltaLake
from shared.errors import RatchetError
from shared.privacy.encryption import load_cipher
from shared.settings import Settings
from shared.storage.media import MediaStore
from shared.storage.media_files import pack
from tests.unit.prediction_log.deliveries import numbered

TOPIC = standing.TOPICS[PREDICTIONS]


class Broker:
    """Where the partitions of each topic start and end, and the topics' ids."""

    def __init__(self, topics: Mapping[str, str]) -> None:
        self.ids = dict(topics)
        self.logs = {(TOPIC, 0): (0, 0)}

    async def topics(self, settings: Settings) -> dict[str, standing.BrokerTopic]:
        return {
            name: standing.BrokerTopic(UUID(topic_id), {0: self.logs.get((name, 0), (0, 0))})
            for name, topic_id in self.ids.items()
        }

    async def topic_ids(self, names: object) -> Mapping[str, str]:
        return self.ids


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.delenv("RATCHET_KAFKA_INCARNATION", raising=False)
    broker = Broker({topic: str(uuid4()) for topic in standing.TOPICS.values()})
    monkeypatch.setattr(standing, "read_broker_topics", broker.topics)
    return broker


def where_to_read(broker: Broker, lake: DeltaLake) -> Mapping[tuple[str, int], int | None]:
    async def ask() -> Mapping[tuple[str, int], int | None]:
        return await resume_from(lake, PREDICTIONS, broker.topic_ids)([(TOPIC, 0)])

    return asyncio.run(ask())


def fill(broker: Broker, records: int) -> None:
    lake = DeltaLake(Settings.load().lake_uri, Settings.load().kafka_incarnation)
    where_to_read(broker, lake)
    lake.append(PREDICTIONS, [numbered(0, n) for n in range(records)])
    broker.logs[TOPIC, 0] = (0, records)


def ratchet(*words: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["lake", *words], input=answer, env={"COLUMNS": "200"})


def predictions() -> dict[str, object]:
    rows = json.loads(ratchet("status", "--json").output)["tables"]
    return {name: value for name, value in rows[0].items() if name in ("rows", "read", "waiting", "stops")}


def test_a_lake_that_agrees_with_its_broker_is_ok_and_resume_changes_nothing(broker: Broker, tmp_path: Path) -> None:
    fill(broker, 3)
    broker.logs[TOPIC, 0] = (0, 10)
    assert ratchet("status").exit_code == 0
    assert predictions() == {"rows": 3, "read": 3, "waiting": 7, "stops": False}
    assert "nothing to resume from" in ratchet("resume", "--yes").output
    assert not (tmp_path / "incarnation").exists()


def test_an_empty_lake_is_ok(broker: Broker) -> None:
    assert ratchet("status").exit_code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param("recreated", "the topic was recreated", id="recreated"),
        pytest.param("shorter", "partition 0 (read to 3, ends at 1)", id="shorter"),
        pytest.param("missing", "the broker has no such topic", id="missing"),
    ],
)
def test_a_lost_topic_is_reported_and_resume_starts_another_incarnation(
    broker: Broker, tmp_path: Path, change: str, words: str
) -> None:
    fill(broker, 3)
    if change == "recreated":
        broker.ids[TOPIC] = str(uuid4())
    elif change == "missing":
        del broker.ids[TOPIC]
    broker.logs[TOPIC, 0] = (0, 1)
    result = ratchet("status")
    assert result.exit_code == 1 and words in result.output and "resume" in result.output
    assert ratchet("resume", "--dry-run").exit_code == 0
    assert ratchet("resume", answer="n\n").exit_code == 1
    assert Settings.load().kafka_incarnation == "", "neither changed anything"

    assert ratchet("resume", answer="y\n").exit_code == 0
    first = Settings.load().kafka_incarnation
    assert first
    assert ratchet("status").exit_code == (1 if change == "missing" else 0)
    assert predictions()["rows"] == 3, "the lake keeps what it has"
    lake = DeltaLake(Settings.load().lake_uri, first)
    if change == "recreated":
        assert where_to_read(broker, lake) == {(TOPIC, 0): 0}


def test_resume_extends_the_incarnation_of_the_environment(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_KAFKA_INCARNATION", "east")
    fill(broker, 3)
    broker.ids[TOPIC] = str(uuid4())
    result = ratchet("resume", "--yes")
    name = Settings.load().kafka_incarnation
    assert name.startswith("east-") and f"RATCHET_KAFKA_INCARNATION={name}" in result.output
    monkeypatch.setenv("RATCHET_KAFKA_INCARNATION", name)  # As the command says for services elsewhere.
    assert Settings.load().kafka_incarnation == name
    assert Settings.load(kafka_incarnation="mine").kafka_incarnation == "mine"


def test_force_starts_another_incarnation_although_nothing_is_wrong(broker: Broker) -> None:
    fill(broker, 3)
    assert ratchet("resume", "--yes", "--force").exit_code == 0
    assert Settings.load().kafka_incarnation
    assert predictions() == {"rows": 3, "read": 0, "waiting": 3, "stops": False}


def test_records_deleted_before_they_were_read_are_reported_and_stop_nothing(broker: Broker) -> None:
    fill(broker, 3)
    broker.logs[TOPIC, 0] = (8, 10)
    result = ratchet("status")
    assert result.exit_code == 1 and "deleted 5 records before they were read" in result.output
    assert predictions() == {"rows": 3, "read": 3, "waiting": 2, "stops": False}
    assert "nothing to resume from" in ratchet("resume", "--yes").output


def test_an_unavailable_broker_is_one_line_of_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.setenv("RATCHET_KAFKA", "127.0.0.1:1")
    result = ratchet("resume", "--yes")
    assert result.exit_code == 1 and "127.0.0.1:1" in result.output
    assert not isinstance(result.exception, RatchetError)
    assert not (tmp_path / "incarnation").exists()


def test_help_says_what_is_preserved_and_what_is_lost() -> None:
    text = " ".join(ratchet("resume", "--help").output.split())
    assert "Nothing is deleted" in text and "are lost with them" in text and "ratchet lake resume --dry-run" in text


def test_a_kept_picture_is_decrypted_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    key, around = "media/desk/2026-10-03/anonymous/abc", b'{"part":{},"path":["image_url"],"prefix":""}'
    kept = pack(around, "UE5H", 1_790_000_000.0, load_cipher(tmp_path / "secrets", "media"))
    MediaStore(str(tmp_path / "artifacts")).add(key, kept)
    result = CliRunner().invoke(app, ["lake", "media", key, str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_bytes() == b"PNG"
    assert CliRunner().invoke(app, ["lake", "media", "a.png", str(tmp_path / "b.png")]).exit_code == 2
    missing = CliRunner().invoke(app, ["lake", "media", f"{key}d", str(tmp_path / "b.png")])
    assert missing.exit_code == 1
    assert "has not uploaded it yet" in missing.stderr
    assert not (tmp_path / "b.png").exists()
