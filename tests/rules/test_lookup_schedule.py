"""When a charge may be sent again, and when it counts as not made: to the microsecond."""

from datetime import UTC, datetime, timedelta

import pytest

from metering.rules.lookup_schedule import (
    FIRST_LOOKUP_DELAY,
    LONGEST_LOOKUP_DELAY,
    lookup_delay,
    may_send,
    sent_since,
    surely_absent,
)

SENT = datetime(2026, 4, 20, 12, tzinfo=UTC)
BIT = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("after", "may"),
    [(timedelta(hours=23) - BIT, True), (timedelta(hours=23), False), (timedelta(days=9), False)],
)
def test_a_key_is_repeated_for_less_than_23_hours(after: timedelta, may: bool) -> None:
    assert may_send(SENT, SENT + after) is may
    assert may_send(None, SENT + after)


@pytest.mark.parametrize(
    ("after", "absent"), [(timedelta(hours=25) - BIT, False), (timedelta(hours=25), True)]
)
def test_a_charge_that_is_not_there_was_not_made_from_25_hours_on(after: timedelta, absent: bool) -> None:
    now = SENT + after
    assert surely_absent(SENT, now, now) is absent


@pytest.mark.parametrize(
    ("ours", "stripes"), [(26, 0), (0, 26), (26, 24.9), (24.9, 26), (28, 26), (26, None)]
)
def test_no_clock_declares_a_charge_absent_alone(ours: float, stripes: float | None) -> None:
    """Postgres's was ahead, or Stripe's, or Stripe didn't say what time it was."""
    told_at = None if stripes is None else SENT + timedelta(hours=stripes)
    assert not surely_absent(SENT, SENT + timedelta(hours=ours), told_at)


def test_what_was_sent_in_a_time_to_come_is_not_sent_again_and_is_looked_for_long_before() -> None:
    now = SENT - timedelta(days=30)
    assert not may_send(SENT, now)
    assert sent_since(SENT, now) < now - timedelta(days=30)
    assert sent_since(SENT, SENT) == SENT
    assert sent_since(SENT, SENT + timedelta(hours=3)) == SENT


def test_looks_come_less_and_less_often() -> None:
    waits = [lookup_delay(tries) for tries in range(20)]
    assert waits[:4] == [
        FIRST_LOOKUP_DELAY,
        FIRST_LOOKUP_DELAY,
        2 * FIRST_LOOKUP_DELAY,
        4 * FIRST_LOOKUP_DELAY,
    ]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_LOOKUP_DELAY
