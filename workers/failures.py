"""How work ends early, and how an error is put into a line."""


class StoppedError(Exception):
    """The meter was told to stop while it waited for something. What it held stays pending."""


def sentence(error: Exception) -> str:
    """An error in a line fit for a log and for a column of text."""
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}".replace("\0", " ")[:500]
