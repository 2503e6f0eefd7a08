"""Telephony's own record of what it pushed: what the ledger has to agree with.

Nothing here asks the product's rules what a call costs; the record would be no witness if it did.
"""

from collections import Counter
from dataclasses import dataclass, field

from metering.rules.rejections import Reason
from metering.sandbox.telephony.calls import RATES_CENTS_PER_MINUTE, Push


@dataclass(slots=True)
class OrgRecord:
    """What an org's calls must have cost."""

    calls: int = 0
    minutes: int = 0
    cents: int = 0


@dataclass(slots=True)
class CallRecord:
    """Telephony's own account of what it pushed, kept push by push: so it is right wherever the pushing ends."""

    pushed: int = 0
    orgs: dict[int, OrgRecord] = field(default_factory=dict)
    duplicates: int = 0
    free: int = 0
    """Calls of 0 seconds, each time they were pushed: there is nothing to tell the second time by."""
    rejections: Counter[Reason] = field(default_factory=Counter)

    def add(self, push: Push) -> None:
        """Take note of one event that was pushed."""
        self.pushed += 1
        if push.reason is not None:
            self.rejections[push.reason] += 1
        elif push.duration_us == 0:
            self.free += 1
        elif push.repeated:
            self.duplicates += 1
        else:
            minutes = (push.duration_us + 59_999_999) // 60_000_000
            org = self.orgs.setdefault(push.org_id, OrgRecord())
            org.calls += 1
            org.minutes += minutes
            org.cents += minutes * RATES_CENTS_PER_MINUTE[push.tier]
