"""Structured logs on standard error: JSON lines, or coloured text where a person looks on."""

import logging
import sys
from typing import Final, TextIO

import structlog

_OTHERS: Final = "metering: lines of libraries"
"""The name of the handler that we give the standard library's root logger."""


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that time: a test may put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.stream = sys.stderr
        super().emit(record)


LEVELS: Final = ("debug", "info", "warning", "error")
"""What METERING_LOG_LEVEL may be, each with less than the one before it."""


def configure_logs(level: str = "info") -> None:
    """Set up the logs of this process, from `level` on: structlog's, and those that libraries write through `logging`, of which
    nothing below a warning is told.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        rendering: list[structlog.typing.Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        # Without the frames' variables: they may be secrets.
        as_values = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        rendering = [
            structlog.processors.ExceptionRenderer(as_values),
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    _take_in_others(shared, rendering, max(number, logging.WARNING))


def _take_in_others(
    shared: list[structlog.typing.Processor],
    rendering: list[structlog.typing.Processor],
    level: int,
) -> None:
    """Let the lines of `logging` look like ours: whoever reads the logs as JSON must never meet another kind."""
    handler = _StandardError()
    handler.set_name(_OTHERS)
    handler.setLevel(level)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    for before in [each for each in root.handlers if each.get_name() == _OTHERS]:
        root.removeHandler(before)
    root.addHandler(handler)
