"""`metering push`."""

import gzip
import json
import os
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import redis

from metering.cli import push
from metering.console import event_input
from metering.runtime.names import STREAM
from metering.signals.call_stream import append_events
from tests.cli.conftest import Cli
from tests.cli.waiting import wait_until

LINES: Final = [b'{"call_id":1}', b'{"call_id": 2}\r', b"\xff not JSON"]
"""What the events file holds."""


@pytest.fixture
def cli(redis_url: str, data_dir: Path) -> Cli:
    """The command with Redis alone: pushing needs no Postgres, and no embedded one either."""
    return Cli({"METERING_REDIS_URL": redis_url, "METERING_DATA_DIR": str(data_dir)})


def pushed(client: redis.Redis) -> list[bytes]:
    """The events in the stream, in their order."""
    entries: Any = client.xrange(STREAM)
    assert all(set(fields) == {b"event"} for _, fields in entries)
    return [fields[b"event"] for _, fields in entries]


def test_lines_go_in_as_they_are(cli: Cli, redis_client: redis.Redis, events_file: Path) -> None:
    assert cli.json("push", str(events_file)) == {"pushed": 3}
    assert pushed(redis_client) == LINES
    assert cli.run("push", str(events_file)).stdout == "3 events pushed.\n"


def test_gzip_is_known_by_its_bytes(
    cli: Cli, redis_client: redis.Redis, events_file: Path, tmp_path: Path
) -> None:
    for name in ("events.jsonl.gz", "events"):
        (tmp_path / name).write_bytes(gzip.compress(events_file.read_bytes()))
        assert cli.json("push", str(tmp_path / name)) == {"pushed": 3}
    assert pushed(redis_client) == LINES * 2


def test_standard_input_plain_and_gzip(cli: Cli, redis_client: redis.Redis, events_file: Path) -> None:
    for data in (events_file.read_bytes(), gzip.compress(events_file.read_bytes())):
        done = cli.process("push", "-", "--json", stdin=data)
        assert (done.returncode, json.loads(done.stdout)) == (0, {"pushed": 3})
        assert done.stderr.startswith(b"Line 5 is no JSON object: it was pushed as it is")
    assert pushed(redis_client) == LINES * 2


def test_nothing_to_push(cli: Cli, redis_client: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b"\n \n")
    for name in ("empty", "blank"):
        assert cli.json("push", str(tmp_path / name)) == {"pushed": 0}
    assert pushed(redis_client) == []


def test_more_than_a_batch_stays_in_order(cli: Cli, redis_client: redis.Redis, tmp_path: Path) -> None:
    lines = [b"%d" % number for number in range(1_201)]
    (tmp_path / "events").write_bytes(b"\n".join(lines))
    assert cli.json("push", str(tmp_path / "events")) == {"pushed": 1_201}
    assert pushed(redis_client) == lines


def test_long_lines_do_not_make_large_batches(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    append = append_events

    def note(client: redis.Redis, raws: Sequence[bytes]) -> list[Any]:
        sizes.append(len(raws))
        return append(client, raws)

    monkeypatch.setattr(push, "append_events", note)
    monkeypatch.setattr(push, "BATCH_BYTES", 1_000)
    (tmp_path / "events").write_bytes(b"\n".join([b"x" * 600] * 5))
    assert cli.json("push", str(tmp_path / "events")) == {"pushed": 5}
    assert sizes == [2, 2, 1]
    assert redis_client.xlen(STREAM) == 5


def test_a_line_without_end_is_refused_by_its_number(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path
) -> None:
    longest = event_input.MAX_LINE_BYTES
    with gzip.open(tmp_path / "events.gz", "wb", compresslevel=1) as file:
        file.write(b"first\n" + b"x" * longest + b"\n" + b"y" * (longest + 1) + b"\nlast\n")
    said = cli.fail("push", str(tmp_path / "events.gz"))
    assert said.startswith(
        f"FILE: line 3 of {tmp_path}/events.gz is longer than 1 MiB, which can't be an event: take it out;"
        " 2 events before that pushed."
    )
    assert [len(event) for event in pushed(redis_client)] == [5, longest]


def test_what_is_there_is_pushed_while_more_is_still_to_come(cli: Cli, redis_client: redis.Redis) -> None:
    with cli.start("push", "-") as process:
        assert process.stdin is not None
        for number in range(1, 3):
            process.stdin.write(b"%d\nhalf" % number)
            process.stdin.flush()
            wait_until(lambda number=number: len(pushed(redis_client)) == number, "pushing a line")  # type: ignore[misc]
        output, _ = process.communicate(timeout=60)
    assert output == b"3 events pushed.\n"
    assert pushed(redis_client) == [b"1", b"half2", b"half"]


def test_a_line_does_not_wait_for_a_batch_where_some_come_all_the_time(
    cli: Cli, redis_client: redis.Redis
) -> None:
    written = 0
    with cli.start("push", "-") as process:
        assert process.stdin is not None
        while not redis_client.exists(STREAM):
            assert written < push.BATCH_EVENTS - 1
            process.stdin.write(b"%d\n" % written)
            process.stdin.flush()
            written += 1
            time.sleep(push.BATCH_AGE_S / 4)
        process.communicate(timeout=60)
    assert pushed(redis_client) == [b"%d" % number for number in range(written)]


def test_gzip_is_pushed_as_it_comes_and_known_by_two_bytes_however_they_come(
    cli: Cli, redis_client: redis.Redis
) -> None:
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(b"{}\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    with cli.start("push", "-") as process:
        assert process.stdin is not None
        process.stdin.write(first[:1])
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):  # long enough for it to have read the one byte
            process.wait(timeout=3)
        process.stdin.write(first[1:])
        process.stdin.flush()
        wait_until(lambda: pushed(redis_client) == [b"{}"], "pushing a line")
        output, errors = process.communicate(packer.compress(b"{ }\n") + packer.flush(), timeout=60)
    assert (output, errors) == (b"2 events pushed.\n", b"")
    assert pushed(redis_client) == [b"{}", b"{ }"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_says_how_many_it_pushed(
    cli: Cli, redis_client: redis.Redis, number: signal.Signals, status: int
) -> None:
    with cli.start("push", "-", "--json") as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n2\nhalf")
        process.stdin.flush()
        wait_until(lambda: len(pushed(redis_client)) == 2, "pushing two lines")
        process.send_signal(number)
        assert process.wait(timeout=60) == status
        output, errors = process.communicate()
    assert json.loads(output) == {"pushed": 2}
    assert errors.startswith(b"Told to stop: 2 events pushed, the rest of the input not. Pushing the same")
    assert pushed(redis_client) == [b"1", b"2"]


def test_told_to_stop_it_pushes_what_it_has_read(redis_client: redis.Redis) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb") as file:
        file.write(b"1\n2\n")
        file.flush()
        source = event_input.Input("pipe", reading)
        pusher = push.Pusher(redis_client, lambda _: None)
        with pytest.raises(push._ToldToStopError):
            push.push_lines(source, pusher, stop=lambda: source.read_bytes == 4)
    assert pushed(redis_client) == [b"1", b"2"]


def test_a_damaged_file_is_pushed_up_to_the_damage(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path
) -> None:
    whole = gzip.compress(b"\n".join(b"%d" % number for number in range(50_000)))
    (tmp_path / "events.gz").write_bytes(whole[: len(whole) // 2])
    said = cli.fail("push", str(tmp_path / "events.gz"))
    number = len(pushed(redis_client))
    assert number > 1_000
    assert (
        f"ends early, in the middle of what gzip has packed, after line {number}: get the whole file" in said
    )
    assert f"{number:,} events before that pushed. Pushing the same input again is safe" in said


def test_a_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert (
        cli.fail("push", str(tmp_path / "none"))
        == f"FILE: {tmp_path}/none can't be read (No such file or directory)."
    )


def test_what_redis_refuses_is_not_counted(cli: Cli, redis_client: redis.Redis, events_file: Path) -> None:
    redis_client.set(STREAM, "no stream")
    said = cli.fail("push", str(events_file))
    assert "WRONGTYPE" in said
    assert (
        "; 0 events surely pushed. See to the server, or to METERING_REDIS_URL. Pushing the same input again is safe"
        in said
    )


@contextmanager
def breaking_off(url: str, path: Path, *, after_bytes: int) -> Iterator[str]:
    """A way to the server at `url` (unix) that is cut, for good, once so many bytes of answers came through it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def carry() -> None:
            near, _ = listening.accept()
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(urlsplit(url).path)
                threading.Thread(target=forward, args=(near, far), daemon=True).start()
                left = after_bytes
                while left > 0:
                    answer = far.recv(min(left, 4_096))
                    near.sendall(answer)
                    left -= len(answer)
                near.shutdown(socket.SHUT_RDWR)
            path.unlink()

        def forward(near: socket.socket, far: socket.socket) -> None:
            try:
                while data := near.recv(4_096):
                    far.sendall(data)
            except OSError:
                pass  # cut

        carrier = threading.Thread(target=carry, daemon=True)
        carrier.start()
        yield f"unix://{path}"
        carrier.join()


def test_redis_going_away_in_the_middle(
    cli: Cli,
    redis_client: redis.Redis,
    redis_url: str,
    tmp_path: Path,
) -> None:
    lines = [b"%d" % number for number in range(2_000)]
    (tmp_path / "events").write_bytes(b"\n".join(lines))
    # An answer takes 22 to 24 bytes: the cut falls into those to the second batch of 500.
    with breaking_off(redis_url, tmp_path / "s", after_bytes=15_000) as cut_url:
        broken = Cli({**cli.settings, "METERING_REDIS_URL": cut_url})
        said = broken.fail("push", str(tmp_path / "events"))
    assert (
        "; 500 events surely pushed. See to the server, or to METERING_REDIS_URL. Pushing the same input again is safe"
        in said
    )
    before = pushed(redis_client)
    assert 500 <= len(before) <= 1_000
    assert before == lines[: len(before)]
    assert cli.json("push", str(tmp_path / "events")) == {"pushed": 2_000}
    assert pushed(redis_client) == before + lines
