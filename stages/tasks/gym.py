"""reasoning-gym tasks by name: its generators make the problems, its scorers judge responses, and only a full score is correct.

An entry depends on the dataset's seed and its number; each split draws from its own stream and keeps what `split_of` assigns it. A
problem is identified by its question. Not all scorers are careful: an entry whose own answer does not score 1 is skipped, and a data
set that rewards nonsense is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import re
import string
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pipeline.config.tasks import GymTask
from pipeline.errors import PriorlabError, nearest
from stages.tasks.generated import DrawnTask
from stages.tasks.protocol import Problem, Split, Verdict, split_of

try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
except ImportError as error:
    raise PriorlabError(
        f"a task of kind reasoning-gym needs the package reasoning-gym ({error}); install it into the environment with "
        "`.venv/bin/python -m pip install reasoning-gym==0.1.25`"
    ) from error

# Entries whose characters, with printable ASCII, make up the alphabet; entries with others are skipped.
_ALPHABET_ENTRIES = 200
_NONSENSE = "\x00"
_RUNS_TEXT = re.compile(r"(?<!\w)(eval|exec|parse_expr|sympify)\(")  # sympy's two call eval


class Gym(DrawnTask):
    patience = 2000  # some generators take milliseconds a draw

    def __init__(self, config: GymTask) -> None:
        super().__init__(config.name)
        self.config = config
        self.knobs = f"task.options of {config.dataset}, or choose another task.dataset"
        self._dataset = self._stream(0)
        runs_code = _RUNS_TEXT.search(inspect.getsource(self._dataset.score_answer))
        if runs_code and not config.allow_code:
            raise PriorlabError(
                f"reasoning-gym's {config.dataset} judges with {runs_code[1]}(), which may run what the model writes as code, with "
                "all that this process may read and write; set task.allow_code=true where that can do no harm, or choose another "
                "task.dataset"
            )

    @cached_property
    def alphabet(self) -> str:
        characters = set(string.printable) - set("\r\x0b\x0c")
        for number in range(_ALPHABET_ENTRIES):
            entry = self._dataset[number]
            characters |= set(self._prompt(entry) + str(entry["answer"]))
        return "".join(sorted(characters))

    def verify(self, problem: Problem, response: str) -> Verdict:
        answer = response.strip()
        return Verdict(correct=self._full_score(answer, problem.data["entry"]), answer=answer or None)

    def draws(self, split: Split, stream: str) -> Iterator[tuple[Problem, str] | None]:
        """None for entries of other splits, or without a known answer that scores 1."""
        dataset = self._stream(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big"))
        for number in itertools.count():
            entry = dataset[number]
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
            problem = Problem(id=name, prompt=prompt, data={"entry": entry})
            yield (problem, answer) if self._full_score(answer.strip(), entry) else None

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
            raise PriorlabError(f"reasoning-gym has no dataset {config.dataset!r} (task.dataset){hint}")
        try:
            return reasoning_gym.create_dataset(config.dataset, seed=seed, size=2**31 - 1, **config.options)
        except (TypeError, ValueError, AttributeError, AssertionError) as error:
            raise PriorlabError(f"task.options do not fit reasoning-gym's {config.dataset}: {error}") from error
