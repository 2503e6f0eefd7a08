"""Valkey's users, as docker-compose.yml makes them: each can do its work, and nothing else."""

import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from dramatiq.common import current_millis

from metering.client import MeteringClient, Refused, Unreachable
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.names import JOBS, STREAM
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.valkey import Valkey
from metering.signals.gates import Gates
from metering.signals.hold_library import load_hold_library
from metering.signals.reload_signals import ReloadSignals
from tests.conftest import Database
from tests.deploy.composed import ROOT
from tests.deploy.stack import PASSWORDS, clean_environment
from tests.payments.world import World, make_world
from tests.signals.holding import Telephony
from tests.spine.billing import event, prepare, price, running_meters
from tests.waiting import wait_until
from workers.broker import HEARTBEAT_TIMEOUT_MS, MONEY_QUEUE, make_broker
from workers.dead_workers import DeadWorkers
from workers.enqueue import AttemptQueue
from workers.jobs import run_jobs
from workers.metrics import BacklogCollector, ValkeyMemoryCollector
from workers.stream import backlog

SCRIPT = ROOT / "deploy" / "valkey" / "users.sh"
USERS = {
    "default": "VALKEY_PASSWORD",
    "telephony": "TELEPHONY_PASSWORD",
    "meter": "METER_PASSWORD",
    "jobs": "JOBS_PASSWORD",
    "api": "API_PASSWORD",
}


def users_file(**passwords: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", SCRIPT],
        env=clean_environment(PASSWORDS | passwords),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@dataclass(frozen=True)
class Guarded:
    """A Valkey with these users."""

    socket_path: Path

    def url(self, user: str, password: str | None = None) -> str:
        return f"unix://{user}:{password or PASSWORDS[USERS[user]]}@{self.socket_path}"

    def client(self, user: str) -> redis.Redis:
        return connect_redis(self.url(user))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Started as the file has it, for this module."""
    directory = tmp_path_factory.mktemp("guarded")
    made = users_file()
    assert made.returncode == 0, made.stderr
    (directory / "users.acl").write_text(made.stdout)
    guarded = Guarded(directory / "valkey.sock")
    flags = f"--port 0 --unixsocket {guarded.socket_path} --aclfile {directory / 'users.acl'} --save '' --maxmemory 1gb"
    process = subprocess.Popen(
        [Valkey.program(), *shlex.split(flags)], cwd=directory, stdout=subprocess.DEVNULL
    )
    try:
        with guarded.client("default") as client:
            wait_until(lambda: answers(client), limit_s=20)
        yield guarded
    finally:
        process.terminate()
        process.wait(20)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def operator(valkey: Guarded) -> Iterator[redis.Redis]:
    """The operator's client, of an empty server."""
    with valkey.client("default") as client:
        client.flushall()
        yield client


def test_the_file_holds_hashes_and_no_password() -> None:
    text = users_file().stdout
    assert len(re.findall(r"^user \w+ on #[0-9a-f]{64} ", text, re.MULTILINE)) == len(USERS)
    assert not any(password in text for password in PASSWORDS.values())
    assert "nopass" not in text
    assert ">" not in text


@pytest.mark.parametrize("variable", USERS.values())
def test_without_a_password_there_is_no_file_to_start_with(variable: str) -> None:
    done = users_file(**{variable: ""})
    assert done.returncode != 0
    assert variable in done.stderr


@pytest.mark.parametrize("user", USERS)
def test_a_user_has_its_own_password_and_strangers_have_none(
    valkey: Guarded, operator: redis.Redis, user: str
) -> None:
    with valkey.client(user) as client:
        assert client.ping()
    other = PASSWORDS[next(variable for name, variable in USERS.items() if name != user)]
    for url in (
        valkey.url(user, other),
        f"unix://{valkey.socket_path}",
        f"unix://nobody:x@{valkey.socket_path}",
    ):
        with connect_redis(url) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_telephony_is_the_user_that_its_guide_tells_of() -> None:
    guide = (ROOT / "docs" / "how-to" / "plain-redis.md").read_text(encoding="utf-8")
    described = re.search(r"ACL SETUSER telephony reset on '>change-this' \\\n(.*?)\n```", guide, re.DOTALL)
    line = next(line for line in users_file().stdout.splitlines() if line.startswith("user telephony "))
    assert described is not None
    assert line.split()[4:] == " ".join(shlex.split(described[1].replace("\\\n", " "))).split()


def test_telephony_pushes_asks_and_hears(valkey: Guarded, operator: redis.Redis, database: Database) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    with MeteringClient(valkey.url("telephony")) as telephony, valkey.client("meter") as meter:
        call = event(ended_at=system_clock().isoformat())
        telephony.push(call)
        telephony.push_many([call, call | {"call_id": 2}])
        with running_meters(database.engine, meter):
            wait_until(lambda: backlog(operator).length == 0, limit_s=20)
        assert telephony.gate(1).balance_cents == -32
        assert not telephony.gate(2).open
        Gates(meter).follow([Balance(1, 1, 1_000), Balance(2, 1, 1), Balance(3, 1, 1)], system_clock())
        with telephony.signals(since="0-0") as signals:
            assert [next(signals).org_id for _ in range(3)] == [1, 2, 3]
        # The jobs load the functions, and telephony calls them.
        with valkey.client("jobs") as jobs:
            load_hold_library(jobs)
        Gates(meter).follow([Balance(4, 100, 1)], system_clock())
        with valkey.client("telephony") as client:
            calls = Telephony(client)
            operator.acl_log_reset()
            assert calls.call("call_start", 4, 1, 60, 600) == ["granted", 40, 60, 1]
            assert calls.call("call_start", 4, 2, 60, 600) == ["insufficient", 40, 60, 1]
            assert calls.call("call_renew", 4, 1, 100, 600) == ["granted", 0, 100, 1]
            assert calls.call("call_cancel", 4, 1) == ["ended", 100, 0, 0]
            operator.hset("holds:4", mapping={"5": "7 1 1 ", "cents": 7})
            operator.zadd("holds:4:ends", {"5": 1})  # lapsed for more than a day: taken away
            operator.zadd("holds:4:ended", {"6": 2**50})
            assert calls.call("call_start", 4, 6, 1, 60) == ["ended", 100, 0, 0]
            assert operator.acl_log() == []
    with valkey.client("telephony") as client:
        hearing = client.pubsub()
        hearing.subscribe("balance:signals")
        assert hearing.get_message(timeout=5) is not None
        hearing.close()


# The keys are there, so that it is the right that is missing and not the key.
FORBIDDEN = {
    "telephony": [
        *("XRANGE calls:completed - +", "XREAD STREAMS calls:completed 0", "XDEL calls:completed 1-1"),
        *("XTRIM calls:completed MAXLEN 0", "XREADGROUP GROUP meter me STREAMS calls:completed >"),
        *("XACK calls:completed meter 1-1", "XGROUP DESTROY calls:completed meter", "DEL calls:completed"),
        *("HSET gate:1 state open", "DEL gate:1", "XADD gate:1 * a b", "HGETALL gate:1", "KEYS *", "SCAN 0"),
        *("XADD balance:signals:log * signal x", "XTRIM balance:signals:log MAXLEN 0"),
        *("PUBLISH balance:signals x", "SUBSCRIBE other", "PSUBSCRIBE *", "XADD elsewhere * event x"),
        *(
            "FCALL metering_version 0",
            "FCALL call_start 2 gate:1 gate:1:ends 1 1 60",
            "FUNCTION LIST",
            "HSET gate:1 a b",
        ),
        *("FCALL call_start 2 holds:1 gate:1 1 1 60", "FCALL_RO call_start 2 holds:1 holds:1:ends 1 1 60"),
        *("FUNCTION LOAD x", "FUNCTION FLUSH", "FUNCTION DELETE metering", "FUNCTION DUMP", "FCALL other 0"),
        *(
            "HDEL gate:1 state",
            "HINCRBY gate:1 balance_cents 1",
            "HSET calls:completed a b",
            "DEL holds:1",
            "ZADD x 1 a",
        ),
        *("EXPIRE gate:1 1", "PEXPIREAT gate:1 1", "SADD elsewhere x", "HGETALL holds:1"),
        *("EVAL return{} 0", "LRANGE metering:jobs:money 0 -1", "SET x y", "MONITOR", "CLIENT LIST"),
    ],
    "meter": ["SET elsewhere x", "PUBLISH other x", "RENAME calls:completed x", "COPY calls:completed x"],
    "jobs": [
        *("XADD calls:completed * event x", "XDEL calls:completed 1-1", "XACK calls:completed meter 1-1"),
        *("DEL calls:completed", "XGROUP DESTROY calls:completed meter", "SET elsewhere x"),
        *("XREADGROUP GROUP meter me STREAMS calls:completed >", "XTRIM calls:completed MAXLEN 0"),
    ],
    "api": [
        "XRANGE calls:completed - +",
        "SET x y",
    ],
}
FORBIDDEN_TO_ALL = [
    *(
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG GET *",
        "CONFIG SET appendonly no",
        "ACL LIST",
        "ACL SETUSER x on",
        "SHUTDOWN",
    ),
    *("SAVE", "BGREWRITEAOF", "REPLICAOF h 1", "MODULE LIST", "KEYS *", "CLIENT KILL ID 1"),
    *("FUNCTION FLUSH", "FUNCTION DELETE metering", "FUNCTION RESTORE x", "FUNCTION KILL"),
    *("MIGRATE h 1 k 0 1", "RESTORE k 0 x", "SORT k", "SWAPDB 0 1", "MONITOR"),
]


@pytest.mark.parametrize("user", FORBIDDEN)
def test_a_user_may_not_do_what_it_need_not(valkey: Guarded, operator: redis.Redis, user: str) -> None:
    operator.xadd(STREAM, {"event": b"x"}, id="1-1")
    operator.xgroup_create(STREAM, "meter", id="0")
    operator.hset("gate:1", "state", "exhausted")
    operator.xadd("balance:signals:log", {"signal": b"x"})
    allowed = []
    with valkey.client(user) as client:
        for command in [*FORBIDDEN[user], *FORBIDDEN_TO_ALL]:
            try:
                client.execute_command(*command.split())
            except redis.exceptions.NoPermissionError:
                continue
            except redis.RedisError as error:
                allowed.append((command, str(error)))
            else:
                allowed.append((command, "done"))
    assert allowed == []


def test_a_program_that_may_not_is_told_so(valkey: Guarded, operator: redis.Redis) -> None:
    with MeteringClient(valkey.url("jobs")) as client, pytest.raises(Refused, match="permission"):
        client.push(event(ended_at=system_clock().isoformat()))
    with MeteringClient(valkey.url("telephony", "wrong")) as client, pytest.raises(Refused):
        client.gate(1)
    with MeteringClient(f"unix://{valkey.socket_path}.gone") as client, pytest.raises(Unreachable):
        client.gate(1)


@pytest.mark.parametrize("user", ["meter", "api", "jobs"])
def test_every_message_gets_through_while_a_dead_worker_is_listed(
    valkey: Guarded, operator: redis.Redis, user: str
) -> None:
    operator.zadd(JOBS.heartbeats, {"dead": 1})
    operator.acl_log_reset()
    with valkey.client(user) as client:
        queue = AttemptQueue(client)
        for _ in range(200):
            queue.enqueue(1, uuid4())
    assert operator.llen(JOBS.queue(MONEY_QUEUE)) == 200
    assert operator.acl_log() == []


def test_jobs_may_take_over_what_a_dead_worker_has_in_hand(valkey: Guarded, operator: redis.Redis) -> None:
    with valkey.client("api") as api, valkey.client("jobs") as died, valkey.client("jobs") as jobs:
        AttemptQueue(api).enqueue(1, uuid4())
        assert next(make_broker(died).consume(MONEY_QUEUE, prefetch=1, timeout=1)) is not None
        operator.acl_log_reset()
        DeadWorkers(make_broker(jobs), lambda: current_millis() + HEARTBEAT_TIMEOUT_MS + 1_000).clear()
        assert operator.llen(JOBS.queue(MONEY_QUEUE)) == 1
        assert operator.zcard(JOBS.heartbeats) == 0
        assert operator.acl_log() == []


def test_the_roles_do_their_work_as_their_users(
    valkey: Guarded, operator: redis.Redis, database: Database
) -> None:
    """A call crosses the minimum: the meter enqueues, the jobs charge through dramatiq, the API's top-up opens the gate."""
    prepare(database.engine, org_ids=[2], prices=[price("bolt", "0.08")])
    with ExitStack() as stack:
        clients = {name: stack.enter_context(valkey.client(name)) for name in ("meter", "jobs", "api")}
        world = stack.enter_context(make_world(database, clients["api"], at=None))
        world.save_card()
        world.settings(enabled=True, minimum_cents=100, amount_cents=5_000)
        world.top_up(500)
        assert list(BacklogCollector(clients["jobs"]).collect()) != []
        assert (
            len(list(ValkeyMemoryCollector(clients["jobs"]).collect())) == 2
        )  # the file says how much it may hold
        with MeteringClient(valkey.url("telephony")) as telephony:
            telephony.push(event(duration_seconds=6_000, ended_at=system_clock().isoformat()))
        enqueue_by_api(world, clients["api"])
        with (
            running_meters(database.engine, clients["meter"]),
            running_jobs(world, clients["jobs"]) as charged,
        ):
            wait_until(lambda: world.balance() == 500 - 800 + 5_000, limit_s=30)
            wait_until(lambda: backlog(operator).length == 0, limit_s=20)
            wait_until(lambda: operator.hget("gate:1", "state") == b"open", limit_s=20)
            wait_until(lambda: operator.xlen("balance:signals:log") >= 3, limit_s=20)
            assert charged()
        world.assert_sound()


def enqueue_by_api(world: World, client: redis.Redis) -> None:
    """The API may enqueue as well; of an attempt that isn't there nothing comes."""
    AttemptQueue(client).enqueue(1, world.attempts()[0].id)


@contextmanager
def running_jobs(world: World, client: redis.Redis) -> Iterator[Callable[[], bool]]:
    """The jobs role in a thread; gives whether Stripe was asked for a reload."""
    payments = replace(world.payments, gates=Gates(client), signals=ReloadSignals(client), clock=system_clock)
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            run_jobs(payments, client, stop=stop)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run, name="jobs")
    thread.start()
    try:
        yield lambda: world.charged() >= 2
    finally:
        stop.set()
        thread.join(60)
    assert failures == []
