"""The shell completes `metering`: tried in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

BASH = shutil.which("bash")
ASK = """
eval "$(metering --show-completion bash)"
complete -p metering >/dev/null
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _metering_completion "$1" "${!#}"; echo "${COMPREPLY[@]}"; }
ask metering sta
ask metering org ""
ask metering push --j
"""


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_commands_and_options(offline: Cli) -> None:
    assert BASH is not None
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [BASH, "--norc", "-c", ASK],
        env={**offline.environment(), "PATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    status, org, push = done.stdout.splitlines()
    assert status == "status"
    assert {"create", "list"} <= set(org.split())
    assert push == "--json"
