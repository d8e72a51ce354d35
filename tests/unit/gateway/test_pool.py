from __future__ import annotations

from services.gateway.upstreams.pool import ModelReplica, ReplicaPool
from services.gateway.upstreams.retries import RetryBudget


def picked(pool: ReplicaPool) -> ModelReplica:
    replica = pool.pick()
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


def test_the_retry_budget_is_a_fifth_of_the_requests_however_long_the_outage() -> None:
    budget = RetryBudget(0.2, reserve=10.0)
    retries = 0
    for _ in range(1_000):
        budget.record_request()
        retries += budget.try_spend()
    assert 200 <= retries <= 210


def test_with_a_fallback_and_all_circuits_open_only_replicas_that_answer_with_errors_are_tried() -> None:
    """They are there: one client's requests may be all that they fail."""
    pool = ReplicaPool(["a", "b"], 3, last_resort=False)
    a, b = pool
    pool.record_failure(a, refused=True)
    pool.record_failure(b, refused=True)
    assert pool.pick() is None
    pool.half_open(b)
    pool.record_failure(b, erred=True)
    assert (picked(pool), pool.pick([b])) == (b, None)


def test_an_open_circuit_is_skipped_and_with_all_open_every_replica_is_tried() -> None:
    pool = ReplicaPool(["a", "b"], 3)
    a, b = pool
    pool.record_failure(a, refused=True)
    assert [picked(pool) for _ in range(3)] == [b, b, b]
    assert (pool.pick([b]), pool.all_open) == (None, False)
    pool.record_failure(b, refused=True)
    assert ({picked(pool).url for _ in range(2)}, pool.all_open) == ({"a", "b"}, True)
    assert pool.pick([a, b]) is None
