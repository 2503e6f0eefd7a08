"""Pauses of auto-reloads, after a charge that failed and after money that went back, with the signals that tell of them."""

from db.attempts.attempts import Attempt
from db.attempts.outbox import FAILED_SIGNAL
from db.attempts.reload_rule import read_standing, write_pause, write_state
from db.payments.locked_org import LockedOrg
from metering.rules.payments import Intent
from metering.rules.reloads import Pause, lifted_by_change, pause_after_lost_money, stronger_pause, with_card
from metering.rules.times import format_time


def card_of(org: LockedOrg, attempt: Attempt, intent: Intent | None = None) -> str:
    """The card that was charged: as the default one is named while it is that, else by identity if Stripe tells it."""
    if attempt.payment_method_id == org.billing.default_payment_method_id and org.billing.card:
        return org.billing.card
    told = intent.decline.card if intent is not None and intent.decline is not None else None
    return told or attempt.payment_method_id


def pause_after_failure(
    org: LockedOrg, pause: Pause, attempt: Attempt, *, declines: int | None = None
) -> None:
    """Let reloads rest after a decline, unless the org has another card by now; say so in any case."""
    standing = read_standing(org.connection, org.id)
    if pause.card is not None:
        cards = with_card(standing.declined_cards, pause.card)
        write_state(org.connection, org.id, declined_cards=cards)
    paused: Pause | None = None
    if not lifted_by_change(pause, card=org.billing.card, setting_changed=False):
        paused = stronger_pause(standing.pause, pause, org.now)
        declined = standing.declines if declines is None else declines
        write_pause(org.connection, org.id, paused, declines=declined)
    org.add_signal(
        FAILED_SIGNAL,
        attempt,
        code=pause.code,
        paused=paused is not None,
        paused_until=_until(paused),
    )


def pause_for_lost_money(org: LockedOrg, code: str, attempt: Attempt) -> None:
    """A card whose holder wants his money back isn't charged again by itself. Enabling reloads would be a change."""
    if not org.billing.auto_reload_enabled:
        return
    standing = read_standing(org.connection, org.id)
    new = pause_after_lost_money(code, org.billing.last_card, org.now)
    paused = stronger_pause(standing.pause, new, org.now)
    write_pause(org.connection, org.id, paused, declines=standing.declines)
    org.add_signal(FAILED_SIGNAL, attempt, code=code, paused=True, paused_until=_until(paused))


def _until(pause: Pause | None) -> str | None:
    """When time lifts a pause, as it is shown; None where that doesn't, or there is no pause."""
    return None if pause is None or pause.until is None else format_time(pause.until)
