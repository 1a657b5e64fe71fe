"""The one exception type whose message is meant for the user.

Commands and stages turn it into a line on stderr and a non-zero exit; anything else is a bug and keeps its traceback in the log.
"""

NO_SPACE_EXIT = 28
"""Exit code of a stage that met a full disk (ENOSPC): there, no message could be written either."""


class PriorlabError(Exception):
    """Something the user can act on: the message says what was expected, what came, where, and what to do."""
