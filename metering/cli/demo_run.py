"""One run of `metering demo`, from the start of the servers to the verdict."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Final

import redis
from rich.console import Console
from rich.live import Live
from sqlalchemy import Engine

from db.adjustments import adjust
from db.balances import read_balances
from db.engine import transaction
from db.orgs import create_org
from db.prices import list_prices, set_price
from metering.cli.connections import engine_for, located, prepare_database
from metering.cli.demo_out import is_live, say_line, shown_path
from metering.cli.demo_screen import Figures, live_view, plain_line
from metering.cli.demo_verdict import INTERRUPTED, Run, conclude
from metering.cli.demo_watch import DemoOrg, Watch
from metering.cli.errors import CommandError
from metering.cli.output import console, counted
from metering.cli.roles import JOBS, Supervisor, meter_roles
from metering.cli.stopping import stop_on_signals
from metering.rules.gates import Balance
from metering.rules.money import MICROUSD_PER_USD, format_usd
from metering.rules.pricing import Price
from metering.runtime.clock import Clock, system_clock
from metering.runtime.redis_connection import connect_redis
from metering.runtime.settings import Settings, read_settings
from metering.sandbox.calls import RATES_CENTS_PER_MINUTE, TIME_FACTOR
from metering.sandbox.disagreements import wrong_gates
from metering.sandbox.listener import Listener
from metering.sandbox.outcome import Outcome, last_rejection_id
from metering.sandbox.refills import Refills
from metering.sandbox.said import last_position
from metering.sandbox.switch import Switch
from metering.sandbox.telephony import Telephony
from metering.signals.gates import Gates
from workers.stream import GROUP, STREAM, backlog

METERS_READY_LIMIT_S: Final = 20.0
EARLIER_BACKLOG_LIMIT_S: Final = 20.0
DRAIN_LIMIT_S: Final = 30.0
LOOK_EVERY_S: Final = 0.25
LINE_EVERY_S: Final = 5.0
GATES_LIMIT_S: Final = 20.0
"""How long gates that are wrong at the end may take to be mended: the sweep comes round every few seconds."""
ROLES_LOG: Final = "demo-roles.log"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    duration_s: int
    rate: int
    orgs: int
    meters: int
    seed: int


class StoppedEarlyError(Exception):
    """Somebody pressed Ctrl-C before the first call was pushed."""


def run_demo(plan: Plan, *, clock: Clock = system_clock) -> int:
    """Run the demo and give its exit status. Raises CommandError where it can't run."""
    settings = read_settings()
    _refuse_other_servers(settings)
    out = console()
    with stop_on_signals() as stop, ExitStack() as stack:
        try:
            with _step(out, stop, f"Postgres and Valkey, their data in {shown_path(settings.data_dir)}"):
                found = stack.enter_context(located(start=True))
            with _step(out, stop, "the database's schema, and four tiers"):
                prepare_database(found)
                engine = stack.enter_context(engine_for(found.database_url, command="demo"))
                _make_tiers(engine, clock)
            client = stack.enter_context(connect_redis(found.redis_url))
            listener = stack.enter_context(Listener(client))
            with _roles(out, stop, client, plan.meters, settings.data_dir / ROLES_LOG):
                run = _simulate(out, stop, engine, client, listener, plan, clock)
        except StoppedEarlyError:
            out.print("Stopped before the first call was pushed.")
            return INTERRUPTED
        return conclude(out, engine, client, run, interrupted=stop.is_set())


def _refuse_other_servers(settings: Settings) -> None:
    if settings.database_url is not None or settings.redis_url is not None:
        raise CommandError(
            "The demo makes orgs and gives them money, so it runs on embedded servers only: "
            "unset METERING_DATABASE_URL and METERING_REDIS_URL."
        )


@contextmanager
def _step(out: Console, stop: Event, what: str) -> Iterator[None]:
    """Say what was made ready, and how long that took. Raises StoppedEarlyError if told to stop meanwhile."""
    began_s = time.monotonic()
    with out.status(f"{what} ...") if is_live(out) else nullcontext():
        yield
    say_line(out, f"{time.monotonic() - began_s:5.1f} s  {what}")
    if stop.is_set():
        raise StoppedEarlyError


def _make_tiers(engine: Engine, clock: Clock) -> None:
    """Make the tiers that telephony's record counts with, unless they are there."""
    with transaction(engine) as connection:
        prices = list_prices(connection)
        for tier, rate_cents in RATES_CENTS_PER_MINUTE.items():
            wanted = Price(tier, None, rate_cents * MICROUSD_PER_USD // 100, 60, 60, 0, 0)
            there = [price for price in prices if price.tier == tier]
            if not there:
                set_price(connection, wanted, clock)
            elif there != [wanted]:
                raise CommandError(
                    f"Tier {tier} has other prices here than the {format_usd(rate_cents)} USD per minute that the demo"
                    " counts with: set METERING_DATA_DIR to a directory of the demo's own."
                )


@contextmanager
def _roles(out: Console, stop: Event, client: redis.Redis, number: int, log_path: Path) -> Iterator[None]:
    """So many meters, and the jobs, for the time of the block; what an earlier demo left is billed first."""
    meters = meter_roles(number)
    with ExitStack() as stack:
        with _step(out, stop, f"{counted(number, 'meter')} and the jobs, logging to {shown_path(log_path)}"):
            roles = [*meters, JOBS]
            stack.enter_context(Supervisor(roles, say=lambda told: say_line(out, told), log_path=log_path))
            awaited = {role.arguments[-1] for role in meters}
            if not _wait(stop, METERS_READY_LIMIT_S, lambda: awaited <= _consumers(client)):
                raise CommandError(f"The meters don't begin to work; {log_path} tells why.")
        if waiting := backlog(client).lag:
            with _step(out, stop, f"{counted(waiting, 'event')} from before, billed first"):
                _wait(stop, EARLIER_BACKLOG_LIMIT_S, lambda: backlog(client).lag == 0)
        yield


def _consumers(client: redis.Redis) -> set[str]:
    """The names of those that have asked for events."""
    try:
        consumers: Any = client.xinfo_consumers(STREAM, GROUP)
    except redis.ResponseError:
        return set()  # no meter has made the group yet
    return {consumer["name"].decode() for consumer in consumers}


def _wait(stop: Event, limit_s: float, condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; at most `limit_s`, and not past a Ctrl-C. Gives whether nothing went wrong."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if stop.wait(0.05):
            return True
        if time.monotonic() > deadline_s:
            return False
    return True


def _simulate(
    out: Console,
    stop: Event,
    engine: Engine,
    client: redis.Redis,
    listener: Listener,
    plan: Plan,
    clock: Clock,
) -> Run:
    """Make orgs, let their calls start and end on schedule, and wait until the meters have done with them."""
    with _step(out, stop, f"{counted(plan.orgs, 'new org')}, each with a balance to begin with"):
        log_began_at = last_position(client)
        telephony, orgs = _make_orgs(engine, client, plan, clock)
        with engine.connect() as connection:
            newest_rejection_id = last_rejection_id(connection)
    say_line(
        out,
        f"\nCalls for {plan.duration_s} s, about {plan.rate:,} a second, seed {plan.seed}."
        f" Time runs {TIME_FACTOR} times as fast:\n"
        f"a call of {TIME_FACTOR} s ends a second later. Each call's gate is asked before it starts.\n",
    )
    switch = Switch(client, telephony.schedule())
    refills = Refills(engine, client, listener, telephony.refills(), clock=clock)
    outcome = Outcome(telephony.org_ids, newest_rejection_id)
    watch = Watch(engine, client, switch, listener, outcome, orgs)
    switch.start()
    refills.start()
    with _screen(out, plan.duration_s) as show:
        try:
            while switch.is_alive() and not stop.is_set():
                show(watch.look(draining=False))
                stop.wait(LOOK_EVERY_S)
        finally:
            switch.stop()
            refills.stop()
        drained = _drain(out, stop, watch, show)
        behind = _settle(engine, client, telephony.org_ids) if drained else 0
        show(watch.look(draining=True))
    return Run(
        telephony=telephony,
        switch=switch,
        refills=refills,
        listener=listener,
        log_began_at=log_began_at,
        outcome=Outcome(telephony.org_ids, newest_rejection_id),
        highest_lag=watch.highest_lag,
        drained=drained,
        gates_behind=behind,
    )


def _make_orgs(
    engine: Engine, client: redis.Redis, plan: Plan, clock: Clock
) -> tuple[Telephony, list[DemoOrg]]:
    """Orgs of this run's own, so that nothing that was there before can be taken for its work; and their gates."""
    now = clock()
    changes = []
    with transaction(engine) as connection:
        names = [f"Demo {number} of {now:%H:%M:%S}" for number in range(1, plan.orgs + 1)]
        org_ids = [create_org(connection, name, now) for name in names]
        telephony = Telephony(org_ids, start=now, seed=plan.seed, duration_s=plan.duration_s, rate=plan.rate)
        balances = telephony.starting_balances_cents()
        for org_id, cents in balances.items():
            done = adjust(
                connection,
                org_id,
                amount_cents=cents,
                reason="A balance to begin the demo with",
                key="demo-start",
                clock=clock,
            )
            changes += [done.change] if done.change else []
    Gates(client).follow(
        [Balance(each.org_id, each.balance_cents, each.version) for each in changes], clock()
    )
    return telephony, [
        DemoOrg(org_id, name, balances[org_id]) for org_id, name in zip(org_ids, names, strict=True)
    ]


def _settle(engine: Engine, client: redis.Redis, org_ids: Sequence[int]) -> int:
    """Wait until all gates say what their balances say; give how many didn't at first.

    An entry leaves the stream after its gate has followed; so there is nothing to wait for, unless Redis failed just then or
    somebody else wrote to a gate. Then it is the sweep that mends it.
    """
    gates = Gates(client)

    def wrong() -> int:
        return len(wrong_gates(gates.read(org_ids), read_balances(engine, org_ids)))

    behind = wrong()
    if behind:
        _wait(Event(), GATES_LIMIT_S, lambda: wrong() == 0)
    return behind


@contextmanager
def _screen(out: Console, duration_s: int) -> Iterator[Callable[[Figures], None]]:
    """Where figures are shown: in a live table, or now and then in a line where nobody looks on."""
    if is_live(out):
        with Live(console=out, auto_refresh=False) as live:
            yield lambda figures: live.update(live_view(figures, duration_s), refresh=True)
        return
    due_s = LINE_EVERY_S
    shown = last = None

    def show(figures: Figures) -> None:
        nonlocal due_s, shown, last
        last = figures
        if figures.elapsed_s >= due_s:
            say_line(out, plain_line(figures))
            shown = figures
            due_s += LINE_EVERY_S

    yield show
    if last is not None and last is not shown:
        say_line(out, plain_line(last))


def _drain(out: Console, stop: Event, watch: Watch, show: Callable[[Figures], None]) -> bool:
    """Wait until all that was pushed is billed. False if that takes too long, or somebody presses Ctrl-C (again)."""
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    with stop_on_signals() as enough:
        if stop.is_set():
            say_line(out, "Stopping; what was pushed is billed first, unless you press Ctrl-C again.")
        while not (drained := watch.drained()):
            show(watch.look(draining=True))
            if enough.wait(LOOK_EVERY_S):
                stop.set()
                break
            if time.monotonic() > deadline_s:
                break
    return drained
