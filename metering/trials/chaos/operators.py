"""Operators: they give the product's own commands, each a process of its own, past the links."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

COMMAND_LIMIT_S: Final = 120.0
_OURS: Final = ("METERING_", "STRIPE_")


class CommandFailedError(Exception):
    """A command that did not do what it was given for. The text is what it said."""


class Operators:
    """Who looks after the installation. `settings` are the commands' environment."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        around = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self._environment = around | dict(settings)

    def book(self, org_id: int, payment_intent: str) -> None:
        """Credit an org with a payment that was made in Stripe's dashboard; it may be credited already."""
        self._run("payment", "book", str(org_id), payment_intent, "--reason", "paid by hand")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "metering", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT_S,
        )
        if done.returncode:
            raise CommandFailedError(f"metering {' '.join(arguments)}: {done.stderr.strip()}")
