"""Kamailio with the blocks of its page, as they stand there."""

import json
import os
import re
import shlex
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from tests.docs.pages import page
from tests.external_servers.process import HOST, Process, apt_program
from tests.telephony.sipp import free_udp_port, listens

PACKAGE: Final = (
    "kamailio kamailio-redis-modules kamailio-extra-modules kamailio-utils-modules kamailio-postgres-modules"
)
PROGRAM: Final = "METERING_TEST_KAMAILIO"
"""Names another Kamailio than Debian's: a command, such as `chroot /srv/sid kamailio`."""
MODULES: Final = "/usr/lib/x86_64-linux-gnu/kamailio/modules/"
USERS: Final = "users"
_TIMES: Final = re.compile(r"(asks|goes on) (\S+) (\d+\.\d+)$", re.MULTILINE)
EVENT: Final = re.compile(r"metering event: (\{.*\})$", re.MULTILINE)

_CORE: Final = """#!KAMAILIO
children=4
debug=1
log_stderror=yes
listen=udp:{host}:{port}
mpath="{modules}"
loadmodule "kex.so"
loadmodule "corex.so"
loadmodule "tm.so"
loadmodule "tmx.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "xlog.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "maxfwd.so"
loadmodule "htable.so"
loadmodule "ctl.so"
modparam("ctl", "binrpc", "unix:{directory}/ctl")
modparam("rr", "append_fromtag", 1)
modparam("rr", "enable_double_rr", 0)
modparam("htable", "htable", "users=>size=6")
modparam("htable", "htable", "numbers=>size=6")
include_file "metering.cfg"
{more}

event_route[htable:mod-init] {{
{tables}
}}

request_route {{
    if (!mf_process_maxfwd_header("10")) {{ sl_send_reply("483", "Too Many Hops"); exit; }}
    if (has_totag()) {{
        if (!loose_route()) {{ sl_send_reply("404", "Not Here"); exit; }}
        t_relay();
        exit;
    }}
    if (is_method("CANCEL")) {{ if (t_check_trans()) t_relay(); exit; }}
    t_check_trans();
    if (!is_method("INVITE")) {{ sl_send_reply("405", "Method Not Allowed"); exit; }}
    if ($hdr(X-Ungated) == $null) {{
        xlog("L_NOTICE", "asks $ci $TV(Sn)\\n");
        route(CALL);
        xlog("L_NOTICE", "goes on $ci $TV(Sn)\\n");
    }}
    record_route();
    if ($hdr(X-Other-Port) == $null) {{
        $du = "sip:{host}:" + $hdr(X-Port);
    }} else {{
        $rp = $hdr(X-Port);
        append_branch("sip:$rU@{host}:$hdr(X-Other-Port)");
    }}
    t_relay();
}}

route[CALL] {{
{block}
}}
"""
_LIMITED: Final = "if ($hdr(X-Timeout) != $null) $var(maximum_s) = $(hdr(X-Timeout){s.int});"
"""As the page has an operator limit a call."""


def block(mark: str) -> str:
    """A block of Kamailio's page."""
    (found,) = re.findall(
        rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)\n```", page("how-to/kamailio.md"), re.DOTALL
    )
    return str(found)


def replaced(text: str, old: str, new: str) -> str:
    """What a reader of the page changes; it has to be there."""
    assert old in text, f"the page has no {old!r}"
    return text.replace(old, new)


def program() -> list[str]:
    """The command that is Kamailio here."""
    return shlex.split(os.environ.get(PROGRAM, "")) or [str(apt_program("kamailio", PACKAGE))]


class Kamailio(Process):
    """One proxy: phones say by X-User, or X-Carrier, who they are, and by X-Port whom they call.

    With `holds` each call takes one, for a minute, and is cut at its end.
    """

    def __init__(
        self,
        directory: Path,
        redis_port: int,
        *,
        password: str,
        users: dict[str, int],
        numbers: dict[str, int],
        more: str = "",
        holds: bool = False,
    ) -> None:
        self.port = free_udp_port()
        directory.mkdir(parents=True)
        configuration = replaced(block("file: metering.cfg"), "port=6379", f"port={redis_port}")
        configuration = replaced(configuration, '"change-this"', f'"{password}"')
        (directory / "metering.cfg").write_text(configuration + "\n")
        called = replaced(block("file: request_route"), '$si == "203.0.113.5"', "$hdr(X-Carrier) != $null")
        called = replaced(called, "$sht(users=>$au)", "$sht(users=>$hdr(X-User))")
        called = replaced(called, "$var(maximum_s) = 0;", f"$var(maximum_s) = 0;\n{_LIMITED}")
        if holds:
            called = replaced(called, "route(METERING_GATE);", block("file: hold"))
            hold_minute = replaced(block("file: metering-holds.cfg"), "HOLD_MINUTES 10", "HOLD_MINUTES 1")
            more = f"{hold_minute}\n{more}"
        tables = [f'$sht(users=>{name}) = "{org}";' for name, org in users.items()]
        tables += [f'$sht(numbers=>{number}) = "{org}";' for number, org in numbers.items()]
        (directory / "kamailio.cfg").write_text(
            _CORE.format(
                host=HOST,
                port=self.port,
                modules=MODULES,
                directory=directory,
                more=more,
                tables="\n".join(tables),
                block=called,
            )
        )
        runs_in = ["-Y", str(directory), "-P", str(directory / "pid"), "-w", str(directory)]
        super().__init__(
            directory,
            [*program(), "-f", str(directory / "kamailio.cfg"), "-DD", "-E", "-m", "64", "-M", "8", *runs_in],
            lambda: listens(self.port),
        )

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def events(self) -> list[str]:
        """What its log says that it pushed, or will."""
        return EVENT.findall(self.log.read_text(errors="surrogateescape"))

    def added_ms(self) -> list[float]:
        """How long each call that went on was held up by the page's blocks, by Kamailio's own clock."""
        began: dict[str, Decimal] = {}
        took = []
        for what, call, at in _TIMES.findall(self.log.read_text(errors="surrogateescape")):
            if what == "asks":
                began[call] = Decimal(at)
            else:
                took.append(float(Decimal(at) - began[call]) * 1000)
        return took


def parsed_events(kamailio: Kamailio) -> dict[int, Any]:
    """The events in Kamailio's log, by call id."""
    events = [json.loads(line, parse_float=Decimal) for line in kamailio.events()]
    return {each["call_id"]: each for each in events}
