"""A lake that an older version wrote is refused by name: nothing of it is read, written or changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS, missing_columns
from services.prediction_log.erasure.erase import ErasureSweep
from services.prediction_log.handlers import Handlers
from services.prediction_log.main import build
from services.prediction_log.offsets.resume import resume_from
from services.prediction_log.rollups.hourly import RollUps
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import SCHEMAS, check_tables, create_table
from shared.errors import ConfigurationError, MustStop
from shared.service import running
from tests.unit.prediction_log.deliveries import NOON, TASK, TOPICS, numbered
from tests.unit.prediction_log.lake_rows import maintain
from tests.unit.prediction_log.test_handlers import Broker, no_ids

OLD_COLUMNS = (
    "prediction_id", "task", "date", "task_revision", "occurred_at", "messages", "answer", "model", "adapter",
    "variant", "confidence", "logprob", "user_hash", "latency_ms", "prompt_tokens", "answer_tokens", "finish_reason",
    "redactions", "confidence_raw", "margin", "entropy", "outside", "uncertain_share", "calibration",
)  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a lake whose predictions have the columns of before, with a row."""
    row = {"prediction_id": "p", "task": TASK, "date": NOON.date(), "occurred_at": NOON, "messages": "[]"}
    schema = pa.schema([SCHEMAS[PREDICTIONS].field(name) for name in OLD_COLUMNS])
    rows = pa.Table.from_pylist([row], schema=schema)
    write_deltalake(tmp_path / PREDICTIONS, rows, partition_by=["task", "date"], name=PREDICTIONS)
    return tmp_path


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda lake: DeltaLake(lake).append(PREDICTIONS, [numbered(0, 0)]), id="append"),
        pytest.param(lambda lake: DeltaLake(lake).stored_offsets(PREDICTIONS, [(TOPICS[PREDICTIONS], 0)]), id="resume"),
        pytest.param(lambda lake: RollUps(lake).pending(), id="roll-ups"),
        pytest.param(lambda lake: ErasureSweep(lake).run(), id="erasure"),
        pytest.param(lambda lake: maintain(Path(lake)), id="maintenance"),
        pytest.param(check_tables, id="the check at the start"),
    ],
)
def test_it_is_refused_with_the_table_and_the_way_out_and_not_changed(old: Path, use: Callable[[str], object]) -> None:
    create_table(str(old), FORGOTTEN)
    with pytest.raises(ConfigurationError) as refused:
        use(str(old))
    assert refused.value.reason.startswith(f"the table predictions of the lake at {old} has the shape of an older")
    assert "no request_id, " in refused.value.reason
    assert f"Move {old / PREDICTIONS} away" in refused.value.way_out and "RATCHET_LAKE" in refused.value.way_out
    delta = DeltaTable(old / PREDICTIONS)
    assert (delta.version(), {field.name for field in delta.schema().fields}) == (0, set(OLD_COLUMNS))
    assert len(list((old / PREDICTIONS).rglob("task=*/**/*.parquet"))) == 1


async def test_the_service_does_not_start_with_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = build(PredictionLogSettings(home=old / "home", lake=str(old), kafka="127.0.0.1:1"))
    with pytest.raises(ConfigurationError, match="older version"):
        async with running([service]):
            pass


async def test_a_running_writer_stops_at_it_and_dead_letters_nothing(old: Path) -> None:
    """The consumers stop at MustStop; any other error would make every record a dead letter."""
    with pytest.raises(MustStop):
        DeltaLake(str(old)).append(PREDICTIONS, [numbered(0, 0)])
    with pytest.raises(MustStop):
        await resume_from(DeltaLake(str(old)), PREDICTIONS, no_ids)([(TOPICS[PREDICTIONS], 0)])


async def test_an_empty_folder_and_a_lake_of_this_version_are_accepted(tmp_path: Path) -> None:
    settings = PredictionLogSettings(home=tmp_path / "home", lake=str(tmp_path / "lake"))
    handlers = Handlers(settings, DeltaLake(settings.lake_uri), Broker(), no_ids)
    await handlers.check_lake()
    for table in (PREDICTIONS, FEEDBACK, REQUESTS, FORGOTTEN):
        create_table(settings.lake_uri, table)
    await handlers.check_lake()


def test_a_column_that_may_be_null_may_be_missing() -> None:
    columns = set(SCHEMAS[PREDICTIONS].names)
    assert missing_columns(PREDICTIONS, columns - {"app", "session_hash", "text"}) == []
    assert missing_columns(PREDICTIONS, columns - {"request_id", "app"}) == ["request_id"]
