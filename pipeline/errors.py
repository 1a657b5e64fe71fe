"""The one exception type whose message is meant for the user.

Commands and stages turn it into a line on stderr and a non-zero exit; anything else is a bug and keeps its traceback in the log.
"""

REFUSED_EXIT = 2
"""Exit code of a stage that met something the user can mend; its message says what. 1 is a bug, with a traceback in the log."""
NO_SPACE_EXIT = 28
"""Exit code of a stage that met a full disk (ENOSPC): there, no message could be written either."""
MEMORY_EXIT = 12
"""Exit code of a stage to which memory was refused, of the machine or of a GPU."""
DIVERGED_EXIT = 33
"""Exit code of a training whose loss is no number any more."""
STOPPED_EXIT = 143
"""Exit code of a stage that was asked to end (SIGTERM or Ctrl-C), and did, where it could after saving a step checkpoint."""


class PriorlabError(Exception):
    """Something the user can act on: the message says what was expected, what came, where, and what to do."""


class DivergedError(PriorlabError):
    """The loss is no number any more: the same training would end so again."""


class Stopped(BaseException):
    """A stage was asked to end, and has saved what it could. No `Exception`: nothing on the way may take it for a failure."""
