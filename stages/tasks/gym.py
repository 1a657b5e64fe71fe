"""reasoning-gym tasks by name: its generators make the problems, its scorers judge responses, and only a full score is correct.

An entry depends on the data set's seed and its number; each split draws from its own stream and keeps what `split_of` assigns it. A
problem is identified by its question. Not all scorers are careful: an entry whose own answer does not score 1 is skipped, and a data
set that rewards nonsense is refused.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pipeline.config.tasks import GymTask
from pipeline.errors import PriorlabError, nearest
from stages.tasks.protocol import Document, Problem, Split, TooFewProblemsError, Verdict, split_of

try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
except ImportError as error:
    raise PriorlabError(
        f"a task of kind reasoning-gym needs the package reasoning-gym ({error}); install it into the environment with "
        "`.venv/bin/python -m pip install reasoning-gym==0.1.25`"
    ) from error

# Draws without a new problem after which a split counts as exhausted; some generators take milliseconds each.
_PATIENCE = 2000
# Entries whose characters, with printable ASCII, make up the alphabet; entries with others are skipped.
_ALPHABET_ENTRIES = 200
_NONSENSE = "\x00"


class Gym:
    def __init__(self, config: GymTask) -> None:
        self.config = config
        self._dataset = self._stream(0)

    @cached_property
    def alphabet(self) -> str:
        characters = set(string.printable) - set("\r\x0b\x0c")
        for number in range(_ALPHABET_ENTRIES):
            entry = self._dataset[number]
            characters |= set(self._prompt(entry) + str(entry["answer"]))
        return "".join(sorted(characters))

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        misses = 0
        for problem in self._draw(split, f"problems-{split}-{seed}"):
            if len(found) == count:
                break
            misses = misses + 1 if problem is None or problem.id in found else 0
            if misses > _PATIENCE:
                raise TooFewProblemsError(
                    f"task {self.config.name!r} has only about {len(found)} distinct problems in its {split!r} split, but {count} were "
                    f"asked for; ask for fewer, or widen task.options of {self.config.dataset}"
                )
            if problem is not None:
                found.setdefault(problem.id, problem)
        return list(found.values())

    def rewordings(self, problem: Problem) -> list[Problem]:
        return []

    def documents(self, split: Split, count: int, seed: int) -> Iterator[Document]:
        made = misses = 0
        for problem in self._draw(split, f"documents-{split}-{seed}"):
            if made == count:
                return
            if problem is not None:
                made, misses = made + 1, 0
                yield Document(problem.prompt, problem.data["entry"]["answer"])
                continue
            misses += 1
            if misses > _PATIENCE:
                raise PriorlabError(
                    f"task {self.config.name!r} has no problem in its {split!r} split whose own answer scores 1; widen task.options of "
                    f"{self.config.dataset}, or choose another task.dataset"
                )

    def verify(self, problem: Problem, response: str) -> Verdict:
        answer = response.strip()
        return Verdict(correct=self._full_score(answer, problem.data["entry"]), answer=answer or None)

    def _draw(self, split: Split, stream: str) -> Iterator[Problem | None]:
        """Endless; None for entries of other splits or without a known answer."""
        dataset = self._stream(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big"))
        number = 0
        while True:
            entry = dataset[number]
            number += 1
            name = hashlib.sha256(entry["question"].encode()).hexdigest()[:16]
            answer, prompt = entry["answer"], self._prompt(entry)
            if split_of(name) != split or not isinstance(answer, str) or not set(prompt + answer) <= set(self.alphabet):
                yield None
                continue
            if self._full_score(_NONSENSE, entry):
                raise PriorlabError(
                    f"reasoning-gym's {self.config.dataset} gives a nonsense response full score, so RL would learn nothing; "
                    "choose another task.dataset"
                )
            yield Problem(id=name, prompt=prompt, data={"entry": entry}) if self._full_score(answer.strip(), entry) else None

    def _prompt(self, entry: dict[str, Any]) -> str:
        return self.config.prompt.replace("{question}", entry["question"])

    def _full_score(self, answer: str, entry: dict[str, Any]) -> bool:
        try:
            return bool(self._dataset.score_answer(answer, entry) >= 1)
        except MemoryError:
            raise
        except Exception:  # scorers parse carelessly; a text they cannot read is not an answer
            return False

    def _stream(self, seed: int) -> Any:
        config = self.config
        if config.dataset not in DATASETS:
            near = nearest(config.dataset, DATASETS)
            hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(sorted(DATASETS))}"
            raise PriorlabError(f"reasoning-gym has no data set {config.dataset!r} (task.dataset){hint}")
        try:
            return reasoning_gym.create_dataset(config.dataset, seed=seed, size=2**31 - 1, **config.options)
        except (TypeError, ValueError, AssertionError) as error:
            raise PriorlabError(f"task.options do not fit reasoning-gym's {config.dataset}: {error}") from error
