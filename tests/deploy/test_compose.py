"""docker-compose.yml against the program: what it starts exists, what it sets is known, what it promises is written there."""

import re
from typing import Any

import pytest
import typer.main

from metering.cli.main import app
from metering.console.roles import STOP_LIMIT_S
from metering.console.stripe_access import named_stripe
from metering.runtime.settings import Settings
from tests.deploy.composed import (
    CHARGING,
    HTTP_PORT,
    METRICS_PORT,
    MONITORING,
    OURS,
    ROLES,
    ROOT,
    TO_AN_END,
    UnsetVariable,
    compose_file,
    composed,
    duration_s,
    environment_file,
    references,
)
from tests.deploy.stack import SECRETS

SERVICES: dict[str, Any] = composed(SECRETS)["services"]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - in a container
PUBLISHED = {"valkey": [6379], "api": [HTTP_PORT], "prometheus": [9090], "grafana": [3000]}
USERS = {"migrate": "owner", "operator": "app"}
EVERY = pytest.mark.parametrize("name", sorted(SERVICES))


def test_the_services_are_those_that_the_product_needs() -> None:
    assert set(SERVICES) == {"postgres", "valkey", *OURS, *MONITORING}


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_runs_a_command_that_exists(name: str) -> None:
    command: Any = typer.main.get_command(app)
    if name == "operator":
        assert SERVICES[name]["command"] == ["--help"]
    else:
        assert SERVICES[name]["command"] == [name]
        assert name in command.commands
    assert "entrypoint" not in SERVICES[name]


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_one_that_the_program_knows_and_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SERVICES[name]["environment"]
    assert {setting.removeprefix("METERING_").lower() for setting in given} <= set(Settings.model_fields)
    for setting, value in given.items():
        monkeypatch.setenv(setting, str(value))
    settings = Settings()
    user = f"metering_{USERS.get(name, name)}"
    assert str(settings.database_url).startswith(f"postgresql+psycopg://{user}:")
    if name != "migrate":
        assert str(settings.redis_url).startswith(f"redis://{'' if name == 'operator' else name}:")
    if name in ROLES:
        assert (settings.metrics_host, settings.metrics_port) == (EVERYWHERE, METRICS_PORT)
    if name == "api":
        assert (settings.http_host, settings.http_port) == (EVERYWHERE, HTTP_PORT)
        assert (settings.telephony_token, settings.operator_token) == (None, None)


def test_only_what_talks_to_stripe_knows_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        given = SERVICES[name]["environment"]
        asks_stripe = name in {*CHARGING, "operator"}
        assert ({"STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"} <= set(given)) == asks_stripe
        assert ("STRIPE" in str(given)) == asks_stripe
    for setting, value in SERVICES["api"]["environment"].items():
        monkeypatch.setenv(setting, str(value))
    stripe = named_stripe(Settings())
    assert stripe is not None
    assert (stripe.api_key, stripe.webhook_secrets) == (
        SECRETS["STRIPE_API_KEY"],
        (SECRETS["STRIPE_WEBHOOK_SECRET"],),
    )
    assert stripe.base_url is None


def test_tokens_open_what_they_are_set_for(monkeypatch: pytest.MonkeyPatch) -> None:
    service = composed(SECRETS | {"TELEPHONY_TOKEN": "t", "OPERATOR_TOKEN": "o"})["services"]["api"]
    for setting, value in service["environment"].items():
        monkeypatch.setenv(setting, str(value))
    settings = Settings()
    tokens = [settings.telephony_token, settings.operator_token]
    assert [token and token.get_secret_value() for token in tokens] == ["t", "o"]


def test_the_images_are_of_the_versions_that_the_product_is_tested_with() -> None:
    assert re.fullmatch(r"postgres:18(\.\d+)?(-\w+)?", SERVICES["postgres"]["image"])
    assert re.fullmatch(r"valkey/valkey:9(\.\d+)*(-\w+)?", SERVICES["valkey"]["image"])


def test_one_service_builds_the_image_and_none_asks_a_registry_for_it() -> None:
    assert [name for name in OURS if "build" in SERVICES[name]] == ["migrate"]
    assert {(SERVICES[name]["image"], SERVICES[name]["pull_policy"]) for name in OURS} == {
        ("metering", "never")
    }


def test_a_service_starts_when_what_it_needs_is_there() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ROLES:
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
        }
    assert SERVICES["operator"]["profiles"] == ["operator"]  # not started with the others
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name in TO_AN_END else "unless-stopped")
        profile = {"operator": "operator"} | dict.fromkeys(MONITORING, "monitoring")
        assert service.get("profiles") == ([profile[name]] if name in profile else None)


@EVERY
def test_what_runs_on_has_a_health_check_that_can_succeed_in_time(name: str) -> None:
    if name in TO_AN_END:
        assert "healthcheck" not in SERVICES[name]
        return
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert duration_s(check["timeout"]) <= duration_s(check["interval"]) < duration_s(check["start_period"])
    assert duration_s(check["start_interval"]) < duration_s(check["interval"])


@pytest.mark.parametrize("name", ROLES)
def test_a_roles_health_check_asks_the_port_that_it_serves(name: str) -> None:
    test = " ".join(SERVICES[name]["healthcheck"]["test"])
    setting, path = ("HTTP_PORT", "readyz") if name == "api" else ("METRICS_PORT", "healthz")
    port = SERVICES[name]["environment"][f"METERING_{setting}"]
    assert re.findall(r"127\.0\.0\.1:(\d+)/(\w+)", test) == [(port, path)]


@EVERY
def test_a_service_may_finish_what_it_has_in_hand(name: str) -> None:
    assert duration_s(SERVICES[name]["stop_grace_period"]) > STOP_LIMIT_S


@EVERY
def test_nothing_can_be_reached_from_another_machine(name: str) -> None:
    service = SERVICES[name]
    published = service.get("ports", [])
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert [int(port.rpartition(":")[2]) for port in published] == PUBLISHED.get(name, [])
    assert "network_mode" not in service


@EVERY
def test_any_number_of_a_service_may_run(name: str) -> None:
    assert not {"container_name", "hostname", "scale", "deploy"} & set(SERVICES[name])


@EVERY
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
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
    assert set(compose_file()["volumes"]) == {"postgres", "valkey", *MONITORING}


def test_the_scripts_for_a_new_database_are_there_and_read_only() -> None:
    source, target, mode = SERVICES["postgres"]["volumes"][1].split(":")
    assert (target, mode) == ("/docker-entrypoint-initdb.d", "ro")
    assert [script.name for script in (ROOT / source).iterdir()] == ["roles.sql"]


def test_the_script_that_names_valkeys_users_is_there_and_read_only() -> None:
    source, target, mode = SERVICES["valkey"]["volumes"][1].split(":")
    assert mode == "ro"
    shell, option, script, *_ = SERVICES["valkey"]["command"]
    assert (shell, option) == ("sh", "-c")
    assert f"sh {target}/users.sh" in script
    assert [script.name for script in (ROOT / source).iterdir()] == ["users.sh"]


def test_a_role_knows_its_own_password_and_nobody_elses() -> None:
    passwords = {name: value for name, value in SECRETS.items() if name.endswith("_PASSWORD")}
    for role in ROLES:
        known = {name for name, value in passwords.items() if value in str(SERVICES[role]["environment"])}
        assert known == {f"{role.upper()}_PASSWORD"}


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


def test_no_secret_shows_in_a_command() -> None:
    for service in SERVICES.values():
        shown = str([service.get("command"), service.get("healthcheck")])
        assert not any(secret in shown for secret in SECRETS.values())
