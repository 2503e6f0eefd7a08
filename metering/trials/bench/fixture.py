"""Where everything is measured: embedded servers of this run's own, and orgs that make calls."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import redis
from sqlalchemy import Engine, text

from db.ledger.prices import set_price
from db.postgres.arrays import array
from db.postgres.engine import make_engine, transaction
from db.postgres.schema import migrate
from metering.rules.pricing import Price
from metering.runtime.clock import system_clock, to_milliseconds
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import Servers, running
from metering.trials.bench.rate import MeasuringError

DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")
TIER: Final = "bolt"


@dataclass(frozen=True, slots=True)
class Fixture:
    """Servers and connections of one run."""

    servers: Servers
    owner: Engine
    """As the tables' owner."""
    engine: Engine
    """As the roles connect."""
    client: redis.Redis


@contextmanager
def making_fixture(data_dir: Path) -> Iterator[Fixture]:
    """Servers under `data_dir`, migrated and with a tier; at the end nothing of them is left.

    The settings of this process become those of the run: roles that it starts find these servers, and ports of their own.
    """
    for name in list(os.environ):
        if name.startswith(("METERING_", "STRIPE_")):
            del os.environ[name]
    os.environ["METERING_DATA_DIR"] = str(data_dir)
    os.environ["METERING_HTTP_PORT"] = "0"
    try:
        with running(data_dir) as servers, connect_redis(servers.redis_url) as client:
            owner = make_engine(servers.owner_database_url, application_name="metering bench")
            engine = make_engine(servers.database_url, application_name="metering bench")
            try:
                migrate(owner)
                require_durability(engine)
                with transaction(owner) as connection:
                    set_price(connection, Price(TIER, None, 80_000, 60, 60, 0, 0), system_clock)
                yield Fixture(servers, owner, engine, client)
            finally:
                owner.dispose()
                engine.dispose()
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def require_durability(engine: Engine) -> None:
    """Raise MeasuringError unless Postgres keeps what it commits: a faster one measures something else."""
    with transaction(engine) as connection:
        for setting in DURABLE:
            value = connection.execute(text("SELECT current_setting(:name)"), {"name": setting}).scalar_one()
            if value != "on":
                raise MeasuringError(f"Postgres has {setting} = {value}; only `on` is worth measuring.")


def make_orgs(owner: Engine, org_ids: Iterable[int]) -> None:
    """Make those of the orgs that aren't there, without money."""
    with transaction(owner) as connection:
        connection.execute(
            text(
                "INSERT INTO accounts (org_id, name, created_at)"
                " SELECT org_id, 'Bench ' || org_id, :now FROM unnest(CAST(:org_ids AS bigint[])) AS org_id"
                " ON CONFLICT DO NOTHING"
            ),
            {"org_ids": array(org_ids), "now": system_clock()},
        )
        connection.execute(text("ANALYZE accounts"))


def give_a_cent(owner: Engine, org_ids: Iterable[int], at: datetime) -> None:
    """Give each of the orgs one cent, by an adjustment; each must be without a transaction."""
    chosen = {"org_ids": array(org_ids), "at": to_milliseconds(at)}
    with transaction(owner) as connection:
        connection.execute(
            text(
                "INSERT INTO transactions"
                " (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
                " SELECT org_id, 'adjustment', 1, 1, :at, 'Bench', 'bench'"
                " FROM unnest(CAST(:org_ids AS bigint[])) AS org_id"
            ),
            chosen,
        )
        connection.execute(
            text(
                "UPDATE accounts SET balance_cents = 1, version = 1, transaction_count = 1, last_posted_at = :at"
                " WHERE org_id = ANY(CAST(:org_ids AS bigint[]))"
            ),
            chosen,
        )


def checkpoint(fixture: Fixture) -> None:
    """Have Postgres write a checkpoint now: so that a measurement holds one, or begins without one under way."""
    admin = make_engine(fixture.servers.admin_database_url, application_name="metering bench")
    try:
        with transaction(admin) as connection:
            connection.execute(text("CHECKPOINT"))
    finally:
        admin.dispose()
