"""A Valkey that a test may stop, kill and fill up, and a server that answers what it is told to."""

import os
import signal
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import redis

from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import running, valkey_pid
from tests.waiting import wait_until

LIMIT_S = 20.0


class OwnValkey:
    """One test's own Valkey."""

    def __init__(self, data_dir: Path, url: str) -> None:
        self.data_dir = data_dir
        self.url = url

    def connect(self) -> redis.Redis:
        return connect_redis(self.url)

    def send(self, number: signal.Signals) -> None:
        pid = valkey_pid(self.data_dir)
        assert pid is not None
        os.kill(pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.send(number)
        wait_until(lambda: valkey_pid(self.data_dir) is None, limit_s=LIMIT_S)

    def start(self) -> None:
        with running(self.data_dir, postgres=False):
            pass  # the fixture keeps it running

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections, but answers nobody."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


@pytest.fixture
def own_valkey(data_dir: Path) -> Iterator[OwnValkey]:
    with running(data_dir, postgres=False) as servers:
        yield OwnValkey(data_dir, servers.redis_url)


PRIMARY = b"*2\r\n$4\r\nrole\r\n$6\r\nmaster"
"""What HELLO answers, as far as anybody looks."""


class ScriptedRedis(socketserver.ThreadingTCPServer):
    """Greets every connection, then answers one command after another as it was told; None hangs up instead.

    Who asks for its role is answered only with the next command: nobody may make a round trip of its own for that.
    """

    daemon_threads = True

    def __init__(self, answers: Sequence[bytes | None], role: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.answers = list(answers)
        self.role = role
        self.roles_asked = 0
        self.commands: list[list[bytes]] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/0"


class _Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("ScriptedRedis", self.server)
        owed = b""
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2])
            if words[0] == b"HELLO":
                server.roles_asked += 1
                owed = server.role + b"\r\n"
                continue
            if words[0] == b"CLIENT":  # redis-py introducing itself
                self.wfile.write(owed + b"+OK\r\n")
                owed = b""
                continue
            server.commands.append(words)
            answer = server.answers.pop(0)
            if answer is None:
                return
            self.wfile.write(owed + answer + b"\r\n")
            owed = b""


@contextmanager
def scripted_redis(*answers: bytes | None, role: bytes = PRIMARY) -> Iterator[ScriptedRedis]:
    with ScriptedRedis(answers, role) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
