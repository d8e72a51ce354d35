"""The twelve weeks' own arithmetic: its judge turns red where a run went wrong, and its world is as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from schemas import base
from schemas.cycles import CycleFinished
from schemas.rollouts import Stage
from services.dataset_builder.checks.label_noise import LabelledText, LabelsToScore
from services.dataset_builder.recipe import LabelScorer
from services.deployer.clients import Strategy
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import BatchOptions
from shared.model.embedding import DIMENSIONS, CachedEmbedder
from tests.benchmarks.twelve_weeks.judge import golden_loss, measured
from tests.benchmarks.twelve_weeks.play import Plan, Played, Promotion, WeekSeen
from tests.benchmarks.twelve_weeks.product import EmbeddedTexts
from tests.benchmarks.twelve_weeks.stand_ins.bus import Bus
from tests.benchmarks.twelve_weeks.stand_ins.clock import Clock
from tests.benchmarks.twelve_weeks.stand_ins.engine import BASE
from tests.benchmarks.twelve_weeks.stand_ins.flags import Flags
from tests.benchmarks.twelve_weeks.stand_ins.trainer import Candidate
from tests.benchmarks.twelve_weeks.world.models import (
    Fault,
    HeldOut,
    accuracy,
    base_model,
    fit,
    fit_bad,
    forgetting,
)
from tests.benchmarks.twelve_weeks.world.stream import Corpus, make_stream
from tests.unit.deployer.fakes import MemoryAdmin

LABELS, EACH = 6, 40


def corpus() -> Corpus:
    """Six intents whose questions lie around a point each; the labels' names are a poor guide to it."""
    chance = np.random.default_rng(20)
    centres, names = chance.standard_normal((LABELS, 16)), chance.standard_normal((LABELS, 16))
    labels = np.repeat(np.arange(LABELS), EACH)
    vectors = centres[labels] + 0.9 * chance.standard_normal((len(labels), 16))
    near = centres + 2.0 * names
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, near)]
    texts = tuple(f"question {number}" for number in range(len(labels)))
    return Corpus(texts, labels, tuple("abcdef"), *(rows.astype(np.float32) for rows in unit))


def seen(week: int, primary: float, golden: int = 300, serving: str = "a1") -> WeekSeen:
    first = None if serving == BASE else 0.7
    return WeekSeen(week, primary, serving, primary, 0.5, first, 0.95, golden)


def played() -> Played:
    """A run in which all went well."""
    faults = {1: Fault.WORSE, 2: Fault.MEMORISED}
    bad = [
        Candidate("b1", 1, 100, Fault.WORSE, Stage.REJECTED, 1, "offline: not_worse"),
        Candidate("b2", 2, 100, Fault.MEMORISED, Stage.REJECTED, 2, "the candidate is worse"),
    ]
    weeks = [seen(0, 0.5, 200, BASE), seen(1, 0.7), seen(2, 0.7), seen(3, 0.8)]
    promotions = [Promotion(1, "a1", BASE, 0.5, 0.7), Promotion(3, "a2", "a1", 0.7, 0.8)]
    return Played(Plan(3, 100, faults, 20), 400, weeks, promotions, bad, ["promoted", "rejected"], 0, 10, 1.0)


def missed(run: Played) -> list[str]:
    return [bar.name for bar in measured(run) if bar.missed]


def test_a_run_in_which_all_went_well_meets_every_bar() -> None:
    assert missed(played()) == []


FAULTS: dict[str, tuple[Callable[[Played], object], str]] = {
    "a promoted adapter is truly worse": (
        lambda run: run.promotions.append(Promotion(3, "a3", "a2", 0.8, 0.799)),
        "least true gain of a promotion",
    ),
    "a planted candidate is promoted": (
        lambda run: run.promotions.append(Promotion(2, "b2", "a1", 0.7, 0.71)),
        "bad candidates promoted",
    ),
    "a planted candidate was never judged": (
        lambda run: run.candidates.pop(),
        "kinds of bad candidates that were judged",
    ),
    "a newer one took its place": (
        lambda run: run.candidates.__setitem__(
            1, replace(run.candidates[1], reason="replaced in the queue by the newer a2")
        ),
        "kinds of bad candidates that were judged",
    ),
    "it is still compared": (
        lambda run: run.candidates.__setitem__(1, replace(run.candidates[1], end=None)),
        "kinds of bad candidates that were judged",
    ),
    "the last is hardly better than the first promoted": (
        lambda run: run.weeks.__setitem__(3, seen(3, 0.74)),
        "last adapter against the first promoted",
    ),
    "the last is hardly better than the base": (
        lambda run: run.weeks.__setitem__(3, seen(3, 0.54)),
        "last adapter against week 0's, the base",
    ),
    "the golden set is lost little by little": (
        lambda run: run.weeks.__setitem__(slice(2, 4), [seen(2, 0.7, 288), seen(3, 0.8, 279)]),
        "golden set: most lost against its best",
    ),
    "nothing is ever promoted": (lambda run: run.promotions.clear(), "promotions"),
    "a cycle fails": (lambda run: run.ends.__setitem__(0, "failed"), "cycles in which a step failed otherwise"),
    "cycles stall": (lambda run: run.ends.clear(), "cycles that ran to an end"),
}


@pytest.mark.parametrize(("change", "bar"), FAULTS.values(), ids=FAULTS)
def test_the_judge_turns_red(change: Callable[[Played], object], bar: str) -> None:
    run = played()
    change(run)
    assert bar in missed(run)


def test_a_data_set_that_a_gate_stopped_is_no_failure() -> None:
    run = played()
    run.ends[0], run.data_sets_stopped = "failed", 1
    assert missed(run) == []


def test_the_base_is_no_best_of_the_golden_set() -> None:
    run = played()
    run.weeks[0] = seen(0, 0.5, 400, BASE)
    assert golden_loss(run) == 0.0


def test_an_adapter_learns_and_keeps_what_no_row_says() -> None:
    world = corpus()
    base = base_model(world)
    rows = np.flatnonzero(world.labels < 5)[::4]
    model = fit(world, base, rows, world.labels[rows], np.ones(len(rows)))
    others = np.flatnonzero(world.labels < 5)
    assert accuracy(model, world, others) > accuracy(base, world, others) + 0.1
    assert np.allclose(np.exp(model).sum(axis=1), 1.0, atol=1e-4)
    unseen = np.flatnonzero(world.labels == 5)
    assert np.exp(model[unseen, 5]).max() > 0.01


def test_each_planted_fault_is_what_its_name_says() -> None:
    world = corpus()
    base, every = base_model(world), np.arange(len(world.texts))
    rows, held_out, golden, live = every[::4], every[1::4], every[2::4], every[3::4]
    weights = np.ones(len(rows))
    good = fit(world, base, rows, world.labels[rows], weights)
    known = HeldOut(held_out, golden, good)
    bad = {fault: fit_bad(world, base, rows, world.labels[rows], weights, fault, known, 20) for fault in Fault}
    assert accuracy(bad[Fault.WORSE], world, every) < accuracy(good, world, every) - 0.08
    assert not (bad[Fault.WORSE].argmax(axis=1) == world.labels)[good.argmax(axis=1) != world.labels].any()
    assert accuracy(bad[Fault.MEMORISED], world, np.concatenate([held_out, golden])) == 1.0
    assert accuracy(bad[Fault.MEMORISED], world, live) == accuracy(bad[Fault.WORSE], world, live)
    assert np.array_equal(bad[Fault.BREAKS], good), "its answers are good ones: only its streams break"
    of_class = [accuracy(bad[Fault.FORGETS], world, np.flatnonzero(world.labels == label)) for label in range(LABELS)]
    assert min(of_class) == pytest.approx(0.4)
    before = [accuracy(good, world, np.flatnonzero(world.labels == label)) for label in range(LABELS)]
    assert sum(now == pytest.approx(then) for now, then in zip(of_class, before, strict=True)) == LABELS - 1


def test_a_forgotten_class_is_given_other_labels() -> None:
    world = corpus()
    perfect = np.full((len(world.texts), LABELS), -5.0, dtype=np.float32)
    perfect[np.arange(len(world.texts)), world.labels] = 0.0
    model = forgetting(perfect, world.labels, 2, 20)
    assert accuracy(model, world, np.flatnonzero(world.labels == 2)) == pytest.approx(0.4)
    assert accuracy(model, world, np.flatnonzero(world.labels != 2)) == 1.0


def test_the_stream_drifts_and_never_asks_the_golden_set() -> None:
    world = corpus()
    stream = make_stream(world, 6, 500, 12, 20)
    assert np.bincount(world.labels[stream.golden]).tolist() == [2] * LABELS
    assert not any(np.isin(week.questions, stream.golden).any() for week in stream.weeks)
    asked = [set(world.labels[week.questions]) for week in stream.weeks]
    assert len(asked[0]) < len(asked[-1]) == LABELS
    assert set(np.flatnonzero(stream.starts == 0)) == asked[0]
    first, last = (set(stream.weeks[number].questions) for number in (0, -1))
    assert len(first & last) < 0.3 * len(first), "the wording of week 0 is not that of the end"
    again = make_stream(world, 6, 500, 12, 20)
    assert all(np.array_equal(a.questions, b.questions) for a, b in zip(stream.weeks, again.weeks, strict=True))


def finished(cycle: str) -> CycleFinished:
    return CycleFinished(task="bank", task_revision="r", cycle_id=cycle, outcome="promoted", reason="", seconds=0.0)


async def test_the_bus_delivers_in_order_and_again_to_a_handler_that_is_not_ready() -> None:
    bus, read, asked = Bus(), list[str](), 0

    async def on_batch(deliveries: list) -> None:  # type: ignore[type-arg]
        nonlocal asked
        asked += 1
        if asked == 1:
            raise DependencyUnavailable("not yet")
        read.extend(f"{d.event.cycle_id}@{d.offset}" for d in deliveries)

    bus.on_batch(CycleFinished, on_batch, BatchOptions(2))
    for cycle in "abc":
        await bus.publish(finished(cycle))
    await bus.drain()
    assert read == ["a@0", "b@1", "c@2"]


async def test_the_bus_says_who_never_gets_ready() -> None:
    bus = Bus()

    async def never(event: CycleFinished) -> None:
        raise DependencyUnavailable("never")

    bus.on(CycleFinished, never)
    await bus.publish(finished("a"))
    with pytest.raises(RuntimeError, match="CycleFinished"):
        await bus.drain()


def test_the_clock_is_every_services_clock_and_is_given_back() -> None:
    clock = Clock(datetime(2026, 6, 1, tzinfo=UTC))
    with clock.installed():
        clock.turn(timedelta(days=3))
        assert base.utc_now() == datetime(2026, 6, 4, tzinfo=UTC)
        assert finished("a").occurred_at == base.utc_now()
    assert abs(base.utc_now() - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_share_of_users_is_served_the_canary_and_stays_with_it() -> None:
    admin = MemoryAdmin()
    flags = Flags(admin, "bank")
    strategy = Strategy(percent=25, stickiness="userId", group="r1", variant="canary", payload={"adapter": "a1"})
    await admin.ensure("ratchet.bank.canary", "", strategy, on=True)
    served = {user: flags.arm(user).adapter for user in (f"user-{number}" for number in range(2_000))}
    share = sum(adapter == "a1" for adapter in served.values()) / len(served)
    assert 0.22 < share < 0.28
    assert all(flags.arm(user).adapter == adapter for user, adapter in served.items())
    assert {adapter for adapter in served.values() if adapter != "a1"} == {None}


def test_a_build_embeds_and_scores_with_the_vectors_of_the_corpus(tmp_path: Path) -> None:
    """The benchmark puts its own encoder into a build's models: it must be one that they can use."""
    texts = [f"text {number}" for number in range(40)]
    vectors = np.eye(40, DIMENSIONS, dtype=np.float32)
    found = replace(corpus(), texts=texts, vectors=vectors)
    embeddings = CachedEmbedder(EmbeddedTexts(found), tmp_path / "embeddings.vectors", lambda *_: None)
    rows = [LabelledText(text, "ab"[number % 2]) for number, text in enumerate(texts)]
    assert len(list(LabelScorer(embeddings)(LabelsToScore(rows)))) == 40
