"""What one org asks for, however much and however slow, keeps no other org waiting (docs/reference/http-api.md)."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from db.ledger.transaction_list import list_transactions
from metering.api import accounts, errors, thread_pools, transactions
from metering.payments.accounts import change_settings
from tests.api.site import TELEPHONY_TOKEN, Site, assert_problem
from tests.waiting import wait_until

GREEDY, OTHER = 1, 2
MANY = 40
LIMIT_S = 10.0
LIST = "/v1/billing/transactions"


class Held:
    """What the greedy org asks for doesn't end until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = 0
        self._lock = threading.Lock()

    def hold(self, org_id: int) -> None:
        if org_id != GREEDY:
            return
        with self._lock:
            self.running += 1
        assert self.go_on.wait(60)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Lists and settings of the greedy org take for ever: so slow is Postgres with what it asks for."""
    made = Held()

    def list_slowly(engine: Any, org_id: int, *rest: Any, **more: Any) -> Any:
        made.hold(org_id)
        return list_transactions(engine, org_id, *rest, **more)

    def change_slowly(payments: Any, org_id: int, *rest: Any) -> Any:
        made.hold(org_id)
        return change_settings(payments, org_id, *rest)

    monkeypatch.setattr(transactions, "list_transactions", list_slowly)
    monkeypatch.setattr(accounts, "change_settings", change_slowly)
    yield made
    made.go_on.set()


@pytest.fixture
def crowd(site: Site, held: Held) -> Iterator[list[Future[httpx.Response]]]:
    """Many requests of the greedy org's at once, of both kinds; others' begin when they are there."""
    for org_id in (OTHER, 3):
        site.world.make_org(org_id, 1_000)
    site.key(GREEDY)
    with (
        httpx.Client(
            base_url=site.url,
            timeout=60,
            limits=httpx.Limits(max_connections=3 * MANY),
            headers=site.headers(GREEDY),
        ) as http,
        ThreadPoolExecutor(2 * MANY) as threads,
        ExitStack() as at_end,
    ):
        at_end.callback(held.go_on.set)
        body = {"auto_reload_minimum_cents": 7}
        asked = [threads.submit(http.get, LIST) for _ in range(MANY)]
        asked += [threads.submit(http.patch, "/v1/billing", json=body) for _ in range(MANY)]
        wait_until(lambda: held.running >= 4, limit_s=20)
        yield asked
        held.go_on.set()
        assert {each.result().status_code for each in asked} == {200}


def test_others_read_and_change_while_one_org_s_requests_hang(
    site: Site, crowd: list[Future[httpx.Response]], held: Held
) -> None:
    telephony = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
    for org_id in (OTHER, 3):
        headers = site.headers(org_id)  # a key that was never used before
        for _ in range(3):
            asked = [
                site.http.get(f"{LIST}?limit=1", headers=headers, timeout=LIMIT_S),
                site.http.get("/v1/billing", headers=headers, timeout=LIMIT_S),
                site.http.get(f"/v1/gate/{org_id}", headers=headers, timeout=LIMIT_S),
                site.http.get(f"/v1/gate/{org_id}", headers=telephony, timeout=LIMIT_S),
                site.http.patch(
                    "/v1/billing", headers=headers, json={"auto_reload_minimum_cents": 5}, timeout=LIMIT_S
                ),
            ]
            assert {each.status_code for each in asked} == {200}
    assert not any(each.done() for each in crowd)
    # And it has its share, no more.
    assert held.running == 2 * thread_pools.THREADS_PER_ORG


def test_two_top_ups_that_were_answered_stay_two_beside_a_greedy_org(
    site: Site, crowd: list[Future[httpx.Response]]
) -> None:
    site.world.save_card(org_id=OTHER)
    before = site.world.balance(OTHER)
    answers = [site.top_up(2_000, org_id=OTHER, timeout=LIMIT_S) for _ in range(2)]
    assert [each.status_code for each in answers] == [201, 201]
    assert len({each.json()["payment_intent_id"] for each in answers}) == 2
    assert site.world.balance(OTHER) == before + 4_000
    assert len(site.world.attempts(OTHER)) == 2


def test_an_org_that_has_more_waiting_than_its_share_is_told_so(
    site: Site, crowd: list[Future[httpx.Response]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_pools, "MAX_WAITING_PER_ORG", MANY - thread_pools.THREADS_PER_ORG)
    monkeypatch.setattr(errors, "REFUSAL_DELAY_S", 0.01)
    list_pool = site.context.thread_pools.list
    wait_until(
        lambda: list_pool.shares.slots_of(GREEDY).waiting == MANY - thread_pools.THREADS_PER_ORG, limit_s=20
    )
    refused = site.get(LIST)
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["retry-after"] == "1"
    assert site.get("/v1/billing").status_code == 200  # of other things it has another share
    assert site.get(LIST, org_id=OTHER).status_code == 200
