"""An org's billing account: its reload settings, its customer at Stripe, its cards."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from db.accounts.statements import BILLING_OF_ORG
from db.attempts.attempts import finish_attempt, open_reload
from db.attempts.reload_rule import Reloads, ask_reload_rule, read_standing, write_pause
from db.ledger.post_calls import BalanceChange, lock_accounts
from db.models import Account, PaymentMethod
from db.postgres.engine import driver_connection, transaction
from metering.rules.payments import AttemptStatus
from metering.rules.reloads import MAX_LIFTS, lifted_by_change, may_lift_at, was_declined


@dataclass(frozen=True, slots=True)
class BillingAccount:
    """What a customer sees of his account, and what payments need of it. Amounts are 0 while they were never set."""

    org_id: int
    balance_cents: int
    auto_reload_enabled: bool
    auto_reload_minimum_cents: int
    auto_reload_amount_cents: int
    auto_reload_monthly_limit_cents: int | None
    minimum_set: bool
    """Whether the minimum was ever set, as the next for the amount."""
    amount_set: bool
    stripe_customer_id: str | None
    default_payment_method_id: str | None
    default_card_identity: str | None
    created_at: datetime
    pause_code: str | None
    """What the pause of its reloads is for, in force or run out, as the next until when time lets it last."""
    paused_until: datetime | None

    def auto_reload_paused(self, now: datetime) -> str | None:
        """The code of the pause in force; None where there is none."""
        return None if self.paused_until is not None and now >= self.paused_until else self.pause_code

    @property
    def has_payment_method(self) -> bool:
        """Whether there is a default card."""
        return self.default_payment_method_id is not None

    @property
    def card(self) -> str | None:
        """The default card: by its identity, which stays the same when it is saved again."""
        return self.last_card if self.has_payment_method else None

    @property
    def last_card(self) -> str | None:
        """The default card, or the last one there was, as far as its identity is known."""
        return self.default_card_identity or self.default_payment_method_id


SETTINGS: Final = frozenset(
    {
        "auto_reload_enabled",
        "auto_reload_minimum_cents",
        "auto_reload_amount_cents",
        "auto_reload_monthly_limit_cents",
    }
)


def read_billing(connection: Connection, org_id: int) -> BillingAccount | None:
    """An org's billing account; None for an org that isn't there."""
    row = driver_connection(connection).execute(BILLING_OF_ORG, [org_id], binary=True).fetchone()
    return None if row is None else BillingAccount(*row)


def read_account(engine: Engine, org_id: int) -> BillingAccount | None:
    """As `read_billing`, in a transaction of its own."""
    with transaction(engine) as connection:
        return read_billing(connection, org_id)


def lock_billing(connection: Connection, org_id: int) -> tuple[BalanceChange, BillingAccount] | None:
    """Lock an org's account and read it, in the caller's transaction; None for an org that isn't there."""
    change = lock_accounts(driver_connection(connection), [org_id]).get(org_id)
    billing = read_billing(connection, org_id)
    return None if change is None or billing is None else (change, billing)


def keep_customer(connection: Connection, org_id: int, customer_id: str) -> str:
    """Make a customer, whom the org has claimed, its present one, unless it has another; give the one that counts."""
    locked = lock_billing(connection, org_id)
    if locked is not None and locked[1].stripe_customer_id is not None:
        return locked[1].stripe_customer_id
    connection.execute(update(Account).where(Account.org_id == org_id).values(stripe_customer_id=customer_id))
    return customer_id


def change_customer(connection: Connection, org_id: int, missing_id: str, customer_id: str) -> Reloads | None:
    """Put a new customer, without cards, in the place of one whom Stripe doesn't have; None where another is there by now."""
    locked = lock_billing(connection, org_id)
    if locked is None or locked[1].stripe_customer_id != missing_id:
        return None
    reloads = drop_cards(connection, *locked)
    connection.execute(update(Account).where(Account.org_id == org_id).values(stripe_customer_id=customer_id))
    return reloads


def drop_cards(connection: Connection, change: BalanceChange, before: BillingAccount) -> Reloads:
    """Note that none of the org's payment methods can be charged any more, under its lock: their customer is gone."""
    connection.execute(
        update(PaymentMethod)
        .where(PaymentMethod.org_id == change.org_id, PaymentMethod.detached_at.is_(None))
        .values(detached_at=change.now)
    )
    return _take_default(connection, change, before)


def change_settings(
    connection: Connection, change: BalanceChange, before: BillingAccount, values: Mapping[str, object]
) -> Reloads:
    """Write reload settings of an org that is locked, and let what follows from them happen.

    Disabling cancels an auto-reload that has not been sent. A value that really changed ends a pause, but for one that asks for
    another card. The rule is asked at once.
    """
    if not values.keys() <= SETTINGS:
        raise ValueError(f"no reload settings: {sorted(values.keys() - SETTINGS)}")
    if values:
        connection.execute(update(Account).where(Account.org_id == change.org_id).values(**values))
    changed = any(getattr(before, name) != value for name, value in values.items())
    return _after_change(connection, change, before.card, setting_changed=changed)


def set_default_card(
    connection: Connection,
    change: BalanceChange,
    before: BillingAccount,
    payment_method_id: str,
    card_identity: str | None,
) -> Reloads:
    """Make a payment method of the org's customer its default, under the org's lock; the rule is asked at once."""
    note_ready(connection, change.org_id, payment_method_id, change.now)
    connection.execute(
        update(Account)
        .where(Account.org_id == change.org_id)
        .values(default_payment_method_id=payment_method_id, default_card_identity=card_identity)
    )
    return _after_change(connection, change, before.card, setting_changed=False)


def note_ready(connection: Connection, org_id: int, payment_method_id: str, at: datetime) -> None:
    """Note that a payment method is attached to the org's customer and can be charged."""
    statement = insert_or_update(PaymentMethod).values(
        org_id=org_id, payment_method_id=payment_method_id, ready_at=at
    )
    connection.execute(statement.on_conflict_do_nothing())


def is_detached(connection: Connection, org_id: int, payment_method_id: str) -> bool:
    """Whether a payment method of the org was taken from its customer: at Stripe that is for ever."""
    detached_at = select(PaymentMethod.detached_at).where(
        PaymentMethod.org_id == org_id, PaymentMethod.payment_method_id == payment_method_id
    )
    return connection.scalar(detached_at) is not None


def note_detached(
    connection: Connection, change: BalanceChange, before: BillingAccount, payment_method_id: str
) -> Reloads:
    """Note that a payment method can no longer be charged. If it was the default, the org has none now: reloads stop."""
    statement = insert_or_update(PaymentMethod).values(
        org_id=change.org_id,
        payment_method_id=payment_method_id,
        ready_at=change.now,
        detached_at=change.now,
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[PaymentMethod.org_id, PaymentMethod.payment_method_id],
            set_={"detached_at": change.now},
        )
    )
    if before.default_payment_method_id != payment_method_id:
        return Reloads()
    return _take_default(connection, change, before)


def note_updated(
    connection: Connection,
    change: BalanceChange,
    before: BillingAccount,
    payment_method_id: str,
    card_identity: str | None,
) -> Reloads:
    """Note that a payment method's card has another number or expiry. If it is the default, that may end a pause."""
    if before.default_payment_method_id != payment_method_id:
        return Reloads()
    connection.execute(
        update(Account).where(Account.org_id == change.org_id).values(default_card_identity=card_identity)
    )
    return _after_change(connection, change, before.card, setting_changed=False)


def _take_default(connection: Connection, change: BalanceChange, before: BillingAccount) -> Reloads:
    if before.default_payment_method_id is None:
        return Reloads()
    connection.execute(
        update(Account)
        .where(Account.org_id == change.org_id)
        .values(default_payment_method_id=None)  # the identity stays: saved again, the card is no other one
    )
    return _after_change(connection, change, before.card, setting_changed=False)


def find_org_of_payment_method(connection: Connection, payment_method_id: str) -> int | None:
    """The org that has saved this payment method, as far as we know."""
    return connection.scalar(
        select(PaymentMethod.org_id).where(PaymentMethod.payment_method_id == payment_method_id).limit(1)
    )


def _after_change(
    connection: Connection, change: BalanceChange, card_before: str | None, *, setting_changed: bool
) -> Reloads:
    """What a change of the settings or the card leads to: the unsent attempt goes, the pause may go, the rule is asked."""
    now = read_billing(connection, change.org_id)
    if now is None:
        raise ValueError(f"there is no org {change.org_id}")
    card_changed = now.card != card_before
    if not (card_changed or setting_changed):
        return ask_reload_rule(connection, {change.org_id: change.now})
    # Made anew at once, with what is now in force, if it is still due.
    unsent = cancel_unsent_reload(connection, change, code="settings_changed")
    _lift_pause(connection, change, now.card, setting_changed=setting_changed)
    reloads = ask_reload_rule(connection, {change.org_id: change.now})
    reloads.cancelled += unsent
    return reloads


def cancel_unsent_reload(connection: Connection, change: BalanceChange, *, code: str) -> bool:
    """End the org's open auto-reload if it has not been sent, under the org's lock; give whether there was such a one."""
    attempt = open_reload(connection, change.org_id)
    if attempt is None or attempt.first_sent_at is not None:
        return False
    finish_attempt(connection, attempt, AttemptStatus.CANCELLED, change.now, code=code)
    return True


def _lift_pause(
    connection: Connection, change: BalanceChange, card: str | None, *, setting_changed: bool
) -> None:
    """End the pause if a change does. A card that was not declined lately always may; all else only so often."""
    standing = read_standing(connection, change.org_id)
    pause = standing.pause
    if pause is None or not lifted_by_change(pause, card=card, setting_changed=setting_changed):
        return
    another_card = card is not None and lifted_by_change(pause, card=card, setting_changed=False)
    if card is not None and another_card and not was_declined(card, pause, standing.declined_cards):
        write_pause(connection, change.org_id, None, declines=0)
    elif may_lift_at(standing.lifts, change.now) <= change.now:
        lifts = [*sorted(standing.lifts), change.now][-MAX_LIFTS:]
        write_pause(connection, change.org_id, None, declines=0, lifts=lifts)
