"""signals(): every change of state, in order per org, none missing and none twice, or an error that says so."""

import json
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

import pytest
import redis

from metering.client import (
    CHUNK,
    SIGNALS_LOG,
    MeteringClient,
    Refused,
    Signal,
    Signals,
    SignalsLost,
    Unreachable,
    limits,
)
from metering.rules.gates import Balance
from metering.signals.gates import Gates
from tests.client.conftest import OwnValkey
from tests.waiting import wait_until

NOW = datetime(2026, 4, 20, 18, 25, 6, 201_000, UTC)
LIMIT_S = 40.0
LAST_ORG_ID = 99
"""Its signal is the last of all."""

Change = tuple[int, str]
"""The version and the type of a signal."""


@pytest.fixture
def client(redis_url: str) -> Iterator[MeteringClient]:
    with MeteringClient(redis_url) as client:
        yield client


@pytest.fixture
def short_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait for the end of a wait for nothing."""
    monkeypatch.setattr(limits, "BLOCK_S", 0.2)


@pytest.fixture
def gates(redis_client: redis.Redis) -> Gates:
    return Gates(redis_client)


def flip(gates: Gates, org_id: int, first_version: int, number: int = 1) -> None:
    """So many changes of an org's state; those of odd versions open its gate."""
    for version in range(first_version, first_version + number):
        gates.follow([Balance(org_id, 100 if version % 2 else -3, version)], NOW)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for_a_blocked_reader(client: redis.Redis) -> None:
    wait_until(lambda: client.info("clients")["blocked_clients"] == 1, limit_s=10)


def log_ids(client: redis.Redis) -> list[str]:
    return [entry_id.decode() for entry_id, _ in cast("list[Any]", client.xrange(SIGNALS_LOG))]


# What is heard


def test_a_signal_says_what_was_said(client: MeteringClient, gates: Gates, redis_client: redis.Redis) -> None:
    signals = client.signals()
    flip(gates, 42, 1, 2)
    restored, exhausted = islice(signals, 2)
    ids = log_ids(redis_client)
    said = {"org_id": 42, "at": "2026-04-20T18:25:06.201Z"}
    raw = [
        {"type": "balance.restored", "state": "open", "balance_cents": 100, "version": 1} | said,
        {"type": "balance.exhausted", "state": "exhausted", "balance_cents": -3, "version": 2} | said,
    ]
    assert restored == Signal(ids[0], "balance.restored", 42, NOW, 100, 1, raw[0], "open")
    assert exhausted == Signal(ids[1], "balance.exhausted", 42, NOW, -3, 2, raw[1], "exhausted")
    assert len({restored, exhausted}) == 2


def test_from_now_on_means_from_the_call_on(client: MeteringClient, gates: Gates) -> None:
    flip(gates, 1, 1)
    signals = client.signals()
    flip(gates, 2, 1)  # nobody has called next yet
    flip(gates, 3, 1)
    assert [each.org_id for each in islice(signals, 2)] == [2, 3]


def test_a_signal_is_heard_as_it_is_said(client: MeteringClient, gates: Gates) -> None:
    signals = client.signals()
    heard_s: list[float] = []

    def hear() -> None:
        heard_s.extend(time.monotonic() for _ in islice(signals, 3))

    hearing = in_background(hear)
    for version in (1, 2, 3):
        said_s = time.monotonic()
        flip(gates, 1, version)
        wait_until(lambda version=version: len(heard_s) == version, limit_s=5, every_s=0.002)  # type: ignore[misc]
        assert heard_s[-1] - said_s < 0.5  # the second that Redis is asked to wait isn't waited out
    hearing.join()


def test_it_goes_on_after_an_id(client: MeteringClient, gates: Gates) -> None:
    flip(gates, 1, 1, 2 * CHUNK + 7)
    heard: list[Signal] = []
    since = "0-0"
    for number in (1, 2, CHUNK, CHUNK + 4):
        with client.signals(since) as signals:
            heard += islice(signals, number)
            assert signals.position == heard[-1].id
        since = heard[-1].id
    assert [each.version for each in heard] == list(range(1, 2 * CHUNK + 8))


def test_a_position_without_a_signal_is_one_to_go_on_from(client: MeteringClient, gates: Gates) -> None:
    empty = client.signals().position
    flip(gates, 1, 1)
    one = client.signals().position
    flip(gates, 1, 2)
    assert [each.version for each in islice(client.signals(empty), 2)] == [1, 2]
    assert next(client.signals(one)).version == 2


def test_other_kinds_of_signals_pass_through(client: MeteringClient, redis_client: redis.Redis) -> None:
    message = {
        "type": "auto_reload.failed",
        "org_id": 7,
        "at": "2026-04-20T18:25:06.201Z",
        "code": "card_declined",
    }
    redis_client.xadd(SIGNALS_LOG, {"signal": json.dumps(message), "more": "later"})
    heard = next(client.signals("0-0"))
    assert (heard.type, heard.org_id, heard.balance_cents, heard.version) == (
        "auto_reload.failed",
        7,
        None,
        None,
    )
    assert heard.raw == message


@pytest.mark.parametrize(
    "fields",
    [
        {"other": "{}"},
        {"signal": "{"},
        {"signal": "[" * 100_000},
        {"signal": "[]"},
        {"signal": '{"type":"balance.restored","at":"2026-04-20T18:25:06.201Z"}'},
        {"signal": '{"type":"balance.restored","org_id":1,"at":"soon"}'},
        {"signal": b"\xff"},
    ],
)
def test_what_is_no_signal_holds_nothing_up(
    client: MeteringClient,
    redis_client: redis.Redis,
    gates: Gates,
    caplog: pytest.LogCaptureFixture,
    fields: dict[Any, Any],
) -> None:
    entry_id = cast("bytes", redis_client.xadd(SIGNALS_LOG, fields)).decode()
    flip(gates, 1, 1)
    assert next(client.signals("0-0")).org_id == 1
    assert f"entry {entry_id} is passed over" in caplog.text


@pytest.mark.parametrize("since", ["", "1", "$", "5-", "-1", "now", "1776709506201"])
def test_since_must_be_an_id(since: str) -> None:
    with (
        MeteringClient("unix:///nonexistent/valkey.sock") as client,
        pytest.raises(ValueError, match="since must be the id of a signal"),
    ):
        client.signals(since)


# How it ends


@pytest.mark.parametrize("closed", ["signals", "client"])
@pytest.mark.usefixtures("short_block")
def test_it_ends_when_it_is_closed(client: MeteringClient, redis_client: redis.Redis, closed: str) -> None:
    signals = client.signals()
    hearing = in_background(lambda: list(signals))
    wait_for_a_blocked_reader(redis_client)
    (signals if closed == "signals" else client).close()
    hearing.join(5)
    assert not hearing.is_alive()
    assert list(signals) == []


@pytest.mark.usefixtures("short_block")
def test_a_signal_handler_may_close_it(client: MeteringClient, redis_client: redis.Redis) -> None:
    signals = client.signals()
    before = signal.signal(signal.SIGUSR1, lambda *_: signals.close())

    def interrupt() -> None:
        wait_for_a_blocked_reader(redis_client)
        os.kill(os.getpid(), signal.SIGUSR1)

    interrupting = in_background(interrupt)
    try:
        assert list(signals) == []
    finally:
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)


def test_it_ends_when_it_is_closed_while_redis_is_away(
    own_valkey: OwnValkey, caplog: pytest.LogCaptureFixture
) -> None:
    with MeteringClient(own_valkey.url) as client:
        signals = client.signals()
        own_valkey.end()
        hearing = in_background(lambda: list(signals))
        wait_until(lambda: "Redis is away" in caplog.text, limit_s=10)
        signals.close()
        hearing.join(5)
        assert not hearing.is_alive()


# What is lost


def test_a_log_cut_off_behind_the_reader_is_said(
    client: MeteringClient, gates: Gates, redis_client: redis.Redis
) -> None:
    flip(gates, 1, 1, 10)
    ids = log_ids(redis_client)
    signals = client.signals(ids[3])
    redis_client.xtrim(SIGNALS_LOG, minid=ids[3], approximate=False)
    assert next(client.signals(ids[3])).id == ids[4]  # just not cut off
    redis_client.xtrim(SIGNALS_LOG, minid=ids[5], approximate=False)
    for _ in range(2):  # it doesn't end quietly when somebody calls next again
        with pytest.raises(SignalsLost, match=rf"after {ids[3]}.*signals\(\) again.*gate\(\)"):
            next(signals)
    assert next(client.signals(ids[6])).id == ids[7]


def test_what_was_read_is_given_before_the_loss_is_said(
    client: MeteringClient, gates: Gates, redis_client: redis.Redis
) -> None:
    flip(gates, 1, 1, 3)
    signals = client.signals("0-0")
    assert next(signals).version == 1
    flip(gates, 1, 4, 3)
    redis_client.xtrim(SIGNALS_LOG, maxlen=2, approximate=False)
    assert [next(signals).version, next(signals).version] == [2, 3]
    with pytest.raises(SignalsLost):
        next(signals)


def test_a_log_cut_off_before_it_was_first_read_is_said(
    client: MeteringClient, gates: Gates, redis_client: redis.Redis
) -> None:
    signals = client.signals()
    flip(gates, 1, 1, 5)
    redis_client.xtrim(SIGNALS_LOG, maxlen=4, approximate=False)
    with pytest.raises(SignalsLost):
        next(signals)


def test_a_log_that_is_there_but_empty_is_a_beginning(
    client: MeteringClient, gates: Gates, redis_client: redis.Redis
) -> None:
    flip(gates, 1, 1, 4)
    redis_client.xtrim(SIGNALS_LOG, maxlen=0, approximate=False)
    signals = client.signals()
    flip(gates, 1, 5, 2)
    assert [next(signals).version, next(signals).version] == [5, 6]


@pytest.mark.parametrize(
    "new_ids", [None, ["1-0", "1-1"], ["{ms}-7"]], ids=["none", "clock set back", "later ones"]
)
@pytest.mark.usefixtures("short_block")
def test_an_emptied_log_is_said(
    client: MeteringClient, gates: Gates, redis_client: redis.Redis, new_ids: list[str] | None
) -> None:
    flip(gates, 1, 1, 2)
    signals = client.signals()
    errors: list[SignalsLost] = []

    def hear() -> None:
        try:
            next(signals)
        except SignalsLost as lost:
            errors.append(lost)

    hearing = in_background(hear)
    wait_for_a_blocked_reader(redis_client)
    with redis_client.pipeline(transaction=True) as pipeline:
        pipeline.flushall()
        for new_id in new_ids or []:
            pipeline.xadd(
                SIGNALS_LOG, {"signal": "{}"}, id=new_id.format(ms=time.time_ns() // 1_000_000 + 1000)
            )
        pipeline.execute()
    hearing.join(5)
    assert len(errors) == 1


def test_starting_over_after_a_loss_misses_nothing(
    client: MeteringClient, gates: Gates, redis_client: redis.Redis
) -> None:
    flip(gates, 1, 1)
    flip(gates, 2, 1)
    signals = client.signals()
    redis_client.flushall()
    flip(gates, 2, 2)  # nobody said so: it had no gate
    assert log_ids(redis_client) == []
    with pytest.raises(SignalsLost):
        next(signals)
    signals = client.signals()
    flip(gates, 1, 1)
    assert (client.gate(1).open, client.gate(2).open) == (True, False)
    assert (next(signals).org_id, client.gate(1).version) == (1, 1)


def test_a_log_whose_end_was_lost_in_a_crash_is_said(own_valkey: OwnValkey) -> None:
    with own_valkey.connect() as redis_client, MeteringClient(own_valkey.url) as client:
        flip(Gates(redis_client), 1, 1, 3)
        signals = client.signals("0-0")
        last = list(islice(signals, 3))[-1].id
        own_valkey.end(signal.SIGKILL)
        [written] = (own_valkey.data_dir / "valkey").rglob("*.incr.aof")
        os.truncate(written, written.stat().st_size - 10)  # what a power failure leaves of it
        own_valkey.start()
        assert len(log_ids(redis_client)) == 2
        flip(Gates(redis_client), 1, 3, 2)
        assert log_ids(redis_client)[-1] > last
        with pytest.raises(SignalsLost):
            next(signals)


# Outages


def test_without_since_redis_is_asked_at_once(own_valkey: OwnValkey) -> None:
    own_valkey.end()
    with MeteringClient(own_valkey.url) as client:
        with pytest.raises(Unreachable):
            client.signals()
        client.signals("1-0").close()


def test_a_key_that_holds_something_else_is_refused(
    client: MeteringClient, redis_client: redis.Redis
) -> None:
    beginning, later = client.signals(), client.signals("5-0")
    redis_client.set(SIGNALS_LOG, "?")
    for listen in (client.signals, lambda: next(beginning), lambda: next(later)):
        with pytest.raises(Refused, match="WRONGTYPE"):
            listen()


def test_a_server_that_hangs_is_outlived_and_that_is_logged(
    own_valkey: OwnValkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with own_valkey.connect() as redis_client, MeteringClient(own_valkey.url, timeout_s=0.3) as client:
        signals = client.signals()
        heard: list[Signal] = []
        hearing = in_background(lambda: heard.append(next(signals)))
        with own_valkey.frozen():
            wait_until(lambda: "Redis is away" in caplog.text, limit_s=10)
            time.sleep(0.7)  # further tries
        wait_until(lambda: "Redis is back" in caplog.text, limit_s=10)
        flip(Gates(redis_client), 1, 1)
        hearing.join(10)
        assert [each.version for each in heard] == [1]
        assert caplog.text.count("Redis is away") == 1


class Writer:
    """Changes gates for as long as it is let, and keeps what must be heard."""

    def __init__(self, valkey: OwnValkey, seed: int) -> None:
        self.said: dict[int, list[Change]] = {org_id: [] for org_id in range(1, 13)}
        self.stopped = False
        self._client = valkey.connect()
        self._gates = Gates(self._client)
        self._chance = random.Random(seed)

    def run(self) -> None:
        versions = dict.fromkeys(self.said, 0)
        self._write_each_change()
        while not self.stopped:
            batch = []
            for org_id in self._chance.sample(sorted(self.said), 3):
                versions[org_id] += 1
                batch.append(Balance(org_id, self._chance.choice((-3, 0, 1, 500)), versions[org_id]))
            self._follow(batch)
            for balance in batch:
                kind = "balance.restored" if balance.balance_cents > 0 else "balance.exhausted"
                changes = self.said[balance.org_id]
                if kind != (changes[-1][1] if changes else "balance.exhausted"):
                    changes.append((balance.version, kind))
            time.sleep(0.001)
        self._follow([Balance(LAST_ORG_ID, 1, 1)])
        self._client.close()

    def _follow(self, batch: list[Balance]) -> None:
        while True:
            try:
                self._gates.follow(batch, NOW)
            except redis.ConnectionError:
                self._write_each_change()
            else:
                return

    def _write_each_change(self) -> None:
        """As configured the file is written every second: a killed Valkey may forget what was heard, and that is SignalsLost."""
        while True:
            try:
                self._client.config_set("appendfsync", "always")
            except redis.ConnectionError:
                time.sleep(0.01)
            else:
                return


class Listener:
    """Hears everything; with a `chance`, now and then as a program that is started anew."""

    def __init__(self, valkey: OwnValkey, chance: random.Random | None) -> None:
        self.heard: list[Signal] = []
        self.restarts = 0
        self.error: Exception | None = None
        self._url = valkey.url
        self._chance = chance
        self._client = MeteringClient(self._url)
        self._signals: Signals = self._client.signals("0-0")
        self._closed = False

    def run(self) -> None:
        try:
            while not self._closed:
                for each in islice(self._signals, self._chance.randint(1, 400) if self._chance else None):
                    self.heard.append(each)
                self._client.close()
                self.restarts += 1
                self._client = MeteringClient(self._url)
                self._signals = self._client.signals(self.heard[-1].id if self.heard else "0-0")
        except Exception as error:  # noqa: BLE001 - the test must see it
            self.error = error
        finally:
            self._client.close()

    def close(self) -> None:
        self._closed = True
        self._signals.close()

    def ended(self) -> bool:
        return self.error is not None or bool(self.heard and self.heard[-1].org_id == LAST_ORG_ID)

    def changes(self) -> dict[int, list[Change]]:
        by_org: dict[int, list[Change]] = {}
        for each in self.heard:
            assert each.version is not None
            by_org.setdefault(each.org_id, []).append((each.version, each.type))
        return by_org


@pytest.mark.parametrize("seed", [1, 2])
def test_restarts_at_any_moment_lose_nothing_and_repeat_nothing(
    own_valkey: OwnValkey, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    chance = random.Random(seed)
    writer = Writer(own_valkey, seed)
    listeners = [Listener(own_valkey, None), Listener(own_valkey, random.Random(seed))]
    threads = [in_background(writer.run), *(in_background(each.run) for each in listeners)]
    try:
        for _ in range(6):
            time.sleep(chance.uniform(0.02, 0.4))
            own_valkey.end(chance.choice((signal.SIGKILL, signal.SIGTERM)))
            time.sleep(chance.uniform(0, 0.15))
            own_valkey.start()
            heard = len(listeners[0].heard)
            wait_until(lambda heard=heard: len(listeners[0].heard) > heard, limit_s=LIMIT_S)  # type: ignore[misc]
        writer.stopped = True
        threads[0].join(LIMIT_S)
        for each in listeners:
            wait_until(lambda each=each: each.ended(), limit_s=LIMIT_S)  # type: ignore[misc]
    finally:
        writer.stopped = True
        for each in listeners:
            each.close()
        for thread in threads:
            thread.join(LIMIT_S)
    assert caplog.text.count("Redis is away") >= 6
    assert listeners[1].restarts > 1
    for each in listeners:
        assert each.error is None
        assert each.changes() == writer.said | {LAST_ORG_ID: [(1, "balance.restored")]}
        ids = [tuple(map(int, heard.id.split("-"))) for heard in each.heard]
        assert ids == sorted(set(ids))
