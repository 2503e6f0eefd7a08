"""What runs behind a demo: Stripe's stand-in, the meters, the jobs and the API, each made ready and waited for."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Event
from typing import Any, Final
from urllib.request import ProxyHandler, build_opener

import redis
from rich.console import Console

from metering.console.errors import CommandError
from metering.console.http_port import LOOPBACK, local_url
from metering.console.output import counted, shown_path
from metering.console.roles import API, JOBS, STRIPE_SANDBOX, Role, Supervisor, meter_roles
from metering.console.stripe_access import StripeAccess, find_stripe, named_stripe
from metering.runtime.names import STREAM
from metering.runtime.settings import Settings
from metering.trials.demo.output import is_live, say_line
from workers.stream import GROUP, backlog

READY_LIMIT_S: Final = 20.0
EARLIER_BACKLOG_LIMIT_S: Final = 20.0


class StoppedEarlyError(Exception):
    """Somebody pressed Ctrl-C before the first call was pushed."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Where the demo speaks, what stops it, and where its roles log and are reached."""

    out: Console
    stop: Event
    log_path: Path
    http_port: int
    http_host: str = LOOPBACK

    def supervise(self, roles: Sequence[Role]) -> Supervisor:
        """Roles that run for the time of a with block."""
        settings = {"METERING_HTTP_HOST": LOOPBACK, "METERING_HTTP_PORT": str(self.http_port)}
        return Supervisor(
            roles, say=lambda told: say_line(self.out, told), log_path=self.log_path, settings=settings
        )

    @property
    def url(self) -> str:
        """Where the API is."""
        return local_url(self.http_host, self.http_port)

    def wait_for_api(self) -> None:
        """Wait until the API can work. Raises CommandError if it doesn't come to."""
        if not wait_for(self.stop, READY_LIMIT_S, lambda: _answers(f"{self.url}/readyz")):
            raise CommandError(f"The API at {self.url} doesn't begin to answer; its log tells why.")


@contextmanager
def step(out: Console, stop: Event, what: str) -> Iterator[None]:
    """Say what was made ready, and how long that took. Raises StoppedEarlyError if told to stop meanwhile."""
    began_s = time.monotonic()
    with out.status(f"{what} ...") if is_live(out) else nullcontext():
        yield
    say_line(out, f"{time.monotonic() - began_s:5.1f} s  {what}")
    if stop.is_set():
        raise StoppedEarlyError


@contextmanager
def running_stripe(processes: Processes, settings: Settings) -> Iterator[StripeAccess]:
    """The Stripe that the settings name, or a stand-in for the time of the block."""
    out, stop = processes.out, processes.stop
    with ExitStack() as stack:
        named = named_stripe(settings)
        if named is not None:
            say_line(out, "       Stripe itself, in test mode")
            yield named
            return
        with step(out, stop, "a stand-in for Stripe. This is NOT STRIPE: nobody's card is charged"):
            stack.enter_context(processes.supervise([STRIPE_SANDBOX]))
            access = find_stripe(settings, settings.data_dir, stop)
        if access is None:
            raise StoppedEarlyError
        yield access


@contextmanager
def running_roles(processes: Processes, client: redis.Redis, number: int) -> Iterator[None]:
    """So many meters, the jobs and the API, for the time of the block; what an earlier demo left is billed first."""
    meters = meter_roles(number)
    out, stop, log_path = processes.out, processes.stop, processes.log_path
    with ExitStack() as stack:
        what = f"{counted(number, 'meter')}, the jobs and the API, logging to {shown_path(log_path)}"
        with step(out, stop, what):
            stack.enter_context(processes.supervise([*meters, JOBS, API]))
            awaited = {role.arguments[-1] for role in meters}
            if not wait_for(stop, READY_LIMIT_S, lambda: awaited <= _consumers(client)):
                raise CommandError(f"The meters don't begin to work; {log_path} tells why.")
            if not wait_for(stop, READY_LIMIT_S, lambda: _answers(f"{processes.url}/readyz")):
                raise CommandError(f"The API doesn't begin to answer; {log_path} tells why.")
        if waiting := backlog(client).lag:
            with step(out, stop, f"{counted(waiting, 'event')} from before, billed first"):
                wait_for(stop, EARLIER_BACKLOG_LIMIT_S, lambda: backlog(client).lag == 0)
        yield


def _answers(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=READY_LIMIT_S) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def _consumers(client: redis.Redis) -> set[str]:
    """The names of those that have asked for events."""
    try:
        consumers: Any = client.xinfo_consumers(STREAM, GROUP)
    except redis.ResponseError:
        return set()  # no meter has made the group yet
    return {consumer["name"].decode() for consumer in consumers}


def wait_for(stop: Event, limit_s: float, condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; at most `limit_s`, and not past a Ctrl-C. Gives whether nothing went wrong."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if stop.wait(0.05):
            return True
        if time.monotonic() > deadline_s:
            return False
    return True
