"""What goes wrong with the servers under a running installation, and is put right again."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from db.postgres.engine import make_engine, transaction
from metering.sandbox.servers.postgres import APPLICATION_ROLE, DATABASE, PORT
from tests.external_servers.installation import Installation, answered
from tests.waiting import wait_until

Fault = Callable[[Installation], None]
"""Does it, and returns when a server that takes writes can be reached again."""

LASTS_S: Final = 3.0
"""How long a fault goes on, where nothing says that it has been noticed."""


def switch_over(found: Installation) -> None:
    found.postgres.hand_over()


def kill_primary(found: Installation) -> None:
    """Each commit is on both servers before it is acknowledged: without that, what the standby lacks would be lost."""
    found.postgres.commit_on_both(wanted=True)
    time.sleep(LASTS_S)  # calls are pushed and posted meanwhile: some are in hand when it dies
    found.postgres.fail_over()


def read_only_and_back(found: Installation) -> None:
    found.sql(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on")
    end_sessions(found)
    wait_until(lambda: answered(found, "GET", "/readyz") == 503, limit_s=60)
    time.sleep(LASTS_S)  # the API has noticed; the other roles, which nobody can ask, are to notice too
    found.sql(f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only")


def end_sessions(found: Installation) -> None:
    found.sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{DATABASE}'")  # noqa: S608


def idle_sessions_cut(found: Installation) -> None:
    """By `idle_session_timeout = 3s`, which stays so while everybody works."""
    found.sql("ALTER SYSTEM SET idle_session_timeout = '3s'")
    found.sql("SELECT pg_reload_conf()")
    time.sleep(8)  # each session that rests has been cut twice by then


def sessions_ended(found: Installation) -> None:
    end_sessions(found)


def silent_network(found: Installation) -> None:
    for name in ("first", "second"):
        found.links.stall(name)
    time.sleep(12)  # longer than keepalives take to notice (db/postgres/engine.py): that is the fault
    found.links.heal_all()


def wrong_login(found: Installation) -> None:
    """As where a password is wrong: the server answers, and refuses; health says so, and nothing waits in silence."""
    found.sql(f"ALTER ROLE {APPLICATION_ROLE} NOLOGIN")
    end_sessions(found)
    wait_until(lambda: "a server refuses, and waiting alone won't help" in found.log, limit_s=60)
    assert answered(found, "GET", "/readyz") == 503
    found.sql(f"ALTER ROLE {APPLICATION_ROLE} LOGIN")


def right_revoked(found: Installation) -> None:
    execute_in_database(found, f"REVOKE SELECT ON accounts FROM {APPLICATION_ROLE}")  # noqa: S608 - our own words
    wait_until(lambda: answered(found, "GET", "/v1/billing") == 503, limit_s=60)
    assert answered(found, "GET", "/readyz") == 503
    execute_in_database(found, f"GRANT SELECT ON accounts TO {APPLICATION_ROLE}")


def execute_in_database(found: Installation, statement: str) -> None:
    engine = make_engine(found.postgres.primary.url("postgres", DATABASE), application_name="table")
    with transaction(engine) as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def valkey_switched(found: Installation) -> None:
    found.valkey.switch_over()


def valkey_killed(found: Installation) -> None:
    old = found.valkey.fail_over()
    old.start()  # the Sentinels make it the replica of the new one


def valkey_password_changed(found: Installation) -> None:
    """Everybody is refused until it is as it was."""
    with found.operator() as client:
        client.acl_setuser("default", enabled=True, reset_passwords=True, passwords=["+other"])
        client.client_kill_filter(skipme=True, _type="normal")
        wait_until(lambda: "a server refuses, and waiting alone won't help" in found.log, limit_s=60)
        client.acl_setuser("default", enabled=True, nopass=True)


def valkey_clients_cut(found: Installation) -> None:
    with found.operator() as client:
        client.client_kill_filter(skipme=True, _type="normal")


def pooler_restarted(found: Installation) -> None:
    assert found.bouncer is not None
    found.bouncer.stop()
    time.sleep(LASTS_S)  # so long it is away: that is the fault
    found.bouncer.start()


def pooler_killed(found: Installation) -> None:
    assert found.bouncer is not None
    found.bouncer.kill()
    time.sleep(LASTS_S)  # so long it is away: that is the fault
    found.bouncer.start()


def pooler_moved(found: Installation) -> None:
    """Postgres switched over behind it, and the pooler told of it."""
    assert found.bouncer is not None
    found.postgres.hand_over()
    found.bouncer.lead_to(found.postgres.primary.sockets_dir, PORT)


DIRECT: Final[Mapping[str, Fault]] = {
    "Postgres: switched over, both hosts in the URL": switch_over,
    "Postgres: primary killed (-9), standby promoted": kill_primary,
    "Postgres: database read-only, and back": read_only_and_back,
    "Postgres: all sessions ended": sessions_ended,
    "Postgres: idle sessions cut after 3 s": idle_sessions_cut,
    "Postgres: network silent for 12 s": silent_network,
    "Postgres: login refused, and back": wrong_login,
    "Postgres: a right revoked, and back": right_revoked,
    "Valkey: switched over by Sentinel": valkey_switched,
    "Valkey: primary killed (-9), Sentinel": valkey_killed,
    "Valkey: password changed, and back": valkey_password_changed,
    "Valkey: all clients cut": valkey_clients_cut,
}
POOLED: Final[Mapping[str, Fault]] = {
    "PgBouncer: restarted": pooler_restarted,
    "PgBouncer: killed (-9)": pooler_killed,
    "PgBouncer: Postgres switched over behind it": pooler_moved,
}
