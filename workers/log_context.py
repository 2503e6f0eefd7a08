"""What a message carries so that the lines of its job are found with those of the request that led to it."""

from typing import Any, Final

import dramatiq
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

REQUEST_ID: Final = "request_id"
"""In the log's context, and among a message's options. A jobs process of an earlier version passes over it."""


def message_options() -> dict[str, Any]:
    """The options of a message that is made now."""
    request_id = get_contextvars().get(REQUEST_ID)
    return {} if request_id is None else {REQUEST_ID: request_id}


class LogContext(dramatiq.Middleware):
    """Lets all lines that are logged while a message is worked on bear its request's id."""

    def before_process_message(self, _broker: dramatiq.Broker, message: "dramatiq.MessageProxy") -> None:
        """Begin."""
        clear_contextvars()
        request_id = message.options.get(REQUEST_ID)
        if isinstance(request_id, str):
            bind_contextvars(**{REQUEST_ID: request_id})

    def after_process_message(
        self,
        _broker: dramatiq.Broker,
        _message: "dramatiq.MessageProxy",
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Forget it: the thread goes on with another message."""
        del result, exception
        clear_contextvars()
