"""The pages for telephony say what is so: their lines for plain Redis and their programs run, and every name exists."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
import pytest
import redis
import typer.main
from redis.exceptions import NoPermissionError

from db.attempts.outbox import FAILED_SIGNAL, SKIPPED_SIGNAL, SUCCEEDED_SIGNAL
from db.ledger.rejections import MAX_KEPT_BYTES
from metering.cli.main import app
from metering.client import MeteringClient, Unreachable
from metering.rules.events import (
    MAX_AHEAD,
    MAX_DURATION_S,
    MAX_EVENT_BYTES,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_PHONE_NUMBER_CHARS,
    CallEvent,
    _Fields,
    parse_event,
)
from metering.rules.gates import Balance, GateState, SignalType
from metering.rules.rejections import Reason
from metering.rules.reloads import SIGNALLED_SKIP_REASONS
from metering.runtime.names import EVENT_FIELD, SIGNALS_CHANNEL, SIGNALS_LOG, STREAM, gate_key
from metering.signals.gates import SIGNAL_FIELD, Gates
from metering.signals.hold_library import load_hold_library
from tests.docs.pages import ROOT, first_column, page, section

HOW_TO: Final = ("telephony", "plain-redis", "python-client", "freeswitch", "asterisk", "kamailio")
PAGE: Final = "\n".join(page(f"how-to/{name}.md") for name in HOW_TO)
EVENTS: Final = page("reference/call-events.md")
GATE: Final = page("reference/gate.md")
RELOADS: Final = page("reference/auto-reload.md")
ALL: Final = f"{PAGE}\n{EVENTS}\n{GATE}\n{RELOADS}"
NOW: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""Later than any time on the page, whatever the machine's clock says."""
NASTY: Final = "x\"y\\z' %s \u00e9 {} "
RELOAD_SIGNALS: Final = {SUCCEEDED_SIGNAL, FAILED_SIGNAL, SKIPPED_SIGNAL}
EVENT_FIELDS: Final = {field.name for field in msgspec.structs.fields(_Fields)}


def blocks(mark: str) -> list[str]:
    """The code blocks that stand under the comment `mark`."""
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)\n```", PAGE, re.DOTALL)
    assert found
    return found


def blocks_of(language: str, text: str) -> list[str]:
    """The code blocks in `text` that are in `language`."""
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def redis_commands() -> list[list[str]]:
    """The redis-cli lines, as the words that a shell would make of them."""
    commands = []
    for block in blocks("tested: redis"):
        for line in re.split(r"\n(?=redis-cli )", block):
            words = shlex.split(line.replace("\\\n", ""))
            assert words[0] == "redis-cli"
            commands.append(words[1:])
    return commands


def load(mark: str, folder: Path) -> ModuleType:
    """The program in the block under `mark`, as a module."""
    (source,) = blocks(mark)
    path = folder / f"{re.sub('[^a-z]', '_', mark)}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pushed(client: redis.Redis) -> list[CallEvent]:
    """What is in the stream, as a meter would read it."""
    entries: Any = client.xrange(STREAM)
    events = []
    for _, fields in entries:
        assert set(fields) == {EVENT_FIELD}
        event = parse_event(fields[EVENT_FIELD])
        assert isinstance(event, CallEvent), event
        events.append(event)
    return events


@pytest.fixture
def gates(redis_client: redis.Redis) -> Gates:
    """Org 42 has 5 dollars, org 43 nothing; the jobs have loaded the functions."""
    load_hold_library(redis_client)
    gates = Gates(redis_client)
    gates.follow([Balance(42, 500, 17), Balance(43, 0, 1)], datetime(2026, 4, 20, tzinfo=UTC))
    return gates


@pytest.fixture
def no_users_left(redis_client: redis.Redis) -> Iterator[None]:
    yield
    redis_client.acl_deluser("telephony")
    redis_client.function_flush()


@pytest.mark.usefixtures("gates", "no_users_left")
def test_lines_for_plain_redis_do_what_the_page_says(redis_client: redis.Redis, redis_url: str) -> None:
    answers: dict[str, Any] = {}
    for words in redis_commands():
        answers[words[1] if words[0] == "FCALL" else words[0]] = redis_client.execute_command(*words)  # type: ignore[no-untyped-call]

    (event,) = pushed(redis_client)
    assert (event.call_id, event.org_id, event.duration_us) == (987654321, 42, 75_204_000)
    assert (event.tier, event.direction, event.phone_number_value) == ("bolt", "outbound", "+15551234567")
    assert answers["HGET"] == b"open"
    assert answers["HMGET"] == [b"open", b"500", b"17"]
    assert answers["call_start"] == [b"granted", 420, 80, 1]
    assert answers["call_renew"] == [b"granted", 340, 160, 1]
    assert answers["call_cancel"] == [b"ended", 500, 0, 0]
    assert answers["WAITAOF"] == [1, 0]
    ((signal_id, signal),) = answers["XREVRANGE"]
    assert answers["XREAD"] == [[SIGNALS_LOG.encode(), [(signal_id, signal)]]]
    assert set(signal) == {SIGNAL_FIELD.encode()}

    with redis.Redis.from_url(redis_url, username="telephony", password="change-this") as telephony:  # noqa: S106
        metering = MeteringClient(telephony)
        assert metering.gate(42).open
        assert not metering.gate(44).open
        assert metering.start_call(42, 1, cents=500, ttl_seconds=60).granted
        metering.push(json.loads(redis_client.xrange(STREAM)[0][1][EVENT_FIELD]))  # type: ignore[index]
        assert next(metering.signals(since="0-0")).org_id == 42
        metering.signals().close()
        for forbidden in ("FLUSHALL", f"DEL {STREAM}", f"XLEN {STREAM}", f"HSET {gate_key(43)} state open"):
            with pytest.raises(NoPermissionError):
                telephony.execute_command(*forbidden.split())
    assert len(pushed(redis_client)) == 2


def test_names_of_keys_and_fields_are_the_programs_own(redis_client: redis.Redis, gates: Gates) -> None:
    known = {STREAM, SIGNALS_LOG, SIGNALS_CHANNEL}
    named = set(re.findall(r"\b(?:calls|balance):[a-z:]*[a-z]", ALL))
    assert named == known
    assert set(re.findall(r"\b\w*gate\w*:(?=[0-9$%*{])", ALL)) == {gate_key(0).removesuffix("0")}
    for command in re.findall(r"XADD [^\n`]* [^\n`]*", ALL):
        assert command.split()[1] == STREAM
        assert command.split()[3] == EVENT_FIELD.decode()
    for field in re.findall(r"HGET \S+ (\w+)", ALL):
        assert field == "state"
    (hmget,) = (words for words in redis_commands() if words[0] == "HMGET")
    held: Any = redis_client.hgetall(gate_key(42))
    assert {name.encode() for name in hmget[2:]} == set(held)
    named = {name.encode() for name in first_column(section(GATE, "Asking"))}
    assert named == set(held) | {b"max_concurrent_calls"}  # it has no limit
    assert {state.value for state in GateState} == set(
        re.findall(r"`(\w+)`", next(row for row in GATE.splitlines() if row.startswith("| `state`")))
    ) - {"state"}


def test_signals_are_the_programs_own(redis_client: redis.Redis, gates: Gates) -> None:
    told = section(GATE, "Signals")
    assert f"field `{SIGNAL_FIELD}`" in told
    (balance,) = blocks_of("json", told)
    newest: Any = redis_client.xrevrange(SIGNALS_LOG, count=1)
    assert set(json.loads(balance)) == set(json.loads(newest[0][1][SIGNAL_FIELD.encode()]))
    named = set(re.findall(r"^\| `((?:balance|org)\.\w+)` \|", told, re.MULTILINE))
    assert named == {kind.value for kind in SignalType}
    reloads = blocks_of("json", section(RELOADS, "Signals"))[0]
    assert {json.loads(line)["type"] for line in reloads.splitlines()} == RELOAD_SIGNALS
    types = {kind.value for kind in SignalType} | RELOAD_SIGNALS
    assert set(re.findall(r'"type":"([^"]+)"', ALL)) <= types
    assert set(re.findall(r"`(auto_reload\.\w+)`", ALL)) == RELOAD_SIGNALS


def test_reload_signals_have_the_fields_that_the_page_names() -> None:
    told = section(RELOADS, "Signals")
    (reloads,) = blocks_of("json", told)
    rows = {
        row.split("|")[1].strip(" `"): set(re.findall(r"`(\w+)`", row.split("|")[3]))
        for row in told.splitlines()
        if row.startswith("| `auto_reload.")
    }
    assert rows.keys() == RELOAD_SIGNALS
    for line in reloads.splitlines():
        message = json.loads(line)
        own = set(message) - {"type", "org_id", "id", "at"}
        reasons = (
            {reason.value for reason in SIGNALLED_SKIP_REASONS}
            if message["type"] == SKIPPED_SIGNAL
            else set()
        )
        assert rows[message["type"]] == own | reasons


def test_names_of_event_fields_are_those_the_meter_reads() -> None:
    assert first_column(section(PAGE, "What goes into an event")) == EVENT_FIELDS
    assert first_column(section(EVENTS, "Fields")) == EVENT_FIELDS
    (push,) = (words for words in redis_commands() if words[0] == "XADD")
    assert set(json.loads(push[-1])) == EVENT_FIELDS
    assert set(re.findall(r'jansson_set\("\w+", "(\w+)"', PAGE)) | {"duration_seconds"} <= EVENT_FIELDS


def test_limits_of_event_fields_are_the_meters() -> None:
    for text in (PAGE, EVENTS):
        assert f"at most {MAX_PHONE_NUMBER_CHARS} characters" in text
        assert f"{MAX_DURATION_S}" in text
    assert f"at most {MAX_EVENT_BYTES // 1024} KiB" in EVENTS
    assert f"at most {MAX_METADATA_BYTES // 1024} KiB, nested at most {MAX_METADATA_DEPTH} deep" in EVENTS
    assert f"at most {MAX_AHEAD.total_seconds() / 60:.0f} minutes ahead" in EVENTS
    assert f"first {MAX_KEPT_BYTES // 1024} KiB" in EVENTS


def test_reasons_are_all_there() -> None:
    reasons = {reason.value for reason in Reason}
    assert first_column(section(PAGE, "Rejected events")) == reasons
    assert first_column(section(EVENTS, "Rejected events")) == reasons


def test_commands_exist_with_their_options() -> None:
    lines = re.findall(r"^metering (.*?)(?:\s+#.*)?$", PAGE, re.MULTILINE)
    lines += re.findall(r"[|`] ?metering ([a-z]+(?: [a-z]+)?[^`\n]*)`", PAGE)
    assert len(lines) > 5
    for line in lines:
        command: Any = typer.main.get_command(app)
        for word in shlex.split(line):
            if hasattr(command, "commands"):
                command = command.commands[word]
            elif word.startswith("--"):
                assert word in {option for parameter in command.params for option in parameter.opts}, line


def test_recipe_for_call_ids(tmp_path: Path) -> None:
    call_id = load("tested: python", tmp_path).call_id
    assert call_id("3a7f0c52", "1776709506201000") == call_id("3a7f0c52", "1776709506201000")
    ids = {call_id("the same Call-ID", str(began)) for began in range(1000)}
    assert len(ids) == 1000
    assert all(1 <= each < 2**63 for each in ids)


@pytest.mark.usefixtures("gates")
def test_lines_for_python(tmp_path: Path, redis_client: redis.Redis, redis_url: str) -> None:
    lines = load("tested: client", tmp_path)
    kept: list[object] = []
    with MeteringClient(redis_url) as metering:
        assert [lines.may_start(metering, org_id) for org_id in (42, 43, 44)] == [True, False, False]
        lines.ended(metering, kept.append)
    assert [event.duration_us for event in pushed(redis_client)] == [75_204_000]
    with MeteringClient(f"unix://{tmp_path}/nobody", tries=1) as away:
        assert not lines.may_start(away, 42)
        lines.ended(away, kept.append)
    assert len(kept) == 1


def leg(spool: Path, uuid: str, **variables: str) -> Path:
    """A record as mod_json_cdr writes it, all values as text."""
    timing = {
        "start_uepoch": "1776709420000123",
        "end_uepoch": "1776709506201456",
        "billsec": "75",
        "billusec": "75204001",
    }
    path = spool / f"{uuid}.cdr.json"
    path.write_text(json.dumps({"core-uuid": "1", "variables": timing | variables}, ensure_ascii=False))
    return path


def test_program_for_freeswitch(tmp_path: Path, redis_client: redis.Redis, redis_url: str) -> None:
    program = load("file: freeswitch_push.py", tmp_path)
    spool = tmp_path / "spool"
    spool.mkdir()
    carrier = {"metering_org_id": "42", "metering_tier": "bolt", "metering_direction": "outbound"}
    leg(spool, "aaaa", **carrier, metering_number=NASTY)
    leg(spool, "bbbb")
    leg(spool, "cccc", **carrier, metering_number="9" * 100)
    latin = leg(spool, "dddd", **carrier, metering_number="caf#")
    latin.write_bytes(latin.read_bytes().replace(b"#", b"\xe9"))
    half = spool / "eeee.cdr.json"
    half.write_text('{"variables":{"metering_')

    with MeteringClient(f"unix://{tmp_path}/nobody", tries=1) as away, pytest.raises(Unreachable):
        program.push_all(spool, away)
    assert len(list(spool.glob("*.cdr.json"))) == 5
    with MeteringClient(redis_url) as metering:
        program.push_all(spool, metering)
        assert [path.name for path in spool.glob("*.cdr.json")] == [half.name]
        (spool / "pushed" / "aaaa.cdr.json").rename(spool / "aaaa.cdr.json")
        os.utime(half, (0, 0))
        program.push_all(spool, metering)
    assert [path.name for path in spool.glob("*.bad")] == ["eeee.cdr.bad"]

    first, long, undecodable, again = pushed(redis_client)
    assert again == first
    assert (first.org_id, first.tier, first.direction) == (42, "bolt", "outbound")
    assert first.duration_us == 75_204_001
    assert first.ended_at == datetime(2026, 4, 20, 18, 25, 6, 201456, tzinfo=UTC)
    assert first.phone_number_value == NASTY
    assert long.phone_number_value == "9" * MAX_PHONE_NUMBER_CHARS
    assert undecodable.phone_number_value == "caf\ufffd"
    assert len({event.call_id for event in (first, long, undecodable)}) == 3


@pytest.mark.parametrize(
    ("answered", "ended", "billusec", "billsec"),
    [
        (1375609856285587, 1375609860205563, 3919976, 4),
        (1396984227717006, 1396984242257026, 14540020, 15),
        (1436280728971147, 1436280794010851, 65039704, 66),
        (1520944105037574, 1520944164057232, 59019658, 59),
        (1521025767766321, 1521025788366141, 20599820, 21),
    ],
)
def test_program_for_freeswitch_takes_the_time_from_answer_to_end(
    tmp_path: Path, answered: int, ended: int, billusec: int, billsec: int
) -> None:
    """The times are those of records that others have published."""
    program = load("file: freeswitch_push.py", tmp_path)
    variables = {
        "start_uepoch": str(answered - 1_000_000),
        "answer_uepoch": str(answered),
        "end_uepoch": str(ended),
    }
    variables |= {"billusec": str(billusec), "billsec": str(billsec), "metering_number": "+15551234567"}
    variables |= {"metering_org_id": "42", "metering_tier": "bolt", "metering_direction": "outbound"}
    made = program.event("aaaa", variables)
    assert made["duration_seconds"] * 1_000_000 == ended - answered
    assert made["ended_at"].timestamp() == pytest.approx(ended / 1e6)
    assert abs(int(billsec) - made["duration_seconds"]) < 1


def cel(kind: str, at: str, channel: str, mark: str = "") -> str:
    """A line as cel_custom writes it with CSV_QUOTE."""
    return ",".join(f'"{field}"' for field in (kind, at, channel, mark)) + "\n"


def test_program_for_asterisk(tmp_path: Path, redis_client: redis.Redis, redis_url: str) -> None:
    program = load("file: asterisk_push.py", tmp_path)
    rotated, current = tmp_path / "metering.csv.1", tmp_path / "metering.csv"
    mark = "metering:42:bolt:inbound:+15551234567"
    rotated.write_text(
        cel("ANSWER", "1776709420.000123", "pbx1-1776709415.7", mark)
        + cel("ANSWER", "1776709421.000000", "pbx1-1776709415.8")
        + cel("HANGUP", "1776709430.000000", "pbx1-1776709415.9", mark)
    )
    current.write_text(
        cel("HANGUP", "1776709506.201456", "pbx1-1776709415.8")
        + cel("HANGUP", "1776709506.201456", "pbx1-1776709415.7", mark)
        + "no line of CEL\n"
        + cel("ANSWER", "1776709507.000000", "pbx1-1776709506.10")
        + cel("HANGUP", "1776709507.500000", "pbx1-1776709506.10", "metering:43:bolt:outbound:")
    )
    for _ in range(2):
        program.run(redis_url, [rotated, current], follow=False)

    call, short, *repeated = pushed(redis_client)
    assert repeated == [call, short]
    assert (call.org_id, call.tier, call.direction) == (42, "bolt", "inbound")
    assert (call.duration_us, call.phone_number_value) == (86_201_333, "+15551234567")
    assert call.ended_at == datetime(2026, 4, 20, 18, 25, 6, 201456, tzinfo=UTC)
    assert (short.org_id, short.duration_us, short.phone_number_value) == (43, 500_000, None)


def test_program_for_asterisk_follows_a_file_that_is_rotated(tmp_path: Path) -> None:
    program = load("file: asterisk_push.py", tmp_path)
    path = tmp_path / "metering.csv"
    lines = program.whole_lines(path, follow=True)
    assert [next(lines) for _ in range(2)] == [None, None]  # Asterisk makes it with the first call
    path.write_text("one\ntw")
    assert [next(lines) for _ in range(3)] == ["one\n", None, None]
    with path.open("a") as file:
        file.write("o\n")
    assert [next(lines) for _ in range(2)] == ["two\n", None]
    with path.open("a") as file:
        file.write("three\n")
    path.rename(tmp_path / "metering.csv.1")
    path.write_text("four\n")
    assert [next(lines) for _ in range(3)] == ["three\n", "four\n", None]
    lines.close()


def test_the_first_sip_call_takes_kamailios_part_from_its_page(tmp_path: Path) -> None:
    (lines,) = (block for block in blocks_of("sh", page("tutorials/first-sip-call.md")) if "sed -n" in block)
    (config,) = blocks("file: metering.cfg")
    done = subprocess.run(
        ["/bin/sh", "-e"],
        input=lines.replace("/tmp/first-sip-call", str(tmp_path)),  # noqa: S108 - the page's own
        env={"PATH": os.environ["PATH"], "METERING_DATA_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    by_socket = config.replace("addr=127.0.0.1;port=6379", f"unix={tmp_path.resolve()}/run/valkey.sock")
    assert by_socket != config
    assert (tmp_path / "metering.cfg").read_text() == by_socket + "\n"
