"""The accounts' statements: their columns come in the order in which they are taken."""

from dataclasses import fields

import pytest

from db.accounts.billing import BillingAccount
from db.accounts.statements import BILLING_OF_KEY, BILLING_OF_ORG
from db.postgres.engine import driver_connection, transaction
from tests.conftest import Database


@pytest.mark.parametrize(("statement", "value"), [(BILLING_OF_ORG, 1), (BILLING_OF_KEY, b"")])
def test_columns_are_the_fields_of_a_billing_account(
    database: Database, statement: str, value: int | bytes
) -> None:
    with transaction(database.engine) as connection:
        described = driver_connection(connection).execute(statement.encode(), [value]).description
    assert described is not None
    assert [column.name for column in described] == [field.name for field in fields(BillingAccount)]
