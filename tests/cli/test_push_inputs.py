"""`metering push`: what a person or a tool hands over that isn't one JSON object per line."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from metering.runtime.names import STREAM
from tests.cli.conftest import Cli

EVENT: Final = '{"call_id":1,"org_id":42,"tier":"bolt","metadata":{"name":"Жук"}}'
OTHER: Final = '{"call_id":2,"org_id":42}'
BOM: Final = b"\xef\xbb\xbf"


@pytest.fixture
def cli(redis_url: str, data_dir: Path) -> Cli:
    """The command with Redis alone."""
    return Cli({"METERING_REDIS_URL": redis_url, "METERING_DATA_DIR": str(data_dir)})


def pushed(client: redis.Redis) -> list[bytes]:
    """The events in the stream, in their order."""
    entries: Any = client.xrange(STREAM)
    return [fields[b"event"] for _, fields in entries]


def zipped(data: bytes) -> bytes:
    """The data as the only file of a zip archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("events.jsonl", data)
    return made.getvalue()


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_byte_order_mark_is_taken_off(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path, line_end: str, packed: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "events.jsonl"
    part = BOM + (EVENT + line_end + OTHER + line_end).encode()
    file.write_bytes(packed(part + part))  # two such files, put together
    done = cli.process("push", str(file), "--json")
    assert (json.loads(done.stdout), done.stderr, done.returncode) == ({"pushed": 4}, b"", 0)
    assert [json.loads(event) for event in pushed(redis_client)] == [json.loads(EVENT), json.loads(OTHER)] * 2


def test_a_byte_order_mark_alone_is_no_event(cli: Cli, redis_client: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(BOM + b"\r\n")
    assert cli.json("push", str(tmp_path / "events.jsonl")) == {"pushed": 0}
    assert pushed(redis_client) == []


LINES: Final = f"{EVENT}\r\n{OTHER}\r\n"
ARRAY: Final = f"[{EVENT},\n{OTHER}]"
UTF_16: Final = ("is UTF-16, and events are UTF-8", "iconv -f UTF-16", "Set-Content -Encoding utf8")
REFUSED: Final[dict[str, tuple[bytes, tuple[str, ...]]]] = {
    "UTF-16 little-endian": (b"\xff\xfe" + LINES.encode("utf-16-le"), UTF_16),
    "UTF-16 big-endian": (b"\xfe\xff" + LINES.encode("utf-16-be"), UTF_16),
    "UTF-16 without its mark": (LINES.encode("utf-16-le"), UTF_16),
    "UTF-16 big-endian without its mark": (LINES.encode("utf-16-be"), UTF_16),
    "UTF-32": (LINES.encode("utf-32"), ("is UTF-32, and events are UTF-8", "iconv -f UTF-32")),
    "an array": (ARRAY.encode(), ("holds a JSON array", "one JSON object per line", "jq -c '.[]'")),
    "an array on one line": (f"[{EVENT},{OTHER}]".encode(), ("holds a JSON array", "jq -c '.[]'")),
    "an array behind a mark": (BOM + f"\r\n [\r\n{EVENT}]".encode(), ("holds a JSON array", "jq -c '.[]'")),
    "an array too long for a line": (b"[" + b"{}," * 400_000 + b"{}]", ("holds a JSON array",)),
    "a body for HTTP": (f'{{"events":[{EVENT},{OTHER}]}}'.encode(), ("list of events", "jq -c '.events[]'")),
    "an object over lines": (
        json.dumps(json.loads(OTHER), indent=2).encode(),
        ("over several lines", "jq -c ."),
    ),
    "a trailing comma": (
        f"{EVENT},\r\n{OTHER}\r\n".encode(),
        ("a comma after", "one JSON object per line", "sed"),
    ),
    "CSV": (b"call_id,org_id,tier\n1,42,bolt\n", ("looks like CSV", "docs/reference/call-events.md")),
    "CSV with semicolons": (b"1;42;bolt;outbound;75\n", ("looks like CSV",)),
    "tabs": (b"call_id\torg_id\ttier\n", ("looks like CSV",)),
    "old line ends": (f"{EVENT}\r{OTHER}\r".encode(), ("carriage returns alone", "tr '\\r' '\\n'")),
    "zip": (zipped(LINES.encode()), ("is a zip archive", "unzip -p")),
    "bzip2": (bz2.compress(LINES.encode()), ("is bzip2", "bzip2 -dc")),
    "xz": (lzma.compress(LINES.encode()), ("is xz", "xz -dc")),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x58", ("is zstd", "zstd -dc")),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_another_form_is_refused_with_what_to_do(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path, name: str, packed: Callable[[bytes], bytes]
) -> None:
    data, words = REFUSED[name]
    file = tmp_path / "events"
    file.write_bytes(packed(data))
    said = cli.fail("push", str(file))
    assert said.startswith(f"FILE: {file} ")
    for word in words:
        assert word in said or (word.startswith("Set-Content") and packed is gzip.compress)
    assert said.endswith("Nothing was pushed.")
    assert pushed(redis_client) == []


def test_what_is_proposed_for_standard_input_reads_it(cli: Cli) -> None:
    done = cli.process("push", "-", stdin=ARRAY.encode())
    assert done.returncode == 1
    assert b"FILE: standard input holds a JSON array" in done.stderr
    assert b"jq -c '.[]' | metering push -" in done.stderr


def test_lines_that_are_no_events_are_pushed_and_said(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(f"{EVENT}\n{OTHER},\n\n[1]\n{OTHER}\n{EVENT[:20]}")
    done = cli.process("push", str(file), "--json")
    assert (json.loads(done.stdout), done.returncode) == ({"pushed": 5}, 0)
    assert done.stderr.decode() == (
        "3 of these lines, the first of them line 2, are no JSON objects: they were pushed as they are, and the meters will"
        " keep them as rejected (`metering rejected list`).\n"
    )
    assert len(pushed(redis_client)) == 5


def test_nothing_to_push_is_said(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b"\r\n\r\n")
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    for name, why in (("empty", "is empty"), ("blank", "holds blank lines only"), ("empty.gz", "is empty")):
        assert cli.run("push", str(tmp_path / name)).stdout == f"{tmp_path / name} {why}: 0 events pushed.\n"


def test_a_directory_is_refused_with_what_to_do(cli: Cli, tmp_path: Path) -> None:
    assert cli.fail("push", str(tmp_path)) == (
        f"FILE: {tmp_path} is a directory: name one file, or `cat {tmp_path}/*.jsonl | metering push -`."
    )


def test_gzip_that_ends_early_is_told_with_how_many_were_pushed(
    cli: Cli, redis_client: redis.Redis, tmp_path: Path
) -> None:
    whole = gzip.compress("".join(f'{{"call_id":{number}}}\n' for number in range(20_000)).encode())
    file = tmp_path / "events.gz"
    file.write_bytes(whole[: len(whole) // 2])
    said = cli.fail("push", str(file))
    number = len(pushed(redis_client))
    assert number > 1_000
    assert said == (
        f"FILE: {file} ends early, in the middle of what gzip has packed, after line {number}: get the whole file;"
        f" {number:,} events before that pushed. Pushing the same input again is safe: a call is billed once."
    )
