"""When a key was last used is noted beside the requests, once an hour at most."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest
from sqlalchemy import text

from db.accounts.api_keys import key_hash, note_uses
from db.postgres.engine import transaction
from metering.api import key_uses
from metering.api.app import make_app
from metering.api.key_uses import KeyUses
from tests.api.site import Site, api_context, served
from tests.conftest import Database
from tests.db import execute_as
from tests.waiting import wait_until


def last_used(site: Site) -> datetime | None:
    with transaction(site.world.engine) as connection:
        found: datetime | None = connection.scalar(text("SELECT last_used_at FROM api_keys"))
    return found


@pytest.mark.parametrize(
    "path", ["/v1/billing", "/v1/billing/transactions", "/v1/gate/1"], ids=["quick", "framework", "gate"]
)
def test_a_request_with_a_good_key_is_noted(site: Site, path: str) -> None:
    for _ in range(2):  # the first is the framework's, the second answered quickly
        assert site.get(path).status_code in {200, 402}
    assert last_used(site) is None  # no request waits for it
    assert len(site.context.key_uses._used) == 1
    asyncio.run(written(site))
    noted = last_used(site)
    assert noted is not None
    with transaction(site.world.engine) as connection:
        assert connection.scalar(text("SELECT last_used_at <= clock_timestamp() FROM api_keys"))


async def written(site: Site) -> None:
    """Write as the server does, in a loop of this test's."""

    async def note(hashes: Sequence[bytes]) -> None:
        note_uses(site.context.engine, hashes)

    site.context.key_uses._note = note
    await site.context.key_uses.write()


def test_a_bad_key_is_never_noted(site: Site) -> None:
    headers = {"Authorization": "Bearer sk_live_" + "0" * 64}
    assert site.http.get("/v1/billing", headers=headers).status_code == 401
    assert site.context.key_uses._used == set()


def test_the_server_writes_them_by_itself(
    site: Site, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_uses, "EVERY_S", 0.05)
    database = Database(
        "", site.context.engine.url.render_as_string(hide_password=False), "", site.world.engine
    )
    with api_context(database, redis_url, site.world) as context, served(make_app(context)) as url:
        answer = site.http.get(f"{url}/v1/billing", headers=site.headers(1))
        assert answer.status_code == 200
        wait_until(lambda: last_used(site) is not None, limit_s=20)


def test_within_the_hour_nothing_is_written_again(site: Site, database: Database) -> None:
    api_key = site.key(1)
    note_uses(site.world.engine, [key_hash(api_key)])
    first = last_used(site)
    note_uses(site.world.engine, [key_hash(api_key)])
    assert last_used(site) == first
    execute_as(site.admin_url, "UPDATE api_keys SET last_used_at = last_used_at - interval '61 min'")
    note_uses(site.world.engine, [key_hash(api_key)])
    now = last_used(site)
    assert first is not None
    assert now is not None
    assert now >= first


def test_what_can_not_be_written_is_kept_and_written_later() -> None:
    calls: list[Sequence[bytes]] = []
    now_s = 0.0

    async def note(hashes: Sequence[bytes]) -> None:
        calls.append(hashes)
        if len(calls) == 1:
            raise OSError

    async def run() -> None:
        nonlocal now_s
        uses = KeyUses(note, monotonic=lambda: now_s)
        uses.record("a")
        await uses.write()
        uses.record("a")
        await uses.write()
        assert calls == [[key_hash("a")]] * 2
        uses.record("a")
        await uses.write()  # noted within the hour
        assert len(calls) == 2
        now_s += 3_601
        uses.record("a")
        await uses.write()
        assert len(calls) == 3

    asyncio.run(run())


def test_it_is_written_once_more_when_the_server_ends() -> None:
    calls: list[Sequence[bytes]] = []

    async def note(hashes: Sequence[bytes]) -> None:
        calls.append(hashes)

    async def run() -> None:
        stop, uses = asyncio.Event(), KeyUses(note)
        writing = asyncio.create_task(uses.keep_writing(stop))
        await asyncio.sleep(0)
        uses.record("a")
        stop.set()
        await asyncio.wait_for(writing, 10)

    asyncio.run(run())
    assert calls == [[key_hash("a")]]
