"""Every time that a database holds, whatever it is of."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, text

_COLUMNS = text("""
    SELECT format('%I', table_name), format('%I', column_name), data_type = 'ARRAY' FROM information_schema.columns
    WHERE table_schema = 'public' AND udt_name IN ('timestamptz', '_timestamptz') AND table_name <> 'test_clock'
    ORDER BY 1, 2
""")


def stored_times(connection: Connection) -> Iterator[tuple[str, datetime]]:
    """Each that is finite, with its column's name. What lies before 1971 stands for since ever."""
    for table, column, many in connection.execute(_COLUMNS).all():
        value = f"unnest({column})" if many else column
        query = f"SELECT at FROM (SELECT {value} AS at FROM {table}) AS each WHERE at > '1971-01-01'"  # noqa: S608 - of the catalogue
        for at in connection.exec_driver_sql(query).scalars():
            yield f"{table}.{column}", at
