"""Settings that hold a secret may lie in a file, which their variable with `_FILE` names (docs/reference/settings.md).

A variable's value can be read by whoever may look at a container or a process; a file has rights of its own.
"""

import os
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

SUFFIX: Final = "_FILE"
MAX_BYTES: Final = 65_536


class SecretFileError(Exception):
    """A file that a setting names is bad. The text names the variable and says what to do, and quotes nothing of the file."""


class SecretFiles(PydanticBaseSettingsSource):
    """Reads each of `variables`, names of the environment by what pydantic calls the field, from the file that it names."""

    def __init__(self, settings_class: type[BaseSettings], variables: dict[str, str]) -> None:
        super().__init__(settings_class)
        self._variables = variables

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - pydantic asks for it
        """Nothing: all are read at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """What the files hold. Raises SecretFileError."""
        read = {key: read_secret(variable) for key, variable in self._variables.items()}
        return {key: text for key, text in read.items() if text}


def read_secret(variable: str) -> str | None:
    """What is in the file that `variable` with `_FILE` names, less the end of its line; None where that names none.

    Raises SecretFileError where the file can't be read, or the variable itself is set as well.
    """
    path = os.environ.get(f"{variable}{SUFFIX}")
    if not path:
        return None
    if os.environ.get(variable):
        raise SecretFileError(f"{variable} and {variable}{SUFFIX} are both set: unset one of them.")
    try:
        with Path(path).open("rb") as file:
            held = file.read(MAX_BYTES + 1)
        text = held.decode().rstrip("\r\n")
    except OSError as error:
        raise SecretFileError(
            f"{variable}{SUFFIX} names {path}, which can't be read ({error.strerror}): it must be a file that this process's user"
            " may read."
        ) from error
    except UnicodeDecodeError:
        raise SecretFileError(f"{variable}{SUFFIX} names {path}, which is no text in UTF-8.") from None
    if len(held) > MAX_BYTES or "\n" in text:
        raise SecretFileError(
            f"{variable}{SUFFIX} names {path}, which holds more than one line: it must hold the value alone."
        )
    return text
