"""`metering rejected`."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import Engine

from db.ledger import rejections
from db.ledger.rejections import RejectedEntry, keep_rejected
from db.postgres.engine import driver_connection, transaction
from metering.rules.rejections import Reason, Rejection
from metering.runtime.names import STREAM
from tests.cli.conftest import Cli
from tests.conftest import Database

AT = datetime(2026, 4, 20, 18, 25, 6, 201_900, tzinfo=UTC)


def keep(engine: Engine, *entries: tuple[bytes, Reason, str]) -> None:
    """Reject events, as a meter does; their ids count from 1."""
    with transaction(engine) as connection:
        for number, (raw, reason, detail) in enumerate(entries, start=1):
            entry = RejectedEntry(f"{number}-0", raw, Rejection(reason, detail))
            keep_rejected(driver_connection(connection), [entry])


@pytest.fixture
def kept(database: Database) -> None:
    """One of each kind that matters here."""
    keep(
        database.engine,
        (b'{"org_id":9}', Reason.UNKNOWN_ORG, "org_id: there is no org 9"),
        (b"\xff\x00", Reason.MALFORMED_JSON, "not JSON"),
        (b"x" * 70_000, Reason.TOO_LARGE, "too large"),
        (
            b"evnt=1",
            Reason.INVALID_FIELD,
            "event: the stream entry has no field of this name; XADD it as `event`",
        ),
        (b'{"call_id":0}', Reason.INVALID_FIELD, "call_id: must be an integer"),
    )


def pushed(client: redis.Redis) -> list[tuple[str, bytes]]:
    """The entries of the stream."""
    entries: Any = client.xrange(STREAM)
    return [(stream_id.decode(), fields[b"event"]) for stream_id, fields in entries]


def listed(cli: Cli, *arguments: str) -> dict[int, dict[str, Any]]:
    return {event["id"]: event for event in cli.json("rejected", "list", *arguments)["results"]}


@pytest.mark.usefixtures("kept")
def test_list_in_the_contracts_shape(cli: Cli) -> None:
    found = cli.json("rejected", "list")
    assert found["total"] == 5
    received_at = datetime.fromisoformat(found["results"][0].pop("received_at"))
    assert abs(datetime.now(UTC) - received_at) < timedelta(minutes=5)
    assert found["results"][0] == {
        "id": 1,
        "stream_id": "1-0",
        "reason": "unknown_org",
        "detail": "org_id: there is no org 9",
        "raw": '{"org_id":9}',
        "raw_length_bytes": 12,
        "replayed_at": None,
        "replayed_as": None,
        "dismissed_at": None,
        "dismissed_reason": None,
    }
    assert base64.b64decode(found["results"][1]["raw_base64"]) == b"\xff\x00"
    assert "raw" not in found["results"][1]
    assert found["results"][2]["raw_length_bytes"] == 70_000
    assert len(found["results"][2]["raw"]) == 65_536


@pytest.mark.usefixtures("kept")
def test_list_by_reason_and_in_pages(cli: Cli) -> None:
    assert list(listed(cli, "--reason", "invalid_field")) == [4, 5]
    assert list(listed(cli, "--limit", "2", "--offset", "1")) == [2, 3]
    assert cli.json("rejected", "list", "--limit", "2", "--offset", "1")["total"] == 5
    cli.run("rejected", "list", "--reason", "bad_luck", status=2)


def test_a_table_never_steers_the_terminal(cli: Cli, database: Database) -> None:
    keep(database.engine, (b"\x1b[2J\xff [red]", Reason.MALFORMED_JSON, "\x1b[2J"))
    shown = cli.run("rejected", "list").stdout
    assert "\x1b" not in shown
    assert r"\x1b[2J\xff [red]" in shown


@pytest.mark.usefixtures("kept")
def test_replay_pushes_the_bytes_and_marks(cli: Cli, redis_client: redis.Redis) -> None:
    done = cli.json("rejected", "replay", "5", "1", "2")
    entries = pushed(redis_client)
    assert [raw for _, raw in entries] == [b'{"org_id":9}', b"\xff\x00", b'{"call_id":0}']
    assert done == {
        "results": [
            {"id": rejected_id, "replayed_as": stream_id}
            for rejected_id, (stream_id, _) in zip([1, 2, 5], entries, strict=True)
        ],
        "total": 3,
        "refused": [],
    }
    assert list(listed(cli)) == [3, 4]
    marked = listed(cli, "--all")
    assert list(marked) == [1, 2, 3, 4, 5]
    assert marked[1]["replayed_as"] == entries[0][0]
    assert marked[1]["replayed_at"].endswith("Z")


@pytest.mark.usefixtures("kept")
def test_replay_all_names_those_that_cannot_be(cli: Cli, redis_client: redis.Redis) -> None:
    result = cli.run("rejected", "replay", "--all")
    assert result.stdout == "3 events replayed.\n"
    too_large, no_event = result.stderr.splitlines()
    assert too_large.startswith(
        "Event 3 was not replayed: of its 70,000 bytes at most the first 64 KiB are kept"
    )
    assert no_event.startswith("Event 4 was not replayed: its stream entry had no field `event`")
    assert len(pushed(redis_client)) == 3
    assert cli.json("rejected", "replay", "--all")["total"] == 0
    assert len(pushed(redis_client)) == 3


@pytest.mark.usefixtures("kept")
def test_replay_by_reason(cli: Cli, redis_client: redis.Redis) -> None:
    assert cli.json("rejected", "replay", "--reason", "unknown_org")["total"] == 1
    assert [raw for _, raw in pushed(redis_client)] == [b'{"org_id":9}']


@pytest.mark.usefixtures("kept")
def test_asked_by_id_everything_must_be_done(cli: Cli, redis_client: redis.Redis) -> None:
    done = cli.json("rejected", "replay", "1", "3", "4", "77", status=1)
    assert [event["id"] for event in done["results"]] == [1]
    assert {event["id"]: event["detail"].split(";")[0] for event in done["refused"]} == {
        3: "of its 70,000 bytes at most the first 64 KiB are kept",
        4: "its stream entry had no field `event`",
        77: "there is no rejected event with this id",
    }
    assert len(pushed(redis_client)) == 1


@pytest.mark.usefixtures("kept")
def test_a_second_time_only_when_asked_for(cli: Cli, redis_client: redis.Redis) -> None:
    cli.run("rejected", "replay", "1")
    refused = cli.run("rejected", "replay", "1", status=1)
    assert "Event 1 was not replayed: it was replayed before, as " in refused.stderr
    assert len(pushed(redis_client)) == 1
    again = cli.json("rejected", "replay", "1", "--again")
    assert [raw for _, raw in pushed(redis_client)] == [b'{"org_id":9}'] * 2
    assert listed(cli, "--all")[1]["replayed_as"] == again["results"][0]["replayed_as"]


@pytest.mark.usefixtures("kept")
def test_what_redis_lost_is_replayed_again(cli: Cli, redis_client: redis.Redis) -> None:
    cli.run("rejected", "replay", "--all")
    redis_client.flushall()
    assert cli.json("rejected", "replay", "--all")["total"] == 0
    assert cli.json("rejected", "replay", "--reason", "unknown_org", "--again")["total"] == 1
    assert [raw for _, raw in pushed(redis_client)] == [b'{"org_id":9}']
    done = cli.json("rejected", "replay", "--all", "--again")
    assert [event["id"] for event in done["results"]] == [1, 2, 5]
    assert [event["id"] for event in done["refused"]] == [3, 4]
    assert len(pushed(redis_client)) == 4
    assert listed(cli, "--all")[1]["replayed_as"] == done["results"][0]["replayed_as"]


@pytest.mark.usefixtures("kept")
def test_a_crash_before_the_mark_leaves_a_duplicate_and_no_loss(
    cli: Cli, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rejections, "mark_replayed", crash)
        cli.run("rejected", "replay", "1", status=130)
    assert len(pushed(redis_client)) == 1
    assert 1 in listed(cli)


@pytest.mark.usefixtures("kept")
def test_without_redis_nothing_is_marked(cli: Cli, redis_client: redis.Redis) -> None:
    redis_client.set(STREAM, "no stream")
    said = cli.fail("rejected", "replay", "--all")
    assert "WRONGTYPE" in said
    assert "; 0 events replayed before that." in said
    assert list(listed(cli)) == [1, 2, 3, 4, 5]


def test_many_are_replayed_in_order(cli: Cli, database: Database, redis_client: redis.Redis) -> None:
    keep(database.engine, *((b"%d" % number, Reason.UNKNOWN_ORG, "org_id") for number in range(1, 1_102)))
    assert cli.run("rejected", "replay", "--all").stdout == "1,101 events replayed.\n"
    assert [raw for _, raw in pushed(redis_client)] == [b"%d" % number for number in range(1, 1_102)]
    assert cli.json("rejected", "list")["total"] == 0


@pytest.mark.parametrize("arguments", [[], ["1", "--all"], ["1", "--reason", "unknown_org"], ["--again"]])
def test_what_to_replay_must_be_clear(offline: Cli, arguments: list[str]) -> None:
    assert "Usage" in offline.run("rejected", "replay", *arguments, status=2).stderr
