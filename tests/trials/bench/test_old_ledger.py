"""A ledger that was filled for measuring is a true one."""

from datetime import timedelta

import redis
from sqlalchemy import text

from db.audit.full import run_audit
from db.ledger.prices import set_price
from db.postgres.engine import make_engine, transaction
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from metering.trials.bench.fixture import give_a_cent, make_orgs
from metering.trials.bench.old_ledger import fill_ledger
from metering.trials.event_generator import events, fill
from tests.conftest import Database
from tests.spine.billing import price, run_meters


def test_a_filled_ledger_passes_its_audit_and_goes_on(database: Database, redis_client: redis.Redis) -> None:
    told: list[int] = []
    owner = make_engine(database.owner_url, application_name="tests")
    with transaction(owner) as connection:
        set_price(connection, price("bolt", "0.08"), system_clock)
    make_orgs(owner, range(1, 8))
    at = system_clock() - timedelta(hours=1)
    give_a_cent(owner, [3, 5], at)
    assert fill_ledger(owner, 1_500, orgs=7, at=at, report=told.append, chunk=1_000) == sum(told) == 2 * 994
    fill_ledger(owner, 500, orgs=7, at=at, report=told.append, numbered_from=2 * 994, chunk=1_000)
    fill(redis_client, events(300, orgs=7, first_call_id=1, seed=1), told.append)
    run_meters(database.engine, redis_client)
    owner.dispose()
    report = run_audit(database.engine)
    assert report.passed, report.violations
    with transaction(database.engine) as connection:
        counts = connection.execute(text("SELECT count(*), count(DISTINCT call_id) FROM transactions")).one()
    assert counts[0] - 2 == counts[1] > 3 * 994
    assert Gates(redis_client).read([3])[0].state == "exhausted"
