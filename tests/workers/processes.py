"""Meters at work on a test's own database and Valkey, as processes or as threads of this one; all are ended with the test."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import redis
from sqlalchemy import Engine, text

from db.postgres.engine import make_engine, transaction
from metering.runtime.clock import system_clock
from metering.runtime.crashpoints import ENVIRONMENT_VARIABLE
from metering.runtime.names import STREAM
from metering.runtime.redis_connection import connect_redis
from metering.signals.gates import Gates
from tests.spine.billing import push
from workers.meter import LOCK_TIMEOUT_MS, Meter
from workers.reload_follower import ReloadFollower
from workers.stream import GROUP, CallStream, backlog

LIMIT_S: Final = 40.0
POLL_S: Final = 0.02
PROCESS_BATCH_LIMIT: Final = 500
"""Of meters that are processes: so that a test's few thousand events make several batches."""


def wait_until(true: Callable[[], object], what: str, *, limit_s: float = LIMIT_S) -> None:
    """Return once `true()` is; fail, naming `what`, when that takes longer than `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {limit_s:.0f} s"
        time.sleep(POLL_S)


class MeterProcess:
    """`metering meter` as a process of its own."""

    def __init__(self, name: str, log_path: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "metering", "meter", "--name", name),
                    *("--batch-limit", str(PROCESS_BATCH_LIMIT)),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Its exit status, or the negative number of the signal that killed it."""
        return self._process.wait(timeout=LIMIT_S)

    def stop(self) -> None:
        """SIGTERM; it must end with status 0."""
        self.send(signal.SIGTERM)
        assert self.wait() == 0, self.log_path.read_text()

    def lives(self) -> bool:
        return self._process.poll() is None

    def is_stopped(self) -> bool:
        """Whether it has been stopped by SIGSTOP since this was asked last. Fails if it has ended."""
        pid, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return False
        if not os.WIFSTOPPED(status):
            self._process.returncode = os.waitstatus_to_exitcode(status)
        assert os.WIFSTOPPED(status), f"{self.name} has ended: {self.log_path.read_text()}"
        return True

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines that it logged of this event, so far."""
        lines = self.log_path.read_text().splitlines()
        logged = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in logged if line["event"] == event]

    def end(self) -> None:
        """End it whatever state it is in."""
        if self.lives():
            self.send(signal.SIGKILL)  # ends a stopped one too
        self._process.wait()


class Site:
    """A database and a Valkey, and the meters that a test starts on them."""

    def __init__(self, database_url: str, redis_url: str, log_dir: Path) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.log_dir = log_dir
        self.engine = make_engine(
            database_url, application_name="test", pool_size=5, lock_timeout_ms=LOCK_TIMEOUT_MS
        )
        self.client = connect_redis(redis_url)
        self._meters: list[MeterProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for meter in self._meters:
            meter.end()
        self.engine.dispose()
        self.client.close()

    def start(
        self, name: str, *, crash_point: str | None = None, settings: Mapping[str, str] | None = None
    ) -> MeterProcess:
        """Start a meter, with more settings; a crash point is what METERING_CRASH_POINT takes."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("METERING_")},
            "METERING_DATABASE_URL": self.database_url,
            "METERING_REDIS_URL": self.redis_url,
            "METERING_LOG_LEVEL": "debug",  # a line for each batch
            **(settings or {}),
        }
        if crash_point is not None:
            environment[ENVIRONMENT_VARIABLE] = crash_point
        meter = MeterProcess(name, self.log_dir / f"{name}-{len(self._meters)}.log", environment)
        self._meters.append(meter)
        return meter

    def push(self, events: Sequence[bytes]) -> None:
        push(self.client, events)

    def push_at_once(self, events: Sequence[bytes]) -> None:
        """Push all the events in one go: a meter that waits for some gets as many as it takes."""
        with self.client.pipeline(transaction=True) as pipeline:
            for raw in events:
                pipeline.xadd(STREAM, {"event": raw})
            pipeline.execute()

    @contextmanager
    def pushing(self, events: Sequence[bytes], *, chunk: int = 20, every_s: float = 0.01) -> Iterator[None]:
        """Push the events a few at a time in a thread, as a producer does: what may have failed is sent again.

        All are pushed when the block ends.
        """
        given_up = threading.Event()
        with ThreadPoolExecutor(1) as threads, connect_redis(self.redis_url) as client:

            def produce() -> None:
                for first in range(0, len(events), chunk):
                    while not given_up.wait(every_s):
                        with suppress(redis.RedisError):
                            push(client, events[first : first + chunk])
                            break

            producer = threads.submit(produce)
            try:
                yield
            except BaseException:
                given_up.set()
                raise
            producer.result(timeout=LIMIT_S)

    def drained(self) -> bool:
        return backlog(self.client).length == 0

    def wait_until_drained(self, *, limit_s: float = LIMIT_S) -> None:
        """Return once nothing is left in the stream."""
        wait_until(self.drained, "draining the stream", limit_s=limit_s)

    def consumers(self) -> set[str]:
        """The names of the group's consumers; none where there is no group."""
        try:
            found: Any = self.client.xinfo_consumers(STREAM, GROUP)
        except redis.ResponseError:
            return set()
        return {consumer["name"].decode() for consumer in found}

    def in_hand(self) -> dict[str, int]:
        """How many entries are pending to each consumer that has some."""
        found: Any = self.client.xpending(STREAM, GROUP)
        return {consumer["name"].decode(): consumer["pending"] for consumer in found["consumers"]}

    def deliveries(self) -> dict[str, int]:
        """How often each pending entry was delivered."""
        found: Any = self.client.xpending_range(STREAM, GROUP, "-", "+", 10_000)
        return {entry["message_id"].decode(): entry["times_delivered"] for entry in found}

    @contextmanager
    def meters(self, *names: str, **options: Any) -> Iterator[Callable[[], bool]]:
        """Meters as threads for the time of the block; gives whether all still run. What one raised is raised at the end."""
        stop = threading.Event()
        with ThreadPoolExecutor(len(names)) as threads:
            running = [threads.submit(self.run_meter, name, stop, **options) for name in names]
            try:
                yield lambda: not any(meter.done() for meter in running)
            finally:
                stop.set()
                for meter in running:
                    meter.result(timeout=LIMIT_S)

    def run_meter(self, name: str, stop: threading.Event, **options: Any) -> None:
        """Run a meter in this thread until `stop` is set, with an engine and a client of its own."""
        engine = make_engine(
            self.database_url, application_name=f"meter {name}", lock_timeout_ms=LOCK_TIMEOUT_MS
        )
        usual: dict[str, Any] = {"clock": system_clock, "block_ms": 20}
        try:
            with connect_redis(self.redis_url) as client:
                reloads = ReloadFollower(engine, client)
                stream = CallStream(client, name)
                Meter(engine, stream, Gates(client), reloads, stop=stop, **(usual | options)).run()
        finally:
            engine.dispose()

    def drain(self, *names: str, **options: Any) -> None:
        """Run meters until nothing is left in the stream."""
        with self.meters(*names, **options) as running:
            wait_until(lambda: self.drained() or not running(), "draining the stream")


def waits_for_lock(engine: Engine) -> bool:
    """Whether some meter's session waits for a lock of another."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE '%meter%'"
    )
    with transaction(engine) as connection:
        return bool(connection.scalar(query))
