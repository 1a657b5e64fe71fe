"""A prior's mean weight, by which the next step is divided (`stages.next_token.normalization`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.next_token.normalization import Normalization
from stages.objective.head import LossHead
from stages.objective.shaped import Shaped


@pytest.mark.parametrize(("weights", "expected"), [([6.0, 3.0], 0.5), ([6.0, 0.0], 1e-3)])
def test_weights_that_vanish_do_not_divide_by_zero(weights: list[float], expected: float) -> None:
    """As those of coverage do once every response is learned."""
    head = LossHead(2, 3, Shaped(), head_k=0)
    head.take_weight = lambda: torch.tensor(weights)  # type: ignore[method-assign]
    anything: Any = SimpleNamespace(world_size=1)
    Normalization(head, None).on_step_end(anything, anything, anything)
    assert head.mean_weight == expected
