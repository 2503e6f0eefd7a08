"""Top-ups: a charge that a customer makes, once, however often he has to ask (docs/reference/http-api.md#top-ups)."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy import Connection

from db.accounts.billing import BillingAccount, lock_billing
from db.attempts.attempts import Attempt, change_attempt, find_attempt, make_attempt, unanswered_top_up
from db.models.errors import OrgError
from db.payments.idempotency_keys import KeptKey, attempt_of_key, find_key, keep_answer, keep_key
from db.payments.next_step import Step
from db.postgres.clock import read_clock
from db.postgres.engine import transaction
from metering.payments.cards import ensure_customer, not_done, own_card, require_account
from metering.payments.charges import AttemptProgress, execute_step, process_attempt
from metering.payments.context import Payments
from metering.payments.errors import (
    IdempotencyConflictError,
    InvalidAmountError,
    InvalidPaymentMethodError,
    PaymentMethodRequiredError,
)
from metering.payments.outcomes import TopUpMade, TopUpOutcome
from metering.payments.stripe_failures import StripeFailure
from metering.payments.top_up_outcome import outcome_of
from metering.rules.lookup_schedule import TOP_UP_WINDOW, WORK_LEASE
from metering.rules.payments import AttemptKind, IntentStatus
from metering.runtime.crashpoints import CrashPoint, reach

WAIT_LIMIT_S: Final = WORK_LEASE.total_seconds() + 5
"""How long a request waits for another one with the same attempt in hand: until that one's lease has run out."""
POLL_EVERY_S: Final = 0.05

_decode: Final[Callable[[str], TopUpOutcome]] = msgspec.json.Decoder(TopUpOutcome).decode


@dataclass(frozen=True, slots=True)
class ToppedUp:
    """What to tell the client, and of which attempt."""

    outcome: TopUpOutcome
    attempt_id: UUID

    @property
    def decided(self) -> bool:
        """Whether it says how the charge stands, and not only that the bank still thinks about it."""
        return not (isinstance(self.outcome, TopUpMade) and self.outcome.status == IntentStatus.PROCESSING)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what it means: the payment method that it comes to."""

    org_id: int
    amount_cents: int
    customer_id: str
    payment_method_id: str
    key: str | None
    request_sha256: bytes


def top_up(
    payments: Payments,
    org_id: int,
    *,
    amount_cents: int,
    payment_method_id: str | None,
    idempotency_key: str | None,
) -> ToppedUp:
    """Charge the org's card, or give the outcome of the identical charge that is under way or that nobody was told of.

    Blocks for as long as Stripe takes. Once the client has the answer, `mark_told` is to be called: until then an identical
    request gets this one's outcome.

    Raises InvalidAmountError, PaymentMethodRequiredError, InvalidPaymentMethodError, IdempotencyConflictError,
    ProviderRefusedError where Stripe won't make such a charge, and ProviderUnavailableError where nothing was charged or it isn't
    known: then the same request may be sent again.
    """
    _check_amount(payments, amount_cents)
    request_sha256 = hashlib.sha256(json.dumps([amount_cents, payment_method_id]).encode()).digest()
    if idempotency_key is not None:
        with transaction(payments.engine) as connection:
            kept = _kept(connection, org_id, idempotency_key, request_sha256)
        if kept is not None:  # also where the card that it charged is no longer the default
            return _repeat(payments, org_id, idempotency_key, kept)
    billing = require_account(payments, org_id)
    try:
        customer_id, chosen = _choose_card(payments, billing, payment_method_id)
    except (PaymentMethodRequiredError, InvalidPaymentMethodError):
        untold = _find_untold(payments, org_id, amount_cents, payment_method_id)
        if untold is None:
            raise
        customer_id, chosen = untold.customer_id, untold.payment_method_id
    asked = _Asked(org_id, amount_cents, customer_id, chosen, idempotency_key, request_sha256)
    while True:
        begun = _begin(payments, asked)
        if isinstance(begun, KeptKey):  # somebody with the same key was quicker
            return _repeat(payments, org_id, idempotency_key or "", begun)
        if begun.made:
            reach(CrashPoint.TOP_UP_AFTER_ATTEMPT)
            outcome = outcome_of(payments, execute_step(payments, Step.SEND, begun.attempt))
            return _answer(payments, begun.attempt, idempotency_key, outcome)
        if begun.joined:
            return _join(payments, begun.attempt, idempotency_key)
        _wait_until_told(payments, begun.attempt)


def mark_told(payments: Payments, org_id: int, done: ToppedUp, *, heard: bool) -> None:
    """Note what a client was told, or with `heard` false that it had gone before.

    Whoever heard only that the bank still decides asks for no other charge by asking again, and gets this one's outcome.
    """
    mark = mark_answered if heard and done.decided else mark_unanswered
    mark(payments, org_id, done.attempt_id)


def mark_answered(payments: Payments, org_id: int, attempt_id: UUID) -> None:
    """Note that a client was told the outcome: an identical top-up is from now on another one."""
    reach(CrashPoint.TOP_UP_BEFORE_MARK)
    with transaction(payments.engine) as connection:
        locked = _lock(connection, org_id, attempt_id)
        if locked is not None and locked[0].answered_at is None:
            attempt, now = locked
            change_attempt(connection, attempt, answered_at=now, in_hand_until=None)


def mark_unanswered(payments: Payments, org_id: int, attempt_id: UUID) -> None:
    """Note that no client was told the outcome: an identical request gets it, and needn't wait."""
    with transaction(payments.engine) as connection:
        locked = _lock(connection, org_id, attempt_id)
        if locked is not None and locked[0].answered_at is None:
            change_attempt(connection, locked[0], in_hand_until=None)


def _check_amount(payments: Payments, amount_cents: int) -> None:
    limits = payments.top_up_limits
    if not limits.min_cents <= amount_cents <= limits.max_cents:
        raise InvalidAmountError(
            f"amount_cents must be a whole number of cents from {limits.min_cents} to {limits.max_cents}"
        )


def _choose_card(
    payments: Payments, billing: BillingAccount, payment_method_id: str | None
) -> tuple[str, str]:
    """Customer and payment method to charge."""
    if payment_method_id is not None and payment_method_id != billing.default_payment_method_id:
        card = own_card(payments, billing, payment_method_id)
        return card.customer_id or "", card.id
    if billing.default_payment_method_id is None:
        raise PaymentMethodRequiredError(
            "there is no card on file: save one (POST /v1/billing/setup-intent), then make it the default"
            " (POST /v1/billing/default-payment-method)"
        )
    try:
        return ensure_customer(payments, billing.org_id), billing.default_payment_method_id
    except StripeFailure as failure:
        raise not_done(failure) from failure


def _find_untold(
    payments: Payments, org_id: int, amount_cents: int, payment_method_id: str | None
) -> Attempt | None:
    """The identical top-up of which no client was told: its card is gone by now, and it may have been charged before that."""
    with transaction(payments.engine) as connection:
        return unanswered_top_up(
            connection,
            org_id,
            amount_cents=amount_cents,
            payment_method_id=payment_method_id,
            since=read_clock(connection) - TOP_UP_WINDOW,
        )


@dataclass(frozen=True, slots=True)
class _Begun:
    """The attempt that a request has to do with: its own, or an identical one that it joins.

    Neither where somebody has an outcome that he may be telling his client right now: whether this request is another one, or
    gets that outcome, depends on whether he succeeds.
    """

    attempt: Attempt
    made: bool = False
    joined: bool = False


def _begin(payments: Payments, asked: _Asked) -> _Begun | KeptKey:
    """Write a new attempt, or join the identical one that nobody was told of; under the org's lock."""
    with transaction(payments.engine) as connection:
        locked = lock_billing(connection, asked.org_id)
        if locked is None:
            raise OrgError(f"there is no org {asked.org_id}")
        if asked.key is not None:
            kept = _kept(connection, asked.org_id, asked.key, asked.request_sha256)
            if kept is not None:
                return kept
        now = locked[0].now
        attempt_id, found = _named_by_key(connection, asked)
        found = found or unanswered_top_up(
            connection,
            asked.org_id,
            amount_cents=asked.amount_cents,
            payment_method_id=asked.payment_method_id,
            since=now - TOP_UP_WINDOW,
        )
        if found is not None and found.outcome_known and found.in_hand(now):
            return _Begun(found)
        attempt = found or _make(connection, asked, attempt_id, now, payments.return_url)
        if asked.key is not None:
            keep_key(
                connection,
                asked.org_id,
                asked.key,
                request_sha256=asked.request_sha256,
                attempt_id=attempt.id,
                at=now,
            )
        return _Begun(attempt, made=found is None, joined=found is not None)


def _named_by_key(connection: Connection, asked: _Asked) -> tuple[UUID | None, Attempt | None]:
    """The attempt's id that follows from the request's key, and the attempt, which is there without a key after a restore."""
    if asked.key is None:
        return None, None
    return attempt_of_key(
        connection,
        asked.org_id,
        asked.key,
        customer_id=asked.customer_id,
        request_sha256=asked.request_sha256,
    )


def _make(
    connection: Connection, asked: _Asked, attempt_id: UUID | None, now: datetime, return_url: str | None
) -> Attempt:
    attempt_id = make_attempt(
        connection,
        asked.org_id,
        AttemptKind.TOP_UP,
        amount_cents=asked.amount_cents,
        customer_id=asked.customer_id,
        payment_method_id=asked.payment_method_id,
        return_url=return_url,
        at=now,
        attempt_id=attempt_id,
    )
    attempt = find_attempt(connection, asked.org_id, attempt_id)
    if attempt is None:
        raise LookupError(f"attempt {attempt_id} of org {asked.org_id} has just been there")
    return attempt


def _kept(connection: Connection, org_id: int, key: str, request_sha256: bytes) -> KeptKey | None:
    """What a key stands for. None for a new one, and for one whose attempt ended uncharged: 502 is not kept.

    Raises IdempotencyConflictError if it was used for another request.
    """
    kept = find_key(connection, org_id, key)
    if kept is None:
        return None
    if kept.request_sha256 != request_sha256:
        raise IdempotencyConflictError(
            "this Idempotency-Key was used before with another body: use a new key for another top-up"
        )
    if kept.answer is None:
        attempt = find_attempt(connection, org_id, kept.attempt_id)
        if attempt is None or attempt.uncharged:
            return None
    return kept


def _repeat(payments: Payments, org_id: int, key: str, kept: KeptKey) -> ToppedUp:
    """The answer to a request whose key was used before."""
    if kept.answer is not None:
        return ToppedUp(_decode(kept.answer), kept.attempt_id)
    attempt, _ = _read(payments, org_id, kept.attempt_id)
    return _join(payments, attempt, key)


def _join(payments: Payments, attempt: Attempt, key: str | None) -> ToppedUp:
    """Wait for whoever has the attempt in hand, work on it if nobody has, and give its outcome."""
    for _ in _waiting():
        if key is not None:
            with transaction(payments.engine) as connection:
                kept = find_key(connection, attempt.org_id, key)
            if kept is not None and kept.answer is not None:
                return ToppedUp(_decode(kept.answer), attempt.id)
        now_known, now = _read(payments, attempt.org_id, attempt.id)
        if now_known.outcome_known:
            return _answer(payments, attempt, key, outcome_of(payments, AttemptProgress(now_known)))
        if not now_known.in_hand(now):
            progress = process_attempt(payments, attempt.org_id, attempt.id, for_client=True)
            if progress.failure is not None or progress.intent is not None or _ended(progress):
                return _answer(payments, attempt, key, outcome_of(payments, progress))
            now_known, now = _read(payments, attempt.org_id, attempt.id)
            if not now_known.in_hand(now):
                break  # it was looked for, and isn't there (yet)
    raise not_done(None)


def _ended(progress: AttemptProgress) -> bool:
    return progress.attempt is not None and not progress.attempt.open


def _wait_until_told(payments: Payments, attempt: Attempt) -> None:
    """Wait while a client may be being told of the attempt: until he was, or has gone, or whoever told him has died."""
    for _ in _waiting():
        now_known, now = _read(payments, attempt.org_id, attempt.id)
        if now_known.answered_at is not None or not now_known.in_hand(now):
            return


def _waiting() -> Iterator[None]:
    """Turns of a loop that waits for somebody else, with a limit."""
    deadline_s = time.monotonic() + WAIT_LIMIT_S
    while time.monotonic() < deadline_s:
        yield
        time.sleep(POLL_EVERY_S)


def _answer(payments: Payments, attempt: Attempt, key: str | None, outcome: TopUpOutcome) -> ToppedUp:
    """Keep the outcome with the key, if there is one: whoever was first with an answer gives it to all."""
    reach(CrashPoint.TOP_UP_BEFORE_ANSWER)
    if key is not None:
        outcome = _decode(
            keep_answer(payments.engine, attempt.org_id, key, msgspec.json.encode(outcome).decode())
        )
        reach(CrashPoint.TOP_UP_AFTER_KEEP)
    return ToppedUp(outcome, attempt.id)


def _read(payments: Payments, org_id: int, attempt_id: UUID) -> tuple[Attempt, datetime]:
    """An attempt, and Postgres's clock."""
    with transaction(payments.engine) as connection:
        attempt, now = find_attempt(connection, org_id, attempt_id), read_clock(connection)
    if attempt is None:
        raise LookupError(f"attempt {attempt_id} of org {org_id} is gone")
    return attempt, now


def _lock(connection: Connection, org_id: int, attempt_id: UUID) -> tuple[Attempt, datetime] | None:
    """An attempt, its org locked, and Postgres's clock after that."""
    locked = lock_billing(connection, org_id)
    attempt = find_attempt(connection, org_id, attempt_id)
    return None if locked is None or attempt is None else (attempt, locked[0].now)
