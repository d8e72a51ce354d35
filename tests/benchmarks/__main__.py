"""`make bench`: the lake's exactly-once append against plain Parquet files, the same rows in the same run."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.base import Message, Role, Variant
from schemas.lake import PREDICTIONS
from schemas.predictions import PredictionLogged
from services.prediction_log.domain import prediction_row
from services.prediction_log.storage import SCHEMAS, DeltaLake
from shared.delivery import Delivery
from tests.benchmarks.table import compare, report

ROWS = 5_000


def main() -> None:
    """Run and report."""
    event = PredictionLogged(
        task="bench",
        task_revision="r1",
        prediction_id="p",
        messages=(Message(role=Role.USER, content="x" * 900),),
        answer="delivery",
        model="base",
        variant=Variant.BASE,
        latency_ms=1.0,
    )
    offsets = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        lake = DeltaLake(f"{folder}/lake")

        def ours() -> None:
            batch = [Delivery(event, "t", 0, next(offsets), MappingProxyType({})) for _ in range(ROWS)]
            lake.append(PREDICTIONS, batch, prediction_row)

        def peer() -> None:
            rows = [prediction_row(event).model_dump() for _ in range(ROWS)]
            table = pa.Table.from_pylist(rows, schema=SCHEMAS[PREDICTIONS])
            pq.write_table(table, Path(folder) / f"{next(offsets)}.parquet")

        report(
            [compare("lake append, 5,000 rows of 1 KB", "Parquet files", "rows/s", ROWS, ours, peer, pairs=7)], "lake"
        )


if __name__ == "__main__":
    main()
