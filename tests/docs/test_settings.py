"""The settings' page names each variable that the program and the compose file read, with its default, and nothing else."""

import re
from typing import Final

from metering.runtime.settings import Settings
from tests.deploy.composed import compose_file, references
from tests.docs.pages import page, rows, section

PAGE: Final = page("reference/settings.md")
OWN: Final = {row[0].strip("`"): row[1] for row in rows(PAGE.split("\n## ")[0])}
OF_COMPOSE: Final = {row[0].strip("`"): row[1] for row in rows(section(PAGE, "Of the compose file"))}


def test_every_setting_is_in_the_table_and_no_other() -> None:
    names = {name.upper() for name in Settings.model_fields}
    assert OWN.keys() == {name if name.startswith("STRIPE_") else f"METERING_{name}" for name in names}


def test_defaults_are_the_programs_own() -> None:
    for name, field in Settings.model_fields.items():
        variable = name.upper() if name.startswith("stripe_") else f"METERING_{name.upper()}"
        if field.default is None:
            assert not OWN[variable].startswith("`"), variable
        else:
            assert OWN[variable] == f"`{field.default}`", variable


def test_every_variable_of_the_compose_file_is_in_the_table_with_its_default() -> None:
    known = {}
    for name, operator, operand in references(compose_file()):
        known[name] = "required" if operator == ":?" else f"`{operand}`" if operand else "unset"
    assert known == OF_COMPOSE


def test_other_pages_name_only_settings_that_there_are() -> None:
    for name in re.findall(r"`(METERING_\w+)`", "".join(page(each) for each in _NAMING)):
        assert name in OWN, name


_NAMING: Final = (
    "explanation/guarantees.md",
    "how-to/operations.md",
    "reference/commands.md",
    "reference/http-api.md",
    "reference/metrics.md",
)
