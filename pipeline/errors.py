"""The one exception type whose message is meant for the user.

Commands and stages turn it into a line on stderr and a non-zero exit; anything else is a bug and keeps its traceback in the log.
"""

import difflib
from collections.abc import Iterable

REFUSED_EXIT = 2
"""Exit code of a stage that met something the user can fix; its message says what. 1 is a bug, with a traceback in the log."""
NO_SPACE_EXIT = 28
"""Exit code of a stage that met a full disk (ENOSPC): not even a message could be written."""
MEMORY_EXIT = 12
"""Exit code of a stage that ran out of memory, on the machine or a GPU."""
DIVERGED_EXIT = 33
"""Exit code of a training run whose loss is not finite."""
STOPPED_EXIT = 143
"""Exit code of a stage that was asked to stop (SIGTERM or Ctrl-C) and did, after saving a step checkpoint if it could."""


class PriorlabError(Exception):
    """Something the user can act on: the message says what was expected, what was found, where, and what to do."""


class DivergedError(PriorlabError):
    """The loss is not finite: the same training would diverge again."""


class Stopped(BaseException):
    """A stage was asked to stop, and has saved what it could. Not an `Exception`: no handler may take it for a failure."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was likely meant; None if no known one is much like it."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
