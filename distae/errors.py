class DistaeError(Exception):
    """An expected failure: reported as a message, without a traceback."""

    heard = False
    """Whether the other ranks have been informed."""
    remote = False
    """Whether it comes from another rank; the message then starts with that rank and host."""


class UserError(DistaeError):
    """Invalid input, reported in one or two lines that name the key and the valid values. Exit code 2."""


class TrainingError(DistaeError):
    """An expected failure of training, reported without a traceback. Exit code 1."""
