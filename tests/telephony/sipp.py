"""SIPp as both phones: scenarios put together from steps, each side a process of its own."""

import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.external_servers.process import HOST, apt_program
from tests.waiting import wait_until

PACKAGE: Final = "sip-tester"
LIMIT_S: Final = 170
"""How long a run may take; far longer than any does."""

_HEAD: Final = """Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
Max-Forwards: 70
"""
_SDP: Final = """Content-Type: application/sdp
Content-Length: [len]

v=0
o=phone 1 1 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [media_port] RTP/AVP 0
"""
_EMPTY: Final = "Content-Length: 0\n"
_FROM: Final = 'From: "Phone" <sip:1000@[local_ip]:[local_port]>'
_TAG: Final = ";tag=[pid]SIPpTag[call_number]"


def send(message: str, *attributes: str) -> str:
    """A step that sends."""
    return f"<send {' '.join(attributes)}><![CDATA[\n{message}\n]]></send>"


def receive(what: str, *attributes: str) -> str:
    """A step that waits for a method (`INVITE`) or a status (`200`)."""
    kind = "response" if what.isdigit() else "request"
    return f'<recv {kind}="{what}" {" ".join(attributes)}/>'


def maybe(*statuses: str) -> str:
    """Provisional answers, which may come or not."""
    return "".join(receive(status, 'optional="true"') for status in statuses)


NUMBER: Final = "sip:[service]@[remote_ip]:[remote_port]"
"""Whom a run calls, where it doesn't say otherwise."""
PAUSE: Final = "<pause/>"
"""As long as the run says."""


def invite(headers: str = "", *, measured: bool = False, target: str = NUMBER, caller: str = _FROM) -> str:
    """The first INVITE of a call."""
    return send(
        f"INVITE {target} SIP/2.0\n{_HEAD}{caller}{_TAG}\nTo: <{target}>\nCall-ID: [call_id]\nCSeq: 1 INVITE\n"
        f"Contact: <sip:phone@[local_ip]:[local_port]>\n{headers}{_SDP}",
        'retrans="500"',
        *(['start_rtd="1"'] if measured else []),
    )


def within(method: str, number: int, *, caller: str = _FROM, body: str = _EMPTY, repeat: bool = True) -> str:
    """A request of the caller within the call."""
    return send(
        f"{method} [next_url] SIP/2.0\n{_HEAD}[routes]\n{caller}{_TAG}\n[last_To:]\nCall-ID: [call_id]\n"
        f"CSeq: {number} {method}\nContact: <sip:phone@[local_ip]:[local_port]>\n{body}",
        *(['retrans="500"'] if repeat else []),
    )


def acknowledge(number: int = 1, *, caller: str = _FROM) -> str:
    """The ACK of a 200."""
    return within("ACK", number, caller=caller, repeat=False)


def acknowledge_refusal(*, step: int, target: str = NUMBER, caller: str = _FROM) -> str:
    """The ACK of a final answer that isn't a 2xx, as the scenario's step of that number; the INVITE was number 0."""
    return send(
        f"ACK {target} SIP/2.0\nVia: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch-{step}]\nMax-Forwards: 70\n"
        f"{caller}{_TAG}\n[last_To:]\nCall-ID: [call_id]\nCSeq: 1 ACK\n{_EMPTY}"
    )


def cancel(*, step: int) -> str:
    """The CANCEL of the INVITE, as the scenario's step of that number."""
    return send(
        "CANCEL sip:[service]@[remote_ip]:[remote_port] SIP/2.0\n"
        f"Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch-{step}]\nMax-Forwards: 70\n{_FROM}{_TAG}\n"
        f"To: <sip:[service]@[remote_ip]:[remote_port]>\nCall-ID: [call_id]\nCSeq: 1 CANCEL\n{_EMPTY}"
    )


def answered(*, measured: bool = False) -> str:
    """Ringing, then the 200 whose routes the caller keeps."""
    return maybe("100", "180", "183") + receive("200", 'rrs="true"', *(['rtd="1"'] if measured else []))


def hang_up(number: int = 2, *, caller: str = _FROM) -> str:
    """A BYE, and its answer."""
    return within("BYE", number, caller=caller) + receive("200")


def reply(status: str, body: str = _EMPTY) -> str:
    """The called phone's answer to what came last."""
    return send(
        f"SIP/2.0 {status}\n[last_Via:]\n[last_Record-Route:]\n[last_From:]\n[last_To:];tag=[pid]SIPpTag[call_number]\n"
        f"[last_Call-ID:]\n[last_CSeq:]\nContact: <sip:phone@[local_ip]:[local_port]>\n{body}",
        *(['retrans="500"'] if body == _SDP else []),
    )


def reply_within(status: str, body: str = _EMPTY) -> str:
    """An answer of either phone within the call, where To has its tag."""
    return send(
        f"SIP/2.0 {status}\n[last_Via:]\n[last_Record-Route:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]\n"
        f"Contact: <sip:phone@[local_ip]:[local_port]>\n{body}",
        *(['retrans="500"'] if body == _SDP else []),
    )


RINGS: Final = receive("INVITE") + reply("180 Ringing")
PICKS_UP: Final = '<pause milliseconds="100"/>' + reply("200 OK", _SDP) + receive("ACK")
HUNG_UP: Final = receive("BYE") + reply_within("200 OK")
ANSWERS: Final = RINGS + PICKS_UP + HUNG_UP
"""A called phone: rings, is picked up, is hung up on."""


def reinvite() -> str:
    """The caller changes the call's media while it runs."""
    return within("INVITE", 2, body=_SDP) + maybe("100") + receive("200") + acknowledge(2)


IS_CANCELLED: Final = (
    receive("CANCEL")
    + reply_within("200 OK")
    + send(
        "SIP/2.0 487 Request Terminated\n[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]SIPpTag[call_number]\n"
        "Call-ID: [call_id]\nCSeq: 1 INVITE\nContent-Length: 0\n"
    )
    + receive("ACK")
)
REINVITED: Final = receive("INVITE") + reply_within("200 OK", _SDP) + receive("ACK")


def scenario(name: str, *steps: str) -> str:
    """The document that SIPp reads."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<scenario name="{name}">{"".join(steps)}</scenario>\n'


@dataclass
class Phone:
    """One side. What it could not do is in `errors`."""

    process: "subprocess.Popen[bytes]"
    port: int
    directory: Path
    name: str

    def wait(self) -> None:
        """Until all calls were as the scenario says; fails if one wasn't."""
        ended = self.process.wait(LIMIT_S)
        assert ended == 0, f"{self.name}: {ended}: {self.errors()}"

    def errors(self) -> str:
        """What SIPp found wrong, shortened."""
        files = sorted(self.directory.glob(f"{self.name}*.err"))
        return (
            "\n".join(file.read_text(errors="replace")[-3000:] for file in files)
            or (self.directory / f"{self.name}.out").read_text(errors="replace")[-1500:]
        )

    def received(self, method: str) -> int:
        """In how many calls it was sent a request of this method, of one that traces its messages."""
        traces = self.directory.glob(f"{self.name}_*_messages.log")
        request = re.compile(rf"\n{method} sip:.*?\nCall-ID: (\S+)", re.DOTALL)
        return len({each for trace in traces for each in request.findall(trace.read_text(errors="replace"))})

    def response_times_ms(self) -> list[float]:
        """From INVITE to the answer that the scenario measures, call by call."""
        return [
            float(line.split(";")[1])
            for file in self.directory.glob(f"{self.name}*_rtt.csv")
            for line in file.read_text().splitlines()[1:]
        ]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def start_phone(directory: Path, name: str, document: str, *options: str, port: int | None = None) -> Phone:
    """Start one side; `options` are SIPp's."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.xml").write_text(document)
    port = free_udp_port() if port is None else port
    command: list[str | Path] = [
        apt_program("sipp", PACKAGE),
        *("-sf", f"{name}.xml", "-i", HOST, "-p", str(port), "-nostdin", "-aa", "-trace_err"),
        *("-error_file", f"{name}.err", "-timeout", str(LIMIT_S), "-timeout_error"),
        *options,
    ]
    with (directory / f"{name}.out").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
    phone = Phone(process, port, directory, name)
    wait_until(lambda: listens(port) or process.poll() is not None, limit_s=30)
    return phone


def listens(port: int) -> bool:
    """Whether somebody has this UDP port of ours."""
    wanted = f"{port:04X}"
    table = Path("/proc/net/udp").read_text().splitlines()[1:]
    return any(line.split()[1].rpartition(":")[2] == wanted for line in table)


def free_udp_port() -> int:
    """A UDP port of this machine that nobody has now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])
