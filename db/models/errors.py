"""What every room of the database may say of a row that isn't there."""


class OrgError(Exception):
    """An org that can't be made or isn't there. The text names what is wrong, and the remedy."""


class UnknownOrgError(OrgError):
    """An org that isn't there, in words for whoever named it on a command line."""

    def __init__(self, org_id: int) -> None:
        super().__init__(f"ORG: there is no org {org_id}; `metering org find TEXT` finds one by its name.")
