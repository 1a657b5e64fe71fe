"""`python -m pipeline.tether PARENT COMMAND...`: become COMMAND, and get SIGTERM from the kernel when PARENT dies.

A stage must not outlive an orchestrator that was killed. The setting survives exec, so this small module sets it and steps aside.
Linux only; elsewhere the command simply runs.
"""

import ctypes
import os
import signal
import struct
import sys

FORKED_NAME = "priorlab-stage"
"""What the kernel calls the process of a stage that was forked (`stages.warm`): its command line is the server's."""
NUMBER = struct.Struct("q")
"""What a forked stage's pipe carries: its process number, from itself, and its exit code, from the server."""
_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent, which must be `parent`, dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the setting took effect
            sys.exit(1)


def main() -> None:
    parent, *command = sys.argv[1:]
    die_with(int(parent))
    os.execv(command[0], command)  # noqa: S606 (that is what this module is for)


if __name__ == "__main__":
    main()
