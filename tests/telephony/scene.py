"""What calls are made on: a Valkey with the users that docker-compose.yml gives it, orgs with gates, and meters."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any, Final

import redis
from sqlalchemy import Engine

from db.accounts.suspensions import suspend_org
from db.ledger.adjustments import adjust
from db.postgres.engine import transaction
from metering.runtime.names import EVENT_FIELD, STREAM, hold_ends_key, holds_key
from metering.runtime.redis_connection import connect_redis
from metering.signals.hold_library import load_hold_library
from metering.trials.bench.reconciliation import write_gates
from tests.docs.pages import ROOT
from tests.external_servers.process import HOST
from tests.external_servers.valkeys import TcpServer
from tests.spine.billing import assert_sound, balances, debits, prepare, price, rejections, run_meters

PASSWORDS: Final = {
    name: f"{name.lower()}-secret 1"
    for name in (
        *("VALKEY_PASSWORD", "TELEPHONY_PASSWORD", "METER_PASSWORD"),
        *("JOBS_PASSWORD", "API_PASSWORD"),
    )
}
"""With a blank: one that a client pastes into a command would be two words."""
CENTS_PER_MINUTE: Final = 8
START_CENTS: Final = 100_000


@dataclass
class Scene:
    """One Valkey, one database."""

    valkey: TcpServer
    engine: Engine

    @property
    def url(self) -> str:
        """As an operator."""
        return f"redis://:{PASSWORDS['VALKEY_PASSWORD'].replace(' ', '%20')}@{HOST}:{self.valkey.port}/0"

    def events(self) -> list[bytes]:
        """What waits in the stream."""
        entries: Any = self.valkey.client.xrange(STREAM)
        return [fields[EVENT_FIELD] for _, fields in entries]

    def asked(self) -> int:
        """How often a gate was asked for since the server started."""
        found: Any = self.valkey.client.info("commandstats")
        return int(found.get("cmdstat_hget", {"calls": 0})["calls"])

    def held(self, org_id: int) -> tuple[int, int]:
        """Cents that an org's calls hold, and how many hold some, as Redis tells who cancels a call that isn't there."""
        answer: Any = self.valkey.client.fcall(
            "call_cancel", 2, holds_key(org_id), hold_ends_key(org_id), "1"
        )
        return answer[2], answer[3]

    def bill(self) -> None:
        """Let a meter bill what waits; then every invariant holds, and nothing was rejected."""
        with connect_redis(self.url) as client:
            run_meters(self.engine, client)
        assert [(each.reason, each.detail) for each in rejections(self.engine)] == []
        assert_sound(self.engine)

    def balance_cents(self, org_id: int) -> int:
        """An org's."""
        return balances(self.engine)[org_id]

    def all_debits(self) -> list[Any]:
        """Of all orgs."""
        return debits(self.engine)

    def debits(self, org_id: int) -> list[Any]:
        """An org's."""
        return [each for each in debits(self.engine) if each.org_id == org_id]


def must_cost_cents(duration_seconds: Decimal) -> int:
    """A call's charge by 60/60, worked out here."""
    return int((duration_seconds / 60).to_integral_value(ROUND_CEILING)) * CENTS_PER_MINUTE


@contextmanager
def scene(
    directory: Path, engine: Engine, orgs: Mapping[int, str], cents: Mapping[int, int] | None = None
) -> Iterator[Scene]:
    """Orgs that are `open`, `exhausted`, `suspended` or have no gate (`missing`), those named in `cents` with so many."""
    there = [org_id for org_id, state in orgs.items() if state != "missing"]
    prepare(engine, org_ids=there, prices=[price("bolt", f"0.{CENTS_PER_MINUTE:02}"), price("free", "0")])
    with transaction(engine) as connection:
        for org_id, state in orgs.items():
            if state in ("open", "suspended"):
                adjust(
                    connection,
                    org_id,
                    amount_cents=(cents or {}).get(org_id, START_CENTS),
                    reason="to call",
                    key="start",
                )
            if state == "suspended":
                suspend_org(connection, org_id)
    directory.mkdir(parents=True)
    users = subprocess.run(
        ["/bin/sh", str(ROOT / "deploy" / "valkey" / "users.sh")],
        env={"PATH": os.environ["PATH"], **PASSWORDS},
        capture_output=True,
        text=True,
        check=True,
    )
    (directory / "users.acl").write_text(users.stdout)
    valkey = TcpServer(directory / "valkey", {"aclfile": str(directory / "users.acl")})
    valkey.client.close()
    valkey.client = redis.Redis(HOST, valkey.port, password=PASSWORDS["VALKEY_PASSWORD"], socket_timeout=5)
    try:
        valkey.start()
        write_gates(engine, valkey.client)
        load_hold_library(valkey.client)
        yield Scene(valkey, engine)
    finally:
        valkey.stop()
