"""`metering migrate`."""

from metering.console.output import JsonOption, say, show_json


def migrate(as_json: JsonOption = False) -> None:
    """Bring the database to the schema that this program needs.

    METERING_DATABASE_URL must name the tables' owner here. `metering up` does it by itself for the embedded database.
    """
    from db.postgres.schema import migrate as migrate_schema
    from metering.console.connections import engine_for, located

    with (
        located(valkey=False) as found,
        engine_for(found.owner_database_url, command="migrate", lock_timeout_ms=0) as engine,
    ):
        before, after = migrate_schema(engine)
    if as_json:
        show_json({"from": before, "to": after})
    elif before == after:
        say(f"The database is at schema {after} already.")
    else:
        say(f"The database went from schema {before or 'none'} to {after}.")
