"""Plain GRPO."""

from __future__ import annotations

from pipeline.config.exploration import NoExploration
from stages.rl.exploration.protocol import Context, Exploration


def build(_config: NoExploration, _context: Context) -> Exploration:
    return Exploration()
