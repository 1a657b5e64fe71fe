"""`priorlab logs`: what a stage's newest or an older attempt printed, and what it goes on to print."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.store.folders import StageFolder

_POLL_SECONDS = 0.2
_CHUNK = 1 << 16


def find_log(folder: StageFolder, attempt: int | None = None) -> Path:
    """The log of an attempt (default: the newest that has one). Raises `PriorlabError` if there is none."""
    if attempt is None:
        log = folder.last_log()
        if log is None:
            raise PriorlabError(f"{folder.name} has no log: it was never started; `priorlab status` shows its state")
        return log
    known = {int(path.name): path / "stdout.log" for path in folder.attempts()}
    if attempt not in known or not known[attempt].exists():
        listed = ", ".join(str(number) for number, log in known.items() if log.exists())
        raise PriorlabError(f"{folder.name} has no log of attempt {attempt}; there are logs of: {listed or 'none'}")
    return known[attempt]


def read_log(log: Path, follow: StageFolder | None = None) -> Iterator[str]:
    """The log piece by piece, since it may be long, and what is added while the stage to `follow` runs."""
    with log.open(encoding="utf-8", errors="replace") as file:
        running = True
        while running:
            running = follow is not None and follow.is_held()  # asked before reading, so that the stage's last output is read
            while chunk := file.read(_CHUNK):
                yield chunk
            if running:
                time.sleep(_POLL_SECONDS)
