"""Ends a stage's process in order, and makes sure that it does end.

SIGTERM or Ctrl-C: a stage in training finishes its step, saves a step checkpoint (`stages.training.step_checkpoints`) and ends; any
other, and one that gets Ctrl-C again, ends at once. A thread counts the stage's lease up; ends the process if another machine has taken
the lease over, so that a stage thought dead does not write beside its successor; has it end in order when the orchestrator is gone; and
ends it for good when the end in order takes longer than `GRACE_SECONDS`, whatever library hangs.
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

GRACE_SECONDS = 60.0
_POLL_SECONDS = 0.5


class Guard:
    """One per process of a stage; only the one that writes has a lease."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self._asked: float | None = None
        self._saves = False
        self._parent = os.getppid() if "PRIORLAB_LOCK_FD" in os.environ else None  # by hand, the shell may go

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
        """Within, the stage looks at `stopping` after each step, and is given time to."""
        self._saves = True
        try:
            yield
        finally:
            self._saves = False

    def check(self) -> None:
        """Before anything is committed. Raises `PriorlabError` if another machine runs the stage by now."""
        if self.lease is not None and not self.lease.is_mine():
            raise PriorlabError("another machine has taken this stage over, because this one was silent for too long; it goes on there")

    def end(self, code: int) -> NoReturn:
        """End this process, and what it has started: engines' threads and workers must not keep a stage alive.

        All results are on disk by now; interpreter shutdown of vLLM and DeepSpeed costs seconds.
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
            if self._asked is not None and now - self._asked > GRACE_SECONDS:
                self.end(STOPPED_EXIT)
            if self.lease is None or now - beaten < BEAT_SECONDS:
                continue
            beaten = now
            with contextlib.suppress(OSError):  # a file system that does not answer for a while
                self.lease.beat()
                if not self.lease.is_mine():
                    print("error: another machine has taken this stage over", file=sys.stderr, flush=True)
                    self.end(REFUSED_EXIT)


def _kill_rest_of_group() -> None:
    """Kill what is left of the process group that this process leads, if an orchestrator started it: a shell has others in it."""
    own = os.getpid()
    if os.getpgrp() != own or "PRIORLAB_LOCK_FD" not in os.environ:
        return
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            process = int(entry.name)
            if process != own and os.getpgid(process) == own:
                os.kill(process, signal.SIGKILL)
