"""The gate's third state: whatever the balance, and said as what it is (docs/reference/gate.md#suspended-orgs)."""

import json
from datetime import UTC, datetime

import psycopg
import pytest
import redis
from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db.accounts.suspensions import UnawareProgramsError, resume_org, suspend_org
from db.ledger.adjustments import adjust
from db.ledger.balances import raise_versions, read_balances
from db.models.errors import OrgError
from db.postgres.engine import transaction
from db.postgres.failures import Failure, diagnose
from metering.rules.gates import Balance, GateState, SignalType, gate_state, signal_type
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates, Signal
from tests.conftest import Database
from tests.signals.listening import (
    EXHAUSTED,
    RESTORED,
    RESUMED,
    SUSPENDED,
    adjust_and_tell,
    gate,
    listening,
    said_of,
    signals_log,
)
from tests.spine.billing import assert_sound, balances, event, prepare, price, push, run_meters
from workers.gate_reconciler import GateReconciler

AT = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)


def suspended(cents: int, version: int, org_id: int = 42) -> Balance:
    return Balance(org_id, cents, version, suspended=True)


def change_suspension(database: Database, client: redis.Redis, *, suspend: bool, org_id: int = 42) -> None:
    """As the commands do."""
    with transaction(database.engine) as connection:
        done = (suspend_org if suspend else resume_org)(connection, org_id)
    Gates(client).follow([done.balance], system_clock())


def reconciled(database: Database, client: redis.Redis) -> int:
    """Gates that one round of the reconciler has mended."""
    reconciler = GateReconciler(database.engine, Gates(client), clock=system_clock, sleep=lambda _: None)
    return reconciler.reconcile().mended


@pytest.fixture
def org(database: Database, redis_client: redis.Redis) -> int:
    """An org with 80 cents, whose gate is open."""
    prepare(database.engine, org_ids=[42], prices=[price("bolt", "0.08")])
    adjust_and_tell(database.engine, redis_client, 42, 80, "start")
    return 42


def test_each_change_has_its_name_and_says_the_state(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    steps = [
        (Balance(42, 5, 1), RESTORED, "open"),
        (suspended(5, 2), SUSPENDED, "suspended"),
        (suspended(-3, 3), None, "suspended"),
        (Balance(42, -3, 4), RESUMED, "exhausted"),
        (suspended(-3, 5), SUSPENDED, "suspended"),
        (suspended(9, 6), None, "suspended"),
        (Balance(42, 9, 7), RESUMED, "open"),
        (Balance(42, 0, 8), EXHAUSTED, "exhausted"),
    ]
    with listening(redis_client) as pubsub:
        for balance, type_, state in steps:
            assert gates.follow([balance], AT) == ([Signal(42, SignalType(type_))] if type_ else [])
            assert gate(redis_client, 42) == {
                "state": state,
                "balance_cents": str(balance.balance_cents),
                "version": str(balance.version),
            }
        heard = []
        while (message := pubsub.get_message(timeout=0.2)) is not None:
            heard.append(json.loads(message["data"]))
    assert heard == signals_log(redis_client)
    assert [(each["type"], each["state"], each["version"]) for each in heard] == [
        (type_, state, balance.version) for balance, type_, state in steps if type_
    ]
    assert set(heard[0]) == {"type", "org_id", "state", "balance_cents", "version", "at"}


def test_a_missing_gate_of_a_suspended_org_is_said_as_suspended(redis_client: redis.Redis) -> None:
    assert Gates(redis_client).follow([suspended(5, 7)], AT) == [Signal(42, SignalType.SUSPENDED)]


def test_a_batch_holds_all_three_states(redis_client: redis.Redis) -> None:
    batch = [suspended(5, 1, 1), Balance(2, 5, 1), Balance(3, -5, 1), suspended(-5, 1, 4), Balance(5, 1, 1)]
    Gates(redis_client).follow(batch, AT)
    found = {org_id: gate(redis_client, org_id)["state"] for org_id in range(1, 6)}
    assert found == {1: "suspended", 2: "open", 3: "exhausted", 4: "suspended", 5: "open"}
    assert {each["org_id"]: each["balance_cents"] for each in signals_log(redis_client)} == {
        1: 5,
        2: 5,
        4: -5,
        5: 1,
    }


def test_an_older_version_neither_suspends_nor_opens(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    gates.follow([suspended(5, 7)], AT)
    assert gates.follow([Balance(42, 5, 6)], AT) == []
    assert gate(redis_client, 42)["state"] == "suspended"
    gates.follow([Balance(42, 5, 8)], AT)
    assert gates.follow([suspended(5, 7)], AT) == []
    assert gate(redis_client, 42)["state"] == "open"


@pytest.mark.parametrize("before", list(GateState))
@pytest.mark.parametrize("balance", [Balance(42, 5, 9), Balance(42, 0, 9), suspended(5, 9)])
def test_lua_and_python_name_each_change_alike(
    redis_client: redis.Redis, before: GateState, balance: Balance
) -> None:
    redis_client.hset("gate:42", mapping={"state": before.value, "balance_cents": "1", "version": "8"})
    said = [each.type for each in Gates(redis_client).follow([balance], AT)]
    state = gate_state(balance.balance_cents, suspended=balance.suspended)
    assert said == ([] if state is before else [signal_type(before, state)])


def test_nothing_but_resuming_opens_a_suspended_gate(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    change_suspension(database, redis_client, suspend=True)
    adjust_and_tell(database.engine, redis_client, org, 500, "more")
    push(redis_client, [event(org_id=org, call_id=1)])
    run_meters(database.engine, redis_client)
    assert balances(database.engine) == {org: 564}
    assert gate(redis_client, org)["state"] == "suspended"
    assert gate(redis_client, org)["balance_cents"] == "564"
    adjust_and_tell(database.engine, redis_client, org, -600, "less")
    assert gate(redis_client, org)["state"] == "suspended"
    adjust_and_tell(database.engine, redis_client, org, 50, "again")
    change_suspension(database, redis_client, suspend=False)
    assert gate(redis_client, org)["state"] == "open"
    assert said_of(redis_client, org) == [RESTORED, SUSPENDED, RESUMED]
    assert_sound(database.engine)


def test_suspending_twice_and_resuming_twice_change_nothing(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    with transaction(database.engine) as connection:
        first = suspend_org(connection, org)
        again = suspend_org(connection, org)
        assert (first.changed, again.changed) == (True, False)
        assert (again.since, again.balance) == (first.since, first.balance)
        assert resume_org(connection, org).changed
        unchanged = resume_org(connection, org)
        assert not unchanged.changed
    assert read_balances(database.engine, [org]) == [unchanged.balance]


def test_an_org_that_is_not_there_is_neither_suspended_nor_resumed(database: Database) -> None:
    for change in (suspend_org, resume_org):
        with pytest.raises(OrgError, match="there is no org 404"), transaction(database.engine) as connection:
            change(connection, 404)


def test_the_reconciler_restores_a_suspended_gate(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    change_suspension(database, redis_client, suspend=True)
    redis_client.flushall()
    assert reconciled(database, redis_client) == 1
    assert gate(redis_client, org)["state"] == "suspended"
    assert said_of(redis_client, org) == [SUSPENDED]


def test_the_reconciler_closes_what_somebody_has_opened(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    change_suspension(database, redis_client, suspend=True)
    version = int(gate(redis_client, org)["version"])
    redis_client.hset(f"gate:{org}", "state", "open")
    assert reconciled(database, redis_client) == 1
    assert gate(redis_client, org)["state"] == "suspended"
    assert int(gate(redis_client, org)["version"]) == version + 1
    redis_client.hset(f"gate:{org}", mapping={"state": "open", "version": version + 50})
    assert reconciled(database, redis_client) == 1
    assert gate(redis_client, org) == {
        "state": "suspended",
        "balance_cents": "80",
        "version": str(version + 51),
    }
    assert reconciled(database, redis_client) == 0


def test_a_suspended_gate_without_an_org_stays_closed_and_is_not_said_to_be_resumed(
    database: Database, redis_client: redis.Redis
) -> None:
    Gates(redis_client).follow([suspended(5, 7, 777)], AT)
    reconciled(database, redis_client)
    assert gate(redis_client, 777)["state"] == "suspended"
    assert said_of(redis_client, 777) == [SUSPENDED]


# The version before, as it writes: with its own statement and its own script.

OLD_UPDATE = text(
    "UPDATE accounts SET balance_cents = balance_cents, version = version + 1 WHERE org_id = :org_id"
)
OLD_SUSPENSION_ERROR = "is suspended, and this program is of a version that doesn't know it"


def test_a_program_that_does_not_know_it_cannot_change_a_suspended_org(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    """It would open the gate with what it commits. For every version that is an outage: it tries again, and loses nothing."""
    with transaction(database.engine) as connection:
        connection.execute(OLD_UPDATE, {"org_id": org})
    change_suspension(database, redis_client, suspend=True)
    with (
        pytest.raises(DBAPIError, match=OLD_SUSPENSION_ERROR) as raised,
        transaction(database.engine) as connection,
    ):
        connection.execute(OLD_UPDATE, {"org_id": org})
    assert isinstance(raised.value.orig, errors.ObjectNotInPrerequisiteState)
    assert diagnose(raised.value) is Failure.OUTAGE
    change_suspension(database, redis_client, suspend=False)
    with transaction(database.engine) as connection:
        connection.execute(OLD_UPDATE, {"org_id": org})


def test_all_that_changes_a_version_shows_that_it_knows(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    change_suspension(database, redis_client, suspend=True)
    assert raise_versions(database.engine, {org: 1_000})[0] == Balance(org, 80, 1_001, suspended=True)
    with transaction(database.engine) as connection:
        adjust(connection, org, amount_cents=-100, reason="x", key="x")
    push(redis_client, [event(org_id=org, call_id=1)])
    run_meters(database.engine, redis_client)
    with transaction(database.engine) as connection:
        row = connection.execute(text("SELECT version, suspended_version FROM accounts")).one()
    assert row.version == row.suspended_version == 1_003


@pytest.mark.parametrize(
    "program", ["metering meter", "metering jobs", "metering api", "metering api, quick", "metering up"]
)
def test_no_org_is_suspended_while_older_programs_are_connected(
    database: Database, org: int, program: str
) -> None:
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with (
        psycopg.connect(url, application_name=program),
        pytest.raises(UnawareProgramsError, match=rf"\({program}\).*Stop them, start this version"),
        transaction(database.engine) as connection,
    ):
        suspend_org(connection, org)
