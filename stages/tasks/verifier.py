"""Verification in worker processes that can be killed: a hanging, swelling or crashing verifier costs one response, never the run.

A worker has a limit on time and, beyond what its task takes to load, on memory. A response that breaks one scores 0 and is counted;
once such responses are more than a small share, scores would be wrong without anybody noticing, so the run stops instead.
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pebble import ProcessPool

from pipeline.config.evaluation import Verification
from pipeline.errors import PriorlabError
from stages.tasks import Problem, Task, Verdict

# Responses handed to a worker at once. Small enough that the time limit, which covers the chunk, stays tight.
_CHUNK = 64
# Before so many responses a share says little: two odd ones in the first batch of RL must not end it.
_ENOUGH = 1000
_WRONG = Verdict(correct=False, answer=None)
_LOG = logging.getLogger(__name__)

_task: Task | Exception | None = None


def _start_worker(build: Callable[[], Task], memory_mib: int) -> None:
    global _task
    try:
        _task = build()
    except Exception as error:  # pebble would start such a worker again and again; so the first response tells
        _task = error
    loaded = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limit = loaded + (memory_mib << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is expected now and then; its memory is nobody's business


def _verify_chunk(chunk: list[tuple[Problem, str]]) -> list[Verdict]:
    if isinstance(_task, Exception):
        raise _task
    assert _task is not None
    return [_task.verify(problem, response) for problem, response in chunk]


@dataclass
class VerifyCounts:
    """What happened to the responses seen so far."""

    verified: int = 0
    timeouts: int = 0
    errors: int = 0

    @property
    def failures(self) -> int:
        return self.timeouts + self.errors


class Verifier:
    """A pool of workers, each with the task that `build` makes there; use as a context manager.

    A response that exceeds the limits, kills its worker or makes the verifier raise scores 0, is logged and counted.
    """

    def __init__(self, build: Callable[[], Task], settings: Verification) -> None:
        self.settings = settings
        self.counts = VerifyCounts()
        self._last_failure = ""
        # Spawned, not forked: the parent holds an inference engine with threads and devices.
        self._pool = ProcessPool(
            max_workers=settings.verify_workers,
            initializer=_start_worker,
            initargs=(build, settings.verify_memory_mib),
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.stop()
        self._pool.join()

    def verify(self, pairs: Iterable[tuple[Problem, str]]) -> list[Verdict]:
        """Verdicts in the order of the (problem, response) pairs. Raises `PriorlabError` once too many have failed."""
        pairs = list(pairs)
        chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
        futures = [self._schedule(chunk) for chunk in chunks]
        verdicts: list[Verdict] = []
        for chunk, future in zip(chunks, futures, strict=True):
            try:
                verdicts += future.result()
            except Exception:  # one of the chunk is bad: find out which, the others keep their verdict
                singles = [self._schedule([pair]) for pair in chunk]
                verdicts += [self._result(pair, single) for pair, single in zip(chunk, singles, strict=True)]
            self.counts.verified += len(chunk)
            self._check(at_least=_ENOUGH)
        return verdicts

    def finish(self) -> VerifyCounts:
        """All counts; raises `PriorlabError` if more than the allowed share of all responses failed, however few they are."""
        self._check(at_least=0)
        return self.counts

    def _schedule(self, pairs: list[tuple[Problem, str]]) -> Future[list[Verdict]]:
        future: Future[list[Verdict]] = self._pool.schedule(_verify_chunk, args=[pairs], timeout=self.settings.verify_seconds)
        return future

    def _result(self, pair: tuple[Problem, str], future: Future[list[Verdict]]) -> Verdict:
        try:
            return future.result()[0]
        except FutureTimeout:
            self.counts.timeouts += 1
            reason = f"more than verify_seconds = {self.settings.verify_seconds:g}"
        except Exception as error:  # raised by the verifier, out of memory, or its process ended (pebble.ProcessExpired)
            self.counts.errors += 1
            reason = f"{type(error).__name__}: {error}"[:200].rstrip(": ")
        problem, response = pair
        start = response[:100]
        self._last_failure = f"problem {problem.id!r}, response {start!r}{'...' if start != response else ''}: {reason}"
        _LOG.warning("the verifier failed, which scores 0: %s", self._last_failure)
        return _WRONG

    def _check(self, *, at_least: int) -> None:
        counts, share = self.counts, self.settings.max_verify_failures
        if counts.failures > share * max(counts.verified, at_least):
            raise PriorlabError(
                f"the verifier failed on {counts.errors} and timed out on {counts.timeouts} of {counts.verified} responses, more than "
                f"max_verify_failures = {share:g} allows; scores would be wrong. The last one: {self._last_failure}. Raise "
                "verify_seconds or verify_memory_mib, or mend the task's verifier"
            )
