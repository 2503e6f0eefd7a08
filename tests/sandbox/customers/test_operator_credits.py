"""The simulated operator: hears who is exhausted, and credits as planned, through the ledger and the gate."""

import redis

from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.postgres.engine import transaction
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.customers.operator_credits import OperatorCredits
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.sandbox.telephony.simulation import OperatorCredit
from metering.signals.gates import Gates
from tests.conftest import Database
from tests.signals.listening import EXHAUSTED, RESTORED, adjust_and_tell, gate, said_of
from tests.waiting import wait_until

LIMIT_S = 30


def make_org(database: Database) -> int:
    with transaction(database.engine) as connection:
        return create_org(connection, "one", system_clock())


def test_an_exhausted_org_is_refilled_as_planned_and_no_more(
    database: Database, redis_client: redis.Redis
) -> None:
    org_id, other = make_org(database), make_org(database)
    plan = {org_id: [OperatorCredit(0.3, 500), OperatorCredit(0, 700)], other: []}
    with SignalListener(redis_client) as listener:
        operator_credits = OperatorCredits(database.engine, redis_client, listener, plan, clock=system_clock)
        operator_credits.start()
        for each in (org_id, other):
            adjust_and_tell(database.engine, redis_client, each, 5, "first")
        for drain, said in ((-5, 3), (-500, 5)):
            adjust_and_tell(database.engine, redis_client, org_id, drain, f"drain {drain}")
            wait_until(lambda: len(said_of(redis_client, org_id)) == said, limit_s=LIMIT_S)  # noqa: B023
        adjust_and_tell(database.engine, redis_client, org_id, -700, "drain -700")
        adjust_and_tell(database.engine, redis_client, other, -5, "drain")
        wait_until(lambda: len(listener.heard([other])) == 2, limit_s=LIMIT_S)
        operator_credits.stop()
        heard = listener.heard([org_id])
    assert said_of(redis_client, org_id) == [RESTORED, EXHAUSTED] * 3
    assert [each.message.type.value for each in heard] == [RESTORED, EXHAUSTED] * 3
    assert heard[2].heard_s - heard[1].heard_s >= 0.3
    assert (operator_credits.made, operator_credits.cents, operator_credits.error) == (2, 1200, None)
    assert gate(redis_client, other)["state"] == "exhausted"


def test_what_ends_it_is_kept(database: Database, redis_client: redis.Redis) -> None:
    with SignalListener(redis_client) as listener:
        operator_credits = OperatorCredits(
            database.engine, redis_client, listener, {404: [OperatorCredit(0, 100)]}, clock=system_clock
        )
        operator_credits.start()
        for version, cents in ((1, 5), (2, 0)):
            Gates(redis_client).follow([Balance(404, cents, version)], system_clock())
        operator_credits.join(LIMIT_S)
    assert "no org 404" in str(operator_credits.error)


def test_where_redis_is_away_the_gate_is_left_to_the_reconciler(
    database: Database, redis_client: redis.Redis
) -> None:
    org_id = make_org(database)
    with transaction(database.engine) as connection:
        adjust(connection, org_id, amount_cents=-5, reason="r", key="k")
    with SignalListener(redis_client) as listener, connect_redis("unix:///nowhere/valkey.sock") as nowhere:
        operator_credits = OperatorCredits(
            database.engine, nowhere, listener, {org_id: [OperatorCredit(0, 100)]}, clock=system_clock
        )
        operator_credits.start()
        for version, cents in ((1, 5), (2, 0)):
            Gates(redis_client).follow([Balance(org_id, cents, version)], system_clock())
        wait_until(lambda: operator_credits.left_to_the_reconciler == 1, limit_s=LIMIT_S)
        operator_credits.stop()
    assert (operator_credits.made, operator_credits.error) == (1, None)
