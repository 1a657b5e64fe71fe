"""Tasks whose problems are drawn at random: each draw belongs to one split, and draws from other splits are skipped."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

from pipeline.errors import PriorlabError
from stages.tasks.protocol import Document, Problem, Split, TooFewProblemsError, split_of

PATIENCE = 20_000
"""Draws in a row without what is looked for, such as a new problem, after which there is taken to be none."""


class GeneratedTask(ABC):
    """`problems` and `documents` of the task protocol, from `draw`."""

    kind: str
    """Part of the random seeds."""
    knobs: str
    """The config keys that widen the space of problems."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[Problem, str]:
        """A problem and a correct response with steps."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        rng = random.Random(f"{self.kind}-problems-{split}-{seed}")
        found: dict[str, Problem] = {}
        misses = 0
        while len(found) < count:
            problem, _ = self.draw(rng)
            if split_of(problem.id) == split and problem.id not in found:
                found[problem.id] = problem
                misses = 0
                continue
            misses += 1
            if misses > PATIENCE:
                raise TooFewProblemsError(
                    f"task {self.name!r} has only about {len(found)} distinct problems in its {split!r} split, "
                    f"but {count} were asked for; ask for fewer, or widen {self.knobs}"
                )
        return list(found.values())

    def rewordings(self, problem: Problem) -> list[Problem]:
        return []

    def documents(self, split: Split, count: int, seed: int) -> Iterator[Document]:
        rng = random.Random(f"{self.kind}-documents-{split}-{seed}")
        made = misses = 0
        while made < count:
            problem, response = self.draw(rng)
            if split_of(problem.id) == split:
                made, misses = made + 1, 0
                yield Document(problem.prompt, response)
                continue
            misses += 1
            if misses > PATIENCE:
                raise PriorlabError(f"task {self.name!r} has no problem in its {split!r} split; widen {self.knobs}")
