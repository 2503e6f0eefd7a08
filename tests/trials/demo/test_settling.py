"""The demo gives the reconciler time to mend gates that differ at the end, and counts them."""

import threading

import redis

from db.accounts.orgs import create_org
from db.postgres.engine import transaction
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from metering.trials.demo.run import _settle
from tests.conftest import Database
from tests.signals.listening import adjust_and_tell, gate
from workers.gate_reconciler import GateReconciler


def test_gates_that_differ_at_the_end_are_counted_and_awaited(
    database: Database, redis_client: redis.Redis
) -> None:
    with transaction(database.engine) as connection:
        org_ids = [create_org(connection, name, system_clock()) for name in ("one", "two", "three")]
    for org_id in org_ids:
        adjust_and_tell(database.engine, redis_client, org_id, 5, "first")
    assert _settle(database.engine, redis_client, org_ids) == 0
    redis_client.hset(f"gate:{org_ids[0]}", "balance_cents", 6)
    redis_client.delete(f"gate:{org_ids[2]}")
    stop = threading.Event()
    reconciler = GateReconciler(database.engine, Gates(redis_client), clock=system_clock)
    reconciling = threading.Timer(0.2, reconciler.run, [stop])
    reconciling.start()
    try:
        assert _settle(database.engine, redis_client, org_ids) == 2
        assert gate(redis_client, org_ids[0])["balance_cents"] == "5"
        assert gate(redis_client, org_ids[2])["state"] == "open"
    finally:
        stop.set()
        reconciling.join()
