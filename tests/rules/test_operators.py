"""What an operator's role lets him do."""

import pytest

from metering.rules.operators import NOT_OF_OPERATORS, ROLE_NEEDED, OperatorRole
from tests.docs.test_commands import COMMANDS

READ, SUPPORT, MONEY = OperatorRole


@pytest.mark.parametrize(
    ("role", "needed", "may"),
    [
        (READ, READ, True),
        (READ, SUPPORT, False),
        (READ, MONEY, False),
        (SUPPORT, READ, True),
        (SUPPORT, SUPPORT, True),
        (SUPPORT, MONEY, False),
        (MONEY, READ, True),
        (MONEY, SUPPORT, True),
        (MONEY, MONEY, True),
    ],
)
def test_a_role_may_do_what_those_before_it_may(role: OperatorRole, needed: OperatorRole, may: bool) -> None:
    assert role.may(needed) is may


def test_every_command_says_which_role_it_needs() -> None:
    named = {words.removeprefix("metering ") for words in COMMANDS} | {"stripe-sandbox"}
    assert set(ROLE_NEEDED) | NOT_OF_OPERATORS == named
    assert not set(ROLE_NEEDED) & NOT_OF_OPERATORS
