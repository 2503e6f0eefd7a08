"""`/v1/calls`: holds over HTTP: what is granted, at which price, to whom, and that a repeat gets the first answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import httpx
import pytest
import redis

from db.accounts.call_limits import limit_concurrent_calls
from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.api import held_money
from metering.rules.hold_terms import decode_terms
from metering.signals.holds import Holds
from tests.api.site import TELEPHONY_TOKEN, Site, assert_problem
from tests.payments.world import START
from tests.spine.billing import event, prepare, price, push, run_meters
from tests.waiting import wait_until
from workers.refused_holds import RefusedHolds

PATH: Final = "/v1/calls"
TELEPHONY: Final = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
FIELDS: Final = [
    "allowed",
    "call_id",
    "max_duration_seconds",
    "held_cents",
    "available_cents",
    "expires_at",
]


def call(call_id: int = 7, seconds: Any = 600, **fields: Any) -> dict[str, Any]:
    usual = {"call_id": call_id, "org_id": 1, "direction": "outbound", "tier": "bolt", "seconds": seconds}
    return usual | fields


def start(site: Site, call_id: int = 7, seconds: Any = 600, **fields: Any) -> httpx.Response:
    return site.http.post(PATH, json=call(call_id, seconds, **fields), headers=TELEPHONY)


def renew(site: Site, call_id: int = 7, seconds: Any = 600, **fields: Any) -> httpx.Response:
    body = call(call_id, seconds, started_at=START.isoformat()) | fields
    del body["call_id"]
    return site.http.post(f"{PATH}/{call_id}/renew", json=body, headers=TELEPHONY)


def cancel(site: Site, call_id: int = 7, org_id: int = 1) -> httpx.Response:
    return site.http.delete(f"{PATH}/{call_id}?org_id={org_id}", headers=TELEPHONY)


def granted(response: httpx.Response, status: int = 201) -> tuple[int, int, int]:
    """For how long, what is held for it, and what is available after that."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == (FIELDS if status == 201 else [*FIELDS, "final"])
    assert body["allowed"] is True
    return body["max_duration_seconds"], body["held_cents"], body["available_cents"]


def renewed(response: httpx.Response) -> tuple[int, int, int, bool]:
    return *granted(response, 200), response.json()["final"]


def refused(response: httpx.Response, status: int, code: str) -> None:
    body = assert_problem(response, status, code)
    assert list(body) == ["detail", "code", "allowed"]
    assert body["allowed"] is False


@pytest.fixture
def bolt(site: Site) -> Site:
    """Org 1 with 100 cents, and a tier of 8 cents a minute."""
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    site.world.adjust(100)
    return site


def test_a_call_gets_what_was_asked_for_or_as_much_as_there_is(bolt: Site) -> None:
    assert granted(start(bolt, 1)) == (600, 80, 20)
    assert granted(start(bolt, 2)) == (120, 16, 4)
    refused(start(bolt, 3), 402, "insufficient_balance")
    assert granted(start(bolt, 2, 60)) == (120, 16, 4)  # it is held: the first answer
    assert cancel(bolt, 1).json() == {"call_id": 1, "held_cents": 0, "available_cents": 84}
    assert cancel(bolt, 1).json() == {"call_id": 1, "held_cents": 0, "available_cents": 84}
    assert granted(start(bolt, 3, 90)) == (90, 16, 68)
    assert granted(start(bolt, 4, 604_800)) == (480, 64, 4)


def test_a_hold_lapses_two_minutes_after_the_longest_that_the_call_may_last(bolt: Site) -> None:
    before = datetime.now(UTC)
    until = datetime.fromisoformat(start(bolt, 1, 300).json()["expires_at"])
    assert before + timedelta(seconds=419) < until < datetime.now(UTC) + timedelta(seconds=421)


def test_a_repeat_gets_the_first_answer_whatever_happened_since(bolt: Site) -> None:
    first = start(bolt, 1, 300).json()
    assert granted(start(bolt, 2, 60)) == (60, 8, 52)
    bolt.world.adjust(500)
    assert start(bolt, 1, 300).json() == first
    assert start(bolt, 1, 60, tier="bolt", direction="inbound").json() == first
    assert renewed(renew(bolt, 1, 900)) == (900, 120, 472, False)
    assert start(bolt, 1, 300).json() == first
    assert renewed(renew(bolt, 1, 900)) == (900, 120, 472, False)
    assert renewed(renew(bolt, 1, 600)) == (900, 120, 472, False)
    assert start(bolt, 1, 300).json() == first


def test_a_renewal_that_comes_late_takes_nothing_from_a_longer_one(bolt: Site) -> None:
    """Redis stood still, and got the renewals in another order than they were sent: the call lasts as long as was promised."""
    granted(start(bolt, 1, 300))
    longer = renew(bolt, 1, 900).json()
    assert renew(bolt, 1, 600).json() == longer
    assert renew(bolt, 1, 900).json()["held_cents"] == 96
    holds = Holds(bolt.world.client)
    holds.start(
        1, 2, 4, 600
    )  # held by telephony itself, for less than one increment: nothing is known of it but its cents
    assert renew(bolt, 2, 60).status_code == 402


def test_a_renewal_gets_as_much_as_there_is_and_says_where_the_money_ends(bolt: Site) -> None:
    granted(start(bolt, 1, 300))
    assert renewed(renew(bolt, 1, 600)) == (600, 80, 20, False)
    assert renewed(renew(bolt, 1, 900)) == (720, 96, 4, True)
    assert renewed(renew(bolt, 1, 900)) == (720, 96, 4, True)
    bolt.world.adjust(-150)  # what is held stays held
    assert renewed(renew(bolt, 1, 900)) == (720, 96, -146, True)
    bolt.world.suspend_org()
    assert renewed(renew(bolt, 1, 720)) == (720, 96, -146, True)
    bolt.world.resume_org()
    bolt.world.adjust(1_000)
    assert renewed(renew(bolt, 1, 900)) == (900, 120, 830, False)


def test_a_call_that_redis_has_forgotten_is_held_anew_unless_there_is_no_money(bolt: Site) -> None:
    granted(start(bolt, 1, 300))
    bolt.world.client.flushall()
    assert renewed(renew(bolt, 1, 600)) == (600, 80, 20, False)  # the gate too is made again
    assert renewed(renew(bolt, 2, 600)) == (120, 16, 4, True)
    refused(renew(bolt, 3, 600), 402, "insufficient_balance")
    bolt.world.adjust(-100)
    refused(renew(bolt, 3, 600), 402, "insufficient_balance")
    bolt.world.suspend_org()
    refused(renew(bolt, 4, 600), 403, "org_suspended")


def test_what_keeps_a_call_from_starting(bolt: Site) -> None:
    bolt.world.suspend_org()
    refused(start(bolt), 403, "org_suspended")
    bolt.world.resume_org()
    with transaction(bolt.world.engine) as connection:
        done = limit_concurrent_calls(connection, 1, 1)
    bolt.world.payments.gates.follow([done.balance], bolt.world.clock())
    granted(start(bolt, 1, 60))
    refused(start(bolt, 2, 60), 429, "too_many_calls")
    cancel(bolt, 1)
    bolt.world.adjust(-100)
    refused(start(bolt), 402, "balance_exhausted")
    for missing in ({"org_id": 404}, {"tier": "gold"}, {"org_id": 404, "tier": "gold"}):
        assert_problem(start(bolt, **missing), 404, "not_found")
        assert_problem(renew(bolt, **missing), 404, "not_found")


def test_a_gate_that_redis_has_lost_is_no_empty_balance(bolt: Site) -> None:
    bolt.world.client.flushall()
    assert granted(start(bolt, 1)) == (600, 80, 20)
    bolt.world.client.delete("gate:1")
    assert renewed(renew(bolt, 1, 720)) == (720, 96, 4, True)
    bolt.world.adjust(-100)
    bolt.world.client.flushall()
    refused(start(bolt, 1), 402, "balance_exhausted")


def test_a_call_whose_event_was_seen_is_not_held_again(bolt: Site, redis_client: redis.Redis) -> None:
    granted(start(bolt, 1, 300))
    push(redis_client, [event(call_id=1, duration_seconds=61, ended_at=START.isoformat())])
    run_meters(bolt.world.engine, redis_client)
    refused(start(bolt, 1), 409, "call_ended")
    refused(renew(bolt, 1), 409, "call_ended")
    assert granted(start(bolt, 2)) == (600, 80, 4)
    assert bolt.get(PATH).json()["total"] == 1


def test_the_dearest_price_of_the_next_minute_counts(bolt: Site) -> None:
    engine, clock = bolt.world.engine, bolt.world.clock
    bolt.world.adjust(10_000)
    granted(start(bolt, 1, 60))  # its price, for good
    with transaction(engine) as connection:
        set_price(connection, price("bolt", "0.50"), clock)  # 60 s ahead
    for later_s in (0, 30, 59):
        bolt.world.clock.at = START + timedelta(seconds=later_s)
        assert granted(start(bolt, 100 + later_s, 60))[1] == 50
        assert granted(start(bolt, 1, 60))[1] == 8
        assert renewed(renew(bolt, 1, 120))[1] == 16
    with transaction(engine) as connection:
        set_price(connection, price("bolt", "0.01"), clock)  # from 119 s on
    assert granted(start(bolt, 200, 60))[1] == 50
    bolt.world.clock.at = START + timedelta(seconds=118)
    assert granted(start(bolt, 201, 60))[1] == 50
    bolt.world.clock.at = START + timedelta(seconds=119)
    assert granted(start(bolt, 202, 60))[1] == 1
    # Of calls that Redis has forgotten: a minute before their start and after it.
    bolt.world.client.flushall()
    for started_s, cents in ((-1, 8), (0, 50), (60, 50), (178, 50), (179, 1)):
        started_at = (START + timedelta(seconds=started_s)).isoformat()
        assert renewed(renew(bolt, 300 + started_s, 60, started_at=started_at))[1] == cents


def test_fee_minimum_and_increment_count_and_are_rounded_once(site: Site) -> None:
    terms: dict[str, int] = {
        "increment_first_s": 30,
        "increment_next_s": 6,
        "minimum_s": 40,
        "connect_fee_microusd": 14_999,
    }
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.05", **terms), price("free", "0")])
    site.world.adjust(10)
    assert granted(start(site, 1, 1)) == (1, 5, 5)  # 1.4999 and 42 seconds at 5 cents a minute: 4.9999
    assert granted(start(site, 2, 600)) == (48, 5, 0)  # 5.4999
    refused(start(site, 3, 1), 402, "insufficient_balance")
    assert granted(start(site, 4, 604_800, tier="free")) == (604_800, 0, 0)


def test_thirty_at_once_on_the_money_for_one_and_for_ten_and_a_bit(site: Site) -> None:
    def insist(org_id: int, call_id: int) -> int:
        """Until it is answered: a busy machine may take longer than the server waits for Redis."""
        while (status := start(site, call_id, 60, org_id=org_id).status_code) == 503:
            pass
        return status

    prepare(site.world.engine, org_ids=[2], prices=[price("bolt", "0.08")])
    for org_id, cents, calls in ((1, 8, 1), (2, 85, 10)):
        site.world.adjust(cents, org_id=org_id)
        with ThreadPoolExecutor(30) as pool:
            statuses = list(pool.map(partial(insist, org_id), range(1, 31)))
        assert (statuses.count(201), statuses.count(402)) == (calls, 30 - calls), statuses


def test_the_list_is_the_orgs_own_and_telephony_sees_any(bolt: Site) -> None:
    bolt.world.make_org(2, 100)
    granted(start(bolt, 2**63 - 1, 600))
    granted(start(bolt, 5, 60))
    Holds(bolt.world.client).start(1, 6, 3, 30)  # by telephony itself
    listed = bolt.get(PATH).json()
    assert (listed["total"], listed["limit"], listed["offset"]) == (3, 50, 0)
    assert [each["call_id"] for each in listed["results"]] == [6, 5, 2**63 - 1]
    own, first, last = listed["results"]
    assert (own["tier"], own["direction"], own["max_duration_seconds"], own["held_cents"]) == (
        None,
        None,
        None,
        3,
    )
    assert (first["tier"], first["direction"], first["max_duration_seconds"], first["lapsed"]) == (
        "bolt",
        "outbound",
        60,
        False,
    )
    assert last["call_id_str"] == str(2**63 - 1)
    assert bolt.get(f"{PATH}?org_id=1&limit=1&offset=1").json()["results"] == [first]
    assert bolt.http.get(f"{PATH}?org_id=1", headers=TELEPHONY).json()["total"] == 3
    assert bolt.get(PATH, org_id=2).json()["results"] == []
    assert_problem(bolt.get(f"{PATH}?org_id=2"), 404, "not_found")
    assert_problem(bolt.http.get(PATH, headers=TELEPHONY), 400, "invalid_request", "org_id")
    for offset in ("-1", "x"):
        assert_problem(bolt.get(f"{PATH}?offset={offset}"), 400, "invalid_request", "offset")


def test_only_telephony_holds(bolt: Site) -> None:
    for headers in ({}, bolt.headers(1), {"Authorization": "Bearer wrong"}):
        for method, path, body in (
            ("POST", PATH, call()),
            ("POST", f"{PATH}/7/renew", call(started_at=START.isoformat())),
            ("DELETE", f"{PATH}/7?org_id=1", None),
        ):
            answer = bolt.http.request(method, path, json=body, headers=headers)
            assert_problem(answer, 401, "unauthenticated")
    assert bolt.get(PATH).json()["total"] == 0


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("call_id", [0, -1, 2**63, "7", 1.0, None]),
        ("org_id", [0, 2**63, "1", True, None]),
        ("seconds", [0, -1, 604_801, "600", 1.5, None]),
        ("direction", ["sideways", 1, None]),
        ("tier", ["", 5, None, "x" * 65]),
        ("more", [1]),
    ],
)
def test_bad_input_names_its_field(bolt: Site, field: str, values: list[Any]) -> None:
    for value in values:
        assert_problem(start(bolt, **{field: value}), 400, "invalid_request", field)
    for value in values:
        if field != "call_id":
            assert_problem(renew(bolt, **{field: value}), 400, "invalid_request", field)
    missing = call()
    if missing.pop(field, None) is not None:
        answer = bolt.http.post(PATH, json=missing, headers=TELEPHONY)
        assert_problem(answer, 400, "invalid_request", field)
    assert bolt.get(PATH).json()["total"] == 0


@pytest.mark.parametrize(
    "started_at",
    [
        *(
            "2026-04-20T18:25:06",
            "yesterday",
            1_776_709_506,
            None,
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
        ),
        (START + timedelta(minutes=5, seconds=1)).isoformat(),
        (START - timedelta(days=7, minutes=6)).isoformat(),
    ],
)
def test_a_start_that_can_not_be_is_refused(bolt: Site, started_at: Any) -> None:
    assert_problem(renew(bolt, started_at=started_at), 400, "invalid_request", "started_at")


def test_paths_and_queries_are_checked(bolt: Site) -> None:
    for wrong in ("0", "-1", "x", str(2**63)):
        assert bolt.http.delete(f"{PATH}/{wrong}?org_id=1", headers=TELEPHONY).status_code == 400
    assert_problem(bolt.http.delete(f"{PATH}/7", headers=TELEPHONY), 400, "invalid_request", "org_id")
    answer = bolt.http.delete(f"{PATH}/7?org_id=1&org=2", headers=TELEPHONY)
    assert_problem(answer, 400, "invalid_request", "org")
    assert_problem(
        bolt.http.post(f"{PATH}?org_id=1", json=call(), headers=TELEPHONY), 400, "invalid_request", "org_id"
    )


def test_a_renewal_is_of_the_tier_that_was_held(bolt: Site) -> None:
    prepare(bolt.world.engine, org_ids=[], prices=[price("spark", "0.01")])
    granted(start(bolt, 1, 60))
    problem = assert_problem(renew(bolt, 1, 120, tier="spark"), 400, "invalid_request", "tier")
    assert "bolt" in problem["detail"]
    assert renewed(renew(bolt, 1, 120))[:2] == (120, 16)


def test_what_telephony_holds_by_itself_is_let_in_for_as_long_as_it_covers(bolt: Site) -> None:
    holds = Holds(bolt.world.client)
    holds.start(1, 1, 17, 600)
    holds.start(1, 2, 3, 600)
    assert granted(start(bolt, 1)) == (120, 17, 80)
    refused(start(bolt, 2), 402, "insufficient_balance")
    found = holds.find(1, 2)
    assert found is not None
    assert found.cents == 3


def test_what_telephony_holds_by_itself_is_renewed_too(bolt: Site) -> None:
    holds = Holds(bolt.world.client)
    holds.start(1, 1, 16, 300)
    assert granted(start(bolt, 1, 600)) == (120, 16, 84)  # held already
    assert renewed(renew(bolt, 1, 300)) == (300, 40, 60, False)
    found = holds.find(1, 1)
    assert found is not None
    terms = decode_terms(found.terms)
    assert terms is not None
    assert terms.tier == "bolt"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "5",
        "[]",
        '{"tier":"bolt"}',
        '{"tier":"bolt","direction":"x","max_duration_s":1,"prices":[]}',
        '{"tier":"?","direction":"x","max_duration_s":1,"prices":[[1,1,1,1,1]]}',
        '{"tier":"b","direction":"x","max_duration_s":1,"prices":[[1,0,1,1,1]]}',
    ],
)
def test_terms_that_are_none_are_passed_over(text: str) -> None:
    assert decode_terms(text) is None


def test_an_org_that_can_pay_for_no_minute_behind_an_open_gate_is_reloaded_and_calls_again(
    site: Site,
) -> None:
    world = site.world
    prepare(world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    world.adjust(7)
    world.save_card()
    world.settings(enabled=True, minimum_cents=0, amount_cents=1_000)
    jobs = RefusedHolds(world.payments, Holds(world.client))
    jobs.run_once(threading.Event())
    assert (world.attempts(), world.balance()) == ([], 7)
    for call_id in range(1, 20):  # one note, one reload
        refused(start(site, call_id, 60), 402, "insufficient_balance")
    refused(renew(site, 30, 60), 402, "insufficient_balance")
    wait_until(lambda: world.rows("SELECT FROM refused_holds") != [], limit_s=30)
    jobs.run_once(threading.Event())
    world.work()
    assert world.balance() == 1_007
    assert granted(start(site, 1, 60)) == (60, 8, 999)
    jobs.run_once(threading.Event())
    world.work()
    assert len(world.attempts()) == 1
    world.assert_sound()


def test_a_call_that_is_refused_because_others_hold_the_money_makes_no_reload(bolt: Site) -> None:
    bolt.world.save_card()
    bolt.world.settings(enabled=True, minimum_cents=0, amount_cents=1_000)
    granted(start(bolt, 1, 720))
    refused(start(bolt, 2, 60), 402, "insufficient_balance")
    wait_until(lambda: bolt.world.rows("SELECT FROM refused_holds") != [], limit_s=30)
    RefusedHolds(bolt.world.payments, Holds(bolt.world.client)).run_once(threading.Event())
    assert bolt.world.attempts() == []


def test_the_account_says_what_is_held_and_what_is_left(
    bolt: Site, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def money() -> tuple[Any, Any, Any]:
        quick, slow = bolt.get("/v1/billing").json(), bolt.get("/v1/billing?").json()
        otherwise = bolt.get("/v1/billing?&").json()  # the framework's answer
        assert quick == slow == otherwise
        return quick["balance_cents"], quick["held_cents"], quick["available_cents"]

    assert money() == (100, 0, 100)
    granted(start(bolt, 1, 300))
    assert money() == (100, 40, 60)
    bolt.world.adjust(-70)
    assert money() == (30, 40, -10)
    assert bolt.patch(auto_reload_minimum_cents=5).json()["held_cents"] == 40
    cancel(bolt, 1)
    assert money() == (30, 0, 30)
    monkeypatch.setattr(held_money, "PAUSE_S", 0.0)
    redis_client.set("holds:1", "no hash")  # as good as none that answers
    assert money() == (30, None, None)
