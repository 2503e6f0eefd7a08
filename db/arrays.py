"""Arrays in Postgres's text form."""

from collections.abc import Iterable


def array(values: Iterable[int | str]) -> str:
    """An array in Postgres's text form, of values that need no quotes; psycopg's own way takes ten times as long.

    Where time counts, give it a list: a generator's turns cost more than all the rest.
    """
    return f"{{{','.join(map(str, values))}}}"
