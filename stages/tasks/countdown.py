"""Countdown: reach a target with + - * and each given number exactly once.

Problems come from random expressions, so each has a solution and many have several; that is what gives RL something to sharpen.
A problem is identified by its sorted numbers and target, whatever the order in which the prompt shows them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from pipeline.config import CountdownTask
from pipeline.errors import PriorlabError
from stages.tasks.expression import Node, NotAnExpressionError, canonical, combine, parse, render
from stages.tasks.protocol import Problem, Split, Verdict, split_of

# Draws without a new problem after which a split counts as exhausted.
_PATIENCE = 20_000


class Countdown:
    alphabet = "0123456789+-*(),=:"

    def __init__(self, config: CountdownTask) -> None:
        self.config = config

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        rng = random.Random(f"countdown-problems-{split}-{seed}")
        found: dict[str, Problem] = {}
        misses = 0
        while len(found) < count:
            problem, _ = self._draw(rng)
            if split_of(problem.id) == split and problem.id not in found:
                found[problem.id] = problem
                misses = 0
                continue
            misses += 1
            if misses > _PATIENCE:
                raise PriorlabError(
                    f"task {self.config.name!r} has only about {len(found)} distinct problems in its {split!r} split, "
                    f"but {count} were asked for; ask for fewer, or widen task.numbers, task.largest_number or "
                    "task.largest_target"
                )
        return list(found.values())

    def documents(self, split: Split, count: int, seed: int) -> Iterator[str]:
        rng = random.Random(f"countdown-documents-{split}-{seed}")
        made = misses = 0
        while made < count:
            problem, solution = self._draw(rng)
            if split_of(problem.id) == split:
                made, misses = made + 1, 0
                yield problem.prompt + render(solution)
                continue
            misses += 1
            if misses > _PATIENCE:
                raise PriorlabError(
                    f"task {self.config.name!r} has no problem in its {split!r} split; widen task.numbers, "
                    "task.largest_number or task.largest_target"
                )

    def verify(self, problem: Problem, response: str) -> Verdict:
        try:
            node = parse(response)
        except NotAnExpressionError:
            return Verdict(correct=False, answer=None)
        uses_numbers = Counter(node.numbers()) == Counter(problem.data["numbers"])
        return Verdict(correct=uses_numbers and node.value == problem.data["target"], answer=canonical(node))

    def _draw(self, rng: random.Random) -> tuple[Problem, Node]:
        """A solvable problem and one of its solutions, uniform over random expression trees with a target in range."""
        config = self.config
        while True:
            numbers = [rng.randint(1, config.largest_number) for _ in range(rng.choice(config.numbers))]
            solution = self._expression(rng, numbers)
            if 0 <= solution.value <= config.largest_target:
                break
        rng.shuffle(numbers)
        target = solution.value
        identity = ",".join(map(str, sorted(numbers))) + f"={target}"
        prompt = ",".join(map(str, numbers)) + f"={target}:"
        return Problem(id=identity, prompt=prompt, data={"numbers": numbers, "target": target}), solution

    def _expression(self, rng: random.Random, numbers: list[int]) -> Node:
        if len(numbers) == 1:
            return Node(numbers[0])
        cut = rng.randint(1, len(numbers) - 1)
        left, right = self._expression(rng, numbers[:cut]), self._expression(rng, numbers[cut:])
        return combine(rng.choice(self.config.operators), left, right)
