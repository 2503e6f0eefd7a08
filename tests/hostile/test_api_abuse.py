"""Clients that guess, stall and pour: they are refused in the contract's shape, and nobody else waits for them."""

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import redis
from sqlalchemy import event

from db.accounts.api_keys import key_hash, revoke_key
from db.accounts.quick_reads import QuickReads
from db.postgres.engine import transaction
from metering.api import bodies, errors, server
from metering.api.app import make_app
from metering.api.key_lookups import EVERY_S, KeyLookups
from metering.api.rate_limit import MAX_ADDRESSES, MAX_FAILURES, MAX_KEYS, WINDOW_S, AuthRateLimit
from metering.runtime.clock import system_clock
from tests.api.site import LIMIT_S, TELEPHONY_TOKEN, Site, assert_problem, make_site, served
from tests.conftest import Database
from tests.payments.world import make_world
from tests.waiting import wait_until

GUESSES = 1_500


@pytest.fixture
def site(database: Database, redis_client: redis.Redis, redis_url: str) -> Iterator[Site]:
    """An API of this test's own: what it has seen of wrong keys is its own too."""
    with make_world(database, redis_client) as world, make_site(database, redis_url, world) as made:
        yield made


@contextmanager
def statements(site: Site) -> Iterator[list[str]]:
    """What the API's quick requests ask of Postgres meanwhile."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    async def note_quick(reads: QuickReads, statement: str, api_key: str) -> Sequence[Any] | None:
        asked.append(statement)
        return await row(reads, statement, api_key)

    row = QuickReads._row
    event.listen(site.context.engine, "before_cursor_execute", note)
    with patch.object(QuickReads, "_row", note_quick):
        yield asked
    event.remove(site.context.engine, "before_cursor_execute", note)


def test_thousands_of_bad_keys_cost_few_looks_and_shut_out_no_good_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "REFUSAL_DELAY_S", 0.0)
    assert site.get("/v1/billing").status_code == 200  # so its key was good lately
    never_used = dict(site.headers(1))
    began_s = time.monotonic()

    def guess(number: int) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer sk_live_{number:064x}"}
        response = site.http.get("/v1/billing" if number % 2 else "/v1/gate/1", headers=headers)
        return response.status_code, response.headers.get("retry-after", "")

    with statements(site) as asked, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(guess, range(GUESSES)))
        looks = [each for each in asked if "api_keys" in each]
    told = [status for status, _ in answers]
    took_s = time.monotonic() - began_s
    assert told.count(401) == MAX_FAILURES or took_s > WINDOW_S
    assert set(told) == {401, 429}
    # All that came within 10 ms are one statement.
    assert len(looks) <= took_s / EVERY_S + 2
    assert all(1 <= int(wait) <= WINDOW_S for status, wait in answers if status == 429)
    assert site.get("/v1/billing").status_code == 200
    telephony = {"Authorization": "Bearer telephony-token"}
    assert site.http.get("/v1/gate/1", headers=telephony).status_code in {200, 402}

    # Nor is a good key that was never used before, from the very same address.
    site.keys.clear()
    assert site.headers(1) != never_used
    assert site.get("/v1/billing").status_code == 200

    bad = site.http.get("/v1/billing", headers={"Authorization": "Bearer sk_live_x"})
    assert set(assert_problem(bad, 429, "rate_limited")) == {"detail", "code"}


def test_a_revoked_key_is_no_good_one_any_more(site: Site) -> None:
    key = site.headers(1)
    assert site.get("/v1/billing").status_code == 200
    with transaction(site.world.engine) as connection:
        revoke_key(connection, 1, system_clock())
    statuses = [site.http.get("/v1/billing", headers=key).status_code for _ in range(MAX_FAILURES + 1)]
    assert statuses == [401] * MAX_FAILURES + [429]


@pytest.mark.parametrize("wrong", ["sk_live_x", "a-guess-at-telephony-s-token"])
def test_behind_one_proxy_nothing_good_is_refused_for_what_is_wrong(
    site: Site, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(errors, "REFUSAL_DELAY_S", 0.0)
    bad, telephony = {"Authorization": f"Bearer {wrong}"}, {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
    for _ in range(MAX_FAILURES + 5):
        last = site.http.get("/v1/gate/1", headers=bad)
    assert_problem(last, 429, "rate_limited")
    # Neither was used before.
    assert site.http.get("/v1/gate/1", headers=telephony).status_code == 402
    assert site.get("/v1/billing").status_code == 200


def test_guesses_beyond_the_limit_are_answered_late(site: Site) -> None:
    bad = {"Authorization": "Bearer a-guess"}
    for _ in range(MAX_FAILURES):
        assert site.http.get("/v1/gate/1", headers=bad).status_code == 401
    for _ in range(2):
        began_s = time.monotonic()
        assert site.http.get("/v1/gate/1", headers=bad).status_code == 429
        assert time.monotonic() - began_s >= errors.REFUSAL_DELAY_S
    began_s = time.monotonic()
    assert site.get("/v1/billing").status_code == 200
    assert site.get("/v1/billing").status_code == 200


def test_keys_that_wait_are_looked_up_together_and_a_failure_is_each_one_s(site: Site) -> None:
    asked: list[int] = []
    looking = asyncio.Event()
    keys = {key_hash(f"good {number}"): number for number in range(50)}

    async def find(hashes: Sequence[bytes]) -> dict[bytes, int]:
        asked.append(len(hashes))
        looking.set()
        await asyncio.sleep(0)
        if len(asked) == 3:
            raise LookupError("Postgres is away")
        return {each: keys[each] for each in hashes if each in keys}

    async def ask_all() -> None:
        lookups = KeyLookups(find)
        first = asyncio.create_task(lookups.org_of("good 7"))
        await looking.wait()
        rest = [asyncio.create_task(lookups.org_of(f"good {number}")) for number in range(60)]
        rest[3].cancel()  # who goes away takes nobody else's answer along
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(found.pop(4), asyncio.CancelledError)
        assert found == [7, *(number for number in range(50) if number != 3), *[None] * 10]
        failed = await asyncio.gather(*(lookups.org_of("x") for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in failed] == [LookupError] * 3
        assert await lookups.org_of("good 1") == 1

    asyncio.run(ask_all())
    assert asked == [1, 59, 1, 1]


def test_addresses_are_counted_apart_and_forgotten_in_time() -> None:
    now_s = 0.0
    limit = AuthRateLimit(monotonic=lambda: now_s)

    def fail(address: str, times: int = MAX_FAILURES) -> None:
        for number in range(times):
            assert limit.record_failure(address, f"k{number}") is None

    def wait_s(address: str) -> int | None:
        return limit.record_failure(address, "x")

    limit.record_success("good", 42)
    fail("192.0.2.1")
    assert wait_s("192.0.2.1") == WINDOW_S
    assert wait_s("::ffff:192.0.2.1") == WINDOW_S
    assert wait_s("192.0.2.2") is None
    assert limit.org_of("good") == 42
    fail("2001:db8::1")
    assert wait_s("2001:db8::ffff:2") == WINDOW_S
    assert wait_s("2001:db8:0:1::1") is None

    now_s = WINDOW_S - 0.5
    assert wait_s("192.0.2.1") == 1
    now_s = WINDOW_S
    fail("192.0.2.1")
    assert wait_s("192.0.2.1") == WINDOW_S
    limit.record_failure("192.0.2.1", "good")
    assert limit.org_of("good") is None


def test_what_the_rate_limit_keeps_in_mind_is_bounded() -> None:
    limit = AuthRateLimit(monotonic=lambda: 0.0)
    for number in range(MAX_ADDRESSES + 5_000):
        limit.record_failure(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "x")
        limit.record_success(str(number), 1)
    assert (len(limit._failures), len(limit._good)) == (MAX_ADDRESSES, MAX_KEYS)


@pytest.mark.parametrize(("trusted", "apart"), [(("127.0.0.0/8",), True), ((), False)])
def test_a_proxys_word_counts_only_where_it_is_trusted(
    site: Site, trusted: tuple[str, ...], apart: bool
) -> None:
    bad = {"Authorization": "Bearer sk_live_x"}
    with (
        served(make_app(site.context), trusted_proxies=trusted) as url,
        httpx.Client(base_url=url, headers=bad) as http,
    ):
        for _ in range(MAX_FAILURES):
            http.get("/v1/billing", headers={"X-Forwarded-For": "203.0.113.1"})
        of_first = http.get("/v1/billing", headers={"X-Forwarded-For": "203.0.113.1"})
        of_other = http.get("/v1/billing", headers={"X-Forwarded-For": "203.0.113.2"})
    assert of_first.status_code == 429
    assert of_other.status_code == (401 if apart else 429)


def connect(site: Site) -> socket.socket:
    address = site.url.removeprefix("http://").split(":")
    return socket.create_connection((address[0], int(address[1])), timeout=LIMIT_S)


def answer_of(client: socket.socket) -> bytes:
    """What comes until the end of an answer with a JSON object, or the connection's."""
    answer = b""
    while not answer.endswith(b"}") and (part := client.recv(4_096)):
        answer += part
    return answer


def head(site: Site, length: int) -> bytes:
    return (
        f"POST /v1/billing/top-up HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.key(1)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_a_body_that_does_not_come_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_LIMIT_S", 0.3)
    for begun in (b"", b'{"amount_c'):
        with connect(site) as client:
            client.sendall(head(site, 100) + begun)
            answer = answer_of(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
    # One byte now and then is no reason to wait longer.
    with connect(site) as client:
        client.sendall(head(site, 10_000))
        began_s = time.monotonic()
        client.settimeout(0.05)
        answer = b""
        while not answer:
            client.sendall(b" ")
            try:
                answer = client.recv(4_096)
            except TimeoutError:
                assert time.monotonic() - began_s < 5
        assert answer.startswith(b"HTTP/1.1 408 ")
    assert site.world.charged() == 0


def test_headers_that_do_not_come_end_the_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_LIMIT_S", 1.0)
    for begun in (b"", b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "):
        with connect(site) as client:
            client.sendall(begun)
            assert client.recv(4_096) == b""

    # On a connection that was used before, the next request has to come as soon once it is begun; idle it may be for longer.
    with connect(site) as client:
        client.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_of(client).startswith(b"HTTP/1.1 200 ")
        client.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.recv(4_096)
        client.settimeout(LIMIT_S)
        client.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_of(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET /v1/")
        assert client.recv(4_096) == b""


def test_two_hundred_that_stall_keep_nobody_waiting(site: Site) -> None:
    stalled = []
    try:
        for number in range(200):
            client = connect(site)
            client.sendall(head(site, 1_000) + b"{" if number % 2 else b"GET /v1/bil")
            stalled.append(client)
        slowest_s = 0.0
        for _ in range(20):
            began_s = time.monotonic()
            assert site.get("/v1/billing").status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert slowest_s < 8  # whoever had to wait for one of them would wait for ten
    finally:
        for client in stalled:
            client.close()
    wait_until(lambda: site.get("/v1/billing").status_code == 200, limit_s=30)


@pytest.mark.parametrize("length", ["Content-Length: 100000000000", "Transfer-Encoding: chunked"])
def test_a_body_without_end_is_refused_and_then_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.3)
    part = b" " * 8_192
    with connect(site) as client:
        client.sendall(head(site, 0).replace(b"Content-Length: 0", length.encode()))
        chunk = b"2000\r\n" + part + b"\r\n" if "chunked" in length else part
        for _ in range(16):  # twice what is read
            client.sendall(chunk)
        answer = answer_of(client)
        began_s = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began_s < LIMIT_S:
                client.sendall(chunk)
    assert time.monotonic() - began_s < 5
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer
    assert site.world.charged() == 0
