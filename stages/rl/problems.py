"""Which problems RL trains on, and which it validates on."""

from __future__ import annotations

from pipeline.config.rl import RLConfig
from stages.tasks import Problem, Task


def training_and_validation(task: Task, settings: RLConfig, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Disjoint problems of the RL split. Other wordings of the training problems, where wanted, follow those first drawn."""
    validated = 0 if settings.validation is None else settings.validation.problems
    problems = task.problems("rl", settings.problems + validated, seed)
    training, validation = problems[: settings.problems], problems[settings.problems :]
    if settings.rewordings:
        training = training + [other for problem in training for other in task.rewordings(problem)]
    return training, validation
