"""What the project's files say of its pages is there, page and anchor, and no file names one that isn't in the project."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import ROOT, anchors, pages

FOLDERS: Final = ("metering", "workers", "db", "tests", "deploy", "docs", ".ci")
TEXT: Final = {".py", ".md", ".lua", ".sql", ".sh", ".yml", ".toml", ".mako", ""}
CITATION: Final = re.compile(r"(?<![\w/.-])docs/[\w/.-]*\w(?:#[\w-]+)?")
NOT_HERE: Final = re.compile(
    r"CONTRACT\.md|CONTRACT\.diff|billing-api\.txt|PITFALLS\.md|MOVES\.md|(?<!\.\./)\bshared/[\w-]"
)
_CODE: Final = re.compile(r"`((?:tests|db|deploy|workers|metering)/[\w/.-]+(?:::\w+)?)`")
SELF: Final = Path(__file__)


def files() -> Iterator[Path]:
    """The project's own text files."""
    beside = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT | {".example", ".in"}]
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in TEXT)
    for path in sorted({*beside, *below}):
        if path.is_file() and "__pycache__" not in path.parts and path != SELF:
            yield path


TEXTS: Final = {path: path.read_text(encoding="utf-8") for path in files()}
CODE: Final = [
    pytest.param(page, cited, id=f"{page.relative_to(ROOT)}:{cited}")
    for page in pages()
    if page.parent.name != "performance"  # laboratory notes name what was there on their day
    for cited in sorted(set(_CODE.findall(page.read_text(encoding="utf-8"))))
    if not re.search("NAME|NNNN", cited)  # stands for one that is to be written
]
CITED: Final = [
    pytest.param(path, cited, id=f"{path.relative_to(ROOT)}:{cited}")
    for path, text in TEXTS.items()
    for cited in sorted(set(CITATION.findall(text)))
]


@pytest.mark.parametrize(("path", "cited"), CITED)
def test_what_is_cited_is_there(path: Path, cited: str) -> None:
    name, _, anchor = cited.partition("#")
    assert (ROOT / name).exists(), path
    if anchor:
        assert anchor in anchors((ROOT / name).read_text(encoding="utf-8")), path


def test_the_rules_are_cited_where_they_are_carried_out() -> None:
    assert len(CITED) > 60


def test_no_file_names_one_that_is_not_in_the_project() -> None:
    named = {str(path.relative_to(ROOT)): NOT_HERE.findall(text) for path, text in TEXTS.items()}
    assert {path: names for path, names in named.items() if names} == {}


@pytest.mark.parametrize(("page", "cited"), CODE)
def test_code_that_a_page_names_is_there(page: Path, cited: str) -> None:
    path, _, name = cited.partition("::")
    assert (ROOT / path).exists(), page
    if name:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), page
