"""What can't be billed is kept with the right reason and holds nothing else up; what can, is billed once the cause is mended."""

import hashlib
import json
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from metering.cli.main import app
from metering.rules.rejections import Rejection
from tests.conftest import Database
from tests.judging import judge_event
from tests.spine.billing import (
    assert_sound,
    balances,
    debits,
    event,
    prepare,
    price,
    push,
    rejections,
    run_meters,
)


def encoded(**fields: Any) -> bytes:
    return json.dumps(event(**fields)).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in event().items() if name != field}).encode()


def raw(field: str, value: str) -> bytes:
    """An event with `value` standing in its JSON as it is."""
    return json.dumps(event(**{field: "HERE"})).replace('"HERE"', value).encode()


def all_of(field: str, *values: Any) -> list[bytes]:
    """An event for each of `values` in `field`."""
    return [encoded(**{field: value}) for value in values]


BROKEN: dict[str, list[bytes]] = {
    "malformed_json": [
        *(b"", b"{", b"nonsense", b"[]", b'"text"', b"42", b"null", encoded()[:-1], encoded() + b"x"),
        *(
            b"\xff\xfe",
            encoded().replace(b"bolt", b"b\xfflt"),
            b"\x00" + encoded(),
            encoded().replace(b"bolt", b"b\x00lt"),
        ),
        *(
            raw("duration_seconds", "NaN"),
            raw("duration_seconds", "Infinity"),
            raw("duration_seconds", "-Infinity"),
        ),
        b'{"unknown":' + b"[" * 4000 + b"]" * 4000 + b"}",
    ],
    "invalid_field": [
        *map(without, ("call_id", "org_id", "tier", "direction", "duration_seconds", "ended_at")),
        *all_of("call_id", 0, -1, 2**63, 10**40, 1.0, "1", True, None, [1]),
        *all_of("org_id", 0, -1, 2**63, 10**40, 1.0, "1", True, None, {}),
        *all_of("tier", None, 1, "b\x00lt", "x" * 1000),
        *all_of("direction", None, "sideways", "Inbound", ""),
        *all_of("duration_seconds", -1, 604_800.000001, 10**30, "75", None, True, []),
        *(raw("duration_seconds", value) for value in ("1e-7", "0.0000001", "1e999999999", "1e-999999999")),
        *all_of(
            "ended_at", None, 0, "", "yesterday", "2026-04-20", "2026-04-20T18:25:06", "2999-01-01T00:00:00Z"
        ),
        *all_of("phone_number_id", "201", 1.5, 2**63, True),
        *all_of("phone_number_value", 1, "x" * 65, "\x00", "\ud800"),
        *all_of("metadata", [], "x", 1, {"big": "x" * 4096}, {"a": "\x00"}, {"\x00": 1}, {"a": "\udfff"}),
        raw("metadata", '{"a":' * 100 + "1" + "}" * 100),
    ],
    "too_large": [encoded(unknown="x" * 20_000), b"x" * 200_000],
}


def test_a_hundred_broken_events_among_ten_thousand(
    database: Database, redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [(reason, each) for reason, kind in BROKEN.items() for each in kind]
    broken = (broken * 2)[:90]
    missing = [encoded(call_id=20_000 + n, org_id=999) for n in range(4)]
    missing += [encoded(call_id=20_000 + n, tier="no-such-tier") for n in range(4)]
    conflicts = [encoded(call_id=1, duration_seconds=76), encoded(call_id=2, direction="inbound")]
    good = [encoded(call_id=n) for n in range(1, 9_901)]
    stream = good[:2] + random.Random(3).sample(
        good[2:] + [each for _, each in broken] + missing + conflicts, k=9_898 + len(broken) + 10
    )
    assert len(stream) == 10_000
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])

    # Of two events that contradict each other the one that is billed first counts: so these two are.
    push(redis_client, stream[:2])
    run_meters(database.engine, redis_client, meters=1)
    push(redis_client, stream[2:])
    run_meters(database.engine, redis_client, meters=2)

    assert len(debits(database.engine)) == 9_900
    assert balances(database.engine) == {1: -16 * 9_900}
    kept = rejections(database.engine)
    found = Counter((row.reason, hashlib.sha256(row.raw).hexdigest(), bytes(row.raw)[:60]) for row in kept)
    expected = [
        *broken,
        *(("unknown_org", each) for each in missing[:4]),
        *(("unknown_tier", each) for each in missing[4:]),
        *(("conflicting_duplicate", each) for each in conflicts),
    ]
    must = Counter(
        (reason, hashlib.sha256(each[:65_536]).hexdigest(), each[:60]) for reason, each in expected
    )
    assert (found - must, must - found) == (Counter(), Counter())
    assert all(row.raw_length_bytes == len(row.raw) or row.reason == "too_large" for row in kept)
    assert {len(row.raw) for row in kept if row.raw_length_bytes == 200_000} == {65_536}

    prepare(database.engine, org_ids=[999], prices=[price("no-such-tier", "0.10")])
    monkeypatch.setenv("METERING_DATABASE_URL", database.url)
    monkeypatch.setenv("METERING_REDIS_URL", redis_url)
    for reason in ("unknown_org", "unknown_tier"):
        result = CliRunner().invoke(app, ["rejected", "replay", "--reason", reason])
        assert result.exit_code == 0, result.output
    run_meters(database.engine, redis_client)
    assert balances(database.engine) == {1: -16 * 9_900 - 20 * 4, 999: -16 * 4}
    assert len(rejections(database.engine)) == len(kept)
    assert_sound(database.engine)


@pytest.mark.parametrize(
    ("reason", "each"), [(reason, each) for reason, kind in BROKEN.items() for each in kind]
)
def test_a_broken_event_has_its_reason(reason: str, each: bytes) -> None:
    rejection = judge_event(each, datetime.now(UTC))
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason


def test_call_ids_repeat_between_orgs_and_not_within(database: Database, redis_client: redis.Redis) -> None:
    prepare(database.engine, org_ids=[1, 2], prices=[price("bolt", "0.08"), price("spark", "0.05")])
    push(
        redis_client,
        [event(call_id=7, org_id=1), event(call_id=7, org_id=2, tier="spark"), event(call_id=7, org_id=1)],
    )
    run_meters(database.engine, redis_client)
    assert balances(database.engine) == {1: -16, 2: -10}
    assert rejections(database.engine) == []


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "spark"},
        {"direction": "inbound"},
        {"duration_seconds": 75.000001},
        {"duration_seconds": 0},
        {"ended_at": "2026-04-20T18:25:06.202Z"},
        {"phone_number_id": 202},
        {"phone_number_id": None},
        {"phone_number_value": "+15551234568"},
        {"metadata": {"a": 1}},
    ],
    ids=str,
)
def test_the_same_call_with_other_content_is_a_conflict(
    database: Database, redis_client: redis.Redis, change: dict[str, Any]
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08"), price("spark", "0.05")])
    push(redis_client, [event()])
    run_meters(database.engine, redis_client)
    push(redis_client, [event(**change)])
    run_meters(database.engine, redis_client)
    assert balances(database.engine) == {1: -16}
    assert [row.reason for row in rejections(database.engine)] == ["conflicting_duplicate"]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"ended_at": "2026-04-20T18:25:06.201Z"}, {"ended_at": "2026-04-20T20:25:06.201000+02:00"}),
        ({"duration_seconds": 75}, {"duration_seconds": 75.0}),
        ({"metadata": {"a": 1, "b": [1.0, "x"]}}, {"metadata": {"b": [1, "x"], "a": 1e0}}),
        ({"metadata": {}}, {"metadata": None}),
        (
            {"metadata": {"emoji": "\N{BLACK TELEPHONE}", "tab": "\t\\"}},
            {"metadata": {"emoji": "\N{BLACK TELEPHONE}", "tab": "\t\\"}},
        ),
        ({"phone_number_value": "*\t\\N\n,\"'"}, {"phone_number_value": "*\t\\N\n,\"'"}),
        ({"phone_number_value": ""}, {"phone_number_value": ""}),
    ],
    ids=str,
)
def test_the_same_content_in_other_words_is_a_duplicate(
    database: Database, redis_client: redis.Redis, first: dict[str, Any], again: dict[str, Any]
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    for each in (first, again):
        push(redis_client, [event(**each)])
        run_meters(database.engine, redis_client)
    assert balances(database.engine) == {1: -16}
    assert rejections(database.engine) == []
    assert debits(database.engine)[0].phone_number_value == first.get("phone_number_value", "+15551234567")
    assert_sound(database.engine)
