"""What the trials' commands are run with: as every command's tests do it."""

from tests.cli.conftest import no_settings, offline

__all__ = ["no_settings", "offline"]
