"""An attempt's next step, taken under a lease: what is to be done about it is decided, and written down, before Stripe is
asked."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Final
from uuid import UUID

from msgspec import structs
from sqlalchemy import Connection

from db.accounts.billing import BillingAccount, lock_billing
from db.attempts.attempts import Attempt, change_attempt, find_attempt, finish_attempt
from db.attempts.months import reloads_so_far
from db.attempts.refused_holds import note_behind, release_note
from db.attempts.reload_rule import Reloads, ask_reload_rule, read_standing
from db.ledger.post_calls import BalanceChange
from db.payments.displaced_attempts import DISPLACED
from metering.rules.lookup_schedule import SEND_WINDOW, TOP_UP_WINDOW, WORK_LEASE, lookup_delay, may_send
from metering.rules.payments import AttemptKind, AttemptStatus
from metering.rules.reloads import Due, ReloadAccount, Skipped, reload_due, same_month

NO_LONGER_WANTED: Final = "no_longer_wanted"
MONTH_TURNED: Final = "month_turned"


class Step(Enum):
    """What is to be done about an attempt."""

    NOTHING = auto()
    """It has ended, or somebody else has it in hand, or it isn't time."""
    SEND = auto()
    """Send the charge, with the attempt's key; that it is sent is written down already."""
    FIND = auto()
    """Look for the charge among the customer's PaymentIntents: it may have been made, and must not be sent (again)."""
    RETRIEVE = auto()
    """Ask Stripe how its PaymentIntent stands."""
    CANCEL = auto()
    """Cancel its PaymentIntent: it will not be finished any more."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """A step, the attempt as it is now, and what else came of taking it in hand."""

    step: Step
    attempt: Attempt | None = None
    reloads: Reloads = field(default_factory=Reloads)
    ended: bool = False
    """Whether taking it in hand has ended it: it was no longer wanted, and had not been sent."""


def take_next_step(
    connection: Connection, org_id: int, attempt_id: UUID, *, for_client: bool = False
) -> NextStep:
    """Take an attempt in hand, in the caller's transaction: for WORK_LEASE nobody else does.

    `for_client`: a customer's request waits for a top-up, so it may be sent again. The reconciler never sends one: nobody might
    be there any more who wants it.
    """
    locked = lock_billing(connection, org_id)
    attempt = find_attempt(connection, org_id, attempt_id)
    if locked is None or attempt is None or not attempt.open:
        return NextStep(Step.NOTHING, attempt)
    account, billing = locked
    now = account.now
    if attempt.last_sent_at is not None and attempt.last_sent_at > now:
        # By a clock that was wrong: it was sent by now at the latest.
        change_attempt(connection, attempt, last_sent_at=now)
    too_early = not attempt.is_due(now) and attempt.first_sent_at is not None and not for_client
    if too_early or attempt.in_hand(now):
        return NextStep(Step.NOTHING, attempt)
    if attempt.kind is AttemptKind.TOP_UP:
        step = _top_up_step(attempt, now, for_client=for_client)
    elif (reason := _why_unwanted(connection, attempt, account, billing, now)) is not None:
        finish_attempt(connection, attempt, AttemptStatus.CANCELLED, now, code=reason)
        if reason == MONTH_TURNED:
            release_note(connection, org_id, attempt_id)
        reloads = ask_reload_rule(connection, {org_id: now})
        return NextStep(Step.NOTHING, find_attempt(connection, org_id, attempt_id), reloads, ended=True)
    else:
        step = _reload_step(connection, attempt, account, billing, now)
    sending = (
        {"first_sent_at": attempt.first_sent_at or now, "last_sent_at": now} if step is Step.SEND else {}
    )
    lease_end = now + WORK_LEASE
    # A top-up is in the hands of a request, which tells its client; the reconciler only looks, and nobody need wait for it.
    leased = attempt.kind is AttemptKind.AUTO_RELOAD or for_client
    change_attempt(
        connection,
        attempt,
        in_hand_until=lease_end if leased else None,
        look_at=lease_end,
        looked_at=now,
        **sending,
    )
    return NextStep(step, find_attempt(connection, org_id, attempt_id))


def put_off(connection: Connection, org_id: int, attempt_id: UUID) -> Attempt | None:
    """Note that an attempt was looked at and nothing was decided: it is looked at again, later each time.

    Gives it as it is now.
    """
    locked = lock_billing(connection, org_id)
    attempt = find_attempt(connection, org_id, attempt_id)
    if locked is None or attempt is None or not attempt.open:
        return attempt
    now = locked[0].now
    tries = attempt.tries + 1
    change_attempt(
        connection,
        attempt,
        tries=tries,
        in_hand_until=None,
        looked_at=now,
        look_at=now + lookup_delay(tries),
    )
    return find_attempt(connection, org_id, attempt_id)


def _unsent(attempt: Attempt) -> bool:
    """Whether an auto-reload was certainly not sent. Of a displaced one nobody asks what it was: its own may be there."""
    return attempt.first_sent_at is None and attempt.failure_code != DISPLACED


def _top_up_step(attempt: Attempt, now: datetime, *, for_client: bool) -> Step:
    if attempt.payment_intent_id is not None:
        over = now - attempt.created_at >= TOP_UP_WINDOW
        return Step.CANCEL if over else Step.RETRIEVE
    sendable = may_send(attempt.first_sent_at or attempt.created_at, now)
    return Step.SEND if for_client and sendable else Step.FIND


def _reload_step(
    connection: Connection, attempt: Attempt, account: BalanceChange, billing: BillingAccount, now: datetime
) -> Step:
    if attempt.payment_intent_id is not None:
        return Step.RETRIEVE
    # Whether a displaced one is still wanted nobody asks: it may have ended long ago.
    if attempt.failure_code == DISPLACED:
        return Step.FIND
    if attempt.first_sent_at is None:
        # One that is as old as that may have been sent all the same: before this database was restored.
        return Step.SEND if now - attempt.created_at < SEND_WINDOW else Step.FIND
    if not may_send(attempt.first_sent_at, now):
        return Step.FIND
    # A charge that may not have been made is not made after a no: reloads disabled, a lower limit, money that went back, the org
    # suspended. If it was made, it is found. That the balance has risen is no such no: the answer is wanted soon, and a repeat
    # brings it.
    empty = structs.replace(account, balance_cents=0)
    said = _rule_says(connection, attempt, empty, billing, now, amount_cents=attempt.amount_cents)
    return Step.SEND if isinstance(said, Due) else Step.FIND


def _why_unwanted(
    connection: Connection, attempt: Attempt, account: BalanceChange, billing: BillingAccount, now: datetime
) -> str | None:
    """Why the rule, asked once more before anything is sent, would not make this very attempt; None where it would.

    One that a month's turn has found unsent is made anew: a reload counts in the month in which it is first sent.
    """
    if not _unsent(attempt):
        return None
    if may_send(attempt.created_at, now) and not same_month(attempt.created_at, now):
        return MONTH_TURNED
    amount_cents = billing.auto_reload_amount_cents
    said = _rule_says(connection, attempt, account, billing, now, amount_cents=amount_cents)
    same_card = billing.default_payment_method_id == attempt.payment_method_id
    return None if same_card and said == Due(attempt.amount_cents) else NO_LONGER_WANTED


def _rule_says(
    connection: Connection,
    attempt: Attempt,
    account: BalanceChange,
    billing: BillingAccount,
    now: datetime,
    *,
    amount_cents: int,
) -> Due | Skipped:
    """What the rule says now if this attempt weren't there, to a charge on its card.

    One that may have been charged in the month in which it was first sent must also fit into the one in which it is repeated.
    """
    so_far = reloads_so_far(connection, attempt.org_id, now, but=attempt.id)
    asked = ReloadAccount(
        balance_cents=account.balance_cents,
        enabled=billing.auto_reload_enabled,
        minimum_cents=billing.auto_reload_minimum_cents,
        amount_cents=amount_cents,
        monthly_limit_cents=billing.auto_reload_monthly_limit_cents,
        has_payment_method=True,
        attempt_open=False,  # it is this one
        pause=read_standing(connection, attempt.org_id).pause,
        paced_until=so_far.paced_until
        if attempt.first_sent_at is None
        else None,  # a repeat is no other charge
        suspended=account.suspended,
        refused=note_behind(connection, attempt.org_id, attempt.id, now),
    )
    return reload_due(asked, so_far.committed_cents, now)
