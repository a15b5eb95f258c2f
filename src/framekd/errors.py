"""The one exception whose message is for the user; without imports, so that the command line starts fast."""


class UserError(ValueError):
    """A mistake of the user in one sentence: which file or key, what was expected, what to do."""
