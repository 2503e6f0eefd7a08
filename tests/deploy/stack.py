"""What docker-compose.yml starts, started here without Docker: the same flags, variables and commands on real servers.

Our services run what the image holds and nothing else of this checkout's (tests/deploy/dockerfile.py). What differs: addresses,
because nothing resolves `postgres` and `valkey` here, and all that a container would wall off.
"""

import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import redis
from psycopg import pq

from metering.sandbox.servers.account import Account, account_for
from metering.sandbox.servers.postgres import Postgres
from metering.sandbox.servers.valkey import Valkey
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.deploy.composed import HTTP_PORT, METRICS_PORT, ROOT, SERVERS, composed, secrets_file
from tests.deploy.dockerfile import make_image

LIMIT_S: Final = 60.0
SECRETS_PATH: Final = "/run/secrets"
DEPLOY: Final = ROOT / "deploy"
IN_IMAGE: Final = "/opt/metering/"
"""Where the servers' images have what lies below deploy/ here."""
POSTGRES_BIN: Final = Postgres.program().parent
PASSWORDS: Final = {
    name: secrets.token_hex(12)
    for name in (
        "POSTGRES_SUPERUSER_PASSWORD",
        "POSTGRES_OWNER_PASSWORD",
        "POSTGRES_APP_PASSWORD",
        "VALKEY_PASSWORD",
        "METER_PASSWORD",
        "API_PASSWORD",
        "JOBS_PASSWORD",
        "TELEPHONY_PASSWORD",
    )
}
SECRETS: Final = {
    **PASSWORDS,
    "STRIPE_API_KEY": f"sk_test_{secrets.token_hex(12)}",
    "STRIPE_WEBHOOK_SECRET": f"whsec_{secrets.token_hex(12)}",
}
"""All that has to be set."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """`settings` and what a process needs to run at all: like a container's, it holds nothing else of this machine's."""
    kept = ("HOME", "LANG", "TMPDIR", "SYSTEMROOT")
    path = os.pathsep.join((str(POSTGRES_BIN), os.environ.get("PATH", os.defpath)))
    return {**{name: os.environ[name] for name in kept if name in os.environ}, "PATH": path, **settings}


@dataclass
class Running:
    """One of our services as a process."""

    process: "subprocess.Popen[bytes]"
    log_path: Path
    metrics_port: int
    http_port: int

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self, limit_s: float) -> int:
        """What `docker compose stop` does; gives the exit status. Fails where Docker would kill it, and tells what hangs."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # Python says where each of its threads is
            self.process.wait()
            raise AssertionError(f"did not stop within {limit_s} s:\n{self.log()}") from None


@dataclass
class Stack:
    """The file's servers, running on `data_dir` for the time of a with block."""

    data_dir: Path
    postgres_port: int = field(default_factory=free_port)
    valkey_port: int = field(default_factory=free_port)
    services: dict[str, Any] = field(default_factory=lambda: composed(SECRETS)["services"])
    _ends: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.data_dir.mkdir()
        self.account = account_for(self.data_dir, [Postgres.program()])
        self.image = make_image(self.data_dir / "image")
        self._hand_out_secrets()
        with ExitStack() as starting:
            starting.enter_context(self._postgres())
            starting.enter_context(self._valkey())
            self.stripe = starting.enter_context(StripeSandbox(api_keys=[SECRETS["STRIPE_API_KEY"]]))
            self._ends = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def here(self, text: str, metrics_port: int = METRICS_PORT, http_port: int = HTTP_PORT) -> str:
        """A text of the file's, with addresses that lead to where things are here."""
        for port, port_here in ((METRICS_PORT, metrics_port), (HTTP_PORT, http_port)):
            text = re.sub(rf"^{port}$|(?<=127\.0\.0\.1:){port}(?=/)", str(port_here), text)
        return text

    def secrets(self, service: str) -> Path:
        """The directory with a service's secrets."""
        return self.data_dir / "secrets" / service

    def environment(
        self, service: str, metrics_port: int = METRICS_PORT, http_port: int = HTTP_PORT
    ) -> dict[str, str]:
        """The variables that the file gives a service, in an otherwise clean environment; Stripe is a sandbox here."""
        given = self.services[service]["environment"]
        here = {
            name: self.here(str(value), metrics_port, http_port).replace(
                SECRETS_PATH, str(self.secrets(service))
            )
            for name, value in given.items()
        }
        if "STRIPE_API_KEY_FILE" in given:
            here["STRIPE_API_BASE"] = self.stripe.url
        return clean_environment(self.image.environment() | here)

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.valkey_port, password=PASSWORDS["VALKEY_PASSWORD"])

    def run(
        self, service: str, command: Sequence[str] | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run `metering` with a service's variables to its end: its own command, or another."""
        return subprocess.run(
            [*self.image.program, *(command or self.services[service]["command"])],
            env=self.environment(service),
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
            **options,
        )

    @contextmanager
    def started(self, service: str) -> Iterator[Running]:
        """Start a service's command, with a log of its own; it is killed at the end if it runs still."""
        metrics_port, http_port = free_port(), free_port()
        log_path = self.data_dir / f"{service}-{metrics_port}.log"
        with log_path.open("xb") as log:
            process = subprocess.Popen(
                [*self.image.program, *self.services[service]["command"]],
                env=self.environment(service, metrics_port, http_port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield Running(process, log_path, metrics_port, http_port)
        finally:
            process.kill()
            process.wait()

    def check_health(
        self,
        service: str,
        *,
        metrics_port: int = METRICS_PORT,
        http_port: int = HTTP_PORT,
        settings: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a service's health check as the file has it, with `settings` added to the service's variables."""
        kind, *test = self.services[service]["healthcheck"]["test"]
        test = [self.here(part, metrics_port, http_port) for part in test]
        test = [part.replace(IN_IMAGE, f"{DEPLOY / service}/") for part in test]
        if kind == "CMD-SHELL":
            test = ["/bin/sh", "-c", *test]
        elif test[0] == "python":
            test[0] = sys.executable
        given = {} if service in SERVERS else self.environment(service, metrics_port, http_port)
        environment = clean_environment(given) | dict(settings or {})
        return subprocess.run(test, env=environment, capture_output=True, timeout=LIMIT_S, check=False)

    def psql(
        self, program: str, *arguments: str, secrets: Path | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a program of Postgres's as its superuser, who in the container needs no address and no password."""
        environment = clean_environment(
            {
                "SECRETS_DIRECTORY": str(secrets or self.secrets("postgres")),
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.postgres_port),
                "PGPASSWORD": PASSWORDS["POSTGRES_SUPERUSER_PASSWORD"],
            }
        )
        return subprocess.run(
            [POSTGRES_BIN / program, *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            timeout=LIMIT_S,
            check=True,
            **options,
        )

    def _hand_out_secrets(self) -> None:
        """What the service `secrets` does, into directories of ours."""
        (self.data_dir / "all").write_text(secrets_file(SECRETS), encoding="utf-8")
        for volume in self.services["secrets"]["volumes"]:
            self.secrets(volume.rpartition("/")[2]).mkdir(parents=True)
        subprocess.run(
            ["/bin/sh", DEPLOY / "secrets" / "write.sh"],
            env=clean_environment(
                {
                    "SECRETS_FROM": str(self.data_dir / "all"),
                    "SECRETS_TO": str(self.data_dir / "secrets"),
                    "POSTGRES_ADDRESS": f"127.0.0.1:{self.postgres_port}",
                    "VALKEY_ADDRESS": f"127.0.0.1:{self.valkey_port}",
                }
            ),
            timeout=LIMIT_S,
            check=True,
        )

    @contextmanager
    def _postgres(self) -> Iterator[None]:
        """Postgres as its image sets it up: initdb, the database, the scripts in order of their names."""
        service = self.services["postgres"]
        variables = service["environment"]
        password_path = self.data_dir / "superuser-password"
        password_path.write_bytes((self.secrets("postgres") / "superuser_password").read_bytes())
        self.account.own(password_path)
        initdb: list[str | Path] = [
            POSTGRES_BIN / "initdb",
            "--username=postgres",
            f"--pwfile={password_path.name}",
            # Between containers a password is asked for; initdb alone would trust 127.0.0.1, where these tests are.
            "--auth=scram-sha-256",
            "--pgdata=postgres",
            "--no-sync",
        ]
        self.account.run([*initdb, *shlex.split(variables["POSTGRES_INITDB_ARGS"])], self.data_dir)
        _, *flags = service["command"]
        here = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.postgres_port),
            "unix_socket_directories": "",
        }
        settings = [part for name, value in here.items() for part in ("-c", f"{name}={value}")]
        command: list[str | Path] = [Postgres.program(), "-D", "postgres", *flags, *settings]
        with self._server(command, "postgres", signal.SIGINT, self.account):
            target = f"host=127.0.0.1 port={self.postgres_port} user=postgres dbname=postgres"
            self._wait("postgres", lambda: pq.PGconn.ping(target.encode()) == pq.Ping.OK)
            database = variables["POSTGRES_DB"]
            self.psql("psql", "--username=postgres", "--no-psqlrc", "-c", f"CREATE DATABASE {database}")
            options = ["-v", "ON_ERROR_STOP=1", "--username=postgres", "--no-password", "--no-psqlrc"]
            self.psql("psql", *options, f"--dbname={database}", "-f", str(DEPLOY / "postgres" / "roles.sql"))
            yield

    @contextmanager
    def _valkey(self) -> Iterator[None]:
        """Valkey as its image starts it: the shell's script, which writes the users' file, then the command behind it."""
        service = self.services["valkey"]
        _shell, _, script, _name, _server, *flags = service["command"]
        users = self.data_dir / "users.acl"
        writing, becoming = script.replace(IN_IMAGE, f"{DEPLOY / 'valkey'}/").split(" && ")
        assert becoming == 'exec "$@"'
        writing = writing.replace("/tmp/users.acl", str(users))  # noqa: S108 - a container's own
        subprocess.run(
            ["/bin/sh", "-c", writing],
            env=clean_environment({"SECRETS_DIRECTORY": str(self.secrets("valkey"))}),
            timeout=LIMIT_S,
            check=True,
        )
        assert flags[:2] == ["--aclfile", "/tmp/users.acl"]  # noqa: S108 - the same
        flags[1] = str(users)
        (self.data_dir / "valkey").mkdir()
        here = [
            "--port",
            str(self.valkey_port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.data_dir / "valkey"),
        ]
        with self._server([Valkey.program(), *flags, *here], "valkey", signal.SIGTERM, Account()):
            with self.redis() as client:
                self._wait("valkey", lambda: _answers(client))
            yield

    @contextmanager
    def _server(
        self, command: Sequence[str | Path], name: str, stop: signal.Signals, account: Account
    ) -> Iterator[None]:
        with (self.data_dir / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*account.prefix, *command],
                cwd=self.data_dir,
                env=clean_environment({}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=account.uid,
                group=account.gid,
                extra_groups=None if account.uid is None else [],
            )
        try:
            yield
        finally:
            process.send_signal(stop)
            process.wait(timeout=LIMIT_S)

    def _wait(self, name: str, ready: Any) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not ready():
            log = (self.data_dir / f"{name}.log").read_text(errors="replace")
            assert time.monotonic() < deadline_s, f"{name} does not answer: {log}"
            time.sleep(0.05)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
