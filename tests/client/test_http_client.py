"""The client over HTTP: the same stream, the same errors, the same promises as over Redis."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import httpx
import pytest
import redis

from metering.client import (
    Gate,
    HttpClient,
    InvalidField,
    MeteringClient,
    PricedHold,
    QueueFull,
    Refused,
    TelephonyError,
    Unreachable,
)
from metering.client.http_client import MAX_BODY_BYTES, MAX_EVENTS
from metering.runtime.names import EVENT_FIELD, STREAM
from tests.api.site import LIMIT_S, TELEPHONY_TOKEN, Site
from tests.payments.world import START
from tests.spine.billing import event, prepare, price

NOBODY: Final = "http://127.0.0.1:9"


@pytest.fixture
def client(site: Site) -> Iterator[HttpClient]:
    with HttpClient(site.url, TELEPHONY_TOKEN, timeout_s=LIMIT_S) as client:
        yield client


def pushed(client: redis.Redis) -> list[bytes]:
    return [fields[EVENT_FIELD] for _, fields in cast("list[Any]", client.xrange(STREAM))]


def ids(client: redis.Redis) -> list[str]:
    return [stream_id.decode() for stream_id, _ in cast("list[Any]", client.xrange(STREAM))]


def answering(
    *answers: "httpx.Response | Exception", tries: int = 1
) -> tuple[HttpClient, list[httpx.Request]]:
    """A client whose server answers so, one request after another."""
    asked: list[httpx.Request] = []
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://api")
    return HttpClient(http, "token", tries=tries), asked


def unavailable(code: str = "unavailable", accepted: int = 0) -> httpx.Response:
    return httpx.Response(503, json={"detail": "not now", "code": code, "accepted": accepted})


def taken(number: int) -> httpx.Response:
    results = [
        {"status": "accepted", "field": None, "message": None, "stream_id": f"{each}-0"}
        for each in range(number)
    ]
    return httpx.Response(202, json={"accepted": number, "results": results})


def test_both_transports_leave_the_same_in_the_stream(
    client: HttpClient, redis_client: redis.Redis, redis_url: str
) -> None:
    events = [event(call_id=each, phone_number_value="+1555ü\ud800") for each in range(1, 4)]
    stream_ids = [client.push(events[0]), *client.push_many(events[1:])]

    assert stream_ids == ids(redis_client)
    over_http = pushed(redis_client)
    redis_client.delete(STREAM)
    with MeteringClient(redis_url) as over_redis:
        over_redis.push_many(events)
    assert over_http == pushed(redis_client)


def test_what_a_meter_will_refuse_is_pushed_as_over_redis(
    client: HttpClient, redis_client: redis.Redis
) -> None:
    assert client.push(event(ended_at="9999-01-01T00:00:00Z")) == ids(redis_client)[0]


def test_many_go_in_parts_that_the_server_takes(client: HttpClient, redis_client: redis.Redis) -> None:
    small = [event(call_id=each) for each in range(1, MAX_EVENTS + 2)]
    assert client.push_many(iter(small)) == ids(redis_client)
    assert len(pushed(redis_client)) == MAX_EVENTS + 1
    redis_client.delete(STREAM)
    large = [event(call_id=each, metadata={"note": "x" * 300_000}) for each in range(1, 9)]
    assert sum(300_000 for _ in large) > 2 * MAX_BODY_BYTES
    assert client.push_many(large) == ids(redis_client)
    assert client.push_many([]) == []


def test_what_cannot_be_right_is_refused_and_those_before_it_are_in(
    client: HttpClient, redis_client: redis.Redis
) -> None:
    with pytest.raises(InvalidField) as refused:
        client.push_many([event(call_id=1), event(call_id=2), event(call_id=0), event(call_id=3)])
    assert (refused.value.field, refused.value.pushed) == ("call_id", 2)
    assert len(pushed(redis_client)) == 2


def test_gates(client: HttpClient, site: Site) -> None:
    assert client.gate(1) == Gate(1, "exhausted", None, None)
    site.world.adjust(1_000)
    assert client.gate(1) == Gate(1, "open", 1_000, None)
    assert client.gate(1).open
    assert client.gate(999) == Gate(999, None, None, None)
    with pytest.raises(InvalidField):
        client.gate(0)


def test_a_suspended_gate() -> None:
    answer = httpx.Response(403, json={"detail": "x", "code": "org_suspended", "allowed": False})
    client, _ = answering(answer)
    assert client.gate(7) == Gate(7, "suspended", None, None)


def test_a_wrong_token_is_refused(site: Site) -> None:
    with HttpClient(site.url, "wrong") as client:
        with pytest.raises(Refused, match="unauthenticated"):
            client.push(event())
        with pytest.raises(Refused, match="unauthenticated"):
            client.gate(1)


def test_nobody_there() -> None:
    with HttpClient(NOBODY, "token", tries=2, timeout_s=0.5) as client:
        with pytest.raises(Unreachable, match="push it again"):
            client.push(event())
        with pytest.raises(Unreachable, match="yours to decide"):
            client.gate(1)


@pytest.mark.parametrize(
    ("answer", "error", "surely"),
    [
        (unavailable("queue_full", 2), QueueFull, 2),
        (unavailable("unavailable", 3), Unreachable, 3),
        (httpx.Response(502, text="<html>Bad Gateway</html>"), Unreachable, 0),
        (httpx.Response(429, json={"detail": "x", "code": "rate_limited"}), Unreachable, 0),
        (httpx.Response(413, json={"detail": "x", "code": "body_too_large"}), Refused, 0),
        (httpx.Response(404, text="no such page"), Refused, 0),
        (httpx.Response(200, text="<html>Welcome</html>"), Refused, 0),
        (httpx.Response(301, headers={"Location": "https://elsewhere"}), Refused, 0),
        (httpx.ReadTimeout("too slow"), Unreachable, 0),
        (httpx.RemoteProtocolError("cut"), Unreachable, 0),
    ],
)
def test_what_answers_mean(
    answer: "httpx.Response | Exception", error: type[TelephonyError], surely: int
) -> None:
    client, _ = answering(answer)
    with pytest.raises(TelephonyError) as failed:
        client.push_many([event(call_id=each) for each in range(1, 6)])
    assert type(failed.value) is error
    assert failed.value.pushed == surely
    assert ("surely" in str(failed.value)) == (surely > 0)


def test_what_passes_is_repeated_whole_and_what_does_not_is_not() -> None:
    client, asked = answering(unavailable(accepted=1), httpx.ReadTimeout("slow"), taken(3), tries=3)
    assert client.push_many([event(call_id=each) for each in (1, 2, 3)]) == ["0-0", "1-0", "2-0"]
    assert len({request.content for request in asked}) == 1
    assert len(asked) == 3
    client, asked = answering(httpx.Response(401, json={"code": "unauthenticated"}), tries=3)
    with pytest.raises(Refused):
        client.push(event())
    assert len(asked) == 1


def test_parts_before_the_one_that_failed_count_as_pushed() -> None:
    client, _ = answering(taken(MAX_EVENTS), unavailable(accepted=5))
    with pytest.raises(Unreachable) as failed:
        client.push_many(event(call_id=each) for each in range(1, MAX_EVENTS + 11))
    assert failed.value.pushed == MAX_EVENTS + 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: HttpClient("meter.internal", "token"),
        lambda: HttpClient("ftp://meter.internal", "token"),
        lambda: HttpClient("http://api", ""),
        lambda: HttpClient("http://api", "a\nb"),
        lambda: HttpClient("http://api", "token", tries=0),
        lambda: HttpClient("http://api", "token", timeout_s=0),
    ],
)
def test_what_cannot_work_is_refused_at_once(make: Callable[[], HttpClient]) -> None:
    with pytest.raises(ValueError, match=r"server|token|tries"):
        make()


def test_without_httpx_it_says_what_to_install_and_the_other_client_works() -> None:
    script = (
        "import sys; sys.modules['httpx'] = None\n"
        "from metering.client import HttpClient, MeteringClient\n"
        "MeteringClient('redis://127.0.0.1:9')\n"
        "try: HttpClient('http://api', 'token')\n"
        "except ImportError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "HttpClient needs httpx: pip install 'metering[http]'\n"


def test_threads_may_share_it(client: HttpClient, redis_client: redis.Redis) -> None:
    def push(first: int) -> None:
        for each in range(10):
            client.push(event(call_id=first + each))

    threads = [threading.Thread(target=push, args=(1 + 10 * each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pushed(redis_client)) == 40


def test_money_is_held_for_a_call(client: HttpClient, site: Site) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    outbound: dict[str, Any] = {"tier": "bolt", "direction": "outbound"}
    assert client.start_call(1, 7, seconds=600, **outbound) == PricedHold(1, 7, False, "balance_exhausted")
    site.world.adjust(100)
    held = client.start_call(1, 7, seconds=600, **outbound)
    assert (held.allowed, held.code, held.max_duration_seconds) == (True, None, 600)
    assert (held.held_cents, held.available_cents, held.final) == (80, 20, None)
    assert held.expires_at is not None
    assert client.start_call(1, 7, seconds=60, **outbound) == held
    longer = client.renew_call(1, 7, started_at=START, seconds=900, **outbound)
    assert (longer.allowed, longer.max_duration_seconds, longer.final) == (True, 720, True)
    assert client.start_call(1, 8, seconds=600, **outbound).code == "insufficient_balance"
    for missing in ({"tier": "gold"}, {"direction": "inbound", "tier": "x"}):
        assert client.start_call(1, 9, seconds=60, **(outbound | missing)).code == "not_found"
    client.cancel_call(1, 7)
    client.cancel_call(1, 7)
    assert client.start_call(1, 8, seconds=600, **outbound).allowed
    with pytest.raises(InvalidField, match="call_id"):
        client.start_call(1, 0, seconds=60, **outbound)
    with pytest.raises(Refused, match="seconds"):
        client.start_call(1, 10, seconds=0, **outbound)
    with HttpClient(site.url, "wrong") as stranger, pytest.raises(Refused, match="401"):
        stranger.start_call(1, 10, seconds=60, **outbound)


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (httpx.Response(503, json={"detail": "not now", "code": "unavailable"}), Unreachable),
        (httpx.Response(429, json={"detail": "too much", "code": "rate_limited"}), Unreachable),
        (httpx.Response(502, text="<html>"), Unreachable),
        (httpx.ReadTimeout("no answer"), Unreachable),
        (httpx.Response(403, text="<html>a proxy's</html>"), Refused),
        (httpx.Response(404, text="<html>a proxy's</html>"), Refused),
    ],
)
def test_a_hold_is_asked_for_again_where_that_may_help(
    first: "httpx.Response | Exception", error: type[TelephonyError]
) -> None:
    outbound: dict[str, Any] = {"tier": "bolt", "direction": "outbound", "seconds": 60}
    too_many = httpx.Response(429, json={"detail": "as many run", "code": "too_many_calls", "allowed": False})
    client, asked = answering(first, tries=1)
    with pytest.raises(error):
        client.start_call(1, 7, **outbound)
    client, asked = answering(first, too_many, tries=2)
    if error is Unreachable:
        assert client.start_call(1, 7, **outbound).code == "too_many_calls"
        assert asked[0].content == asked[1].content
    else:
        with pytest.raises(error):
            client.start_call(1, 7, **outbound)
        assert len(asked) == 1
