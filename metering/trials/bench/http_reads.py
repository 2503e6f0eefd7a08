"""How long customers and telephony wait for the API while a meter works."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import token_urlsafe
from typing import Final
from urllib.parse import urlsplit

from db.accounts.api_keys import create_key
from db.postgres.engine import transaction
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.signals.gates import Gates
from metering.trials.bench.fixture import TIER, Fixture, give_a_cent, make_orgs
from metering.trials.bench.http_load import GetOrder, get_words, read_got
from metering.trials.bench.open_loop import Observed, observe
from metering.trials.bench.percentiles import Percentiles, percentiles
from metering.trials.bench.plan import Plan
from metering.trials.bench.rate import MeasuringError
from metering.trials.bench.roles import Role, api_commands, meter_command, running_roles

REQUESTS_PER_SECOND: Final = 500.0
WARM_UP_REQUESTS: Final = 500
ORG_ID: Final = 900_000_000
"""Has one cent and makes no calls, so that its gate is open."""
GATE: Final = f"/v1/gate/{ORG_ID}?direction=outbound&tier={TIER}"
ACCOUNT: Final = "/v1/billing"
TELEPHONY_SETTING: Final = "METERING_TELEPHONY_TOKEN"
API_LIMIT_S: Final = 60.0
POLL_EVERY_S: Final = 0.05
OK: Final = 200


@dataclass(frozen=True, slots=True)
class HttpRead:
    """One path, asked for at a steady rate."""

    path: str
    credentials: str
    """The telephony layer's token, or the org's key, which is looked up in Postgres each time."""
    per_second: float
    events_per_second: float
    """What the meter billed meanwhile."""
    took: Percentiles
    """From a request's scheduled time to the end of its answer."""


def make_asking_org(fixture: Fixture, org_id: int) -> str:
    """An org with a cent and an open gate, that may ask; gives its API key."""
    make_orgs(fixture.owner, [org_id])
    now = system_clock()
    give_a_cent(fixture.owner, [org_id], now)
    Gates(fixture.client).follow([Balance(org_id, 1, 1)], now)
    with transaction(fixture.engine) as connection:
        return create_key(connection, org_id, now).api_key


def measure_http_reads(
    fixture: Fixture, plan: Plan, *, events_per_second: float, report: Callable[[int], None]
) -> list[HttpRead]:
    """Each path alone, beside one meter under that load. Raises MeasuringError if anything is answered but 200."""
    api_key = make_asking_org(fixture, ORG_ID)
    token = token_urlsafe()
    os.environ[TELEPHONY_SETTING] = token  # the environment is this run's own (`making_fixture`)
    asked = ((GATE, "token", token), (GATE, "key", api_key), (ACCOUNT, "key", api_key))
    reads: list[HttpRead] = []
    with (
        running_roles(
            fixture.servers.data_dir, [meter_command(0), *api_commands()], log_level="debug"
        ) as roles,
        SignalListener(fixture.client) as listener,
    ):
        host, port = api_address(roles)
        for path, credentials, secret in asked:
            for count in (WARM_UP_REQUESTS, int(REQUESTS_PER_SECOND * plan.latency_s)):
                order = GetOrder(host, port, path, secret, REQUESTS_PER_SECOND, count)
                latencies_s, seen = ask_beside(
                    fixture, roles[0], listener, order, events_per_second=events_per_second, orgs=plan.orgs
                )
                report(seen.count)
            took = percentiles(latencies_s)
            reads.append(HttpRead(path, credentials, REQUESTS_PER_SECOND, seen.per_second, took))
    return reads


def ask_beside(
    fixture: Fixture,
    meter: Role,
    listener: SignalListener,
    order: GetOrder,
    *,
    events_per_second: float,
    orgs: int,
) -> tuple[list[float], Observed]:
    """Send what `order` says while the meter is under that load; give how long each request took, and what came of the load.

    Raises MeasuringError if anything is answered but 200.
    """
    answer_path = fixture.servers.data_dir / "got.json"
    sender = subprocess.Popen([sys.executable, "-P", "-m", *get_words(order, answer_path)])
    seconds = order.count / order.per_second
    seen = observe(fixture, [meter], listener, per_second=events_per_second, seconds=seconds, orgs=orgs)
    if sender.wait() != 0:
        raise MeasuringError(f"GET {order.path} could not be measured.")
    got = read_got(answer_path)
    if got.statuses != {str(OK): order.count}:
        raise MeasuringError(f"GET {order.path} was answered with {got.statuses}.")
    return got.latencies_s, seen


def api_address(roles: Sequence[Role]) -> tuple[str, int]:
    """Where the API listens, once it does."""
    give_up_s = time.monotonic() + API_LIMIT_S
    while time.monotonic() < give_up_s:
        for role in roles:
            role.require_running()
            for line in role.said("the API is served"):
                url = urlsplit(line["url"])
                return url.hostname or "", url.port or 0
        time.sleep(POLL_EVERY_S)
    raise MeasuringError("The API did not begin to serve.")
