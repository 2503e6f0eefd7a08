"""docs/how-to/http.md: its requests do what it says."""

import hashlib
import hmac
import re
import shlex
import time
from datetime import UTC, datetime
from typing import Any, Final

import httpx
import redis

from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.api.completed_calls import MAX_BODY_BYTES, MAX_EVENTS
from metering.api.thread_pools import CALLS_IN_HAND
from metering.client import HttpClient
from metering.rules.events import CallEvent, parse_event
from metering.runtime.names import EVENT_FIELD, STREAM
from tests.api.site import TELEPHONY_TOKEN, Site
from tests.docs.pages import page
from tests.spine.billing import price

PAGE: Final = page("how-to/http.md")
NOW: Final = datetime(2026, 4, 21, tzinfo=UTC)
"""Later than the call on the page."""
EVENTS: Final = page("reference/call-events.md")


def ask(site: Site, line: str) -> httpx.Response:
    """Send what a shell would let curl send."""
    words = shlex.split(line.replace("\\\n", "").replace("$API", site.url).replace("$TOKEN", TELEPHONY_TOKEN))
    assert words[:2] == ["curl", "-sS"]
    (url,) = (word for word in words if word.startswith("http"))
    headers = dict(words[index + 1].split(": ", 1) for index, word in enumerate(words) if word == "-H")
    if "-X" in words:
        return httpx.request(words[words.index("-X") + 1], url, headers=headers, timeout=30)
    if "-d" not in words:
        return httpx.get(url, headers=headers, timeout=30)
    return httpx.post(url, headers=headers, content=words[words.index("-d") + 1].encode(), timeout=30)


def test_each_request_does_what_the_page_says(site: Site, redis_client: redis.Redis) -> None:
    gate, start, renew, cancel, push = re.findall(
        r"<!-- tested: http -->\n```sh\n(.*?)\n```", PAGE, re.DOTALL
    )
    site.world.make_org(42)
    site.world.clock.at = NOW
    with transaction(site.world.engine) as connection:
        set_price(connection, price("bolt", "0.08"), site.world.clock)
    assert ask(site, gate).status_code == 402
    assert ask(site, start).status_code == 402
    site.world.adjust(1_000, org_id=42)
    held = ask(site, start)
    assert (held.status_code, held.json()["max_duration_seconds"]) == (201, 600)
    renewed = ask(site, renew)
    assert (renewed.status_code, renewed.json()["held_cents"]) == (200, 160)
    assert ask(site, cancel).json()["available_cents"] == 840
    answer = ask(site, push)
    assert answer.status_code == 202, answer.text
    assert answer.json()["accepted"] == 1
    entries: Any = redis_client.xrange(STREAM)
    ((_, fields),) = entries
    event = parse_event(fields[EVENT_FIELD])
    assert isinstance(event, CallEvent)
    assert (event.call_id, event.org_id, event.duration_us) == (987654321, 42, 75_204_000)


def test_the_receiver_of_webhooks_takes_what_is_signed_fresh_and_somebodys(
    site: Site, redis_client: redis.Redis
) -> None:
    (source,) = re.findall(r"<!-- tested: webhook -->\n```python\n(.*?)\n```", PAGE, re.DOTALL)
    receiver: dict[str, Any] = {}
    exec(source, receiver)  # noqa: S102 - the page's own
    secret, now = b"whsec", str(int(time.time()))

    def receive(
        body: bytes, *, at: str = now, signed: bytes | None = None, signature: str | None = None
    ) -> int:
        proof = hmac.new(secret, at.encode() + b"." + (signed or body), hashlib.sha256).hexdigest()
        with HttpClient(site.url, TELEPHONY_TOKEN, timeout_s=30) as metering:
            status: int = receiver["receive"](metering, body, at, signature or proof, secret)
        return status

    call = (
        b'{"id":"CA1","carried_by":"+15550001","incoming":true,"seconds":75.204,"other_party":"+15557654321",'
        b'"ended_at":"2026-04-20T18:25:06.201Z","org_id":7,"tier":"cheap"}'
    )
    assert receive(call) == 204
    assert receive(call) == 204  # sent again
    assert receive(call, signed=call.replace(b"75.204", b"1.0")) == 401
    assert receive(call, signature="\u00e9") == 401
    assert receive(call, at=str(int(now) - 301)) == 401
    assert receive(call, at="\u00b2") == 401
    assert receive(call.replace(b"+15550001", b"+15550002")) == 404
    entries: Any = redis_client.xrange(STREAM)
    first, again = (fields[EVENT_FIELD] for _, fields in entries)
    assert first == again
    event = parse_event(first)
    assert isinstance(event, CallEvent)
    assert (event.org_id, event.tier, event.direction, event.duration_us) == (
        42,
        "bolt",
        "inbound",
        75_204_000,
    )


def test_the_numbers_are_the_programs_own() -> None:
    assert f"at most {MAX_EVENTS:,} of them" in EVENTS
    assert f"at most {MAX_BODY_BYTES // 1024**2} MiB, unpacked" in EVENTS
    assert f"| 429 | {CALLS_IN_HAND} requests" in EVENTS
