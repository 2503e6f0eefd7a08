"""One run: load, faults, healing, and the end at which everything has to agree."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any, Final

import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from metering.payments.stripe_api import StripeApi
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.stripe.remote import ControlError, control
from metering.sandbox.telephony.simulation import Telephony
from metering.trials.chaos.calendar import Calendar
from metering.trials.chaos.customers import Customer, CustomerContext, Habit
from metering.trials.chaos.dashboard import Dashboard
from metering.trials.chaos.foreign_sessions import ForeignSessions
from metering.trials.chaos.injector import InjectedFault, Injector, Roles, Targets
from metering.trials.chaos.journal import Wanted
from metering.trials.chaos.links import HOST, Links
from metering.trials.chaos.memory import Memory
from metering.trials.chaos.operators import Operators
from metering.trials.chaos.producer import Producer
from metering.trials.chaos.recovery import Observed, Recovered, Recovery
from metering.trials.chaos.schedule import Schedule, make_schedule
from metering.trials.chaos.stores import Stores
from metering.trials.chaos.stripe_faults import StripeFaults
from metering.trials.chaos.verdict import Evidence, Verdict, judge
from workers.stream import backlog

SAY_EVERY_S: Final = 10.0
DRAIN_LIMIT_S: Final = 240.0
CUSTOMERS_LIMIT_S: Final = 180.0
QUIET_FOR_S: Final = 4.0
POLL_EVERY_S: Final = 0.5
ALL_DECIDED_AFTER: Final = timedelta(hours=26)
"""By then 3DS that nobody passed is cancelled, and "not there" counts."""
ALL_SETTLED_AFTER: Final = timedelta(minutes=20)
"""By then the audit takes no charge any more for one that is on its way."""

_OPEN: Final = text("SELECT count(*) FROM payment_attempts WHERE status = 'open'")
_CREDITED: Final = text(
    "SELECT coalesce(sum(amount_cents), 0) FROM payment_attempts WHERE status = 'succeeded'"
)
_BILLED: Final = text("SELECT count(*) FROM transactions WHERE kind = 'debit'")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    seed: int
    duration_s: float
    rate: float
    """Calls that want to start, a second."""


@dataclass(frozen=True, slots=True)
class World:
    """A system that runs, with its links; the rest reaches its servers past them."""

    engine: Engine
    client: redis.Redis
    admin_url: str
    """libpq's URL of the product's database, as superuser."""
    links: Links
    telephony_links: Sequence[str]
    """Links to Valkey, one for each producer."""
    customers_link: str
    """To the API."""
    stores: Stores
    calendar: Calendar
    roles: Roles
    role_names: Sequence[str]
    clocks: Sequence[str]
    """The roles of them whose clocks may be wrong."""
    operators: Operators
    api_port: int
    stripe_url: str
    stripe: StripeApi
    api_keys: Mapping[int, str]
    """Of each org."""
    starting_cents: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    verdict: Verdict
    struck: Sequence[InjectedFault]
    recovered: Sequence[Recovered]
    peaks_kib: Mapping[str, int]
    deadlocks: int
    """That Postgres found because of foreign sessions."""
    stripe_met: Mapping[str, int]
    """How many requests and webhooks met each kind of Stripe's faults."""


def run_chaos(plan: Plan, world: World, say: Say, stop: threading.Event) -> Result:
    """Run to the end, or shorter when `stop` is set: what was begun until then is judged."""
    schedule = make_schedule(
        plan.seed,
        plan.duration_s,
        roles=world.role_names,
        links=sorted(world.links.names),
        clocks=world.clocks,
    )
    began_at = world.calendar.clock()
    wanted = Wanted()
    with ExitStack() as stack:
        producers = stack.enter_context(_producers(plan, world, began_at))
        customers = _customers(plan, world, wanted)
        say(f"{len(customers)} customers save their cards and enable reloads")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(Customer.set_up, customers))
        foreign_sessions = ForeignSessions(world.admin_url, list(world.api_keys))
        stripe = StripeFaults(world.stripe_url)
        dashboard = Dashboard(
            world.stripe_url, world.stripe, world.engine, world.calendar.clock, world.operators
        )
        injector, recovery = _faults(world, schedule, foreign_sessions, stripe, dashboard, producers, say)
        memory = Memory(
            lambda: {name: [pid] for name, pid in world.roles.pids().items()} | world.stores.processes()
        )
        say(f"{len(schedule.strikes)} faults within {plan.duration_s:.0f} s, seed {plan.seed}")
        for thread in (memory, recovery, *producers, *customers, injector):
            thread.start()
        _watch(world, injector, recovery, producers, say, stop)
        injector.stop()
        say("all healed; calls and top-ups under way come to their end")
        problems = _finish(world, producers, customers, recovery, say)
        recovery.stop()
        memory.stop()
        dashboard.undo_edits()
        verdict = judge(
            Evidence(
                world.engine,
                world.client,
                world.stripe,
                world.stripe_url,
                world.calendar.clock,
                began_at,
                world.starting_cents,
                [producer.pushed for producer in producers],
                wanted,
            )
        )
        verdict.problems += problems + _broken(injector, producers, customers)
        return Result(
            verdict,
            injector.injected,
            recovery.recovered,
            memory.peaks_kib,
            foreign_sessions.deadlocks,
            stripe.met,
        )


@contextmanager
def _producers(plan: Plan, world: World, began_at: datetime) -> Iterator[list[Producer]]:
    """One for each of telephony's links, each with orgs of its own."""
    number = len(world.telephony_links)
    org_ids = sorted(world.api_keys)
    with ExitStack() as stack:
        made = []
        for index, link in enumerate(world.telephony_links):
            client = stack.enter_context(connect_redis(f"redis://{HOST}:{world.links.port(link)}/0"))
            telephony = Telephony(
                org_ids[index::number],
                start=began_at + timedelta(seconds=index),
                seed=plan.seed * number + index,
                duration_s=plan.duration_s,
                rate=plan.rate / number,
            )
            made.append(Producer(f"telephony {index + 1}", client, telephony))
        yield made


def _customers(plan: Plan, world: World, wanted: Wanted) -> list[Customer]:
    port = world.links.port(world.customers_link)
    around = CustomerContext(
        world.stripe_url, lambda: world.stores.restores, lambda: world.calendar.jumps, wanted
    )
    return [
        Customer(org_id, habit, CustomerApi(port, world.api_keys[org_id]), around, plan.seed)
        for org_id, habit in zip(sorted(world.api_keys), itertools.cycle(Habit), strict=False)
    ]


def _faults(
    world: World,
    schedule: Schedule,
    foreign_sessions: ForeignSessions,
    stripe: StripeFaults,
    dashboard: Dashboard,
    producers: Sequence[Producer],
    say: Say,
) -> tuple[Injector, Recovery]:
    observed = Observed(
        world.engine,
        world.client,
        world.stripe_url,
        world.api_port,
        sorted(world.api_keys),
        world.roles,
        world.role_names,
        producers,
    )
    recovery = Recovery(observed, lambda: list(injector.injected))
    victims = Targets(
        world.roles,
        world.links,
        world.stores,
        foreign_sessions,
        stripe,
        dashboard,
        world.calendar,
        world.client,
        producers,
    )
    injector = Injector(schedule, victims, recovery.healed, say)
    return injector, recovery


def _watch(
    world: World,
    injector: Injector,
    recovery: Recovery,
    producers: Sequence[Producer],
    say: Say,
    stop: threading.Event,
) -> None:
    """Say how it goes until the faults are over, and telephony's calls too."""
    began_s = time.monotonic()
    while injector.is_alive() or any(producer.is_alive() for producer in producers):
        if stop.wait(SAY_EVERY_S if injector.is_alive() else POLL_EVERY_S):
            return
        if injector.is_alive():
            struck = list(injector.injected)
            now = [each.strike.fault.name.lower() for each in struck if each.healed_s is None]
            say(
                f"{time.monotonic() - began_s:5.0f} s  {len(struck):4} faults, {recovery.waiting} not over yet;"
                f" {sum(each.pushed.events for each in producers):7,} events pushed, {_count(world, _BILLED)} billed;"
                f" {_count(world, _CREDITED)} cents credited; {', '.join(now) or 'no fault'} now"
            )


def _count(world: World, query: Any) -> str:
    try:
        with world.engine.connect() as connection:
            return f"{connection.scalar(query):,}"
    except SQLAlchemyError:
        return "?"


def _finish(
    world: World,
    producers: Sequence[Producer],
    customers: Sequence[Customer],
    recovery: Recovery,
    say: Say,
) -> list[str]:
    """Let everything come to its end; give what did not."""
    problems = []
    for producer in producers:
        producer.stop()
    for customer in customers:
        customer.stop()
    deadline_s = time.monotonic() + CUSTOMERS_LIMIT_S
    for customer in customers:
        customer.join(max(deadline_s - time.monotonic(), 0))
        if customer.is_alive():
            problems.append(f"{customer.name} is still waiting for an answer.")
    if not _wait(lambda: backlog(world.client).length == 0 and not recovery.waiting):
        waiting = backlog(world.client).length
        problems.append(
            f"{waiting} events were not billed in the end; {recovery.waiting} faults left something wrong."
        )
    for step in (ALL_DECIDED_AFTER, ALL_SETTLED_AFTER):
        say(f"the clock goes on by {step}, and what is undecided comes to its end")
        world.calendar.advance(step)
        if not _wait(_Quiet(world)):
            problems.append(f"Payments did not come to rest: {_count(world, _OPEN)} attempts are open.")
    return problems


class _Quiet:
    """Whether no attempt has been open for a while, and all that Stripe has taken is credited."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since_s: float | None = None
        self._received_cents = -1

    def __call__(self) -> bool:
        received_cents = int(control(self._world.stripe_url, "totals")["received_cents"])
        with self._world.engine.connect() as connection:
            at_rest = not connection.scalar(_OPEN) and connection.scalar(_CREDITED) == received_cents
        if not at_rest or received_cents != self._received_cents:
            self._received_cents = received_cents
            self._since_s = None
        if at_rest and self._since_s is None:
            self._since_s = time.monotonic()
        return self._since_s is not None and time.monotonic() - self._since_s >= QUIET_FOR_S


def _wait(condition: Callable[[], bool]) -> bool:
    """Wait until it holds; False if that takes too long. A server that is just being started is waited for."""
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            if condition():
                return True
        except (SQLAlchemyError, redis.RedisError, OSError, HTTPException, ControlError):
            pass
        time.sleep(POLL_EVERY_S)
    return False


def _broken(injector: Injector, producers: Sequence[Producer], customers: Sequence[Customer]) -> list[str]:
    """What kept the run itself from being whole."""
    threads: list[Producer | Customer] = [each for each in producers if each.error is not None]
    threads += [each for each in customers if each.error is not None]
    return [*injector.errors, *(f"{each.name} ended early: {each.error!r}." for each in threads)]
