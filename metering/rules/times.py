"""How times are written (docs/reference/money-rules.md#times-and-months)."""

from datetime import UTC, datetime


def format_time(at: datetime) -> str:
    """An aware time in UTC with milliseconds: `2026-04-20T18:25:06.201Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
