"""Every Redis key that this package reads or writes."""

from typing import Final

STREAM: Final = "calls:completed"
EVENT_FIELD: Final = "event"
GATE_PREFIX: Final = "gate:"
HOLDS_PREFIX: Final = "holds:"
HOLD_ENDS_SUFFIX: Final = ":ends"
SIGNALS_LOG: Final = "balance:signals:log"
SIGNAL_FIELD: Final = "signal"
