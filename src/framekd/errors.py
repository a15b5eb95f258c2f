"""The one exception whose message is for the user, and names in messages; without imports, for a fast start."""


class UserError(ValueError):
    """A mistake of the user in one sentence: which file or key, what was expected, what to do."""


def printable(name: str) -> str:
    """A name on one line: as it is, or quoted if it holds line breaks and other characters that cannot be printed."""
    return name if name.isprintable() else ascii(name)
