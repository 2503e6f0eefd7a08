"""What every room of the database may say of a row that isn't there."""


class OrgError(Exception):
    """An org that can't be made or isn't there. The text names what is wrong, and the remedy."""
