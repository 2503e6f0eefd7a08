"""The commands' page names each command, argument and option with its default, and nothing else."""

import re
from collections.abc import Iterator
from typing import Any, Final

import typer.main

from metering.cli.main import app
from tests.docs.pages import page, rows, section

PAGE: Final = page("reference/commands.md")
TITLES: Final[list[str]] = re.findall(r"^### (`metering .*`)$", PAGE, re.MULTILINE)


def commands(command: Any, words: tuple[str, ...] = ("metering",)) -> Iterator[tuple[str, Any]]:
    """Every command that help shows, by its words."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            if not inner.hidden:
                yield from commands(inner, (*words, name))
    else:
        yield " ".join(words), command


COMMANDS: Final = dict(commands(typer.main.get_command(app)))


def title_of(words: str) -> str:
    """The heading of the command's section."""
    (title,) = (each for each in TITLES if re.split(r" (?=[A-Z[])", each.strip("`"), maxsplit=1)[0] == words)
    return title


def test_every_command_is_there_and_no_other() -> None:
    assert sorted(re.split(r" (?=[A-Z[])", each.strip("`"), maxsplit=1)[0] for each in TITLES) == sorted(
        COMMANDS
    )


def test_every_argument_is_in_the_heading() -> None:
    for words, command in COMMANDS.items():
        arguments = [
            each for each in command.params if each.param_type_name == "argument" and not each.hidden
        ]
        named = re.findall(r"[A-Z][A-Z_]+", title_of(words))
        assert named == [each.name.upper() for each in arguments], words


def test_every_option_is_in_the_table_with_its_default() -> None:
    for words, command in COMMANDS.items():
        options = {
            each.opts[0]: each
            for each in command.params
            if each.param_type_name == "option" and not each.hidden and each.name != "help"
        }
        told = {row[0].strip("`"): row[1] for row in rows(section(PAGE, title_of(words)))}
        assert told.keys() == options.keys(), words
        for name, option in options.items():
            if option.required:
                assert told[name] == "required", (words, name)
            elif option.default is False:
                assert told[name] == "off", (words, name)
            elif option.default is not None:
                assert (
                    told[name] == f"{option.default:g}"
                    if isinstance(option.default, float)
                    else str(option.default)
                ), (
                    words,
                    name,
                )
