"""What one org asks for, however much and however slow, keeps no other org waiting (docs/reference/http-api.md)."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from db.ledger.transaction_list import list_transactions
from metering.api import accounts, errors, thread_pools, transactions
from metering.api.thread_pools import REST, Askers, ThreadPool, ThreadPools
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


COMPUTING_S = 0.02


def compute() -> None:
    ends_s = time.thread_time() + COMPUTING_S
    while time.thread_time() < ends_s:
        pass


@pytest.mark.parametrize(("others_at_s", "rests"), [(0.5, True), (-0.5, False)])
def test_a_turn_that_has_computed_rests_while_another_org_asks(others_at_s: float, rests: bool) -> None:
    """Else one org's threads keep the processor that all of the process share."""

    async def ask() -> None:
        now_s = [others_at_s]
        pool = ThreadPool(4, per_org=1, rest=REST, askers=Askers(monotonic=lambda: now_s[0]))
        pool.shares.askers.note(OTHER)
        now_s[0] = 1.0
        await pool.run_for(GREEDY, compute)
        ended_s = time.monotonic()
        gc.collect(0)  # a turn that rests is nobody's but the clock's
        assert pool.shares.slots_of(GREEDY).free.locked() is rests
        assert not pool.shares.slots_of(OTHER).free.locked()
        await pool.run_for(GREEDY, lambda: None)
        if rests:
            assert time.monotonic() - ended_s > COMPUTING_S * REST / 2

    asyncio.run(ask())


def test_what_only_waits_for_postgres_doesnt_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pools, "MAX_REST_S", 60.0)
    waiting_s = 0.5

    async def ask() -> None:
        pool = ThreadPool(4, per_org=1, rest=REST)
        pool.shares.askers.note(OTHER)
        # A sleep computes as little as a thread does that waits for Postgres; counted, it would bring ten times as long a rest.
        await pool.run_for(GREEDY, lambda: time.sleep(waiting_s))
        ended_s = time.monotonic()
        await pool.run_for(GREEDY, lambda: None)
        assert time.monotonic() - ended_s < waiting_s * REST / 2

    asyncio.run(ask())


def test_whoever_asks_in_one_way_is_seen_by_the_other_pools() -> None:
    """An org that only asks its gate wants an answer as soon as one that lists."""
    pools = ThreadPools()
    pools.quick.askers.note(OTHER)
    assert pools.list.shares.askers.others_than(GREEDY)
    assert not pools.list.shares.askers.others_than(OTHER)
    pools.gate.shares.askers.note(GREEDY)
    assert pools.account.shares.askers.others_than(OTHER)
    assert pools.account.shares.askers.others_than(GREEDY)
