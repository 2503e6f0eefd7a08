"""What commands say of charges and auto-reloads."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from db.attempts.reload_status import ReloadStatus, ReloadStop
from metering.console.output import add_row, say, show_table, table
from metering.rules.money import format_usd
from metering.rules.times import format_time


def reload_json(status: ReloadStatus, now: datetime) -> dict[str, Any]:
    """For programs."""
    return {
        "attempts": {
            "open": status.attempts_open,
            "oldest_open_seconds": _age_s(status.oldest_open_at, now),
        },
        "reloads": {
            "orgs_enabled": status.enabled,
            "orgs_paused": status.paused,
            "orgs_waiting": status.waiting,
            "orgs_limited": status.limited,
            "least_left": [asdict(each) for each in status.least_left],
        },
    }


def show_reloads(status: ReloadStatus, now: datetime) -> None:
    """For people."""
    shown = table("charges and auto-reloads", ">how many")
    age_s = _age_s(status.oldest_open_at, now)
    for row in (
        ("open attempts", f"{sum(status.attempts_open.values()):,}"),
        *((f"  {kind}", f"{number:,}") for kind, number in status.attempts_open.items()),
        ("oldest of these, seconds", None if age_s is None else f"{age_s:,.1f}"),
        ("orgs that have auto-reload enabled", f"{status.enabled:,}"),
        ("orgs whose reloads are paused", f"{sum(status.paused.values()):,}"),
        *((f"  {code}", f"{number:,}") for code, number in status.paused.items()),
        ("orgs that wait for a reload", f"{sum(status.waiting.values()):,}"),
        *((f"  {reason}", f"{number:,}") for reason, number in status.waiting.items()),
        ("orgs that have a monthly limit", f"{status.limited:,}"),
    ):
        add_row(shown, row)
    show_table(shown)
    if not status.least_left:
        return
    shown = table(">org", ">limit of the month, USD", ">taken", ">left")
    for each in status.least_left:
        amounts = (each.monthly_limit_cents, each.committed_cents, each.left_cents)
        add_row(shown, [each.org_id, *map(format_usd, amounts)])
    show_table(shown)
    if status.limited > len(status.least_left):
        say(f"{len(status.least_left)} of {status.limited:,} with a limit: those that have least left.")


def _age_s(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else max((now - at).total_seconds(), 0.0)


def lifted_by(stop: ReloadStop) -> str:
    """What lifts it, in words."""
    settings = (
        "a setting that changes"
        if stop.settings_lift_from is None
        else f"a setting that changes after {format_time(stop.settings_lift_from)}"
    )
    by_time = None if stop.until is None else format_time(stop.until)
    if not stop.paused:
        return {
            "suspended": "`metering org resume`",
            "pace": f"time: {by_time}",
            "monthly_limit": f"the next month, at {by_time}, or another limit",
        }.get(stop.code, "a saved card")
    if stop.lifts_with == "card":
        return "a different card, or `metering reload resume`"
    others = f"another card, {settings}, or `metering reload resume`"
    return others if by_time is None else f"time: {by_time}; {others}"
