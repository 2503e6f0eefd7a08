"""The audit as a job: it runs by itself, once over all processes, and says what is broken until it is mended."""

import threading
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY
from sqlalchemy import text

from db.audit.invariants import INVARIANTS
from db.audit.passes import CHANGES, WHOLE, read_standing
from db.postgres.engine import make_engine, transaction
from metering.runtime.clock import system_clock, to_milliseconds
from tests.conftest import Database
from tests.database_clock import own_database_clock
from tests.db import execute_as
from tests.payments.world import MovableClock
from tests.signals.test_jobs import metrics, metrics_url, role
from tests.spine.billing import event, prepare, price, push, run_meters
from tests.waiting import wait_until
from workers.audit_job import CHANGES_EVERY, WHOLE_EVERY, AuditJob

NOBODY_STOPS = threading.Event()


def known(invariant: str) -> float:
    value = REGISTRY.get_sample_value("metering_invariant_violations", {"invariant": invariant})
    assert value is not None, "not told"
    return value


def age_s(scope: str) -> float | None:
    return REGISTRY.get_sample_value("metering_audit_age_seconds", {"scope": scope})


NEAR_S = 10.0
"""Ages grow meanwhile."""


@pytest.fixture
def billed(database: Database, redis_client: redis.Redis) -> Database:
    """Two orgs with calls."""
    prepare(database.engine, org_ids=[1, 2], prices=[price("bolt", "0.08")])
    push(redis_client, [event(org_id=org_id, call_id=n) for org_id in (1, 2) for n in range(1, 5)])
    run_meters(database.engine, redis_client)
    return database


@pytest.fixture
def clock(billed: Database) -> Iterator[MovableClock]:
    """Postgres's."""
    with own_database_clock(billed.admin_url) as admin:
        yield MovableClock(system_clock(), admin)


def test_damage_is_told_until_it_is_mended(
    billed: Database, clock: MovableClock, logged: list[MutableMapping[str, Any]]
) -> None:
    job = AuditJob(billed.engine)
    job.audit_changes(NOBODY_STOPS)
    job.audit_everything(NOBODY_STOPS)
    assert {known(name) for name in INVARIANTS} == {0}
    assert age_s(CHANGES) == pytest.approx(0, abs=NEAR_S)
    assert logged == []

    # Old rows, of which the pass over what is new knows nothing.
    execute_as(
        billed.admin_url,
        "ALTER TABLE transactions DISABLE TRIGGER USER",
        "UPDATE transactions SET description = 'x' || description WHERE org_id = 2",
    )
    clock.move(seconds=CHANGES_EVERY.total_seconds())
    job.audit_changes(NOBODY_STOPS)
    assert known("description_matches") == 0
    clock.move(seconds=WHOLE_EVERY.total_seconds())
    job.audit_everything(NOBODY_STOPS)
    for _ in "12":
        clock.move(seconds=CHANGES_EVERY.total_seconds())
        job.audit_changes(NOBODY_STOPS)
        assert known("description_matches") == 4
    broken = [line for line in logged if line["event"] == "an invariant is broken"]
    assert len(broken) == 3 * 4
    assert {(line["invariant"], line["org_id"]) for line in broken} == {("description_matches", 2)}

    execute_as(
        billed.admin_url, "UPDATE transactions SET description = substr(description, 2) WHERE org_id = 2"
    )
    clock.move(seconds=CHANGES_EVERY.total_seconds())
    job.audit_changes(NOBODY_STOPS)
    assert known("description_matches") == 0
    assert logged[-1]["org_ids"] == [2]


def test_every_process_tells_what_one_has_found(
    billed: Database, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = AuditJob(billed.engine), AuditJob(billed.engine)
    execute_as(billed.admin_url, "UPDATE accounts SET balance_cents = 1 WHERE org_id = 1")
    first.audit_changes(NOBODY_STOPS)
    with transaction(billed.engine) as connection:
        began = connection.scalar(text("SELECT started_at FROM audit_passes WHERE name = 'changes'"))
    clock.move(seconds=30)
    second.audit_changes(NOBODY_STOPS)
    with transaction(billed.engine) as connection:
        assert connection.scalar(text("SELECT started_at FROM audit_passes WHERE name = 'changes'")) == began
    assert known("balance_is_sum") == known("balance_is_last") == 1
    assert age_s(CHANGES) == pytest.approx(30, abs=NEAR_S)
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 3_600)  # and nobody looks any more
    assert age_s(CHANGES) == pytest.approx(3_630, abs=NEAR_S)


def test_a_pass_that_fails_or_is_stopped_holds_up_no_later_one(billed: Database, clock: MovableClock) -> None:
    stopped = threading.Event()
    stopped.set()
    impatient = make_engine(billed.url, application_name="tests", lock_timeout_ms=200)
    failing, job = AuditJob(impatient), AuditJob(billed.engine)
    owner = make_engine(billed.owner_url, application_name="tests")
    with transaction(owner) as stranger:
        stranger.execute(text("LOCK TABLE transactions IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(Exception, match="lock timeout"):
            failing.audit_changes(NOBODY_STOPS)
    failing.audit_everything(stopped)
    assert read_standing(billed.engine).finished_at == {CHANGES: None, WHOLE: None}

    clock.move(seconds=CHANGES_EVERY.total_seconds())
    job.audit_changes(stopped)
    clock.move(seconds=CHANGES_EVERY.total_seconds())
    job.audit_changes(NOBODY_STOPS)
    clock.move(seconds=WHOLE_EVERY.total_seconds())
    job.audit_everything(NOBODY_STOPS)
    assert None not in read_standing(billed.engine).finished_at.values()
    impatient.dispose()
    owner.dispose()


def test_a_pass_that_an_outage_ended_waits_for_no_lease(billed: Database, clock: MovableClock) -> None:
    """What the outage kept it from giving up, it gives up as soon as Postgres is back."""
    job = AuditJob(billed.engine)

    def outage(*_: object, **__: object) -> None:
        execute_as(billed.owner_url, "ALTER TABLE audit_passes RENAME TO away")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("workers.audit_job.audit_changes", outage)
        for _ in range(2):  # nor can it give up then what it claimed
            with pytest.raises(Exception, match="audit_passes"):
                job.audit_changes(NOBODY_STOPS)
    execute_as(billed.owner_url, "ALTER TABLE away RENAME TO audit_passes")
    clock.move(seconds=CHANGES_EVERY.total_seconds())
    job.audit_changes(NOBODY_STOPS)
    assert read_standing(billed.engine).finished_at[CHANGES] == to_milliseconds(clock.at)


def test_a_clock_that_was_wrong_holds_up_nobody_until_then(billed: Database, clock: MovableClock) -> None:
    """A program of before, or a Postgres whose clock was put right since."""
    job = AuditJob(billed.engine)
    clock.move(days=30)
    job.audit_changes(NOBODY_STOPS)
    clock.move(days=-30)
    job.audit_changes(NOBODY_STOPS)
    assert read_standing(billed.engine).finished_at[CHANGES] == to_milliseconds(clock.at)


def test_the_jobs_audit_by_themselves(billed: Database, redis_url: str, tmp_path: Path) -> None:
    execute_as(billed.admin_url, "UPDATE accounts SET transaction_count = 9 WHERE org_id = 1")
    with role(billed, redis_url, tmp_path / "log", "jobs") as process:
        url = metrics_url(tmp_path / "log")
        wait_until(
            lambda: metrics(url).get("metering_invariant_violations[transactions_counted]") == 1, limit_s=30
        )
        told = metrics(url)
        assert {told[f"metering_invariant_violations[{name}]"] for name in INVARIANTS} == {0, 1}
        process.terminate()
        assert process.wait(timeout=40) == 0
    assert "the account counts 9 transactions, there are 4" in (tmp_path / "log").read_text()
