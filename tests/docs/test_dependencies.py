"""The dependencies' page names each package that the project asks for, and no other."""

import re
import tomllib
from typing import Final

from tests.docs.pages import ROOT, page, rows

EXTRAS: Final = {"psycopg-pool"}
"""Asked for as extras of another package."""


def test_every_dependency_has_its_line() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    for_pages = (ROOT / "requirements-docs.in").read_text(encoding="utf-8").splitlines()
    asked = [
        *project["dependencies"],
        *(each for some in project["optional-dependencies"].values() for each in some),
    ]
    asked += [line for line in for_pages if not line.startswith("#")]
    names = {re.split(r"[\[><=; ]", each, maxsplit=1)[0] for each in asked} - {project["name"]}
    told = {name for row in rows(page("explanation/dependencies.md")) for name in row[0].split(", ")}
    assert told - EXTRAS == names
