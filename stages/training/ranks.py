"""What the processes of a stage agree on before Trainer is there, and work that they divide."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from stages.device import has_gpu
from stages.training.process import LONGEST_WAIT_SECONDS

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a stage that decide or divide something among them; this one is number `rank`. Each must make the same calls."""

    rank: int = 0
    count: int = 1

    @property
    def share(self) -> slice:
        """This process's part of a list."""
        return slice(self.rank, None, self.count)

    def agreed(self, value: T) -> T:
        """The first process's value."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def gathered(self, values: list[T]) -> list[T]:
        """Those of all processes."""
        return values if self.count == 1 else gather_object(values)


def meet(rank: int, count: int) -> Ranks:
    """Connect the stage's processes. Trainer's arguments do so too, but under ZeRO-3 they have to wait until the model is there."""
    if count > 1:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # as Trainer's arguments set it while they connect
        PartialState(cpu=not has_gpu(), timeout=timedelta(seconds=LONGEST_WAIT_SECONDS))
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return Ranks(rank, count)
