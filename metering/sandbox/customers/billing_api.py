"""The billing API as a customer's program uses it: asked again where the answer didn't come, or says that it may be."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

import msgspec

from metering.runtime.backoff import backoff_s

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 20.0
"""Shorter than the API may take: a customer who has had enough asks again, and must find what he asked for before."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered."""

    status: int
    body: Mapping[str, Any]

    @property
    def final(self) -> bool:
        """Whether asking again is of no use: 429 and whatever is the server's fault passes."""
        return self.status < HTTPStatus.INTERNAL_SERVER_ERROR and self.status != HTTPStatus.TOO_MANY_REQUESTS


class CustomerApi:
    """One org's use of the API, at a port of this machine unless another `host` is said."""

    def __init__(self, port: int, api_key: str, host: str = HOST) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key

    def ask(
        self, verb: str, path: str, body: Mapping[str, object] | None = None, *, key: str | None = None
    ) -> Answer | None:
        """Ask once; None where no answer came, whatever became of the request."""
        headers = {"Authorization": f"Bearer {self._api_key}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        connection = HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(verb, path, None if body is None else msgspec.json.encode(body), headers)
            answer = connection.getresponse()
            return Answer(answer.status, msgspec.json.decode(answer.read(), type=dict[str, Any]))
        except (OSError, HTTPException, msgspec.DecodeError):
            return None
        finally:
            connection.close()

    def ask_until_answered(
        self,
        verb: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        key: str | None = None,
        limit_s: float,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer | None:
        """Ask until there is a final answer; None where none came within `limit_s`, or by the time that `stop` is true."""
        deadline_s = time.monotonic() + limit_s
        for wait_s in backoff_s(longest_s=2.0):
            answer = self.ask(verb, path, body, key=key)
            if answer is not None and answer.final:
                return answer
            if stop() or time.monotonic() > deadline_s:
                return None
            time.sleep(wait_s)
        return None
