"""What failure modes are called, how they keep their identity, and how many fit into an event."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from schemas.failures import ExemplarSource, FailureMode, FailuresClustered
from services.failure_miner.domain import Suspect
from services.failure_miner.modes import (
    EVENT_BYTES,
    MAX_EXEMPLARS,
    StoredMode,
    describe_modes,
    match_modes,
    modes_for_event,
    name_words,
)
from services.failure_miner.recipe import cluster

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


def suspect(text: str, *vector: float, confidence: float | None = 0.4) -> Suspect:
    row = np.array(vector, dtype=np.float32)
    return Suspect(
        f"p-{text}", "t", "r", NOON, text, "a", confidence, "predictions.logged.v1", 0, 0,
        row / np.linalg.norm(row),
    )  # fmt: skip


def test_names_are_the_words_that_distinguish_clusters() -> None:
    words = name_words(
        [
            ["I want my money back please", "please send the money back"],
            ["please where is my parcel", "the parcel isn’t here"],
        ]
    )
    assert words[0][:2] == ("back", "money")
    assert words[1][0] == "parcel"
    assert not {"please", "the", "isn't", "isn", "my"} & {*words[0], *words[1]}


def test_centroids_match_one_to_one_nearest_first() -> None:
    found = np.array([[1, 0], [0.96, 0.28], [0, 1]], dtype=np.float32)
    stored = np.array([[0.8, 0.6], [1, 0]], dtype=np.float32)
    assert match_modes(found, stored, 0.85) == {0: 1, 1: 0}
    assert match_modes(found, stored, 0.99) == {0: 1}
    assert match_modes(found, np.empty((0, 2), dtype=np.float32), 0.5) == {}


def test_a_mode_keeps_its_identity_while_its_centroid_does() -> None:
    suspects = [suspect("parcel late", 1, 0.1), suspect("parcel lost", 1, -0.1), suspect("odd one", -1, 0)]
    suspects += [suspect("money back", 0, 1), suspect("money please", 0.1, 1), suspect("refund money", -0.1, 1)]
    stored = [StoredMode("mode-old", np.array([1.0, 0.0], dtype=np.float32))]
    found = describe_modes(suspects, [0, 0, -1, 1, 1, 1], stored, "cycle-2", 0.85)
    assert [mode.mode.size for mode in found] == [3, 2]
    money, parcel = (mode.mode for mode in found)
    assert parcel.mode_id == "mode-old"
    assert not parcel.is_new
    assert money.is_new
    assert money.exemplars[0] == "money back"
    assert money.share == pytest.approx(0.5)
    assert money.mean_confidence == pytest.approx(0.4)


def test_copies_of_a_text_are_one_mode_however_the_clustering_splits_them() -> None:
    copies = [replace(suspect("ping", 1, 0), prediction_id=f"p-{n}") for n in range(200)]
    others = [suspect(f"parcel {n}", 0, 1, n / 100) for n in range(20)]
    suspects = [replace(s, embedding=np.resize(s.embedding, 3)) for s in copies] + others
    clusters = cluster(np.stack([s.embedding for s in suspects]), 8, 2)
    found = describe_modes(suspects, clusters.tolist(), [], "c", 0.85)
    assert [mode.mode.size for mode in found if "ping" in mode.mode.exemplars] == [200]
    assert len({mode.mode.mode_id for mode in found}) == len(found)


def test_clusters_that_share_a_text_are_one_mode_with_what_was_noise_of_it() -> None:
    words = ("a", "b", "b", "c", "c", "d", "d", "e")
    suspects = [suspect(word, 1, 0) for word in words]
    found = describe_modes(suspects, [0, 0, 1, 1, 2, 3, -1, -1], [], "c", 0.85)
    assert [mode.members for mode in found] == [(0, 1, 2, 3, 4), (5, 6)]


def test_a_mode_names_the_sources_of_its_exemplars_and_can_drop_one() -> None:
    suspects = [
        replace(suspect(word, 1, 0.01 * i), user_hash=f"u{i}") for i, word in enumerate(("late", "lost", "gone"))
    ]
    (found,) = describe_modes(suspects, [0, 0, 0], [], "c", 0.85)
    assert [source.prediction_id for source in found.mode.sources] == [f"p-{text}" for text in found.mode.exemplars]
    rest = found.mode.without(lambda source: source.user_hash == "u1")
    assert (set(rest.exemplars), {s.user_hash for s in rest.sources}) == ({"late", "gone"}, {"u0", "u2"})
    assert (rest.size, rest.name) == (3, found.mode.name)


def test_words_of_names_keep_their_combining_marks() -> None:
    hindi = name_words([["मेरा रिफंड कहाँ है", "रिफंड नहीं मिला"], ["पार्सल खो गया", "पार्सल देर से आया"]])
    assert (hindi[0][0], hindi[1][0]) == ("रिफंड", "पार्सल")
    assert name_words([["les crème brûlée".replace("è", "e\u0300")], ["une tarte"]])[0][:2] == ("brûlée", "crème")


def test_a_mode_without_words_is_named_by_its_id_not_by_a_quotation() -> None:
    (found,) = describe_modes([suspect("4711", 1, 0.1), suspect("4712", 1, 0)], [0, 0], [], "c", 0.85)
    assert found.mode.name == found.mode.mode_id


def test_noise_alone_makes_no_mode() -> None:
    assert describe_modes([suspect("a", 1, 0)], [-1], [], "c", 0.85) == []


def test_the_same_suspects_make_the_same_modes() -> None:
    suspects = [suspect("parcel late", 1, 0.1, confidence=None), suspect("parcel lost", 1, -0.1, confidence=None)]
    first, again = (describe_modes(suspects, [0, 0], [], "c", 0.85)[0].mode for _ in range(2))
    assert first == again
    assert first.mean_confidence is None


LONGEST = "\x01é🙂" * 666
"""An exemplar of nearly 2,000 characters, which take up to six bytes each in JSON."""


def largest_mode(number: int) -> FailureMode:
    sources = tuple(
        ExemplarSource(prediction_id="p" * 80, user_hash="u" * 24, predicted_at=NOON) for _ in range(MAX_EXEMPLARS)
    )
    return FailureMode(
        mode_id=f"mode-{number}", name="w" * 163, words=("w" * 40,) * 4, exemplars=(LONGEST,) * MAX_EXEMPLARS,
        sources=sources, size=2_000 - number, share=0.001,
    )  # fmt: skip


def test_an_event_of_a_thousand_modes_with_the_longest_exemplars_is_small() -> None:
    modes = [largest_mode(number) for number in range(1_000)]
    assert sum(len(mode.model_dump_json().encode()) for mode in modes) > 10_000_000
    short = modes_for_event(modes)
    event = FailuresClustered(
        task="t", task_revision="r", cycle_id="c", suspects=1, noise=0, modes=short, data_cutoff=NOON, fence=()
    )
    assert len(event.model_dump_json().encode()) < 200_000
    assert [mode.mode_id for mode in short] == [f"mode-{n}" for n in range(len(short))], "the largest"
    assert len(short) >= 15, "more than a page shows"
    assert modes_for_event(modes[:3])[0].sources == modes[0].sources


def test_small_modes_all_fit() -> None:
    modes = [largest_mode(n).model_copy(update={"exemplars": ("late",), "sources": ()}) for n in range(200)]
    assert modes_for_event(modes) == tuple(modes)
    assert len(modes_for_event(modes * 10)) * len(modes[0].model_dump_json()) <= EVENT_BYTES + 2_000


def test_a_word_that_is_too_long_for_a_name_is_left_out() -> None:
    texts = ["a" * 190 + " parcel", "b" * 190 + " parcel"]
    (found,) = describe_modes([suspect(text, 1, 0.1) for text in texts], [0, 0], [], "c", 0.85)
    assert found.mode.name == "parcel"
