"""What happens to an installation: kills, a busy machine, a first start that was cut short. Nothing is lost by any."""

import json
import time
from typing import Final

import pytest

from tests.containers.docker import FILES, DockerError, Installation, wait_until, write_yaml
from tests.deploy.composed import KEEPER, ROLES, SERVERS

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900), pytest.mark.usefixtures("api_key")]

METERS: Final = 4
JOBS: Final = 2
STOP_LIMIT_S: Final = 20.0
"""Half of what compose gives the roles."""
SLOW_PROCESSORS: Final = 0.15
"""What each container gets of a processor where the machine is busy."""


def test_four_meters_and_two_jobs_share_the_work(installation: Installation) -> None:
    installation.start(meters=METERS, jobs=JOBS)
    wait_until(lambda: installation.meters_asking() == METERS, "four meters asking for calls", limit_s=180)
    before = installation.balance_cents()
    installation.push(range(1_001, 2_001))
    installation.wait_until_billed(before, 1_000)
    installation.operator("audit")


@pytest.mark.parametrize("service", [*ROLES, *SERVERS, KEEPER])
def test_what_is_killed_comes_back_and_nothing_is_lost(installation: Installation, service: str) -> None:
    installation.start(meters=METERS, jobs=JOBS)
    before = installation.balance_cents()
    container = installation.container(service)
    restarts = int(installation.state(container, "{{.RestartCount}}"))
    first = 10_000 + 1_000 * [*ROLES, *SERVERS, KEEPER].index(service)
    installation.push(range(first, first + 100))
    installation.kill(container)
    template = "{{.State.Health.Status}} {{.RestartCount}}"
    wait_until(
        lambda: installation.state(container, template) == f"healthy {restarts + 1}",
        f"{service}'s coming back",
        limit_s=120,
    )
    installation.push(range(first + 50, first + 200))  # those in the middle for the second time
    installation.wait_until_billed(before, 200)
    if service == "api":
        assert installation.ask_api("/readyz") == {"ok": True}
    installation.operator("audit")


@pytest.mark.parametrize("service", [*ROLES, *SERVERS, KEEPER])
def test_what_is_told_to_stop_ends_by_itself(installation: Installation, service: str) -> None:
    installation.start()
    installation.push(range(3_001, 3_501))
    began_s = time.monotonic()
    installation.compose("stop", service)
    took_s = time.monotonic() - began_s
    assert took_s <= STOP_LIMIT_S
    status = installation.state(installation.container(service), "{{.State.ExitCode}}")
    # `sleep` has nothing to end; its init tells by which signal it went.
    assert status == ("143" if service == KEEPER else "0")


def test_a_database_that_was_set_up_half_is_not_healthy(installation: Installation) -> None:
    """As a first start leaves it that was killed before roles.sql, whose last act is to give the database away."""
    installation.start()
    check = ("exec", "-T", "postgres", "/opt/metering/healthy.sh")
    installation.compose(*check)
    give = ["exec", "-T", "postgres", "psql", "--quiet", "-U", "postgres", "-d", "metering", "-c"]
    installation.compose(*give, "ALTER DATABASE metering OWNER TO postgres")
    try:
        with pytest.raises(DockerError, match="was not set up to its end"):
            installation.compose(*check)
    finally:
        installation.compose(*give, "ALTER DATABASE metering OWNER TO metering_owner")
    installation.compose(*check)


def test_a_killed_health_check_ends_no_session(installation: Installation) -> None:
    """What it leaves behind must not be Postgres's own child, whose end by a signal it takes for a crash."""
    installation.start()
    left = "(sleep 300 & echo $! > /tmp/left) && exec true"  # its parent ends, and it is handed on
    installation.compose("exec", "-T", "postgres", "sh", "-c", left)
    installation.compose("exec", "-T", "postgres", "sh", "-c", "kill -PIPE $(cat /tmp/left); sleep 2")
    assert "untracked child process" not in installation.logs("postgres")


def test_a_busy_machine_takes_nothing_for_dead(installation: Installation) -> None:
    """Everything starts, is found well and goes on being so, where each container gets a seventh of a processor."""
    installation.start()
    before = installation.balance_cents()
    installation.compose("down")
    slow = {"services": {name: {"cpus": SLOW_PROCESSORS} for name in (*SERVERS, *ROLES, KEEPER, "migrate")}}
    write_yaml(FILES / "slow.yml", slow)
    busy = installation.also("slow.yml")
    busy.start()
    busy.push(range(4_001, 4_101))
    busy.wait_until_billed(before, 100)
    started = {name: busy.state(busy.container(name), "{{.State.StartedAt}}") for name in (*SERVERS, *ROLES)}

    def checks(name: str) -> list[tuple[int, float]]:
        log = json.loads(busy.state(busy.container(name), "{{json .State.Health.Log}}"))
        return [(each["ExitCode"], seconds(each["End"]) - seconds(each["Start"])) for each in log]

    for name in started:
        wait_until(lambda name=name: len(checks(name)) >= 3, f"{name}'s third check", limit_s=120)  # type: ignore[misc]
        assert busy.state(busy.container(name), "{{.State.Health.Status}} {{.RestartCount}}") == "healthy 0"
        status, took_s = checks(name)[-1]
        assert (status, took_s < 10) == (0, True), (name, took_s)
    installation.start()


def seconds(time_: str) -> float:
    """A time of Docker's, as seconds of its day."""
    hours, minutes, rest = time_.partition("T")[2][:15].split(":")
    return int(hours) * 3_600 + int(minutes) * 60 + float(rest)
