"""What operators have changed: written in the transaction of the change, and never changed again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select
from sqlalchemy.orm import Session

from db.models import Operator, OperatorLogEntry


class OperatorRevokedError(Exception):
    """The operator's token was revoked while his command ran. Nothing is changed: the transaction is rolled back."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something."""

    name: str
    """The operator's; the login name where there is none."""
    login: str
    """The login name on the machine where the command runs."""
    operator_id: int | None = None


def log_action(
    connection: Connection,
    actor: Actor,
    action: str,
    *,
    org_id: int | None = None,
    subject: str | int | None = None,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> int:
    """Note what an operator changes in this very transaction; give the entry's id.

    `action` is the command (`key revoke`), `subject` what it is done to besides the org, `reason` his own words, `details` what
    was changed, from what to what: values that JSON knows, and never a secret.

    His row is locked until the commit: once a revocation is committed, nothing more of his is. Raises OperatorRevokedError.
    """
    if actor.operator_id is not None:
        still_there = (
            select(Operator.id)
            .where(Operator.id == actor.operator_id, Operator.revoked_at.is_(None))
            .with_for_update(read=True)
        )
        if connection.scalar(still_there) is None:
            raise OperatorRevokedError(
                f"The token of {actor.name} was revoked meanwhile; nothing was changed."
            )
    return _write(connection, actor, action, org_id, subject, reason, details or {}, refused=False)


def log_refusal(
    connection: Connection,
    actor: Actor,
    action: str,
    *,
    reason: str,
    org_id: int | None = None,
) -> int:
    """Note what was refused to somebody, and why; give the entry's id."""
    return _write(connection, actor, action, org_id, None, reason, {}, refused=True)


def _write(
    connection: Connection,
    actor: Actor,
    action: str,
    org_id: int | None,
    subject: str | int | None,
    reason: str | None,
    details: Mapping[str, Any],
    *,
    refused: bool,
) -> int:
    entry = insert(OperatorLogEntry).values(
        operator=actor.name,
        operator_id=actor.operator_id,
        login=actor.login,
        action=action,
        refused=refused,
        org_id=org_id,
        subject=None if subject is None else str(subject),
        reason=reason,
        details=dict(details),
    )
    return connection.execute(entry.returning(OperatorLogEntry.id)).scalar_one()


def list_log(
    connection: Connection,
    *,
    limit: int,
    offset: int = 0,
    org_id: int | None = None,
    operator: str | None = None,
    since: datetime | None = None,
) -> tuple[list[OperatorLogEntry], int]:
    """Entries of the log, newest first, with the number that there are in all; of an org, an operator, from a time on."""
    matching: Select[tuple[OperatorLogEntry]] = select(OperatorLogEntry)
    if org_id is not None:
        matching = matching.where(OperatorLogEntry.org_id == org_id)
    if operator is not None:
        matching = matching.where(OperatorLogEntry.operator == operator)
    if since is not None:
        matching = matching.where(OperatorLogEntry.at >= since)
    total = connection.scalar(select(func.count()).select_from(matching.subquery())) or 0
    newest = matching.order_by(OperatorLogEntry.id.desc()).limit(limit).offset(offset)
    return list(Session(connection).scalars(newest)), total
