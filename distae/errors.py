class UserError(Exception):
    """A mistake of the user's, told in one or two lines that name the key and the valid values. Exit code 2."""


class TrainingError(Exception):
    """Training cannot go on for a reason that no traceback explains better. Exit code 1."""
