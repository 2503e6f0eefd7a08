"""Who runs a command, and whether he may (docs/reference/operators.md)."""

import getpass
import os
from typing import Final

from sqlalchemy import Engine

from db.operators.log import Actor, log_refusal
from db.operators.operators import find_operator, operators_exist, owns_tables
from db.postgres.engine import transaction
from metering.console.errors import CommandError
from metering.rules.operators import ROLE_NEEDED, OperatorRole
from metering.rules.times import format_time
from metering.runtime.settings import read_settings

TOKEN: Final = "METERING_OPERATOR"  # noqa: S105 - its name
MAX_LOGIN_CHARS: Final = 200


def require_operator(engine: Engine, command: str, *, org_id: int | None = None) -> Actor:
    """Who runs a command that changes something, before it does; `org_id` is the one that it is about.

    Whoever it is while no operator was added yet. From then on METERING_OPERATOR must hold the token of one whose role may do it;
    or, to add an operator where all tokens are lost, METERING_DATABASE_URL must name the owner of the tables. Raises
    CommandError, and logs the refusal.
    """
    needed = ROLE_NEEDED[command]
    token = _token()
    login = login_name()
    with transaction(engine) as connection:
        if token is None:
            if not operators_exist(connection) or (command == "operator add" and owns_tables(connection)):
                return Actor(login, login)
            actor = Actor(login, login)
            why = f"`metering {command}` needs an operator's token"
            remedy = f"set {TOKEN} to yours; who has role money can make one (`metering operator add NAME --role {needed}`)"
        else:
            found = find_operator(connection, token)
            if found is None:
                actor = Actor(login, login)
                why = f"the token in {TOKEN} is no operator's"
                remedy = "set it to the one that `metering operator add` has shown"
            else:
                actor = Actor(found.name, login, found.id)
                if found.revoked_at is not None:
                    why = f"the token in {TOKEN} is revoked since {format_time(found.revoked_at)}"
                    remedy = f"set it to another; who has role money can make one (`metering operator add {found.name} ...`)"
                elif OperatorRole(found.role).may(needed):
                    return actor
                else:
                    why = f"`metering {command}` needs role {needed}, and {found.name} has {found.role}"
                    remedy = f"ask an operator with role {needed}" + (
                        "" if needed is OperatorRole.MONEY else " or above"
                    )
        log_refusal(connection, actor, command, reason=why, org_id=org_id)
    raise CommandError(f"Refused: {why}; {remedy}. Nothing was changed.")


def check_token(engine: Engine) -> None:
    """Refuse a token that is set and not good, for commands that only read. Raises CommandError."""
    token = _token()
    if token is None:
        return
    with transaction(engine) as connection:
        found = find_operator(connection, token)
    if found is None:
        raise CommandError(f"Refused: the token in {TOKEN} is no operator's; set it to yours, or unset it.")
    if found.revoked_at is not None:
        raise CommandError(
            f"Refused: the token in {TOKEN} is revoked since {format_time(found.revoked_at)}; set it to another, or unset it."
        )


def login_name() -> str:
    """The login name, as this machine says it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no name for this user's number, as in a container
        name = f"uid {os.getuid()}"
    return name[:MAX_LOGIN_CHARS]


def _token() -> str | None:
    secret = read_settings().operator
    return None if secret is None else secret.get_secret_value()
