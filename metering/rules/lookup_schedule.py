"""When an attempt whose end isn't known is looked at again, and how long its key may be repeated.

See docs/reference/auto-reload.md#unknown-outcomes.
"""

from datetime import datetime, timedelta
from typing import Final

KEY_MEMORY: Final = timedelta(hours=24)
"""How long Stripe keeps an idempotency key, at least."""
SEND_WINDOW: Final = timedelta(hours=23)
"""How long after it was first sent a charge may be repeated: Stripe forgets keys after 24 h, and would charge again."""
ABSENT_AFTER: Final = timedelta(hours=25)
"""How long after it was last sent a charge that Stripe doesn't list has not been made."""
LONGEST_WRONG: Final = timedelta(days=366)
"""How far back a charge is looked for of which it isn't known when it was sent."""
TOP_UP_WINDOW: Final = timedelta(hours=24)
"""How long a customer may take to finish a top-up, and how long an identical request joins one that nobody was told of."""
CLOCK_SKEW: Final = timedelta(hours=1)
"""How far Stripe's clock and ours may be apart when a charge is looked for by its time."""
WORK_LEASE: Final = timedelta(seconds=60)
"""How long whoever works on an attempt has it for himself: longer than a charge and its repeat are waited for.

One that then looks for a lost charge at a silent Stripe may take longer; two work on it then, with the same key.
"""

LONGEST_LEASE: Final = 2 * WORK_LEASE
"""No lease ends later than this from now on, however much Postgres's clock was put back."""
CLOCKS_APART: Final = timedelta(hours=1)
"""How far Stripe's clock and Postgres's may be apart before nothing is declared absent: one of them is wrong."""

FIRST_LOOKUP_DELAY: Final = timedelta(seconds=10)
LONGEST_LOOKUP_DELAY: Final = timedelta(hours=1)
LATEST_LOOK: Final = 2 * LONGEST_LOOKUP_DELAY
"""No look is put off for longer."""
_DOUBLINGS: Final = 9
"""After so many the wait has reached the longest."""


def lookup_delay(tries: int) -> timedelta:
    """How long to wait after having looked in vain `tries` times: doubling from ten seconds to an hour."""
    doublings = min(max(tries - 1, 0), _DOUBLINGS)
    return min(FIRST_LOOKUP_DELAY * (1 << doublings), LONGEST_LOOKUP_DELAY)


def may_send(first_sent_at: datetime | None, now: datetime) -> bool:
    """Whether the same key may go to Stripe (again), by Postgres's clock.

    Not where it was first sent in a time to come: nobody knows when that was.
    """
    return first_sent_at is None or -WORK_LEASE <= now - first_sent_at < SEND_WINDOW


def sent_since(first_sent_at: datetime, last_sent_at: datetime) -> datetime:
    """From when on a charge may have been made, by Postgres's clock.

    One that was first sent after it was last sent was so by a clock that was wrong (`take_next_step` sees to the second of them).
    """
    return first_sent_at if first_sent_at <= last_sent_at else last_sent_at - LONGEST_WRONG


def surely_absent(last_sent_at: datetime, now: datetime, told_at: datetime | None) -> bool:
    """Whether "not there", which Stripe told at `told_at` by its own clock, counts by now; `now` is Postgres's clock.

    Never by one clock alone: a charge that is declared absent, and was made, is made twice.
    """
    if told_at is None or abs(told_at - now) > CLOCKS_APART:
        return False
    return min(told_at, now) - last_sent_at >= ABSENT_AFTER
