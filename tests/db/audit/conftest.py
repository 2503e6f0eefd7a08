"""Ledgers, whole and busy."""

import random
import threading
from collections.abc import Iterator
from itertools import count, islice

import pytest

from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.ledger import (
    BOLT,
    FINE,
    PAYMENTS,
    SECOND_US,
    a_call,
    bill_five_calls,
    make_orgs,
    make_prices,
    pay_in,
    post,
)


@pytest.fixture
def ledger(database: Database) -> Database:
    """Org 1, which the tests damage, and org 2 with six transactions each; org 3 with none, org 4 with one."""
    engine = database.engine
    make_orgs(engine, 1, 2, 3, 4)
    make_prices(engine, BOLT, FINE)
    for org_id in (1, 2):
        pay_in(engine, org_id, 10_000)
        bill_five_calls(engine, org_id)
    pay_in(engine, 4, 500)
    execute_as(database.admin_url, PAYMENTS)
    return database


@pytest.fixture
def busy_ledger(database: Database) -> Iterator[Database]:
    """A ledger to which another connection posts debits, batch after batch, for as long as the test runs."""
    engine = database.engine
    make_orgs(engine, *range(1, 9))
    make_prices(engine, BOLT, FINE)
    stop = threading.Event()
    failures: list[Exception] = []

    def keep_posting() -> None:
        source = random.Random(1)
        call_ids = count(1)
        try:
            while not stop.is_set():
                calls = []
                for call_id in islice(call_ids, 30):
                    org_id, tier = source.randint(1, 8), source.choice(["bolt", "fine"])
                    calls.append(a_call(org_id, call_id, tier, source.randint(1, 300 * SECOND_US)))
                post(engine, calls)
        except Exception as failure:  # noqa: BLE001 - told to the test's own thread
            failures.append(failure)

    writer = threading.Thread(target=keep_posting)
    writer.start()
    yield database
    stop.set()
    writer.join(30)
    assert not writer.is_alive()
    assert failures == []
