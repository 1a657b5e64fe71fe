"""Verification in worker processes that can be killed: a hanging or crashing verifier costs one response, never the run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from types import TracebackType

from pebble import ProcessPool

from stages.tasks import Problem, Task, Verdict

# Responses handed to a worker at once. Small enough that the time limit, which covers the chunk, stays tight.
_CHUNK = 64
_WRONG = Verdict(correct=False, answer=None)

_task: Task | None = None


def _start_worker(build: Callable[[], Task]) -> None:
    global _task
    _task = build()


def _verify_chunk(chunk: list[tuple[Problem, str]]) -> list[Verdict]:
    assert _task is not None
    return [_task.verify(problem, response) for problem, response in chunk]


@dataclass
class VerifyCounts:
    """What happened to the responses seen so far."""

    verified: int = 0
    timeouts: int = 0
    errors: int = 0


class Verifier:
    """A pool of workers, each with the task that `build` makes there; use as a context manager.

    A response that exceeds `seconds`, kills its worker or makes the verifier raise scores 0 and is counted.
    """

    def __init__(self, build: Callable[[], Task], *, workers: int, seconds: float) -> None:
        self.seconds = seconds
        self.counts = VerifyCounts()
        # Spawned, not forked: the parent holds an inference engine with threads and devices.
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=_start_worker,
            initargs=(build,),
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.stop()
        self._pool.join()

    def verify(self, pairs: Iterable[tuple[Problem, str]]) -> list[Verdict]:
        """Verdicts in the order of the (problem, response) pairs."""
        pairs = list(pairs)
        chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
        futures = [self._pool.schedule(_verify_chunk, args=[chunk], timeout=self.seconds) for chunk in chunks]
        verdicts: list[Verdict] = []
        for chunk, future in zip(chunks, futures, strict=True):
            try:
                verdicts += future.result()
            except Exception:  # one of the chunk is bad: find out which, the others keep their verdict
                verdicts += [self._verify_one(pair) for pair in chunk]
        self.counts.verified += len(pairs)
        return verdicts

    def _verify_one(self, pair: tuple[Problem, str]) -> Verdict:
        try:
            return self._pool.schedule(_verify_chunk, args=[[pair]], timeout=self.seconds).result()[0]
        except FutureTimeout:
            self.counts.timeouts += 1
        except Exception:  # raised by the verifier, or its process ended (pebble.ProcessExpired)
            self.counts.errors += 1
        return _WRONG
