"""Calls that were refused for want of money: noted, and made known to the reload rule.

See docs/reference/auto-reload.md#refused-calls.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine, select, update

from db.attempts.reload_rule import Reloads, ask_reload_rule
from db.attempts.statements import LOCK_FREE_ORGS, NOTE_REFUSED, UNASKED_REFUSALS
from db.models import RefusedHold
from db.postgres.arrays import array
from db.postgres.clock import read_clock
from db.postgres.engine import transaction
from metering.rules.reloads import REFUSAL_COUNTS_FOR, RefusalNote

PAGE: Final = 500
"""How many orgs are asked for in one transaction."""


def note_refused(engine: Engine, first_increments: Mapping[int, int]) -> None:
    """Note that calls of orgs were refused, each with what one first increment of its tier costs in cents.

    Once a minute for an org: one that was noted less than a minute ago stays as it is. Orgs that aren't there are passed over.
    """
    if not first_increments:
        return
    values = {"org_ids": array(first_increments), "cents": array(first_increments.values())}
    with transaction(engine) as connection:
        connection.execute(NOTE_REFUSED, values)


def ask_refused(engine: Engine) -> Iterator[Reloads]:
    """Ask the rule for every org that has a note for which it has not been asked; a page at a time, each committed.

    One that somebody else holds is left for the next time.
    """
    after = 0
    while True:
        with transaction(engine) as connection:
            page = list(connection.scalars(UNASKED_REFUSALS, {"after": after, "limit": PAGE}))
        if page:
            yield _ask(engine, page)
        if len(page) < PAGE:
            return
        after = page[-1]


def _ask(engine: Engine, org_ids: list[int]) -> Reloads:
    with transaction(engine) as connection:
        locked = connection.execute(LOCK_FREE_ORGS, {"org_ids": array(org_ids)}).all()
        now = read_clock(connection)
        orgs = [row.org_id for row in locked]
        # The notes too are locked in the order of orgs, as whoever notes and whoever makes a reload does.
        unasked = RefusedHold.org_id.in_(orgs), RefusedHold.asked_at.is_(None)
        connection.execute(
            select(RefusedHold.org_id).where(*unasked).order_by(RefusedHold.org_id).with_for_update()
        )
        connection.execute(update(RefusedHold).where(*unasked).values(asked_at=now))
        return ask_reload_rule(connection, dict.fromkeys(orgs, now))


def note_behind(connection: Connection, org_id: int, attempt_id: UUID, now: datetime) -> RefusalNote | None:
    """The note that an attempt was made for, however old; or one that counts now; under the org's lock."""
    row = connection.execute(
        select(RefusedHold.noted_at, RefusedHold.first_increment_cents, RefusedHold.attempt_id).where(
            RefusedHold.org_id == org_id
        )
    ).one_or_none()
    if row is None or row.attempt_id not in {None, attempt_id}:
        return None
    until = row.noted_at + REFUSAL_COUNTS_FOR
    return RefusalNote(
        row.first_increment_cents, until if row.attempt_id is None else max(until, now + REFUSAL_COUNTS_FOR)
    )


def release_note(connection: Connection, org_id: int, attempt_id: UUID) -> None:
    """Let the note that an attempt was made for make another one: this one was never sent, and is made anew."""
    connection.execute(
        update(RefusedHold)
        .where(RefusedHold.org_id == org_id, RefusedHold.attempt_id == attempt_id)
        .values(attempt_id=None)
    )
