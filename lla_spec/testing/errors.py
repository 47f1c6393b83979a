"""What a person got wrong, as exceptions of one line: the command prints it and exits with 2. Imports nothing."""


class TargetError(Exception):
    """A target that cannot be used at all: the message says what, and the way out."""


class CaseError(ValueError):
    """A line of text that is not a case; the message names the field, its value and the rule."""


class ReportError(ValueError):
    """A file that is no report, or a report that cannot be made; the message says why and what to do."""
