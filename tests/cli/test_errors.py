"""What goes wrong is said in one sentence that names the cause and the remedy, and never gives a secret away."""

from pathlib import Path

import psycopg
import pytest

from metering.console.connections import address
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.db import made_read_only
from tests.stripe_away import NO_STRIPE

SECRET = "s3cr3t"  # noqa: S105 - none that opens anything
AWAY = {
    "METERING_DATABASE_URL": f"postgresql://app:{SECRET}@127.0.0.1:1/metering",
    "METERING_REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
    "METERING_HTTP_PORT": "0",
    **NO_STRIPE,
}
COMMANDS = [
    ["migrate"],
    ["org", "create", "Acme"],
    ["org", "list"],
    ["tier", "set", "bolt", "0.08"],
    ["tier", "list"],
    ["adjust", "1", "--cents", "1", "--reason", "r", "--key", "k"],
    ["push", __file__],
    ["status"],
    ["rejected", "list"],
    ["rejected", "replay", "--all"],
    ["audit"],
]
COMMAND_NAMES = [" ".join(command[:2]) for command in COMMANDS]


@pytest.mark.parametrize("command", COMMANDS, ids=COMMAND_NAMES)
def test_servers_that_are_away(command: list[str]) -> None:
    said = Cli(AWAY).fail(*command)
    server = "Redis" if command[0] == "push" else "Postgres"
    assert said.startswith(f"{server} can't be reached, or refuses: ")
    assert "127.0.0.1" in said
    assert f"METERING_{'REDIS' if server == 'Redis' else 'DATABASE'}_URL" in said
    assert SECRET not in said


@pytest.mark.parametrize("command", [*COMMANDS, ["meter"]], ids=[*COMMAND_NAMES, "meter"])
def test_nothing_runs(offline: Cli, data_dir: Path, command: list[str]) -> None:
    said = offline.fail(*command)
    assert said.startswith(
        f"Nothing runs under {data_dir}: start it with `metering up`, or set METERING_DATABASE_URL"
    )
    assert not data_dir.exists()


def test_a_postgres_that_takes_no_writes(cli: Cli, database: Database) -> None:
    with made_read_only(database.admin_url):
        for command in (["audit"], ["org", "create", "Acme"]):
            assert cli.fail(*command).startswith("Postgres takes no writes there: it is a standby, or")


def test_redis_away_while_postgres_is_there(cli: Cli) -> None:
    broken = Cli({**cli.settings, "METERING_REDIS_URL": AWAY["METERING_REDIS_URL"]})
    for command in (["status"], ["up"]):
        said = broken.fail(*command)
        assert said.startswith("Redis can't be reached, or can't do it now: ")
        assert SECRET not in said


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"METERING_DATABASE_URL": f"mysql://u:{SECRET}@h/d"},
            "METERING_DATABASE_URL must be a Postgres URL",
        ),
        ({"METERING_DATABASE_URL": f"postgresql://h/d?{SECRET}=1"}, "METERING_DATABASE_URL is not a URL"),
        ({"METERING_DATABASE_URL": f"postgresql://u:p@h:{SECRET}/d"}, "METERING_DATABASE_URL is not a URL"),
        ({"METERING_REDIS_URL": f"http://:{SECRET}@h"}, "METERING_REDIS_URL must be a Redis or Valkey URL"),
        ({"METERING_REDIS_URL": f"redis://:{SECRET}/x@h"}, "METERING_REDIS_URL is not a URL"),
        ({"METERING_REDIS_URL": f"redis://h/0?socket_timeout={SECRET}"}, "METERING_REDIS_URL is not a URL"),
        ({"METERING_REDIS_URL": f"redis://h/0?{SECRET}=1"}, "METERING_REDIS_URL is not a URL"),
        (
            {"METERING_REDIS_URL": f"redis://:{SECRET}@h/0?protocol=3"},
            "METERING_REDIS_URL must not say protocol",
        ),
    ],
)
def test_bad_settings_are_named_before_anything_is_done(settings: dict[str, str], sentence: str) -> None:
    for command in (["status"], ["push", __file__], ["up"], ["meter"]):
        said = Cli({**AWAY, **settings}).fail(*command)
        assert said.startswith(sentence)
        assert SECRET not in said


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    settings = {"METERING_DATA_DIR": str(tmp_path / "file" / "data"), "METERING_HTTP_PORT": "0"}
    said = Cli(settings).fail("up")
    assert said.startswith(f"METERING_DATA_DIR: {tmp_path}/file/data can't be used (Not a directory)")


def test_a_database_that_does_not_exist(database: Database) -> None:
    url = database.url.replace("/test_", "/none_")
    assert "does not exist" in Cli({**AWAY, "METERING_DATABASE_URL": url}).fail("org", "list")


def test_a_lock_that_is_not_given_back(cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metering.console.connections.LOCK_TIMEOUT_MS", 100)
    cli.run("org", "create", "Acme")
    url = database.url.replace("+psycopg", "")
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM accounts WHERE org_id = 1 FOR UPDATE")
        said = cli.fail("adjust", "1", "--cents", "1", "--reason", "r", "--key", "k")
    assert said == "Another transaction holds what this needs and does not end: try again in a moment."


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["org"],
        ["org", "create"],
        ["adjust", "one"],
        ["push"],
        ["up", "--meters", "0"],
        ["rejected", "list", "1"],
    ],
)
def test_usage_errors_end_with_2(offline: Cli, arguments: list[str]) -> None:
    offline.run(*arguments, status=2)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            f"postgresql+psycopg://app:{SECRET}@db.example:5433/metering?sslmode=require",
            "db.example:5433/metering",
        ),
        (f"postgresql+psycopg://app@/metering?host=/run/pg&port=5432&password={SECRET}", "/run/pg/metering"),
        (f"redis://:{SECRET}@cache.example:6379/0", "cache.example:6379/0"),
        ("unix:///run/valkey.sock?db=0", "/run/valkey.sock"),
    ],
)
def test_an_address_holds_no_secret(url: str, shown: str) -> None:
    assert address(url) == shown


@pytest.mark.parametrize(
    "address_", ["127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1:http"]
)
def test_a_stand_in_listens_at_an_address_alone(tmp_path: Path, address_: str) -> None:
    keys = {"STRIPE_API_KEY": "sk_test_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}
    said = Cli({"METERING_DATA_DIR": str(tmp_path), **keys}).fail("stripe-sandbox", "--listen", address_)
    assert said == "--listen must be HOST:PORT with a port from 1 to 65535, 0.0.0.0:12111."


@pytest.mark.parametrize(
    "url", ["https://api:8000", "api:8000", "http://", "http://api:99999", "http://api:x"]
)
def test_the_demo_goes_beside_an_api_alone(url: str) -> None:
    assert Cli(AWAY).fail("demo", "--api", url) == "--api must be the API's address, http://api:8000."
