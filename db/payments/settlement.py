"""Settling: the one transaction that brings attempt and ledger to what was found out about a charge.

The answer to the request, the webhook and the reconciler all end here, in any order and any number of times: what is booked is
booked once, by keys that last for ever (docs/reference/money-rules.md#credits and docs/reference/auto-reload.md).
"""

from typing import Final
from uuid import UUID

from sqlalchemy import Connection

from db.accounts.billing import drop_cards, lock_billing, note_detached, read_billing
from db.attempts.attempts import Attempt, change_attempt, find_attempt, finish_attempt
from db.attempts.outbox import SUCCEEDED_SIGNAL
from db.attempts.reload_rule import Reloads, ask_reload_rule, read_standing, write_pause
from db.ledger.post_calls import write_accounts
from db.ledger.postings import is_credited_elsewhere, is_posted, post
from db.models import Kind
from db.payments.displaced_attempts import DISPLACED, give_to_its_own
from db.payments.intent_owner import find_owner
from db.payments.locked_org import LockedOrg
from db.payments.recovered_attempts import recover_lost_attempt
from db.payments.reload_pauses import card_of, pause_after_failure
from db.payments.reversals import book_reversals
from db.payments.settlement_outcome import Outcome, Settled
from db.payments.stripe_events import EventRef, keep_event
from db.postgres.engine import driver_connection
from metering.rules.lookup_schedule import LONGEST_LOOKUP_DELAY, TOP_UP_WINDOW, lookup_delay
from metering.rules.payments import (
    AttemptKind,
    AttemptStatus,
    ChargeAbsent,
    ChargeRefused,
    Finding,
    Intent,
    IntentSeen,
    IntentStatus,
    Missing,
    booked_attempt_id,
)
from metering.rules.refusals import pause_after_refusal
from metering.rules.reloads import LOST_MONEY, is_soft, pause_after_decline
from metering.runtime.clock import to_milliseconds
from metering.runtime.crashpoints import CrashPoint, reach

NEVER_CHARGED: Final = "never_charged"
DECLINED_UNMADE: Final = IntentStatus.REQUIRES_PAYMENT_METHOD.value
"""The status of an attempt that was declined with no PaymentIntent made: what Stripe says of one that was declined."""

_DESCRIPTIONS: Final = {AttemptKind.TOP_UP: "Top-up", AttemptKind.AUTO_RELOAD: "Auto-reload"}


def settle(
    connection: Connection,
    finding: Finding,
    *,
    of: tuple[int, UUID] | None = None,
    proven: bool = False,
    livemode: bool,
    event: EventRef | None = None,
    description: str | None = None,
) -> Settled:
    """Bring the ledger and the attempt to what was found out, in the caller's transaction.

    `of` is the attempt, by org and id, where the finding itself doesn't say. `proven`: Stripe holds the PaymentIntent
    under that attempt's own idempotency key, so that no other can have it, whatever metadata have said. `event` is written down
    with the effect, `description` with the credit that an operator asks for. Whatever was not booked is told by the outcome;
    nothing is raised for it.
    """
    settled = _settle(connection, finding, of, livemode, description, proven=proven)
    if event is not None:
        keep_event(connection, event, settled.outcome.value)
    reach(CrashPoint.SETTLE_AFTER_WRITE)
    return settled


def _settle(
    connection: Connection,
    finding: Finding,
    of: tuple[int, UUID] | None,
    livemode: bool,
    description: str | None,
    *,
    proven: bool,
) -> Settled:
    if isinstance(finding, IntentSeen):
        owner = find_owner(connection, finding.intent, of, livemode, proven=proven)
        if isinstance(owner, Outcome):
            return Settled(owner)
        of = owner
    if of is None:
        raise TypeError("whose charge this is about must be said")
    org_id, attempt_id = of
    locked = lock_billing(connection, org_id)
    if locked is None:
        return Settled(Outcome.UNKNOWN_ORG)
    account, billing = locked
    settling = _Settling(LockedOrg(connection, account, billing, account.now), description)
    if isinstance(finding, IntentSeen):
        return settling.bring_to(finding, attempt_id, proven=proven)
    attempt = find_attempt(connection, org_id, attempt_id)
    if attempt is None:
        return Settled(Outcome.UNKNOWN_INTENT)
    return settling.end_uncharged(attempt, finding)


class _Settling:
    """One settling, under the org's lock."""

    def __init__(self, org: LockedOrg, description: str | None) -> None:
        self._org = org
        self._description = description
        self._transactions_before = org.account.transaction_count

    def bring_to(self, seen: IntentSeen, attempt_id: UUID, *, proven: bool) -> Settled:
        """Book what Stripe holds of an intent of the org's customer. `proven`: its own key says that it is this attempt's."""
        intent = seen.intent
        if is_credited_elsewhere(self._org.connection, self._org.id, intent.id):
            return Settled(Outcome.CREDITED_ELSEWHERE)
        attempt = find_attempt(self._org.connection, self._org.id, attempt_id)
        if attempt is not None and not proven and attempt.payment_intent_id not in {None, intent.id}:
            if intent.status != IntentStatus.SUCCEEDED:
                return Settled(Outcome.SECOND_INTENT, attempt)
            # The attempt has its own. What bears our mark and was taken from the org's customer is the org's all the same.
            attempt_id = booked_attempt_id(intent.id)
            attempt = find_attempt(self._org.connection, self._org.id, attempt_id)
        recovered = attempt is None
        if attempt is None:
            attempt = recover_lost_attempt(self._org, intent, attempt_id)
        before = attempt
        displaced = (
            proven and attempt.payment_intent_id != intent.id and give_to_its_own(self._org, attempt, intent)
        )
        if displaced:
            attempt = self._org.read_attempt(attempt.id)
        credited = False
        set_aside: Outcome | None = None
        if intent.status == IntentStatus.SUCCEEDED:
            if not attempt.amount_cents == intent.amount_cents == intent.received_cents:
                return Settled(Outcome.WRONG_AMOUNT, attempt)
            credited = self._credit(attempt, intent)
            set_aside = book_reversals(self._org, seen.refunds or (), seen.disputes or (), intent, attempt)
        elif attempt.open and intent.status == IntentStatus.CANCELED:
            self._end_cancelled(attempt, intent)
        elif attempt.open:
            self._note(attempt, intent)
        settled = self._conclude(before, credited=credited, recovered=recovered, set_aside=set_aside)
        settled.displaced = displaced
        settled.declined = None if recovered else _new_decline(before, settled.attempt, intent)
        named = (intent.org_id, intent.attempt_id)
        settled.metadata_differ = attempt.id != booked_attempt_id(intent.id) and named != (
            attempt.org_id,
            attempt.id,
        )
        return settled

    def end_uncharged(self, attempt: Attempt, finding: ChargeRefused | ChargeAbsent) -> Settled:
        """End an attempt of which Stripe has charged nothing; what it needed and Stripe doesn't have is dropped."""
        dropped = Reloads()
        if attempt.open:
            if isinstance(finding, ChargeAbsent):
                finish_attempt(
                    self._org.connection, attempt, AttemptStatus.CANCELLED, self._org.now, code=NEVER_CHARGED
                )
            else:
                finish_attempt(
                    self._org.connection,
                    attempt,
                    AttemptStatus.FAILED,
                    self._org.now,
                    code=finding.code,
                    message=finding.message,
                )
                # The same card, saved again, is another one to Stripe, and lifts the pause.
                card = None if finding.missing else card_of(self._org, attempt)
                if finding.missing is not None:
                    dropped = self._drop(attempt, finding.missing)
                if finding.declined:
                    change_attempt(self._org.connection, attempt, intent_status=DECLINED_UNMADE)
                if attempt.kind is AttemptKind.AUTO_RELOAD and finding.declined:
                    self._pause_after_decline(finding.code, attempt, card_of(self._org, attempt))
                elif attempt.kind is AttemptKind.AUTO_RELOAD:
                    held = read_standing(self._org.connection, self._org.id).pause
                    pause = pause_after_refusal(
                        finding.code, finding.concern, held=held, card=card, now=self._org.now
                    )
                    pause_after_failure(self._org, pause, attempt)
        settled = self._conclude(attempt, credited=False, recovered=False)
        settled.reloads.add(dropped)
        settled.declined = _declined_unmade(finding) if settled.ended else None
        return settled

    def _drop(self, attempt: Attempt, missing: Missing) -> Reloads:
        """Drop what Stripe doesn't have: all cards of a customer, unless the org has another one by now, or one card."""
        if missing is Missing.PAYMENT_METHOD:
            reloads = note_detached(
                self._org.connection, self._org.account, self._org.billing, attempt.payment_method_id
            )
        elif self._org.billing.stripe_customer_id == attempt.customer_id:
            reloads = drop_cards(self._org.connection, self._org.account, self._org.billing)
        else:
            return Reloads()
        self._org.billing = read_billing(self._org.connection, self._org.id) or self._org.billing
        return reloads

    def _credit(self, attempt: Attempt, intent: Intent) -> bool:
        """Credit a PaymentIntent's money, once for ever; give whether it was now."""
        if is_posted(self._org.connection, self._org.id, Kind.CREDIT, intent.id):
            if attempt.payment_intent_id is None:  # with another attempt, which has given it back
                self._succeed(attempt, intent)
            return False
        post(
            self._org.connection,
            self._org.account,
            kind=Kind.CREDIT,
            amount_cents=intent.received_cents,
            description=self._description or _DESCRIPTIONS[attempt.kind],
            source_key=intent.id,
            metadata={"payment_intent_id": intent.id},
        )
        self._succeed(attempt, intent)
        return True

    def _succeed(self, attempt: Attempt, intent: Intent) -> None:
        """End an attempt whose money is credited."""
        finish_attempt(self._org.connection, attempt, AttemptStatus.SUCCEEDED, self._org.now)
        self._note_intent(attempt, intent)
        if attempt.kind is AttemptKind.AUTO_RELOAD:
            standing = read_standing(self._org.connection, self._org.id)
            pause = standing.pause
            if pause is not None and not (pause.code in LOST_MONEY and pause.holds(self._org.now)):
                pause = None  # such a one came while this charge was on its way, which says nothing about it
            if standing.pause is not None or standing.declines or standing.declined_cards:
                write_pause(self._org.connection, self._org.id, pause, declines=0, declined_cards=[])
            self._org.add_signal(SUCCEEDED_SIGNAL, attempt)

    def _end_cancelled(self, attempt: Attempt, intent: Intent) -> None:
        """End an attempt whose PaymentIntent is cancelled: from now on nothing can come of it."""
        self._note_intent(attempt, intent)
        reload = attempt.kind is AttemptKind.AUTO_RELOAD
        # Nobody but us cancels a reload without a decline, unless by hand at Stripe: it must not be charged again at once.
        before = None if attempt.failure_code == DISPLACED else attempt.failure_code
        code = intent.decline.code if intent.decline else before
        message = intent.decline.message if intent.decline else attempt.failure_message
        if reload and code is None:
            code = intent.status
        status = AttemptStatus.CANCELLED if code is None else AttemptStatus.FAILED
        finish_attempt(self._org.connection, attempt, status, self._org.now, code=code, message=message)
        if reload and code is not None:
            self._pause_after_decline(code, attempt, card_of(self._org, attempt, intent))

    def _pause_after_decline(self, code: str, attempt: Attempt, card: str) -> None:
        """Let reloads rest after a decline of this card."""
        declines = read_standing(self._org.connection, self._org.id).declines
        pause = pause_after_decline(code, declines, card, self._org.now)
        pause_after_failure(self._org, pause, attempt, declines=declines + is_soft(code))

    def _note(self, attempt: Attempt, intent: Intent) -> None:
        """Note how far an open attempt has come."""
        news = (attempt.payment_intent_id, attempt.intent_status) != (intent.id, intent.status)
        tries = 0 if news else attempt.tries + 1
        look_at = self._org.now + lookup_delay(tries)
        over_at = attempt.created_at + TOP_UP_WINDOW
        if (
            attempt.kind is AttemptKind.TOP_UP and self._org.now < over_at
        ):  # then it is cancelled, if that can be
            look_at = min(self._org.now + LONGEST_LOOKUP_DELAY, over_at)
        self._note_intent(
            attempt,
            intent,
            failure_code=intent.decline.code if intent.decline else None,
            failure_message=intent.decline.message if intent.decline else None,
            tries=tries,
            look_at=look_at,
            **self._released(attempt),
        )

    def _note_intent(self, attempt: Attempt, intent: Intent, **others: object) -> None:
        """Write down which PaymentIntent is the attempt's, and how it stood when we looked, which was now."""
        change_attempt(
            self._org.connection,
            attempt,
            payment_intent_id=intent.id,
            intent_created_at=to_milliseconds(intent.created_at),
            intent_status=intent.status,
            looked_at=self._org.now,
            **others,
        )

    def _released(self, attempt: Attempt) -> dict[str, object]:
        """Whoever has a top-up in hand still has to tell its client; a reload is free for the next step."""
        return {} if attempt.kind is AttemptKind.TOP_UP else {"in_hand_until": None}

    def _conclude(
        self, before: Attempt, *, credited: bool, recovered: bool, set_aside: Outcome | None = None
    ) -> Settled:
        """Write the account if it changed, ask the reload rule, and tell what was done."""
        moved = self._org.account.transaction_count != self._transactions_before
        if moved:
            write_accounts(driver_connection(self._org.connection), [self._org.account])
        attempt = self._org.read_attempt(before.id)
        reloads = Reloads(signals=self._org.signals)
        reloads.add(ask_reload_rule(self._org.connection, {self._org.id: self._org.now}))
        outcome = Outcome.CHANGED if moved or recovered or attempt != before else Outcome.KNOWN
        return Settled(
            set_aside or (Outcome.CREDITED if credited else outcome),
            attempt,
            self._org.account if moved else None,
            reloads,
            ended=before.status is not attempt.status and not attempt.open,
        )


def _new_decline(before: Attempt, after: Attempt | None, intent: Intent) -> str | None:
    """The code of a decline that was not known of the attempt before."""
    code = None if intent.decline is None else intent.decline.code
    return code if after is not None and before.failure_code != code == after.failure_code else None


def _declined_unmade(finding: ChargeRefused | ChargeAbsent) -> str | None:
    """The code of a decline that came without a PaymentIntent."""
    return finding.code if isinstance(finding, ChargeRefused) and finding.declined else None
