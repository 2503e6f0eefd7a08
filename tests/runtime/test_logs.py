"""What a role's logs look like: every line of them is JSON, whoever wrote it."""

import json
import subprocess
import sys
from typing import Any

SCRIPT = """
import logging
import structlog
from metering.runtime.logs import configure_logs

configure_logs()
configure_logs()  # as often as one likes
structlog.get_logger().info("ours", number=1)
logging.getLogger("dramatiq.worker").info("too quiet")
logging.getLogger("dramatiq.worker").warning("Consumer %s is restarted", "jobs")
secret = "s3cr3t"
try:
    raise ValueError("two\\nlines")
except ValueError:
    logging.getLogger("dramatiq.worker").exception("Failed to process message")
    structlog.get_logger().exception("ours failed")
"""


def logged() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert "s3cr3t" not in done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_lines_of_libraries_are_json_like_ours() -> None:
    ours, restarted, failed, ours_failed = logged()
    assert (ours["event"], ours["level"], ours["number"]) == ("ours", "info", 1)
    assert restarted["timestamp"] > ours["timestamp"]
    del restarted["timestamp"]
    assert restarted == {
        "event": "Consumer jobs is restarted",
        "level": "warning",
        "logger": "dramatiq.worker",
    }
    for line in (failed, ours_failed):
        assert line["level"] == "error"
        assert (line["exception"][0]["exc_type"], line["exception"][0]["exc_value"]) == (
            "ValueError",
            "two\nlines",
        )
