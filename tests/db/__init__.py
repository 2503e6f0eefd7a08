"""What the database's tests share."""

from sqlalchemy import NullPool, create_engine

from db.engine import driver_connection


def execute_as(url: str, *scripts: str) -> None:
    """Run SQL as the role that `url` names, in one transaction; errors are psycopg's own."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        for script in scripts:
            driver_connection(connection).execute(script.encode())
