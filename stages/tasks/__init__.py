"""Reasoning tasks: problems with verifiable answers, generated or read from datasets.

A new task is one module that implements `Task`, one config class in `pipeline.config.tasks` and one case in `build_task`.
"""

from pipeline.config.tasks import ArithmeticTask, CountdownTask, GymTask, MathTask, ParityTask
from pipeline.config.tasks import Task as AnyTaskConfig
from stages.tasks.protocol import Document, Problem, Split, Task, Verdict

__all__ = ["Document", "Problem", "Split", "Task", "Verdict", "build_task"]


def build_task(config: AnyTaskConfig) -> Task:
    """The task that a config describes. Imports are lazy: every verifier worker repeats them, and sympy alone takes a second."""
    match config:
        case CountdownTask():
            from stages.tasks.countdown import Countdown

            return Countdown(config)
        case ArithmeticTask():
            from stages.tasks.arithmetic import Arithmetic

            return Arithmetic(config)
        case ParityTask():
            from stages.tasks.parity import Parity

            return Parity(config)
        case MathTask():
            from stages.tasks.math import Math

            return Math(config)
        case GymTask():
            from stages.tasks.gym import Gym

            return Gym(config)
