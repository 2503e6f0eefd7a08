"""What an org's auto-reloads hold of a month's limit, and when they were sent (docs/reference/auto-reload.md#monthly-limit)."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from db.attempts.statements import RELOADS_SO_FAR
from metering.rules.reloads import paced_until


@dataclass(frozen=True, slots=True)
class ReloadsSoFar:
    """What an org's auto-reloads hold of the month's limit, and until when their pace lets no other one be sent."""

    committed_cents: int
    paced_until: datetime | None


def reloads_so_far(
    connection: Connection, org_id: int, at: datetime, *, but: UUID | None = None
) -> ReloadsSoFar:
    """How an org's auto-reloads stand at a time, one attempt left out."""
    row = connection.execute(RELOADS_SO_FAR, {"org_id": org_id, "at": at, "but": but}).one()
    return ReloadsSoFar(row.committed_cents, paced_until(row.first_sends or ()))
