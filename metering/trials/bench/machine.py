"""What the numbers were measured on."""

import os
import platform
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from db.postgres.engine import transaction


def machine_facts(engine: Engine) -> dict[str, Any]:
    """The machine, and what decides about speed on it. `load_1m` says whether it had other things to do."""
    with transaction(engine) as connection:
        postgres = connection.execute(text("SHOW server_version")).scalar_one()
    return {
        "cpus": os.cpu_count(),
        "processor": _named_in(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": postgres,
    }


def _named_in(path: Path, name: str) -> str | None:
    """The first value of a name in one of Linux's lists of `name : value`."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
