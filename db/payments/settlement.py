"""Settling: the one transaction that brings attempt and ledger to what was found out about a charge.

The answer to the request, the webhook and the sweep all end here, in any order and any number of times: what is booked is booked
once, by keys that last for ever (docs/reference/money-rules.md#credits and docs/reference/auto-reload.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import Connection

from db.accounts.billing import BillingAccount, drop_cards, lock_billing, note_detached, read_billing
from db.attempts.attempts import (
    Attempt,
    change_attempt,
    find_attempt,
    find_by_intent,
    finish_attempt,
    open_reload,
    recover_attempt,
)
from db.attempts.outbox import add_signal
from db.attempts.reload_rule import Reloads, ask_reload_rule, read_state, write_pause
from db.ledger.post_calls import BalanceChange, write_accounts
from db.ledger.postings import is_credited_elsewhere, is_posted, post
from db.models import Kind
from db.payments.stripe_customers import find_org_of_customer
from db.payments.stripe_events import EventRef, keep_event
from db.postgres.engine import driver_connection
from metering.rules.lookup_schedule import LONGEST_LOOK, TOP_UP_WINDOW, next_look
from metering.rules.payments import (
    CURRENCY,
    AttemptKind,
    AttemptStatus,
    ChargeAbsent,
    ChargeRefused,
    Dispute,
    Finding,
    Intent,
    IntentSeen,
    IntentStatus,
    Missing,
    Refund,
)
from metering.rules.reloads import (
    DISPUTED,
    LOST_MONEY,
    REFUNDED,
    LiftsWith,
    Pause,
    is_soft,
    lifted_by_change,
    pause_after_decline,
    stronger_pause,
)
from metering.rules.times import format_time
from metering.runtime.clock import Clock, to_milliseconds
from metering.runtime.crashpoints import CrashPoint, reach

SUCCEEDED_SIGNAL: Final = "auto_reload.succeeded"
FAILED_SIGNAL: Final = "auto_reload.failed"
NEVER_CHARGED: Final = "never_charged"

_DESCRIPTIONS: Final = {AttemptKind.TOP_UP: "Top-up", AttemptKind.AUTO_RELOAD: "Auto-reload"}


class Outcome(StrEnum):
    """What settling came to. Those after `known` were not booked, or not wholly, and why."""

    CREDITED = "credited"
    CHANGED = "changed"
    """The attempt, or what was refunded or disputed."""
    KNOWN = "known"
    """There was nothing that wasn't known."""
    UNKNOWN_INTENT = "unknown_intent"
    UNKNOWN_ORG = "unknown_org"
    FOREIGN_CUSTOMER = "foreign_customer"
    FOREIGN_CURRENCY = "foreign_currency"
    WRONG_LIVEMODE = "wrong_livemode"
    WRONG_AMOUNT = "wrong_amount"
    SECOND_INTENT = "second_intent"
    CREDITED_ELSEWHERE = "credited_elsewhere"
    """To another org, by a version of this program that believed metadata."""


NOT_BOOKED: Final = frozenset(Outcome) - {Outcome.CREDITED, Outcome.CHANGED, Outcome.KNOWN}


@dataclass(slots=True)
class Settled:
    """What settling did. All of it is committed with the caller's transaction."""

    outcome: Outcome
    attempt: Attempt | None = None
    """As it is now."""
    change: BalanceChange | None = None
    """The balance, if it changed."""
    reloads: Reloads = field(default_factory=Reloads)
    ended: bool = False
    """Whether it was this that ended the attempt."""
    metadata_differ: bool = False
    """Whether the PaymentIntent's metadata name another org or attempt: they were edited at Stripe, and nothing follows them."""


def settle(
    connection: Connection,
    finding: Finding,
    *,
    of: tuple[int, UUID] | None = None,
    livemode: bool,
    clock: Clock,
    event: EventRef | None = None,
) -> Settled:
    """Bring the ledger and the attempt to what was found out, in the caller's transaction.

    `of` is the attempt, by org and id, where the finding itself doesn't say. `event` is written down with the effect. Whatever
    was not booked is told by the outcome; nothing is raised for it.
    """
    settled = _settle(connection, finding, of, livemode, clock)
    if event is not None:
        keep_event(connection, event, settled.outcome.value, clock())
    reach(CrashPoint.SETTLE_AFTER_WRITE)
    return settled


def _settle(
    connection: Connection, finding: Finding, of: tuple[int, UUID] | None, livemode: bool, clock: Clock
) -> Settled:
    if isinstance(finding, IntentSeen):
        place = _place(connection, finding.intent, of, livemode)
        if isinstance(place, Outcome):
            return Settled(place)
        of = place
    if of is None:
        raise TypeError("whose charge this is about must be said")
    org_id, attempt_id = of
    locked = lock_billing(connection, org_id, clock)
    if locked is None:
        return Settled(Outcome.UNKNOWN_ORG)
    work = _Settling(connection, *locked, now=max(locked[0].posted_at, to_milliseconds(clock())))
    if isinstance(finding, IntentSeen):
        return work.bring_to(finding, attempt_id)
    attempt = find_attempt(connection, org_id, attempt_id)
    if attempt is None:
        return Settled(Outcome.UNKNOWN_INTENT)
    return work.end_uncharged(attempt, finding)


def _place(
    connection: Connection, intent: Intent, of: tuple[int, UUID] | None, livemode: bool
) -> tuple[int, UUID] | Outcome:
    """Org and attempt of a PaymentIntent, or why it has none.

    Its customer says whose it is. Our request or our row that knows it says which attempt; only of one that we don't know yet do
    metadata, which anybody may edit at Stripe.
    """
    if intent.livemode != livemode:
        return Outcome.WRONG_LIVEMODE
    org_id = None if intent.customer_id is None else find_org_of_customer(connection, intent.customer_id)
    if org_id is None:
        return (
            Outcome.UNKNOWN_INTENT if of is None and intent.attempt_id is None else Outcome.FOREIGN_CUSTOMER
        )
    if of is not None and of[0] != org_id:
        return Outcome.FOREIGN_CUSTOMER
    if intent.currency != CURRENCY:
        return Outcome.FOREIGN_CURRENCY
    if of is not None:
        return of
    known = find_by_intent(connection, org_id, intent.id)
    attempt_id = intent.attempt_id if known is None else known.id
    return Outcome.UNKNOWN_INTENT if attempt_id is None else (org_id, attempt_id)


def _until(pause: Pause | None) -> str | None:
    """When time lifts a pause, as it is shown; None where that doesn't, or there is no pause."""
    return None if pause is None or pause.until is None else format_time(pause.until)


class _Settling:
    """One settling, under the org's lock."""

    def __init__(
        self, connection: Connection, account: BalanceChange, billing: BillingAccount, *, now: datetime
    ) -> None:
        self._connection = connection
        self._account = account
        self._billing = billing
        self._now = now
        self._transactions_before = account.transaction_count
        self._signals: list[tuple[int, int]] = []

    def bring_to(self, seen: IntentSeen, attempt_id: UUID) -> Settled:
        """Book what Stripe holds of an intent of the org's customer."""
        intent = seen.intent
        if is_credited_elsewhere(self._connection, self._account.org_id, intent.id):
            return Settled(Outcome.CREDITED_ELSEWHERE)
        attempt = find_attempt(self._connection, self._account.org_id, attempt_id)
        recovered = attempt is None
        if attempt is None:
            attempt = self._recover(intent, attempt_id)
        if attempt.payment_intent_id not in {None, intent.id}:
            return Settled(Outcome.SECOND_INTENT, attempt)
        before = attempt
        credited = False
        set_aside: Outcome | None = None
        if intent.status == IntentStatus.SUCCEEDED:
            if not attempt.amount_cents == intent.amount_cents == intent.received_cents:
                return Settled(Outcome.WRONG_AMOUNT, attempt)
            credited = self._credit(attempt, intent)
            set_aside = self._take_back(seen.refunds or (), seen.disputes or (), intent, attempt)
        elif attempt.open and intent.status == IntentStatus.CANCELED:
            self._end_cancelled(attempt, intent)
        elif attempt.open:
            self._note(attempt, intent)
        settled = self._conclude(before, credited=credited, recovered=recovered, set_aside=set_aside)
        settled.metadata_differ = (intent.org_id, intent.attempt_id) != (attempt.org_id, attempt.id)
        return settled

    def end_uncharged(self, attempt: Attempt, finding: ChargeRefused | ChargeAbsent) -> Settled:
        """End an attempt of which Stripe has charged nothing; what it needed and Stripe doesn't have is dropped."""
        dropped = Reloads()
        if attempt.open:
            if isinstance(finding, ChargeAbsent):
                finish_attempt(
                    self._connection, attempt, AttemptStatus.CANCELLED, self._now, code=NEVER_CHARGED
                )
            else:
                finish_attempt(
                    self._connection,
                    attempt,
                    AttemptStatus.FAILED,
                    self._now,
                    code=finding.code,
                    message=finding.message,
                )
                # The same card, saved again, is another one to Stripe, and lifts the pause.
                card = None if finding.missing else self._card_of(attempt)
                if finding.missing is not None:
                    dropped = self._drop(attempt, finding.missing)
                if attempt.kind is AttemptKind.AUTO_RELOAD:
                    self._pause(Pause(finding.code, LiftsWith.CHANGE, self._now, card=card), attempt)
        settled = self._conclude(attempt, credited=False, recovered=False)
        settled.reloads.add(dropped)
        return settled

    def _drop(self, attempt: Attempt, missing: Missing) -> Reloads:
        """Drop what Stripe doesn't have: all cards of a customer, unless the org has another one by now, or one card."""
        if missing is Missing.PAYMENT_METHOD:
            reloads = note_detached(self._connection, self._account, self._billing, attempt.payment_method_id)
        elif self._billing.stripe_customer_id == attempt.customer_id:
            reloads = drop_cards(self._connection, self._account, self._billing)
        else:
            return Reloads()
        self._billing = read_billing(self._connection, self._account.org_id) or self._billing
        return reloads

    def _recover(self, intent: Intent, attempt_id: UUID) -> Attempt:
        """Write again the row of an attempt that this database has lost."""
        org_id = self._account.org_id
        kind = intent.kind or AttemptKind.TOP_UP
        status = AttemptStatus.OPEN
        if kind is AttemptKind.AUTO_RELOAD and (other := open_reload(self._connection, org_id)) is not None:
            if other.first_sent_at is None:
                finish_attempt(self._connection, other, AttemptStatus.CANCELLED, self._now, code="superseded")
            else:  # two can't be open; if this one's money comes, it is credited all the same
                status = AttemptStatus.CANCELLED
        recover_attempt(
            self._connection,
            org_id,
            attempt_id,
            kind,
            status=status,
            amount_cents=intent.amount_cents,
            customer_id=intent.customer_id or "",
            payment_method_id=intent.payment_method_id or "",
            payment_intent_id=intent.id,
            at=to_milliseconds(intent.created_at),
            now=self._now,
        )
        return self._reread(org_id, attempt_id)

    def _reread(self, org_id: int, attempt_id: UUID) -> Attempt:
        attempt = find_attempt(self._connection, org_id, attempt_id)
        if attempt is None:
            raise LookupError(f"attempt {attempt_id} of org {org_id} has just been there")
        return attempt

    def _credit(self, attempt: Attempt, intent: Intent) -> bool:
        """Credit a PaymentIntent's money, once for ever; give whether it was now."""
        if is_posted(self._connection, self._account.org_id, Kind.CREDIT, intent.id):
            if attempt.payment_intent_id is None:
                self._take_from_recovered(attempt, intent)
            return False
        post(
            self._connection,
            self._account,
            kind=Kind.CREDIT,
            amount_cents=intent.received_cents,
            description=_DESCRIPTIONS[attempt.kind],
            source_key=intent.id,
            metadata={"payment_intent_id": intent.id},
        )
        finish_attempt(self._connection, attempt, AttemptStatus.SUCCEEDED, self._now)
        change_attempt(
            self._connection,
            attempt,
            payment_intent_id=intent.id,
            intent_status=intent.status,
            looked_at=self._now,
        )
        if attempt.kind is AttemptKind.AUTO_RELOAD:
            pause, declines = read_state(self._connection, self._account.org_id)
            if pause is not None and pause.code in LOST_MONEY and pause.holds(self._now):
                # It came while this charge was on its way, which says nothing about it.
                write_pause(self._connection, self._account.org_id, pause, declines=0)
            elif pause is not None or declines:
                write_pause(self._connection, self._account.org_id, None, declines=0)
            self._say(SUCCEEDED_SIGNAL, attempt)
        return True

    def _take_from_recovered(self, attempt: Attempt, intent: Intent) -> None:
        """Give a payment, which Stripe answers under this attempt's own key, back to it: edited metadata had named a new one."""
        other = find_by_intent(self._connection, self._account.org_id, intent.id)
        if other is None or other.id == attempt.id or not other.recovered:
            return
        finish_attempt(self._connection, other, AttemptStatus.CANCELLED, self._now, code="superseded")
        change_attempt(self._connection, other, payment_intent_id=None, intent_status=None)
        finish_attempt(self._connection, attempt, AttemptStatus.SUCCEEDED, self._now)
        change_attempt(
            self._connection,
            attempt,
            payment_intent_id=intent.id,
            intent_status=intent.status,
            looked_at=self._now,
        )

    def _take_back(
        self, refunds: Sequence[Refund], disputes: Sequence[Dispute], intent: Intent, attempt: Attempt
    ) -> Outcome | None:
        """Book what went back to the card, once per refund and dispute, and what came again; tell why something was not.

        The credit is there already.
        """
        for refund in sorted(refunds, key=lambda each: each.id):
            # One that has failed before we heard of it is booked all the same: an older reading, in which it has not failed yet,
            # may still be on its way here, and must find it done.
            new = self._book(Kind.REFUND, -refund.amount_cents, "Refund", refund.id, intent)
            if not refund.effective:
                key = f"failed:{refund.id}"
                self._book(Kind.ADJUSTMENT, refund.amount_cents, "Refund failed, money returned", key, intent)
            elif new:
                self._pause_for_lost_money(REFUNDED, attempt)
        for dispute in sorted(disputes, key=lambda each: each.id):
            if dispute.foreign:
                continue  # what it comes to in USD somebody has to say
            if dispute.withdrawn and self._book(
                Kind.REFUND, -dispute.amount_cents, "Dispute, funds withdrawn", dispute.id, intent
            ):
                self._pause_for_lost_money(DISPUTED, attempt)
            if dispute.reinstated:
                self._book(
                    Kind.ADJUSTMENT,
                    dispute.amount_cents,
                    "Dispute won, money returned",
                    f"won:{dispute.id}",
                    intent,
                )
        return Outcome.FOREIGN_CURRENCY if any(each.foreign for each in disputes) else None

    def _book(self, kind: Kind, amount_cents: int, description: str, source_key: str, intent: Intent) -> bool:
        if is_posted(self._connection, self._account.org_id, kind, source_key):
            return False
        post(
            self._connection,
            self._account,
            kind=kind,
            amount_cents=amount_cents,
            description=description,
            source_key=source_key,
            metadata={"payment_intent_id": intent.id},
        )
        return True

    def _end_cancelled(self, attempt: Attempt, intent: Intent) -> None:
        """End an attempt whose PaymentIntent is cancelled: from now on nothing can come of it."""
        change_attempt(
            self._connection,
            attempt,
            payment_intent_id=intent.id,
            intent_status=intent.status,
            looked_at=self._now,
        )
        reload = attempt.kind is AttemptKind.AUTO_RELOAD
        # Nobody but us cancels a reload without a decline, unless by hand at Stripe: it must not be charged again at once.
        code = intent.decline.code if intent.decline else attempt.failure_code
        message = intent.decline.message if intent.decline else attempt.failure_message
        if reload and code is None:
            code = intent.status
        status = AttemptStatus.CANCELLED if code is None else AttemptStatus.FAILED
        finish_attempt(self._connection, attempt, status, self._now, code=code, message=message)
        if reload and code is not None:
            _, declines = read_state(self._connection, self._account.org_id)
            pause = pause_after_decline(code, declines, self._card_of(attempt, intent), self._now)
            self._pause(pause, attempt, declines=declines + is_soft(code))

    def _note(self, attempt: Attempt, intent: Intent) -> None:
        """Note how far an open attempt has come."""
        news = (attempt.payment_intent_id, attempt.intent_status) != (intent.id, intent.status)
        tries = 0 if news else attempt.tries + 1
        look_at = self._now + next_look(tries)
        over_at = attempt.created_at + TOP_UP_WINDOW
        if attempt.kind is AttemptKind.TOP_UP and self._now < over_at:  # then it is cancelled, if that can be
            look_at = min(self._now + LONGEST_LOOK, over_at)
        change_attempt(
            self._connection,
            attempt,
            payment_intent_id=intent.id,
            intent_status=intent.status,
            failure_code=intent.decline.code if intent.decline else None,
            failure_message=intent.decline.message if intent.decline else None,
            tries=tries,
            looked_at=self._now,
            look_at=look_at,
            **self._released(attempt),
        )

    def _released(self, attempt: Attempt) -> dict[str, object]:
        """Whoever has a top-up in hand still has to tell its client; a reload is free for the next step."""
        return {} if attempt.kind is AttemptKind.TOP_UP else {"in_hand_until": None}

    def _card_of(self, attempt: Attempt, intent: Intent | None = None) -> str:
        """The card that was charged: as the default one is named while it is that, else by identity if Stripe tells it."""
        if attempt.payment_method_id == self._billing.default_payment_method_id and self._billing.card:
            return self._billing.card
        told = intent.decline.card if intent is not None and intent.decline is not None else None
        return told or attempt.payment_method_id

    def _pause(self, pause: Pause, attempt: Attempt, *, declines: int | None = None) -> None:
        """Let reloads rest after a decline, unless the org has another card by now; say so in any case."""
        held, declines_before = read_state(self._connection, self._account.org_id)
        paused: Pause | None = None
        if not lifted_by_change(pause, card=self._billing.card, setting_changed=False):
            paused = stronger_pause(held, pause, self._now)
            write_pause(
                self._connection,
                self._account.org_id,
                paused,
                declines=declines_before if declines is None else declines,
            )
        self._say(
            FAILED_SIGNAL,
            attempt,
            code=pause.code,
            paused=paused is not None,
            paused_until=_until(paused),
        )

    def _pause_for_lost_money(self, code: str, attempt: Attempt) -> None:
        """A card whose holder wants his money back isn't charged again by itself. Enabling reloads would be a change."""
        if not self._billing.auto_reload_enabled:
            return
        held, declines = read_state(self._connection, self._account.org_id)
        new = Pause(code, LiftsWith.CHANGE, self._now, card=self._billing.last_card)
        paused = stronger_pause(held, new, self._now)
        write_pause(self._connection, self._account.org_id, paused, declines=declines)
        self._say(FAILED_SIGNAL, attempt, code=code, paused=True, paused_until=_until(paused))

    def _say(self, type_: str, attempt: Attempt, **others: object) -> None:
        fields = {"attempt_id": str(attempt.id), "amount_cents": attempt.amount_cents, **others}
        signal_id = add_signal(self._connection, self._account.org_id, type_, fields, self._now)
        self._signals.append((self._account.org_id, signal_id))

    def _conclude(
        self, before: Attempt, *, credited: bool, recovered: bool, set_aside: Outcome | None = None
    ) -> Settled:
        """Write the account if it changed, ask the reload rule, and tell what was done."""
        moved = self._account.transaction_count != self._transactions_before
        if moved:
            write_accounts(driver_connection(self._connection), [self._account])
        attempt = self._reread(before.org_id, before.id)
        reloads = Reloads(signals=self._signals)
        reloads.add(ask_reload_rule(self._connection, {self._account.org_id: self._now}))
        outcome = Outcome.CHANGED if moved or recovered or attempt != before else Outcome.KNOWN
        return Settled(
            set_aside or (Outcome.CREDITED if credited else outcome),
            attempt,
            self._account if moved else None,
            reloads,
            ended=before.status is not attempt.status and not attempt.open,
        )
