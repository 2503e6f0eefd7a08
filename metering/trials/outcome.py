"""What the product made of simulated calls, read from its tables, and whether that is what telephony's record says."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select, text

from db.models import Account, RejectedEvent
from metering.rules.rejections import Reason
from metering.sandbox.telephony.call_record import CallRecord, OrgRecord

# An org's transactions are committed in the order of their ids, so nothing turns up later below the highest that was seen.
_DEBITS_SINCE = text("""
    SELECT org_id, count(*) AS calls, sum(billable_seconds) AS seconds, -sum(amount_cents) AS cents, max(id) AS last_id
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:last_ids AS bigint[])) AS seen (org_id, last_id)
    JOIN transactions USING (org_id)
    WHERE transactions.id > seen.last_id AND kind = 'debit'
    GROUP BY org_id
""")


def last_rejection_id(connection: Connection) -> int:
    """The newest rejected event's id, 0 if there is none."""
    return connection.scalar(select(func.max(RejectedEvent.id))) or 0


@dataclass
class Outcome:
    """What became of the calls of some orgs; `read` brings it up to date."""

    org_ids: Sequence[int]
    after_rejection_id: int
    """Rejected events up to this one belong to somebody else."""
    orgs: dict[int, OrgRecord] = field(default_factory=dict)
    balances_cents: dict[int, int] = field(default_factory=dict)
    rejections: Counter[str] = field(default_factory=Counter)
    _last_ids: dict[int, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sum(org.calls for org in self.orgs.values())

    @property
    def minutes(self) -> int:
        return sum(org.minutes for org in self.orgs.values())

    @property
    def cents(self) -> int:
        return sum(org.cents for org in self.orgs.values())

    def read(self, connection: Connection, stream_ids: Collection[str]) -> None:
        """Take in what was committed since the last time; of the rejected events those with one of `stream_ids`."""
        last_ids = [self._last_ids.get(org_id, 0) for org_id in self.org_ids]
        for row in connection.execute(_DEBITS_SINCE, {"org_ids": list(self.org_ids), "last_ids": last_ids}):
            org = self.orgs.setdefault(row.org_id, OrgRecord())
            org.calls += row.calls
            org.minutes += int(row.seconds) // 60
            org.cents += int(row.cents)
            self._last_ids[row.org_id] = row.last_id
        accounts = select(Account.org_id, Account.balance_cents).where(Account.org_id.in_(self.org_ids))
        self.balances_cents = {row.org_id: row.balance_cents for row in connection.execute(accounts)}
        rejected = select(RejectedEvent.stream_id, RejectedEvent.reason).where(
            RejectedEvent.id > self.after_rejection_id
        )
        self.rejections = Counter(
            row.reason for row in connection.execute(rejected) if row.stream_id in stream_ids
        )


def differences(record: CallRecord, outcome: Outcome) -> list[str]:
    """Where the product and telephony's record disagree: a sentence for each org and each reason; none if all is well."""
    nothing = OrgRecord()
    found = [
        f"Org {org_id} was billed {_told(billed)}; telephony's record says {_told(expected)}."
        for org_id in outcome.org_ids
        if (billed := outcome.orgs.get(org_id, nothing)) != (expected := record.orgs.get(org_id, nothing))
    ]
    found += [
        f"{outcome.rejections[reason]} events were rejected as {reason}; "
        f"telephony's record says {record.rejections[reason]}."
        for reason in Reason
        if outcome.rejections[reason] != record.rejections[reason]
    ]
    return found


def _told(org: OrgRecord) -> str:
    return f"{org.calls} calls, {org.minutes} minutes, {org.cents} cents"
