"""Operators: adding, listing and revoking them, and finding who a token names (docs/reference/operators.md)."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, insert, select, text, update
from sqlalchemy.orm import Session

from db.models import Operator
from db.operators.log import Actor, log_action
from metering.rules.operators import OperatorRole
from metering.rules.times import format_time

PREFIX: Final = "op_"
_RANDOM_BYTES: Final = 32
_HINT_CHARS: Final = 4

_OPERATORS_LOCK: Final = 3_406_712_588_190_764_211
"""One change of operators at a time: so the last one with role money is known to be the last."""
_OWNS_TABLES: Final = text(
    "SELECT pg_has_role(relowner, 'MEMBER') FROM pg_class WHERE oid = CAST('operators' AS regclass)"
)


class OperatorError(Exception):
    """An operator that can't be added or revoked. The text names what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class MadeOperator:
    """A new operator. `token` is in no other place: whoever loses it is revoked, and added again."""

    operator_id: int
    name: str
    role: OperatorRole
    token: str


def token_hash(token: str) -> bytes:
    """What is kept of a token. Of 256 random bits a plain hash is enough: nobody can try them all."""
    return hashlib.sha256(token.encode()).digest()


def find_operator(connection: Connection, token: str) -> Operator | None:
    """The operator whose token it is, or was: he may be revoked."""
    return Session(connection).scalar(select(Operator).where(Operator.token_sha256 == token_hash(token)))


def operators_exist(connection: Connection) -> bool:
    """Whether an operator was ever added: from then on changes need a token."""
    return connection.scalar(select(Operator.id).limit(1)) is not None


def owns_tables(connection: Connection) -> bool:
    """Whether this session's user owns the tables, or may act as who does: no operator's role binds him."""
    return bool(connection.scalar(_OWNS_TABLES))


def add_operator(connection: Connection, actor: Actor, name: str, role: OperatorRole) -> MadeOperator:
    """Add an operator, in the caller's transaction, and log it.

    Raises OperatorError for a name that another one has, and for a first one who could add no others.
    """
    _lock(connection)
    if connection.scalar(select(Operator.id).where(Operator.name == name, Operator.revoked_at.is_(None))):
        raise OperatorError(
            f"NAME: there is an operator {name} already; choose another name, or revoke that one first"
            f" (`metering operator revoke {name}`)."
        )
    if role is not OperatorRole.MONEY and not _of_money(connection):
        raise OperatorError(
            "role: the first operator needs `--role money`: from then on only one who has it can add others."
        )
    log_action(connection, actor, "operator add", subject=name, details={"role": role.value})
    token = PREFIX + secrets.token_hex(_RANDOM_BYTES)
    operator_id = connection.execute(
        insert(Operator)
        .values(name=name, role=role.value, token_sha256=token_hash(token), hint=token[-_HINT_CHARS:])
        .returning(Operator.id)
    ).scalar_one()
    return MadeOperator(operator_id, name, role, token)


def list_operators(connection: Connection) -> list[Operator]:
    """All operators, revoked ones too, in order of id."""
    return list(Session(connection).scalars(select(Operator).order_by(Operator.id)))


def revoke_operator(connection: Connection, actor: Actor, name: str) -> Operator:
    """Revoke an operator's token, in the caller's transaction, and log it: from the commit on it is refused, for ever.

    The last one with role money stays, or nobody could add another. Raises OperatorError.
    """
    _lock(connection)
    session = Session(connection)
    found = session.scalar(
        select(Operator).where(Operator.name == name).order_by(Operator.id.desc()).limit(1)
    )
    if found is None:
        raise OperatorError(
            f"NAME: there is no operator {name}; `metering operator list` shows those there are."
        )
    if found.revoked_at is not None:
        raise OperatorError(f"NAME: {name} is revoked already, since {format_time(found.revoked_at)}.")
    if found.role == OperatorRole.MONEY.value and _of_money(connection) == 1:
        raise OperatorError(
            f"NAME: {name} is the last operator with role money, and nobody could add another: add one first"
            " (`metering operator add NAME --role money`)."
        )
    log_action(connection, actor, "operator revoke", subject=name, details={"role": found.role})
    connection.execute(
        update(Operator).where(Operator.id == found.id).values(revoked_at=func.clock_timestamp())
    )
    session.expire_all()
    return session.get_one(Operator, found.id)


def _of_money(connection: Connection) -> int:
    """How many operators with role money there are."""
    of_money = select(func.count()).where(
        Operator.role == OperatorRole.MONEY.value, Operator.revoked_at.is_(None)
    )
    return connection.scalar(of_money) or 0


def _lock(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _OPERATORS_LOCK})
