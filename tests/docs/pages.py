"""The project's pages as text: their sections, tables, headings and links."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
FRONT: Final = tuple(sorted(ROOT.glob("*.md")))
"""README and what else stands beside the code: read on a forge, not built."""

_CODE: Final = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Every page, built or not."""
    return [*FRONT, *sorted(DOCS.rglob("*.md"))]


def page(name: str) -> str:
    """The page below docs/ as it stands there."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.split(rf"^#+ {re.escape(title)}\n", text, maxsplit=1, flags=re.MULTILINE)
    assert len(found) == 2, title
    return re.split(r"^#+ ", found[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in `text`, heads left out."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if re.fullmatch(r"\|[ :|-]+\|", line):
            found.pop()  # what stood above this line was a head
        elif line.startswith("| "):
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def first_column(text: str) -> set[str]:
    """What stands in backquotes in the first column of the table in `text`."""
    return {name for row in rows(text) for name in re.findall(r"`(\w+)`", row[0])}


def without_code(text: str) -> str:
    """The page without its code blocks."""
    return _CODE.sub("", text)


def headings(text: str) -> list[str]:
    """The page's headings, as they stand there."""
    return re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)


def anchor(heading: str) -> str:
    """A heading's anchor, where a forge and the builder of the pages make the same of it."""
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    on_a_forge, built = plain.replace(" ", "-"), re.sub(r"[-\s]+", "-", plain)
    return built if built == on_a_forge else f"{built} or {on_a_forge}"


def anchors(text: str) -> set[str]:
    """Every anchor of a page."""
    return {anchor(heading) for heading in headings(text)}


def links(text: str) -> Iterator[tuple[str, str]]:
    """The links of a page to files and anchors, pictures too; not those to other places."""
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", without_code(text))):
        if not re.match(r"[a-z]+:", target):
            path, _, name = target.partition("#")
            yield path, name
