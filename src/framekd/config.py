"""Configuration (being written)."""


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: which file or key, what was expected, what to do."""
