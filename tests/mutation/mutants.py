"""Mutants as mutmut makes and keeps them below `mutants/`: where each is, what it changes, how it fared."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mutmut.__main__ import create_mutants
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import (
    copy_also_copy_files,
    copy_src_dir,
    setup_source_paths,
    walk_mutatable_files,
)
from mutmut.utils.format_utils import orig_function_and_class_names_from_key


class Fate(StrEnum):
    """How a mutant fared."""

    NOT_RUN = "not run"
    KILLED = "killed"
    KILLED_BY_TYPES = "killed by types"
    """mypy refuses it, as `make check` would."""
    TIMED_OUT = "timed out"
    """It was stopped because its tests didn't come to an end: killed."""
    SURVIVED = "survived"
    UNREACHED = "unreached"
    """No test calls its function."""

    @property
    def dead(self) -> bool:
        """Whether something noticed it."""
        return self in {Fate.KILLED, Fate.KILLED_BY_TYPES, Fate.TIMED_OUT}


_FATES = {
    "not checked": Fate.NOT_RUN,
    "check was interrupted by user": Fate.NOT_RUN,
    "killed": Fate.KILLED,
    "caught by type check": Fate.KILLED_BY_TYPES,
    "timeout": Fate.TIMED_OUT,
    "segfault": Fate.TIMED_OUT,
    "suspicious": Fate.KILLED,
    "survived": Fate.SURVIVED,
    "no tests": Fate.UNREACHED,
}


@dataclass(frozen=True)
class Mutant:
    """One small change to a function."""

    name: str
    """As mutmut knows it."""
    path: Path
    fate: Fate

    @property
    def function(self) -> str:
        """The function that it changes, as `file::Class.function`."""
        function, class_name = orig_function_and_class_names_from_key(self.name)
        return f"{self.path}::{f'{class_name}.' if class_name else ''}{function}"

    def change(self) -> str:
        """What it changes, on one line: the lines before, `=>`, the lines after."""
        lines = get_diff_for_mutant(self.name, path=self.path).splitlines()[2:]
        before, after = (
            " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
        )
        return f"{before} => {after}"


def make_mutants(processes: int) -> None:
    """Write the mutants of all files that may be mutated; the fates of those whose function hasn't changed are kept."""
    Path("mutants").mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(processes)


def all_mutants() -> Iterator[Mutant]:
    """The mutants that were made, file by file."""
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        for name, exit_code in data.exit_code_by_key.items():
            yield Mutant(name, path, _FATES[status_by_exit_code[exit_code]])


def keep_exit_code(mutant: Mutant, exit_code: int) -> None:
    """Write down how a mutant fared, at once: whoever is stopped goes on from there."""
    data = SourceFileMutationData(path=mutant.path)
    data.load()
    data.exit_code_by_key[mutant.name] = exit_code
    data.save()


def use_our_programs(folder: Path) -> None:
    """Let programs that are started by their name alone, such as mypy, be those of a virtual environment."""
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
