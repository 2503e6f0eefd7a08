"""The state: one piece of work at a time, all of it or nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from metering.sandbox.stripe.errors import DeclinedError, InvalidRequestError
from metering.sandbox.stripe.store import Store, StoreClosedError
from tests.payments.world import MovableClock


def _add(store: Store, object_id: str) -> None:
    with store.work() as work:
        work.emit("customer.created", work.add({"id": object_id, "object": "customer", "email": None}))


def test_one_piece_of_work_at_a_time() -> None:
    inside, most, counting = 0, 0, threading.Lock()

    def enter() -> datetime:  # the clock is asked first of all
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.005)
        return datetime(2026, 1, 1, tzinfo=UTC)

    def leave(_: object) -> None:  # events are told last of all
        nonlocal inside
        with counting:
            inside -= 1

    store = Store(None, enter)
    store.on_events = leave
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: _add(store, f"cus_{number}"), range(32)))
    assert (most, len(store.ids("customer"))) == (1, 32)


@pytest.mark.parametrize(
    ("error", "kept"),
    [(InvalidRequestError("no"), False), (DeclinedError("no"), True), (ValueError(), False)],
)
def test_what_an_error_leaves(clock: MovableClock, error: Exception, kept: bool) -> None:
    store = Store(None, clock)

    def fail() -> None:
        with store.work() as work:
            work.add({"id": "cus_1", "object": "customer", "email": None})
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (store.peek("cus_1") is not None) == kept


def test_a_change_is_seen_at_once_by_its_own_work_and_later_by_others(clock: MovableClock) -> None:
    store = Store(None, clock)
    _add(store, "cus_1")
    _add(store, "cus_2")
    with store.work() as work:
        held = work.find("cus_1", "customer", "id")
        work.edit(held)["email"] = "new@example.com"
        work.add({"id": "cus_3", "object": "customer", "email": "new@example.com"})
        assert held["email"] is None
        found = [each["id"] for each in work.newest("customer", ("email", "new@example.com"))]
        assert found == ["cus_3", "cus_1"]
        assert [each["id"] for each in work.newest("customer", ("email", None))] == ["cus_2"]
    with store.work() as work:
        found = [each["id"] for each in work.newest("customer", ("email", "new@example.com"))]
        assert found == ["cus_3", "cus_1"]
        assert [each["id"] for each in work.newest("customer")] == ["cus_3", "cus_2", "cus_1"]


def test_nothing_is_done_after_the_end(clock: MovableClock) -> None:
    store = Store(None, clock)
    store.close()
    with pytest.raises(StoreClosedError):
        _add(store, "cus_1")
