"""`metering bench` measures what it says, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_bench_measures_and_leaves_nothing_behind(data_dir: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "metering", "bench", "--json", "--jobs"),
            *("--events", "3000", "--orgs", "20", "--repeat", "1"),
        ],
        env=os.environ | {"METERING_DATA_DIR": str(data_dir)},
        capture_output=True,
        check=True,
        timeout=110,
    )
    result = json.loads(done.stdout)
    assert result["events_per_second"] > result["baselines"]["one_transaction_per_call_per_second"] > 0
    assert result["ratios"]["to_raw_copy"] == pytest.approx(
        result["events_per_second"] / result["baselines"]["raw_copy_rows_per_second"], rel=0.05
    )
    assert result["sweep_seconds"] > 0
    assert list(data_dir.iterdir()) == []
