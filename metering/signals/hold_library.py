"""The function library that telephony calls (docs/reference/holds.md#functions), on whatever is the primary now."""

import re
from typing import Any, Final

import redis

from metering.runtime.lua import lua_script

LIBRARY: Final = "metering"
"""What the library is called."""
CODE: Final = lua_script(__package__, "holds_library.lua")

_VERSION: Final = re.compile(r"^local VERSION = ([0-9]+)$", re.MULTILINE)
_VERSION_FUNCTION: Final = "metering_version"


def version_of(code: str) -> int:
    """The version that a library's text tells. Raises ValueError where it tells none."""
    found = _VERSION.search(code)
    if found is None:
        raise ValueError("the library tells no version")
    return int(found[1])


def load_hold_library(client: redis.Redis, code: str = CODE) -> bool:
    """Load the library unless it is there, as new as this one or newer; tell whether it was loaded.

    Raises redis.RedisError where that can't be done, as where a library of another name has functions of these names.
    """
    there = loaded_version(client)
    if there is None:
        try:
            client.function_load(code)
        except redis.ResponseError as error:
            # Another process was quicker, and its version is looked at the next time; or it is a library of that name that
            # tells no version, which is replaced.
            if "already exists" not in str(error) or f"'{LIBRARY}'" not in str(error):
                raise
            if loaded_version(client) is None:
                client.function_load(code, replace=True)
            else:
                return False
        return True
    if there >= version_of(code):
        return False
    client.function_load(code, replace=True)
    return True


def loaded_version(client: redis.Redis) -> int | None:
    """The version of the library that the server has; None where it has none."""
    try:
        answer: Any = client.fcall_ro(_VERSION_FUNCTION, 0)
    except redis.ResponseError as error:
        if "Function not found" not in str(error):
            raise
        return None
    return int(answer)
