"""When a charge may be sent again, and when it counts as not made: to the microsecond."""

from datetime import UTC, datetime, timedelta

import pytest

from metering.rules.lookup_schedule import (
    FIRST_LOOKUP_DELAY,
    LONGEST_LOOKUP_DELAY,
    lookup_delay,
    may_send,
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
    assert surely_absent(SENT, SENT + after) is absent


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
