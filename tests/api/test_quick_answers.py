"""What is asked for all the time is answered without the framework, and just as the framework would."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx
import psycopg
import pytest
from structlog.testing import capture_logs

from db.accounts.api_keys import list_keys, revoke_key
from db.postgres.engine import transaction
from metering.api import accounts, gates
from metering.api.server import bind
from tests.api.site import QUICK, TELEPHONY_TOKEN, Site
from tests.spine.billing import prepare, price

TELEPHONY: Final = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
GATE: Final = "/v1/gate/1"
TIER: Final = f"{GATE}?direction=outbound&tier=bolt"
PLAIN: Final = ("/v1/billing", GATE, f"{GATE}?direction=inbound", f"{GATE}?tier=bolt", TIER)
OTHERWISE: Final = "&"
"""Between two of these there is no parameter: so this asks the framework for the same."""


@contextmanager
def framework_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("the framework was asked")

    with monkeypatch.context() as patch, capture_logs():
        patch.setattr(accounts, "read_account", fail)
        patch.setattr(gates, "_gate", fail)
        yield


def otherwise(path: str) -> str:
    return f"{path}{'' if '?' in path else '?'}{OTHERWISE}"


def said(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    headers = {
        name: value for name, value in response.headers.items() if name not in {"date", "x-request-id"}
    }
    return response.status_code, response.content, headers


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("cents", [-3, 0, 5, 10**11])
def test_it_is_what_the_framework_says(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, cents: int
) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    site.world.adjust(cents + 1)
    site.world.adjust(-1)
    site.get(TIER)  # so that the price is known
    asking = [site.headers(1)] + ([TELEPHONY] if path.startswith(GATE) else [])
    for headers in asking:
        with framework_fails(monkeypatch):
            quick = site.http.get(path, headers=headers)
            assert site.http.get(otherwise(path), headers=headers).status_code == 500
        assert quick.status_code == (402 if cents <= 0 and path.startswith(GATE) else 200)
        assert said(quick) == said(site.http.get(otherwise(path), headers=headers))


@pytest.mark.parametrize("path", ["/v1/billing", GATE])
def test_settings_and_balances_are_those_of_the_moment(site: Site, path: str) -> None:
    site.world.save_card()
    for cents in (7, -20, 30):
        site.world.adjust(cents)
        site.patch(auto_reload_minimum_cents=abs(cents))
        assert said(site.get(path)) == said(site.get(otherwise(path)))


@pytest.mark.parametrize("path", ["/v1/billing", GATE])
def test_a_key_that_is_revoked_stops_with_the_next_request(site: Site, path: str) -> None:
    site.world.adjust(1)
    assert [site.get(path).status_code for _ in range(2)] == [200, 200]  # by the framework, then quickly
    with transaction(site.world.engine) as connection:
        (key,) = list_keys(connection, 1)
        revoke_key(connection, key.id, site.world.clock())
    assert said(site.get(path)) == said(site.get(otherwise(path)))
    assert site.get(path).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("Authorization", "Bearer")], 401),
        ([("Authorization", "Bearer sk_live_wrong")], 401),
        ([("Authorization", "Bearer x"), ("Authorization", "Bearer y")], 401),
        ([("Authorization", "Basic abc")], 401),
    ],
    ids=["none", "empty", "wrong", "two", "basic"],
)
@pytest.mark.parametrize("path", ["/v1/billing", GATE])
def test_whoever_may_not_ask_is_refused_as_ever(
    site: Site, path: str, headers: list[tuple[str, str]], status: int
) -> None:
    refused = site.http.get(path, headers=headers)
    assert refused.status_code == status
    assert said(refused) == said(site.http.get(otherwise(path), headers=headers))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/gate/2", 404),
        ("/v1/gate/0", 400),
        ("/v1/gate/01", 200),
        ("/v1/gate/99999999999999999999", 400),
        ("/v1/gate/9223372036854775808", 400),
        ("/v1/gate/1?direction=up", 400),
        ("/v1/gate/1?tier=nowhere", 400),
        ("/v1/gate/1?tier=bolt&tier=bolt", 400),
        ("/v1/gate/1/", 404),
        ("/v1/billing/", 404),
    ],
)
def test_what_is_not_asked_plainly_or_for_others_is_the_framework_s(
    site: Site, path: str, status: int
) -> None:
    prepare(site.world.engine, org_ids=[2], prices=[price("bolt", "0.08")])
    site.world.adjust(1)
    site.get(TIER)
    assert site.get(path).status_code == status
    assert said(site.get(path)) == said(site.get(otherwise(path)))


def test_another_org_s_gate_is_no_one_s(site: Site) -> None:
    site.world.adjust(1)
    site.world.client.hset("gate:2", mapping={"state": "open", "balance_cents": 5, "version": 1})
    prepare(site.world.engine, org_ids=[2], prices=[])
    assert site.http.get("/v1/gate/2", headers=TELEPHONY).status_code == 200
    assert site.get(GATE).status_code == 200  # so its key was good lately
    assert site.get("/v1/gate/2").status_code == 404


def test_the_telephony_token_opens_gates_alone(site: Site) -> None:
    site.world.adjust(1)
    assert site.http.get("/v1/billing", headers=TELEPHONY).status_code == 401
    assert site.http.get(GATE, headers=TELEPHONY).status_code == 200


@pytest.mark.parametrize("path", ["/v1/billing", GATE])
def test_connections_that_were_cut_are_nothing_a_client_sees(site: Site, path: str) -> None:
    site.world.adjust(1)
    assert [site.get(path).status_code for _ in range(2)] == [200, 200]  # by the framework, then quickly
    with psycopg.connect(site.admin_url, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", [QUICK]
        )
        assert ended.rowcount > 0
    for _ in range(3):
        assert site.get(path).status_code == 200


def test_an_answer_s_body_waits_for_no_acknowledgement() -> None:
    """Sent after its headers, it would wait for the client's delayed one, for 40 ms."""

    async def delays() -> bool:
        accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            accepted.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0)
            writer.close()

        with bind("127.0.0.1", 0) as bound:
            async with await asyncio.start_server(look, sock=bound):
                with socket.create_connection(bound.getsockname()):
                    return await asyncio.wait_for(accepted, 30)

    assert not asyncio.run(delays())


def test_a_pause_is_told_until_its_time_is_over(site: Site) -> None:
    world = site.world
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="insufficient_funds")
    assert site.get("/v1/billing").json()["auto_reload_paused"] is None
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.work()
    for code in ("insufficient_funds", None):
        told = site.get("/v1/billing")
        assert told.json()["auto_reload_paused"] == code
        assert said(told) == said(site.get(otherwise("/v1/billing")))
        world.clock.move(hours=1)
