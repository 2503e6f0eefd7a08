"""Where a demo prints to."""

from pathlib import Path

from rich.console import Console


def shown_path(path: Path) -> str:
    """A path as short as it can be written from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def is_live(out: Console) -> bool:
    """Whether what was printed can be changed again. (rich's `is_terminal` is also true for a file under FORCE_COLOR.)"""
    return out.file.isatty() and not out.is_dumb_terminal


def say_line(out: Console, text: str) -> None:
    """Print text as it is; whole lines where it isn't a terminal."""
    out.print(text, markup=False, soft_wrap=not is_live(out))
