"""What a demo proposes to try next: commands that work where it was run."""

import io
import re

import pytest
import typer.main
from rich.console import Console

from metering.cli.main import app
from metering.trials.demo.verdict import suggest


def suggested(*, beside: bool) -> str:
    out = Console(file=io.StringIO())
    suggest(out, "gold", beside=beside)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_beside_an_installation_nothing_is_to_be_started() -> None:
    text = suggested(beside=True)
    commands = re.findall(r"^  (.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    assert all(each.startswith("docker compose --env-file demo.env run --rm operator ") for each in commands)
    assert not re.search(r"\bup\b", text)


def test_on_embedded_servers_they_are_started_first() -> None:
    first, *rest = re.findall(r"^  (.*)$", suggested(beside=False), re.MULTILINE)
    assert first.endswith(" up")
    assert len(rest) == 6


@pytest.mark.parametrize("beside", [True, False])
def test_each_is_a_command_that_there_is(beside: bool) -> None:
    commands = re.findall(r"^  .*?(?:operator|metering) (\w.*)$", suggested(beside=beside), re.MULTILINE)
    assert "tier set gold 0.20" in commands
    for words in map(str.split, commands):
        found = typer.main.get_command(app)
        for word in words[: 1 if words[0] in {"up", "audit"} else 2]:
            found = found.commands[word]  # type: ignore[attr-defined]  # a group's
