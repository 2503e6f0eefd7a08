"""The simulated operator suspends an org and resumes it, on time or when it is told to stop."""

import redis

from metering.runtime.clock import system_clock
from metering.sandbox.customers.operator_suspension import OperatorSuspension, SuspensionPlan
from tests.conftest import Database
from tests.sandbox.customers.test_operator_credits import LIMIT_S, make_org
from tests.signals.listening import RESTORED, adjust_and_tell, gate, said_of
from tests.waiting import wait_until

SUSPENDED, RESUMED = "org.suspended", "org.resumed"


def test_an_org_is_suspended_and_resumed_whatever_its_balance(
    database: Database, redis_client: redis.Redis
) -> None:
    org_id = make_org(database)
    adjust_and_tell(database.engine, redis_client, org_id, 5, "first")
    plan = SuspensionPlan(org_id, after_s=0.0, for_s=3600.0)
    operator = OperatorSuspension(database.engine, redis_client, plan, clock=system_clock)
    operator.start()
    wait_until(lambda: gate(redis_client, org_id)["state"] == "suspended", limit_s=LIMIT_S)
    assert not operator.made
    operator.stop()
    assert gate(redis_client, org_id)["state"] == "open"
    assert said_of(redis_client, org_id) == [RESTORED, SUSPENDED, RESUMED]
    assert (operator.made, operator.error) == (True, None)


def test_one_that_is_stopped_before_its_time_suspends_nobody(
    database: Database, redis_client: redis.Redis
) -> None:
    plan = SuspensionPlan(make_org(database), after_s=3600.0, for_s=1.0)
    operator = OperatorSuspension(database.engine, redis_client, plan, clock=system_clock)
    operator.start()
    operator.stop()
    assert said_of(redis_client, plan.org_id) == []
    assert (operator.made, operator.error) == (False, None)


def test_what_ends_it_is_kept(database: Database, redis_client: redis.Redis) -> None:
    operator = OperatorSuspension(
        database.engine, redis_client, SuspensionPlan(404, 0.0, 0.0), clock=system_clock
    )
    operator.start()
    operator.join(LIMIT_S)
    assert "no org 404" in str(operator.error)
