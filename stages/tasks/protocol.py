"""What every task offers: text to learn from, problems to solve, and a verifier."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.errors import PriorlabError

Split = Literal["corpus", "heldout", "rl", "evaluate"]

# Shares of the problem space. A problem's split depends on the problem alone, so splits cannot overlap whatever is drawn.
_SPLITS: tuple[tuple[Split, float], ...] = (("corpus", 0.75), ("heldout", 0.05), ("rl", 0.12), ("evaluate", 0.08))


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    data: dict[str, Any]


class Document(NamedTuple):
    """A worked solution. Its parts are tokenized separately, since RL tokenizes prompts without a response."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Verdict:
    """`answer` is the extracted answer in canonical form (None: unreadable), used for majority votes.

    `correct` is what RL rewards. A task may also judge by other rules; `further` has their verdicts by name, the same names for every
    response, and evaluation reports pass@k under each.
    """

    correct: bool
    answer: str | None
    further: Mapping[str, bool] = field(default_factory=dict)


class TooFewProblemsError(PriorlabError):
    """A split has fewer problems than were asked for, or none."""


class Task(Protocol):
    @property
    def alphabet(self) -> str:
        """Every character that prompts and solutions use."""
        ...

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` distinct problems of a split; raises `TooFewProblemsError` if there are fewer."""
        ...

    def rewordings(self, problem: Problem) -> list[Problem]:
        """The same problem in the task's other wordings; its identity and its correct answers stay the same."""
        ...

    def documents(self, split: Split, count: int, seed: int) -> Iterator[Document]:
        """Worked solutions of random problems of a split; problems may repeat. A smaller count gives a prefix of a larger one."""
        ...

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Runs in a worker that can be killed, with limits on time and memory. An unreadable text is wrong, not an error."""
        ...


def split_of(problem_id: str) -> Split:
    """The split that owns a problem: a fixed hash of its identity, compared with the cumulative shares."""
    position = int.from_bytes(hashlib.sha256(problem_id.encode()).digest()[:8], "big") / 2**64
    for split, share in _SPLITS:
        if position < share:
            return split
        position -= share
    return _SPLITS[-1][0]
