"""What people and tools hand over instead of one JSON object per line, and what to do about it."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import msgspec

UTF_8_MARK: Final = b"\xef\xbb\xbf"
"""The byte order mark that Windows tools write in front of UTF-8."""
_CSV_SEPARATORS: Final = (b",", b";", b"\t")
_MIN_CSV_FIELDS: Final = 3

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS: Final = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_PACKED: Final = {
    b"PK\x03\x04": ("a zip archive", "unzip -p"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
}


def without_mark(line: bytes) -> bytes:
    """A line without the byte order mark in front of it: each file has one, also where files were put together."""
    return line.removeprefix(UTF_8_MARK)


def is_object(line: bytes) -> bool:
    """Whether a line holds one JSON object."""
    return _members(line) is not None


def other_shape(line: bytes, label: str, *, path: str | None, packed: bool) -> str | None:
    """What the input is instead, told by its first line that isn't blank, and what to do; None where that may be an event.

    `label` is what the input is called; `path` its file, quoted for a shell, where it has one; `packed` whether that is gzip.
    A wrong guess would end a live pipe, so only what can be no event is told; any other line goes to the meters.
    """

    def piped(program: str) -> str:
        if path is None:
            return f"`{program} | metering push -`"
        return (
            f"`gzip -dc {path} | {program} | metering push -`"
            if packed
            else f"`{program} < {path} | metering push -`"
        )

    for begin, (what, unpack) in _PACKED.items():
        if line.startswith(begin):
            return f"{label} is {what}: unpack it, {piped(unpack)}"
    encoding = _wide_encoding(line)
    if encoding is not None:
        windows = (
            f"by `Get-Content {path or 'FILE'} | Set-Content -Encoding utf8 NEW_FILE` in PowerShell, or "
        )
        by = "" if packed else windows
        return f"{label} is {encoding}, and events are UTF-8: save it as UTF-8, {by}by {piped(f'iconv -f {encoding} -t UTF-8')}"
    found = _other_text(line.strip())
    if found is None:
        return None
    what, program = found
    remedy = piped(program) if program else "docs/reference/call-events.md tells its fields"
    return f"{label} {what}, and push takes one JSON object per line: {remedy}"


def _wide_encoding(line: bytes) -> str | None:
    for mark, encoding in _MARKS.items():
        if line.startswith(mark):
            return encoding
    return "UTF-16" if line[:2].count(b"\0") == 1 else None  # an ASCII character takes two bytes


def _other_text(line: bytes) -> tuple[str, str] | None:
    """What a text is, and the program that makes JSON lines of it; empty where none does."""
    if line.startswith(b"["):
        return "holds a JSON array", "jq -c '.[]'"
    if line == b"{":
        return "holds JSON objects over several lines", "jq -c ."
    if line.startswith(b"{"):
        return _other_object(line)
    fields = max(line.count(separator) for separator in _CSV_SEPARATORS) + 1
    if fields >= _MIN_CSV_FIELDS and b"{" not in line and b"}" not in line:
        return "looks like CSV", ""
    return None


def _other_object(line: bytes) -> tuple[str, str] | None:
    if line.endswith(b","):
        return "has a comma after its first object", r"sed 's/,[[:space:]]*$//'"
    if b"}\r{" in line:
        return "ends its lines with carriage returns alone", r"tr '\r' '\n'"
    events = (_members(line) or {}).get("events")
    if events is not None and bytes(events).startswith(b"["):
        return "holds an object with a list of events", "jq -c '.events[]'"
    return None


def _members(line: bytes) -> "dict[str, msgspec.Raw] | None":
    import msgspec

    try:
        return msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
