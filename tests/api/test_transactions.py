"""The list of transactions as customers ask for it; its pages against a model are in tests/db/ledger/test_transaction_list.py."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.api.site import Site, assert_problem
from tests.payments.world import START
from tests.spine.billing import event, prepare, price, push, run_meters


def listed(site: Site, query: str = "") -> dict[str, Any]:
    response = site.get(f"/v1/billing/transactions{query}")
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    assert list(page) == ["results", "total", "limit", "offset"]
    return page


def amounts(site: Site, query: str = "") -> list[int]:
    return [each["amount_cents"] for each in listed(site, query)["results"]]


@pytest.fixture
def history(site: Site) -> Site:
    """Adjustments of 1, 2, 3 ... 8 cents, one each six hours from START on, which is a noon."""
    for cents in range(1, 9):
        site.world.adjust(cents)
        site.world.clock.move(hours=6)
    return site


def test_an_org_without_any(site: Site) -> None:
    assert listed(site) == {"results": [], "total": 0, "limit": 50, "offset": 0}
    assert listed(site, "?kind=debit&start_date=2026-01-01&offset=7")["total"] == 0


def test_newest_first_in_pages(history: Site) -> None:
    assert amounts(history) == [8, 7, 6, 5, 4, 3, 2, 1]
    page = listed(history, "?limit=3&offset=2")
    assert ([each["amount_cents"] for each in page["results"]], page["total"]) == ([6, 5, 4], 8)
    assert (page["limit"], page["offset"]) == (3, 2)
    assert amounts(history, "?limit=1") == [8]
    assert amounts(history, "?limit=200&offset=7") == [1]
    for offset in (8, 9, 2**63 - 1):
        assert listed(history, f"?offset={offset}") == {
            "results": [],
            "total": 8,
            "limit": 50,
            "offset": offset,
        }


def test_each_kind(site: Site) -> None:
    site.world.save_card()
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    charged = site.top_up(5_000).json()["payment_intent_id"]
    site.take_webhooks()
    site.world.sandbox.refund(charged, amount_cents=100)
    assert site.world.sandbox.wait_delivered()
    site.world.adjust(-7)
    push(site.world.client, [event(ended_at="2026-04-20T12:00:00Z")])
    run_meters(site.world.engine, site.world.client, clock=site.world.clock)
    for kind, cents in [("credit", 5_000), ("refund", -100), ("adjustment", -7), ("debit", -16)]:
        page = listed(site, f"?kind={kind}")
        assert page["total"] == 1
        (transaction,) = page["results"]
        assert (transaction["kind"], transaction["amount_cents"]) == (kind, cents)
        of_call = kind == "debit"
        assert [
            transaction[name] is not None for name in ("call_id", "phone_number_id", "phone_number_value")
        ] == [of_call] * 3
        assert isinstance(transaction["metadata"], dict)
    assert listed(site)["total"] == 4


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        # From START, 2026-04-20T12:00Z, at 12, 18, 0, 6, 12, 18, 0 and 6 o'clock.
        ("start_date=2026-04-20T18:00:00Z", [8, 7, 6, 5, 4, 3, 2]),
        ("start_date=2026-04-20T18:00:00.001Z", [8, 7, 6, 5, 4, 3]),
        ("start_date=2026-04-20T18:00:00.000001Z", [8, 7, 6, 5, 4, 3]),
        ("end_date=2026-04-20T18:00:00Z", [1]),
        ("end_date=2026-04-20T18:00:00.001Z", [2, 1]),
        ("start_date=2026-04-21", [8, 7, 6, 5, 4, 3]),
        ("end_date=2026-04-20", [2, 1]),
        ("end_date=2026-04-21", [6, 5, 4, 3, 2, 1]),
        ("start_date=2026-04-21&end_date=2026-04-21", [6, 5, 4, 3]),
        ("start_date=2026-04-21T00:00:00Z&end_date=2026-04-22T00:00:00Z", [6, 5, 4, 3]),
        (
            "start_date=2026-04-21T00:00:00&end_date=2026-04-22T00:00:00",
            [6, 5, 4, 3],
        ),  # UTC, as no offset says otherwise
        ("start_date=2026-04-20T20:00:00%2B02:00", [8, 7, 6, 5, 4, 3, 2]),
        ("start_date=2026-04-20T20:00:00+02:00", [8, 7, 6, 5, 4, 3, 2]),  # the plus not encoded
        ("start_date=2026-04-20T20:00:01%2B02:00", [8, 7, 6, 5, 4, 3]),
        ("end_date=2026-04-20T13:00:00-05:00", [1]),
        ("start_date=2026-04-22&end_date=2026-04-21", []),
        ("start_date=2026-04-21T06:00:00Z&end_date=2026-04-21T06:00:00Z", []),
        ("start_date=2026-04-23", []),
        ("end_date=2026-04-19", []),
        ("start_date=0001-01-01&end_date=9999-12-31", [8, 7, 6, 5, 4, 3, 2, 1]),
        ("start_date=2026-04-21&kind=adjustment&limit=2&offset=1", [7, 6]),
        ("start_date=2026-04-21&kind=debit", []),
    ],
)
def test_dates_with_and_without_times_and_offsets(history: Site, query: str, expected: list[int]) -> None:
    assert amounts(history, f"?{query}") == expected
    if "limit" not in query:
        assert listed(history, f"?{query}")["total"] == len(expected)


METADATA = [
    '{"b": 1, "a": 1.0, "big": 12345678901234567890, "precise": 1.10, "huge": 1e400, "small": 1e-400}',
    '{"twice": 1, "twice": 2}',
    '{"text": "\\u00e9 é 💸 \\/ \\"", "nested": {"list": [null, true, {}]}}',
    "{}",
]


def test_metadata_comes_back_by_the_very_bytes(site: Site) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    at = "2026-04-20T12:00:00Z"
    for call_id, metadata in enumerate(METADATA, start=1):
        marked = event(call_id=call_id, ended_at=at, metadata="@")
        push(site.world.client, [_raw(marked, metadata)])
    push(site.world.client, [_raw(event(call_id=99, ended_at=at, metadata="@"), "null")])
    run_meters(site.world.engine, site.world.client, clock=site.world.clock)
    text = site.get("/v1/billing/transactions").text
    for metadata in METADATA:
        assert f'"metadata":{metadata},' in text


def _raw(fields: dict[str, Any], metadata: str) -> bytes:
    return json.dumps(fields).replace('"@"', metadata).encode()


def test_a_call_is_told_with_what_was_billed(site: Site) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    at = "2026-04-20T11:59:59.9876Z"
    calls = [(2**63 - 1, 75, 75), (2, 0.000001, 1e-06), (3, 604_799.123456, 604_799.123456), (4, 61.5, 61.5)]
    for call_id, duration, _ in calls:
        push(
            site.world.client,
            [event(call_id=call_id, duration_seconds=duration, direction="inbound", ended_at=at)],
        )
        run_meters(site.world.engine, site.world.client, clock=site.world.clock)
    site.world.adjust(7)
    results = listed(site)["results"]
    of_call = ("call_id_str", "tier", "direction", "duration_seconds", "ended_at")
    assert [results[0][name] for name in ("call_id", *of_call)] == [None] * 6
    for (call_id, _, duration), row in zip(calls[::-1], results[1:], strict=True):
        told = [row[name] for name in of_call]
        assert told == [str(call_id), "bolt", "inbound", duration, "2026-04-20T11:59:59.987Z"]
        assert row["call_id"] == call_id
    assert '"duration_seconds":75,' in site.get("/v1/billing/transactions").text
    page = listed(site, f"?call_id={2**63 - 1}")
    assert ([each["call_id_str"] for each in page["results"]], page["total"]) == ([str(2**63 - 1)], 1)
    assert listed(site, "?call_id=5")["total"] == 0
    assert listed(site, "?call_id=2&kind=credit")["total"] == 0


def test_pages_by_id(history: Site) -> None:
    ids = [each["id"] for each in listed(history)["results"]]
    page = listed(history, f"?limit=3&before_id={ids[2]}")
    assert ([each["id"] for each in page["results"]], page["total"]) == (ids[3:6], 8)
    history.world.adjust(99)
    assert [each["id"] for each in listed(history, f"?limit=3&before_id={ids[5]}")["results"]] == ids[6:]
    page = listed(history, f"?before_id={ids[2]}&offset=2&limit=2&start_date=2026-04-21")
    assert ([each["amount_cents"] for each in page["results"]], page["total"]) == ([3], 7)
    assert listed(history, "?before_id=1")["results"] == []


@pytest.mark.parametrize("name", ["before_id", "call_id"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.0", "9223372036854775808", "1&{}=2"])
def test_ids_are_taken_at_their_word(site: Site, name: str, value: str) -> None:
    response = site.get(f"/v1/billing/transactions?{name}={value.format(name)}")
    assert_problem(response, 400, "invalid_request", name)


def test_a_debit_stands_at_its_time_of_posting_in_milliseconds(history: Site) -> None:
    times = [each["created_at"] for each in listed(history)["results"]]
    assert times[-1] == "2026-04-20T12:00:00.000Z"
    assert [datetime.fromisoformat(each) for each in times][::-1] == [
        START + timedelta(hours=6) * n for n in range(8)
    ]
