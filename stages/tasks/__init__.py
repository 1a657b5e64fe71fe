"""Reasoning tasks: problem generators with verifiable answers.

A new task is one module with the `Task` protocol, one config class in `pipeline.config` and one line in `build_task`.
"""

from pipeline.config import CountdownTask
from stages.tasks.countdown import Countdown
from stages.tasks.protocol import Problem, Split, Task, Verdict

__all__ = ["Problem", "Split", "Task", "Verdict", "build_task"]


def build_task(config: CountdownTask) -> Task:
    """The task that a config describes."""
    return Countdown(config)
