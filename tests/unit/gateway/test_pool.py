from __future__ import annotations

from services.gateway.upstreams.pool import ModelReplica, ReplicaPool
from services.gateway.upstreams.retries import RetryBudget


def picked(pool: ReplicaPool, now: float = 0.0) -> ModelReplica:
    replica = pool.pick(now)
    assert replica is not None
    return replica


def test_the_replica_with_the_fewest_outstanding_requests_is_picked_and_equals_take_turns() -> None:
    pool = ReplicaPool(["a", "b", "c"], 3)
    for _ in range(9):
        picked(pool).outstanding += 1
    assert [replica.outstanding for replica in pool] == [3, 3, 3]
    a, b, c = pool
    b.outstanding = 1
    assert picked(pool) is b
    b.outstanding = 3
    assert [picked(pool) for _ in range(3)] == [a, c, b]


def test_a_replica_that_lacks_the_model_is_picked_only_where_no_other_is_left() -> None:
    pool = ReplicaPool(["restarted", "other", "unknown"], 3)
    restarted, other, unknown = pool
    restarted.set_models(frozenset({"base"}))
    other.set_models(frozenset({"base", "a1"}))
    for _ in range(3):
        other.outstanding += 1
        assert pool.pick(0.0, (), "a1") in (other, unknown), "however busy they are"
    assert pool.pick(0.0, (), "base") is restarted
    assert pool.pick(0.0, (other, unknown), "a1") is restarted, "the others failed: it may have it by now"
    pool.record_success(restarted, "a1")
    assert not restarted.lacks("a1"), "it has"
    unlisted = ModelReplica("lists nothing")
    unlisted.set_models(frozenset())
    pool.record_success(unlisted, "a1")
    assert not unlisted.lacks("a1")
    unknown.missing.add("a1")
    pool.record_success(unknown, "a1")
    assert not unknown.lacks("a1") and not unknown.lacks("another")


def test_a_model_that_a_replica_refused_is_missing_until_it_is_listed_again() -> None:
    pool = ReplicaPool(["a", "b"], 3)
    a, b = pool
    a.set_models(frozenset({"a1"}))
    a.missing.add("a1")
    assert pool.pick(0.0, (), "a1") is b
    a.set_models(frozenset({"a1"}))
    assert not a.lacks("a1")
    a.set_models(None)
    assert not a.lacks("a1"), "what a list that cannot be read has is not known"


def test_a_circuit_opens_after_consecutive_failures_and_at_once_if_the_connection_is_refused() -> None:
    pool = ReplicaPool(["a", "b"], 3)
    a, b = pool
    pool.record_failure(a)
    pool.record_failure(a)
    pool.record_success(a)
    pool.record_failure(a)
    pool.record_failure(a)
    assert not a.circuit_open
    pool.record_failure(a)
    pool.record_failure(b, refused=True)
    assert a.circuit_open and b.circuit_open


def test_a_replica_that_answers_a_probe_is_half_open_and_its_first_failure_opens_it_again() -> None:
    pool = ReplicaPool(["a"], 3)
    (a,) = pool
    pool.record_failure(a, refused=True)
    pool.half_open(a)
    assert not a.circuit_open
    pool.record_failure(a)
    assert a.circuit_open
    pool.half_open(a)
    pool.record_success(a)
    pool.record_failure(a)
    assert not a.circuit_open


def test_an_open_circuit_is_skipped_and_with_all_open_every_replica_is_tried_as_a_last_resort() -> None:
    pool, strict = ReplicaPool(["a", "b"], 3), ReplicaPool(["a", "b"], 3, last_resort=False)
    for tested in (pool, strict):
        a, b = tested
        tested.record_failure(a, refused=True)
        assert [picked(tested) for _ in range(3)] == [b, b, b]
        tested.record_failure(b, refused=True)
    assert {picked(pool).url for _ in range(2)} == {"a", "b"}
    assert strict.pick(0.0) is None


def test_a_replica_that_asked_for_a_pause_gets_no_requests_for_a_minute_at_most() -> None:
    pool = ReplicaPool(["a", "b"], 3)
    a, b = pool
    pool.pause(a, until=10.0, now=0.0)
    assert [picked(pool, 9.0) for _ in range(2)] == [b, b]
    assert pool.seconds_until_available(9.0) == 0.0
    pool.pause(b, until=10_000.0, now=0.0)
    assert pool.pick(9.0) is None
    assert pool.seconds_until_available(9.0) == 1.0
    assert picked(pool, 10.0) is a
    pool.record_failure(a, refused=True)
    assert pool.pick(59.0) is None
    assert picked(pool, 60.0) is b


def test_the_retry_budget_is_a_fifth_of_the_requests_however_long_the_outage() -> None:
    budget = RetryBudget(0.2, reserve=10.0)
    retries = 0
    for _ in range(1_000):
        budget.record_request()
        retries += budget.try_spend()
    assert 200 <= retries <= 210


def test_a_replica_that_answered_a_probe_and_then_errs_is_not_away() -> None:
    """It was away before, and one client's 500 right after it came back sent everybody's prompts to the fallback."""
    pool = ReplicaPool(["http://a"], 3, last_resort=False)
    (replica,) = pool
    pool.record_failure(replica, refused=True)
    assert not pool.answers_with_errors
    pool.half_open(replica)
    pool.record_failure(replica, erred=True)
    assert replica.circuit_open and pool.answers_with_errors
    pool.record_failure(replica, refused=True)
    assert not pool.answers_with_errors, "now it is away"
