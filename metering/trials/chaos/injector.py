"""Carries out a schedule of faults: each begins in time, whatever has become of the others, and is healed in time."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import redis

from metering.trials.chaos.calendar import Calendar
from metering.trials.chaos.dashboard import Dashboard
from metering.trials.chaos.foreign_sessions import ForeignSessions
from metering.trials.chaos.links import Links
from metering.trials.chaos.producer import Producer
from metering.trials.chaos.schedule import Fault, Schedule, ScheduledFault
from metering.trials.chaos.stores import Stores
from metering.trials.chaos.stripe_faults import StripeFaults

TO_STRIPE: Final = "> stripe"
"""How the links end on which Stripe is asked."""
UNDER_WAY_S: Final = 1.0
"""So long what has reached Stripe may take to come to its end before the clock is set."""
THREADS: Final = 16
TRIES_S: Final = 30.0
"""How long what can't be done to a server, because it is away for another fault, is tried again."""
UNSURE_S: Final = 5.0
"""With `everysec`, a Valkey that is killed may forget what it took in the last seconds: producers send that much again."""
TINY_BYTES: Final = 1
"""A limit on memory that leaves room for nothing."""


ASTRAY: Final = (
    *(timedelta(seconds=70), timedelta(hours=26), timedelta(days=40)),
    *(timedelta(seconds=-70), timedelta(hours=-1), timedelta(days=-40)),
)
"""How far a single process's clock is ahead."""


class Roles(Protocol):
    """The processes under attack; somebody starts those again that die."""

    def pids(self) -> Mapping[str, int]:
        """Those that run at the moment, by role."""
        ...


@dataclass(slots=True)
class InjectedFault:
    """One strike as it was carried out; times on the monotonic clock."""

    strike: ScheduledFault
    began_s: float
    healed_s: float | None = None
    """When it was over, and what it lost was sent again."""
    failed: bool = False
    """Whether it could not be carried out."""


@dataclass(frozen=True, slots=True)
class Targets:
    """All that faults are done to."""

    roles: Roles
    links: Links
    stores: Stores
    foreign_sessions: ForeignSessions
    stripe: StripeFaults
    dashboard: Dashboard
    calendar: Calendar
    valkey: redis.Redis
    producers: Sequence[Producer]


class Injector(threading.Thread):
    """Strikes as the schedule says. `healed` is told of each strike that is over, `say` of one that could not be carried out."""

    def __init__(
        self,
        schedule: Schedule,
        victims: Targets,
        healed: Callable[[InjectedFault], None],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name="injector", daemon=True)
        self.injected: list[InjectedFault] = []
        self.errors: list[str] = []
        """What could not be done, a sentence each: a fault that wasn't is no proof."""
        self._schedule = schedule
        self._to = victims
        self._healed = healed
        self._say = say
        self._stopped = threading.Event()
        self._ways: Mapping[Fault, Callable[[ScheduledFault], None]] = {
            Fault.KILL: self._kill,
            Fault.FREEZE: self._freeze,
            Fault.CUT: self._cut,
            Fault.STALL: self._stall,
            Fault.VALKEY_KILLED: self._kill_valkey,
            Fault.VALKEY_FULL: self._fill_valkey,
            Fault.VALKEY_EMPTIED: self._empty_valkey,
            Fault.POSTGRES_KILLED: self._kill_postgres,
            Fault.POSTGRES_RESTORED: self._restore_postgres,
            Fault.DEADLOCK: self._deadlock,
            Fault.LOCKED: self._hold_locked,
            Fault.SERIALIZATION: self._fail_to_serialize,
            Fault.STRIPE_SLOW: self._slow_stripe,
            Fault.STRIPE_ERRORS: self._let_stripe_err,
            Fault.WEBHOOKS: self._lose_webhooks,
            Fault.CLOCK: lambda _: self._jump(),
            Fault.CLOCK_ASTRAY: self._set_astray,
            Fault.METADATA_EDITED: lambda strike: self._to.dashboard.edit_metadata(strike.seed),
            Fault.CUSTOMER_DELETED: lambda strike: self._to.dashboard.delete_customer(strike.seed),
            Fault.PAID_IN_DASHBOARD: lambda strike: self._to.dashboard.pay(strike.seed),
            Fault.SETTLEMENT: lambda strike: self._to.dashboard.settle(strike.seed),
        }

    def stop(self) -> None:
        """Inject no more faults, and return when all that was begun is over and healed."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        self._back_up()  # before all: the first restore may come sooner than a busy machine has taken the one meant for it
        began_s = time.monotonic()
        plan: list[tuple[float, ScheduledFault | None]] = [
            (strike.at_s, strike) for strike in self._schedule.strikes
        ]
        plan += [(at_s, None) for at_s in self._schedule.backups_at_s]
        plan.sort(key=lambda each: (each[0], each[1] is not None))
        futures: list[Future[None]] = []
        with ThreadPoolExecutor(THREADS, thread_name_prefix="fault") as threads:
            for at_s, strike in plan:
                if self._stopped.wait(max(began_s + at_s - time.monotonic(), 0)):
                    break
                futures.append(
                    threads.submit(self._back_up) if strike is None else threads.submit(self._strike, strike)
                )
        for future in futures:
            future.result()
        try:
            self._heal_everything()
        except Exception as error:  # noqa: BLE001 - told at the end
            self._fail("the healing", error)

    def _heal_everything(self) -> None:
        """Leave nothing wrong, also where a fault's own healing failed or a restore has brought something back."""
        self._to.links.heal_all()
        for pid in self._to.roles.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        _insist(lambda: self._to.valkey.config_set("maxmemory", 0))
        _insist(self._to.foreign_sessions.stop_failing)
        self._to.stripe.clear()
        self._to.calendar.set_right()
        self._to.dashboard.book_all()

    def _strike(self, strike: ScheduledFault) -> None:
        struck = InjectedFault(strike, time.monotonic())
        self.injected.append(struck)
        try:
            self._ways[strike.fault](strike)
        except Exception as error:  # noqa: BLE001 - told at the end
            struck.failed = True
            self._fail(f"{strike.fault.name.lower()} {strike.target}".strip(), error)
        struck.healed_s = time.monotonic()
        self._healed(struck)

    def _back_up(self) -> None:
        try:
            _insist(self._to.stores.back_up)
        except Exception as error:  # noqa: BLE001 - told at the end
            self._fail("a backup", error)

    def _fail(self, what: str, error: Exception) -> None:
        problem = f"The injector could not do {what}: {type(error).__name__}: {error}."
        self.errors.append(problem)
        self._say(problem)

    def _kill(self, strike: ScheduledFault) -> None:
        self._send(strike.target, signal.SIGKILL)

    def _freeze(self, strike: ScheduledFault) -> None:
        pid = self._send(strike.target, signal.SIGSTOP)
        time.sleep(strike.lasts_s)
        with suppress(ProcessLookupError):  # killed meanwhile
            os.kill(pid, signal.SIGCONT)

    def _send(self, role: str, number: signal.Signals) -> int:
        """Send a signal to a role; where it was killed just before, to the next process that runs it."""
        deadline_s = time.monotonic() + TRIES_S
        while True:
            pid = self._to.roles.pids().get(role)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    return pid
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{role} doesn't run")
            time.sleep(0.05)

    def _cut(self, strike: ScheduledFault) -> None:
        self._to.links.cut(strike.target)
        time.sleep(strike.lasts_s)
        self._to.links.heal(strike.target)

    def _stall(self, strike: ScheduledFault) -> None:
        self._to.links.stall(strike.target)
        time.sleep(strike.lasts_s)
        self._to.links.heal(strike.target)

    def _kill_valkey(self, strike: ScheduledFault) -> None:
        self._to.stores.kill_valkey(strike.lasts_s)
        for producer in self._to.producers:
            producer.send_again(time.monotonic() - strike.lasts_s - UNSURE_S)

    def _fill_valkey(self, strike: ScheduledFault) -> None:
        _insist(lambda: self._to.valkey.config_set("maxmemory", TINY_BYTES))
        time.sleep(strike.lasts_s)
        _insist(lambda: self._to.valkey.config_set("maxmemory", 0))

    def _empty_valkey(self, strike: ScheduledFault) -> None:
        del strike
        _insist(self._to.valkey.flushall)
        self._send_all_again()

    def _kill_postgres(self, strike: ScheduledFault) -> None:
        self._to.stores.kill_postgres(strike.lasts_s)

    def _restore_postgres(self, strike: ScheduledFault) -> None:
        del strike
        self._to.stores.restore()
        _insist(self._to.foreign_sessions.stop_failing)
        self._send_all_again()
        self._to.dashboard.book_all()  # what operators have booked since the backup

    def _send_all_again(self) -> None:
        for producer in self._to.producers:
            producer.send_again()

    def _deadlock(self, strike: ScheduledFault) -> None:
        _insist(lambda: self._to.foreign_sessions.deadlock(strike.lasts_s, strike.seed))

    def _hold_locked(self, strike: ScheduledFault) -> None:
        _insist(lambda: self._to.foreign_sessions.hold(strike.lasts_s, strike.seed))

    def _fail_to_serialize(self, strike: ScheduledFault) -> None:
        _insist(self._to.foreign_sessions.begin_failing)
        time.sleep(strike.lasts_s)
        _insist(self._to.foreign_sessions.stop_failing)

    def _slow_stripe(self, strike: ScheduledFault) -> None:
        self._to.stripe.be_slow(on=True)
        time.sleep(strike.lasts_s)
        self._to.stripe.be_slow(on=False)

    def _let_stripe_err(self, strike: ScheduledFault) -> None:
        self._to.stripe.err(strike.seed, on=True)
        time.sleep(strike.lasts_s)
        self._to.stripe.err(strike.seed, on=False)

    def _lose_webhooks(self, strike: ScheduledFault) -> None:
        self._to.stripe.lose_webhooks(strike.seed, on=True)
        time.sleep(strike.lasts_s)
        self._to.stripe.lose_webhooks(strike.seed, on=False)

    def _set_astray(self, strike: ScheduledFault) -> None:
        by = ASTRAY[strike.seed % len(ASTRAY)]
        self._to.calendar.set_astray(strike.target, by)
        time.sleep(strike.lasts_s)
        self._to.calendar.set_astray(strike.target, timedelta())

    def _jump(self) -> None:
        """No request is under way for days, so none to Stripe is while the clock is set: its key would be forgotten."""
        to_stripe = [name for name in self._to.links.names if name.endswith(TO_STRIPE)]
        for name in to_stripe:
            self._to.links.cut(name)
        time.sleep(UNDER_WAY_S)
        self._to.calendar.jump()
        for name in to_stripe:
            self._to.links.heal(name)


def _insist(work: Callable[[], object]) -> None:
    """Do it, and try again for a while where the server is away for another fault."""
    deadline_s = time.monotonic() + TRIES_S
    for _ in itertools.count():
        try:
            work()
        except Exception:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)
        else:
            return
