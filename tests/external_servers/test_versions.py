"""Debian's own servers: every version that a package gives is tried by `python -m tests.external_servers.version_matrix`."""

from pathlib import Path

import pytest

from tests.external_servers.process import apt_program
from tests.external_servers.version_matrix import POSTGRES, try_postgres, try_redis

pytestmark = pytest.mark.long


def test_postgres_15(tmp_path: Path) -> None:
    assert try_postgres(tmp_path, apt_program("postgres", "postgresql-15")).startswith("works")


def test_postgres_16(tmp_path: Path) -> None:
    [package] = [each for each in POSTGRES if each.name == "Postgres 16"]
    assert try_postgres(tmp_path, package.path()).startswith("works")


def test_redis_7_0(tmp_path: Path) -> None:
    assert try_redis(tmp_path, apt_program("redis-server", "redis-server")).startswith("works")
