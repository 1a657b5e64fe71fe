"""GRPO (arXiv 2402.03300): how much better a response is than its group."""

from __future__ import annotations

from pipeline.config.algorithm import GroupAdvantage
from stages.rl.advantage.protocol import Advantage


def build(_config: GroupAdvantage, _seed: int) -> Advantage:
    return Advantage()
