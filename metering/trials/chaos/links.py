"""The network between two processes: a TCP proxy on loopback that can cut connections and hold up what is said on them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 65_536
START_LIMIT_S: Final = 10.0

Address = Path | tuple[str, int]
"""Where a server listens: a Unix socket, or host and port."""


class State(Enum):
    """What a link does with what is said on it."""

    PASSING = auto()
    STALLED = auto()
    """Connections are taken, and nothing gets through, until it passes again: the other side seems to think."""
    CUT = auto()
    """Connections end, and new ones end at once."""


@dataclass(slots=True)
class _Link:
    target: Address
    state: State = State.PASSING
    passing: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    port: int = 0


class Links:
    """Named links, each a port of its own; they run in a thread while this is entered. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, name: str, target: Address) -> int:
        """Make a link to a server, which needn't listen yet; give the port of HOST that the link listens on."""
        link = self._links[name] = _Link(target)
        self._do(self._listen(link))
        return link.port

    @property
    def names(self) -> tuple[str, ...]:
        """Every link's."""
        return tuple(self._links)

    def port(self, name: str) -> int:
        """Where the link listens, on HOST."""
        return self._links[name].port

    def move(self, name: str, target: Address) -> None:
        """Let the link lead to another server from now on. Connections that there are stay with the one that they have."""
        self._links[name].target = target

    def stall(self, name: str) -> None:
        """Let nothing through for now."""
        self._set(name, State.STALLED)

    def cut(self, name: str) -> None:
        """End all connections, and each new one, for now."""
        self._set(name, State.CUT)

    def heal(self, name: str) -> None:
        """Let everything through again, what was held up first."""
        self._set(name, State.PASSING)

    def heal_all(self) -> None:
        """The same for every link."""
        for name in self._links:
            self.heal(name)

    def _set(self, name: str, state: State) -> None:
        self._do(self._change(self._links[name], state))

    async def _change(self, link: _Link, state: State) -> None:
        link.state = state
        if state is State.STALLED:
            link.passing.clear()
        else:
            link.passing.set()
        if state is State.CUT:
            for writer in list(link.connections):
                writer.transport.abort()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_LIMIT_S)

    async def _listen(self, link: _Link) -> None:
        link.passing.set()
        server = await asyncio.start_server(self._accepting(link), HOST, 0)
        link.port = server.sockets[0].getsockname()[1]
        self._servers.append(server)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for link in self._links.values():
            await self._change(link, State.CUT)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepting(self, link: _Link) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(_carry(link, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accept


async def _carry(link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection, both ways, to its end."""
    writers = [writer]
    try:
        link.connections.add(writer)
        await link.passing.wait()
        if link.state is State.CUT:
            return
        far_reader, far_writer = await _connect(link.target)
        writers.append(far_writer)
        link.connections.add(far_writer)
        await asyncio.gather(_pump(link, reader, far_writer), _pump(link, far_reader, writer))
    except (OSError, asyncio.CancelledError):
        pass
    finally:
        for each in writers:
            link.connections.discard(each)
            each.transport.abort()


async def _connect(target: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(target, Path):
        return await asyncio.open_unix_connection(target)
    return await asyncio.open_connection(*target)


async def _pump(link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry what comes from one side to the other; an end of it too, while the other direction goes on."""
    while data := await reader.read(CHUNK_BYTES):
        await link.passing.wait()
        writer.write(data)
        await writer.drain()
    with suppress(OSError):  # the other side may have gone in the same moment
        writer.write_eof()
