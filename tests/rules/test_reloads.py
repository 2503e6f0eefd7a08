"""When an org is reloaded, each edge on both sides, and what a card that fails leads to.

See docs/reference/auto-reload.md#when-a-reload-is-due.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.rules.reloads import (
    AUTHENTICATION_REQUIRED,
    CLOCK_MARGIN,
    DISPUTED,
    HARD_DECLINES,
    REFUNDED,
    Due,
    LiftsWith,
    Pause,
    RefusalNote,
    ReloadAccount,
    Skipped,
    SkipReason,
    lifted_by_change,
    may_lift_at,
    next_month,
    paced_until,
    pause_after_decline,
    pause_after_lost_money,
    reload_below_cents,
    reload_due,
    same_month,
    stronger_pause,
    was_declined,
    with_card,
)

NOW = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
HOUR = timedelta(hours=1)
CARD, OTHER_CARD = "fp_one", "fp_two"
SOFT, HARD = "insufficient_funds", "stolen_card"


def account(**fields: Any) -> ReloadAccount:
    """An org that is to be reloaded, unless `fields` say otherwise: at 9.99 with a minimum of 10.00, by 50.00."""
    usual = ReloadAccount(
        balance_cents=999,
        enabled=True,
        minimum_cents=1_000,
        amount_cents=5_000,
        monthly_limit_cents=None,
        has_payment_method=True,
        attempt_open=False,
        pause=None,
    )
    return replace(usual, **fields)


def skipped(reason: SkipReason) -> Skipped:
    return Skipped(reason)


DUE = Due(5_000)
TIMED = Pause(SOFT, LiftsWith.TIME, NOW - HOUR, until=NOW, card=CARD)
PAUSES = [
    TIMED,
    Pause(SOFT, LiftsWith.CHANGE, NOW - HOUR, card=CARD),
    Pause(HARD, LiftsWith.CARD, NOW - HOUR, card=CARD),
]


@pytest.mark.parametrize(
    ("minimum_cents", "balance_cents", "expected"),
    [
        (
            1_000,
            1_000,
            skipped(SkipReason.ABOVE_MINIMUM),
        ),  # exactly at the minimum: "once balance drops below"
        (1_000, 1_001, skipped(SkipReason.ABOVE_MINIMUM)),
        (1_000, 999, DUE),
        (1_000, 0, DUE),
        (1_000, -700, DUE),
        (1, 1, skipped(SkipReason.ABOVE_MINIMUM)),
        (1, 0, DUE),
        (0, 1, skipped(SkipReason.ABOVE_MINIMUM)),
        (0, 0, DUE),  # not below 0, but exhausted: it must not be stranded
        (0, -1, DUE),
    ],
)
def test_below_the_minimum_or_exhausted(
    minimum_cents: int, balance_cents: int, expected: Due | Skipped
) -> None:
    asked = account(minimum_cents=minimum_cents, balance_cents=balance_cents)
    assert reload_due(asked, 0, NOW) == expected
    assert (balance_cents < reload_below_cents(minimum_cents)) == (expected == DUE)


@pytest.mark.parametrize(
    ("limit_cents", "committed_cents", "expected"),
    [
        (None, 0, DUE),
        (None, 10**15, DUE),
        (5_000, 0, DUE),  # fits to the cent
        (4_999, 0, skipped(SkipReason.MONTHLY_LIMIT)),  # one cent over: skipped whole, never a part
        (15_000, 10_000, DUE),
        (14_999, 10_000, skipped(SkipReason.MONTHLY_LIMIT)),
        (15_000, 10_001, skipped(SkipReason.MONTHLY_LIMIT)),
        (0, 0, skipped(SkipReason.MONTHLY_LIMIT)),
        (10_000, 15_000, skipped(SkipReason.MONTHLY_LIMIT)),  # lowered below what is spent
        (14_999, 15_000, skipped(SkipReason.MONTHLY_LIMIT)),
    ],
)
def test_it_fits_the_months_limit_whole_or_is_skipped(
    limit_cents: int | None, committed_cents: int, expected: Due | Skipped
) -> None:
    said = reload_due(account(monthly_limit_cents=limit_cents), committed_cents, NOW)
    assert said == expected or (isinstance(said, Skipped) and skipped(said.reason) == expected)


@pytest.mark.parametrize(
    ("now", "turn"),
    [
        (datetime(2026, 4, 30, 23, 59, 59, 999_000, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)),
        (datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)),
        (datetime(2026, 5, 1, 0, 0, 5, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, 12, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_what_does_not_fit_is_looked_at_again_when_the_month_turns(now: datetime, turn: datetime) -> None:
    assert reload_due(account(monthly_limit_cents=0), 0, now) == Skipped(
        SkipReason.MONTHLY_LIMIT, until=turn + CLOCK_MARGIN
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"enabled": False}, SkipReason.DISABLED),
        ({"balance_cents": 1_000}, SkipReason.ABOVE_MINIMUM),
        ({"has_payment_method": False}, SkipReason.NO_PAYMENT_METHOD),
        ({"attempt_open": True}, SkipReason.ATTEMPT_OPEN),
        *(({"pause": pause}, SkipReason.PAUSED) for pause in PAUSES[1:]),
        ({"monthly_limit_cents": 4_999}, SkipReason.MONTHLY_LIMIT),
    ],
)
def test_each_hindrance_alone_keeps_it_from_being_due(fields: dict[str, Any], reason: SkipReason) -> None:
    assert reload_due(account(), 0, NOW) == DUE
    said = reload_due(account(**fields), 0, NOW)
    assert isinstance(said, Skipped)
    assert said.reason is reason
    assert (said.until is None) == (reason is not SkipReason.MONTHLY_LIMIT)


@pytest.mark.parametrize(
    ("balance_cents", "below_cents", "left", "expected"),
    [
        (1_007, 1_008, MILLISECOND, DUE),
        (1_008, 1_008, MILLISECOND, skipped(SkipReason.ABOVE_MINIMUM)),  # it covers one first increment
        (1_007, 1_008, timedelta(0), skipped(SkipReason.ABOVE_MINIMUM)),  # it counts no longer
        (999, 0, timedelta(0), DUE),  # below the minimum anyway
    ],
)
def test_a_refused_call_asks_for_a_reload_while_the_balance_covers_no_first_increment(
    balance_cents: int, below_cents: int, left: timedelta, expected: Due | Skipped
) -> None:
    asked = account(balance_cents=balance_cents, refused=RefusalNote(below_cents, NOW + left))
    assert reload_due(asked, 0, NOW) == expected


def test_what_waits_only_because_a_call_was_refused_waits_no_longer_than_that_counts() -> None:
    note = RefusalNote(2_000, NOW + timedelta(minutes=10))
    paused = {"pause": Pause(SOFT, LiftsWith.TIME, NOW - HOUR, until=NOW + HOUR, card=CARD), "refused": note}
    assert reload_due(account(balance_cents=1_500, **paused), 0, NOW) == Skipped(
        SkipReason.PAUSED, note.until
    )
    assert reload_due(account(**paused), 0, NOW) == Skipped(SkipReason.PAUSED, NOW + HOUR)
    no_card = account(balance_cents=1_500, has_payment_method=False, refused=note)
    assert reload_due(no_card, 0, NOW) == Skipped(SkipReason.NO_PAYMENT_METHOD, note.until)
    assert reload_due(replace(no_card, enabled=False), 0, NOW) == skipped(SkipReason.DISABLED)


def test_a_pause_that_time_lifts_ends_at_its_end() -> None:
    assert reload_due(account(pause=TIMED), 0, NOW - MILLISECOND) == Skipped(SkipReason.PAUSED, until=NOW)
    assert reload_due(account(pause=TIMED), 0, NOW) == DUE


@pytest.mark.parametrize("pause", PAUSES[1:])
def test_other_pauses_never_end_by_themselves(pause: Pause) -> None:
    assert reload_due(account(pause=pause), 0, NOW + timedelta(days=365)) == Skipped(SkipReason.PAUSED)


def test_soft_declines_pause_an_hour_then_a_day_then_until_a_change() -> None:
    pauses = [pause_after_decline(SOFT, before, CARD, NOW) for before in range(4)]
    assert pauses == [
        Pause(SOFT, LiftsWith.TIME, NOW, NOW + HOUR, CARD),
        Pause(SOFT, LiftsWith.TIME, NOW, NOW + 24 * HOUR, CARD),
        Pause(SOFT, LiftsWith.CHANGE, NOW, None, CARD),
        Pause(SOFT, LiftsWith.CHANGE, NOW, None, CARD),
    ]


def test_a_dead_card_is_tried_three_times_in_a_year() -> None:
    tried, pause = 0, None
    for hour in range(366 * 24):
        now = NOW + hour * HOUR
        if reload_due(account(pause=pause), 0, now) == DUE:
            pause = pause_after_decline("generic_decline", tried, CARD, now)
            tried += 1
    assert tried == 3


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("code", ["stolen_card", "lost_card", "expired_card", "pickup_card", "fraudulent"])
def test_a_hard_decline_pauses_at_once_until_there_is_another_card(code: str, before: int) -> None:
    pause = pause_after_decline(code, before, CARD, NOW)
    assert pause == Pause(code, LiftsWith.CARD, NOW, None, CARD)
    assert not lifted_by_change(pause, card=CARD, setting_changed=True)
    assert lifted_by_change(pause, card=OTHER_CARD, setting_changed=False)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_authentication_required_pauses_at_once_until_a_change(before: int) -> None:
    assert pause_after_decline(AUTHENTICATION_REQUIRED, before, CARD, NOW) == Pause(
        AUTHENTICATION_REQUIRED, LiftsWith.CHANGE, NOW, None, CARD
    )


@pytest.mark.parametrize(
    "code",
    [
        *(
            "generic_decline",
            "insufficient_funds",
            "card_velocity_exceeded",
            "do_not_honor",
            "try_again_later",
        ),
        *("processing_error", "issuer_not_available", "reenter_transaction", "card_declined", "no_such_code"),
    ],
)
def test_what_may_pass_by_itself_is_a_soft_decline(code: str) -> None:
    assert code not in HARD_DECLINES
    assert pause_after_decline(code, 0, CARD, NOW).lifts_with is LiftsWith.TIME


@pytest.mark.parametrize(
    ("card", "setting_changed", "lifted"),
    [
        (CARD, False, (False, False, False)),  # nothing really changed
        (None, False, (False, False, False)),  # taken away
        (None, True, (True, True, False)),
        (CARD, True, (True, True, False)),
        (OTHER_CARD, False, (True, True, True)),
        (OTHER_CARD, True, (True, True, True)),
    ],
)
def test_what_a_change_lifts(
    card: str | None, setting_changed: bool, lifted: tuple[bool, bool, bool]
) -> None:
    found = tuple(lifted_by_change(pause, card=card, setting_changed=setting_changed) for pause in PAUSES)
    assert found == lifted


def test_a_card_taken_away_and_saved_again_is_no_change() -> None:
    hard = PAUSES[2]
    assert not lifted_by_change(hard, card=None, setting_changed=False)
    assert not lifted_by_change(hard, card=CARD, setting_changed=False)


@pytest.mark.parametrize("code", [REFUNDED, DISPUTED])
def test_a_refund_loosens_no_stronger_pause(code: str) -> None:
    new = Pause(code, LiftsWith.CHANGE, NOW, card=CARD)
    timed, until_change, until_card = (replace(pause, since=NOW - 2 * HOUR) for pause in PAUSES)
    assert stronger_pause(None, new, NOW) == new
    assert stronger_pause(replace(timed, until=NOW + HOUR), new, NOW) == new
    assert stronger_pause(until_change, new, NOW) == new
    assert stronger_pause(until_card, new, NOW) == until_card


def test_a_pause_that_has_run_out_gives_way_to_a_new_one() -> None:
    """A success resets the count, a change lifts what was there: so a pause of the past holds nothing up."""
    new = Pause(SOFT, LiftsWith.TIME, NOW, NOW + HOUR, CARD)
    assert stronger_pause(TIMED, new, NOW) == new
    longer = replace(TIMED, until=NOW + 24 * HOUR)
    assert stronger_pause(longer, new, NOW) == longer  # a decline does not shorten a refund's day
    assert (
        stronger_pause(replace(TIMED, until=NOW + HOUR), new, NOW) == new
    )  # of the same strength: the newer


@pytest.mark.parametrize(("code", "until"), [(REFUNDED, NOW + 24 * HOUR), (DISPUTED, None)])
def test_a_refund_pauses_for_a_day_and_a_dispute_until_a_change(code: str, until: datetime | None) -> None:
    pause = pause_after_lost_money(code, CARD, NOW)
    assert (pause.code, pause.until, pause.card) == (code, until, CARD)
    assert lifted_by_change(pause, card=CARD, setting_changed=True)


def test_the_pace_lets_five_through_in_any_ten_minutes() -> None:
    sends = [NOW - minutes * timedelta(minutes=1) for minutes in (9, 3, 0, 8, 11)]
    assert paced_until(sends[:4]) is None
    oldest_of_five = NOW - timedelta(minutes=11)
    assert paced_until(sends) == oldest_of_five + timedelta(minutes=10)
    assert reload_due(account(paced_until=paced_until(sends)), 0, NOW) == DUE
    sends.append(NOW)  # now the oldest of the newest five is of nine minutes ago
    wait_until = NOW + timedelta(minutes=1)
    paced = account(paced_until=paced_until(sends))
    assert reload_due(paced, 0, NOW) == Skipped(SkipReason.PACE, until=wait_until)
    assert reload_due(paced, 0, wait_until - MILLISECOND) == Skipped(SkipReason.PACE, until=wait_until)
    assert reload_due(paced, 0, wait_until) == DUE


def test_settings_lift_three_times_in_any_24_hours() -> None:
    lifts = [NOW - hours * HOUR for hours in (23, 1, 30)]
    assert may_lift_at([], NOW) == may_lift_at(lifts[:2], NOW) == may_lift_at(lifts, NOW) == NOW
    assert may_lift_at([*lifts, NOW], NOW) == NOW + HOUR
    assert may_lift_at([*lifts, NOW], NOW + HOUR) == NOW + HOUR


def test_declined_cards_are_remembered_by_number_unless_the_expiry_failed() -> None:
    cards = [f"fp_{number} 1/2030" for number in range(12)]
    remembered: list[str] = []
    for card in [*cards, cards[-3]]:
        remembered = with_card(remembered, card)
    assert remembered == [*cards[2:9], cards[10], cards[11], cards[9]]
    soft, expired = Pause(SOFT, LiftsWith.CHANGE, NOW), Pause("expired_card", LiftsWith.CARD, NOW)
    assert was_declined("fp_5 2/2033", soft, remembered)
    assert not was_declined("fp_5 2/2033", expired, remembered)
    assert was_declined("fp_5 1/2030", expired, remembered)
    assert not was_declined("fp_77 1/2030", soft, remembered)


CENTS = st.integers(min_value=-(10**12), max_value=10**12)
POSITIVE_CENTS = st.integers(min_value=0, max_value=10**12)
TIMES = st.integers(min_value=0, max_value=4 * 366 * 86_400_000).map(lambda ms: NOW + ms * MILLISECOND)


@st.composite
def pauses(draw: st.DrawFn) -> Pause:
    since = draw(TIMES)
    code, card = (
        draw(st.sampled_from([SOFT, HARD, REFUNDED, DISPUTED])),
        draw(st.sampled_from([CARD, OTHER_CARD])),
    )
    lifts_with = draw(st.sampled_from(LiftsWith))
    until = since + draw(st.sampled_from([HOUR, 24 * HOUR])) if lifts_with is LiftsWith.TIME else None
    return Pause(code, lifts_with, since, until, card)


ACCOUNTS = st.builds(
    ReloadAccount,
    balance_cents=CENTS | st.integers(min_value=-2, max_value=2),
    enabled=st.booleans() | st.just(True),
    minimum_cents=POSITIVE_CENTS | st.just(0),
    amount_cents=st.integers(min_value=50, max_value=99_999_999),
    monthly_limit_cents=st.none() | POSITIVE_CENTS,
    has_payment_method=st.booleans() | st.just(True),
    attempt_open=st.booleans() | st.just(False),
    pause=st.none() | pauses(),
    refused=st.none() | st.builds(RefusalNote, st.integers(0, 100) | POSITIVE_CENTS, TIMES),
)


@given(ACCOUNTS, POSITIVE_CENTS, TIMES)
def test_what_is_due_never_breaks_a_promise(
    asked: ReloadAccount, committed_cents: int, now: datetime
) -> None:
    decision = reload_due(asked, committed_cents, now)
    allowed = (
        asked.enabled
        and asked.has_payment_method
        and not asked.attempt_open
        and (asked.pause is None or not asked.pause.holds(now))
        and (
            asked.balance_cents < asked.minimum_cents
            or asked.balance_cents <= 0
            or (
                asked.refused is not None
                and now < asked.refused.until
                and asked.balance_cents < asked.refused.below_cents
            )
        )
        and (
            asked.monthly_limit_cents is None
            or committed_cents + asked.amount_cents <= asked.monthly_limit_cents
        )
    )
    assert (decision == Due(asked.amount_cents)) == allowed
    assert isinstance(decision, Skipped) != allowed
    if isinstance(decision, Skipped) and decision.until is not None:
        assert decision.until > now


@given(st.lists(pauses(), min_size=1, max_size=6), TIMES)
def test_a_pause_in_force_is_only_loosened_by_a_change(new: list[Pause], now: datetime) -> None:
    strength = {LiftsWith.TIME: 0, LiftsWith.CHANGE: 1, LiftsWith.CARD: 2}
    held = None
    for each in new:
        before, held = held, stronger_pause(held, each, now)
        assert held in (before, each)
        if before is not None and before.holds(now):
            assert strength[held.lifts_with] >= strength[before.lifts_with]


@pytest.mark.usefixtures("far_from_utc")
def test_a_month_is_utcs_whatever_the_zone_of_the_machine() -> None:
    """In New York it is still April then."""
    first_of_may = datetime(2026, 5, 1, 1, tzinfo=UTC)
    assert next_month(first_of_may) == datetime(2026, 6, 1, tzinfo=UTC)
    assert next_month(first_of_may - timedelta(hours=2)) == datetime(2026, 5, 1, tzinfo=UTC)
    assert same_month(first_of_may, datetime(2026, 5, 31, 23, 59, tzinfo=UTC))
    assert not same_month(first_of_may, first_of_may - timedelta(hours=2))
    assert not same_month(first_of_may, first_of_may.replace(year=2027))
