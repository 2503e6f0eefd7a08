"""What `with` closes."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class ClosedByWith(ABC):
    """Something that is closed where a `with` of it ends, in whatever way."""

    @abstractmethod
    def close(self) -> None:
        """End it; once more does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
