"""What runs may do, and what it shows: asked of Docker, and tried from inside."""

import pytest

from tests.containers.docker import IMAGES, Installation, commands, run
from tests.deploy.composed import KEEPER, ROLES, SERVERS

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600), pytest.mark.usefixtures("api_key")]

RUNNING = (*SERVERS, *ROLES, KEEPER)


def test_no_secret_is_in_an_image_or_shown_by_docker(installation: Installation) -> None:
    installation.start()
    # One that has ended shows as much as one that runs.
    ended = installation.compose("run", "--detach", "-T", "operator", "--version").strip()
    shown = run("docker", "inspect", ended, *installation.containers())
    run("docker", "rm", "--force", ended)
    for image in set(IMAGES.values()):
        shown += run("docker", "image", "inspect", image) + run("docker", "history", "--no-trunc", image)
    for container in installation.compose("ps", "--quiet").split():
        shown += run("docker", "top", container)
    assert "METERING_DATABASE_URL_FILE=/run/secrets/database_url" in shown
    secrets = {
        name: value
        for name, value in installation.variables.items()
        if name.endswith(("_PASSWORD", "_KEY", "_SECRET", "_TOKEN"))
    }
    assert len(secrets) >= 10
    assert [name for name, value in secrets.items() if value in shown] == []


@pytest.mark.parametrize("service", RUNNING)
def test_a_container_has_no_right_that_it_does_not_need(installation: Installation, service: str) -> None:
    installation.start()
    container = installation.container(service)
    asked = ("ReadonlyRootfs", "CapDrop", "CapAdd", "SecurityOpt", "Privileged")
    template = " ".join(f"{{{{.HostConfig.{name}}}}}" for name in asked)
    root = str(service != KEEPER).lower()  # Compose copies a file into that one
    assert installation.state(container, template) == f"{root} [ALL] [] [no-new-privileges:true] false"
    status = installation.compose("exec", "-T", service, "cat", "/proc/1/status")
    held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert held["NoNewPrivs"] == "1"
    assert {int(held[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert "0" not in held["Uid"].split()
    tried = "for place in / /usr/bin /etc /app /opt /run /run/secrets; do ! touch $place/x 2> /dev/null || echo $place; done"
    assert installation.compose("exec", "-T", service, "sh", "-c", tried).strip() in {"", "/run/secrets"}
    if service != KEEPER:
        assert "/run/secrets" not in installation.compose("exec", "-T", service, "sh", "-c", tried)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_its_own_secrets_alone(installation: Installation, role: str) -> None:
    installation.start()
    read = installation.compose("exec", "-T", role, "sh", "-c", "cat /run/secrets/*; env")
    known = {
        name for name, value in installation.variables.items() if name.endswith("_PASSWORD") and value in read
    }
    assert known == {f"{role.upper()}_PASSWORD"}


def test_a_changed_password_is_taken_in_as_documented(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    changed = installation.with_variables(METER_PASSWORD="changed" + "0" * 20)
    changed.documented(commands("operations", "Change a password"))
    read = changed.compose("exec", "-T", "meter", "cat", "/run/secrets/redis_url")
    assert changed.variables["METER_PASSWORD"] in read
    changed.push([901])
    changed.wait_until_billed(before, 1)
    # As it was, for those that come after this.
    changed.with_variables(**dict(installation.variables)).documented(
        commands("operations", "Change a password")
    )
