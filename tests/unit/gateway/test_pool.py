from __future__ import annotations

from services.gateway.upstreams.pool import Pool, Replica
from services.gateway.upstreams.retries import RetryBudget


def picked(pool: Pool, now: float = 0.0) -> Replica:
    replica = pool.pick(now)
    assert replica is not None
    return replica


def test_the_replica_with_the_fewest_outstanding_requests_is_asked_and_equals_take_turns() -> None:
    pool = Pool(["a", "b", "c"], 3)
    for _ in range(9):
        picked(pool).outstanding += 1
    assert [one.outstanding for one in pool] == [3, 3, 3]
    a, b, c = pool
    b.outstanding = 1
    assert picked(pool) is b
    b.outstanding = 3
    assert [picked(pool) for _ in range(3)] == [a, c, b]


def test_a_circuit_opens_after_failures_in_a_row_and_at_once_where_nobody_listens() -> None:
    pool = Pool(["a", "b"], 3)
    a, b = pool
    pool.failed(a)
    pool.failed(a)
    pool.succeeded(a)
    pool.failed(a)
    pool.failed(a)
    assert not a.is_open
    pool.failed(a)
    pool.failed(b, gone=True)
    assert a.is_open and b.is_open


def test_a_replica_that_answers_a_probe_is_half_open_and_its_first_failure_opens_it_again() -> None:
    pool = Pool(["a"], 3)
    (a,) = pool
    pool.failed(a, gone=True)
    pool.probed(a)
    assert not a.is_open
    pool.failed(a)
    assert a.is_open
    pool.probed(a)
    pool.succeeded(a)
    pool.failed(a)
    assert not a.is_open


def test_an_open_circuit_is_passed_over_and_when_all_are_open_each_is_asked_as_a_last_resort() -> None:
    pool, strict = Pool(["a", "b"], 3), Pool(["a", "b"], 3, last_resort=False)
    for one in (pool, strict):
        a, b = one
        one.failed(a, gone=True)
        assert [picked(one) for _ in range(3)] == [b, b, b]
        one.failed(b, gone=True)
    assert {picked(pool).url for _ in range(2)} == {"a", "b"}
    assert strict.pick(0.0) is None


def test_a_replica_that_asked_to_wait_is_left_alone_until_then_and_for_a_minute_at_most() -> None:
    pool = Pool(["a", "b"], 3)
    a, b = pool
    pool.busy(a, until=10.0, now=0.0)
    assert [picked(pool, 9.0) for _ in range(2)] == [b, b]
    assert pool.seconds_busy(9.0) == 0.0
    pool.busy(b, until=10_000.0, now=0.0)
    assert pool.pick(9.0) is None
    assert pool.seconds_busy(9.0) == 1.0
    assert picked(pool, 10.0) is a
    pool.failed(a, gone=True)
    assert pool.pick(59.0) is None
    assert picked(pool, 60.0) is b


def test_retries_of_refused_work_are_a_fifth_of_the_requests_however_long_the_outage() -> None:
    budget = RetryBudget(0.2, reserve=10.0)
    retries = 0
    for _ in range(1_000):
        budget.asked()
        retries += budget.spend()
    assert 200 <= retries <= 210
