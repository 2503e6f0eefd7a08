"""When an org is reloaded, and what a card that fails leads to (docs/reference/auto-reload.md#when-a-reload-is-due)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from metering.rules.cards import same_number

SOFT_PAUSES: Final = (timedelta(hours=1), timedelta(hours=24))
"""How long a soft decline pauses: the first since the last success or change, the second; from the third on, until a change."""

REFUND_PAUSE: Final = timedelta(hours=24)
"""How long a refund pauses: time for whoever made it to say more, and no end of reloads for a goodwill refund."""

PACE_RELOADS: Final = 5
PACE_WINDOW: Final = timedelta(minutes=10)
"""At most so many auto-reloads of an org are first sent in any such time."""

MAX_LIFTS: Final = 3
LIFT_WINDOW: Final = timedelta(hours=24)
"""So often settings lift a pause in any such time: a dead card isn't tried with every change of a cent."""
MAX_DECLINED_CARDS: Final = 10
"""How many declined cards of an org are remembered: whoever takes turns with them lifts pauses no more often than by settings."""

REFUSAL_COUNTS_FOR: Final = timedelta(minutes=10)
"""How long after a call was refused for want of money that may make a reload."""

CLOCK_MARGIN: Final = timedelta(seconds=5)
"""How far Stripe's clock may be behind ours when a month turns: for so long a charge may still be dated in the month before."""

AUTHENTICATION_REQUIRED: Final = "authentication_required"
REFUNDED: Final = "refunded"
DISPUTED: Final = "disputed"
LOST_MONEY: Final = frozenset({REFUNDED, DISPUTED})
"""The codes of pauses that no charge has brought about, but a cardholder who has his money back."""

# The card itself will never do: reported lost or stolen, blocked, expired, closed, or not such a card at all.
HARD_DECLINES: Final = frozenset(
    {
        *("lost_card", "stolen_card", "pickup_card", "restricted_card", "fraudulent", "merchant_blacklist"),
        *("expired_card", "invalid_account", "invalid_number", "incorrect_number", "invalid_expiry_month"),
        *("invalid_expiry_year", "card_not_supported", "currency_not_supported", "security_violation"),
        *("stop_payment_order", "revocation_of_authorization", "revocation_of_all_authorizations"),
        *("new_account_information_available", "transaction_not_allowed", "highest_risk_level"),
    }
)

# What a card issued anew under the same number mends.
EXPIRY_DECLINES: Final = frozenset(
    {"expired_card", "invalid_expiry_month", "invalid_expiry_year", "new_account_information_available"}
)


class SkipReason(StrEnum):
    """Why an org is not reloaded."""

    DISABLED = "disabled"
    ABOVE_MINIMUM = "above_minimum"
    NO_PAYMENT_METHOD = "no_payment_method"
    ATTEMPT_OPEN = "attempt_open"
    PAUSED = "paused"
    MONTHLY_LIMIT = "monthly_limit"
    PACE = "pace"
    SUSPENDED = "suspended"


SIGNALLED_SKIP_REASONS: Final = frozenset(
    {
        *(SkipReason.NO_PAYMENT_METHOD, SkipReason.PAUSED, SkipReason.MONTHLY_LIMIT, SkipReason.PACE),
        SkipReason.SUSPENDED,
    }
)
"""The reasons that keep an org waiting that wants to be reloaded: recorded, and said when they change."""


class LiftsWith(StrEnum):
    """What ends a pause. From the weakest to the strongest; a pause never gives way to a weaker one."""

    TIME = "time"
    CHANGE = "change"
    """Of the default card, or of a reload setting, to another value."""
    CARD = "card"
    """Only a different card."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Reloads rest. `until` is set just where time lifts it; `card` names the default one then, or the one that was declined."""

    code: str
    lifts_with: LiftsWith
    since: datetime
    until: datetime | None = None
    card: str | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it is still in force."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class RefusalNote:
    """A call was refused for want of money, and no reload was made since."""

    below_cents: int
    """What one first increment costs: it asks for a reload only while the balance itself doesn't cover that."""
    until: datetime
    """It counts no longer than that."""


@dataclass(frozen=True, slots=True)
class ReloadAccount:
    """What the rule looks at, besides the month: all as of one moment, under the org's lock."""

    balance_cents: int
    enabled: bool
    minimum_cents: int
    amount_cents: int
    monthly_limit_cents: int | None
    """None is without limit."""
    has_payment_method: bool
    attempt_open: bool
    """An auto-reload's: top-ups never block one."""
    pause: Pause | None
    paced_until: datetime | None = None
    """As `paced_until` says; None where it has sent too few for that."""
    suspended: bool = False
    """By an operator: no card is charged before one resumes the org."""
    refused: RefusalNote | None = None
    """Of the newest call that was refused; None where there is none, or where it has made a reload."""


@dataclass(frozen=True, slots=True)
class Due:
    """A charge of `amount_cents` is to be made."""

    amount_cents: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """No charge is to be made."""

    reason: SkipReason
    until: datetime | None = None
    """When time alone may change this answer: always later than the time that it is of. None where only a change does, in whose
    transaction the rule is asked anyway."""


def reload_below_cents(minimum_cents: int) -> int:
    """Below which balance an org wants to be reloaded: its minimum, and at 0 in any case.

    An org with a minimum of 0 would otherwise be stranded at exactly 0.00.
    """
    return max(minimum_cents, 1)


def reload_due(account: ReloadAccount, month_committed_cents: int, now: datetime) -> Due | Skipped:
    """Whether the org is to be charged (docs/reference/auto-reload.md#when-a-reload-is-due).

    `month_committed_cents` is what this UTC month's auto-reloads hold of the limit, succeeded plus open; where Stripe may still,
    or already, date a charge in another month, the most that any of them holds. It fits whole or is skipped whole, never a part
    of it.
    """
    limit_cents, pause, paced = account.monthly_limit_cents, account.pause, account.paced_until
    too_low = account.balance_cents < reload_below_cents(account.minimum_cents)
    note = account.refused
    refused_until = (
        None if note is None or note.until <= now or account.balance_cents >= note.below_cents else note.until
    )
    for applies, reason, until in (
        (not account.enabled, SkipReason.DISABLED, None),
        (not too_low and refused_until is None, SkipReason.ABOVE_MINIMUM, None),
        (account.suspended, SkipReason.SUSPENDED, None),
        (not account.has_payment_method, SkipReason.NO_PAYMENT_METHOD, None),
        (account.attempt_open, SkipReason.ATTEMPT_OPEN, None),
        (pause is not None and pause.holds(now), SkipReason.PAUSED, pause.until if pause else None),
        (
            limit_cents is not None and month_committed_cents + account.amount_cents > limit_cents,
            SkipReason.MONTHLY_LIMIT,
            next_month(now - CLOCK_MARGIN) + CLOCK_MARGIN,
        ),
        (paced is not None and now < paced, SkipReason.PACE, paced),
    ):
        if applies:
            only_refused = refused_until is not None and not too_low and reason is not SkipReason.DISABLED
            # What waits only because a call was refused waits no longer than that counts.
            ends = [each for each in (until, refused_until if only_refused else None) if each is not None]
            return Skipped(reason, min(ends, default=None))
    return Due(account.amount_cents)


def paced_until(first_sends: Iterable[datetime]) -> datetime | None:
    """Until when the next auto-reload has to wait, after these first sends; None where they are too few for that."""
    newest = sorted(first_sends, reverse=True)[:PACE_RELOADS]
    return newest[-1] + PACE_WINDOW if len(newest) == PACE_RELOADS else None


def may_lift_at(lifts: Sequence[datetime], now: datetime) -> datetime:
    """From when on a change of settings lifts a pause, after these lifts: now, unless there were too many."""
    newest = sorted(lifts, reverse=True)[:MAX_LIFTS]
    return max(now, newest[-1] + LIFT_WINDOW) if len(newest) == MAX_LIFTS else now


def same_month(one: datetime, other: datetime) -> bool:
    """Whether two times are of the same UTC month."""
    return next_month(one) == next_month(other)


def next_month(at: datetime) -> datetime:
    """When the UTC month after that of `at` begins."""
    at = at.astimezone(UTC)
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)  # noqa: PLR2004 - December
    return datetime(year, month, 1, tzinfo=UTC)


def is_soft(code: str) -> bool:
    """Whether a decline may pass by itself: it is tried again after a while."""
    return code not in HARD_DECLINES and code != AUTHENTICATION_REQUIRED


def pause_after_decline(code: str, soft_declines_before: int, card: str, now: datetime) -> Pause:
    """The pause that a decline leads to. `card` is the declined one; `soft_declines_before` those since a success or change."""
    if code in HARD_DECLINES:
        return Pause(code, LiftsWith.CARD, now, card=card)
    if not is_soft(code) or soft_declines_before >= len(SOFT_PAUSES):
        return Pause(code, LiftsWith.CHANGE, now, card=card)
    return Pause(code, LiftsWith.TIME, now, until=now + SOFT_PAUSES[soft_declines_before], card=card)


def pause_after_lost_money(code: str, card: str | None, now: datetime) -> Pause:
    """The pause that a refund or a dispute leads to. `card` is the default one, or the last that there was."""
    if code == REFUNDED:
        return Pause(code, LiftsWith.TIME, now, until=now + REFUND_PAUSE, card=card)
    return Pause(code, LiftsWith.CHANGE, now, card=card)


_STRENGTH: Final = {LiftsWith.TIME: 0, LiftsWith.CHANGE: 1, LiftsWith.CARD: 2}


def stronger_pause(held: Pause | None, new: Pause, now: datetime) -> Pause:
    """Which of two pauses counts: a refund must not loosen what a stolen card has brought about, nor a decline shorten one."""
    if held is None or not held.holds(now):
        return new
    if held.until is not None and new.until is not None:
        return new if new.until >= held.until else held
    return new if _STRENGTH[new.lifts_with] >= _STRENGTH[held.lifts_with] else held


def lifted_by_change(pause: Pause, *, card: str | None, setting_changed: bool) -> bool:
    """Whether what is in force now ends the pause. `card` is the default one now; None is none, which ends nothing.

    Cards are compared with the one of the pause, so that taking a card away and saving it again is no change; by number alone,
    because a stolen card is no different one with another expiry, unless the expiry was what failed.
    """
    if card is None or pause.card is None or pause.code in EXPIRY_DECLINES:
        another_card = card is not None and card != pause.card
    else:
        another_card = not same_number(card, pause.card)
    return another_card or (setting_changed and pause.lifts_with is not LiftsWith.CARD)


def with_card(declined_cards: Sequence[str], card: str) -> list[str]:
    """The declined cards with one more, the newest last; as many as are remembered."""
    return [*(each for each in declined_cards if each != card), card][-MAX_DECLINED_CARDS:]


def was_declined(card: str, pause: Pause, declined_cards: Sequence[str]) -> bool:
    """Whether a card is one of those, as `lifted_by_change` tells cards apart."""
    if pause.code in EXPIRY_DECLINES:
        return card in declined_cards
    return any(same_number(card, each) for each in declined_cards)
