"""One run of `metering demo`, from the start of the servers to the verdict."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Final
from urllib.parse import urlsplit

import redis
from rich.console import Console
from rich.live import Live
from sqlalchemy import Engine

from db.attempts.reload_status import read_charges
from db.ledger.balances import read_balances
from metering.console.connections import engine_for, located, prepare_database
from metering.console.errors import CommandError
from metering.console.http_port import LOOPBACK, free_http_port
from metering.console.output import console, counted, shown_path
from metering.console.stopping import stop_on_signals
from metering.console.stripe_access import named_stripe
from metering.runtime.clock import Clock, system_clock
from metering.runtime.redis_connection import connect_redis
from metering.runtime.settings import Settings, read_settings
from metering.sandbox.customers.cardholders import Cardholders, StandInCardholders
from metering.sandbox.customers.operator_credits import OperatorCredits
from metering.sandbox.customers.operator_suspension import OperatorSuspension
from metering.sandbox.customers.simulation import Customers
from metering.sandbox.telephony.calls import TIME_FACTOR
from metering.sandbox.telephony.signal_history import last_position
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.sandbox.telephony.switch import Switch
from metering.signals.gates import Gates
from metering.trials.consistency import wrong_gates
from metering.trials.demo.money import read_money, wrong_money
from metering.trials.demo.output import is_live, say_line
from metering.trials.demo.processes import (
    Processes,
    StoppedEarlyError,
    running_roles,
    running_stripe,
    step,
    wait_for,
)
from metering.trials.demo.screen import Figures, live_view, plain_line
from metering.trials.demo.setup import cardholders_of, make_customers, make_orgs, make_tiers
from metering.trials.demo.snapshot import Snapshots
from metering.trials.demo.verdict import INTERRUPTED, Run, conclude
from metering.trials.outcome import Outcome, last_rejection_id

DRAIN_LIMIT_S: Final = 30.0
POLL_EVERY_S: Final = 0.25
LINE_EVERY_S: Final = 5.0
CHARGES_LIMIT_S: Final = 10.0
"""How long charges that are under way at the end may take."""
GATES_LIMIT_S: Final = 20.0
"""How long gates that are wrong at the end may take to be mended: the reconciler comes round every few seconds."""
ROLES_LOG: Final = "demo-roles.log"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    duration_s: int
    rate: int
    orgs: int
    meters: int
    seed: int


def run_demo(plan: Plan, *, clock: Clock = system_clock) -> int:
    """Run the demo and give its exit status. Raises CommandError where it can't run."""
    settings = read_settings()
    _refuse_other_servers(settings)
    named_stripe(settings)
    http_port = free_http_port(LOOPBACK, 0)  # of its own: an `up` may run as well
    out = console()
    with stop_on_signals() as stop, ExitStack() as stack:
        try:
            with step(out, stop, f"Postgres and Valkey, their data in {shown_path(settings.data_dir)}"):
                found = stack.enter_context(located(start=True))
            with step(out, stop, "the database's schema, and four tiers"):
                prepare_database(found)
                engine = stack.enter_context(engine_for(found.database_url, command="demo"))
                make_tiers(engine, clock)
            client = stack.enter_context(connect_redis(found.redis_url))
            listener = stack.enter_context(SignalListener(client))
            processes = Processes(out, stop, settings.data_dir / ROLES_LOG, http_port)
            # Outside of the roles: it is asked what it holds when they have ended.
            access = stack.enter_context(running_stripe(processes, settings))
            cardholders = cardholders_of(access)
            with running_roles(processes, client, plan.meters):
                run = _simulate(processes, engine, client, listener, cardholders, plan, clock)
        except StoppedEarlyError:
            out.print("Stopped before the first call was pushed.")
            return INTERRUPTED
        return conclude(out, engine, client, run, interrupted=stop.is_set())


def run_demo_beside(plan: Plan, api_url: str, *, clock: Clock = system_clock) -> int:
    """Run the demo's calls and customers on an installation that runs, and give the exit status. Raises CommandError."""
    settings = read_settings()
    where = urlsplit(api_url)
    try:
        port = where.port or 80
    except ValueError:
        port = None
    if where.scheme != "http" or where.hostname is None or port is None:
        raise CommandError("--api must be the API's address, http://api:8000.")
    if settings.database_url is None or settings.redis_url is None or settings.stripe_api_base is None:
        raise CommandError(
            "The demo makes orgs, gives them money and charges cards: beside an installation it runs only where"
            " METERING_DATABASE_URL, METERING_REDIS_URL and STRIPE_API_BASE are set, the last to a stand-in for Stripe."
            " With Compose: docker compose --env-file demo.env up."
        )
    out = console()
    with stop_on_signals() as stop, ExitStack() as stack:
        try:
            processes = Processes(out, stop, settings.data_dir / ROLES_LOG, port, where.hostname)
            say_line(
                out,
                "THIS IS A DEMO: no call, customer or card is real, and its Stripe is NOT STRIPE.",
            )
            with step(out, stop, "four tiers"):
                engine = stack.enter_context(engine_for(settings.database_url, command="demo"))
                make_tiers(engine, clock)
            client = stack.enter_context(connect_redis(settings.redis_url))
            listener = stack.enter_context(SignalListener(client))
            with step(out, stop, f"the API at {processes.url}"):
                processes.wait_for_api()
            cardholders = StandInCardholders(settings.stripe_api_base)
            run = _simulate(processes, engine, client, listener, cardholders, plan, clock)
        except StoppedEarlyError:
            out.print("Stopped before the first call was pushed.")
            return INTERRUPTED
        return conclude(out, engine, client, run, interrupted=stop.is_set(), beside=True)


def _refuse_other_servers(settings: Settings) -> None:
    if settings.database_url is not None or settings.redis_url is not None:
        raise CommandError(
            "The demo makes orgs and gives them money, so it runs on embedded servers only: "
            "unset METERING_DATABASE_URL and METERING_REDIS_URL."
        )


def _simulate(
    processes: Processes,
    engine: Engine,
    client: redis.Redis,
    listener: SignalListener,
    cardholders: Cardholders,
    plan: Plan,
    clock: Clock,
) -> Run:
    """Make orgs, let their calls start and end on schedule, and wait until the meters have done with them."""
    out, stop = processes.out, processes.stop
    with step(out, stop, f"{counted(plan.orgs, 'new org')}, each with a balance to begin with"):
        log_began_at = last_position(client)
        made = make_orgs(
            engine,
            client,
            number=plan.orgs,
            seed=plan.seed,
            duration_s=plan.duration_s,
            rate=plan.rate,
            clock=clock,
        )
        with engine.connect() as connection:
            newest_rejection_id = last_rejection_id(connection)
    with step(
        out, stop, f"{counted(len(made.roles), 'customer')} with cards, over the API at {processes.url}"
    ):
        customers = make_customers(
            engine,
            made.roles,
            cardholders,
            listener,
            http_host=processes.http_host,
            http_port=processes.http_port,
            clock=clock,
        )
    say_line(
        out,
        f"\nCalls for {plan.duration_s} s, about {plan.rate:,} a second, seed {plan.seed}."
        f" Time runs {TIME_FACTOR} times as fast:\n"
        f"a call of {TIME_FACTOR} s ends a second later. Each call's gate is asked before it starts.\n",
    )
    telephony = made.telephony
    switch = Switch(client, telephony.schedule())
    operator_credits = OperatorCredits(engine, client, listener, made.operator_credits, clock=clock)
    outcome = Outcome(telephony.org_ids, newest_rejection_id)
    snapshots = Snapshots(engine, client, switch, listener, outcome, made.orgs, clock=clock)
    suspensions = [
        OperatorSuspension(engine, client, each, clock=clock)
        for each in ([made.suspension] if made.suspension else [])
    ]
    for thread in (switch, operator_credits, customers, *suspensions):
        thread.start()
    with _screen(out, plan.duration_s) as show:
        try:
            while switch.is_alive() and not stop.is_set():
                show(snapshots.take(draining=False))
                stop.wait(POLL_EVERY_S)
        finally:
            switch.stop()
            operator_credits.stop()
            customers.stop()
            for suspension in suspensions:
                suspension.stop()
        drained = _drain(out, stop, snapshots, show)
        behind = 0
        if drained:
            _settle_charges(engine, cardholders, customers, telephony.org_ids, clock)
            behind = _settle(engine, client, telephony.org_ids)
        show(snapshots.take(draining=True))
    return Run(
        telephony=telephony,
        switch=switch,
        operator_credits=operator_credits,
        suspensions=suspensions,
        customers=customers,
        cardholders=cardholders,
        listener=listener,
        log_began_at=log_began_at,
        outcome=Outcome(telephony.org_ids, newest_rejection_id),
        highest_lag=snapshots.highest_lag,
        drained=drained,
        gates_behind=behind,
    )


def _settle_charges(
    engine: Engine, cardholders: Cardholders, customers: Customers, org_ids: Sequence[int], clock: Clock
) -> None:
    """Wait until every charge has ended that can, and all money that customers know of is in the ledger; not for ever."""

    def settled() -> bool:
        with engine.connect() as connection:
            charges = read_charges(connection, customers.roles, clock())
        if any(each.attempts_open for each in charges.values()):
            return False
        return not wrong_money(read_money(engine, cardholders, org_ids), customers.topped_up)

    wait_for(Event(), CHARGES_LIMIT_S, settled)


def _settle(engine: Engine, client: redis.Redis, org_ids: Sequence[int]) -> int:
    """Wait until all gates say what their balances say; give how many didn't at first.

    An entry leaves the stream after its gate has followed; so there is nothing to wait for, unless Redis failed just then or
    somebody else wrote to a gate. Then it is the reconciler that mends it.
    """
    gates = Gates(client)

    def wrong() -> int:
        return len(wrong_gates(gates.read(org_ids), read_balances(engine, org_ids)))

    behind = wrong()
    if behind:
        wait_for(Event(), GATES_LIMIT_S, lambda: wrong() == 0)
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


def _drain(out: Console, stop: Event, snapshots: Snapshots, show: Callable[[Figures], None]) -> bool:
    """Wait until all that was pushed is billed. False if that takes too long, or somebody presses Ctrl-C (again)."""
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    with stop_on_signals() as enough:
        if stop.is_set():
            say_line(out, "Stopping; what was pushed is billed first, unless you press Ctrl-C again.")
        while not (drained := snapshots.drained()):
            show(snapshots.take(draining=True))
            if enough.wait(POLL_EVERY_S):
                stop.set()
                break
            if time.monotonic() > deadline_s:
                break
    return drained
