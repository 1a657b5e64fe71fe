"""Shuts a stage's process down cleanly, and makes sure that it does end.

On SIGTERM or Ctrl-C, a training stage finishes its step, saves a step checkpoint (`stages.training.step_checkpoints`) and exits; any
other stage exits at once, as does any on a second Ctrl-C. A thread renews the stage's lease; ends the process if another machine has
taken the lease over, so that a stage presumed dead does not write beside its successor; shuts it down cleanly when the orchestrator is
gone; and kills it if a clean shutdown takes longer than `PRIORLAB_SAVING_SECONDS`, whatever library hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.errors import REFUSED_EXIT, STOPPED_EXIT, PriorlabError
from pipeline.store.lease import BEAT_SECONDS, Lease

_POLL_SECONDS = 0.5


class Guard:
    """One per stage process; only the process that writes has a lease."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self._asked: float | None = None
        self._saves = False
        self._saving_seconds = float(os.environ.get("PRIORLAB_SAVING_SECONDS", "60"))
        self._parent = os.getppid() if "PRIORLAB_LOCK_FD" in os.environ else None  # else the shell may go first

    def start(self) -> None:
        """Call from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        threading.Thread(target=self._watch, name="guard", daemon=True).start()

    @property
    def stopping(self) -> bool:
        return self._asked is not None

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, the stage checks `stopping` after each step and gets time to save."""
        self._saves = True
        try:
            yield
        finally:
            self._saves = False

    def check(self) -> None:
        """Call before committing anything. Raises `PriorlabError` if another machine now runs the stage."""
        if self.lease is not None and not self.lease.is_mine():
            raise PriorlabError("another machine has taken this stage over, because this one was silent too long; it continues there")

    def end(self, code: int) -> NoReturn:
        """End this process and its children: engines' threads and workers must not keep a stage alive.

        All results are on disk by now, and shutting vLLM and DeepSpeed down would cost seconds.
        """
        if self.lease is not None:
            with contextlib.suppress(OSError):
                self.lease.release()
        _kill_rest_of_group()
        os._exit(code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.stopping and number == signal.SIGINT  # Slurm may send SIGTERM twice
        if again or not self._saves:
            self.end(STOPPED_EXIT)
        self._asked = time.monotonic()

    def _watch(self) -> None:
        beaten = time.monotonic()
        while True:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if self._asked is None and self._parent is not None and os.getppid() != self._parent:
                self._asked = now
                if not self._saves:
                    self.end(STOPPED_EXIT)
            if self._asked is not None and now - self._asked > self._saving_seconds:
                self.end(STOPPED_EXIT)
            if self.lease is None or now - beaten < BEAT_SECONDS:
                continue
            beaten = now
            with contextlib.suppress(OSError):  # a file system may not respond for a while
                self.lease.beat()
                if not self.lease.is_mine():
                    print("error: another machine has taken this stage over", file=sys.stderr, flush=True)
                    self.end(REFUSED_EXIT)


def _kill_rest_of_group() -> None:
    """Kill the rest of the process group that this process leads, if an orchestrator started it: a shell's has others in it."""
    own = os.getpid()
    if os.getpgrp() != own or "PRIORLAB_LOCK_FD" not in os.environ:
        return
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            process = int(entry.name)
            if process != own and os.getpgid(process) == own:
                os.kill(process, signal.SIGKILL)
