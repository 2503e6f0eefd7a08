"""An org while its charge is settled: what is known of it under the lock, and what is to be told after the commit."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from db.accounts.billing import BillingAccount
from db.attempts.attempts import Attempt, find_attempt
from db.attempts.outbox import SignalKey, add_signal
from db.ledger.post_calls import BalanceChange


@dataclass(slots=True)
class LockedOrg:
    """One org, locked for the rest of the caller's transaction."""

    connection: Connection
    account: BalanceChange
    """Changed by what is posted."""
    billing: BillingAccount
    now: datetime
    """Postgres's clock, read under the lock."""
    signals: list[SignalKey] = field(default_factory=list)
    """Written to the outbox, to be published after the commit."""

    @property
    def id(self) -> int:
        """The org's id."""
        return self.account.org_id

    def add_signal(self, type_: str, attempt: Attempt, **others: object) -> None:
        """Write a signal about an attempt to the outbox."""
        fields = {"attempt_id": str(attempt.id), "amount_cents": attempt.amount_cents, **others}
        self.signals.append((self.id, add_signal(self.connection, self.id, type_, fields, self.now)))

    def read_attempt(self, attempt_id: UUID) -> Attempt:
        """An attempt as it is by now. Raises LookupError if it is gone."""
        attempt = find_attempt(self.connection, self.id, attempt_id)
        if attempt is None:
            raise LookupError(f"attempt {attempt_id} of org {self.id} has just been there")
        return attempt
