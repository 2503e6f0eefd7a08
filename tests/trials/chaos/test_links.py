"""The links between processes: what they carry, hold up and cut, over real sockets."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from metering.trials.chaos.links import HOST, Links

SHORT_S = 0.3


def _echo(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            while data := connection.recv(1_000):
                connection.sendall(data.upper())


@pytest.fixture
def link(tmp_path: Path) -> Iterator[tuple[Links, int]]:
    """Links with one, `a > b`, to a server on a Unix socket that says everything louder; and its port."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, Links() as links:
        server.bind(str(tmp_path / "s"))
        server.listen()
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        yield links, links.add("a > b", tmp_path / "s")
        server.shutdown(socket.SHUT_RDWR)


def _connected(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=5)


def _said(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(1_000)


def test_a_link_carries_both_ways_and_the_end_too(link: tuple[Links, int]) -> None:
    _, port = link
    with _connected(port) as connection:
        assert _said(connection, b"hello") == b"HELLO"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1_000) == b""


def test_a_link_that_was_moved_leads_new_connections_elsewhere(
    link: tuple[Links, int],
) -> None:
    links, port = link
    with _connected(port) as before, socket.create_server((HOST, 0)) as elsewhere:
        assert _said(before, b"x") == b"X"
        links.move("a > b", elsewhere.getsockname())
        with _connected(port), elsewhere.accept()[0]:
            assert _said(before, b"y") == b"Y"


def test_a_stalled_link_takes_connections_and_lets_through_later_what_it_held_up(
    link: tuple[Links, int],
) -> None:
    links, port = link
    with _connected(port) as before:
        assert _said(before, b"x") == b"X"
        links.stall("a > b")
        with _connected(port) as meanwhile:
            before.sendall(b"one")
            meanwhile.sendall(b"two")
            for connection in (before, meanwhile):
                connection.settimeout(SHORT_S)
                with pytest.raises(TimeoutError):
                    connection.recv(1_000)
                connection.settimeout(5)
            links.heal("a > b")
            assert before.recv(1_000) == b"ONE"
            # The server has one client at a time: it comes to the second when the first has gone.
            before.close()
            assert meanwhile.recv(1_000) == b"TWO"


def _is_ended(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
        return connection.recv(1_000) == b""
    except ConnectionError:
        return True


def test_a_cut_link_ends_connections_old_and_new_until_it_is_healed(link: tuple[Links, int]) -> None:
    links, port = link
    with _connected(port) as before:
        assert _said(before, b"x") == b"X"
        links.cut("a > b")
        assert _is_ended(before)
        with _connected(port) as meanwhile:
            assert _is_ended(meanwhile)
        links.heal_all()
        with _connected(port) as after:
            assert _said(after, b"again") == b"AGAIN"


def test_a_link_to_nobody_ends_connections(tmp_path: Path) -> None:
    with Links() as links, _connected(links.add("a > nobody", tmp_path / "missing")) as connection:
        assert _is_ended(connection)
