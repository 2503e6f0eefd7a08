"""Debian's own servers: every version that a package gives is tried by `python -m tests.external_servers.version_matrix`."""

from pathlib import Path

import pytest
import redis

from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from metering.signals.hold_library import load_hold_library
from tests.deploy.stack import PASSWORDS
from tests.deploy.test_valkey_users import FORBIDDEN, USERS, users_file
from tests.external_servers.process import apt_program
from tests.external_servers.valkeys import TcpServer
from tests.external_servers.version_matrix import POSTGRES, try_postgres, try_redis
from tests.signals.holding import Seen, Telephony, set_gate

pytestmark = pytest.mark.long


def test_postgres_15(tmp_path: Path) -> None:
    assert try_postgres(tmp_path, apt_program("postgres", "postgresql-15")).startswith("works")


def test_postgres_16(tmp_path: Path) -> None:
    [package] = [each for each in POSTGRES if each.name == "Postgres 16"]
    assert try_postgres(tmp_path, package.path()).startswith("works")


def test_redis_7_0(tmp_path: Path) -> None:
    assert try_redis(tmp_path, apt_program("redis-server", "redis-server")).startswith("works")


def test_functions_and_users_on_redis_7_0(tmp_path: Path) -> None:
    """Where telephony's user has the rights that deploy/valkey/users.sh gives it."""
    made = users_file()
    from_7_2_on = ("+waitaof ", " +client|setinfo")
    rules = made.stdout
    for command in from_7_2_on:
        rules = rules.replace(command, "")
    (tmp_path / "users.acl").write_text(rules)
    settings = {"aclfile": str(tmp_path / "users.acl")}
    server = TcpServer(tmp_path / "server", settings, apt_program("redis-server", "redis-server"))
    server.start()

    def client(user: str) -> redis.Redis:
        return redis.Redis("127.0.0.1", server.port, username=user, password=PASSWORDS[USERS[user]])

    try:
        with client("default") as operator, client("jobs") as jobs, client("telephony") as telephony:
            assert load_hold_library(jobs)
            set_gate(operator, 1, balance_cents=100)
            calls = Telephony(telephony)
            assert calls.call("call_start", 1, 1, 60, 600) == ["granted", 40, 60, 1]
            assert calls.call("call_start", 1, 2, 60, 600) == ["insufficient", 40, 60, 1]
            assert calls.call("call_renew", 1, 1, 100, 600) == ["granted", 0, 100, 1]
            Gates(operator).follow([Balance(1, 40, 2)], system_clock(), Seen({1: [1]}))
            assert calls.call("call_start", 1, 1, 1, 600) == ["ended", 40, 0, 0]
            assert calls.call("call_cancel", 1, 2) == ["ended", 40, 0, 0]
            for command in FORBIDDEN["telephony"]:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    telephony.execute_command(*command.split())
    finally:
        server.stop()
