"""Kamailio's page is run as it stands: SIPp calls through it, a meter bills, and each call costs what it must."""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.external_servers.postgres import TcpPostgres
from tests.external_servers.process import apt_program
from tests.telephony.kamailio import Kamailio, block, parsed_events, replaced
from tests.telephony.scene import PASSWORDS, Scene, must_cost_cents, scene
from tests.telephony.sipp import (
    ANSWERS,
    HUNG_UP,
    IS_CANCELLED,
    NUMBER,
    PAUSE,
    PICKS_UP,
    REINVITED,
    RINGS,
    Phone,
    acknowledge,
    acknowledge_refusal,
    answered,
    cancel,
    hang_up,
    invite,
    maybe,
    receive,
    reinvite,
    reply_within,
    scenario,
    start_phone,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.long

PLAIN, CANCELLED, REINVITING, FORKED, LOST, TIMED_OUT, ODD, REUSED = range(11, 19)
EXHAUSTED, SUSPENDED, MISSING, FROZEN, KILLED = range(19, 24)
FEW, MANY = 24, 25
"""Orgs whose calls take holds: one with money for ten minutes and a bit, one with enough."""
ORGS: Final = {
    **dict.fromkeys((PLAIN, CANCELLED, REINVITING, FORKED, LOST, TIMED_OUT, ODD, REUSED), "open"),
    EXHAUSTED: "exhausted",
    SUSPENDED: "suspended",
    MISSING: "missing",
    FROZEN: "open",
    KILLED: "open",
    FEW: "open",
    MANY: "open",
}
USERS: Final = {f"user{org_id}": org_id for org_id in ORGS}
TABLES: Final = Path("/usr/share/kamailio/postgres")
"""What Kamailio's packages make a database's tables with."""
CONFIRMED: Final = 4
"""The state of a dialog whose ACK was seen."""
DID: Final = "15550001"
OUT_OF_ORDER: Final = ("-default_behaviors", "all,-abortunexp")
"""Kamailio's processes may pass on a 180 after the 200: that is no reason to give a call up."""
LIMIT_S: Final = 60.0


@dataclass
class Proxy:
    """A scene with its Kamailio."""

    scene: Scene
    kamailio: Kamailio
    directory: Path
    started: list[Phone] = field(default_factory=list)

    def phones(
        self,
        name: str,
        caller: Callable[[str], str],
        called: Sequence[str] = (),
        *,
        calls: int,
        options: Sequence[str] = (),
        number: str = "15551234567",
        answers: int | None = None,
    ) -> list[Phone]:
        """Start the called phones, then the one that calls them; `caller` makes its scenario from the headers to send."""
        there = [
            start_phone(
                self.directory,
                f"{name}-called{index}",
                scenario(name, steps),
                "-m",
                str(answers or calls),
                "-deadcall_wait",
                "0",
                "-trace_msg",
            )
            for index, steps in enumerate(called)
        ]
        headers = "".join(
            f"{header}: {phone.port}\n"
            for header, phone in zip(("X-Port", "X-Other-Port"), there, strict=False)
        )
        steps = scenario(name, caller(headers))
        calling = start_phone(
            *(self.directory, name, steps, "-m", str(calls), "-s", number),
            *(OUT_OF_ORDER if called else ()),
            *options,
            self.kamailio.address,
        )
        self.started += [calling, *there]
        return [calling, *there]

    def wait(self, *, but: str = "the others") -> None:
        """Until all phones that were started are done, but those whose names begin so."""
        for phone in self.started:
            if not phone.name.startswith(but):
                phone.wait()


@pytest.fixture
def proxy(database: Database, tmp_path: Path) -> Iterator[Proxy]:
    with proxied(database, tmp_path) as found:
        yield found


@contextmanager
def proxied(database: Database, directory: Path, *, more: str = "", holds: bool = False) -> Iterator[Proxy]:
    """A scene, and Kamailio; `more` goes into its configuration."""
    with scene(directory / "scene", database.engine, ORGS, {FEW: 83}) as made:
        kamailio = Kamailio(
            directory / "kamailio",
            made.valkey.port,
            password=PASSWORDS["TELEPHONY_PASSWORD"],
            users=USERS,
            numbers={DID: ODD},
            more=more,
            holds=holds,
        )
        found = Proxy(made, kamailio, directory / "phones")
        try:
            kamailio.start()
            yield found
        finally:
            for phone in found.started:
                phone.stop()
            kamailio.stop()


def user(org_id: int) -> str:
    return f"X-User: user{org_id}\n"


def call(org_id: int, *between: str, last: int = 2, target: str = NUMBER) -> Callable[[str], str]:
    """A call that is answered, and hung up by the caller."""
    return lambda headers: "".join(
        (
            invite(user(org_id) + headers, target=target),
            answered(),
            acknowledge(),
            PAUSE,
            *between,
            hang_up(last),
        )
    )


def events_of(scene: Scene, org_id: int) -> int:
    """How many different calls of an org wait in the stream."""
    found = [json.loads(each) for each in scene.events()]
    return len({each["call_id"] for each in found if each["org_id"] == org_id})


def assert_costs(scene: Scene, kamailio: Kamailio) -> None:
    """Each debit is what the event in Kamailio's log must cost, worked out here."""
    said = parsed_events(kamailio)
    for debit in scene.all_debits():
        duration = said[debit.call_id]["duration_seconds"]
        cents = 0 if debit.tier == "free" else must_cost_cents(duration)
        assert -debit.amount_cents == cents, (debit, duration)


def proxy_lets_in(proxy: Proxy) -> bool:
    """Whether all of its processes ask Redis again: one that has failed three times doesn't for 5 seconds."""
    name = f"again{len(proxy.started)}"
    phones = proxy.phones(name, refused("402", user(SUSPENDED)), calls=16)
    phones[0].process.wait()
    done = phones[0].process.returncode == 0
    if not done:
        proxy.started.remove(phones[0])
    return done


def cancelled(org_id: int) -> Callable[[str], str]:
    """A call that is given up while it rings."""
    return lambda headers: "".join(
        (
            invite(user(org_id) + headers),
            maybe("100") + receive("180"),
            cancel(step=3),
            receive("200", 'optional="true"')
            + receive("487"),  # which of them is first depends on the machine
            acknowledge_refusal(step=6),
        )
    )


def refused(status: str, headers: str) -> Callable[[str], str]:
    return lambda _: invite(headers) + maybe("100") + receive(status) + acknowledge_refusal(step=3)


ODD_CALLERS: Final[dict[bytes, str | None]] = {
    b'"quoted \\"name\\"" <sip:15557654321@127.0.0.1>': "15557654321",
    b"<sip:127.0.0.1>": None,
    b"<sip:anonymous@anonymous.invalid>": "anonymous",
    b'"50%s %n" <sip:%25s%20x@127.0.0.1>': "%25s%20x",
    "Zo\u00eb {} <sip:zo\u00eb@127.0.0.1>".encode(): "zo\u00eb",
    b"<sip:\xff\xfe@127.0.0.1>": None,
    b"<sip:" + b"9" * 80 + b"@127.0.0.1>": "9" * 64,
    b"<sip:a'b$c&d@127.0.0.1>": "a'b$c&d",
    b"<tel:+15557654321>": "+15557654321",
    b"sip:plain@127.0.0.1": "plain",
}
"""From headers, and the numbers that they make."""
BILLED: Final = {
    PLAIN: 200,
    CANCELLED: 0,
    REINVITING: 5,
    FORKED: 5,
    LOST: 2,
    TIMED_OUT: 40,
    ODD: len(ODD_CALLERS),
    REUSED: 3,
    EXHAUSTED: 1,
    SUSPENDED: 0,
    FROZEN: 150,
    KILLED: 40,
}
"""How many debits each org is to have; the exhausted one's is of a toll-free call."""


def start_calls(proxy: Proxy) -> None:
    """Calls of every kind, side by side."""
    # Only the carrier's leg is sure of its BYE where a phone answers within microseconds.
    may_be_ended = (
        acknowledge()
        + receive("BYE", 'timeout="10000"', 'ontimeout="1"')
        + reply_within("200 OK")
        + '<label id="1"/><pause milliseconds="1"/>'
    )
    proxy.phones("plain", call(PLAIN), [ANSWERS], calls=200, options=("-r", "50", "-d", "1500"))
    proxy.phones("cancelled", cancelled(CANCELLED), [RINGS + IS_CANCELLED], calls=5)
    changes_media = [RINGS + PICKS_UP + REINVITED + HUNG_UP]
    proxy.phones(
        "reinviting",
        call(REINVITING, reinvite(), PAUSE, last=3),
        changes_media,
        calls=5,
        options=("-d", "500"),
    )
    proxy.phones("forked", call(FORKED), [ANSWERS, RINGS + IS_CANCELLED], calls=5, options=("-d", "700"))
    proxy.phones(
        "timed-out",
        lambda headers: invite(user(TIMED_OUT) + "X-Timeout: 3\n" + headers) + answered() + may_be_ended,
        [ANSWERS],
        calls=40,
        options=("-r", "40"),
    )
    one_at_a_time = ("-cid_str", "the-same", "-l", "1", "-d", "200", "-deadcall_wait", "0")
    proxy.phones("reused", call(REUSED), [ANSWERS], calls=3, options=one_at_a_time)
    proxy.directory.joinpath("callers.csv").write_bytes(
        b"".join(each + b"\n" for each in (b"SEQUENTIAL", *ODD_CALLERS))
    )
    proxy.phones(
        "odd",
        lambda headers: "".join(
            (
                invite("X-Carrier: yes\n" + headers, caller="From: [field0]"),
                answered(),
                acknowledge(caller="From: [field0]"),
                PAUSE,
                hang_up(caller="From: [field0]"),
            )
        ),
        [ANSWERS],
        calls=len(ODD_CALLERS),
        options=("-inf", "callers.csv", "-d", "300"),
        number=DID,
    )
    free = ("18005551234", "911", "+112", "urn:service:sos")
    for index, number in enumerate(free):
        target = number if ":" in number else f"sip:{number}@[remote_ip]:[remote_port]"
        proxy.phones(
            f"free{index}", call(EXHAUSTED, target=target), [ANSWERS], calls=1, options=("-d", "300")
        )
    for org_id in (EXHAUSTED, SUSPENDED, MISSING):
        proxy.phones(f"refused{org_id}", refused("402", user(org_id)), calls=4)
    proxy.phones("unknown", refused("403", "X-User: nobody\n"), calls=12)


@pytest.mark.timeout(300)
def test_every_call_is_billed_to_the_cent(proxy: Proxy) -> None:
    scene, kamailio = proxy.scene, proxy.kamailio
    hung, _ = proxy.phones(
        "lost",
        lambda headers: invite(user(LOST) + headers) + answered() + acknowledge(),
        [ANSWERS],
        calls=2,
    )
    hung.wait()  # and is gone, without a BYE
    start_calls(proxy)
    proxy.wait(but="lost")
    wait_until(lambda: len(scene.events()) == sum(BILLED.values()) - 192, limit_s=LIMIT_S)

    # Frozen, while calls end: SIP goes on, new calls are refused, events come afterwards.
    asked = scene.asked()
    proxy.phones("frozen", call(FROZEN), [ANSWERS], calls=150, options=("-r", "100", "-d", "4000"))
    wait_until(lambda: scene.asked() >= asked + 150, limit_s=LIMIT_S, every_s=0.1)
    scene.valkey.send(signal.SIGSTOP)
    proxy.wait(but="lost")
    proxy.phones("refused-frozen", refused("503", user(PLAIN)), calls=1)
    proxy.wait(but="lost")
    scene.valkey.send(signal.SIGCONT)
    wait_until(lambda: events_of(scene, FROZEN) == 150, limit_s=LIMIT_S, every_s=0.1)

    # Killed: what it had on disk is back, what ended meanwhile comes afterwards.
    wait_until(lambda: proxy_lets_in(proxy), limit_s=LIMIT_S, every_s=0.5)
    asked = scene.asked()
    proxy.phones("killed", call(KILLED), [ANSWERS], calls=40, options=("-r", "40", "-d", "4000"))
    wait_until(lambda: scene.asked() >= asked + 40, limit_s=LIMIT_S, every_s=0.1)
    scene.valkey.client.waitaof(1, 0, 5000)
    scene.valkey.kill()
    proxy.wait(but="lost")
    scene.valkey.start()
    wait_until(lambda: events_of(scene, KILLED) == 40, limit_s=LIMIT_S, every_s=0.1)

    # The lost BYE: found by asking both phones.
    proxy.wait()
    wait_until(lambda: events_of(scene, LOST) == 2, limit_s=LIMIT_S, every_s=0.2)
    scene.bill()
    assert {org_id: len(scene.debits(org_id)) for org_id in BILLED} == BILLED
    assert_costs(scene, kamailio)
    assert sorted(map(str, (each.phone_number_value for each in scene.debits(ODD)))) == sorted(
        map(str, ODD_CALLERS.values())
    )
    assert {each.tier for each in scene.debits(EXHAUSTED)} == {"free"}

    # Whoever isn't sure what Redis has lost pushes the whole log again.
    lines = "\n".join(kamailio.events()).encode(errors="surrogateescape")
    pushed = Cli({"METERING_REDIS_URL": scene.url}).process("push", "-", stdin=lines)
    assert pushed.returncode == 0, pushed.stderr
    before = scene.all_debits()
    scene.bill()
    assert scene.all_debits() == before


@pytest.mark.timeout(240)
def test_calls_outlive_a_restart_of_kamailio(database: Database, tmp_path: Path) -> None:
    postgres = TcpPostgres(tmp_path / "postgres", apt_program("postgres", "postgresql-15"), {})
    postgres.start()
    try:
        postgres.execute("CREATE ROLE kamailio LOGIN", "CREATE DATABASE kamailio OWNER kamailio")
        as_kamailio = f"host={postgres.sockets_dir} port={postgres.port} user=kamailio dbname=kamailio"
        tables = [(TABLES / f"{name}-create.sql").read_text() for name in ("standard", "dialog")]
        with psycopg.connect(as_kamailio, autocommit=True) as connection:
            connection.execute("\n".join(tables).encode())
            more = replaced(block("file: dialogs.cfg"), ":5432", f":{postgres.port}")
            with proxied(database, tmp_path, more=more) as proxy:
                restart_in_calls(proxy, connection)
    finally:
        postgres.stop()


def restart_in_calls(proxy: Proxy, connection: psycopg.Connection) -> None:
    """Six calls that are hung up after the restart."""
    proxy.phones("plain", call(PLAIN), [ANSWERS], calls=6, options=("-r", "20", "-d", "8000"))
    wait_until(lambda: dialogs(connection) == [(CONFIRMED,)] * 6, limit_s=LIMIT_S)
    called = [phone for phone in proxy.started if "-called" in phone.name]
    wait_until(lambda: sum(phone.received("ACK") for phone in called) == 6, limit_s=LIMIT_S)
    proxy.kamailio.stop()
    proxy.kamailio.start()
    proxy.wait()
    wait_until(lambda: len(proxy.scene.events()) == 6, limit_s=LIMIT_S)
    proxy.scene.bill()
    assert len(proxy.scene.debits(PLAIN)) == 6
    assert_costs(proxy.scene, proxy.kamailio)
    durations = [each["duration_seconds"] for each in parsed_events(proxy.kamailio).values()]
    assert all(duration > 7 for duration in durations)
    wait_until(lambda: dialogs(connection) == [], limit_s=LIMIT_S)


def dialogs(connection: psycopg.Connection) -> list[Any]:
    """States of all dialogs that Kamailio has stored."""
    return connection.execute("SELECT state FROM dialog").fetchall()


def until_cut(headers: str) -> str:
    """A call that is refused for want of money, or goes on until it is cut."""
    return "".join(
        (
            invite(user(FEW) + headers),
            maybe("100", "180", "183"),
            receive("402", 'optional="true"', 'next="2"'),
            receive("200", 'rrs="true"'),
            acknowledge(),
            receive("BYE", 'timeout="90000"', 'ontimeout="1"'),
            reply_within("200 OK"),
            '<label id="1"/><nop next="3"/>',
            '<label id="2"/>',
            acknowledge_refusal(step=10),
            '<label id="3"/><pause milliseconds="1"/>',
        )
    )


@pytest.mark.timeout(300)
def test_calls_with_holds_never_spend_more_than_there_is(database: Database, tmp_path: Path) -> None:
    with proxied(database, tmp_path, holds=True) as proxy:
        scene = proxy.scene
        proxy.phones("few", until_cut, [ANSWERS], calls=30, answers=10, options=("-r", "100"))
        wait_until(lambda: scene.held(FEW) == (80, 10), limit_s=LIMIT_S, every_s=0.1)
        proxy.phones("many", call(MANY), [ANSWERS], calls=30, options=("-r", "100", "-d", "6000"))
        for phone in proxy.phones("cancelled", cancelled(MANY), [RINGS + IS_CANCELLED], calls=5):
            phone.wait()
        wait_until(lambda: scene.held(MANY) == (240, 30), limit_s=LIMIT_S, every_s=0.1)

        # Frozen for 2 s: whoever calls then is refused, and holds nothing in the end.
        scene.valkey.send(signal.SIGSTOP)
        thaw = threading.Timer(2, scene.valkey.send, [signal.SIGCONT])
        thaw.start()
        refusing = proxy.phones("refused-frozen", refused("503", user(MANY)), calls=1)
        refusing[0].wait()
        thaw.join()
        wait_until(lambda: scene.held(MANY) == (240, 30), limit_s=LIMIT_S, every_s=0.1)

        scene.valkey.client.waitaof(1, 0, 5000)
        scene.valkey.kill()
        scene.valkey.start()
        assert scene.held(FEW) == (80, 10)
        proxy.wait()
        wait_until(lambda: len(scene.events()) == 40, limit_s=LIMIT_S, every_s=0.2)
        scene.bill()
        assert [(each.billable_seconds, each.amount_cents) for each in scene.debits(FEW)] == [(60, -8)] * 10
        assert scene.balance_cents(FEW) == 3
        assert len(scene.debits(MANY)) == 30
        assert (scene.held(FEW), scene.held(MANY)) == ((0, 0), (0, 0))
        durations = [each["duration_seconds"] for each in parsed_events(proxy.kamailio).values()]
        assert all(57 < each < 60 for each in durations if each > 30), durations
