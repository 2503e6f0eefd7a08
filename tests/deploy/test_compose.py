"""docker-compose.yml against the program: what it starts exists, what it sets is known, what it promises is written there."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main

from metering.cli.main import app
from metering.console.roles import STOP_LIMIT_S
from metering.console.stripe_access import named_stripe
from metering.runtime.settings import SECRETS as KEPT
from metering.runtime.settings import Settings, read_settings
from tests.deploy.composed import (
    CHARGING,
    DEMO,
    HTTP_PORT,
    KEEPER,
    METRICS_PORT,
    MONITORING,
    OURS,
    ROLES,
    ROOT,
    SERVERS,
    TO_AN_END,
    UnsetVariable,
    compose_file,
    composed,
    duration_s,
    environment_file,
    references,
    secrets_file,
)
from tests.deploy.dockerfile import FINAL
from tests.deploy.stack import SECRETS, clean_environment

SERVICES: dict[str, Any] = composed(SECRETS)["services"]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - in a container
PUBLISHED = {"valkey": [6379], "api": [HTTP_PORT], "prometheus": [9090], "grafana": [3000]}
WEBHOOK_PATH = "/v1/stripe/webhook"
USERS = {"migrate": "owner", "operator": "app"}
EVERY = pytest.mark.parametrize("name", sorted(SERVICES))


def test_the_services_are_those_that_the_product_needs() -> None:
    assert set(SERVICES) == {KEEPER, *SERVERS, *OURS, *MONITORING, *DEMO}


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_runs_a_command_that_exists(name: str) -> None:
    command: Any = typer.main.get_command(app)
    if name == "operator":
        assert SERVICES[name]["command"] == ["--help"]
    else:
        assert SERVICES[name]["command"] == [name]
        assert name in command.commands
    assert "entrypoint" not in SERVICES[name]


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets, as the service for that hands them out, below a directory for each service."""
    return hand_out(tmp_path_factory.mktemp("handed_out"), SECRETS)


def hand_out(directory: Path, variables: Mapping[str, str]) -> Path:
    """Run the keeper's script as it stands, in `directory`."""
    (directory / "all").write_text(secrets_file(variables))
    for volume in SERVICES[KEEPER]["volumes"]:
        (directory / volume.rpartition("/")[2]).mkdir()
    script = ROOT / "deploy" / "secrets" / "write.sh"
    given = {"SECRETS_FROM": str(directory / "all"), "SECRETS_TO": str(directory)}
    subprocess.run(["/bin/sh", script], env=clean_environment(given), timeout=20, check=True)
    return directory


def give_settings(name: str, handed_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a service's variables into this process's environment, with its secrets' directory here."""
    for setting, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(setting, str(value).replace("/run/secrets", str(handed_out / name)))


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_one_that_the_program_knows_and_takes(
    name: str, handed_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SERVICES[name]["environment"]
    assert {setting.removesuffix("_FILE").removeprefix("METERING_").lower() for setting in given} <= set(
        Settings.model_fields
    )
    assert {setting.removesuffix("_FILE") for setting in given if setting.endswith("_FILE")} <= set(KEPT)
    give_settings(name, handed_out, monkeypatch)
    settings = read_settings()
    user = f"metering_{USERS.get(name, name)}"
    assert str(settings.database_url).startswith(f"postgresql+psycopg://{user}:")
    if name != "migrate":
        assert str(settings.redis_url).startswith(f"redis://{'' if name == 'operator' else name}:")
    if name in ROLES:
        assert (settings.metrics_host, settings.metrics_port) == (EVERYWHERE, METRICS_PORT)
    if name == "api":
        assert (settings.http_host, settings.http_port) == (EVERYWHERE, HTTP_PORT)
        assert (settings.telephony_token, settings.operator_token) == (None, None)


def test_only_what_talks_to_stripe_knows_its_secrets(
    handed_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OURS:
        given = SERVICES[name]["environment"]
        asks_stripe = name in {*CHARGING, "operator"}
        assert ({"STRIPE_API_KEY_FILE", "STRIPE_WEBHOOK_SECRET_FILE"} <= set(given)) == asks_stripe
        assert ("STRIPE" in str(given)) == asks_stripe
        assert any("stripe" in path.name for path in (handed_out / name).iterdir()) == asks_stripe
    give_settings("api", handed_out, monkeypatch)
    stripe = named_stripe(read_settings())
    assert stripe is not None
    assert (stripe.api_key, stripe.webhook_secrets) == (
        SECRETS["STRIPE_API_KEY"],
        (SECRETS["STRIPE_WEBHOOK_SECRET"],),
    )
    assert stripe.base_url is None


def test_tokens_open_what_they_are_set_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_out(tmp_path, SECRETS | {"TELEPHONY_TOKEN": "t", "OPERATOR_TOKEN": "o"})
    give_settings("api", tmp_path, monkeypatch)
    settings = read_settings()
    tokens = [settings.telephony_token, settings.operator_token]
    assert [token and token.get_secret_value() for token in tokens] == ["t", "o"]


def test_the_images_are_of_the_versions_that_the_product_is_tested_with() -> None:
    first = {
        name: (ROOT / SERVICES[name]["build"] / "Dockerfile").read_text().partition("FROM ")[2]
        for name in SERVERS
    }
    assert re.match(r"postgres:18(\.\d+)?(-\w+)?\n", first["postgres"])
    assert re.match(r"valkey/valkey:9(\.\d+)*(-\w+)?\n", first["valkey"])


def test_one_service_builds_the_image_and_none_asks_a_registry_for_it() -> None:
    assert [name for name in SERVICES if "build" in SERVICES[name]] == [KEEPER, *SERVERS]
    assert {(SERVICES[name]["image"], SERVICES[name]["pull_policy"]) for name in (KEEPER, *OURS, *DEMO)} == {
        ("metering", "never")
    }
    for name in SERVERS:
        assert (SERVICES[name]["image"], SERVICES[name]["pull_policy"]) == (f"metering-{name}", "never")


def test_a_service_starts_when_what_it_needs_is_there() -> None:
    handed_out = {KEEPER: {"condition": "service_healthy"}}
    assert "depends_on" not in SERVICES[KEEPER]
    for name in SERVERS:
        assert SERVICES[name]["depends_on"] == handed_out
    assert SERVICES["migrate"]["depends_on"] == handed_out | {"postgres": {"condition": "service_healthy"}}
    for name in ROLES:
        assert SERVICES[name]["depends_on"] == handed_out | {
            "migrate": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
        }
    # Not started with the others.
    profiles = {"operator": ["operator"]}
    profiles |= {name: ["demo"] for name in DEMO} | {name: ["monitoring"] for name in MONITORING}
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name in {*TO_AN_END, "demo"} else "unless-stopped")
        assert service.get("profiles") == profiles.get(name)


@EVERY
def test_what_runs_on_has_a_health_check_that_can_succeed_in_time(name: str) -> None:
    if name in {*TO_AN_END, "demo"}:
        assert "healthcheck" not in SERVICES[name]
        return
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert duration_s(check["timeout"]) <= duration_s(check["interval"]) < duration_s(check["start_period"])
    assert duration_s(check["start_interval"]) < duration_s(check["interval"])


@pytest.mark.parametrize("name", ROLES)
def test_a_roles_health_check_asks_the_port_that_it_serves(name: str) -> None:
    setting, path = ("HTTP_PORT", "/readyz") if name == "api" else ("METRICS_PORT", "/healthz")
    port = SERVICES[name]["environment"][f"METERING_{setting}"]
    assert SERVICES[name]["healthcheck"]["test"][-2:] == [port, path]


@EVERY
def test_a_service_may_finish_what_it_has_in_hand(name: str) -> None:
    assert duration_s(SERVICES[name]["stop_grace_period"]) > STOP_LIMIT_S


@EVERY
def test_nothing_can_be_reached_from_another_machine(name: str) -> None:
    service = SERVICES[name]
    published = service.get("ports", [])
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert [int(port.rpartition(":")[2]) for port in published] == PUBLISHED.get(name, [])
    assert service.get("network_mode", "none") == "none"


@EVERY
def test_what_a_health_check_leaves_behind_is_nobodys_child(name: str) -> None:
    """Postgres as process 1 took the end of a killed check's psql for a crash of its own, and ended every session."""
    assert SERVICES[name].get("init") is True or name in MONITORING


@EVERY
def test_any_number_of_a_service_may_run(name: str) -> None:
    assert not {"container_name", "hostname", "scale", "deploy"} & set(SERVICES[name])


@EVERY
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is (name != KEEPER)  # Compose copies a file into it
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.split(":")[0] == "/tmp" for mount in service["tmpfs"])  # noqa: S108 - a container's own
    # Ours name their user in the image; the others' images would begin as root and step down, which takes capabilities.
    assert service.get("user") == {"postgres": "postgres", "valkey": "valkey"}.get(name)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_data_are_kept_where_the_images_put_them() -> None:
    assert SERVICES["postgres"]["volumes"][0] == "postgres:/var/lib/postgresql"
    assert "PGDATA" not in SERVICES["postgres"]["environment"]
    assert SERVICES["valkey"]["volumes"][0] == "valkey:/data"
    assert SERVICES["prometheus"]["volumes"][0] == "prometheus:/prometheus"
    assert SERVICES["grafana"]["volumes"][0] == "grafana:/var/lib/grafana"
    secrets = {f"secrets-{name}" for name in (*SERVERS, *OURS)}
    assert set(compose_file()["volumes"]) == {*SERVERS, *MONITORING, "stripe", *secrets}


def test_nothing_of_the_checkout_is_mounted() -> None:
    """Its umask would decide who can read it, and a `git pull` what a server finds that starts again."""
    for name in SERVICES.keys() - set(MONITORING):
        service = SERVICES[name]
        assert all(re.match(r"[a-z]", volume) for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_images_hold_what_they_need_readable_for_all(name: str) -> None:
    directory = ROOT / SERVICES[name]["build"]
    copied: dict[str, str] = {}
    for mode, sources in re.findall(
        r"^COPY --chmod=(\d+) (.+) \S+$", (directory / "Dockerfile").read_text(), re.MULTILINE
    ):
        copied |= dict.fromkeys(sources.split(), mode)
    assert copied.keys() | {"Dockerfile"} == {path.name for path in directory.iterdir()}
    assert copied == {path: "644" if re.search(r"\.sql$|^users\.sh$", path) else "755" for path in copied}


def test_a_service_sees_its_own_secrets_and_nobody_elses(handed_out: Path) -> None:
    for name, service in SERVICES.items():
        mounted = [volume for volume in service.get("volumes", []) if volume.startswith("secrets-")]
        if name == KEEPER:
            assert mounted == [f"secrets-{each}:/secrets/{each}" for each in ("postgres", "valkey", *OURS)]
        elif name not in MONITORING:
            whose = "operator" if name in DEMO else name
            assert mounted == [f"secrets-{whose}:/run/secrets:ro"]
            assert all(path.stat().st_mode & 0o777 == 0o444 for path in (handed_out / whose).iterdir())
    for role in ROLES:
        held = "".join(path.read_text() for path in (handed_out / role).iterdir())
        known = {name for name, value in SECRETS.items() if name.endswith("_PASSWORD") and value in held}
        assert known == {f"{role.upper()}_PASSWORD"}


def test_the_image_has_a_directory_for_each_services_secrets() -> None:
    (names,) = re.findall(r"for service in ([a-z ]+); do", FINAL.only("RUN"))
    assert [f"secrets-{name}:/secrets/{name}" for name in names.split()] == SERVICES[KEEPER]["volumes"]


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_no_secret_has_a_default(missing: str) -> None:
    with pytest.raises(UnsetVariable, match=rf"{missing}: set it in \.env"):
        composed(SECRETS | {missing: ""})
    operators = {
        (operator, operand) for name, operator, operand in references(compose_file()) if name == missing
    }
    assert operators == {(":?", "set it in .env")}


def test_what_has_to_be_set_is_in_the_example_and_empty_there() -> None:
    example = ROOT / ".env.example"
    assert environment_file(example) == dict.fromkeys(SECRETS, "")
    optional = {(name, operand) for name, operator, operand in references(compose_file()) if operator == ":-"}
    shown = set(re.findall(r"^#([A-Z_]+)=(\S*)$", example.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown == optional
    assert {name for name, _, _ in references(compose_file())} == set(SECRETS) | {
        name for name, _ in optional
    }


def test_no_secret_shows_in_what_docker_tells_of_a_container() -> None:
    for service in SERVICES.values():
        assert not any(secret in str(service) for secret in SECRETS.values())


def test_the_demo_has_all_it_needs_and_nothing_that_is_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment_file(ROOT / "demo.env")
    assert SECRETS.keys() <= variables.keys()
    assert variables["COMPOSE_PROJECT_NAME"] != compose_file()["name"]
    assert variables["COMPOSE_PROFILES"] == "demo"
    services = composed(variables)["services"]
    hand_out(tmp_path, variables)
    for name in (*CHARGING, "operator", "demo"):
        with monkeypatch.context() as patched:
            for setting, value in services[name]["environment"].items():
                whose = "operator" if name == "demo" else name
                patched.setenv(setting, str(value).replace("/run/secrets", str(tmp_path / whose)))
            stripe = named_stripe(read_settings())
        assert stripe is not None
        assert stripe.api_key.startswith("sk_test_")
        assert stripe.base_url == "http://stripe:12111"
    _, listen, address, webhook, url = services["stripe"]["command"]
    assert (listen, address, webhook) == ("--listen", "0.0.0.0:12111", "--webhook")
    assert url == f"http://api:{HTTP_PORT}{WEBHOOK_PATH}"
    assert services["demo"]["command"][:3] == ["demo", "--api", f"http://api:{HTTP_PORT}"]
    assert services["stripe"]["healthcheck"]["test"][-2] == "12111"


def test_a_real_installation_refuses_the_demo() -> None:
    """Its profile alone doesn't make Stripe a stand-in; then `metering demo --api` makes no org and charges nobody."""
    assert SERVICES["demo"]["environment"]["STRIPE_API_BASE"] == ""
