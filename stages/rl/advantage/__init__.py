"""Ways to turn the rewards of a group into advantages, one module each, behind the protocol of `protocol.py`."""

from __future__ import annotations

import importlib

from pipeline.config.algorithm import Advantage as AdvantageConfig
from stages.rl.advantage.protocol import Advantage

__all__ = ["Advantage", "build_advantage"]


def build_advantage(config: AdvantageConfig, seed: int) -> Advantage:
    """The one that a config describes: its kind is the name of a module of this package. `seed` is the run's."""
    module = importlib.import_module(f"{__name__}.{config.kind}")
    built = module.build(config, seed)
    assert isinstance(built, Advantage)
    return built
