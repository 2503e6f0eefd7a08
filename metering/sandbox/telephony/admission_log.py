"""Telephony's own account of the gates that it asked: which calls it let in, and which it refused."""

from collections import Counter
from dataclasses import dataclass, field

from metering.sandbox.telephony.calls import Attempt
from metering.sandbox.telephony.signal_history import Position


@dataclass(slots=True)
class Admitted:
    """A call that was let in."""

    org_id: int
    asked_at: Position
    """The newest signal when its gate was asked: gate and log were read in one transaction, so their order is certain."""
    ended_s: float
    """When it ends, in seconds since the start of the simulation."""
    pushed_s: float | None = None
    """When its event was sent first, on the monotonic clock; None as long as it hasn't been."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that was refused because its org's gate wasn't open."""

    org_id: int
    asked_at: Position


@dataclass(slots=True)
class AdmissionLog:
    """What became of the calls that wanted to start."""

    calls: dict[tuple[int, int], Admitted] = field(default_factory=dict)
    """Those let in, by org and call id."""
    refusals: list[Refused] = field(default_factory=list)
    directions: Counter[str] = field(default_factory=Counter)
    """Those refused by a gate, by direction."""
    unanswered: int = 0
    """Those refused because no gate could be asked."""
    error: Exception | None = None
    """Why not, the last time."""

    def decide(self, attempt: Attempt, state: bytes | None, asked_at: Position) -> bool:
        """Let the call in if its gate is open; a gate that is missing isn't (docs/reference/gate.md#asking)."""
        if state == b"open":
            self.calls[attempt.org_id, attempt.call_id] = Admitted(attempt.org_id, asked_at, attempt.ended_s)
            return True
        self.refusals.append(Refused(attempt.org_id, asked_at))
        self.directions[attempt.direction] += 1
        return False
