"""`metering status`, `metering audit` and `metering migrate`."""

import re
from collections.abc import Sequence

import pytest
import redis
from sqlalchemy import text

from db.postgres.engine import make_engine
from db.postgres.schema import expected_revision
from metering.cli import status
from metering.rules.rejections import Reason
from metering.runtime.names import STREAM
from metering.signals import gates
from tests.cli.conftest import Cli
from tests.cli.test_rejected import keep
from tests.conftest import Database
from tests.workers.calls import read_all
from workers.stream import GROUP, CallStream


def test_status_of_a_new_installation(cli: Cli, synced: None) -> None:
    found = cli.json("status")
    assert {"attempts", "reloads"} <= found.keys()  # tests/cli/test_attempts.py looks into them
    assert found["servers"]["wrong"] == []
    assert found["servers"]["postgres_version"].partition(".")[0].isdecimal()
    assert {name: found[name] for name in found.keys() - {"attempts", "reloads", "servers"}} == {
        "schema_revision": expected_revision(),
        "orgs": 0,
        "orgs_exhausted": 0,
        "orgs_suspended": 0,
        "balance_cents": 0,
        "rejected_waiting": {},
        "stripe_events_set_aside": {"number": 0, "oldest_at": None},
        "gates": {
            "orgs_looked_at": 0,
            "open": 0,
            "exhausted": 0,
            "suspended": 0,
            "missing": 0,
            "not_following": 0,
        },
        "holds": {"orgs": 0, "held_cents": 0, "running_calls": 0, "lapsed_calls": 0},
        "overspent": {"orgs": 0, "cents": 0, "reasons": {}},
        "stream": {"lag": 0, "pending": 0, "oldest_waiting_seconds": None},
        "meters": [],
    }
    shown = cli.run("status").stdout
    assert "No meter runs." in shown
    assert "orgs exhausted" in shown


def test_status_counts_what_there_is(cli: Cli, database: Database, redis_client: redis.Redis) -> None:
    for org_id, cents in ((1, 500), (2, -20), (3, 0)):
        cli.run("org", "create", "Acme", "--id", str(org_id))
        if cents:
            cli.run("adjust", str(org_id), "--cents", str(cents), "--reason", "test", "--key", "k")
    keep(
        database.engine,
        (b"1", Reason.UNKNOWN_ORG, "d"),
        (b"2", Reason.UNKNOWN_ORG, "d"),
        (b"3", Reason.TOO_LARGE, "d"),
    )
    now_s = int(redis_client.time()[0])
    for number in range(5):
        redis_client.xadd(STREAM, {"event": "{}"}, id=f"{(now_s - 60) * 1_000}-{number}")
    stream = CallStream(redis_client, "tests-1")
    stream.join()
    assert len(read_all(stream, limit=2)) == 2

    found = cli.json("status")
    assert (found["orgs"], found["orgs_exhausted"], found["balance_cents"]) == (3, 2, 480)
    assert found["rejected_waiting"] == {"too_large": 1, "unknown_org": 2}
    assert (found["stream"]["lag"], found["stream"]["pending"]) == (3, 2)
    assert 60 <= found["stream"]["oldest_waiting_seconds"] < 120
    (meter,) = found["meters"]
    assert (meter["name"], meter["pending"]) == ("tests-1", 2)
    assert 0 <= meter["idle_seconds"] < 60
    shown = cli.run("status").stdout
    assert "4.80" in shown
    assert "tests-1" in shown


def make_orgs(cli: Cli, number: int) -> None:
    """Orgs from 1 on; the odd ones have money."""
    for org_id in range(1, number + 1):
        cli.run("org", "create", "Acme", "--id", str(org_id))
        if org_id % 2:
            cli.run("adjust", str(org_id), "--cents", "5", "--reason", "test", "--key", "k")


def test_status_shows_the_gates_as_redis_holds_them(cli: Cli, redis_client: redis.Redis) -> None:
    make_orgs(cli, 7)
    sound = {"orgs_looked_at": 7, "open": 4, "exhausted": 3, "suspended": 0, "missing": 0, "not_following": 0}
    assert cli.json("status")["gates"] == sound
    redis_client.delete("gate:1")
    redis_client.hset("gate:2", "state", "open")
    redis_client.hset("gate:3", "version", "0")
    redis_client.hset("gate:5", "state", "ajar")
    found = cli.json("status")["gates"]
    assert found == {
        "orgs_looked_at": 7,
        "open": 3,
        "exhausted": 2,
        "suspended": 0,
        "missing": 2,
        "not_following": 2,
    }
    shown = cli.run("status").stdout
    assert re.search(r"gates open +│ +3 │", shown)
    assert re.search(r"gates that don't follow their balance yet +│ +2 │", shown)
    redis_client.flushall()
    assert cli.json("status")["gates"] == sound | {"open": 0, "exhausted": 0, "missing": 7}


def test_status_looks_at_so_many_gates_and_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    make_orgs(cli, 4)
    monkeypatch.setattr(gates, "PAGE", 2)
    monkeypatch.setattr(status, "MAX_GATES", 3)
    found = cli.json("status")["gates"]
    assert found == {
        "orgs_looked_at": 3,
        "open": 2,
        "exhausted": 1,
        "suspended": 0,
        "missing": 0,
        "not_following": 0,
    }
    assert "gates open, of the first 3 orgs" in cli.run("status").stdout
    monkeypatch.setattr(status, "MAX_GATES", 4)
    assert cli.json("status")["gates"]["orgs_looked_at"] == 4
    assert "of the first" not in cli.run("status").stdout


def test_a_balance_that_changes_meanwhile_is_no_gate_that_does_not_follow(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_orgs(cli, 1)
    read = gates.Gates.read

    def change_first(self: gates.Gates, org_ids: Sequence[int]) -> list[gates.Gate]:
        if reads:
            reads.pop()
            cli.run("adjust", "1", "--cents", "5", "--reason", "test", "--key", str(len(reads)))
        return read(self, org_ids)

    # Between the balances and the gates, the first time; the very first reading of gates is for their states.
    reads = [1, 2]
    monkeypatch.setattr(gates.Gates, "read", change_first)
    assert cli.json("status")["gates"]["not_following"] == 0
    assert not reads


def test_status_says_what_is_wrong_with_the_servers(
    cli: Cli, redis_client: redis.Redis, synced: None
) -> None:
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "set maxmemory-policy noeviction" in " ".join(cli.run("status").stdout.split())
        assert "maxmemory-policy allkeys-lru" in cli.json("status")["servers"]["wrong"][0]
        assert "set maxmemory-policy noeviction" in cli.fail("meter")
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")


def test_status_before_the_group_is_made(cli: Cli, redis_client: redis.Redis) -> None:
    redis_client.xadd(STREAM, {"event": "{}"})
    found = cli.json("status")
    assert (found["stream"]["lag"], found["meters"]) == (1, [])
    redis_client.xgroup_create(STREAM, GROUP, id="0")
    assert cli.json("status")["meters"] == []


def test_an_audit_that_passes(cli: Cli) -> None:
    cli.run("org", "create", "Acme")
    found = cli.json("audit")
    assert (found["passed"], found["violations"]) == (True, [])
    assert "balance_is_sum" in {invariant["name"] for invariant in found["invariants"]}
    assert found["counts"]["orgs"] == 1
    shown = cli.run("audit").stdout
    assert shown.count("OK") == len(found["invariants"])
    assert "1 org, 0 transactions; every invariant holds, as of 20" in shown


def test_an_audit_names_each_violation(cli: Cli, database: Database) -> None:
    cli.run("org", "create", "Acme", "--id", "42")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE accounts SET balance_cents = 7 WHERE org_id = 42"))
    result = cli.run("audit", status=1)
    assert "balance_is_sum" in result.stdout
    assert "42" in result.stdout
    assert result.stderr.startswith("The audit failed: ")
    assert "balance_is_sum" in result.stderr
    found = cli.json("audit", status=1)
    assert not found["passed"]
    assert ("balance_is_sum", 42) in {(each["invariant"], each["org_id"]) for each in found["violations"]}


def test_migrate_goes_from_nothing_to_this_programs_schema(empty_database: Database, redis_url: str) -> None:
    cli = Cli({"METERING_DATABASE_URL": empty_database.owner_url, "METERING_REDIS_URL": redis_url})
    said = cli.fail("org", "list")
    assert (
        said
        == f"The database is at schema none, this program needs {expected_revision()}: run `metering migrate`."
    )
    assert cli.json("migrate") == {"from": None, "to": expected_revision()}
    assert cli.json("migrate") == {"from": expected_revision(), "to": expected_revision()}
    assert cli.run("migrate").stdout == f"The database is at schema {expected_revision()} already.\n"
    assert cli.json("org", "list")["total"] == 0


def test_migrate_needs_the_owner(empty_database: Database, database: Database, redis_url: str) -> None:
    assert database.url != empty_database.url  # makes sure that the role metering_app is there
    cli = Cli({"METERING_DATABASE_URL": empty_database.url, "METERING_REDIS_URL": redis_url})
    said = cli.fail("migrate")
    assert said.startswith("Postgres refuses: permission denied")
    assert "`metering migrate` needs the tables' owner" in said


def test_a_schema_from_the_future_is_refused(cli: Cli, database: Database) -> None:
    engine = make_engine(database.owner_url, application_name="tests")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert "9999" in cli.fail("status")
    owner = Cli({**cli.settings, "METERING_DATABASE_URL": database.owner_url})
    assert "is its schema of a newer version" in owner.fail("migrate")
