"""The client for telephony: what it pushes, what it refuses, what its errors promise, and what it needs."""

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import metering.client
from metering.client import (
    CHUNK,
    Gate,
    InvalidField,
    MeteringClient,
    QueueFull,
    Refused,
    TelephonyError,
    Unreachable,
)
from metering.client.event_encoding import encode_event
from metering.rules.events import CallEvent, parse_event
from metering.rules.gates import Balance
from metering.rules.rejections import Reason, Rejection
from metering.runtime.names import EVENT_FIELD, SIGNALS_LOG, STREAM, gate_key
from metering.signals import gates as gates_room
from metering.signals.gates import Gates
from tests.client.conftest import OwnValkey, scripted_redis
from tests.spine.billing import event
from tests.waiting import wait_until

NOW = datetime(2026, 4, 20, 18, 30, tzinfo=UTC)
LAST_INSTANT = datetime.max.replace(tzinfo=UTC)
NOBODY = "unix:///nonexistent/valkey.sock"


@pytest.fixture
def client(redis_url: str) -> Iterator[MeteringClient]:
    with MeteringClient(redis_url) as client:
        yield client


def pushed(client: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(fields[b"event"]) for _, fields in cast("list[Any]", client.xrange(STREAM))]


def calls(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [event(call_id=call_id, **fields) for call_id in range(1, number + 1)]


def parsed(**fields: Any) -> CallEvent | Rejection:
    return parse_event(encode_event(event(**fields)))


# What it needs


def test_it_imports_nothing_but_redis(tmp_path: Path) -> None:
    script = (
        "import sys, redis; before = set(sys.modules); import metering.client; "
        "print(*sorted(name for name in set(sys.modules) - before"
        " if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {name for name in ran.stdout.split() if not name.startswith("metering.client.")} == {
        "metering",
        "metering.client",
    }


def test_it_means_the_same_keys_as_the_rooms() -> None:
    assert metering.client.STREAM == STREAM
    assert metering.client.EVENT_FIELD.encode() == EVENT_FIELD
    assert gate_key(42) == metering.client.GATE_PREFIX + "42"
    assert metering.client.SIGNALS_LOG == SIGNALS_LOG
    assert metering.client.SIGNAL_FIELD == gates_room.SIGNAL_FIELD


@pytest.mark.parametrize("arguments", [{"timeout_s": 0}, {"tries": 0}])
def test_time_outs_and_tries_must_make_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        MeteringClient(NOBODY, **arguments)


@pytest.mark.parametrize("options", [{"protocol": 3, "decode_responses": True}, {"protocol": 2}])
def test_a_client_of_ones_own_is_used_as_it_is_and_stays_open(
    redis_url: str, redis_client: redis.Redis, options: dict[str, Any]
) -> None:
    own = redis.Redis.from_url(redis_url, socket_timeout=2, **options)
    with own, MeteringClient(own) as client, client.signals() as signals:
        stream_id = client.push(event())
        Gates(redis_client).follow([Balance(42, 5, 1)], NOW)
        assert client.gate(42) == Gate(42, "open", 5, 1)
        assert next(signals).org_id == 42
        again = client.signals(signals.position)
        Gates(redis_client).follow([Balance(42, 0, 2)], NOW)
        assert next(again).type == "balance.exhausted"
        connection_id = own.client_id()
        client.close()
        assert own.client_id() == connection_id
        assert stream_id == redis_client.xinfo_stream(STREAM)["last-generated-id"].decode()


# What it pushes


def test_an_event_arrives_as_it_was_given(client: MeteringClient, redis_client: redis.Redis) -> None:
    given_event = event(metadata={"trunk": "ams-1", "note": "größer"}, extra=[1, None, True])
    stream_id = client.push(given_event)
    [(entry_id, fields)] = cast("list[Any]", redis_client.xrange(STREAM))
    assert entry_id.decode() == stream_id
    assert list(fields) == [b"event"]
    assert json.loads(fields[b"event"]) == given_event
    assert "größer".encode() in fields[b"event"]  # not six bytes for each of ö and ß: metadata has a limit


def test_the_event_given_is_not_changed() -> None:
    given_event = event(duration_seconds=Decimal("1.5"), ended_at=NOW)
    encode_event(given_event)
    assert given_event == event(duration_seconds=Decimal("1.5"), ended_at=NOW)


@given(
    st.decimals(0, 604_800, places=6),
    st.datetimes(
        datetime(1, 1, 10),  # noqa: DTZ001 - hypothesis adds the zone
        timezones=st.integers(-86_399, 86_399).map(lambda s: timezone(timedelta(seconds=s))),
    ),
)
def test_decimals_and_datetimes_arrive_exactly(duration_s: Decimal, ended_at: datetime) -> None:
    try:
        expected = ended_at.astimezone(UTC)
    except OverflowError:
        with pytest.raises(InvalidField, match=r"^ended_at "):
            parsed(ended_at=ended_at)
        return
    with localcontext(prec=3):  # the program's own business
        found = parsed(duration_seconds=duration_s, ended_at=ended_at)
    assert isinstance(found, CallEvent)
    assert (found.duration_us, found.ended_at) == (int(duration_s * 1_000_000), expected)


@pytest.mark.parametrize(
    ("duration_s", "duration_us"),
    [
        (Decimal("604799.123457"), 604_799_123_457),
        (Decimal("1E+3"), 1_000_000_000),
        (Decimal("75.10000000"), 75_100_000),
        (1e-06, 1),
        (0.1, 100_000),
        (75.0, 75_000_000),
        (-0.0, 0),
        (604_800, 604_800_000_000),
    ],
)
def test_durations_arrive_to_the_microsecond(duration_s: object, duration_us: int) -> None:
    found = parsed(duration_seconds=duration_s)
    assert isinstance(found, CallEvent)
    assert found.duration_us == duration_us


@pytest.mark.parametrize(
    ("ended_at", "written"),
    [
        (datetime(2026, 4, 20, 18, 25, 6, 201_000, UTC), "2026-04-20T18:25:06.201Z"),
        (datetime(2026, 4, 20, 18, 25, 6, 201_003, UTC), "2026-04-20T18:25:06.201003Z"),
        (
            datetime(2026, 4, 20, 23, 55, 6, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            "2026-04-20T18:25:06.000Z",
        ),
        ("2026-04-20 18:25:06,2+02", "2026-04-20 18:25:06,2+02"),
        ("2026-04-20t18:25:06z", "2026-04-20t18:25:06z"),
    ],
)
def test_times_are_written_in_utc_and_texts_are_left_alone(ended_at: object, written: str) -> None:
    assert json.loads(encode_event(event(ended_at=ended_at)))["ended_at"] == written


class Odd(Mapping[str, int]):
    """A mapping that isn't a dict."""

    def __getitem__(self, key: str) -> int:
        return {"a": 1}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("a",))

    def __len__(self) -> int:
        return 1


def test_any_mapping_will_do() -> None:
    given_event = MappingProxyType(event(metadata=Odd()))
    assert json.loads(encode_event(given_event)) == event(metadata={"a": 1})


# What it refuses

NOT_JSON = object()
CIRCLE: dict[str, Any] = {}
CIRCLE["circle"] = CIRCLE
MISTAKES: dict[str, list[object]] = {
    "call_id": ["42", 42.0, True, 0, -1, 2**63, None],
    "org_id": ["42", 42.0, True, 0, -1, 2**63, None],
    "tier": [None, 7, b"bolt"],
    "direction": [None, "sideways", "Inbound", ["inbound"]],
    "duration_seconds": [
        *(None, "75", True, -1, -0.000001, 604_800.1, 0.1 + 0.2, 1e-07, timedelta(seconds=75)),
        *(float("nan"), float("inf"), 10**100),
        *map(Decimal, ("NaN", "sNaN", "-Infinity", "1E-999999", "0.0000001")),
    ],
    "ended_at": [
        *(None, 1776709506, "now", "2026-04-20", "2026-04-20T18:25:06", NOW.date(), NOW.replace(tzinfo=None)),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))),
    ],
    "phone_number_id": ["201", 201.0, False],
    "phone_number_value": [15551234567, b"+15551234567"],
    "metadata": [[], "{}", {"a": NOT_JSON}, {"a": float("nan")}, {("a",): 1}, CIRCLE],
    "own": [NOT_JSON],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in MISTAKES.items() for value in values],
)
def test_a_mistake_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidField, match=f"^{name} ") as caught:
        encode_event(event(**{name: value}))
    assert caught.value.field == name
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, TelephonyError)  # pushing it again later would never help


def test_a_mistake_is_not_pushed(client: MeteringClient, redis_client: redis.Redis) -> None:
    with pytest.raises(InvalidField):
        client.push(event(org_id="42"))
    assert redis_client.exists(STREAM) == 0


@pytest.mark.parametrize("name", ["call_id", "org_id", "tier", "direction", "duration_seconds", "ended_at"])
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(InvalidField, match=f"^{name} is missing$"):
        encode_event({key: value for key, value in event().items() if key != name})


def test_an_event_must_be_a_mapping() -> None:
    with pytest.raises(InvalidField, match=r"^event must be a mapping"):
        encode_event(cast("Any", json.dumps(event())))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
VALUES = {
    "call_id": JSON,
    "org_id": JSON | st.integers(1, 2**63 - 1),
    "tier": JSON,
    "direction": JSON | st.sampled_from(["inbound", "outbound"]),
    "duration_seconds": JSON | st.floats(0, 604_800) | st.decimals(0, 604_800, places=6).map(float),
    "ended_at": JSON
    | st.from_regex(r"[0-9W-]{8,10}[Tt ][0-9:]{2,8}([.,][0-9]+)?([Zz]|[+-][0-9:]{2,5})", fullmatch=True),
    "phone_number_id": JSON,
    "phone_number_value": JSON | st.text(max_size=80),
    "metadata": JSON | st.dictionaries(st.text(max_size=5), JSON, max_size=3),
}


@given(st.data())
def test_what_it_refuses_the_meter_would_never_bill(data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(VALUES)), min_size=1, max_size=2))
    given_event = event(**{name: data.draw(VALUES[name], name) for name in sorted(names)})
    try:
        encode_event(given_event)
    except InvalidField:
        assert isinstance(parse_event(json.dumps(given_event).encode()), Rejection)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"phone_number_value": "sip:" + "x" * 100}, Reason.INVALID_FIELD),
        ({"phone_number_value": "\0"}, Reason.INVALID_FIELD),
        ({"phone_number_value": "\ud800"}, Reason.INVALID_FIELD),
        ({"phone_number_id": 2**64}, Reason.INVALID_FIELD),
        ({"metadata": {"trace": "x" * 5000}}, Reason.INVALID_FIELD),
        ({"metadata": {"trace": "x" * 20_000}}, Reason.TOO_LARGE),
    ],
)
def test_what_a_caller_sent_along_is_left_to_the_meter(fields: dict[str, Any], reason: Reason) -> None:
    found = parsed(**fields)
    assert isinstance(found, Rejection)
    assert found.reason is reason


@pytest.mark.parametrize("tier", ["", "no such tier", "\0"])
def test_whether_a_tier_exists_is_the_meters_business(tier: str) -> None:
    assert json.loads(encode_event(event(tier=tier)))["tier"] == tier


# Many at once


def test_many_arrive_in_order(client: MeteringClient, redis_client: redis.Redis) -> None:
    events = calls(2 * CHUNK + 7)
    stream_ids = client.push_many(iter(events))
    assert pushed(redis_client) == events
    assert [entry_id.decode() for entry_id, _ in cast("list[Any]", redis_client.xrange(STREAM))] == stream_ids


def test_it_pushes_while_it_reads(client: MeteringClient, redis_client: redis.Redis) -> None:
    def read() -> Iterator[dict[str, Any]]:
        for number, call in enumerate(calls(2 * CHUNK + 1)):
            assert redis_client.xlen(STREAM) == number // CHUNK * CHUNK
            yield call

    assert len(client.push_many(read())) == 2 * CHUNK + 1


def test_none_is_none(client: MeteringClient, redis_client: redis.Redis) -> None:
    assert client.push_many([]) == []
    assert redis_client.exists(STREAM) == 0


@pytest.mark.parametrize("wrong", [0, CHUNK - 1, CHUNK, CHUNK + 3])
def test_those_before_a_mistake_are_pushed(
    client: MeteringClient, redis_client: redis.Redis, wrong: int
) -> None:
    events = calls(CHUNK + 10)
    events[wrong]["org_id"] = None
    with pytest.raises(InvalidField, match=r"^org_id ") as caught:
        client.push_many(events)
    assert caught.value.pushed == wrong
    assert pushed(redis_client) == events[:wrong]


# What its errors promise


def fill(client: redis.Redis, room_bytes: int) -> None:
    client.config_set("maxmemory", client.info("memory")["used_memory"] + room_bytes)


def test_a_full_queue_keeps_nothing(own_valkey: OwnValkey) -> None:
    with own_valkey.connect() as redis_client, MeteringClient(own_valkey.url) as client:
        client.push(event(call_id=1))
        fill(redis_client, -1)
        with pytest.raises(QueueFull, match=r"out of memory.*when there is room.*command not allowed"):
            client.push(event(call_id=2))
        assert [each["call_id"] for each in pushed(redis_client)] == [1]
        assert not client.gate(42).open  # still answered
        redis_client.config_set("maxmemory", 0)
        client.push(event(call_id=2))
        assert [each["call_id"] for each in pushed(redis_client)] == [1, 2]


def test_a_queue_that_fills_up_midway_says_how_many_it_took(own_valkey: OwnValkey) -> None:
    events = calls(10 * CHUNK, metadata={"trace": "x" * 2000})
    with own_valkey.connect() as redis_client, MeteringClient(own_valkey.url) as client:
        fill(redis_client, 4_000_000)
        with pytest.raises(QueueFull) as caught:
            client.push_many(events)
        took = caught.value.pushed
        assert CHUNK < took < len(events)
        assert took <= redis_client.xlen(STREAM) < took + CHUNK
        assert f"The first {took} were surely pushed." in str(caught.value)
        assert pushed(redis_client)[:took] == events[:took]
        redis_client.config_set("maxmemory", 0)
        client.push_many(events[took:])
        assert {each["call_id"] for each in pushed(redis_client)} == set(range(1, len(events) + 1))


def test_nobody_there() -> None:
    with MeteringClient(NOBODY, tries=2) as client:
        with pytest.raises(Unreachable, match="push it again: a call is billed once"):
            client.push(event())
        with pytest.raises(Unreachable) as caught:
            client.push_many(calls(3))
        assert caught.value.pushed == 0
        with pytest.raises(Unreachable, match=r"gate of org 42 can't be asked.*yours to decide"):
            client.gate(42)
        with pytest.raises(Unreachable, match=r"call signals\(\) again"):
            client.signals()


def test_a_push_waits_for_redis_to_come_back(own_valkey: OwnValkey) -> None:
    own_valkey.end()
    with MeteringClient(own_valkey.url, tries=100) as client, own_valkey.connect() as redis_client:
        pushing = threading.Thread(target=client.push_many, args=[calls(3)])
        pushing.start()
        own_valkey.start()
        pushing.join(20)
        assert [each["call_id"] for each in pushed(redis_client)] == [1, 2, 3]


def test_a_connection_that_died_meanwhile_is_no_error(own_valkey: OwnValkey) -> None:
    with MeteringClient(own_valkey.url, tries=1) as client:
        client.push(event())
        own_valkey.end()
        own_valkey.start()
        assert not client.gate(42).open
        client.push(event())


def test_no_answer_is_waited_for_so_long_only(own_valkey: OwnValkey) -> None:
    with (
        MeteringClient(own_valkey.url, timeout_s=0.2, tries=2) as client,
        own_valkey.connect() as redis_client,
    ):
        assert not client.gate(42).open
        with own_valkey.frozen():
            began_s = time.monotonic()
            with pytest.raises(Unreachable):
                client.push(event())
            with pytest.raises(Unreachable):
                client.gate(42)
            assert time.monotonic() - began_s < 3
        # It wasn't known whether it arrived: it did, on the connection that was there.
        wait_until(lambda: pushed(redis_client) == [event()], limit_s=10)
        client.push(event())
        assert pushed(redis_client) == [event(), event()]


def test_closing_cuts_off_no_push(own_valkey: OwnValkey) -> None:
    with own_valkey.connect() as redis_client:
        client = MeteringClient(own_valkey.url, timeout_s=20, tries=1)
        assert not client.gate(42).open
        stream_ids: list[str] = []
        with own_valkey.frozen():
            pushing = threading.Thread(target=lambda: stream_ids.append(client.push(event())))
            pushing.start()
            wait_until(lambda: not client._client.connection_pool._available_connections, limit_s=10)
            client.close()
        pushing.join(20)
        assert len(stream_ids) == redis_client.xlen(STREAM) == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"-LOADING Valkey is loading the dataset in memory",
        b"-READONLY You can't write against a read only replica.",
        b"-MISCONF Errors writing to the AOF file: No space left on device",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        b"-NOREPLICAS Not enough good replicas to write.",
        b"-BUSY Valkey is busy running a script.",
        b"-ERR max number of clients reached",
    ],
)
def test_what_passes_is_tried_again_as_often_as_was_said(answer: bytes | None) -> None:
    with scripted_redis(answer, answer, b"$3\r\n1-0") as server, MeteringClient(server.url) as client:
        assert client.push(event()) == "1-0"
        assert [words[0] for words in server.commands] == [b"XADD"] * 3
        assert len({words[-1] for words in server.commands}) == 1
    with scripted_redis(answer) as server, MeteringClient(server.url, tries=1) as client:
        with pytest.raises(Unreachable):
            client.push(event())
        assert len(server.commands) == 1
    left = answer is not None and answer.startswith(
        (b"-READONLY", b"-MISCONF", b"-MASTERDOWN", b"-NOREPLICAS")
    )
    with scripted_redis(*[answer] * (1 + left)) as server, MeteringClient(server.url) as client:
        with pytest.raises(Unreachable):
            client.gate(42)
        assert len(server.commands) == 1 + left  # a server that was left may have a successor


def test_only_what_is_not_surely_in_is_pushed_again() -> None:
    answers = [b"$3\r\n1-0", b"-BUSY for a moment", b"$3\r\n2-0", b"$3\r\n2-1", b"$3\r\n2-2"]
    with scripted_redis(*answers) as server, MeteringClient(server.url) as client:
        assert client.push_many(calls(3)) == ["1-0", "2-1", "2-2"]
        assert [json.loads(words[-1])["call_id"] for words in server.commands] == [1, 2, 3, 2, 3]


def test_a_replica_takes_no_events(own_valkey: OwnValkey) -> None:
    with own_valkey.connect() as redis_client, MeteringClient(own_valkey.url, tries=1) as client:
        redis_client.replicaof("127.0.0.1", 1)
        with pytest.raises(Unreachable):
            client.push(event())
        redis_client.replicaof("NO", "ONE")
        client.push(event())


@pytest.mark.parametrize("rule", ["nopass -@all", "nopass +@all ~other"])
def test_a_missing_permission_is_not_waited_for(redis_url: str, redis_client: redis.Redis, rule: str) -> None:
    redis_client.execute_command("ACL", "SETUSER", "telephony", "reset", "on", *rule.split())  # type: ignore[no-untyped-call]
    with MeteringClient(redis_url + "&username=telephony&password=any", tries=100) as client:
        with pytest.raises(Refused, match="waiting won't help"):
            client.push(event())
        with pytest.raises(Refused):
            client.gate(42)
        with pytest.raises(Refused):
            client.signals()
    redis_client.acl_deluser("telephony")


def test_a_wrong_password_is_not_waited_for(redis_url: str) -> None:
    with (
        MeteringClient(redis_url + "&username=nobody&password=wrong", tries=100) as client,
        pytest.raises(Refused),
    ):
        client.push(event())


def test_a_key_that_holds_something_else_is_refused(
    client: MeteringClient, redis_client: redis.Redis
) -> None:
    redis_client.mset({STREAM: "?", "gate:42": "?"})
    with pytest.raises(Refused, match="WRONGTYPE"):
        client.push(event())
    with pytest.raises(Refused, match="WRONGTYPE"):
        client.gate(42)


@pytest.mark.parametrize("error", [InvalidField("org_id", "is missing"), QueueFull("full", pushed=3)])
def test_errors_survive_a_process_pool(error: InvalidField | TelephonyError) -> None:
    error.pushed = 3
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(copy), str(copy), copy.pushed) == (type(error), str(error), 3)


# Gates


def test_only_open_is_open(client: MeteringClient, redis_client: redis.Redis) -> None:
    assert client.gate(42) == Gate(42, None, None, None)
    assert not client.gate(42).open
    gates = Gates(redis_client)
    gates.follow([Balance(42, 1250, 1), Balance(7, 0, 1)], NOW)
    assert client.gate(42) == Gate(42, "open", 1250, 1)
    assert client.gate(42).open
    assert not client.gate(7).open
    gates.follow([Balance(42, -3, 2)], NOW)
    assert client.gate(42) == Gate(42, "exhausted", -3, 2)
    assert not client.gate(42).open
    redis_client.hset("gate:42", mapping={"state": "OPEN", "balance_cents": "much"})
    assert client.gate(42) == Gate(42, "OPEN", None, 2)
    assert not client.gate(42).open


@pytest.mark.parametrize("org_id", [None, "42", 0, True, 42.0])
def test_a_gate_is_asked_by_an_orgs_id(org_id: Any) -> None:
    with MeteringClient(NOBODY) as client, pytest.raises(InvalidField, match=r"^org_id must be an integer"):
        client.gate(org_id)


def test_threads_share_it(client: MeteringClient, redis_client: redis.Redis) -> None:
    client.push(event())
    threads = [threading.Thread(target=client.push_many, args=[calls(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(pushed(redis_client)) == 201
