"""`metering operator`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.console.output import JsonOption, add_row, say, show_json, show_list, show_page, table
from metering.console.values import text_value
from metering.rules.operators import OperatorRole
from metering.rules.times import format_time

if TYPE_CHECKING:
    from db.models import Operator

MAX_NAME_CHARS = 100

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Say who may change something by commands: add, list and revoke operators.",
)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="What the log is to call him.", show_default=False)
]


@app.command()
def add(
    name: NameArgument,
    role: Annotated[
        OperatorRole,
        typer.Option(
            metavar="ROLE",
            help="`read` looks at everything; `support` also makes orgs and keys, replays events, resumes reloads; "
            "`money` also moves money, sets prices, adds operators.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Add an operator, and show his token this once: only its hash is kept. He sets METERING_OPERATOR to it.

    From the first one on, who must have role `money`, changes need a token.
    """
    from db.operators.operators import add_operator
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import TOKEN, require_operator

    text_value("NAME", name, max_chars=MAX_NAME_CHARS)
    with open_database(command="operator add") as engine:
        actor = require_operator(engine, "operator add")
        with transaction(engine) as connection:
            made = add_operator(connection, actor, name, role)
    if as_json:
        show_json(
            {
                "operator_id": made.operator_id,
                "name": made.name,
                "role": made.role.value,
                "token": made.token,
            }
        )
        return
    say(f"Operator {name} is added, with role {role}. The token, shown only now, is what {TOKEN} is set to:")
    say(made.token)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List operators, revoked ones too, with their roles and the last characters of their tokens."""
    from db.operators.operators import list_operators
    from metering.console.connections import open_database

    with open_database(command="operator list") as engine, engine.connect() as connection:
        operators = list_operators(connection)
    if as_json:
        show_list([_json(each) for each in operators], len(operators))
        return
    shown = table("name", "role", "ends with", "added", "revoked")
    for each in operators:
        add_row(shown, [each.name, each.role, each.hint, each.created_at, each.revoked_at])
    show_page(shown, "operator", offset=0, total=len(operators))


@app.command()
def revoke(name: NameArgument, as_json: JsonOption = False) -> None:
    """Revoke an operator's token: it is refused at once, and for ever. Added again, he gets another.

    The last operator with role `money` can't be revoked, or nobody could add another.
    """
    from db.operators.operators import revoke_operator
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    text_value("NAME", name, max_chars=MAX_NAME_CHARS)
    with open_database(command="operator revoke") as engine:
        actor = require_operator(engine, "operator revoke")
        with transaction(engine) as connection:
            revoked = _json(revoke_operator(connection, actor, name))
    if as_json:
        show_json(revoked)
    else:
        say(f"Operator {name} is revoked, since {format_time(revoked['revoked_at'])}.")


def _json(operator: "Operator") -> dict[str, Any]:
    return {
        "operator_id": operator.id,
        "name": operator.name,
        "role": operator.role,
        "hint": operator.hint,
        "created_at": operator.created_at,
        "revoked_at": operator.revoked_at,
    }
