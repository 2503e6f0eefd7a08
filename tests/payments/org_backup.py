"""A backup of one org's rows and of what is known of Stripe's events: Postgres is brought back to it, Stripe and Redis aren't."""

from typing import Final

import psycopg
from psycopg import sql

_OF_THE_ORG: Final = (
    *("transactions", "payment_attempts", "idempotency_keys", "payment_methods", "reload_states"),
    *("stripe_customers", "accounts", "pending_signals", "reload_resumptions"),
)
_OF_ALL: Final = ("stripe_events", "stripe_cursors", "set_aside_events")


class OrgBackup:
    """The rows as they are now. They lie in temporary tables of `admin`, so there is one backup at a time."""

    def __init__(self, admin: "psycopg.Connection", org_id: int) -> None:
        self._admin = admin
        self._org_id = org_id
        for table in (*_OF_THE_ORG, *_OF_ALL):
            held = self._held(table)
            admin.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(held))
            admin.execute(
                sql.SQL("CREATE TEMPORARY TABLE {} AS SELECT * FROM {} {}").format(
                    held, sql.Identifier(table), self._where(table)
                )
            )

    def restore(self) -> None:
        """Bring them back, however often."""
        with self._admin.transaction():
            for table in (*_OF_THE_ORG, *_OF_ALL):
                name, held = sql.Identifier(table), self._held(table)
                self._admin.execute(sql.SQL("DELETE FROM {} {}").format(name, self._where(table)))
                self._admin.execute(
                    sql.SQL("INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM {}").format(name, held)
                )

    def _where(self, table: str) -> sql.Composed:
        if table in _OF_ALL:
            return sql.Composed([])
        return sql.SQL("WHERE org_id = {}").format(sql.Literal(self._org_id))

    @staticmethod
    def _held(table: str) -> sql.Identifier:
        return sql.Identifier(f"backup_{table}")
