"""One run of `metering demo`, from the start of the servers to the verdict."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
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
from db.audit import run_audit
from db.engine import transaction
from db.orgs import create_org
from db.prices import list_prices, set_price
from metering.cli.connections import engine_for, located, prepare_database
from metering.cli.demo_screen import Figures, live_view, plain_line, summary
from metering.cli.demo_watch import DemoOrg, Watch
from metering.cli.errors import CommandError, quoted
from metering.cli.output import console, counted
from metering.cli.roles import Supervisor, meter_roles
from metering.cli.stopping import stop_on_signals
from metering.rules.money import MICROUSD_PER_USD, format_usd
from metering.rules.pricing import Price
from metering.runtime.clock import Clock, system_clock
from metering.runtime.redis_connection import connect_redis
from metering.runtime.settings import Settings, read_settings
from metering.sandbox.outcome import Outcome, differences, last_rejection_id
from metering.sandbox.pusher import Pusher
from metering.sandbox.telephony import RATES_CENTS_PER_MINUTE, Telephony
from workers.stream import GROUP, STREAM, backlog

INTERRUPTED: Final = 130
"""The exit status of what Ctrl-C ended."""
METERS_READY_LIMIT_S: Final = 20.0
EARLIER_BACKLOG_LIMIT_S: Final = 20.0
DRAIN_LIMIT_S: Final = 30.0
LOOK_EVERY_S: Final = 0.25
LINE_EVERY_S: Final = 5.0
MAX_NAMED: Final = 20
METERS_LOG: Final = "demo-meters.log"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    duration_s: int
    rate: int
    orgs: int
    meters: int
    seed: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """What there is to judge once the meters have stopped."""

    telephony: Telephony
    pusher: Pusher
    outcome: Outcome
    """Not read yet: in the end it is read in one go, and not piece by piece as for the screen."""
    highest_lag: int
    drained: bool


class StoppedEarlyError(Exception):
    """Somebody pressed Ctrl-C before the first call was pushed."""


def run_demo(plan: Plan, *, clock: Clock = system_clock) -> int:
    """Run the demo and give its exit status. Raises CommandError where it can't run."""
    settings = read_settings()
    _refuse_other_servers(settings)
    out = console()
    with stop_on_signals() as stop, ExitStack() as stack:
        try:
            with _step(out, stop, f"Postgres and Valkey, their data in {_shown(settings.data_dir)}"):
                found = stack.enter_context(located(start=True))
            with _step(out, stop, "the database's schema, and four tiers"):
                prepare_database(found)
                engine = stack.enter_context(engine_for(found.database_url, command="demo"))
                _make_tiers(engine, clock)
            client = stack.enter_context(connect_redis(found.redis_url))
            with _meters(out, stop, client, plan.meters, settings.data_dir / METERS_LOG):
                pushed = _push(out, stop, engine, client, plan, clock)
        except StoppedEarlyError:
            out.print("Stopped before the first call was pushed.")
            return INTERRUPTED
        waiting = 0 if pushed.drained else backlog(client).length
        return _conclude(out, engine, pushed, waiting, interrupted=stop.is_set())


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
    with out.status(f"{what} ...") if _live(out) else nullcontext():
        yield
    _say(out, f"{time.monotonic() - began_s:5.1f} s  {what}")
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
                set_price(connection, wanted, clock())
            elif there != [wanted]:
                raise CommandError(
                    f"Tier {tier} has other prices here than the {format_usd(rate_cents)} USD per minute that the demo"
                    " counts with: set METERING_DATA_DIR to a directory of the demo's own."
                )


@contextmanager
def _meters(out: Console, stop: Event, client: redis.Redis, number: int, log_path: Path) -> Iterator[None]:
    """So many meters, for the time of the block; what an earlier demo left is billed first."""
    roles = meter_roles(number)
    with ExitStack() as stack:
        with _step(out, stop, f"{counted(number, 'meter')}, logging to {_shown(log_path)}"):
            stack.enter_context(Supervisor(roles, say=lambda told: _say(out, told), log_path=log_path))
            awaited = {role.arguments[-1] for role in roles}
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


def _push(out: Console, stop: Event, engine: Engine, client: redis.Redis, plan: Plan, clock: Clock) -> Pushed:
    """Make orgs, push their calls on schedule, and wait until the meters have done with them."""
    with _step(out, stop, f"{counted(plan.orgs, 'new org')}, each with a balance to begin with"):
        telephony, orgs = _make_orgs(engine, plan, clock)
        with engine.connect() as connection:
            newest_rejection_id = last_rejection_id(connection)
    _say(out, f"\nCalls for {plan.duration_s} s, about {plan.rate:,} events/s, seed {plan.seed}.\n")
    pusher = Pusher(client, telephony.pushes())
    watch = Watch(engine, client, pusher, Outcome(telephony.org_ids, newest_rejection_id), orgs)
    pusher.start()
    with _screen(out, plan.duration_s) as show:
        try:
            while pusher.is_alive() and not stop.is_set():
                show(watch.look(draining=False))
                stop.wait(LOOK_EVERY_S)
        finally:
            pusher.stop()
        drained = _drain(out, stop, watch, show)
    return Pushed(
        telephony, pusher, Outcome(telephony.org_ids, newest_rejection_id), watch.highest_lag, drained
    )


def _make_orgs(engine: Engine, plan: Plan, clock: Clock) -> tuple[Telephony, list[DemoOrg]]:
    """Orgs of this run's own, so that nothing that was there before can be taken for its work."""
    now = clock()
    with transaction(engine) as connection:
        names = [f"Demo {number} of {now:%H:%M:%S}" for number in range(1, plan.orgs + 1)]
        org_ids = [create_org(connection, name, now) for name in names]
        telephony = Telephony(org_ids, start=now, seed=plan.seed, duration_s=plan.duration_s, rate=plan.rate)
        balances = telephony.starting_balances_cents()
        for org_id, cents in balances.items():
            adjust(
                connection,
                org_id,
                amount_cents=cents,
                reason="A balance to begin the demo with",
                key="demo-start",
                clock=clock,
            )
    return telephony, [
        DemoOrg(org_id, name, balances[org_id]) for org_id, name in zip(org_ids, names, strict=True)
    ]


@contextmanager
def _screen(out: Console, duration_s: int) -> Iterator[Callable[[Figures], None]]:
    """Where figures are shown: in a live table, or now and then in a line where nobody looks on."""
    if _live(out):
        with Live(console=out, auto_refresh=False) as live:
            yield lambda figures: live.update(live_view(figures, duration_s), refresh=True)
        return
    due_s = LINE_EVERY_S
    shown = last = None

    def show(figures: Figures) -> None:
        nonlocal due_s, shown, last
        last = figures
        if figures.elapsed_s >= due_s:
            _say(out, plain_line(figures))
            shown = figures
            due_s += LINE_EVERY_S

    yield show
    if last is not None and last is not shown:
        _say(out, plain_line(last))


def _drain(out: Console, stop: Event, watch: Watch, show: Callable[[Figures], None]) -> bool:
    """Wait until all that was pushed is billed. False if that takes too long, or somebody presses Ctrl-C (again)."""
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    with stop_on_signals() as enough:
        if stop.is_set():
            _say(out, "Stopping; what was pushed is billed first, unless you press Ctrl-C again.")
        while not (drained := watch.drained()):
            show(watch.look(draining=True))
            if enough.wait(LOOK_EVERY_S):
                stop.set()
                break
            if time.monotonic() > deadline_s:
                break
    show(watch.look(draining=True))
    return drained


def _conclude(out: Console, engine: Engine, pushed: Pushed, waiting: int, *, interrupted: bool) -> int:
    """Compare the ledger with telephony's record, audit it, say what was found, and give the exit status."""
    record, outcome = pushed.pusher.record, pushed.outcome
    with engine.connect() as connection:
        outcome.read(connection, pushed.pusher.stream_ids)
    out.print()
    out.print(
        summary(
            record,
            outcome,
            took_s=pushed.pusher.took_s,
            highest_lag=pushed.highest_lag,
            drained=pushed.drained,
        )
    )
    report = run_audit(engine)
    audited = (
        f"{counted(report.counts['transactions'], 'transaction')} of {counted(report.counts['orgs'], 'org')}"
    )
    _say(out, f"\nAudit of {audited}: {'passed' if report.passed else 'FAILED'}.")
    problems = [
        f"Audit, {violation.invariant}, org {violation.org_id}: {violation.detail}."
        for violation in report.violations
    ]
    if pushed.pusher.error is not None:
        problems.append(f"Telephony could not push on: {quoted(pushed.pusher.error)}.")
    if pushed.drained:
        found = differences(record, outcome)
        _say(
            out,
            f"Ledger and telephony's record {'DIFFER' if found else 'agree, for every org and to the cent'}.",
        )
        problems += found
    else:
        _say(
            out,
            f"Nothing was compared: in the stream {counted(waiting, 'event')} wait still, for `{_program()} up`.",
        )
    for problem in problems[:MAX_NAMED]:
        _say(out, f"  {problem}")
    if len(problems) > MAX_NAMED:
        _say(out, f"  And {len(problems) - MAX_NAMED:,} more.")
    if problems:
        return 1
    if interrupted:
        return INTERRUPTED
    if not pushed.drained:
        return 1
    _suggest(out, pushed.telephony)
    return 0


def _suggest(out: Console, telephony: Telephony) -> None:
    """What to try next."""
    program = _program()
    _say(
        out,
        f"""
To go on, start the servers and a meter again, and try the rest in another terminal:

  {program} up
  {program} org list
  {program} rejected list --reason unknown_tier
  {program} tier set {telephony.missing_tier} 0.20
  {program} rejected replay --reason unknown_tier
  {program} audit""",
    )


def _program() -> str:
    """How to call this program from here."""
    called = Path(sys.argv[0])
    if called.name != "metering":
        return f"{_shown(Path(sys.executable))} -m metering"
    return "metering" if shutil.which("metering") else _shown(called)


def _shown(path: Path) -> str:
    """A path as short as it can be written from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _live(out: Console) -> bool:
    """Whether what was printed can be changed again. (rich's `is_terminal` is also true for a file under FORCE_COLOR.)"""
    return out.file.isatty() and not out.is_dumb_terminal


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=not _live(out))
