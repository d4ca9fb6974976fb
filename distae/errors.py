class DistaeError(Exception):
    """An end that is expected: reported in words, without a traceback."""

    heard = False
    """Whether the other ranks know of it."""
    remote = False
    """Whether it is another rank's, with its rank and host in front."""


class UserError(DistaeError):
    """A mistake of the user's, told in one or two lines that name the key and the valid values. Exit code 2."""


class TrainingError(DistaeError):
    """Training cannot go on for a reason that no traceback explains better. Exit code 1."""
