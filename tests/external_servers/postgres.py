"""A Postgres on TCP, from any program."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.pq import PGconn, Ping

from metering.sandbox.servers.account import NAMESPACE
from tests.external_servers.process import HOST, Process, free_port


def as_nobody() -> list[str]:
    """What to put before a command that refuses to run as root."""
    return list(NAMESPACE) if os.geteuid() == 0 else []


class TcpPostgres(Process):
    """One server, with one superuser; everybody may come in by its socket."""

    def __init__(self, directory: Path, program: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        directory.mkdir(parents=True, mode=0o700)
        self.sockets_dir = directory
        initdb: list[str | Path] = [
            program.with_name("initdb"),
            "-D",
            "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run([*as_nobody(), *initdb], cwd=directory, check=True, capture_output=True)
        said = {"listen_addresses": HOST, **settings}
        options = [part for name, value in said.items() for part in ("-c", f"{name}={value}")]
        server: list[str | Path] = [
            program,
            "-D",
            "data",
            "-p",
            str(self.port),
            "-k",
            str(directory),
            *options,
        ]
        super().__init__(directory, [*as_nobody(), *server], self.answers)

    @property
    def conninfo(self) -> str:
        """As superuser, by the socket."""
        return f"host={self.sockets_dir} port={self.port} user=postgres"

    def answers(self) -> bool:
        return PGconn.ping(f"{self.conninfo} dbname=postgres connect_timeout=2".encode()) == Ping.OK

    def execute(self, *statements: str) -> None:
        """As superuser, each by itself."""
        with psycopg.connect(f"{self.conninfo} dbname=postgres", autocommit=True) as connection:
            for each in statements:
                connection.execute(each.encode())
