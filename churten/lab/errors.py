"""The one error of the lab."""


class LabError(Exception):
    """What went wrong, in one sentence for the user."""
