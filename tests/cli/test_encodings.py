"""Whatever encoding a terminal has, commands say what they have to say."""

import json
import os
import subprocess
from typing import Final

import pytest

from tests.cli.conftest import PROGRAM, Cli

NAME: Final = "Жук & 株式会社 Zoë"
TERMINALS: Final[dict[str, dict[str, str]]] = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "windows": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}
ENCODINGS: Final = {"latin-1": "latin-1", "windows": "cp1252", "utf-8": "utf-8"}


def run(cli: Cli, terminal: str, *arguments: str) -> str:
    """What a command says on standard output in a terminal of that encoding."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("LC_")},
            **cli.settings,
            **TERMINALS[terminal],
        },
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(ENCODINGS.get(terminal, "ascii"))


@pytest.mark.long
@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_name_in_any_script_is_shown(cli: Cli, terminal: str) -> None:
    cli.run("org", "create", NAME)
    listed = run(cli, terminal, "org", "list")
    if terminal == "utf-8":
        assert NAME in listed
    else:
        e = "ë" if terminal in ENCODINGS else r"\xeb"
        assert rf"\u0416\u0443\u043a & \u682a\u5f0f\u4f1a\u793e Zo{e}" in listed
        rows = [line for line in listed.splitlines() if "|" in line]
        assert len({len(line) for line in rows}) == 1, "what is escaped is as wide as its column"
    as_json = run(cli, terminal, "org", "list", "--json")
    assert as_json.isascii()
    assert json.loads(as_json)["results"][0]["name"] == NAME


@pytest.mark.long
def test_every_kind_of_output_survives(cli: Cli) -> None:
    cli.run("org", "create", NAME)
    cli.run("key", "create", "1")
    cli.run("tier", "set", "bolt", "0.08")
    said = run(cli, "latin-1", "adjust", "1", "--cents", "500", "--reason", "Zoë", "--key", NAME)
    assert said
    for command in ("key list 1", "tier list", "status", "audit", "tier set --help"):
        assert run(cli, "latin-1", *command.split())


def test_a_sentence_on_standard_error_survives_too(cli: Cli) -> None:
    done = subprocess.run(
        [*PROGRAM, "push", "/Жук.jsonl"],
        env={**os.environ, **cli.settings, "PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "1"},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(rb"FILE: /\u0416\u0443\u043a.jsonl can't be read")
