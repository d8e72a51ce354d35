"""How two versions differ: by a row's part, its answer and its weight."""

from __future__ import annotations

from services.dataset_builder.inspection.changes import Difference, VersionRow, difference


def test_a_row_is_in_the_list_of_each_thing_that_changed_in_it_and_one_that_did_not_in_none() -> None:
    before = {(name,): VersionRow("train", "a", 1.0) for name in ("same", "gone", "moved", "both", "lighter", "other")}
    after = {
        ("same",): VersionRow("train", "a", 1.0),
        ("new",): VersionRow("train", "a", 1.0),
        ("moved",): VersionRow("eval", "a", 1.0),
        ("both",): VersionRow("eval", "b", 1.0),
        ("lighter",): VersionRow("train", "a", 0.5),
        ("other",): VersionRow("train", "b", 1.0),
    }
    assert difference(before, after) == Difference(
        added=(("new",),),
        removed=(("gone",),),
        relabelled=(("both",), ("other",)),
        moved=(("both",), ("moved",)),
        reweighted=(("lighter",),),
    )
