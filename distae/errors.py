class UserError(Exception):
    """A mistake of the user's, told in one or two lines that name the key and the valid values. Exit code 2."""

    heard = False
    """Whether the other ranks know of it."""


class RemoteUserError(UserError):
    """A mistake that another rank has found: its rank and host are in front."""


class TrainingError(Exception):
    """Training cannot go on for a reason that no traceback explains better. Exit code 1."""
