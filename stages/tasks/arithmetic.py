"""Arithmetic: the value of a chain like `3+8*2-5`, with a worked solution that carries out one operation per step.

Steps follow precedence: the leftmost product first, then the leftmost sum or difference (`3+16-5=19-5=14`). Only the last number is
judged, so RL may find other ways to it, shorter or longer. A problem is identified by its chain.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from pipeline.config.tasks import ArithmeticTask
from pipeline.errors import PriorlabError
from stages.tasks.expression import OPERATIONS
from stages.tasks.generated import PATIENCE, GeneratedTask
from stages.tasks.protocol import Problem, Verdict

# Twelve steps of twelve operations on six-digit numbers are shorter; the bound keeps verification within microseconds.
_MAX_CHARACTERS = 2048
_RESPONSE = re.compile(r"(?:[0-9+*-]+=)*(0|[1-9][0-9]{0,8})")

Chain = tuple[list[int], list[str]]
"""Numbers, and the operators between them."""


class Arithmetic(GeneratedTask):
    kind = "arithmetic"
    knobs = "task.operations, task.largest_number or task.largest_value"
    alphabet = "0123456789+-*=:"

    def __init__(self, config: ArithmeticTask) -> None:
        super().__init__(config.name)
        self.config = config

    def verify(self, problem: Problem, response: str) -> Verdict:
        match = _RESPONSE.fullmatch(response) if len(response) <= _MAX_CHARACTERS else None
        if match is None:
            return Verdict(correct=False, answer=None)
        return Verdict(correct=int(match[1]) == problem.data["value"], answer=match[1])

    def draw(self, rng: random.Random) -> tuple[Problem, str]:
        """A chain, and what is left of it after each step; uniform over the chains whose intermediate results all stay in range."""
        config = self.config
        for _ in range(PATIENCE):
            operations = rng.choice(config.operations)
            operators: list[str] = [rng.choice(config.operators) for _ in range(operations)]
            numbers = [rng.randint(1, config.largest_number) for _ in range(operations + 1)]
            steps = list(_steps(numbers, operators))
            if all(0 <= number <= config.largest_value for remaining, _ in steps for number in remaining):
                texts = [_render(step) for step in steps]
                return Problem(id=texts[0], prompt=f"{texts[0]}:", data={"value": steps[-1][0][0]}), "=".join(texts[1:])
        raise PriorlabError(
            f"task {config.name!r}: {PATIENCE:,} random chains in a row left 0..{config.largest_value}; raise task.largest_value, "
            "or lower task.operations or task.largest_number"
        )


def _steps(numbers: list[int], operators: list[str]) -> Iterator[Chain]:
    """The chain, and what is left of it after each operation."""
    yield numbers, operators
    while operators:
        at = operators.index("*") if "*" in operators else 0
        value = OPERATIONS[operators[at]](numbers[at], numbers[at + 1])
        numbers = [*numbers[:at], value, *numbers[at + 2 :]]
        operators = operators[:at] + operators[at + 1 :]
        yield numbers, operators


def _render(chain: Chain) -> str:
    numbers, operators = chain
    return str(numbers[0]) + "".join(f"{operator}{number}" for operator, number in zip(operators, numbers[1:], strict=True))
