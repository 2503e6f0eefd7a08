"""`metering key`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.console.output import JsonOption, add_row, say, show_json, show_list, show_page, table
from metering.console.values import id_value
from metering.rules.times import format_time

if TYPE_CHECKING:
    from db.models import ApiKey

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, list and revoke the keys that customers' programs use the API with.",
)

OrgArgument = Annotated[int, typer.Argument(metavar="ORG", help="The org's id.", show_default=False)]


@app.command()
def create(org: OrgArgument, as_json: JsonOption = False) -> None:
    """Make an API key for an org. It is shown this once: only its hash is kept."""
    from db.accounts.api_keys import create_key
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.runtime.clock import system_clock

    id_value("ORG", org)
    with open_database(command="key create") as engine:
        actor = require_operator(engine, "key create", org_id=org)
        with transaction(engine) as connection:
            made = create_key(connection, org, system_clock())
            log_action(connection, actor, "key create", org_id=org, subject=made.key_id)
    if as_json:
        show_json({"key_id": made.key_id, "api_key": made.api_key})
        return
    say(f"Key {made.key_id} of org {org}, shown only now:")
    say(made.api_key)


@app.command("list")
def list_(org: OrgArgument, as_json: JsonOption = False) -> None:
    """List an org's keys, revoked ones too, by their last characters."""
    from db.accounts.api_keys import list_keys
    from metering.console.connections import open_database

    id_value("ORG", org)
    with open_database(command="key list") as engine, engine.connect() as connection:
        keys = list_keys(connection, org)
    if as_json:
        show_list([_json(key) for key in keys], len(keys))
        return
    shown = table(">key", "ends with", "created", "revoked")
    for key in keys:
        add_row(shown, [key.id, key.hint, key.created_at, key.revoked_at])
    show_page(shown, "key", offset=0, total=len(keys))


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
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.runtime.clock import system_clock

    id_value("KEY_ID", key_id)
    with open_database(command="key revoke") as engine:
        actor = require_operator(engine, "key revoke")
        with transaction(engine) as connection:
            key, changed = revoke_key(connection, key_id, system_clock())
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
        "hint": key.hint,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
