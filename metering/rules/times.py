"""How times are written (docs/reference/money-rules.md#times-and-months)."""

from datetime import UTC, datetime, timedelta


def format_time(at: datetime) -> str:
    """An aware time in UTC with milliseconds: `2026-04-20T18:25:06.201Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_milliseconds(at_ms: int) -> datetime:
    """A time as Redis's clock has it: milliseconds since 1970."""
    return datetime.fromtimestamp(at_ms // 1_000, UTC) + timedelta(milliseconds=at_ms % 1_000)
