"""Where a demo prints to."""

from rich.console import Console


def is_live(out: Console) -> bool:
    """Whether what was printed can be changed again. (rich's `is_terminal` is also true for a file under FORCE_COLOR.)"""
    return out.file.isatty() and not out.is_dumb_terminal


def say_line(out: Console, text: str) -> None:
    """Print text as it is; whole lines where it isn't a terminal."""
    out.print(text, markup=False, soft_wrap=not is_live(out))
