"""Countdown: reach a target with + - * and each given number exactly once.

Problems come from random expressions, so each has a solution and many have several, which gives RL something to sharpen.
A problem is identified by its sorted numbers and target, whatever their order in the prompt.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

from pipeline.config.tasks import CountdownTask
from pipeline.errors import PriorlabError
from stages.tasks.expression import Node, NotAnExpressionError, canonical, combine, parse, render
from stages.tasks.generated import PATIENCE, GeneratedTask
from stages.tasks.protocol import Problem, Verdict


class Countdown(GeneratedTask):
    kind = "countdown"
    knobs = "task.numbers, task.largest_number or task.largest_target"
    alphabet = "0123456789+-*(),=:"

    def __init__(self, config: CountdownTask) -> None:
        super().__init__(config.name)
        self.config = config

    def verify(self, problem: Problem, response: str) -> Verdict:
        try:
            node = parse(response)
        except NotAnExpressionError:
            return Verdict(correct=False, answer=None)
        uses_numbers = Counter(node.numbers()) == Counter(problem.data["numbers"])
        return Verdict(correct=uses_numbers and node.value == problem.data["target"], answer=canonical(node))

    def draw(self, rng: random.Random) -> tuple[Problem, str]:
        """A solvable problem and one of its solutions, uniform over random expression trees with a target in range."""
        config = self.config
        for _ in range(PATIENCE):
            numbers = [rng.randint(1, config.largest_number) for _ in range(rng.choice(config.numbers))]
            solution = self._expression(rng, numbers)
            if 0 <= solution.value <= config.largest_target:
                rng.shuffle(numbers)
                return self._problem(numbers, solution.value), render(solution)
        raise PriorlabError(
            f"task {config.name!r}: {PATIENCE:,} random expressions in a row left 0..{config.largest_target}; raise "
            "task.largest_target, add to task.operators, or lower task.numbers or task.largest_number"
        )

    def rewordings(self, problem: Problem) -> list[Problem]:
        """The numbers in every other order."""
        numbers, target = problem.data["numbers"], problem.data["target"]
        others = [list(order) for order in dict.fromkeys(permutations(numbers)) if list(order) != numbers]
        return [self._problem(order, target) for order in others]

    def _problem(self, numbers: list[int], target: int) -> Problem:
        identity = ",".join(map(str, sorted(numbers))) + f"={target}"
        prompt = ",".join(map(str, numbers)) + f"={target}:"
        return Problem(id=identity, prompt=prompt, data={"numbers": numbers, "target": target})

    def _expression(self, rng: random.Random, numbers: list[int]) -> Node:
        if len(numbers) == 1:
            return Node(numbers[0])
        cut = rng.randint(1, len(numbers) - 1)
        left, right = self._expression(rng, numbers[:cut]), self._expression(rng, numbers[cut:])
        return combine(rng.choice(self.config.operators), left, right)
