"""End a process when its parent dies: `python -m stages.die_with_parent PARENT COMMAND...` becomes COMMAND.

A stage must not outlive a killed orchestrator: the kernel then sends it SIGTERM. The setting survives exec: this small module sets
it and steps aside. Linux only; elsewhere the command simply runs.
"""

import ctypes
import os
import signal
import sys

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
