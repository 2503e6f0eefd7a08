"""TLS to both servers, with certificates of the test's own: who can't prove himself is refused, and that is no outage."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from sqlalchemy.exc import DBAPIError

from db.accounts.quick_reads import QuickReads
from db.postgres.engine import make_engine
from db.postgres.failures import Failure, diagnose
from db.postgres.schema import check_schema, migrate
from metering.client import MeteringClient, TelephonyError
from metering.runtime.redis_connection import connect_redis, connect_redis_async
from metering.runtime.settings import Settings
from tests.external_servers.postgres import TcpPostgres
from tests.external_servers.process import HOST, apt_program, free_port
from tests.external_servers.valkeys import NAME, Sentinel, TcpServer
from tests.spine.billing import event

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate for HOST, and another authority."""

    authority: Path
    certificate: Path
    key: Path
    stranger: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "rsa:2048", "-nodes")
    for name in ("authority", "stranger"):
        made = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl(directory, "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", *made)
    (directory / "names").write_text(f"subjectAltName=IP:{HOST},DNS:localhost\n")
    openssl(directory, "req", *key, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    signed = (
        "-CA",
        "authority.pem",
        "-CAkey",
        "authority.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
    )
    openssl(directory, "x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
    (directory / "server.key").chmod(0o600)
    names = ("authority.pem", "server.pem", "server.key", "stranger.pem")
    return Certificates(*(directory / name for name in names))


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(
        [apt_program("openssl", "openssl"), *arguments], cwd=directory, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[TcpPostgres]:
    """Debian's, because the embedded one knows no TLS."""
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(certificates.certificate),
        "ssl_key_file": str(certificates.key),
    }
    server = TcpPostgres(
        tmp_path_factory.mktemp("tls") / "postgres", apt_program("postgres", "postgresql-15"), settings
    )
    rules = server.directory / "data" / "pg_hba.conf"
    rules.write_text(f"local all all trust\nhostssl all all {HOST}/32 trust\n")
    server.start()
    server.execute(
        "CREATE ROLE metering_owner LOGIN CREATEROLE", "CREATE DATABASE metering OWNER metering_owner"
    )
    yield server
    server.stop()


def url_of(server: TcpPostgres, role: str, **query: object) -> str:
    """As METERING_DATABASE_URL has it, read as the program reads it."""
    said = " ".join(f"{name}={value}" for name, value in query.items())
    conninfo = f"host={HOST} port={server.port} dbname=metering user={role} {said}"
    found = Settings.model_validate({"database_url": conninfo}).database_url
    assert found is not None
    return found


def test_postgres_with_verify_full(postgres: TcpPostgres, certificates: Certificates) -> None:
    proved = {"sslmode": "verify-full", "sslrootcert": certificates.authority}
    owner = make_engine(url_of(postgres, "metering_owner", **proved), application_name="tests")
    migrate(owner)
    owner.dispose()
    engine = make_engine(url_of(postgres, "metering_app", **proved), application_name="tests")
    check_schema(engine)

    async def ask() -> int | None:
        reads = QuickReads(engine.url, application_name="tests")
        await reads.open()
        await reads._pool.wait()
        try:
            return await reads.org_of_key("nobody's")
        finally:
            await reads.close()

    assert asyncio.run(ask()) is None
    engine.dispose()
    for wrong in ({"sslmode": "verify-full", "sslrootcert": certificates.stranger}, {"sslmode": "disable"}):
        refused = make_engine(url_of(postgres, "metering_app", **wrong), application_name="tests")
        with pytest.raises(DBAPIError) as raised:
            check_schema(refused)
        assert diagnose(raised.value) is Failure.REFUSED
        refused.dispose()


@pytest.fixture(scope="module")
def tls_redis(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[tuple[int, list[int]]]:
    """The ports of Debian's Redis and of its Sentinels, all behind TLS; Redis's user needs a password."""
    program = apt_program("redis-server", "redis-server")
    directory = tmp_path_factory.mktemp("tls-redis")
    tls = {
        "tls-cert-file": str(certificates.certificate),
        "tls-key-file": str(certificates.key),
        "tls-ca-cert-file": str(certificates.authority),
        "tls-auth-clients": "no",
        "tls-replication": "yes",
    }
    port = free_port()
    with ExitStack() as stack:
        server = TcpServer(
            directory / "redis", {**tls, "tls-port": str(port), "user": "meter on >pw ~* &* +@all"}, program
        )
        stack.callback(server.stop)
        server.start()
        ports = []
        for number in range(2):
            ports.append(free_port())
            said = "".join(f"{name} {value}\n" for name, value in {**tls, "tls-port": str(ports[-1])}.items())
            sentinel = Sentinel(directory / f"s{number}", port, 60_000, said, program)
            stack.callback(sentinel.stop)
            sentinel.start()
        yield port, ports


def test_redis_with_tls(tls_redis: tuple[int, list[int]], certificates: Certificates) -> None:
    port, sentinels = tls_redis
    proved = f"?ssl_ca_certs={certificates.authority}"
    hosts = ",".join(f"{HOST}:{each}" for each in sentinels)
    for url in (
        f"rediss://meter:pw@{HOST}:{port}/0{proved}",
        f"rediss+sentinel://meter:pw@{hosts}/{NAME}/0{proved}",
    ):
        assert Settings.model_validate({"redis_url": url}).redis_url == url
        with MeteringClient(url) as telephony, connect_redis(url) as client:
            telephony.push(event(call_id=1, org_id=1))
            assert client.xlen("calls:completed") >= 1
        assert asyncio.run(there(url)) == 1
        strange = url.replace(str(certificates.authority), str(certificates.stranger))
        with (
            MeteringClient(strange, tries=1) as telephony,
            pytest.raises(TelephonyError, match="certificate"),
        ):
            telephony.push(event(call_id=2, org_id=1))
    with pytest.raises(redis.RedisError), connect_redis(f"redis://meter:pw@{HOST}:{port}/0") as client:
        client.ping()


async def there(url: str) -> int:
    client = connect_redis_async(url, timeout_s=5.0, max_connections=2)
    try:
        return int(await client.exists("calls:completed"))
    finally:
        await client.aclose()
