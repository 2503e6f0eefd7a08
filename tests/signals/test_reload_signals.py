"""Signals about auto-reloads are said just if their cause was committed, and at least once."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import text

from db.attempts.outbox import SignalKey, add_signal, delete_signals, read_signals
from db.postgres.engine import in_transaction, transaction
from metering.client import MeteringClient
from metering.runtime.names import SIGNALS_LOG
from metering.signals.reload_signals import (
    OVERDUE_AFTER,
    PAGE,
    ReloadSignals,
    publish_overdue,
    publish_pending,
)
from tests.conftest import Database
from tests.database_clock import own_database_clock, set_database_clock
from tests.signals.listening import listening, signals_log

NOW = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)


def written(
    database: Database,
    org_id: int = 42,
    *,
    at: datetime = NOW,
    fields: Mapping[str, object] | None = None,
    number: int = 1,
) -> list[SignalKey]:
    """The keys of so many signals that were committed and not said."""
    with transaction(database.engine) as connection:
        return [
            (
                org_id,
                add_signal(connection, org_id, "auto_reload.skipped", fields or {"reason": "paused"}, at),
            )
            for _ in range(number)
        ]


def left(database: Database) -> int:
    with database.engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM pending_signals")) or 0


@contextmanager
def refused(client: redis.Redis) -> Iterator[None]:
    """While Redis can't write the log."""
    client.set(SIGNALS_LOG, "somebody else's")
    yield
    client.delete(SIGNALS_LOG)


def test_a_signal_is_said_in_the_log_and_on_the_channel_and_forgotten(
    database: Database, redis_client: redis.Redis
) -> None:
    fields = {"attempt_id": "6b1", "amount_cents": 5_000, "code": "card_declined", "paused_until": None}
    [(org_id, signal_id)] = written(database, fields=fields)
    expected = {
        "type": "auto_reload.skipped",
        "org_id": 42,
        "id": signal_id,
        **fields,
        "at": "2026-04-20T18:25:06.201Z",
    }
    with listening(redis_client) as channel:
        assert publish_pending(database.engine, ReloadSignals(redis_client), [(org_id, signal_id)]) == 1
        heard = channel.get_message(timeout=5)
    assert heard is not None
    assert json.loads(heard["data"]) == expected
    assert list(json.loads(heard["data"])) == list(expected)
    assert signals_log(redis_client) == [expected]
    assert left(database) == 0
    assert publish_pending(database.engine, ReloadSignals(redis_client), [(org_id, signal_id)]) == 0
    assert len(signals_log(redis_client)) == 1


def test_a_cause_that_is_rolled_back_says_nothing(database: Database, redis_client: redis.Redis) -> None:
    with suppress(ZeroDivisionError), transaction(database.engine) as connection:
        add_signal(connection, 42, "auto_reload.skipped", {}, NOW)
        _crash()
    assert publish_overdue(database.engine, ReloadSignals(redis_client)) == 0
    assert signals_log(redis_client) == []


def test_what_a_crash_left_is_said_after_ten_seconds_and_not_before(
    database: Database, redis_client: redis.Redis
) -> None:
    written(database)
    signals = ReloadSignals(redis_client)
    with own_database_clock(database.admin_url) as admin:
        set_database_clock(admin, NOW + OVERDUE_AFTER)
        assert publish_overdue(database.engine, signals) == 0
        set_database_clock(admin, NOW + OVERDUE_AFTER + timedelta(milliseconds=1))
        assert publish_overdue(database.engine, signals) == 1
    assert (len(signals_log(redis_client)), left(database)) == (1, 0)


def test_what_was_left_by_a_clock_that_was_ahead_is_said_all_the_same(
    database: Database, redis_client: redis.Redis
) -> None:
    written(database)
    signals = ReloadSignals(redis_client)
    with own_database_clock(database.admin_url) as admin:
        set_database_clock(admin, NOW - timedelta(seconds=59))
        assert publish_overdue(database.engine, signals) == 0
        set_database_clock(admin, NOW - timedelta(hours=1))
        assert publish_overdue(database.engine, signals) == 1


def test_what_could_not_be_said_stays(database: Database, redis_client: redis.Redis) -> None:
    keys = written(database, number=3)
    with refused(redis_client), pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        publish_pending(database.engine, ReloadSignals(redis_client), keys)
    assert left(database) == 3
    assert publish_pending(database.engine, ReloadSignals(redis_client), keys) == 3
    assert [signal["id"] for signal in signals_log(redis_client)] == [signal_id for _, signal_id in keys]


def test_a_crash_between_saying_and_deleting_says_the_same_once_more(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = written(database)
    with monkeypatch.context() as patched:
        patched.setattr("metering.signals.reload_signals.delete_signals", _crash)
        with pytest.raises(ZeroDivisionError):
            publish_pending(database.engine, ReloadSignals(redis_client), keys)
    assert publish_overdue(database.engine, ReloadSignals(redis_client)) == 1
    entries: Any = redis_client.xrange(SIGNALS_LOG)
    (_, first), (_, second) = entries
    assert first == second
    assert left(database) == 0


def _crash(*_: object) -> None:
    raise ZeroDivisionError


def test_more_than_a_page_is_said_in_order_once_each(database: Database, redis_client: redis.Redis) -> None:
    keys = written(database, number=PAGE + 2)
    assert publish_overdue(database.engine, ReloadSignals(redis_client)) == PAGE + 2
    assert [signal["id"] for signal in signals_log(redis_client)] == [signal_id for _, signal_id in keys]
    assert left(database) == 0


def test_orgs_do_not_delete_each_others_signals(database: Database, redis_client: redis.Redis) -> None:
    [(_, one)], [(_, other)] = written(database, 1), written(database, 2)
    delete_signals(database.engine, [(1, other), (2, one)])
    assert [each.key for each in read_signals(database.engine, [(1, one), (2, other), (1, other)])] == [
        (1, one),
        (2, other),
    ]


def test_several_who_say_the_same_lose_nothing_and_do_not_wait_for_each_other(
    database: Database, redis_client: redis.Redis
) -> None:
    keys = written(database, number=PAGE + 1)
    with ThreadPoolExecutor(4) as threads:
        saying = [
            threads.submit(publish_overdue, database.engine, ReloadSignals(redis_client)) for _ in range(4)
        ]
        assert sum(each.result(timeout=30) for each in saying) >= PAGE + 1
    assert {signal["id"] for signal in signals_log(redis_client)} == {signal_id for _, signal_id in keys}
    assert left(database) == 0


def test_nothing_is_said_while_a_transaction_is_open(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    say = ReloadSignals.publish

    def watched(self: ReloadSignals, messages: Any) -> None:
        seen.append(in_transaction())
        say(self, messages)

    monkeypatch.setattr(ReloadSignals, "publish", watched)
    publish_pending(database.engine, ReloadSignals(redis_client), written(database))
    publish_overdue(database.engine, ReloadSignals(redis_client))
    assert seen
    assert not any(seen)


def test_the_client_for_telephony_gives_them_too(
    database: Database, redis_client: redis.Redis, redis_url: str
) -> None:
    with MeteringClient(redis_url) as metering, metering.signals() as heard:
        [key] = written(database)
        publish_pending(database.engine, ReloadSignals(redis_client), [key])
        signal = next(heard)
    assert (signal.type, signal.org_id, signal.at) == ("auto_reload.skipped", 42, NOW)
    assert (signal.balance_cents, signal.version) == (None, None)
    assert signal.raw["reason"] == "paused"
    assert signal.raw["id"] == key[1]
