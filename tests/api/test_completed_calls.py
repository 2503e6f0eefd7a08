"""`/v1/calls/completed`: what is taken, what is kept though it can't be billed, and what a stream that takes nothing means."""

import asyncio
import gzip
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from db.accounts.quick_reads import QuickReads
from metering.api import completed_calls, event_intake
from metering.api.app import make_app
from metering.api.completed_calls import MAX_BODY_BYTES, MAX_EVENTS
from metering.api.event_intake import HTTP_EVENTS
from metering.api.rate_limit import MAX_FAILURES
from metering.api.thread_pools import CALLS_IN_HAND
from metering.rules.events import parse_event
from metering.rules.rejections import Rejection
from metering.runtime.names import STREAM
from metering.runtime.redis_connection import connect_redis, connect_redis_async
from metering.sandbox.servers.embedded import running, valkey_pid
from metering.signals.call_stream import append_events
from metering.signals.gate_reader import GateReader
from metering.signals.holds import HoldsAsync
from tests.api.site import LIMIT_S, TELEPHONY_TOKEN, Site, assert_problem, served
from tests.payments.world import START
from tests.spine.billing import event
from tests.waiting import wait_until

PATH: Final = "/v1/calls/completed"
JSON: Final = {"Content-Type": "application/json"}


def post(
    site: Site, content: bytes, *, token: str | None = TELEPHONY_TOKEN, **headers: str
) -> httpx.Response:
    sent = JSON | headers | ({} if token is None else {"Authorization": f"Bearer {token}"})
    return site.http.post(PATH, content=content, headers=sent)


def batch(*events: object) -> bytes:
    return json.dumps({"events": events}).encode()


def stream(client: redis.Redis) -> list[bytes]:
    """What stands in the stream, as bytes."""
    entries = cast("list[Any]", client.xrange(STREAM))
    assert all(set(fields) == {b"event"} for _, fields in entries)
    return [fields[b"event"] for _, fields in entries]


def call(call_id: int = 1, **fields: Any) -> dict[str, Any]:
    return event(call_id=call_id, ended_at=START.isoformat(), **fields)


def test_one_event_stands_in_the_stream_byte_for_byte(site: Site, redis_client: redis.Redis) -> None:
    raw = b' {"note":1.50, ' + json.dumps(call()).encode()[1:] + b"\n"
    answer = post(site, raw)
    assert answer.status_code == 202, answer.text
    [(stream_id, _)] = cast("list[Any]", redis_client.xrange(STREAM))
    assert answer.json() == {
        "accepted": 1,
        "results": [{"status": "accepted", "field": None, "message": None, "stream_id": stream_id.decode()}],
    }
    assert stream(redis_client) == [raw]


def test_many_are_answered_in_their_order_and_invalid_ones_are_pushed_too(
    site: Site, redis_client: redis.Redis
) -> None:
    events = [call(1), call(2, duration_seconds=-1), 7, call(3, tier=None), {"call_id": 4}, call(5)]
    answer = post(site, batch(*events))
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert body["accepted"] == 2
    assert [each["status"] for each in body["results"]] == [
        *("accepted", "invalid", "invalid"),
        *("invalid", "invalid", "accepted"),
    ]
    assert [each["field"] for each in body["results"]] == [
        *(None, "duration_seconds", "event", "tier", "org_id", None)
    ]
    assert body["results"][1]["message"] == "must be a number from 0 to 604800, at most 6 decimals"
    assert [json.loads(raw) for raw in stream(redis_client)] == events


def test_an_event_alone_that_is_invalid_is_400_and_kept(site: Site, redis_client: redis.Redis) -> None:
    raw = json.dumps(call(duration_seconds="75")).encode()
    problem = assert_problem(post(site, raw), 400, "invalid_request", "duration_seconds")
    assert "is kept" in problem["detail"]
    assert stream(redis_client) == [raw]


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xfe{", b"[" * 50_000, b'{"events":' + b"[" * 5_000, b"null", b"[]"]
)
def test_what_is_no_event_at_all_is_400_and_kept(site: Site, redis_client: redis.Redis, raw: bytes) -> None:
    assert_problem(post(site, raw), 400, "invalid_request", "event")
    assert stream(redis_client) == [raw]


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "body"),
        (b" \n", "body"),
        (b'{"events":5}', "events"),
        (b'{"events":{}}', "events"),
        (batch(*range(MAX_EVENTS + 1)), "events"),
    ],
)
def test_what_holds_no_events_is_refused_whole(
    site: Site, redis_client: redis.Redis, raw: bytes, field: str
) -> None:
    assert_problem(post(site, raw), 400, "invalid_request", field)
    assert stream(redis_client) == []


def test_as_many_as_allowed_are_taken_and_none_is_none(site: Site, redis_client: redis.Redis) -> None:
    answer = post(site, batch(*(call(number) for number in range(1, MAX_EVENTS + 1))))
    assert answer.json()["accepted"] == MAX_EVENTS
    assert [json.loads(raw)["call_id"] for raw in stream(redis_client)] == list(range(1, MAX_EVENTS + 1))
    assert post(site, batch()).json() == {"accepted": 0, "results": []}


def test_an_event_may_have_a_field_named_events(site: Site, redis_client: redis.Redis) -> None:
    raw = json.dumps(call(events=[1, 2])).encode()
    assert post(site, raw).json()["accepted"] == 1
    assert stream(redis_client) == [raw]


@pytest.mark.parametrize("part", ["part_events", "take_events"])
def test_a_body_is_worked_on_beside_the_event_loop(
    site: Site, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Else one of a MB would hold up everybody who is served."""
    work, in_loop = getattr(completed_calls, part), []

    def watched(*arguments: Any) -> Any:
        in_loop.append(asyncio._get_running_loop() is not None)
        return work(*arguments)

    monkeypatch.setattr(completed_calls, part, watched)
    assert post(site, batch(call())).status_code == 202
    assert in_loop == [False]


def test_each_event_is_counted_by_its_outcome(site: Site) -> None:
    def counted() -> dict[str, float]:
        return {each: HTTP_EVENTS.labels(each)._value.get() for each in ("accepted", "invalid", "not_taken")}

    before = counted()
    post(site, batch(call(1), call(2, duration_seconds=-1), call(3)))
    after = counted()
    assert {each: after[each] - before[each] for each in after} == {
        "accepted": 2,
        "invalid": 1,
        "not_taken": 0,
    }


def test_gzip(site: Site, redis_client: redis.Redis) -> None:
    packed = gzip.compress(batch(call(1), call(2)))
    assert post(site, packed, **{"Content-Encoding": "gzip"}).json()["accepted"] == 2
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1))
    assert len(bomb) < 2_000
    assert_problem(post(site, bomb, **{"Content-Encoding": "gzip"}), 413, "body_too_large")
    for broken in (packed[:-3], packed + b"x", b"{}", packed + packed):
        assert_problem(post(site, broken, **{"Content-Encoding": "gzip"}), 400, "invalid_request", "body")
    assert_problem(
        post(site, packed, **{"Content-Encoding": "br"}), 400, "invalid_request", "Content-Encoding"
    )
    assert len(stream(redis_client)) == 2


def test_the_largest_body_is_taken_and_one_byte_more_is_not(site: Site, redis_client: redis.Redis) -> None:
    largest = json.dumps(call()).encode().ljust(MAX_BODY_BYTES)
    assert_problem(post(site, largest), 400, "invalid_request", "event")  # far too large to be billed: kept
    assert stream(redis_client) == [largest]
    assert_problem(post(site, largest + b" "), 413, "body_too_large")
    assert len(stream(redis_client)) == 1


def test_only_telephonys_token_counts(site: Site, redis_client: redis.Redis) -> None:
    raw = json.dumps(call()).encode()
    for token in (None, "guess", site.key(1)):
        assert_problem(post(site, raw, token=token), 401, "unauthenticated")
    assert stream(redis_client) == []


def test_guesses_at_the_token_are_limited_and_an_orgs_key_is_no_guess(site: Site) -> None:
    site.get("/v1/billing")  # its key is good, and known as such
    for _ in range(MAX_FAILURES + 1):
        assert post(site, b"{}", token=site.key(1)).status_code == 401
    with ThreadPoolExecutor(8) as pool:
        statuses = [
            each.status_code for each in pool.map(lambda n: post(site, b"{}", token=f"guess {n}"), range(70))
        ]
    assert statuses.count(401) == MAX_FAILURES
    assert statuses.count(429) == 70 - MAX_FAILURES
    assert post(site, batch()).status_code == 202


def test_without_a_token_nobody_may(site: Site, redis_url: str) -> None:
    with another_site(site, redis_url, telephony_token=None) as other:
        problem = assert_problem(post(other, b"{}"), 401, "unauthenticated")
        assert "METERING_TELEPHONY_TOKEN" in problem["detail"]


@contextmanager
def another_site(site: Site, redis_url: str, **more: Any) -> Iterator[Site]:
    """The same database, served once more, with another Valkey."""
    asked = connect_redis_async(redis_url, timeout_s=0.5, max_connections=8)
    with connect_redis(redis_url) as client:
        context = replace(
            site.context,
            reads=QuickReads(site.context.engine.url, application_name="tests, quick"),
            gate_reader=GateReader(asked),
            holds=HoldsAsync(asked),
            stream=client,
            **more,
        )
        with served(make_app(context)) as url, httpx.Client(base_url=url, timeout=LIMIT_S) as http:
            yield replace(site, context=context, url=url, http=http)


def test_query_and_type_are_checked(site: Site) -> None:
    token = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
    answer = site.http.post(f"{PATH}?org_id=1", content=b"{}", headers=JSON | token)
    assert_problem(answer, 400, "invalid_request", "org_id")
    assert_problem(
        post(site, b"{}", **{"Content-Type": "text/plain"}), 400, "invalid_request", "Content-Type"
    )


@settings(max_examples=60, deadline=None)
@given(raw=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_whatever_comes_is_kept_or_refused_with_a_sentence(standing_site: Site, raw: bytes) -> None:
    with connect_redis_of(standing_site) as client:
        client.delete(STREAM)
        answer = post(standing_site, raw)
        assert answer.status_code in {202, 400}
        if stream(client):
            assert stream(client) == [raw]
            assert (answer.status_code == 202) == (not isinstance(parse_event(raw), Rejection))


def connect_redis_of(site: Site) -> redis.Redis:
    return site.context.stream


# When the stream takes nothing


@pytest.fixture
def own(data_dir: Path, site: Site) -> Iterator[tuple[Site, Path, redis.Redis]]:
    """A site on a Valkey that a test may kill and fill up."""
    with (
        running(data_dir, postgres=False) as servers,
        connect_redis(servers.redis_url) as client,
        another_site(site, servers.redis_url) as other,
    ):
        yield other, data_dir, client


def test_a_full_stream_is_503_and_says_so(own: tuple[Site, Path, redis.Redis]) -> None:
    site, _, client = own
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    answer = post(site, batch(call(1), call(2)))
    assert answer.status_code == 503
    assert answer.json()["code"] == "queue_full"
    assert answer.json()["accepted"] == 0
    assert answer.headers["retry-after"]
    client.config_set("maxmemory", 0)
    assert post(site, batch(call(1), call(2))).json()["accepted"] == 2


def test_a_stream_that_is_something_else_is_503_with_how_many_went_in(
    own: tuple[Site, Path, redis.Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, _, client = own

    def spoil_after_two(connection: redis.Redis, raws: list[bytes]) -> list[Any]:
        first = append_events(connection, raws[:2])
        client.rename(STREAM, "elsewhere")
        client.set(STREAM, "no stream")
        return first + append_events(connection, raws[2:])

    monkeypatch.setattr(event_intake, "append_events", spoil_after_two)
    answer = post(site, batch(*(call(number) for number in range(1, 6))))
    assert answer.status_code == 503
    assert answer.json()["accepted"] == 2
    assert client.xlen("elsewhere") == 2


def test_a_valkey_that_died_is_503_and_found_again(own: tuple[Site, Path, redis.Redis]) -> None:
    site, data_dir, _ = own
    assert post(site, batch(call(1))).status_code == 202
    os.kill(cast("int", valkey_pid(data_dir)), signal.SIGKILL)
    wait_until(lambda: valkey_pid(data_dir) is None, limit_s=20)
    answer = post(site, batch(call(2)))
    assert answer.status_code == 503
    assert answer.json() == {"detail": answer.json()["detail"], "code": "unavailable", "accepted": 0}
    with running(data_dir, postgres=False):
        assert post(site, batch(call(2))).status_code == 202


def test_only_so_many_requests_are_in_hand(site: Site) -> None:
    """Bodies that don't end hold their places; whoever comes then is told so at once, and all is well when they are gone."""
    gone = threading.Event()

    def endless() -> Iterator[bytes]:
        yield b"{"
        gone.wait(15)
        yield b"}"

    in_hand = site.context.thread_pools.calls_in_hand
    token = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}

    def slow(_: int) -> int:
        with httpx.Client(base_url=site.url, timeout=30) as http:
            return http.post(PATH, content=endless(), headers=JSON | token).status_code

    with ThreadPoolExecutor(CALLS_IN_HAND) as pool:
        slow_ones = pool.map(slow, range(CALLS_IN_HAND))
        wait_until(lambda: in_hand.count == CALLS_IN_HAND, limit_s=14)
        problem = assert_problem(post(site, batch()), 429, "rate_limited")
        assert "telephony" in problem["detail"]
        gone.set()
        assert set(slow_ones) == {400}
    assert post(site, batch()).status_code == 202
