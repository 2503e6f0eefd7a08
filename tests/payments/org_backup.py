"""A backup of one org's rows and of what is known of Stripe's events: Postgres is brought back to it, Stripe and Redis aren't."""

from typing import Final

import psycopg

_OF_THE_ORG: Final = (
    *("transactions", "payment_attempts", "idempotency_keys", "payment_methods", "reload_states"),
    *("stripe_customers", "accounts", "pending_signals", "reload_resumptions"),
)
_OF_ALL: Final = ("stripe_events", "stripe_cursors", "set_aside_events")
_TABLES: Final = (*_OF_THE_ORG, *_OF_ALL)


class OrgBackup:
    """The rows as they are now. They lie in temporary tables of `admin`, so there is one backup at a time."""

    def __init__(self, admin: "psycopg.Connection", org_id: int) -> None:
        self._admin = admin
        self._org_id = org_id
        self._run("CREATE TEMPORARY TABLE IF NOT EXISTS backup_{table} (LIKE {table})")
        self._run("DELETE FROM backup_{table}; INSERT INTO backup_{table} SELECT * FROM {table} {where}")

    def restore(self) -> None:
        """Bring them back, however often."""
        self._run(
            "DELETE FROM {table} {where}; INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM backup_{table}"
        )

    def _run(self, statements: str) -> None:
        """For each table, all in one transaction, and in one round trip: a walk does it very often."""
        where = f"WHERE org_id = {self._org_id:d}"
        self._admin.execute(
            ";".join(
                statements.format(table=table, where=where if table in _OF_THE_ORG else "")
                for table in _TABLES
            ).encode()
        )
