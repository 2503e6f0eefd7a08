"""What becomes of an event as far as it alone can tell: it is read, and its end compared with the time."""

from datetime import datetime

from metering.rules.events import ENDS_TOO_LATE, CallEvent, latest_end, parse_event
from metering.rules.rejections import Rejection


def judge_event(raw: bytes, now: datetime) -> CallEvent | Rejection:
    """The event, or why it can't be billed at `now`."""
    parsed = parse_event(raw)
    if isinstance(parsed, CallEvent) and parsed.ended_at > latest_end(now):
        return ENDS_TOO_LATE
    return parsed
