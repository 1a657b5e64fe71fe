"""Ways to explore in RL, one module each, behind the protocol of `protocol.py`."""

from __future__ import annotations

import importlib

from pipeline.config.exploration import Exploration as ExplorationConfig
from stages.rl.exploration.protocol import Context, Exploration, Tokens

__all__ = ["Context", "Exploration", "Tokens", "build_exploration"]


def build_exploration(config: ExplorationConfig, context: Context) -> Exploration:
    """The one that a config describes: its kind is the name of a module of this package."""
    module = importlib.import_module(f"{__name__}.{config.kind}")
    built = module.build(config, context)
    assert isinstance(built, Exploration)
    return built
