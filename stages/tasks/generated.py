"""Tasks whose problems are drawn at random: each draw belongs to one split, and draws from other splits are skipped."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

from pipeline.errors import PriorlabError
from stages.tasks.protocol import Document, Problem, Split, TooFewProblemsError, split_of

PATIENCE = 20_000
"""Draws in a row without what is looked for, such as a new problem, after which there is taken to be none."""


class DrawnTask(ABC):
    """`problems` and `documents` of the task protocol, from an endless stream of draws."""

    knobs: str
    """The config keys that widen the space of problems."""
    patience = PATIENCE

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def draws(self, split: Split, stream: str) -> Iterator[tuple[Problem, str] | None]:
        """Endless, and the same for the same `stream`: a problem and a correct response; None where a draw is of no use."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        misses = 0
        draws = self.draws(split, f"problems-{split}-{seed}")
        while len(found) < count:
            drawn = next(draws)
            if drawn is not None and drawn[0].id not in found:
                found[drawn[0].id] = drawn[0]
                misses = 0
                continue
            misses += 1
            if misses > self.patience:
                raise TooFewProblemsError(
                    f"task {self.name!r} has only about {len(found)} distinct problems in its {split!r} split, "
                    f"but {count} were asked for; ask for fewer, or widen {self.knobs}"
                )
        return list(found.values())

    def rewordings(self, problem: Problem) -> list[Problem]:
        return []

    def documents(self, split: Split, count: int, seed: int) -> Iterator[Document]:
        made = misses = 0
        draws = self.draws(split, f"documents-{split}-{seed}")
        while made < count:
            drawn = next(draws)
            if drawn is not None:
                made, misses = made + 1, 0
                yield Document(drawn[0].prompt, drawn[1])
                continue
            misses += 1
            if misses > self.patience:
                raise PriorlabError(f"task {self.name!r} has no problem in its {split!r} split; widen {self.knobs}")


class GeneratedTask(DrawnTask):
    """A task with a generator of its own."""

    kind: str
    """Part of the random seeds."""

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[Problem, str]:
        """A problem and a correct response with steps."""

    def draws(self, split: Split, stream: str) -> Iterator[tuple[Problem, str] | None]:
        rng = random.Random(f"{self.kind}-{stream}")
        while True:
            drawn = self.draw(rng)
            yield drawn if split_of(drawn[0].id) == split else None
