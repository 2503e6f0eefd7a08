"""How times are written (CONTRACT.md section 2, rule 10)."""

from datetime import UTC, datetime


def format_time(at: datetime) -> str:
    """An aware time in UTC with milliseconds: `2026-04-20T18:25:06.201Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
