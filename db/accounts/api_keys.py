"""Customers' API keys: each names its org; only their hashes are kept (docs/reference/http-api.md#keys)."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, func, insert, select, update
from sqlalchemy.orm import Session

from db.accounts.statements import NOTE_KEY_USES, ORG_OF_KEY, ORGS_OF_KEYS
from db.models import Account, ApiKey
from db.models.errors import UnknownOrgError
from db.postgres.engine import transaction

PREFIX: Final = "sk_live_"
_RANDOM_BYTES: Final = 32
HINT_CHARS: Final = 4


class ApiKeyError(Exception):
    """A key that isn't there. The text names it, and the remedy."""


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A new key. `api_key` is in no other place: whoever loses it makes another."""

    key_id: int
    api_key: str


def create_key(
    connection: Connection,
    org_id: int,
    now: datetime,
    *,
    name: str | None = None,
    expires_at: datetime | None = None,
) -> MadeKey:
    """Make a key for an org, in the caller's transaction, with what people call it and when it ends.

    Raises UnknownOrgError for an org that isn't there, ApiKeyError for an end that is past by Postgres's clock.
    """
    _require_org(connection, org_id)
    if expires_at is not None and connection.scalar(select(func.clock_timestamp() >= expires_at)):
        raise ApiKeyError("expires: must be a time to come.")
    api_key = PREFIX + secrets.token_hex(_RANDOM_BYTES)
    key_id = connection.execute(
        insert(ApiKey)
        .values(
            org_id=org_id,
            key_sha256=key_hash(api_key),
            hint=api_key[-HINT_CHARS:],
            created_at=now,
            name=name,
            expires_at=expires_at,
        )
        .returning(ApiKey.id)
    ).scalar_one()
    return MadeKey(key_id, api_key)


def list_keys(connection: Connection, org_id: int) -> list[ApiKey]:
    """An org's keys, revoked ones too, in order of id. Raises UnknownOrgError for an org that isn't there."""
    _require_org(connection, org_id)
    return list(
        Session(connection).scalars(select(ApiKey).where(ApiKey.org_id == org_id).order_by(ApiKey.id))
    )


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key, with what its org is called."""

    key: ApiKey
    org_name: str


def find_keys(connection: Connection, key_or_hint: str, *, limit: int) -> list[FoundKey]:
    """The key that `key_or_hint` is, or those that end with its four characters, newest first; revoked ones too."""
    wanted = (
        ApiKey.hint == key_or_hint
        if len(key_or_hint) == HINT_CHARS
        else ApiKey.key_sha256 == key_hash(key_or_hint)
    )
    rows = Session(connection).execute(
        select(ApiKey, Account.name)
        .join(Account, Account.org_id == ApiKey.org_id)
        .where(wanted)
        .order_by(ApiKey.id.desc())
        .limit(limit)
    )
    return [FoundKey(key, name) for key, name in rows]


def note_uses(engine: Engine, hashes: Sequence[bytes]) -> None:
    """Note that keys were used, by their hashes, unless that was noted within the last hour; in a transaction of its own."""
    with transaction(engine) as connection:
        connection.exec_driver_sql(NOTE_KEY_USES, (list(hashes),))


def revoke_key(connection: Connection, key_id: int, now: datetime) -> tuple[ApiKey, bool]:
    """Stop a key from the commit on; give it, and whether that changed it.

    One that was revoked before stays so, since then. Raises ApiKeyError if it isn't there.
    """
    revoked = connection.execute(
        update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=now)
    )
    key = Session(connection).get(ApiKey, key_id)
    if key is None:
        raise ApiKeyError(f"key: there is no key {key_id}; `metering key list ORG` shows those of an org.")
    return key, revoked.rowcount > 0


def find_org(connection: Connection, api_key: str) -> int | None:
    """The org that a key names; None for a key that isn't there, was revoked or has ended.

    By its hash, under the unique index: how long that takes tells nothing of a key that is there.
    """
    return connection.exec_driver_sql(ORG_OF_KEY, (key_hash(api_key),)).scalar()


def find_orgs(engine: Engine, hashes: Sequence[bytes]) -> dict[bytes, int]:
    """The orgs of those of the keys that are good, by the keys' hashes; in a transaction of its own."""
    with transaction(engine) as connection:
        rows = connection.exec_driver_sql(ORGS_OF_KEYS, (list(hashes),)).all()
    return {key: org_id for key, org_id in rows}  # noqa: C416 - rows are no tuples to mypy


def _require_org(connection: Connection, org_id: int) -> None:
    if connection.scalar(select(Account.org_id).where(Account.org_id == org_id)) is None:
        raise UnknownOrgError(org_id)


def key_hash(api_key: str) -> bytes:
    """What is kept of a key. Of 256 random bits a plain hash is enough: nobody can try them all."""
    return hashlib.sha256(api_key.encode()).digest()
