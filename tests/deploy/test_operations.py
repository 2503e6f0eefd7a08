"""The operators' pages name only services, commands and events that there are."""

import re
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest
import typer.main

from metering.cli.main import app
from metering.payments.events import HANDLED
from tests.deploy.composed import compose_file
from tests.docs.pages import first_column, page

PAGES: Final = (
    "how-to/operations.md",
    "how-to/stripe.md",
    "how-to/upgrade.md",
    "how-to/backup-and-restore.md",
    "tutorials/first-compose.md",
)
SERVICES: Final[dict[str, Any]] = compose_file()["services"]


def test_every_service_is_in_the_table() -> None:
    assert set(SERVICES) <= first_column(page("how-to/operations.md"))


def test_every_event_that_is_handled_is_asked_for() -> None:
    kinds = re.findall(r"`([a-z_.]+(?:\.\*|\.[a-z_]+))`", page("how-to/stripe.md").split("## Change")[0])
    for handled in HANDLED:
        assert any(fnmatchcase(handled, kind) for kind in kinds), handled


@pytest.mark.parametrize("name", PAGES)
def test_every_command_exists(name: str) -> None:
    root: Any = typer.main.get_command(app)
    lines = re.findall(
        r"docker compose (?:exec|run --rm)(?: -T)? (\w+)(?: metering)?(?: (.*?))?[`\n]", page(name)
    )
    assert lines
    for service, words in lines:
        assert service in SERVICES
        if service in {"postgres", "valkey"}:
            continue
        command = root
        for word in words.split():
            if hasattr(command, "commands"):
                command = command.commands[word]
            elif word.startswith("--"):
                assert word in {option for each in command.params for option in each.opts}, words
