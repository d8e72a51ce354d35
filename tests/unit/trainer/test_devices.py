"""Trainings at a time on one machine do not get into each other's GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.devices import gpus_of_slot, gpus_present


@pytest.mark.parametrize(
    ("slots", "visible", "present", "given"),
    [
        (2, None, 2, ["0", "1"]),
        (2, None, 8, ["0,2,4,6", "1,3,5,7"]),
        (3, None, 2, ["0", "1", "0"]),
        (2, "4, 6", 8, ["4", "6"]),
        (2, "GPU-a,MIG-b", 1, ["GPU-a", "MIG-b"]),
        (1, None, 4, [None]),
        (1, "2", 4, [None]),
        (2, None, 0, [None, None]),
        (2, "", 2, [None, None]),
    ],
)
def test_the_gpus_are_divided_among_the_slots_and_an_operators_own_list_is_obeyed(
    slots: int, visible: str | None, present: int, given: list[str | None]
) -> None:
    assert [gpus_of_slot(slot, slots, visible, present) for slot in range(slots)] == given


def test_gpus_are_counted_by_what_the_driver_shows(tmp_path: Path) -> None:
    assert gpus_present(tmp_path / "no driver") == 0
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert gpus_present(tmp_path) == 2
