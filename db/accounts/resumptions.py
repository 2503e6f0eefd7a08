"""Lifting the pause of an org's reloads by hand (docs/reference/auto-reload.md#pauses)."""

from sqlalchemy import Connection, insert

from db.accounts.billing import lock_billing
from db.attempts.reload_rule import Reloads, ask_reload_rule, read_standing, write_pause
from db.models import ReloadResumption
from db.models.errors import UnknownOrgError
from metering.rules.reloads import Pause


class NotPausedError(ValueError):
    """An org's reloads are not paused."""


def resume_reloads(connection: Connection, org_id: int, *, by: str, reason: str) -> tuple[Pause, Reloads]:
    """Lift the pause of an org's reloads, whatever it is for, in the caller's transaction; give it, and what follows.

    It is kept by whom, when and why. What settings may lift, and which cards are another one, begins anew. Raises
    UnknownOrgError, NotPausedError.
    """
    locked = lock_billing(connection, org_id)
    if locked is None:
        raise UnknownOrgError(org_id)
    now = locked[0].now
    pause = read_standing(connection, org_id).pause
    if pause is None or not pause.holds(now):
        raise NotPausedError(f"the reloads of org {org_id} are not paused")
    connection.execute(
        insert(ReloadResumption).values(
            org_id=org_id, code=pause.code, resumed_at=now, resumed_by=by, reason=reason
        )
    )
    write_pause(connection, org_id, None, declines=0, lifts=[], declined_cards=[])
    return pause, ask_reload_rule(connection, {org_id: now})
