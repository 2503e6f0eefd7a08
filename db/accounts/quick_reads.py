"""What is asked for all the time, for an event loop: each one statement, in autocommit, without a thread."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import URL

from db.accounts.api_keys import key_hash
from db.accounts.billing import BillingAccount
from db.accounts.statements import BILLING_OF_KEY, ORG_OF_KEY
from db.ledger.statements import PRICE_BOOK_VERSION
from db.postgres.engine import connect_args, psycopg_url
from db.postgres.metrics import PoolUse
from db.postgres.session import PinnedAsyncConnection, session_settings
from db.postgres.writable import check_async

CONNECTIONS: Final = 8
WAIT_S: Final = 0.1
"""How long to wait for a connection: whoever asks has a slower way, which also finds out what is wrong."""
TIMEOUT_MS: Final = 1_000
"""How long Postgres may take over a statement."""
IDLE_S: Final = 600.0
RECONNECT_S: Final = 4.0
"""How long the pool tries by itself to replace a connection, ever more rarely; then it begins anew when somebody asks."""


class QuickReads:
    """Of one event loop. Each method raises psycopg.Error where Postgres can't tell at once."""

    def __init__(self, url: URL, *, application_name: str) -> None:
        """Connections to `url`. Nothing connects before `open`."""
        self._pool: AsyncConnectionPool[PinnedAsyncConnection] = AsyncConnectionPool(
            psycopg_url(url),
            connection_class=PinnedAsyncConnection,
            configure=check_async,
            check=check_async,
            min_size=1,
            max_size=CONNECTIONS,
            timeout=WAIT_S,
            max_idle=IDLE_S,
            reconnect_timeout=RECONNECT_S,
            open=False,
            kwargs={
                "autocommit": True,
                "settings": session_settings(statement_timeout_ms=TIMEOUT_MS),
                **connect_args(url, application_name),
            },
        )

    async def open(self) -> None:
        """Begin to connect; doesn't wait until somebody answers."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    def use(self) -> PoolUse:
        """How its connections are used."""
        told = self._pool.get_stats()
        return PoolUse(max(told.get("pool_size", 0) - told.get("pool_available", 0), 0), CONNECTIONS)

    async def org_of_key(self, api_key: str) -> int | None:
        """The org that an API key names; None for a key that isn't there or was revoked."""
        row = await self._row(ORG_OF_KEY, api_key)
        return None if row is None else row[0]

    async def billing_of_key(self, api_key: str) -> BillingAccount | None:
        """That org's billing account."""
        row = await self._row(BILLING_OF_KEY, api_key)
        return None if row is None else BillingAccount(*row)

    async def price_book_version(self) -> tuple[int, datetime]:
        """The version of the price book, and the time, by Postgres's clock."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(PRICE_BOOK_VERSION.text, binary=True)
            row = await cursor.fetchone()
        if row is None:
            raise psycopg.InterfaceError("Postgres told no version of the price book")
        return row[0], row[1]

    async def _row(self, statement: str, api_key: str) -> Sequence[Any] | None:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement, [key_hash(api_key)], binary=True)
            return await cursor.fetchone()
