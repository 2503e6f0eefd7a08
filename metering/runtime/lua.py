"""Lua for Redis: each script in a `.lua` file beside the Python that runs it, put together from that and its parts."""

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

FOLDER: Final = "lua"
"""Where a package has its scripts."""

_INCLUDE: Final = re.compile(r"--@include (\w+\.lua)")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a script, and where it comes from."""

    file: str
    """Its name in the package's folder."""
    number: int
    text: str


def lua_script(package: str, file: str) -> str:
    """The script `file` of `package`, put together. Raises FileNotFoundError for a file, or a part, that isn't there."""
    return "".join(f"{line.text}\n" for line in lua_lines(package, file))


def lua_lines(package: str, file: str) -> list[Line]:
    """The lines of that script: each line `--@include part.lua` gives way to that file, the first time that it is included.

    A part is text, so what it declares as local is the script's too: a script's parts must not declare the same name.
    """
    return _lines(package, file, set())


def _lines(package: str, file: str, included: set[str]) -> list[Line]:
    included.add(file)
    lines: list[Line] = []
    text = (files(package) / FOLDER / file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if (include := _INCLUDE.fullmatch(line)) is None:
            lines.append(Line(file, number, line))
        elif include[1] not in included:
            lines += _lines(package, include[1], included)
    return lines
