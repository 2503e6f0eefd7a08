"""`metering operator` and `metering log`: who may change what, and who did (docs/reference/operators.md)."""

import getpass
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import redis
from sqlalchemy import text

from db.ledger.rejections import RejectedEntry, keep_rejected
from db.postgres.engine import driver_connection, transaction
from metering.rules.operators import ROLE_NEEDED, OperatorRole
from metering.rules.rejections import Reason, Rejection
from metering.runtime.clock import system_clock
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.payments.world import World, make_world

READ, SUPPORT, MONEY = OperatorRole


def as_operator(cli: Cli, token: str) -> Cli:
    return replace(cli, settings={**cli.settings, "METERING_OPERATOR": token})


@pytest.fixture
def operators(cli: Cli) -> Mapping[OperatorRole, Cli]:
    """The command as an operator of each role runs it; each is named after his role."""
    boss = as_operator(cli, cli.json("operator", "add", "money", "--role", "money")["token"])
    return {MONEY: boss} | {
        role: as_operator(cli, boss.json("operator", "add", role.value, "--role", role.value)["token"])
        for role in (READ, SUPPORT)
    }


def entries(cli: Cli) -> list[tuple[str, str, bool, int | None, str | None]]:
    return [
        (each["operator"], each["action"], each["refused"], each["org_id"], each["subject"])
        for each in cli.json("log")["results"]
    ]


def test_before_there_are_operators_the_login_name_may_do_all_and_is_kept(cli: Cli) -> None:
    cli.run("org", "create", "Acme", "--id", "42")
    cli.run("adjust", "42", "--cents", "500", "--reason", "a present", "--key", "k1")
    found = cli.json("log")
    assert found["total"] == 2
    last, first = found["results"]
    assert (first["operator"], first["operator_id"]) == (getpass.getuser(), None)
    assert (first["action"], first["org_id"], first["details"]) == ("org create", 42, {"name": "Acme"})
    assert (last["action"], last["subject"], last["reason"]) == ("adjust", "k1", "a present")
    assert last["details"]["amount_cents"] == last["details"]["balance_after_cents"] == 500


def test_the_first_operator_ends_that(cli: Cli) -> None:
    assert cli.fail("operator", "add", "joe", "--role", "read").startswith(
        "role: the first operator needs `--role money`"
    )
    made = cli.json("operator", "add", "maria", "--role", "money")
    assert set(made) == {"operator_id", "name", "role", "token"}
    assert re.fullmatch(r"op_[0-9a-f]{64}", made["token"])
    said = cli.fail("org", "create", "Acme")
    assert said.startswith(
        "Refused: `metering org create` needs an operator's token; set METERING_OPERATOR to yours;"
    )
    assert said.endswith("Nothing was changed.")
    assert cli.json("org", "list")["total"] == 0  # looking needs none
    maria = as_operator(cli, made["token"])
    maria.run("org", "create", "Acme", "--id", "42")
    login = getpass.getuser()
    assert entries(cli) == [
        ("maria", "org create", False, 42, None),
        (login, "org create", True, None, None),
        (login, "operator add", False, None, "maria"),
    ]


def test_the_token_is_shown_once_and_is_in_nothing_that_is_kept(cli: Cli, database: Database) -> None:
    shown = cli.run("operator", "add", "maria", "--role", "money").stdout
    token = shown.split()[-1]
    maria = as_operator(cli, token)
    maria.run("org", "create", "Acme")
    everything = maria.run("operator", "list").stdout + maria.run("log", "--json").stdout
    with database.engine.connect() as connection:
        everything += str(connection.execute(text("TABLE operators")).all())
    assert token[:-4] not in everything
    assert token[-4:] in maria.run("operator", "list").stdout


# What each command that changes something is given to be tried with.
CHANGES: Mapping[str, tuple[str, ...]] = {
    "org create": ("Beta", "--id", "7"),
    "org rename": ("42", "Beta"),
    "org suspend": ("42", "--reason", "x"),
    "org resume": ("42", "--reason", "x"),
    "org set": ("42", "--max-concurrent-calls", "5"),
    "key create": ("42",),
    "key revoke": ("1",),
    "tier set": ("bolt", "0.09"),
    "tier clear": ("bolt", "--org", "42"),
    "tier cancel": ("bolt", "--from", "2999-01-01T00:00:00Z"),
    "operator add": ("eve", "--role", "money"),
    "operator revoke": ("read",),
    "adjust": ("42", "--cents", "5", "--reason", "x", "--key", "k"),
    "payment book": ("42", "pi_1", "--reason", "x"),
    "rejected replay": ("1",),
    "rejected dismiss": ("1", "--reason", "x"),
    "call dismiss": ("42", "1", "--reason", "x"),
    "refund": ("42", "pi_1", "--reason", "x", "--key", "k"),
    "reprice": (
        *(
            "--tier",
            "bolt",
            "--from",
            "2026-04-01T00:00:00Z",
            "--to",
            "2026-05-01T00:00:00Z",
            "--price",
            "0.06",
        ),
        *("--apply", "--key", "k", "--reason", "x"),
    ),
    "reload resume": ("42", "--reason", "x"),
    "stripe-event retry": ("--all",),
    "stripe-event dismiss": ("evt_1", "--reason", "x"),
}


def test_each_command_that_changes_something_is_tried_here() -> None:
    assert set(CHANGES) == {command for command, role in ROLE_NEEDED.items() if role is not READ}


@pytest.mark.parametrize("command", CHANGES)
def test_a_command_beyond_ones_role_is_refused_and_logged(
    cli: Cli, operators: Mapping[OperatorRole, Cli], database: Database, command: str
) -> None:
    needed = ROLE_NEEDED[command]
    with database.engine.connect() as connection:
        before = connection.execute(text("TABLE operators")).all()
    for role in OperatorRole:
        if role.may(needed):
            continue
        logged = cli.json("log")["total"]
        said = operators[role].fail(*command.split(), *CHANGES[command])
        assert (
            said
            == f"Refused: `metering {command}` needs role {needed}, and {role} has {role}; ask an operator with role {needed}"
            + ("" if needed is MONEY else " or above")
            + ". Nothing was changed."
        )
        found = cli.json("log")
        assert found["total"] == logged + 1
        entry = found["results"][0]
        assert (entry["operator"], entry["action"], entry["refused"]) == (role.value, command, True)
        assert entry["reason"] == f"`metering {command}` needs role {needed}, and {role} has {role}"
    with database.engine.connect() as connection:
        assert connection.execute(text("TABLE operators")).all() == before
        for table in ("accounts", "api_keys", "tiers", "transactions"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0  # noqa: S608


def test_a_revoked_token_is_refused_at_once_and_for_ever_also_for_looking(
    cli: Cli, operators: Mapping[OperatorRole, Cli]
) -> None:
    boss, support = operators[MONEY], operators[SUPPORT]
    support.run("org", "create", "Acme", "--id", "42")
    boss.run("operator", "revoke", "support")
    said = support.fail("key", "create", "42")
    assert said.startswith("Refused: the token in METERING_OPERATOR is revoked since 20")
    assert "revoked since" in support.fail("org", "list")
    assert entries(cli)[0] == ("support", "key create", True, 42, None)
    again = as_operator(cli, boss.json("operator", "add", "support", "--role", "support")["token"])
    again.run("key", "create", "42")
    assert "revoked" in support.fail("key", "create", "42")
    assert "revoked already" in boss.run("operator", "revoke", "read", status=0).stdout + boss.fail(
        "operator", "revoke", "read"
    )


def test_an_unknown_token_is_refused_and_never_shown(cli: Cli, operators: Mapping[OperatorRole, Cli]) -> None:
    stranger = as_operator(cli, "op_guessed")
    assert stranger.fail("org", "create", "Acme").startswith(
        "Refused: the token in METERING_OPERATOR is no operator's;"
    )
    assert "no operator's" in stranger.fail("org", "list")
    assert entries(cli)[0] == (getpass.getuser(), "org create", True, None, None)
    assert "guessed" not in cli.run("log", "--json").stdout


def test_the_last_operator_with_role_money_stays(cli: Cli, operators: Mapping[OperatorRole, Cli]) -> None:
    boss = operators[MONEY]
    assert boss.fail("operator", "revoke", "money").startswith(
        "NAME: money is the last operator with role money"
    )
    second = as_operator(cli, boss.json("operator", "add", "second", "--role", "money")["token"])
    boss.run("operator", "revoke", "money")
    assert "revoked" in boss.fail("operator", "add", "eve", "--role", "money")
    second.run("operator", "add", "third", "--role", "read")
    assert "there is no operator nobody" in second.fail("operator", "revoke", "nobody")
    assert "there is an operator third already" in second.fail("operator", "add", "third", "--role", "money")
    listed = cli.json("operator", "list")
    assert [(each["name"], each["revoked_at"] is None) for each in listed["results"]] == [
        ("money", False),
        ("read", True),
        ("support", True),
        ("second", True),
        ("third", True),
    ]


def test_where_all_tokens_are_lost_the_owner_of_the_tables_adds_an_operator(
    cli: Cli, operators: Mapping[OperatorRole, Cli], database: Database
) -> None:
    owner = replace(cli, settings={**cli.settings, "METERING_DATABASE_URL": database.owner_url})
    token = owner.json("operator", "add", "again", "--role", "money")["token"]
    as_operator(cli, token).run("org", "create", "Acme")
    assert "needs an operator's token" in owner.fail("org", "create", "Beta")
    assert "needs an operator's token" in cli.fail("operator", "add", "eve", "--role", "money")


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation as of now, with org 1, without money or card."""
    with make_world(database, redis_client, at=system_clock()) as made:
        yield made


def test_every_change_is_logged_once_with_who_what_and_why(cli: Cli, world: World) -> None:
    boss = as_operator(cli, cli.json("operator", "add", "maria", "--role", "money")["token"])
    boss.run("org", "create", "Acme", "--id", "42")
    key = boss.json("key", "create", "42")["key_id"]
    for _ in range(2):  # what changes nothing isn't logged
        boss.run("key", "revoke", str(key))
        boss.run("adjust", "42", "--cents", "500", "--reason", "a present", "--key", "k")
        boss.run("tier", "set", "copper", "0.08", "--increment", "6/6")
    with transaction(world.engine) as connection:
        entry = RejectedEntry("1-1", b"{", Rejection(Reason.MALFORMED_JSON, "not JSON"))
        keep_rejected(driver_connection(connection), [entry])
    boss.run("rejected", "replay", "--all")
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="stolen_card")
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=2_000)
    world.work()
    boss.run("reload", "resume", "1", "--reason", "the card was found")
    boss.run("operator", "add", "joe", "--role", "read")
    boss.run("operator", "revoke", "joe")
    found = boss.json("log")["results"]
    assert [
        (each["operator"], each["action"], each["org_id"], each["subject"], each["reason"]) for each in found
    ] == [
        ("maria", "operator revoke", None, "joe", None),
        ("maria", "operator add", None, "joe", None),
        ("maria", "reload resume", 1, None, "the card was found"),
        ("maria", "rejected replay", None, "1", None),
        ("maria", "tier set", None, "copper", None),
        ("maria", "adjust", 42, "k", "a present"),
        ("maria", "key revoke", 42, str(key), None),
        ("maria", "key create", 42, str(key), None),
        ("maria", "org create", 42, None, None),
        (getpass.getuser(), "operator add", None, "maria", None),
    ]
    details = {each["action"]: each["details"] for each in found}
    assert details["tier set"]["usd_per_minute"] == "0.08"
    assert details["tier set"]["in_force_from"] is None
    assert details["reload resume"]["code"] == "stolen_card"
    (row,) = world.rows("SELECT resumed_by FROM reload_resumptions")
    assert row.resumed_by == "maria"


def test_the_log_is_narrowed_by_org_operator_and_time(
    cli: Cli, operators: Mapping[OperatorRole, Cli]
) -> None:
    support = operators[SUPPORT]
    for org_id in ("42", "7"):
        support.run("org", "create", "Acme", "--id", org_id)
    operators[READ].fail("key", "create", "42")
    found = cli.json("log", "--org", "42")
    assert [(each["operator"], each["refused"]) for each in found["results"]] == [
        ("read", True),
        ("support", False),
    ]
    assert cli.json("log", "--operator", "support")["total"] == 2
    since = found["results"][0]["at"]
    assert cli.json("log", "--since", since)["results"][0]["org_id"] == 42
    assert cli.json("log", "--limit", "1", "--offset", "1")["results"][0]["org_id"] == 7
    assert "REFUSED: key create" in cli.run("log", "--org", "42").stdout
    assert cli.fail("log", "--since", "yesterday").startswith("since: must be an ISO 8601")
    assert cli.run("log", "--org", "9").stdout == "There are no logged commands.\n"
