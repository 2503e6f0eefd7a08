"""One run of `metering chaos`, from a directory of its own to the exit status."""

import shutil
import tempfile
import time
from pathlib import Path

from metering.console.errors import CommandError
from metering.console.output import shown_path, warn
from metering.console.stopping import stop_on_signals
from metering.runtime.settings import Settings, read_settings
from metering.trials.chaos.customers import SetUpError
from metering.trials.chaos.report import report, report_json
from metering.trials.chaos.run import Plan, run_chaos
from metering.trials.chaos.world import LOG, world


def run(plan: Plan, *, orgs: int, as_json: bool) -> int:
    """Run chaos and give the exit status. Raises CommandError where it can't be run."""
    settings = read_settings()
    _refuse_other_servers(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    data_dir = Path(tempfile.mkdtemp(prefix="chaos-", dir=settings.data_dir))
    began_s = time.monotonic()
    warn(f"Everything runs in {shown_path(data_dir)}.")
    with stop_on_signals() as stop, world(data_dir, orgs, warn) as attacked:
        try:
            result = run_chaos(plan, attacked, warn, stop)
        except SetUpError as error:
            raise CommandError(f"The run could not begin: {error}; {data_dir / LOG} tells why.") from error
    took_s = time.monotonic() - began_s
    (report_json if as_json else report)(plan, result, took_s)
    if not result.verdict.exact:
        warn(f"The data and the roles' log are kept in {shown_path(data_dir)}.")
        return 1
    shutil.rmtree(data_dir)
    return 0


def _refuse_other_servers(settings: Settings) -> None:
    named = (
        settings.database_url,
        settings.redis_url,
        settings.stripe_api_key,
        settings.stripe_webhook_secret,
        settings.metrics_port or None,
    )
    if any(each is not None for each in named):
        raise CommandError(
            "Chaos destroys what it works on, so it runs on servers of its own only: unset METERING_DATABASE_URL,"
            " METERING_REDIS_URL, METERING_METRICS_PORT, STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET."
        )
