"""What the API says to a call that wants to start, or to go on."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class PricedHold:
    """Money held for a call, or why there is none. All but the first three are None where the call isn't allowed."""

    org_id: int
    call_id: int
    allowed: bool
    """Whether the call may start, or go on. One that may not go on lasts as long as it was told before."""
    code: str | None = None
    """Why not: `balance_exhausted`, `insufficient_balance`, `org_suspended`, `call_ended`, `too_many_calls`, or `not_found`."""
    max_duration_seconds: int | None = None
    """How long it may last in all: less than was asked for where the money ends sooner."""
    held_cents: int | None = None
    """What is held for it: the most that it may cost."""
    available_cents: int | None = None
    """What the org has left for other calls."""
    expires_at: datetime | None = None
    """When the hold lapses."""
    final: bool | None = None
    """Of a renewal: whether the money ends there, as things stand."""
