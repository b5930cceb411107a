"""The one error that labkit raises on purpose."""


class LabkitError(Exception):
    """Wrong input, said in one line: what, where, expected, found, what to do."""
