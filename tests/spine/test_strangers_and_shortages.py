"""What others do to the servers, and what this machine lacks, holds up no more than it must and rejects nothing."""

import threading

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from db.ledger.post_calls import post_calls
from db.postgres.engine import make_engine
from tests.conftest import Database
from tests.spine.billing import (
    assert_sound,
    balances,
    event,
    prepare,
    price,
    push,
    rejections,
    run_meters,
    running_meters,
)
from tests.waiting import wait_until
from workers import batch_poster
from workers import meter as meter_module
from workers.stream import backlog


def test_a_row_that_a_stranger_holds_holds_up_only_its_own_org(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "LOCK_RETRIES", 1)
    monkeypatch.setattr(meter_module, "LOCK_RETRIES_RECOVERED", 1)
    monkeypatch.setattr(meter_module, "CLAIM_EVERY_S", 0.2)
    prepare(database.engine, org_ids=range(1, 6), prices=[price("bolt", "0.08")])
    impatient = make_engine(database.url, application_name="tests", pool_size=10, lock_timeout_ms=300)
    stranger_url = (
        make_url(database.owner_url).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    with psycopg.connect(stranger_url) as stranger:
        stranger.execute("SELECT * FROM accounts WHERE org_id = 3 FOR UPDATE")
        with running_meters(impatient, redis_client, abandoned_after_ms=500):
            push(redis_client, [event(org_id=org_id, call_id=1) for org_id in range(1, 6)])
            wait_until(
                lambda: balances(database.engine) == {1: -16, 2: -16, 3: 0, 4: -16, 5: -16}, limit_s=40
            )
            push(redis_client, [event(org_id=org_id, call_id=2) for org_id in (1, 2, 4, 5)])
            wait_until(
                lambda: balances(database.engine) == {1: -32, 2: -32, 3: 0, 4: -32, 5: -32}, limit_s=40
            )
            assert backlog(redis_client).pending == 1
            stranger.rollback()
            wait_until(lambda: balances(database.engine)[3] == -16, limit_s=40)
            wait_until(lambda: backlog(redis_client).length == 0, limit_s=10)
    impatient.dispose()
    assert rejections(database.engine) == []
    assert_sound(database.engine)


@pytest.mark.parametrize("fields", [2, 3])
def test_an_entry_with_several_events_is_kept_whole(
    database: Database, redis_client: redis.Redis, fields: int
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    words = [word for n in range(fields) for word in ("event", f'{{"call_id":{n}}}')]
    redis_client.execute_command("XADD", "calls:completed", "*", *words)  # type: ignore[no-untyped-call]
    redis_client.execute_command("XADD", "calls:completed", "*", "a", "1", "a", "2")  # type: ignore[no-untyped-call]
    run_meters(database.engine, redis_client)
    several, none = rejections(database.engine)
    assert (several.reason, several.raw.count(b"event=")) == ("invalid_field", fields)
    assert (none.reason, bytes(none.raw)) == ("invalid_field", b"a=1\na=2")


@pytest.mark.parametrize(
    "shortage", [MemoryError(), RuntimeError("can't start new thread"), OSError("no room")]
)
def test_a_passing_shortage_of_this_machine_rejects_nothing(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    left = [shortage]

    def short_once(*arguments: object, **options: object) -> object:
        if left:
            raise left.pop()
        return post_calls(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_poster, "post_calls", short_once)
    push(redis_client, [event()])
    run_meters(database.engine, redis_client)
    assert balances(database.engine) == {1: -16}
    assert rejections(database.engine) == []


def test_a_batch_does_without_a_watcher_where_no_thread_can_be_had(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    monkeypatch.setattr(threading.Timer, "start", refuse)
    left = [psycopg.errors.LockNotAvailable("held")]

    def held_once(*arguments: object, **options: object) -> object:
        if left:
            raise left.pop()
        return post_calls(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_poster, "post_calls", held_once)
    push(redis_client, [event()])
    run_meters(database.engine, redis_client)
    assert balances(database.engine) == {1: -16}
    assert rejections(database.engine) == []


def test_a_billed_call_that_comes_again_with_an_unknown_tier_is_a_conflict(
    database: Database, redis_client: redis.Redis
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    push(redis_client, [event(), event(tier="nonesuch"), event(call_id=2, tier="nonesuch")])
    run_meters(database.engine, redis_client)
    assert [row.reason for row in rejections(database.engine)] == ["conflicting_duplicate", "unknown_tier"]


def test_a_meter_ends_when_what_follows_its_commits_fails_unforeseen(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it happens between batches, to gates that are owed: a meter whose gates nobody moves must not go on."""
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    monkeypatch.setattr("workers.after_commit.OWED_EVERY_S", 0.05)
    answers = [redis.ResponseError("OOM"), RuntimeError("unforeseen")]

    def fail(*_arguments: object) -> None:
        raise answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr("metering.signals.gates.Gates.try_to_follow", fail)
    push(redis_client, [event()])
    with (
        pytest.raises(RuntimeError, match="unforeseen"),
        running_meters(database.engine, redis_client) as meters,
    ):
        wait_until(meters[0].done, limit_s=20)
    assert balances(database.engine) == {1: -16}
