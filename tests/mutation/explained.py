"""Mutants that may live: explained.toml says why each of them changes nothing that anybody could see."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.mutation.mutants import Mutant

PATH: Final = Path(__file__).with_name("explained.toml")


class Explained:
    """What explained.toml holds."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for an entry without a reason, and for a change that is named twice."""
        self._why: dict[tuple[str, str], str] = {}
        for entry in tomllib.loads(text).get("explained", []):
            if not entry["why"].strip():
                raise ValueError(f"explained.toml must say why, of {entry['function']}")
            for change in entry["changes"]:
                if (entry["function"], change) in self._why:
                    raise ValueError(f"explained.toml names twice: {entry['function']}: {change}")
                self._why[entry["function"], change] = entry["why"]

    def why(self, mutant: Mutant) -> str | None:
        """Why a mutant may live; None where nobody has said."""
        return self._why.get((mutant.function, mutant.change())) if self._names(mutant.function) else None

    def _names(self, function: str) -> bool:
        return any(function == named for named, _ in self._why)

    def unused(self, explained: Iterable[tuple[str, str]], run: Mapping[str, bool]) -> list[tuple[str, str]]:
        """Entries of functions that were run (`run` says of each file whether) for which there is no such survivor any more."""
        used = set(explained)
        return [each for each in self._why if each not in used and run.get(each[0].partition("::")[0], False)]


def read_explained() -> Explained:
    """As it is kept beside this file."""
    return Explained(PATH.read_text(encoding="utf-8"))
