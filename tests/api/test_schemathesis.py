"""Whatever the API's description allows or forbids: the answers are as it says."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.api.site import Site

OPERATIONS: Final = 15
EXAMPLES: Final = 60

# Everything is checked. What is refused for other reasons than its form is no contradiction: 400 and 402 and 422 are told apart
# by their codes.
CONFIGURATION: Final = """
seed = 4
headers = {{ Authorization = "Bearer {key}" }}

[checks]
enabled = true
max_response_time = 10
[checks.positive_data_acceptance]
# 401: an org's key where telephony's token is wanted; 404: another org's gate; 409: a key used before
expected-statuses = ["2xx", "400", "401", "402", "404", "409", "422"]
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "402", "404", "422"]

[generation]
max-examples = {examples}
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nothing_contradicts_the_description(site: Site, tmp_path: Path) -> None:
    site.world.save_card()
    site.world.adjust(1_000)
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.format(key=site.key(1), examples=EXAMPLES))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", f"--config-file={configuration}"),
            *("run", f"{site.url}/openapi.json", "--phases=examples,coverage,fuzzing", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{OPERATIONS} selected / {OPERATIONS} total" in done.stdout
    assert f"Tested: {OPERATIONS}" in done.stdout
    site.world.assert_sound()
