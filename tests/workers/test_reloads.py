"""From calls that cross the minimum to one charge: through the meter, the queue and the jobs, and without any of them."""

import signal
import threading
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.payments.charges import process_attempt
from metering.payments.context import Payments
from metering.rules.reloads import CLOCK_MARGIN
from metering.runtime.clock import system_clock
from metering.sandbox.stripe.faults import RequestFault
from metering.signals.reload_signals import OVERDUE_AFTER
from tests.conftest import Database
from tests.payments.world import World, make_world
from tests.signals.listening import gate, signals_log
from tests.signals.test_jobs import role
from tests.spine.billing import event, price, push, run_meters
from tests.waiting import wait_until
from tests.workers.reloading import LIMIT_S, ready_to_reload, running_jobs, wait_for_balance
from workers import jobs, payment_reconciler
from workers.enqueue import AttemptQueue
from workers.payment_reconciler import ATTEMPT_THREADS, payment_tasks
from workers.periodic import PeriodicTask


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation as of now, with org 1. Its clock stands, so no attempt gets due for the reconciler unless it is moved."""
    with make_world(database, redis_client, at=system_clock()) as made:
        with transaction(database.engine) as connection:
            set_price(connection, price("bolt", "0.08"), system_clock)
        yield made


def call(world: World, number: int, *, org_id: int = 1, seconds: int = 75) -> None:
    """A call of two minutes, 16 cents, unless it lasts otherwise."""
    push(world.client, [event(org_id=org_id, call_id=number, duration_seconds=seconds)])


def bill(world: World, *, meters: int = 1, batch_limit: int = 500) -> None:
    run_meters(world.engine, world.client, meters=meters, batch_limit=batch_limit, clock=world.clock)


@contextmanager
def running_round(world: World, name: str) -> Iterator[None]:
    """One part of the reconciler, and no other, in a thread while the block runs."""
    (chosen,) = (each for each in payment_tasks(world.payments) if each.name == name)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(chosen.run, stop)
        try:
            yield
        finally:
            stop.set()
        running.result(timeout=LIMIT_S)


def said(world: World, prefix: str = "auto_reload.") -> list[str]:
    return [each["type"] for each in signals_log(world.client) if each["type"].startswith(prefix)]


@pytest.mark.parametrize(("meters", "batch_limit"), [(1, 500), (3, 1)], ids=["one batch", "fifty batches"])
def test_fifty_calls_that_cross_together_make_one_charge(world: World, meters: int, batch_limit: int) -> None:
    ready_to_reload(world)
    for number in range(1, 51):
        call(world, number)
    with running_jobs(world):
        bill(world, meters=meters, batch_limit=batch_limit)
        wait_for_balance(world, 1_000 - 50 * 16 + 5_000)
        wait_until(lambda: said(world) == ["auto_reload.succeeded"], limit_s=LIMIT_S)
    assert [attempt.amount_cents for attempt in world.attempts()] == [5_000]
    assert world.sandbox.totals().charges == 1
    assert world.rows("SELECT FROM pending_signals") == []
    world.assert_sound()


def test_an_org_that_goes_below_zero_is_reloaded_and_its_gate_opens_again(world: World) -> None:
    ready_to_reload(world)
    call(world, 1, seconds=60 * 130)  # 10.40
    with running_jobs(world):
        bill(world)
        wait_for_balance(world, -40 + 5_000)
        wait_until(lambda: gate(world.client, 1)["state"] == "open", limit_s=LIMIT_S)
    assert said(world, "balance.") == ["balance.restored", "balance.exhausted", "balance.restored"]


def test_an_amount_too_small_is_charged_again_after_each_settlement(world: World) -> None:
    ready_to_reload(world, amount_cents=500)
    call(world, 1, seconds=60 * 200)  # 16.00
    with running_jobs(world):
        bill(world)
        wait_for_balance(world, -600 + 4 * 500)
        wait_until(lambda: len(said(world)) == 4, limit_s=LIMIT_S)
    assert [attempt.status for attempt in world.attempts()] == ["succeeded"] * 4
    world.assert_sound()


def test_the_same_message_many_times_at_once_is_one_charge(world: World) -> None:
    ready_to_reload(world)
    call(world, 1)
    bill(world)
    (attempt,) = world.attempts()
    world.sandbox.set_latency(0.2)
    with running_jobs(world, processes=2):
        AttemptQueue(world.client).enqueue_all([(1, attempt.id)] * 20)
        wait_for_balance(world, 984 + 5_000)
    assert world.sandbox.totals().charges == 1
    assert world.sandbox.totals().asked["payment_intents.create"] == 1
    world.assert_sound()


def test_a_lost_message_is_made_up_for_without_redis(world: World) -> None:
    ready_to_reload(world)
    call(world, 1)
    bill(world)
    world.client.flushall()
    with running_round(world, "attempts"):
        assert world.attempts()[0].open
        world.clock.move(seconds=10)
        wait_for_balance(world, 984 + 5_000)
    assert world.sandbox.totals().charges == 1


def test_a_batch_is_finished_although_nothing_can_be_enqueued(
    world: World, logged: list[MutableMapping[str, Any]]
) -> None:
    ready_to_reload(world)
    world.client.set("metering:jobs:__heartbeats__", "somebody else's")
    call(world, 1)
    bill(world)
    assert "attempts are left to the reconciler" in [line["event"] for line in logged]
    assert [attempt.open for attempt in world.attempts()] == [True]


def test_signals_that_a_meter_could_not_say_are_said_by_the_reconciler(
    world: World, logged: list[MutableMapping[str, Any]]
) -> None:
    ready_to_reload(world)
    world.settings(monthly_limit_cents=4_999)
    log = "balance:signals:log"
    world.client.rename(log, "kept")
    world.client.set(log, "somebody else's")
    call(world, 1)
    bill(world)
    assert "signals are left to the reconciler" in [line["event"] for line in logged]
    world.client.rename("kept", log)
    with running_round(world, "signals"):
        world.clock.move(seconds=OVERDUE_AFTER.total_seconds() + 1)
        wait_until(lambda: said(world) == ["auto_reload.skipped"], limit_s=LIMIT_S)
    assert signals_log(world.client)[-1]["reason"] == "monthly_limit"


def test_what_a_meter_left_that_died_after_its_commit_is_charged_by_the_reconciler(
    world: World, database: Database, redis_url: str, tmp_path: Path
) -> None:
    ready_to_reload(world)
    call(world, 1)
    with role(database, redis_url, tmp_path / "log", "meter", crash_point="meter.after_commit") as meter:
        assert meter.wait(timeout=LIMIT_S) == -signal.SIGKILL
    assert [attempt.open for attempt in world.attempts()] == [True]
    with running_jobs(world):
        world.clock.move(seconds=60)
        wait_for_balance(world, 984 + 5_000)
        wait_until(lambda: said(world) == ["auto_reload.succeeded"], limit_s=LIMIT_S)


def test_when_the_month_turns_an_exhausted_org_is_reloaded_without_a_call(world: World) -> None:
    world.clock.at = datetime(2026, 4, 30, 23, 59, 59, 999_000, tzinfo=UTC)
    ready_to_reload(world)
    world.settings(monthly_limit_cents=0)
    world.adjust(-1_000)
    world.settings(monthly_limit_cents=5_000)
    world.work()
    world.adjust(-5_000)
    with running_jobs(world):
        wait_until(lambda: said(world)[-1:] == ["auto_reload.skipped"], limit_s=LIMIT_S)
        assert world.balance() == 0
        world.clock.move(milliseconds=1)
        world.clock.at += CLOCK_MARGIN  # Stripe's clock may be behind ours
        wait_for_balance(world, 5_000)
        wait_until(lambda: gate(world.client, 1)["state"] == "open", limit_s=LIMIT_S)


@pytest.mark.long
def test_those_that_hang_at_stripe_hold_up_no_others(world: World) -> None:
    org_ids = range(1, ATTEMPT_THREADS + 5)
    ready_to_reload(world, org_ids)
    for org_id in org_ids:
        world.adjust(-1, org_id=org_id)
    world.enqueued.clear()
    held = ATTEMPT_THREADS // 2
    world.sandbox.set_fault(
        RequestFault.HANG_BEFORE, operation="payment_intents.create", count=held, seconds=10
    )

    def reloaded() -> int:
        return sum(world.balance(org_id) == 5_999 for org_id in org_ids)

    with running_round(world, "attempts"):
        world.clock.move(seconds=10)
        wait_until(lambda: world.sandbox.totals().faults_met.get("hang_before") == held, limit_s=LIMIT_S)
        wait_until(lambda: reloaded() == len(org_ids) - held, limit_s=6)
        wait_until(lambda: reloaded() == len(org_ids), limit_s=LIMIT_S)
    assert world.sandbox.totals().charges == len(org_ids)


@pytest.mark.long
def test_more_attempts_than_a_page_are_all_worked_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those behind others that can't be worked on, and are due still."""
    monkeypatch.setattr(payment_reconciler, "PAGE", 3)
    org_ids = range(1, 15)
    ready_to_reload(world, org_ids)
    for org_id in org_ids:
        world.adjust(-1, org_id=org_id)
    world.enqueued.clear()

    def fails_for_some(payments: Payments, org_id: int, attempt_id: UUID) -> object:
        if org_id <= 7:
            raise ZeroDivisionError
        return process_attempt(payments, org_id, attempt_id)

    monkeypatch.setattr(payment_reconciler, "process_attempt", fails_for_some)
    with running_round(world, "attempts"):
        world.clock.move(seconds=10)
        wait_until(lambda: all(world.balance(org_id) == 5_999 for org_id in org_ids[7:]), limit_s=LIMIT_S)
    assert {world.balance(org_id) for org_id in org_ids[:7]} == {999}


def test_a_part_that_fails_goes_on_and_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    """Here the rule can't be asked and Stripe is away; attempts are worked on and signals said all the same."""
    ready_to_reload(world)
    call(world, 1)
    bill(world)
    world.client.delete("metering:jobs:money", "metering:jobs:money.msgs")
    failed = threading.Semaphore(0)

    def fails(*_: object) -> None:
        failed.release()
        raise ZeroDivisionError

    monkeypatch.setattr(payment_reconciler, "PERIOD_S", 0.05)
    monkeypatch.setattr(payment_reconciler, "ask_due", fails)
    world.sandbox.set_fault(RequestFault.UNAUTHORIZED, operation="events.list", count=None)
    with running_jobs(world):
        world.clock.move(seconds=60)
        wait_for_balance(world, 984 + 5_000)
        for _ in range(3):
            assert failed.acquire(timeout=LIMIT_S)
        wait_until(lambda: said(world) == ["auto_reload.succeeded"], limit_s=LIMIT_S)
        wait_until(lambda: world.sandbox.totals().faults_met, limit_s=LIMIT_S)
    interrupted = {line["task"] for line in logged if line["event"] == "a periodic task was interrupted"}
    assert interrupted == {"reload rule", "Stripe's events"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_part_that_ends_ends_the_role(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class DoesNotEndAtAnyError(BaseException):
        pass

    def ends(_: threading.Event) -> None:
        raise DoesNotEndAtAnyError

    monkeypatch.setattr(jobs, "payment_tasks", lambda _: [PeriodicTask("ends", ends, 1)])
    with pytest.raises(DoesNotEndAtAnyError):
        jobs.run_jobs(world.payments, world.client, stop=threading.Event())


def test_a_message_of_an_attempt_that_is_not_there_does_nothing(world: World) -> None:
    ready_to_reload(world)
    with running_jobs(world):
        queue = AttemptQueue(world.client)
        queue.enqueue(1, uuid4())
        queue.enqueue(777, uuid4())
        wait_until(lambda: world.client.llen("metering:jobs:money") == 0, limit_s=LIMIT_S)
    assert world.attempts() == []
