"""Which faults strike, when, whom and for how long: pure and seeded, the same seed gives the same schedule."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SETTLE_IN_S: Final = 3.0
"""How long nothing strikes at first."""
BURST_GAP_S: Final = 1.2
"""About how far the faults of one burst lie apart."""
PAUSE_S: Final = 10.0
"""About how long a pause follows a burst; less where the run is too short for one fault of each kind."""
BURST_SIZES: Final = (1, 1, 2, 2, 3)
FULL_DECK_S: Final = 180.0
"""In so long a time there is room for one fault of each kind; a shorter run crowds them."""
BACKUP_BEFORE_S: Final = 20.0
"""How much a restore loses: so long before it the backup was taken, or after the clock jumped last."""
JUMPS_APART_S: Final = 60.0
"""Clocks jump by up to half a month. Stripe lists events of 30 days: no more than one jump may lie in what is to be caught up."""


class Fault(StrEnum):
    """Every kind of fault; the value is how people are told of it."""

    KILL = "process killed (SIGKILL)"
    FREEZE = "process frozen (SIGSTOP, SIGCONT)"
    CUT = "connections cut"
    STALL = "connections stalled"
    VALKEY_KILLED = "Valkey killed and started again"
    VALKEY_FULL = "Valkey without memory (OOM)"
    VALKEY_EMPTIED = "Valkey emptied (FLUSHALL)"
    POSTGRES_KILLED = "Postgres killed and recovered"
    POSTGRES_RESTORED = "Postgres restored to an earlier backup"
    DEADLOCK = "a stranger locks accounts in the wrong order"
    LOCKED = "a stranger holds accounts locked"
    SERIALIZATION = "transactions fail to serialize"
    STRIPE_SLOW = "Stripe slow to answer"
    STRIPE_ERRORS = "Stripe answers 500, 429, 409 or not at all"
    WEBHOOKS = "webhooks lost, doubled, reordered"
    CLOCK = "clock jumps towards a month's end and over it"
    CLOCK_ASTRAY = "one process's clock is wrong"
    METADATA_EDITED = "metadata of payments edited at Stripe"
    CUSTOMER_DELETED = "a customer deleted at Stripe"
    PAID_IN_DASHBOARD = "a payment made in Stripe's dashboard"
    SETTLEMENT = "the account settles in another currency"


WEIGHTS: Final = {Fault.KILL: 6, Fault.FREEZE: 4, Fault.CUT: 4, Fault.STALL: 3} | {
    Fault.STRIPE_ERRORS: 2,
    Fault.WEBHOOKS: 2,
}
"""How many of a kind there are in a deck, which holds one of each other kind."""

LASTS_S: Final = {
    Fault.KILL: (0.0, 0.0),
    Fault.FREEZE: (1.0, 14.0),
    Fault.CUT: (0.0, 3.0),
    Fault.STALL: (1.0, 8.0),
    Fault.VALKEY_KILLED: (0.0, 2.0),
    Fault.VALKEY_FULL: (1.0, 4.0),
    Fault.VALKEY_EMPTIED: (0.0, 0.0),
    Fault.POSTGRES_KILLED: (0.0, 2.0),
    Fault.POSTGRES_RESTORED: (0.0, 0.0),
    Fault.DEADLOCK: (2.0, 5.0),
    Fault.LOCKED: (3.0, 8.0),
    Fault.SERIALIZATION: (2.0, 5.0),
    Fault.STRIPE_SLOW: (2.0, 6.0),
    Fault.STRIPE_ERRORS: (3.0, 8.0),
    Fault.WEBHOOKS: (4.0, 10.0),
    Fault.CLOCK: (0.0, 0.0),
    Fault.CLOCK_ASTRAY: (4.0, 20.0),
    Fault.METADATA_EDITED: (0.0, 0.0),
    Fault.CUSTOMER_DELETED: (0.0, 0.0),
    Fault.PAID_IN_DASHBOARD: (0.0, 0.0),
    Fault.SETTLEMENT: (0.0, 0.0),
}
"""The shortest and the longest that a fault of each kind lasts; restarts come on top."""


@dataclass(frozen=True, slots=True)
class ScheduledFault:
    """One fault."""

    at_s: float
    """Since the start of the load."""
    fault: Fault
    target: str
    """A role, a link between two, or empty where the kind says it all."""
    lasts_s: float
    seed: int
    """For what the fault draws itself."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """All strikes of a run, and the backups that its restores go back to, in order of time."""

    strikes: tuple[ScheduledFault, ...]
    backups_at_s: tuple[float, ...]


def make_schedule(
    seed: int, duration_s: float, *, roles: Sequence[str], links: Sequence[str], clocks: Sequence[str]
) -> Schedule:
    """The faults of a run of `duration_s`. One of each kind comes before any comes twice; targets take turns.

    `clocks` are the roles whose clocks may be wrong: Stripe's is not.
    """
    randomness = random.Random(f"chaos {seed}")  # noqa: S311 - to be repeatable, not secret
    targets = {
        Fault.KILL: _in_turn(roles, randomness),
        Fault.FREEZE: _in_turn(roles, randomness),
        Fault.CUT: _in_turn(links, randomness),
        Fault.STALL: _in_turn(links, randomness),
        Fault.CLOCK_ASTRAY: _in_turn(clocks, randomness),
    }
    strikes: list[ScheduledFault] = []
    kinds = _kinds(randomness)
    times = _times(duration_s, randomness)
    held_back: list[Fault] = []
    for at_s in times:
        fault = held_back.pop(0) if held_back and _fits(held_back[0], at_s, strikes) else next(kinds)
        while not _fits(fault, at_s, strikes):
            held_back.append(fault)
            fault = next(kinds)
        target = next(targets[fault]) if fault in targets else ""
        lasts_s = round(randomness.uniform(*LASTS_S[fault]), 2)
        strikes.append(ScheduledFault(round(at_s, 2), fault, target, lasts_s, randomness.randrange(2**31)))
    return Schedule(tuple(strikes), tuple(_backups(strikes)))


def _times(duration_s: float, randomness: random.Random) -> Iterator[float]:
    """When faults strike: in bursts with pauses, in which the system may come right."""
    crowding = min(1.0, (duration_s - SETTLE_IN_S) / FULL_DECK_S)
    at_s = SETTLE_IN_S
    while at_s < duration_s:
        for _ in range(randomness.choice(BURST_SIZES)):
            if at_s < duration_s:
                yield at_s
            at_s += randomness.uniform(0.2, 2 * BURST_GAP_S) * crowding
        at_s += randomness.uniform(0.5, 1.5) * PAUSE_S * crowding


def _kinds(randomness: random.Random) -> Iterator[Fault]:
    """Decks of faults, shuffled; the first of them has one of each kind."""
    deck = list(Fault)
    randomness.shuffle(deck)
    yield from deck
    while True:
        deck = [fault for fault in Fault for _ in range(WEIGHTS.get(fault, 1))]
        randomness.shuffle(deck)
        yield from deck


def _in_turn(names: Sequence[str], randomness: random.Random) -> Iterator[str]:
    shuffled = list(names)
    randomness.shuffle(shuffled)
    return itertools.cycle(shuffled)


def _fits(fault: Fault, at_s: float, before: Sequence[ScheduledFault]) -> bool:
    """Whether a fault may strike then: not while it would undo what is to be shown."""
    jumps = [strike.at_s for strike in before if strike.fault is Fault.CLOCK]
    return fault is not Fault.CLOCK or not jumps or at_s - jumps[-1] >= JUMPS_APART_S


def _backups(strikes: Sequence[ScheduledFault]) -> Iterator[float]:
    jumped_at_s = 0.0
    for strike in strikes:
        if strike.fault is Fault.CLOCK:
            jumped_at_s = strike.at_s
        elif strike.fault is Fault.POSTGRES_RESTORED:
            yield round(max(strike.at_s - BACKUP_BEFORE_S, min(jumped_at_s + 1.0, strike.at_s), 0.0), 2)
