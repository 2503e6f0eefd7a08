"""`metering key`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.console.errors import CommandError
from metering.console.output import JsonOption, add_row, say, show_json, show_list, show_page, table
from metering.console.values import OrgArgument, id_value, text_value, time_value
from metering.rules.times import format_time

if TYPE_CHECKING:
    from db.models import ApiKey

MAX_NAME_CHARS = 100
MAX_FOUND = 100

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, list, find and revoke the keys that customers' programs use the API with.",
)


@app.command()
def create(
    org: OrgArgument,
    name: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What people call it: where it is used.", show_default=False),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="From then on it is refused: ISO 8601 with an offset.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key for an org. It is shown this once: only its hash is kept."""
    from db.accounts.api_keys import create_key
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    id_value("ORG", org)
    if name is not None:
        text_value("name", name, max_chars=MAX_NAME_CHARS)
    end = None if expires is None else time_value("expires", expires)
    with open_database(command="key create") as engine:
        actor = require_operator(engine, "key create", org_id=org)
        with transaction(engine) as connection:
            made = create_key(connection, org, read_clock(connection), name=name, expires_at=end)
            details = {"name": name, "expires_at": None if end is None else format_time(end)}
            log_action(
                connection,
                actor,
                "key create",
                org_id=org,
                subject=made.key_id,
                details={said: value for said, value in details.items() if value is not None},
            )
    if as_json:
        show_json({"key_id": made.key_id, "api_key": made.api_key})
        return
    say(f"Key {made.key_id} of org {org}, shown only now:")
    say(made.api_key)


@app.command("list")
def list_(org: OrgArgument, as_json: JsonOption = False) -> None:
    """List an org's keys, revoked ones too, by their last characters. When one was used is noted once an hour."""
    from db.accounts.api_keys import list_keys
    from metering.console.connections import open_database

    id_value("ORG", org)
    with open_database(command="key list") as engine, engine.connect() as connection:
        keys = list_keys(connection, org)
    if as_json:
        show_list([_json(key) for key in keys], len(keys))
        return
    shown = table(">key", "name", "ends with", "created", "last used", "ends", "revoked")
    for key in keys:
        add_row(shown, [key.id, key.name, key.hint, *_times(key)])
    show_page(shown, "key", offset=0, total=len(keys))


@app.command()
def find(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            help="The key, or its last four characters; unset or `-`, it is read from standard input, or asked for unseen, so "
            "that it gets into no shell's history.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find whose a key is, by the key itself or its last four characters. What was asked for is kept and shown nowhere."""
    from db.accounts.api_keys import HINT_CHARS, PREFIX, find_keys
    from metering.console.connections import open_database

    wanted = (_asked_for_key() if key in (None, "-") else key).strip()
    if len(wanted) != HINT_CHARS and not wanted.startswith(PREFIX):
        raise CommandError(
            f"KEY: must be a whole key, which begins with {PREFIX}, or the last {HINT_CHARS} characters of one."
        )
    with open_database(command="key find") as engine, engine.connect() as connection:
        found = find_keys(connection, wanted, limit=MAX_FOUND)
    if not found:
        raise CommandError("There is no such key, revoked or not: it was never made here.")
    if as_json:
        results = [
            {"org_id": each.key.org_id, "org_name": each.org_name, **_json(each.key)} for each in found
        ]
        show_list(results, len(found))
        return
    shown = table(
        ">org", "org's name", ">key", "name", "ends with", "created", "last used", "ends", "revoked"
    )
    for each in found:
        key_of = each.key
        add_row(shown, [key_of.org_id, each.org_name, key_of.id, key_of.name, key_of.hint, *_times(key_of)])
    show_page(shown, "key", offset=0, total=len(found))


def _asked_for_key() -> str:
    """The key from standard input: a pipe's first line, or what is typed unseen. Raises CommandError."""
    import getpass
    import sys

    if sys.stdin is None:
        raise CommandError("KEY: standard input is closed; give the key, or its last four characters.")
    if sys.stdin.isatty():
        return getpass.getpass("Key, or its last four characters (not shown): ")
    return sys.stdin.readline()


@app.command()
def revoke(
    key_id: Annotated[
        int,
        typer.Argument(
            metavar="KEY_ID", help="The key's id, as `create` and `list` show it.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: it stops at once, and for ever."""
    from db.accounts.api_keys import revoke_key
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    id_value("KEY_ID", key_id)
    with open_database(command="key revoke") as engine:
        actor = require_operator(engine, "key revoke")
        with transaction(engine) as connection:
            key, changed = revoke_key(connection, key_id, read_clock(connection))
            revoked = _json(key)
            if changed:
                log_action(connection, actor, "key revoke", org_id=key.org_id, subject=key_id)
    if as_json:
        show_json({**revoked, "org_id": key.org_id})
    else:
        say(f"Key {key_id} of org {key.org_id} is revoked, since {format_time(revoked['revoked_at'])}.")


def _json(key: "ApiKey") -> dict[str, Any]:
    return {
        "key_id": key.id,
        "name": key.name,
        "hint": key.hint,
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _times(key: "ApiKey") -> list[object]:
    return [key.created_at, key.last_used_at, key.expires_at, key.revoked_at]
