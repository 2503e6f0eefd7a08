"""Random bytes, and events that were damaged or spelled otherwise, against a second reader of the contract.

    python -m tests.hostile.fuzz_events --inputs 1000000 --seed 1

The second reader is `tests/hostile/second_reader.py`. What the two don't say alike is printed, with the bytes, and the exit
status is 1.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from metering.rules.events import CallEvent, parse_event
from metering.rules.rejections import Reason, Rejection
from tests.hostile.second_reader import FIELDS, MAX_INT64, NOW, read
from tests.judging import judge_event

VALUES: Final[dict[str, tuple[str, ...]]] = {
    "call_id": ("987654321", "1", str(MAX_INT64)),
    "org_id": ("42", "1", str(MAX_INT64)),
    "tier": ('"bolt"', '"b\\u00f6lt \\ud83d\\ude00"', '"é"', '""'),
    "direction": ('"outbound"', '"inbound"'),
    "duration_seconds": ("75", "75.204", "0", "0.000001", "604800", "6.048e5", "1e-6", "7520400e-5"),
    "ended_at": (
        '"2026-04-20T18:25:06.201Z"',
        '"2026-04-20T20:25:06.201+02:00"',
        '"2026-04-20 18:25:06.201000+00:00"',
    ),
    "phone_number_id": ("201", "null", "-1"),
    "phone_number_value": ('"+15551234567"', "null", '"anonymous"'),
    "metadata": ("{}", "null", '{"a":["b\\n",-1.5e3,null,true]}', '{"x":{"y":{}}}'),
}
NASTY: Final = (
    *(
        '"',
        "{",
        "}",
        "[",
        "]",
        "null",
        "true",
        "false",
        '""',
        "0",
        "-0",
        "-1",
        "1.0",
        "1e0",
        "01",
        "+1",
        ".5",
        "5.",
    ),
    *("NaN", "Infinity", "-Infinity", "1e999999999", "1e-999999999", "9" * 400, "0.0000001", "604800.000001"),
    *(
        str(MAX_INT64 + 1),
        str(-MAX_INT64 - 2),
        "1e18",
        "9223372036854775807.0",
        '"1"',
        '"a\\u0000b"',
        '"\\ud800"',
    ),
    *(
        '"\\udc00\\ud800"',
        '"' + "x" * 65 + '"',
        '"' + "x" * 201 + '"',
        '"outbound "',
        '"Outbound"',
        "[]",
        "[[]]",
        "{}",
    ),
    *(
        '{"a":1,"a":2}',
        '{"":{"":[]}}',
        '{"n":"\\u0000"}',
        '{"n":"\\ud800"}',
        "[" * 300 + "]" * 300,
        "{" * 5_000,
    ),
    *('"2026-04-20"', '"2026-04-20T18:25:06"', '"2026-13-01T00:00:00Z"', '"2026-04-20T24:00:00Z"', '"now"'),
    *(
        '"0001-01-01T00:00:00+14:00"',
        '"9999-12-31T23:59:59-14:00"',
        '"2026-04-20T18:35:00.001Z"',
        "1776709506",
    ),
    *(
        "'x'",
        "/*c*/1",
        "\u2028",
        "\ufeff",
        "\u0000",
        "\\",
        '"\t"',
        '"\\x41"',
        "undefined",
        "0x10",
        "1_000",
        "\uff11",
    ),
)


def inputs(seed: int, count: int) -> Iterator[bytes]:
    """So many, the same for the same seed."""
    source = random.Random(seed)
    ways = (_bytes, _damaged, _damaged, _damaged, _with_nasty_values, _with_nasty_values, _spelled_otherwise)
    for _ in range(count):
        yield source.choice(ways)(source)


def _some_event(source: random.Random) -> dict[str, str]:
    return {name: source.choice(VALUES[name]) for name in FIELDS}


def _text(members: dict[str, str], source: random.Random, *, space: bool = False) -> bytes:
    def gap() -> str:
        return source.choice(("", " ", "\n\t", "\r\n  ")) if space else ""

    parts = [f'{gap()}"{name}"{gap()}:{gap()}{value}{gap()}' for name, value in members.items()]
    return (gap() + "{" + ",".join(parts) + "}" + gap()).encode("utf-8", "surrogatepass")


def _bytes(source: random.Random) -> bytes:
    return source.randbytes(source.choice((0, 1, 2, 5, 20, 200)))


def _damaged(source: random.Random) -> bytes:
    """Some bytes cut out, put in, turned, doubled, or the end lost."""
    raw = bytearray(_text(_some_event(source), source))
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        start = source.randrange(len(raw) + 1)
        end = min(start + source.choice((0, 1, 1, 2, 10)), len(raw))
        way = source.randrange(5)
        if way == 0:
            raw[start:end] = source.randbytes(source.randrange(4))
        elif way == 1:
            raw[start:end] = source.choice(NASTY).encode("utf-8", "surrogatepass")[:50]
        elif way == 2 and start < len(raw):
            raw[start] ^= 1 << source.randrange(8)
        elif way == 3:
            raw[start:start] = raw[start:end] * 2
        elif way == 4 and source.random() < 0.3:
            del raw[start:]
        if not raw:
            break
    return bytes(raw)


def _with_nasty_values(source: random.Random) -> bytes:
    """One or two fields with a value they mustn't have, or missing, or twice; and some that nobody knows."""
    members = _some_event(source)
    for name in source.sample(FIELDS, source.choice((1, 1, 2))):
        if source.random() < 0.1:
            del members[name]
        else:
            members[name] = source.choice(NASTY)
    if source.random() < 0.3:
        members[source.choice(("extra", "Tier", "tier ", "call_id\\u0000", ""))] = source.choice(NASTY)
    return _text(members, source)


def _spelled_otherwise(source: random.Random) -> bytes:
    """A good event in another order, with space around, unknown fields, and its names in escapes."""
    members = _some_event(source)
    for optional in ("phone_number_id", "phone_number_value", "metadata"):
        if source.random() < 0.2:
            del members[optional]
    members |= {f"extra{source.randrange(9)}": source.choice(('"x"', "[1,{}]", '{"call_id":7}', "1e400"))}
    names = source.sample(sorted(members), len(members))
    spelled = {
        "".join(f"\\u{ord(char):04x}" if source.random() < 0.05 else char for char in name): members[name]
        for name in names
    }
    return _text(spelled, source, space=True)


def check(raw: bytes) -> str:
    """How it was read: `billable`, or the reason of its rejection. AssertionError where the two readers disagree."""
    verdict = judge_event(raw, NOW)
    reading = read(raw)
    if isinstance(verdict, Rejection):
        assert verdict.detail
        assert "\0" not in verdict.detail
        verdict.detail.encode()
        if len(raw) > 16 * 1024:
            assert verdict.reason is Reason.TOO_LARGE
        elif reading.sure:
            assert reading.event is None, f"refused: {verdict}"
            assert (verdict.reason is Reason.MALFORMED_JSON) == (not reading.json_object), verdict
        return verdict.reason.value
    _check_event(verdict)
    assert len(raw) <= 16 * 1024
    assert reading.json_object
    if reading.sure:
        assert reading.event is not None, f"taken: {verdict}"
        for name, value in reading.event.items():
            assert getattr(verdict, name) == value, name
    return "billable"


def _check_event(event: CallEvent) -> None:
    """What must be so of any event that is taken, whatever it was read from."""
    assert 1 <= event.call_id <= MAX_INT64
    assert 1 <= event.org_id <= MAX_INT64
    assert 0 <= event.duration_us <= 604_800_000_000
    assert event.ended_at.utcoffset() == timedelta(0)
    assert event.ended_at <= NOW + timedelta(minutes=5)
    assert event.ended_at - timedelta(microseconds=event.duration_us) < NOW + timedelta(
        minutes=5
    )  # it exists
    assert isinstance(json.loads(event.metadata), dict)
    for text in (event.tier, event.phone_number_value or "", event.metadata):
        assert "\0" not in text
        text.encode()
    # Written again, it is the same event.
    again = {
        "call_id": event.call_id,
        "org_id": event.org_id,
        "tier": event.tier,
        "direction": event.direction,
        "ended_at": event.ended_at.isoformat(),
        "phone_number_id": event.phone_number_id,
        "phone_number_value": event.phone_number_value,
    }
    seconds = f"{event.duration_us // 1_000_000}.{event.duration_us % 1_000_000:06d}"
    written = f'{json.dumps(again)[:-1]},"duration_seconds":{seconds},"metadata":{event.metadata}}}'.encode()
    if len(written) <= 16 * 1024:
        assert parse_event(written) == event


def main() -> int:
    """Run, and print how many inputs were read how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s, read_as, failures, slowest_s = time.monotonic(), Counter[str](), 0, 0.0
    for raw in inputs(arguments.seed, arguments.inputs):
        input_began_s = time.process_time()
        try:
            read_as[check(raw)] += 1
        except Exception as error:  # noqa: BLE001 - an input that makes it raise is what is looked for
            failures += 1
            print(f"{type(error).__name__}: {error}\n    {raw[:400]!r}", file=sys.stderr)  # noqa: T201
        slowest_s = max(slowest_s, time.process_time() - input_began_s)
    took_s = time.monotonic() - began_s
    print(  # noqa: T201 - a command
        f"{arguments.inputs} inputs, seed {arguments.seed}, {took_s:.0f} s, slowest {slowest_s * 1000:.1f} ms;"
        f" {failures} disagreements; {dict(read_as.most_common())}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
